"""Inputs of any size and layout in one block: what the original takes is computed, what it refuses is refused."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from canon_bridge import canonize
from tests.inside.models import BLOCKS, MODELS, made, mostly
from tests.support.errors import relative_error
from tests.support.named_norms import randomize_any
from tests.support.pieces import BOTH, conv, image, norm

SIZES = [
    (2, 4, 6, 6),
    (0, 4, 6, 6),
    (1, 4, 1, 1),
    (1, 4, 2, 3),
    (1, 4, 5, 1),
    (3, 4, 9, 4),
    (1, 4, 0, 6),
    (2, 4, 17, 3),
]
OTHERS = [(4, 6, 6), (4, 4, 4), (4, 1, 1), (4, 4), (4,), (2, 3, 6, 6), (2, 1, 6, 6), (2, 4, 4, 4, 4), (2, 8, 6, 6)]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "expanded": lambda x: x[:1, :, :, :1].expand(x.shape),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second": lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, ::2, ::2],
    "negative strides": lambda x: x.flip((2, 3)),
    "a slice": lambda x: F.pad(x, (1, 2, 3, 4))[:, :, 3:-4, 1:-2],
    "of a graph": lambda x: x.clone().requires_grad_() * 1.0,
}


def outcome(model: nn.Module, x: Tensor) -> Tensor | str:
    """Return the output, or the name of the error."""
    try:
        return model(x.clone()).detach()
    except (RuntimeError, ValueError, IndexError) as error:
        return type(error).__name__


def agree(after: Tensor | str, before: Tensor | str) -> bool:
    if isinstance(after, str) or isinstance(before, str):
        return isinstance(after, str) and isinstance(before, str)
    return after.shape == before.shape and (before.numel() == 0 or relative_error(after, before) < 1e-12)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", [name for name in MODELS if name != "densenet"])
def test_sizes_change_inside_one_block(name: str, block: str) -> None:
    model, *_ = made(name)
    inputs = [image(*shape) for shape in (*SIZES, *OTHERS, *reversed(SIZES))]
    if block == "zennit":
        inputs = [x for x in inputs if x.numel()]  # zennit's own hooks want elements
    expected = [outcome(model, x) for x in inputs]
    assert {type(value) for value in expected} == {str, Tensor}
    with BLOCKS[block](model):
        wrong = [
            tuple(x.shape) for x, right in zip(inputs, expected, strict=True) if not agree(outcome(model, x), right)
        ]
    assert not wrong


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", mostly("everything", "branches"))
@pytest.mark.parametrize("prefer", BOTH)
def test_any_layout_of_the_input(prefer: str, name: str, layout: str) -> None:
    model, x, _ = made(name)
    x = LAYOUTS[layout](x)
    expected, values = model(x).detach(), x.detach().clone()
    with canonize(model, prefer=prefer):
        assert relative_error(model(x).detach(), expected) < 1e-12
    assert torch.equal(x, values)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "a larger kernel": lambda: nn.Conv2d(4, 4, 7, padding=3),
    "a kernel that sees padding alone": lambda: nn.Conv2d(4, 4, 3, padding=3, dilation=2),
    "reflect": lambda: nn.Conv2d(4, 4, 5, padding=2, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 4, 3, 2, 1),
    "strided": lambda: nn.Conv2d(4, 4, 3, 2, 1),
    "pooled": lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 2)),
    "averaged": lambda: nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), conv()),
    "flattened": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("prefer", BOTH)
def test_every_small_size_behind_a_norm(prefer: str, layer: str) -> None:
    model = randomize_any(nn.Sequential(norm(), nn.ReLU(), LAYERS[layer]()).double())
    inputs = [image(1, 4, height, width) for height in range(1, 7) for width in range(1, 7)]
    expected = [outcome(model, x) for x in inputs]
    with canonize(model, prefer=prefer):
        wrong = [
            tuple(x.shape) for x, right in zip(inputs, expected, strict=True) if not agree(outcome(model, x), right)
        ]
    assert not wrong


NORMS: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.BatchNorm1d(4),
    "2d": norm,
    "3d": lambda: nn.BatchNorm3d(4),
    "frozen": lambda: FrozenBatchNorm2d(4),
    "any rank": lambda: nn.SyncBatchNorm(4),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_leftover_takes_the_ranks_that_its_norm_takes(kind: str) -> None:
    model = randomize_any(nn.Sequential(nn.Softmax(1), NORMS[kind](), nn.Softmax(1)).double())
    # A frozen norm broadcasts what has too few dimensions or channels: that has no linear form and is refused.
    inputs = [image(2, 4, *(3,) * spatial) for spatial in range(4)]
    expected = [outcome(model, x) for x in inputs]
    if kind == "frozen":
        expected = [value if x.dim() == 4 else "refused" for value, x in zip(expected, inputs, strict=True)]
    with canonize(model):
        assert type(model[1]) is nn.Conv2d
        assert all(agree(outcome(model, x), right) for x, right in zip(inputs, expected, strict=True))
        if kind != "any rank":
            with pytest.raises(ValueError, match="expected input of shape"):
                model(image(2, 4, *(3,) * (1 if kind != "1d" else 3)))


def test_a_leftover_takes_what_has_no_elements() -> None:
    model = randomize_any(nn.Sequential(nn.Softmax(1), norm(), nn.Softmax(1)).double())
    with canonize(model):
        for shape in ((1, 4, 0, 6), (0, 4, 6, 6), (0, 4, 0, 0)):
            assert model(image(*shape)).shape == shape


@pytest.mark.parametrize("prefer", BOTH)
def test_features_without_a_batch_are_refused_where_they_count_other_channels(prefer: str) -> None:
    # With three dimensions the norm takes the second for channels, the Linear layer the last: no merge holds for both.
    layers = (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    model = randomize_any(nn.Sequential(*layers).double())
    assert model(image(4, 4, 4)).shape == (4, 4, 3)
    features = image(2, 4)
    expected = model(features)
    with canonize(model, prefer=prefer):
        assert relative_error(model(features), expected) < 1e-12
        with pytest.raises(ValueError, match="add the batch dimension"):
            model(image(4, 4, 4))
        with pytest.raises(ValueError, match="add the batch dimension"):
            model(image(4))
