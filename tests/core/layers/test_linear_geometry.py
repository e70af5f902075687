"""Folding before and after every (transposed) convolution: kernels, strides, dilations, paddings, groups, sizes.

The reference is the composition of norm and layer, computed by torch. The product of all geometries is sampled with a
fixed seed, for one axis and in the slow run it is complete.
"""

import copy
import random
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canon_bridge.core.affine import Affine
from canon_bridge.core.layers import linear
from canon_bridge.core.layers.linear import LINEAR, fold_after, fold_before
from canon_bridge.core.norms import NORMS
from canon_bridge.core.restore import Edits
from tests.core.layers.test_linear import KINDS
from tests.support.statistics import randomize

Case = dict[str, Any]

KERNELS, STRIDES, DILATIONS, SIZES = (1, 2, 3, 5), (1, 2, 3), (1, 2, 3), (1, 2, 3, 4, 5, 7, 8)
IN, OUT, GROUPS = 6, 12, (1, 2, 3, 6)
MODES = ("zeros", "reflect", "replicate", "circular")
NORM_OF = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
# Sums of up to 750 products, relative to 1 + the largest value.
TOLERANCE = 64 * torch.finfo(torch.float64).eps

CONVOLUTIONS = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if LINEAR[kind].spatial], ids=lambda kind: kind.__name__
)
# torch says so once for its own way of padding.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def sampled(kind: type[nn.Module], number: int, seed: int = 0) -> Iterator[Case]:
    """Yield random geometries; each axis has its own kernel, stride, dilation and padding."""
    chance, spec = random.Random(seed), LINEAR[kind]
    for _ in range(number):
        axes = range(spec.spatial)
        kernel = tuple(chance.choice(KERNELS) for _ in axes)
        dilation = tuple(chance.choice(DILATIONS) for _ in axes)
        padding: object = tuple(chance.randint(0, size) for size in kernel)
        if not spec.transposed:
            padding = chance.choice((padding, padding, padding, "same", "valid"))
        stride = tuple(1 if padding == "same" else chance.choice(STRIDES) for _ in axes)
        case: Case = {"kernel_size": kernel, "stride": stride, "dilation": dilation, "padding": padding}
        if spec.transposed:
            case["output_padding"] = tuple(chance.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
        else:
            case["padding_mode"] = chance.choice(("zeros", "zeros", *MODES))
        yield case | {"groups": chance.choice(GROUPS), "bias": chance.random() < 0.5}


def complete(kind: type[nn.Module]) -> Iterator[Case]:
    """Yield the whole product for one axis."""
    transposed = LINEAR[kind].transposed
    for kernel, stride, dilation, groups, bias in product(KERNELS, STRIDES, DILATIONS, GROUPS, (True, False)):
        case: Case = {"kernel_size": kernel, "stride": stride, "dilation": dilation, "groups": groups, "bias": bias}
        words = () if transposed else ("valid", "same")[: 1 + (stride == 1)]
        for padding in (*range(kernel + 1), *words):
            if transposed:
                for output_padding in range(max(stride, dilation)):
                    yield case | {"padding": padding, "output_padding": output_padding}
            else:
                yield from (case | {"padding": padding, "padding_mode": mode} for mode in MODES)


def make(kind: type[nn.Module], case: Case) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a layer and the norms before and behind it."""
    spatial = LINEAR[kind].spatial
    layer = kind(IN, OUT, dtype=torch.float64, **case)
    before, after = (NORM_OF[spatial](width, dtype=torch.float64) for width in (IN, OUT))
    return layer, randomize(before, seed=1), randomize(after, seed=2)


def folded(layer: nn.Module, *steps: tuple[Callable[..., None], nn.Module]) -> nn.Module:
    """Return a copy of the layer that has taken the norms in."""
    twin = copy.deepcopy(layer)
    for fold, norm in steps:
        fold(Edits(), twin, NORMS[type(norm)].read(norm))
    return twin


def outcome(function: Callable[[], Tensor]) -> Tensor | None:
    """Return the result, or None where torch refuses the input (too small for the kernel or the padding)."""
    try:
        return function()
    except RuntimeError:
        return None


def deviation(value: Tensor | None, reference: Tensor | None) -> float:
    """Return the largest deviation, infinite for another shape, and where only one of them was refused."""
    if value is None or reference is None:
        return 0.0 if value is reference else torch.inf
    if value.shape != reference.shape:
        return torch.inf
    value, reference = value.detach(), reference.detach()
    return float((value - reference).abs().max() / (1 + reference.abs().max())) if value.numel() else 0.0


def check(kind: type[nn.Module], case: Case, sizes: Iterator[tuple[int, ...]]) -> int:
    """Compare all four ways to fold with the composition, for each size; return how many sizes torch accepted."""
    layer, before, after = make(kind, case)
    twins: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
        "before": (folded(layer, (fold_before, before)), lambda x: layer(before(x))),
        "after": (folded(layer, (fold_after, after)), lambda x: after(layer(x))),
        "before, after": (folded(layer, (fold_before, before), (fold_after, after)), lambda x: after(layer(before(x)))),
        "after, before": (folded(layer, (fold_after, after), (fold_before, before)), lambda x: after(layer(before(x)))),
    }
    accepted = 0
    for size in sizes:
        x = torch.randn(2, IN, *size, dtype=torch.float64)
        for name, (twin, composition) in twins.items():
            value, reference = outcome(lambda: twin(x)), outcome(lambda: composition(x))  # noqa: B023
            assert deviation(value, reference) < TOLERANCE, (name, case, size)
            accepted += reference is not None and reference.numel() > 0
    return accepted


# A compact bias is added to the border alone where that is cheaper, else to the whole output, in place or not.
WAYS = pytest.mark.parametrize("way", ["in place", "at the border", "with gradients"])


@CONVOLUTIONS
@WAYS
def test_folded_layer_is_the_composition(kind: type[nn.Module], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SMALLEST_MAP", 0 if way == "at the border" else 2**16)
    spatial = LINEAR[kind].spatial
    number = {1: 300, 2: 200, 3: 100}[spatial]
    chance = random.Random(1)
    with torch.set_grad_enabled(way == "with gradients"):
        accepted = sum(
            check(kind, case, (tuple(chance.choices(SIZES[: 8 - spatial], k=spatial)) for _ in range(3)))
            for case in sampled(kind, number)
        )
    assert accepted > 3 * number


@pytest.mark.slow
@CONVOLUTIONS
@torch.no_grad()
def test_folded_layer_is_the_composition_everywhere(kind: type[nn.Module]) -> None:
    spatial = LINEAR[kind].spatial
    chance = random.Random(2)
    for case in complete(kind) if spatial == 1 else sampled(kind, 3000, seed=2):
        check(kind, case, ((n,) for n in SIZES) if spatial == 1 else (tuple(chance.choices(SIZES, k=spatial)),))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if LINEAR[kind].transposed], ids=lambda kind: kind.__name__)
@WAYS
@torch.no_grad()
def test_output_size_argument(kind: type[nn.Module], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SMALLEST_MAP", 0 if way == "at the border" else 2**16)
    chance = random.Random(3)
    accepted = 0
    for case in sampled(kind, 60, seed=3):
        layer, before, _ = make(kind, case)
        twin = folded(layer, (fold_before, before))
        size = tuple(chance.choices((1, 2, 3, 4), k=LINEAR[kind].spatial))
        least = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, k, s, p, d in zip(size, layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
        ]
        x = torch.randn(1, IN, *size, dtype=torch.float64)
        for _ in range(3):
            wanted = [n + chance.randrange(s) for n, s in zip(least, layer.stride, strict=True)]
            reference = outcome(lambda: layer(before(x), output_size=wanted))  # noqa: B023
            assert deviation(outcome(lambda: twin(x, output_size=wanted)), reference) < TOLERANCE, (case, wanted)  # noqa: B023
            assert deviation(outcome(lambda: twin(x, wanted)), reference) < TOLERANCE, (case, wanted)  # noqa: B023
            accepted += reference is not None
    assert accepted > 60


def constant_shift(layer: nn.Module, affine: Affine) -> nn.Module:
    """Fold as if every tap were inside everywhere: the border forgotten."""
    twin = folded(layer)
    by_input, kernel = weight_by_input(layer)
    factors = affine.scale.view(-1, 1, *(1,) * len(kernel)), affine.shift.view(-1, 1, *(1,) * len(kernel))
    with torch.no_grad():
        total = (by_input * factors[1]).flatten(2).sum((0, 2))
        twin.weight.copy_(write_by_input(layer, by_input * factors[0]))
        twin.bias = nn.Parameter(total + (0 if layer.bias is None else layer.bias))
    return twin


def weight_by_input(layer: nn.Module) -> tuple[Tensor, torch.Size]:
    """Return the weight as ``(C_in, C_out, *kernel)``, with the zeros between groups, input by input."""
    kernel = layer.weight.shape[2:]
    full = torch.zeros(IN, OUT, *kernel, dtype=torch.float64)
    for i, o in product(range(IN), range(OUT)):
        a, b = IN // layer.groups, OUT // layer.groups
        if i // a == o // b:
            full[i, o] = layer.weight[i, o % b] if LINEAR[type(layer)].transposed else layer.weight[o, i % a]
    return full, kernel


def write_by_input(layer: nn.Module, full: Tensor) -> Tensor:
    """Undo :func:`weight_by_input`."""
    weight = torch.empty_like(layer.weight)
    for i, o in product(range(IN), range(OUT)):
        a, b = IN // layer.groups, OUT // layer.groups
        if i // a == o // b:
            index = (i, o % b) if LINEAR[type(layer)].transposed else (o, i % a)
            weight[index] = full[i, o]
    return weight


@CONVOLUTIONS
@torch.no_grad()
def test_tolerance_rejects_a_forgotten_border(kind: type[nn.Module]) -> None:
    spatial = LINEAR[kind].spatial
    # With padding 2 a transposed convolution with three taps has no border left.
    for padding, stride, groups in product((0, 1) if LINEAR[kind].transposed else (1, 2), (1, 2), GROUPS):
        case = {"kernel_size": 3, "stride": stride, "padding": padding, "groups": groups}
        layer, before, _ = make(kind, case)
        x = torch.randn(2, IN, *(6, 5, 4)[:spatial], dtype=torch.float64)
        wrong = constant_shift(layer, NORMS[type(before)].read(before))
        assert deviation(wrong(x), layer(before(x))) > 1e-3, case
        if not LINEAR[kind].transposed:
            # The variant is wrong at the border and nowhere else.
            layer, before, _ = make(kind, case | {"padding": 0})
            wrong = constant_shift(layer, NORMS[type(before)].read(before))
            assert deviation(wrong(x), layer(before(x))) < TOLERANCE
