"""What a time is made of: the operations of torch in it, what is left for Python, and where that Python is."""

from __future__ import annotations

import copy
import cProfile
import pstats
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from zennit.composites import EpsilonPlus

from benchmarks.speed.probes import PREFERS, explain, run_forward
from canon_bridge import canonize, canonized_copy
from canon_bridge.captum import LRP
from canon_bridge.core import Prefer
from canon_bridge.zennit import ModelCanonizer
from tests.support.in_zennit import TARGET

_SHOWN = 7
_WHERE = 5
_CALLS = 3  # of each thing
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
    python : dict of str to float
        In which modules and packages its Python is, the largest, as shares of all Python.
    """

    row: str
    model: str
    prefer: str
    shares: dict[str, float]
    python: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def parts(model: nn.Module, name: str, x: Tensor) -> Iterator[Parts]:
    """Yield what planning, the next entry, forward passes and attributions are made of: all that has a goal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with EpsilonPlus().context(model) as plain:
            yield _parts("plain_open", name, "", lambda: explain(plain, x))
        for prefer in PREFERS:
            for row, call in _calls(model, x, prefer):
                yield _parts(row, name, prefer, call)


def _parts(row: str, name: str, prefer: str, call: Callable[[], object]) -> Parts:
    return Parts(row, name, prefer, shares(call), places(call))


def _calls(model: nn.Module, x: Tensor, prefer: Prefer) -> Iterator[tuple[str, Callable[[], object]]]:
    block = canonize(model, prefer=prefer)

    def enter() -> None:
        with block:
            pass

    fresh = [copy.deepcopy(model) for _ in range(_CALLS)]  # for a plan is kept
    yield "plan", lambda: canonize(fresh.pop(), prefer=prefer)
    yield "again", enter
    with block:
        yield "forward", lambda: run_forward(model, x)
    twin = canonized_copy(model, prefer=prefer)
    yield "copy", lambda: run_forward(twin, x)
    with EpsilonPlus(canonizers=[ModelCanonizer(prefer)]).context(model) as modified:
        yield "ours_open", lambda: explain(modified, x)
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


def places(call: Callable[[], object]) -> dict[str, float]:
    """Return which share of a call's Python is in which module of ours, or in which package.

    By `cProfile`; what is written in C counts for the Python that calls it, but for torch's own functions, which are
    among the operations.
    """
    profiled = cProfile.Profile()
    profiled.runcall(call)
    found: dict[str, float] = {}
    for (file, _, function), (_, _, own, _, callers) in pstats.Stats(profiled).stats.items():  # pyright: ignore[reportAttributeAccessIssue]
        if file != "~":
            spent = [(file, own)]
        else:
            spent = [] if "torch" in function else [(caller, each[2]) for (caller, *_), each in callers.items()]
        for where, seconds in spent:
            found[_place(where)] = found.get(_place(where), 0.0) + seconds
    largest = sorted(found.items(), key=lambda item: item[1], reverse=True)[:_WHERE]
    return {place: seconds / sum(found.values()) for place, seconds in largest}


def _place(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    for package, depth in (("canon_bridge", None), ("torch", 2), ("zennit", 1), ("captum", 1)):
        if package in parts:
            named = parts[len(parts) - parts[::-1].index(package) - 1 :]
            return ".".join(named[1:] if depth is None else named[:depth])
    return "the standard library"


def _group(key: str) -> str:
    return next((group for group, begins in _GROUPS.items() if key.startswith(begins)), key.removeprefix("aten::"))
