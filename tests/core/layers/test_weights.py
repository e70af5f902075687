"""Layers that compute their weight or bias: the effective values are merged, and afterwards all is as it was."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from canon_bridge.core.layers.linear import (
    LINEAR,
    computes_weight,
    fold_after,
    fold_before,
    is_linear,
    linear_type,
    make_plain,
    why_not_foldable,
)
from canon_bridge.core.restore import Edits, writes_in_force
from tests.core.layers.test_linear import KINDS, LINEAR_TYPES, make, norms, read, sample
from tests.support.computed_layers import WRAPS, Deep, output, wrapped
from tests.support.errors import relative_error

TOLERANCE, WRONG = 1e-12, 1e-3
WAYS = pytest.mark.parametrize("way", WRAPS)


def computed(kind: type[nn.Module], way: str) -> nn.Module:
    layer = make(kind)
    if way == "orthogonal" and layer.weight.shape[-1] == 1:
        pytest.skip("no matrix")
    return wrapped(layer, WRAPS[way])


@LINEAR_TYPES
@WAYS
def test_the_effective_values_are_merged(kind: type[nn.Module], way: str) -> None:
    layer, (before, after), x = computed(kind, way), norms(kind), sample(kind)
    assert is_linear(layer)
    assert linear_type(layer) is LINEAR[kind]
    assert computes_weight(layer)
    assert why_not_foldable(layer) is None
    deep = Deep(layer)
    with torch.no_grad():
        expected = output(layer, x)
        composed = after(output(layer, before(x)))
        middle = output(layer, before(x))
    deep.check()
    for folds, reference in (
        ((make_plain,), expected),
        ((fold_before,), middle),
        ((fold_before, fold_after), composed),
        ((fold_after, fold_before), composed),
    ):
        edits = Edits()
        for fold in folds:
            fold(edits, layer, *(() if fold is make_plain else (read(before if fold is fold_before else after),)))
        assert not computes_weight(layer)
        assert is_linear(layer)
        assert type(layer) is kind
        assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
        assert not list(layer.buffers())
        assert {"weight", "bias"}.isdisjoint(vars(layer))
        assert relative_error(layer(x), reference) < TOLERANCE, folds
        edits.undo()
        edits.undo()
        deep.check()
        assert not writes_in_force(layer)
    assert torch.equal(output(layer, x), expected)
    deep.check()


@LINEAR_TYPES
@WAYS
@torch.no_grad()
def test_tolerance_rejects_raw_and_old_values(kind: type[nn.Module], way: str) -> None:
    layer, x = computed(kind, way), sample(kind)
    expected = output(layer, x)
    wrong: list[tuple[str, Tensor]] = []
    for name, tensor in [*layer.named_parameters(), *((n, v) for n, v in vars(layer).items() if isinstance(v, Tensor))]:
        target = "bias" if "bias" in name else "weight"
        plain = name in ("weight", "bias") and name in layer._parameters
        if not plain and tensor.shape == getattr(layer, target).shape and tensor.shape != ():
            wrong.append((target, tensor.clone()))
    assert wrong
    make_plain(Edits(), layer)
    for name, value in wrong:
        twin = copy.deepcopy(layer)
        setattr(twin, name, nn.Parameter(value))
        assert relative_error(twin(x), expected) > WRONG


@WAYS
@pytest.mark.parametrize("kind", KINDS[:3], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_journals_are_undone_in_any_order(kind: type[nn.Module], way: str, order: tuple[int, ...]) -> None:
    layer, (before, after), x = computed(kind, way), norms(kind), sample(kind)
    deep, journals = Deep(layer), [Edits() for _ in range(3)]
    make_plain(journals[0], layer)
    fold_before(journals[1], layer, read(before))
    fold_after(journals[2], layer, read(after))
    alive, outputs = [0, 1, 2], {}
    with torch.no_grad():
        outputs[2] = layer(x)
    for number in order:
        youngest = alive[-1]
        journals[number].undo()
        alive.remove(number)
        if alive and alive[-1] == youngest:
            with torch.no_grad():
                assert torch.equal(layer(x), outputs[youngest]), "the layer stays as the youngest journal left it"
        elif alive:
            with torch.no_grad():
                outputs[alive[-1]] = layer(x)
            assert not computes_weight(layer)
    deep.check()
    assert not writes_in_force(layer)


@LINEAR_TYPES
@WAYS
def test_reading_changes_nothing_in_training_mode_either(kind: type[nn.Module], way: str) -> None:
    layer, x = computed(kind, way), sample(kind)
    expected = output(layer, x)
    layer.train()
    deep, edits = Deep(layer), Edits()
    with parametrize.cached():
        assert why_not_foldable(layer) is None
        make_plain(edits, layer)
        edits.undo()
        assert not parametrize._cache
    deep.check()
    make_plain(edits, layer)
    assert relative_error(layer(x), expected) < TOLERANCE
    edits.undo()
    deep.check()


@LINEAR_TYPES
@WAYS
@pytest.mark.parametrize("assign", [False, True])
@torch.no_grad()
def test_copies_and_states_of_a_plain_layer(kind: type[nn.Module], way: str, assign: bool) -> None:
    layer, x = computed(kind, way), sample(kind)
    deep, edits, expected = Deep(layer), Edits(), output(layer, x)
    make_plain(edits, layer)
    twin, state = copy.deepcopy(layer), {name: value.clone() for name, value in layer.state_dict().items()}
    assert set(state) == {"weight", "bias"}
    for parameter in layer.parameters():
        parameter.zero_()
    assert relative_error(twin(x), expected) < TOLERANCE
    assert type(twin) is kind
    assert not computes_weight(twin)
    layer.load_state_dict(state, strict=True, assign=assign)
    assert relative_error(layer(x), expected) < TOLERANCE
    layer.load_state_dict(twin.state_dict(), strict=True, assign=assign)
    for name in ("weight", "bias"):
        setattr(layer, name, nn.Parameter(2 * getattr(layer, name)))
    assert relative_error(layer(x), 2 * expected) < TOLERANCE
    make(kind).load_state_dict(twin.state_dict())
    edits.undo()
    check_up_to(deep, layer)


def check_up_to(deep: Deep, layer: nn.Module) -> None:
    """Check, but for a plain Parameter that the test replaced although no journal wrote it."""
    for name in ("weight", "bias"):
        kept = next((value for place, value in deep.state if place == ("", "_parameters", name)), None)
        if kept is not None:
            layer._parameters[name] = kept
            deep.values = [(t, v, g) for t, v, g in deep.values if t is not kept]
    deep.check()


@LINEAR_TYPES
@WAYS
@pytest.mark.parametrize("frozen", [False, True])
def test_requires_grad_is_inherited(kind: type[nn.Module], way: str, frozen: bool) -> None:
    layer = computed(kind, way)
    for path, parameter in layer.named_parameters():
        parameter.requires_grad_(("bias" in path) is frozen)
    make_plain(Edits(), layer)
    assert layer.weight.requires_grad is not frozen
    assert layer.bias.requires_grad is frozen
    assert layer.weight.is_leaf
    assert layer.bias.is_leaf


@WAYS
def test_what_a_user_does_inside_does_not_keep_the_layer_from_being_restored(way: str) -> None:
    layer = computed(nn.Conv2d, way)
    first, *known, _ = vars(layer)["_forward_pre_hooks"]
    names = list(vars(layer)["_parameters"])
    deep, edits = Deep(layer), Edits()
    fold_before(edits, layer, read(norms(nn.Conv2d)[0]))
    for key in known:
        vars(layer)["_forward_pre_hooks"].pop(key, None)
    vars(layer)["_forward_pre_hooks"].move_to_end(first)
    vars(layer)["_forward_pre_hooks"].move_to_end(first, last=False)
    for name in ("weight", "bias"):
        delattr(layer, name)
        setattr(layer, name, nn.Parameter(torch.zeros(6)))
    for name in names:
        setattr(layer, name, nn.Parameter(torch.zeros(2)))
    layer.parametrizations = nn.ModuleDict()
    edits.undo()
    if "parametrizations" not in dict(layer.named_children()) or len(layer.parametrizations) == 0:
        del layer.parametrizations
    deep.check()


@pytest.mark.parametrize("way", ["orthogonal", "spectral_norm", "old spectral_norm", "pruned both"])
def test_under_autocast_values_are_exact_and_outputs_are_lowered_as_before(way: str) -> None:
    layer, x, before = computed(nn.Conv2d, way).float(), sample(nn.Conv2d).float(), read(norms(nn.Conv2d)[0])
    lower = torch.autocast("cpu", torch.bfloat16)
    expected = []
    for inside in (False, True):
        edits = Edits()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            fold_before(edits, layer, before)
        expected.append([parameter.detach().clone() for parameter in layer.parameters()])
        with lower:
            assert layer(x).dtype == torch.bfloat16
        assert layer(x).dtype == torch.float32
        edits.undo()
    for value, reference in zip(*expected, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, reference)


@LINEAR_TYPES
@pytest.mark.parametrize("way", ["weight_norm", "own of two", "old weight_norm", "old spectral_norm", "pruned twice"])
@torch.no_grad()
def test_a_layer_without_bias_gets_one_for_as_long(kind: type[nn.Module], way: str) -> None:
    layer, (before, after), x = wrapped(make(kind, bias=False), WRAPS[way]), norms(kind), sample(kind)
    reference, deep, edits = after(output(layer, before(x))), Deep(layer), Edits()
    fold_before(edits, layer, read(before))
    fold_after(edits, layer, read(after))
    assert relative_error(layer(x), reference) < TOLERANCE
    edits.undo()
    assert layer.bias is None
    deep.check()
