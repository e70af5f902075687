"""Presets with the names and default parameters of zennit's composites, and what they are made of.

In every preset activations pass relevance on, sums and average pools distribute it in proportion (Norm), products hand
it to their signal, and max pooling to the winner. With :class:`Preset` you write your own.
"""

from collections.abc import Sequence

from captum.attr._utils.custom_modules import Addition_Module
from torch import Tensor

from canon_bridge.captum.maps import LayerMap, NameMap, Preset, Types
from canon_bridge.captum.rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, Pass, Rule, SignalTakesAll, ZBox, ZPlus
from canon_bridge.captum.rules.base import Stabilizer
from canon_bridge.core import LINEAR, Kind

__all__ = [
    "Preset",
    "epsilon",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "layer_map_base",
]


Names = str | Sequence[str] | None


# Read anew for each preset: a user may have registered more.
def _convolutions() -> Types:
    return tuple(kind for kind, entry in LINEAR.by_type().items() if entry.spatial)


def _dense() -> Types:
    return tuple(kind for kind, entry in LINEAR.by_type().items() if not entry.spatial)


def layer_map_base(stabilizer: Stabilizer = 1e-6) -> list[tuple[Kind | Types, Rule]]:
    """Return the entries that all presets share, by what an operation is: all but linear layers.

    Parameters
    ----------
    stabilizer : float or callable, default 1e-6
        The stabilizer on sums, average pools and all else that is linear in the data.
    """
    return [
        (Kind.ELEMENTWISE, Pass()),
        (Kind.SUM, Norm(stabilizer)),
        ((Addition_Module,), Norm(stabilizer)),
        (Kind.PRODUCT, SignalTakesAll(stabilizer)),
        (Kind.LINEAR, Norm(stabilizer)),
        (Kind.NORM, Pass()),
        # Their statistics are those of the input; relevance passes as if they were constants and the output the input.
        (Kind.NORMALISER, Pass()),
    ]


def _preset(
    name: str,
    stabilizer: Stabilizer,
    convolutions: Rule,
    dense: Rule,
    layer_map: LayerMap,
    first_map: LayerMap = (),
    name_map: NameMap = (),
) -> Preset:
    entries = [*layer_map, *layer_map_base(stabilizer), (_convolutions(), convolutions), (_dense(), dense)]
    return Preset(entries, first_map, name_map, name)


def epsilon(
    eps: Stabilizer = 1e-9, layer_map: LayerMap = (), zero_params: Names = None, name_map: NameMap = ()
) -> Preset:
    """Return the preset with the epsilon rule on every linear layer.

    Parameters
    ----------
    eps : float or callable, default 1e-9
        The epsilon of the rule, and the stabilizer on average pools and sums.
    layer_map, name_map : sequence of pairs
        Entries that come before those of the preset, see :class:`Preset`.
    zero_params : str or sequence of str, optional
        Names of parameters that count as zero, for example ``"bias"``.
    """
    rule = Epsilon(eps, zero_params)
    return _preset("epsilon", eps, rule, rule, layer_map, (), name_map)


def epsilon_plus(
    epsilon: Stabilizer = 1e-6,
    stabilizer: Stabilizer = 1e-6,
    layer_map: LayerMap = (),
    zero_params: Names = None,
    name_map: NameMap = (),
) -> Preset:
    """Return the preset with z+ on convolutions and epsilon on Linear layers, as zennit's ``EpsilonPlus``.

    Parameters
    ----------
    epsilon : float or callable, default 1e-6
        The epsilon of the epsilon rule.
    stabilizer : float or callable, default 1e-6
        The stabilizer of the other rules.
    layer_map, zero_params, name_map
        See :func:`epsilon`.
    """
    plus, dense = ZPlus(stabilizer, zero_params), Epsilon(epsilon, zero_params)
    return _preset("epsilon_plus", stabilizer, plus, dense, layer_map, (), name_map)


