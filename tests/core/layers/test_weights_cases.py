"""Computed weights, odd cases: what is refused, what is shared, failures half-way, what users and torch do inside."""

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from canon_bridge.core.affine import Affine
from canon_bridge.core.layers.linear import (
    computes_weight,
    fold_after,
    fold_before,
    is_linear,
    linear_type,
    make_plain,
    why_not_foldable,
)
from canon_bridge.core.restore import Edits
from tests.support.computed_layers import (
    PRUNE_WEIGHT,
    SPECTRAL_NORM,
    WEIGHT_NORM,
    WRAPS,
    Deep,
    Wrap,
    output,
    wrapped,
)
from tests.support.errors import relative_error

TOLERANCE, WRONG = 1e-12, 1e-3
OUT = 6


def convolution(wrap: Wrap | None = None, **keywords: Any) -> nn.Module:
    layer = nn.Conv2d(4, OUT, 3, padding=1, dtype=torch.float64, **keywords)
    return layer if wrap is None else wrapped(layer, wrap)


def sample() -> Tensor:
    return torch.randn(2, 4, 5, 6, dtype=torch.float64)


def affine(width: int) -> Affine:
    return Affine(torch.randn(width).double(), torch.randn(width).double())


class Narrow(nn.Module):
    """A parametrization that changes the shape, which torch allows with ``unsafe``."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight[..., 1:2]


def test_a_weight_that_is_computed_in_another_shape_is_refused() -> None:
    layer = convolution()
    parametrize.register_parametrization(layer, "weight", Narrow(), unsafe=True)
    assert is_linear(layer)
    assert "has not the shape" in str(why_not_foldable(layer))


def test_unknown_hooks_and_subclasses_are_refused_as_before() -> None:
    class Other(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    for wrap in (parametrizations.weight_norm, PRUNE_WEIGHT, WEIGHT_NORM):
        layer = Other(4, 4, 3)
        wrap(layer)
        assert not is_linear(layer)
        with pytest.raises(KeyError):
            linear_type(layer)
    layer = convolution()
    weight = layer.weight.detach()
    del layer.weight
    layer.register_forward_pre_hook(lambda module, inputs: setattr(module, "weight", 2 * weight))
    layer(sample())
    assert not computes_weight(layer)
    assert "its weight is neither" in str(why_not_foldable(layer))


def test_other_modules_are_left_alone() -> None:
    modules = [nn.Embedding(3, 3), nn.BatchNorm1d(3), nn.Bilinear(3, 3, 3), convolution()]
    modules[-1].forward = modules[-1].forward
    for module in modules:
        parametrize.register_parametrization(module, "weight", nn.Tanh())
        deep = Deep(module)
        assert not computes_weight(module)
        deep.check()
    with pytest.raises(KeyError):
        make_plain(Edits(), modules[0])


def test_a_subclass_that_overrides_nothing_may_compute_its_weight() -> None:
    class Same(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(4, OUT, 3, dtype=torch.float64)

    for wrap in (parametrizations.weight_norm, WEIGHT_NORM):
        layer, edits, x = wrapped(Same(), wrap), Edits(), sample()
        expected, deep = output(layer, x), Deep(layer)
        assert is_linear(layer)
        make_plain(edits, layer)
        assert type(layer) is Same
        assert relative_error(layer(x), expected) < TOLERANCE
        edits.undo()
        deep.check()


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, SPECTRAL_NORM, PRUNE_WEIGHT])
def test_only_the_slots_of_this_layer_change_where_parameters_are_shared(wrap: Wrap) -> None:
    layer, twin = convolution(wrap), convolution(wrap)
    parts = zip(layer.modules(), twin.modules(), strict=True)
    for part, other in parts:
        vars(other)["_parameters"].update(vars(part)["_parameters"])
    deep, deep_twin, edits, x = Deep(layer), Deep(twin), Edits(), sample()
    expected = output(twin, x)
    deep_twin.check()
    fold_after(edits, layer, affine(OUT))
    deep_twin.check()
    assert torch.equal(output(twin, x), expected)
    for parameter in layer.parameters():
        parameter.detach().fill_(torch.nan)
    assert torch.equal(output(twin, x), expected)
    edits.undo()
    deep.check()


def test_what_a_parametrization_hands_on_is_not_written_to() -> None:
    layer, edits = convolution(), Edits()
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    deep = Deep(layer)
    make_plain(edits, layer)
    with torch.no_grad():
        layer.weight.fill_(torch.nan)
    edits.undo()
    deep.check()


class Failing(nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        if not self.training:
            raise ValueError("not today")
        return tensor


def test_nothing_has_changed_when_the_weight_cannot_be_computed() -> None:
    layer, edits = convolution(WRAPS["pruned bias"]), Edits()
    layer.train()
    parametrize.register_parametrization(layer, "weight", Failing())
    deep = Deep(layer)
    assert "cannot be computed (ValueError: not today)" in str(why_not_foldable(layer))
    with pytest.raises(ValueError, match="not today"):
        make_plain(edits, layer)
    assert len(edits) == 0
    deep.check()


@pytest.mark.parametrize("way", ["stacked", "old weight_norm", "pruned twice", "old spectral_norm"])
def test_torch_finds_nothing_to_remove_inside(way: str) -> None:
    layer, edits, x = convolution(WRAPS[way]), Edits(), sample()
    deep = Deep(layer)
    fold_before(edits, layer, affine(4))
    for remove in (nn.utils.remove_weight_norm, nn.utils.remove_spectral_norm, partial(prune.remove, name="weight")):
        with pytest.raises(ValueError, match=r"not found|has to be pruned"):
            remove(layer)
    with pytest.raises(ValueError, match="does not have a parametrization"):
        parametrize.remove_parametrizations(layer, "weight")
    edits.undo()
    deep.check()
    remove = {
        "stacked": partial(parametrize.remove_parametrizations, tensor_name="weight"),
        "old weight_norm": nn.utils.remove_weight_norm,
        "pruned twice": partial(prune.remove, name="weight"),
        "old spectral_norm": nn.utils.remove_spectral_norm,
    }[way]
    expected = output(layer, x)
    remove(layer)
    assert relative_error(output(layer, x), expected) < TOLERANCE


@pytest.mark.parametrize("way", WRAPS)
def test_a_plain_layer_can_be_moved_pickled_and_trained(way: str) -> None:
    layer, edits, x = convolution(WRAPS[way]), Edits(), sample()
    deep, expected = Deep(layer), output(layer, x)
    fold_before(edits, layer, Affine(torch.ones(4).double(), torch.zeros(4).double()))
    hooks = dict(layer._forward_pre_hooks)
    layer._forward_pre_hooks.clear()  # a lambda cannot be pickled
    compat = dict(layer._load_state_dict_pre_hooks)
    layer._load_state_dict_pre_hooks.clear()  # nor can a function that torch defines inside another
    twin = pickle.loads(pickle.dumps(layer))
    layer._forward_pre_hooks.update(hooks)
    layer._load_state_dict_pre_hooks.update(compat)
    assert relative_error(twin(x), expected) < TOLERANCE
    assert relative_error(layer.float()(x.float()), expected) < 1e-5
    layer(x.float()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    edits.undo()
    deep.check()
    assert all(parameter.dtype == torch.float64 for parameter in layer.parameters())


@pytest.mark.parametrize("way", WRAPS)
def test_parameters_are_usual_ones_in_inference_mode_too(way: str) -> None:
    layer, edits = convolution(WRAPS[way]), Edits()
    deep = Deep(layer)
    with torch.inference_mode():
        assert why_not_foldable(layer) is None
        make_plain(edits, layer)
    assert not any(parameter.is_inference() for parameter in layer.parameters())
    layer(sample()).sum().backward()
    edits.undo()
    deep.check()


def test_user_hooks_stay_and_their_handles_work() -> None:
    for way in ("old weight_norm", "pruned both", "old spectral_norm"):
        layer, calls = convolution(WRAPS[way]), []
        handle = layer.register_forward_pre_hook(lambda module, inputs: calls.append(1))  # noqa: B023
        edits = Edits()
        fold_before(edits, layer, affine(4))
        layer(sample())
        assert calls == [1]
        late = layer.register_forward_pre_hook(lambda module, inputs: calls.append(2), prepend=True)  # noqa: B023
        handle.remove()
        edits.undo()
        layer(sample())
        assert calls == [1, 2]
        late.remove()
        assert len(layer._forward_pre_hooks) == 2 + (2 if way == "pruned both" else 1)


def test_a_shallow_copy_is_not_taken_for_a_folded_layer() -> None:
    layer = convolution()
    fold_before(Edits(), layer, affine(4))
    shallow = copy.copy(layer)
    assert is_linear(layer)
    assert not is_linear(shallow)
