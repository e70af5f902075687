"""LRP-0 on a random network against gradient times input of the original one, in both frameworks."""

import torch
from torch import Tensor, nn

from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import ModelCanonizer
from tests.support.errors import relative_error
from tests.support.in_zennit import attribute, epsilon_composite
from tests.support.models import TARGET, gradient_times_input
from tests.support.random.modules import build
from tests.support.random.steps import Network

TOLERANCE = 1e-8
LRP_0 = 1e-30


def reference(network: Network) -> tuple[nn.Module, Tensor, Tensor] | None:
    """Return model, input and gradient times input; None where that is zero, or the score (LRP-0 is then 0/0)."""
    model = build(network)
    x = torch.randn(2, *network.shape, dtype=torch.float64)
    expected = gradient_times_input(model, x)
    with torch.no_grad():
        score = model(x)[:, TARGET]
    is_useful = bool(expected.flatten(1).abs().amax(1).min() > 1e-6) and bool(score.abs().min() > 1e-6)
    return (model, x, expected) if is_useful else None


def by_captum(model: nn.Module, x: Tensor, prefer: str) -> Tensor:
    return LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET)


def by_zennit(model: nn.Module, x: Tensor, prefer: str) -> Tensor:
    return attribute(model, x, epsilon_composite(LRP_0, [ModelCanonizer(prefer=prefer)]))


def check_relevance(found: Tensor, expected: Tensor) -> None:
    error = relative_error(found, expected)
    assert error < TOLERANCE, f"LRP-0 is not gradient times input: {error:.1e}"
