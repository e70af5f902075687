"""What a time is made of: the operations of torch in it, and what is left for Python, by torch's own profiler."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.probes import PREFERS, run_forward
from canon_bridge import canonize
from canon_bridge.captum import LRP
from canon_bridge.core import Prefer
from tests.support.in_zennit import TARGET

_SHOWN = 7
# Kernels that are one thing to a reader, by what their names begin with.
_GROUPS = {
    "convolution backward": (
        "aten::convolution_backward",
        "aten::mkldnn_convolution_backward",
        "aten::_slow_conv2d_backward",
    ),
    "convolutions": (
        *("aten::convolution", "aten::_convolution", "aten::conv", "aten::mkldnn_convolution", "aten::thnn_conv"),
        *("aten::_slow_conv", "aten::slow_conv", "aten::_nnpack"),
    ),
    "matrix products": ("aten::addmm", "aten::mm", "aten::mv", "aten::linear"),
    "copies": ("aten::copy_", "aten::clone", "aten::contiguous", "aten::cat", "aten::to", "aten::_to_copy"),
    "clamp, where, comparisons": (
        *("aten::clamp", "aten::where", "aten::maximum", "aten::minimum", "aten::relu", "aten::threshold"),
        *("aten::lt", "aten::gt", "aten::le", "aten::ge", "aten::eq", "aten::ne"),
    ),
    "products, quotients, sums of two": ("aten::mul", "aten::div", "aten::add", "aten::sub", "aten::neg"),
    "sums over dimensions": ("aten::sum", "aten::mean"),
    "pooling": ("aten::max_pool", "aten::avg_pool", "aten::adaptive", "aten::mkldnn_max_pool"),
    "BatchNorm": ("aten::batch_norm", "aten::native_batch_norm", "aten::_batch_norm"),
}
PYTHON = "Python and what calls the kernels"


@dataclass(frozen=True)
class Parts:
    """The parts of one time.

    Attributes
    ----------
    row, model, prefer : str
        Of which figure.
    shares : dict of str to float
        What it is made of, largest first; they sum up to 1.
    """

    row: str
    model: str
    prefer: str
    shares: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def parts(model: nn.Module, name: str, x: Tensor) -> Iterator[Parts]:
    """Yield what the next entry, a forward inside and an attribution by Captum's LRP are made of."""
    for prefer in PREFERS:
        for row, call in _calls(model, x, prefer):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield Parts(row, name, prefer, shares(call))


def _calls(model: nn.Module, x: Tensor, prefer: Prefer) -> Iterator[tuple[str, Callable[[], object]]]:
    block = canonize(model, prefer=prefer)

    def enter() -> None:
        with block:
            pass

    yield "again", enter
    with block:
        yield "forward", lambda: run_forward(model, x)
    lrp = LRP(model, prefer=prefer)
    yield "lrp", lambda: lrp.attribute(x, target=TARGET)


def shares(call: Callable[[], object]) -> dict[str, float]:
    """Return which share of a call's time each group of operations takes, and Python the rest.

    The profiler makes each operation longer by about a microsecond, which counts for Python here.
    """
    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        start = time.perf_counter()  # as the profiler counts
        call()
        total = 1e6 * (time.perf_counter() - start)
    found: Counter[str] = Counter()
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            found[_group(event.key)] += event.self_cpu_time_total
    found[PYTHON] = max(0.0, total - found.total())
    largest = dict(found.most_common(_SHOWN))
    others = found.total() - sum(largest.values())
    return {name: value / found.total() for name, value in {**largest, "other operations": others}.items()}


def _group(key: str) -> str:
    return next((group for group, begins in _GROUPS.items() if key.startswith(begins)), key.removeprefix("aten::"))
