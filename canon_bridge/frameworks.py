"""The rules of a preset by name, and the maps they make, in Captum or in zennit."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from canon_bridge.core import Clipped, ExampleInputs, Prefer

Framework = Literal["captum", "zennit"]
PresetName = Literal[
    "epsilon",
    "epsilon_plus",
    "epsilon_plus_flat",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
]
Attribute = Callable[[Tensor, Tensor], Tensor]


def to_evaluation(model: nn.Module) -> nn.Module:
    """Return the model, in evaluation mode; a program that ``torch.export`` wrote has no modes and stays as it is."""
    with suppress(NotImplementedError):
        model.eval()
    return model


def make_rules(
    framework: Framework,
    model: nn.Module,
    preset: str,
    *,
    prefer: Prefer = "left",
    clipped: Clipped = "absorb",
    example_inputs: ExampleInputs | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """Return what canonizes the model and has the rules of a preset; :func:`canon_bridge.audit` takes it as well.

    Parameters
    ----------
    framework : {"captum", "zennit"}
        Whose rules.
    model : nn.Module
        In evaluation mode.
    preset : str
        The name of a preset in :mod:`canon_bridge.captum.presets`.
    prefer, clipped, example_inputs
        See :func:`canon_bridge.canonize`.
    settings : mapping, optional
        Keywords of the preset, for example ``low`` and ``high``.

    Returns
    -------
    canon_bridge.captum.LRP or zennit.core.Composite
        The composite has zennit's name for the preset (``EpsilonPlus``); ``epsilon``, which zennit has no name for, is
        built from its rules.

    Raises
    ------
    ValueError
        For a framework or a preset that there is not.
    """
    for name, value, kind in (("framework", framework, Framework), ("preset", preset, PresetName)):
        if value not in get_args(kind):
            allowed = ", ".join(map(repr, get_args(kind)))
            raise ValueError(f"{name} is {value!r} ({type(value).__name__}); it must be one of {allowed}.")
    keywords = dict(settings or {})
    options: Any = {"prefer": prefer, "clipped": clipped, "example_inputs": example_inputs}
    if framework == "captum":
        from canon_bridge.captum import LRP, presets

        return LRP(model, getattr(presets, preset)(**keywords), **options)
    import zennit.composites

    from canon_bridge.zennit import ModelCanonizer

    name = preset.title().replace("_", "")
    make: Any = _epsilon_in_zennit if preset == "epsilon" else getattr(zennit.composites, name)
    return make(canonizers=[ModelCanonizer(**options)], **keywords)


def make_attribute(framework: Framework, model: nn.Module, rules: Any) -> Attribute:
    """Return a function from inputs ``(N, ...)`` and their classes ``(N,)`` to relevance, of the shape of the inputs.

    Parameters
    ----------
    framework : {"captum", "zennit"}
        What made the rules.
    model : nn.Module
        What they were made for. In zennit it is canonical from here on, in Captum during each call.
    rules : LRP or Composite
        From :func:`make_rules`.
    """
    if framework == "captum":
        return lambda inputs, classes: rules.attribute(inputs, target=classes)
    from zennit.attribution import Gradient

    attributor: Any = ExitStack().enter_context(Gradient(model, rules))  # stays open

    def attribute(inputs: Tensor, classes: Tensor) -> Tensor:
        return attributor(inputs.detach().requires_grad_(), score_of(classes))[1].detach()

    return attribute


def score_of(classes: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what zennit asks for the output gradient: of scores ``(N, classes)`` those of ``classes``, else zero."""

    def score(scores: Tensor) -> Tensor:
        index = classes[:, None]
        return torch.zeros_like(scores).scatter(1, index, scores.detach().gather(1, index))

    return score


def _epsilon_in_zennit(canonizers: list[Any], eps: float = 1e-9) -> Any:
    from zennit.composites import LayerMapComposite, layer_map_base
    from zennit.rules import Epsilon
    from zennit.types import Linear

    return LayerMapComposite([*layer_map_base(eps), (Linear, Epsilon(eps))], canonizers=canonizers)
