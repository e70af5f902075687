"""Shared pieces of the tests: random statistics that let no forgotten term pass, and a snapshot of a whole model."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Small operations: threads that wait for each other cost more than they bring, and two test processes share the cores.
torch.set_num_threads(1)


def randomize(model: nn.Module, seed: int = 0, eps: float = 0.1, mild: bool = False) -> nn.Module:
    """Give every BatchNorm random statistics: weights of both signs, one zero, one tiny; a large eps.

    With ``mild`` all scales are positive and near one, as after training.
    """
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            width = norm.num_features
            norm.eps = eps
            norm.running_mean.copy_(torch.randn(width, generator=generator) * 0.5)
            norm.running_var.copy_(torch.rand(width, generator=generator) + 0.5)
            if norm.affine:
                with torch.no_grad():
                    norm.weight.copy_(torch.rand(width, generator=generator) * 0.5 + 0.75)
                    norm.bias.copy_(torch.randn(width, generator=generator) * 0.3)
                    if not mild:
                        norm.weight.mul_(torch.randint(0, 2, (width,), generator=generator) * 2 - 1)
                        norm.weight[0] = 0
                        norm.weight[-1] = 1e-20
    return model.eval()


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return the largest deviation relative to the largest reference value; infinite where NaN appears."""
    if not bool(torch.isfinite(value).all()):
        return float("inf")
    return float((value - reference).detach().abs().max() / reference.detach().abs().max())


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything about a model that must be the same after a block, objects by identity, tensors also by value."""

    model: nn.Module
    state: list[tuple[Any, ...]]
    values: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, model: nn.Module) -> "Snapshot":
        tensors = [*model.parameters(), *model.buffers()]
        return cls(model, cls._state(model), [(tensor, tensor.detach().clone()) for tensor in tensors])

    @staticmethod
    def _state(model: nn.Module) -> list[tuple[Any, ...]]:
        state: list[tuple[Any, ...]] = []
        for path, module in model.named_modules(remove_duplicate=False):
            for name, value in vars(module).items():
                if isinstance(value, dict):
                    content = tuple((key, id(item)) for key, item in value.items())
                    state.append((path, id(module), type(module), name, content))
                elif isinstance(value, set):
                    state.append((path, id(module), type(module), name, tuple(sorted(value))))
                elif isinstance(value, (bool, int, float, str, tuple, type(None))):
                    state.append((path, id(module), type(module), name, value))
                else:
                    state.append((path, id(module), type(module), name, id(value)))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            state.append((name, id(tensor), tensor.data_ptr(), tensor.dtype, tensor.requires_grad, tensor.is_leaf))
        return state

    def check(self) -> None:
        """Fail unless the model is itself again, to the bit."""
        for before, now in zip(self.state, self._state(self.model), strict=True):
            assert before == now
        for tensor, value in self.values:
            assert torch.equal(tensor, value)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def alive(model: nn.Module) -> list[str]:
    """Return the paths of BatchNorms that do not compute the exact identity on random input."""
    paths: list[str] = []
    shapes: dict[type[nn.Module], tuple[int, ...]] = {
        nn.BatchNorm1d: (),
        nn.BatchNorm2d: (3, 3),
        nn.BatchNorm3d: (2, 2, 2),
    }
    for path, norm in model.named_modules():
        if type(norm) in shapes:
            mean = norm.running_mean
            x = torch.randn(2, norm.num_features, *shapes[type(norm)], dtype=mean.dtype)
            if not torch.equal(norm(x), x):
                paths.append(path)
    return paths


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many cases of the fault matrix were run; see tests/test_faults.py."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    properties = [pair for report in reports for pair in getattr(report, "user_properties", ())]
    cases = sum(value for name, value in properties if name == "cases")
    if cases:
        terminalreporter.write_line(f"fault matrix: {cases:,} cases")
