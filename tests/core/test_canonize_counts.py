"""What a canonical forward and an entry cost, in kernels, which no machine changes."""

from collections import Counter
from collections.abc import Callable, Mapping
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
