"""What a canonical forward and an entry cost, in kernels, which no machine changes; and what is saved harms nobody."""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import DenseNet, resnet18

from canon_bridge import canonize
from canon_bridge.core.apply import carry_out
from canon_bridge.core.layers.parameters import keeping_graph
from canon_bridge.core.options import Backend
from canon_bridge.core.restore import Edits
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, conv, norm
from tests.support.statistics import randomize

NORMS = {"native_batch_norm", "cudnn_batch_norm"}
TINY = 64 * torch.finfo(torch.float64).eps


class Kernels(TorchDispatchMode):
    """Count all operations by name, and how many elements they put out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.elements: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **kwargs or {})
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        self.elements[name] += result.numel() if isinstance(result, Tensor) else 0
        return result


def counted(function: Callable[[], object]) -> Kernels:
    with Kernels() as kernels:
        function()
    return kernels


def dense() -> nn.Module:
    return DenseNet(8, (2, 2), 16, num_classes=5)


@pytest.mark.parametrize("mild", [True, False])
@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("make", [dense, resnet18])
@torch.no_grad()
def test_a_forward_runs_no_norm_and_each_threshold_is_one_kernel(
    make: Callable[[], nn.Module], prefer: Any, mild: bool
) -> None:
    model, x = randomize(make().eval(), mild=mild), torch.randn(1, 3, 96, 96)
    before = counted(lambda: model(x)).calls
    with canonize(model, prefer=prefer):
        kernels = counted(lambda: model(x))
        thresholds = [m for m in model.modules() if "thr_value" in vars(m)["_buffers"]]
        both_signs = [m for m in thresholds if "thr_sign" in vars(m)["_buffers"]]
    after = kernels.calls
    assert not NORMS & after.keys()
    assert after["_lazy_clone"] == sum(before[name] for name in NORMS)
    assert after["convolution"] == before["convolution"]
    # One kernel, and another one in place where it is a minimum for some channels.
    assert after["clamp"] == len(thresholds)
    assert after["clamp_"] == len(both_signs) <= (0 if mild else len(thresholds))
    assert after["where"] == 2 * len(both_signs)
    assert after["relu"] + after["relu_"] == before["relu"] + before["relu_"] - len(thresholds)
    assert not {"minimum", "maximum"} & after.keys()


@torch.no_grad()
def test_a_bias_of_the_border_is_not_gathered_over_a_large_output() -> None:
    model, x = randomize(nn.Sequential(norm(64), conv(64, 64)).eval()), torch.randn(1, 64, 128, 128)
    with canonize(model, prefer="right"):
        model(x)  # at the first call the norm finds out that it is the identity
        kernels = counted(lambda: model(x))
    assert kernels.elements["index_select"] < 10 * 64 * 128
    assert kernels.elements["add"] == 0
    assert kernels.calls["add_"] == 4


@pytest.mark.parametrize("size", [16, 48])  # a map that is added as a whole, and one of which the border is
def test_gradients_change_no_bit_of_a_forward_with_a_border(size: int) -> None:
    model = randomize(nn.Sequential(norm(64), nn.ReLU(), conv(64, 64)).double().eval())
    x = torch.randn(1, 64, size, size, dtype=torch.float64, requires_grad=True)
    expected = model(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    with canonize(model, prefer="right"):
        with torch.no_grad():
            without = model(x)
        recorded = model(x)
        assert torch.equal(recorded, without)
        assert relative_error(recorded, expected) < 1e-12
        assert relative_error(torch.autograd.grad(recorded.square().sum(), x)[0], gradient) < 1e-12


def per_norm(prefer: Any, mild: bool) -> float:
    model = randomize(dense().eval(), mild=mild)
    plan, edits = canonize(model, prefer=prefer).plan, Edits()
    try:
        with keeping_graph(False):
            return counted(lambda: carry_out(edits, model, plan, Backend())).calls.total() / len(plan.merges)
    finally:
        edits.undo()


@pytest.mark.parametrize("mild", [True, False])
@pytest.mark.parametrize(("prefer", "most"), [("left", 64), ("right", 92)])
def test_an_entry_takes_a_bounded_number_of_operations(prefer: Any, most: int, mild: bool) -> None:
    assert per_norm(prefer, mild) < most


def merged() -> tuple[nn.Sequential, nn.Module]:
    """Return a canonical-to-be model, and its norm, which becomes the identity."""
    model = nn.Sequential(conv(), norm(), nn.ReLU(), conv())
    return randomize(model.double().eval()), model[1]


@torch.no_grad()
def test_what_a_merged_norm_returns_may_be_overwritten() -> None:
    model, layer = merged()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with canonize(model):
        before, y = x.clone(), layer(x)
        assert y is not x
        assert torch.equal(y, x)
        y.relu_()
        assert torch.equal(x, before)
        assert torch.equal(y, before.relu())
        z = layer(x)
        x.add_(1)
        assert torch.equal(z, before)


def rescale(layer: Any) -> None:
    layer.weight.mul_(3)


def rescale_data(layer: Any) -> None:
    layer.weight.data.mul_(3)


def replace(layer: Any) -> None:
    layer.weight = nn.Parameter(layer.weight * 3)


def rescale_variance(layer: Any) -> None:
    layer.running_var.fill_(1 / 9)


def shift(layer: Any) -> None:
    layer.load_state_dict({**layer.state_dict(), "bias": layer.bias + 1})


def enlarge_eps(layer: Any) -> None:
    layer.eps = 3.0


@pytest.mark.filterwarnings("ignore::canon_bridge.LostChangeWarning")
@pytest.mark.parametrize(
    ("change", "wanted"),
    [(f, lambda x: 3 * x) for f in (rescale, rescale_data, replace, rescale_variance)]
    + [(shift, lambda x: x + 1), (enlarge_eps, lambda x: x / 2)],
)
@torch.no_grad()
def test_what_is_changed_in_the_block_counts(change: Callable[[Any], None], wanted: Callable[[Tensor], Tensor]) -> None:
    model, layer = merged()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with canonize(model):
        assert torch.equal(layer(x), x)
        change(layer)
        assert relative_error(layer(x), wanted(x)) < TINY


@torch.no_grad()
def test_what_a_norm_refuses_is_refused_and_its_modes_are_kept() -> None:
    model, layer = merged()
    with canonize(model):
        for shape in ((2, 4, 5), (2, 5, 4, 4)):
            with pytest.raises((ValueError, RuntimeError)):
                layer(torch.ones(*shape, dtype=torch.float64))
        x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
        layer.train()
        with pytest.raises(ValueError, match="training mode"):  # it has none
            layer(x)
        layer.eval()
        assert torch.equal(layer(x), x)


@torch.no_grad()
@pytest.mark.parametrize("inference", [True, False])
def test_every_kind_of_memory(inference: bool) -> None:
    model, layer = merged()
    whole = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    of_numpy = torch.from_numpy(whole.numpy().copy())
    with canonize(model), torch.inference_mode(inference):
        channels_last = whole.clone(memory_format=torch.channels_last)
        for x in (whole, channels_last, of_numpy, whole.transpose(2, 3), whole[:, :, :1].expand(2, 4, 5, 5), whole[:0]):
            before, y = x.clone(), layer(x)
            assert torch.equal(y, before)
            y.add_(1)
            assert torch.equal(x, before)
            assert torch.equal(y, before + 1)


@torch.no_grad()
def test_threads_share_an_input() -> None:
    model, layer = merged()
    with canonize(model), ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
            wanted = x.clone().relu_()
            assert all(torch.equal(y, wanted) for y in pool.map(lambda _: layer(x).relu_(), range(8)))  # noqa: B023
            assert torch.equal(x.relu(), wanted)


def test_gradients_reach_the_parameters_of_a_merged_norm() -> None:
    model, layer = merged()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with canonize(model):
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        assert relative_error(layer.weight.grad, x.sum((0, 2, 3))) < TINY