def epsilon_plus_flat(
    epsilon: Stabilizer = 1e-6,
    stabilizer: Stabilizer = 1e-6,
    layer_map: LayerMap = (),
    first_map: LayerMap = (),
    zero_params: Names = None,
    name_map: NameMap = (),
) -> Preset:
    """Return :func:`epsilon_plus` with the flat rule on the first linear layer, as zennit's ``EpsilonPlusFlat``.

    Parameters
    ----------
    epsilon, stabilizer, layer_map, zero_params, name_map
        See :func:`epsilon_plus`.
    first_map : sequence of pairs
        Entries for the first layer that come before the preset's, see :class:`Preset`.
    """
    plus, dense = ZPlus(stabilizer, zero_params), Epsilon(epsilon, zero_params)
    first = _flat(first_map, stabilizer, zero_params)
    return _preset("epsilon_plus_flat", stabilizer, plus, dense, layer_map, first, name_map)


def epsilon_alpha2_beta1(
    epsilon: Stabilizer = 1e-6,
    stabilizer: Stabilizer = 1e-6,
    layer_map: LayerMap = (),
    zero_params: Names = None,
    name_map: NameMap = (),
) -> Preset:
    """Return the preset with alpha 2, beta 1 on convolutions and epsilon on Linear, as zennit's ``EpsilonAlpha2Beta1``.

    Parameters
    ----------
    epsilon, stabilizer, layer_map, zero_params, name_map
        See :func:`epsilon_plus`.
    """
    rule, dense = AlphaBeta(2, 1, stabilizer, zero_params), Epsilon(epsilon, zero_params)
    return _preset("epsilon_alpha2_beta1", stabilizer, rule, dense, layer_map, (), name_map)


def epsilon_alpha2_beta1_flat(
    epsilon: Stabilizer = 1e-6,
    stabilizer: Stabilizer = 1e-6,
    layer_map: LayerMap = (),
    first_map: LayerMap = (),
    zero_params: Names = None,
    name_map: NameMap = (),
) -> Preset:
    """Return :func:`epsilon_alpha2_beta1` with the flat rule first, as zennit's ``EpsilonAlpha2Beta1Flat``.

    Parameters
    ----------
    epsilon, stabilizer, layer_map, first_map, zero_params, name_map
        See :func:`epsilon_plus_flat`.
    """
    rule, dense = AlphaBeta(2, 1, stabilizer, zero_params), Epsilon(epsilon, zero_params)
    first = _flat(first_map, stabilizer, zero_params)
    return _preset("epsilon_alpha2_beta1_flat", stabilizer, rule, dense, layer_map, first, name_map)


def epsilon_gamma_box(
    low: Tensor | float,
    high: Tensor | float,
    epsilon: Stabilizer = 1e-6,
    gamma: float = 0.25,
    stabilizer: Stabilizer = 1e-6,
    layer_map: LayerMap = (),
    first_map: LayerMap = (),
    zero_params: Names = None,
    name_map: NameMap = (),
) -> Preset:
    """Return the preset with z-box on the first convolution and gamma on others, as zennit's ``EpsilonGammaBox``.

    Parameters
    ----------
    low, high : float or Tensor
        The lowest and highest value of an input, after normalization; see :class:`canon_bridge.captum.rules.ZBox`.
    gamma : float, default 0.25
        See :class:`canon_bridge.captum.rules.Gamma`.
    epsilon, stabilizer, layer_map, first_map, zero_params, name_map
        See :func:`epsilon_plus_flat`.
    """
    rule, dense = Gamma(gamma, stabilizer, zero_params), Epsilon(epsilon, zero_params)
    first = (*first_map, (_convolutions(), ZBox(low, high, stabilizer, zero_params)))
    return _preset("epsilon_gamma_box", stabilizer, rule, dense, layer_map, first, name_map)


def _flat(first_map: LayerMap, stabilizer: Stabilizer, zero_params: Names) -> LayerMap:
    return (*first_map, ((*_convolutions(), *_dense()), Flat(stabilizer, zero_params)))
