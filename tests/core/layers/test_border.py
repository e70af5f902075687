"""Which taps lie inside the input, against windows over ones and transposed convolutions of one-hot kernels."""

import random
from collections.abc import Iterator, Sequence
from itertools import count, product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from canon_bridge.core.layers.border import (
    AxisGeometry,
    Border,
    add_at_border,
    gather,
    inner_values,
    rows_by_position,
)

SIZES = (1, 2, 3, 4, 5, 8, 13)


def convolutions() -> Iterator[AxisGeometry]:
    """Yield one axis of every convolution: symmetric padding up to the kernel, and both kinds of "same"."""
    for kernel, stride, dilation in product((1, 2, 3, 4, 5, 7), (1, 2, 3), (1, 2, 3)):
        for padding in range(kernel + 1):
            yield AxisGeometry(kernel, stride, dilation, padding, padding)
        reach = dilation * (kernel - 1)
        for by_size in (False, True):
            yield AxisGeometry(kernel, stride, dilation, reach // 2, reach - reach // 2, by_size=by_size)


def transposed_convolutions() -> Iterator[AxisGeometry]:
    for kernel, stride, dilation in product((1, 2, 3, 4, 5), (1, 2, 3, 4), (1, 2, 3)):
        for padding in range(kernel + 1):
            yield AxisGeometry(kernel, stride, dilation, padding, padding, True, max(stride, dilation) - 1)


def ends(geometry: AxisGeometry, size: int) -> tuple[int, int]:
    """Return what is padded at both ends, by size the least with which there are ``size / stride`` windows."""
    if not geometry.by_size:
        return geometry.low, geometry.high
    rest = size - geometry.dilation * (geometry.kernel - 1) - 1
    total = next(n for n in count() if (rest + n) // geometry.stride + 1 == -(-size // geometry.stride))
    return total // 2, total - total // 2


def inside(geometry: AxisGeometry, size: int, output_padding: int = 0) -> Tensor | None:
    """Return which tap sees the input at which position, ``(positions, kernel)``, or None where torch refuses."""
    if not geometry.transposed:
        # A window over the padded input, of which the taps see every dilation-th element.
        padded = F.pad(torch.ones(size), ends(geometry, size))
        reach = geometry.dilation * (geometry.kernel - 1)
        windows = padded.unfold(0, reach + 1, geometry.stride) if reach < len(padded) else None
        return None if windows is None else windows[:, :: geometry.dilation]
    kernels = torch.eye(geometry.kernel)[None]
    options = (geometry.stride, geometry.low, output_padding, 1, geometry.dilation)
    try:
        return F.conv_transpose1d(torch.ones(1, 1, size), kernels, None, *options)[0].T
    except RuntimeError:  # no output, or more output_padding than it may be
        return None


def cases(geometry: AxisGeometry) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(size, which tap sees the input at which position)``."""
    for size, output_padding in product(SIZES, range(geometry.extra + 1)):
        seen = inside(geometry, size, output_padding)
        if seen is not None and seen.shape[0] > 0:
            yield size, seen


def rows(geometry: AxisGeometry, size: int, positions: int) -> Tensor:
    """Return the rows that the package finds, ``(positions, kernel)``."""
    return torch.tensor(Border.of(geometry).sets)[list(rows_by_position(geometry, size, positions))]


def borders(axes: Sequence[AxisGeometry]) -> tuple[Border, ...]:
    return tuple(map(Border.of, axes))


@pytest.mark.parametrize("geometries", [convolutions, transposed_convolutions])
def test_taps_at_every_position(geometries: type[Iterator[AxisGeometry]]) -> None:
    checked = 0
    for geometry in geometries():
        for size, seen in cases(geometry):
            assert torch.equal(rows(geometry, size, seen.shape[0]), seen), (geometry, size)
            checked += 1
            if size == 5:  # where a graph is recorded, sizes are no numbers
                traced = Border.of(geometry).rows(torch.tensor(size), seen.shape[0], seen.device)
                assert traced.tolist() == list(rows_by_position(geometry, size, seen.shape[0]))
    assert checked > 1500


def test_comparison_rejects_wrong_geometries() -> None:
    base = AxisGeometry(kernel=4, stride=2, dilation=2, low=2, high=3)
    seen = inside(base, 9)
    assert seen is not None
    assert torch.equal(rows(base, 9, seen.shape[0]), seen)
    for wrong in (
        AxisGeometry(4, 1, 2, 2, 3),  # the stride forgotten
        AxisGeometry(4, 2, 1, 2, 3),  # the dilation forgotten
        AxisGeometry(4, 2, 2, 3, 2),  # the odd element of "same" at the lower end
        AxisGeometry(4, 2, 2, 3, 3),  # one more in front
        AxisGeometry(4, 2, 2, 2, 3, True, 1),  # transposed
    ):
        assert not torch.equal(rows(wrong, 9, seen.shape[0]), seen), wrong


@pytest.mark.parametrize("geometries", [convolutions, transposed_convolutions])
def test_rows_are_distinct_and_none_is_missing(geometries: type[Iterator[AxisGeometry]]) -> None:
    for geometry in geometries():
        table = Border.of(geometry).sets
        assert len(set(table)) == len(table)
        assert all(len(row) == geometry.kernel and set(row) <= {0.0, 1.0} for row in table)
        for _, seen in cases(geometry):
            assert {tuple(row) for row in seen.tolist()} <= set(table), geometry


@pytest.mark.parametrize("geometries", [convolutions, transposed_convolutions])
def test_no_border_means_that_every_tap_counts_everywhere(geometries: type[Iterator[AxisGeometry]]) -> None:
    without = [geometry for geometry in geometries() if not geometry.has_border]
    assert without
    for geometry in without:
        assert geometry.transposed or Border.of(geometry).sets == ((1.0,) * geometry.kernel,)
        assert all(bool((seen == 1).all()) for _, seen in cases(geometry))


@pytest.mark.parametrize(
    ("kernel", "padding", "number"),
    [(3, 1, 4), (1, 0, 1), (1, 1, 2), (3, 0, 1), (5, 2, 9), (7, 3, 16), (2, 1, 4), (5, 1, 4)],
)
def test_number_of_tap_sets_is_small(kernel: int, padding: int, number: int) -> None:
    assert len(Border.of(AxisGeometry(kernel, 1, 1, padding, padding)).sets) == number


def test_gather_puts_every_entry_at_its_position() -> None:
    generator = random.Random(0)
    geometries = [g for g in (*convolutions(), *transposed_convolutions()) if g.kernel <= 4]
    checked = 0
    while checked < 60:
        axes = tuple(generator.choices(geometries, k=generator.choice((1, 2, 3))))
        size = generator.choice(SIZES)
        seen = [inside(axis, size) for axis in axes]
        if any(s is None or s.shape[0] == 0 for s in seen):
            continue
        lengths = [len(Border.of(axis).sets) for axis in axes]
        compact = torch.randn(2, *lengths)
        outputs = [s.shape[0] for s in seen]
        full = gather(compact, borders(axes), [(size, output) for output in outputs])
        assert all(n in (1, output) for n, output in zip(full.shape[1:], outputs, strict=True))
        full = full.expand(2, *outputs)
        # The tap sets are looked up in the table one by one, by the oracle's set.
        entries = [[Border.of(a).sets.index(tuple(row)) for row in s.tolist()] for a, s in zip(axes, seen, strict=True)]
        for position in product(*(range(len(axis)) for axis in entries)):
            entry = tuple(axis[p] for axis, p in zip(entries, position, strict=True))
            assert torch.equal(full[:, *position], compact[:, *entry])
        checked += 1


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_what_is_added_at_the_border_is_all_that_differs_from_the_inside(dimensions: int) -> None:
    axes = (AxisGeometry(3, 1, 1, 1, 1), AxisGeometry(4, 2, 1, 2, 2), AxisGeometry(5, 1, 2, 4, 4))[:dimensions]
    compact = torch.randn(2, *(len(Border.of(axis).sets) for axis in axes), dtype=torch.float64)
    sizes = [(9, len(seen)) for axis in axes if (seen := inside(axis, 9)) is not None]
    inner = inner_values(compact, borders(axes))
    assert inner is not None
    inner = inner.view(-1, *(1,) * dimensions)
    output = inner.expand(2, *(positions for _, positions in sizes)).repeat(3, *(1,) * (dimensions + 1))
    add_at_border(output, compact - inner, borders(axes), sizes)
    assert torch.allclose(output, gather(compact, borders(axes), sizes), rtol=0, atol=1e-14)


@pytest.mark.parametrize("change", [torch.relu, torch.square, torch.zeros_like, lambda b: b.clamp(-0.5, 0.2)])
def test_element_wise_changes_commute_with_gather(change: object) -> None:
    axes = (AxisGeometry(3, 2, 1, 1, 1), AxisGeometry(3, 2, 1, 1, 1, True, 1))
    compact = torch.randn(3, *(len(Border.of(axis).sets) for axis in axes))
    sizes = [(7, 4), (5, 10)]
    assert torch.equal(gather(change(compact), borders(axes), sizes), change(gather(compact, borders(axes), sizes)))


def test_gather_has_the_gradient_of_a_lookup() -> None:
    axes = (AxisGeometry(3, 1, 1, 1, 1),)
    compact = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: gather(c, borders(axes), [(5, 5)]), (compact,))
    counts = torch.bincount(torch.tensor(rows_by_position(axes[0], 5, 5)), minlength=4)
    gather(compact, borders(axes), [(5, 5)]).sum().backward()
    assert compact.grad is not None
    assert torch.equal(compact.grad[0].long(), counts)
