"""What must hold for every network: same function, no BatchNorm, a plan that says what happened, restored."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torchvision.ops import FrozenBatchNorm2d

from canon_bridge import canonize
from canon_bridge.core.plan import Leftover, Merge, Plan, Refusal, Untangled
from tests.support.random.modules import build, tensors_of
from tests.support.random.steps import Network
from tests.support.snapshot import Snapshot

TOLERANCE = 1e-10
LINEAR = (nn.Linear, nn.modules.conv._ConvNd)


class Unchanged(Snapshot):
    """A snapshot without what old ``weight_norm``, ``spectral_norm`` and pruning compute anew at every call."""

    def differences(self) -> list[str]:
        return [place for place in super().differences() if not _COMPUTED.search(place)]


_COMPUTED = re.compile(r"(?<!_parameters)(?<!_buffers)\.weight( \(values\))?$")


class NormCalls(TorchFunctionMode):
    """Note of every call of ``F.batch_norm`` by whose statistics it normalizes, and whether it is the identity."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(buffer): name for name, buffer in model.named_buffers()}
        self.alive: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.batch_norm and not torch.equal(output, args[0]):
            self.alive.add(self.names.get(id(args[1]), "?").removesuffix("_mean").removesuffix(".running"))
        return output


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Return copies of the outputs; the input stays as it is."""
    with torch.no_grad():
        return tuple(output.clone() for output in tensors_of(model(x.clone())))


def inputs_of(network: Network, model: nn.Module) -> list[Tensor]:
    """Return two inputs, and one of another spatial size where the network takes it."""
    channels, *sizes = network.shape
    inputs = [torch.randn(2, *network.shape, dtype=torch.float64), torch.randn(3, *network.shape, dtype=torch.float64)]
    larger = torch.randn(2, channels, *(size + 2 for size in sizes), dtype=torch.float64)
    try:
        run(model, larger)
    except (RuntimeError, ValueError):
        return inputs
    return [*inputs, larger]


def assert_same(outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for output, reference in zip(outputs, expected, strict=True):
        assert output.shape == reference.shape
        assert output.isfinite().all()
        error = float((output - reference).abs().max() / reference.abs().max().clamp(min=1e-3))
        assert error < TOLERANCE, f"the function has changed by {error:.1e}"


def check(network: Network, example: bool = False, **keywords: Any) -> Plan:
    """Check everything but relevance, and return the plan."""
    model = build(network)
    inputs = inputs_of(network, model)
    expected = [run(model, x) for x in inputs]
    parameters = {path: dict(m._parameters) for path, m in model.named_modules() if isinstance(m, LINEAR)}
    norms = {path for path, module in model.named_modules() if isinstance(module, _BatchNorm)}
    snapshot = Unchanged(model)
    canonization = canonize(model, **keywords, **({"example_inputs": inputs[0].clone()} if example else {}))
    snapshot.check()
    with canonization:
        for x, reference in zip(inputs, expected, strict=True):
            assert_same(run(model, x), reference)
        check_plan(model, canonization.plan, norms, parameters, inputs[0])
        if example and all(float(output.abs().max()) > 1e-3 for output in expected[0]):
            assert canonization.function_error is not None
            assert canonization.function_error < TOLERANCE
    snapshot.check()
    for x, reference in zip(inputs, expected, strict=True):
        assert all(map(torch.equal, run(model, x), reference))
    # Values are read anew at the next entry; this time the block ends with an exception.
    _change(model)
    reference = run(model, inputs[0])
    snapshot = Unchanged(model)
    with pytest.raises(ZeroDivisionError):
        _leave_by_exception(canonization, model, inputs[0], reference)
    snapshot.check()
    assert all(map(torch.equal, run(model, inputs[0]), reference))
    return canonization.plan


def _change(model: nn.Module) -> None:
    """Turn the scales of all BatchNorms around, zeros aside, and move their means."""
    with torch.no_grad():
        for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
            if name.endswith("_mean"):
                tensor.add_(0.5)
        for module in model.modules():
            if isinstance(module, _BatchNorm | FrozenBatchNorm2d) and module.weight is not None:
                module.weight.neg_()


def _leave_by_exception(canonization: Any, model: nn.Module, x: Tensor, reference: tuple[Tensor, ...]) -> None:
    with canonization:
        assert_same(run(model, x), reference)
        raise ZeroDivisionError


def check_plan(model: nn.Module, plan: Plan, norms: set[str], parameters: dict[str, dict[str, Any]], x: Tensor) -> None:
    """Check on the canonical model that all happened that the plan says, and nothing else."""
    entries = {entry.norm: entry for entry in plan.entries}
    assert len(entries) == len(plan.entries), "two entries for one BatchNorm"
    assert norms <= set(entries), "a BatchNorm without entry"
    watched = {path: model.get_submodule(path) for path, e in entries.items() if not isinstance(e, Refusal)}
    frozen = {path: m for path, m in model.named_modules() if isinstance(m, FrozenBatchNorm2d)}
    calls, seen = NormCalls(model), _seen(model, {**watched, **frozen}, x)
    with calls:
        run(model, x)
    own = {name for name in model.network.own_norms() if name not in entries}
    refused = {path for path, entry in entries.items() if isinstance(entry, Refusal)}
    alive = calls.alive | {path for path in frozen if path in seen and not torch.equal(*seen[path])}
    assert alive <= refused | own, f"alive: {alive - refused - own}"
    for path, entry in entries.items():
        if isinstance(entry, Merge):
            assert path not in seen or torch.equal(*seen[path]), f"{path} is merged, but not the identity"
        elif isinstance(entry, Leftover):
            assert not isinstance(watched[path], _BatchNorm)
            assert path not in seen or is_linear(watched[path], seen[path][0])
        elif isinstance(entry, Untangled):
            assert not isinstance(watched[path], _BatchNorm)
            assert path not in seen or seen[path][1].shape[1] == len(entry.index)
        else:
            assert entry.reason
    merged = {path for entry in (*plan.merges, *plan.untangled) for path in entry.targets} | set(plan.plain)
    for path, former in parameters.items():
        now = model.get_submodule(path)._parameters
        same = list(now) == list(former) and all(now[name] is former[name] for name in now)
        assert same != (path in merged), f"{path}: {'not ' * same}changed"


def _seen(model: nn.Module, modules: dict[str, nn.Module], x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what goes into the modules, and what comes out, in their last call."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    before: dict[str, Tensor] = {}
    handles: list[Any] = []
    for path, module in modules.items():
        handles += [
            module.register_forward_pre_hook(lambda _, args, path=path: before.update({path: args[0].clone()})),
            module.register_forward_hook(
                lambda _, args, output, path=path: seen.update({path: (before[path], output.clone())})
            ),
        ]
    run(model, x)
    for handle in handles:
        handle.remove()
    return seen


def is_linear(module: nn.Module, like: Tensor) -> bool:
    """Return whether a module computes an affine map, by superposition."""
    a, b, zero = torch.randn_like(like), torch.randn_like(like), torch.zeros_like(like)
    with torch.no_grad():
        a, b, both, zero = (module(value) for value in (a, b, a + b, zero))
    return bool(torch.allclose(both + zero, a + b, rtol=1e-10, atol=1e-10))
