"""Which rule each module gets: presets with the names and default parameters of zennit's composites."""

from collections.abc import Callable
from dataclasses import dataclass

from captum.attr._utils.custom_modules import Addition_Module
from torch import nn

from canon_bridge.captum.rules import Epsilon, Norm, Pass, Rule, ZPlus
from canon_bridge.core.modules import absorb
from canon_bridge.core.modules.affine import NORMS
from canon_bridge.core.modules.layers import Add, BatchNorm
from canon_bridge.core.modules.linear import LINEAR

Types = tuple[type[nn.Module], ...]

# Types of other packages, which the tables hold by name, are subclasses of these.
CONVOLUTIONS: Types = tuple(kind for kind, entry in LINEAR.items() if entry.spatial and isinstance(kind, type))
BATCH_NORMS: Types = (*(kind for kind in NORMS if isinstance(kind, type)), BatchNorm)
AVERAGE_POOLS: Types = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)
SUMS: Types = (Add, Addition_Module)
ACTIVATIONS: Types = tuple(kind for kind in absorb.ACTIVATIONS if isinstance(kind, type))


@dataclass(frozen=True)
class Preset:
    """A map from module types to rules; the first entry that fits a module counts.

    A module without an entry keeps its gradient (max pooling: winner-take-all), unless it has parameters.

    Attributes
    ----------
    name : str
        For messages.
    layer_map : tuple of (types, callable)
        Module types, and what makes the rule for one module of these types.
    """

    name: str
    layer_map: tuple[tuple[Types, Callable[[], Rule]], ...]

    def rule_for(self, module: nn.Module) -> Rule | None:
        """Return a new rule for the module, or None where its gradient is to be kept."""
        return next((make() for types, make in self.layer_map if isinstance(module, types)), None)


def _base(stabilizer: float) -> tuple[tuple[Types, Callable[[], Rule]], ...]:
    return (
        (ACTIVATIONS, Pass),
        (SUMS, lambda: Norm(stabilizer)),
        (AVERAGE_POOLS, lambda: Norm(stabilizer)),
        (BATCH_NORMS, Pass),
    )


def epsilon(eps: float = 1e-9) -> Preset:
    """Return the preset with the epsilon rule on every linear layer.

    Parameters
    ----------
    eps : float, default 1e-9
        The epsilon of the rule, and the stabilizer on average pools and sums.
    """
    return Preset("epsilon", (*_base(eps), ((*CONVOLUTIONS, nn.Linear), lambda: Epsilon(eps))))


def epsilon_plus(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Preset:
    """Return the preset with z+ on convolutions and epsilon on Linear layers, as zennit's ``EpsilonPlus``.

    Parameters
    ----------
    epsilon : float, default 1e-6
        The epsilon of the epsilon rule.
    stabilizer : float, default 1e-6
        The stabilizer of the other rules.
    """
    return Preset(
        "epsilon_plus",
        (
            *_base(stabilizer),
            (CONVOLUTIONS, lambda: ZPlus(stabilizer)),
            ((nn.Linear,), lambda: Epsilon(epsilon)),
        ),
    )
