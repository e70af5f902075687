"""Weights that a module computes anew for each forward: parametrizations, weight_norm, spectral_norm, pruning.

Values are those of evaluation mode, computed anew: what a hook has
left may be old.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _WrappedHook
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, SpectralNormStateDictHook
from torch.nn.utils.weight_norm import WeightNorm

from canon_bridge.core.layers.parameters import gradients, parameter, tracked
from canon_bridge.core.restore import Edits, slots

TENSORS: Final = ("weight", "bias")
_HOOKS: Final = ("_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


def computed_tensors(module: nn.Module) -> frozenset[str]:
    """Return the names of the tensors of a module that a parametrization or a hook of torch computes."""
    hooks = slots(module, "_forward_pre_hooks").values()
    return frozenset((*_parametrizations(module), *(name for name in map(_computes, hooks) if name is not None)))


def evaluated(module: nn.Module) -> nn.Module:
    """Return a stand-in that holds the tensors that the forward of the module would use in evaluation mode.

    They are in the module's own precision, also under autocast. The stand-in has the class of the module before
    parametrizations and shares what is not computed. The module, its buffers (the vectors of a power iteration) and
    the cache of parametrizations stay as they are.
    """
    stand_in: nn.Module = object.__new__(type_before_parametrizations(module))
    vars(stand_in).update(vars(module), training=False)
    for table in ("_parameters", "_buffers", "_modules"):
        vars(stand_in)[table] = dict(slots(module, table))
    with gradients(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        for name, parametrization in _parametrizations(module).items():
            vars(stand_in)[name] = _evaluate(parametrization)
        for hook in slots(module, "_forward_pre_hooks").values():
            if _computes(hook) is not None:
                hook(stand_in, ())
    return stand_in


def make_tensors_plain(edits: Edits, module: nn.Module, weight: Callable[[nn.Module], Tensor] | None = None) -> None:
    """Make computed ``weight`` and ``bias`` plain Parameters that hold the effective values of this moment.

    Hooks and parametrizations that computed them are taken out, with what they computed from. A module that computes
    neither stays as it is. For a class whose forward computes a weight from its tensors, ``weight`` makes that of the
    stand-in (see :func:`evaluated`).
    """
    parametrized, families = _parametrizations(module), {name: _family(module, name) for name in TENSORS}
    computed = computed_tensors(module)
    if weight is None and computed.isdisjoint(TENSORS):
        return
    helpers = {name for family in families.values() for name in family} - {*TENSORS}
    with torch.inference_mode(False), gradients():
        stand_in = evaluated(module)
        # With the parametrizations goes the class, so that all tensors that they compute must be plain.
        values = {n: getattr(stand_in, n) for n in (*TENSORS, *parametrized) if n in computed and n not in helpers}
        if weight is not None:
            values["weight"] = weight(stand_in)
        sources = {name: families.get(name, [name]) for name in values}
        held = _tensors(module)
        if weight is not None:
            sources["weight"] = [name for name in held if name not in families["bias"]]
        plain: dict[str, Tensor] = {}
        for name, value in values.items():
            requires_grad = any(tensor.requires_grad for source in sources[name] for tensor in held.get(source, ()))
            plain[name] = parameter(tracked(value).clone(), requires_grad)
    for table in _HOOKS:
        for key, hook in list(slots(module, table).items()):
            if _computes(hook) in {*TENSORS, *helpers} or (parametrized and _reads_old_names(hook)):
                edits.remove(module, table, key)
    for table in ("_parameters", "_buffers", "__dict__"):
        for name in list(slots(module, table)):
            if name in helpers or (name in plain and table != "_parameters"):
                edits.remove(module, table, name)
    if parametrized:
        edits.set_class(module, type_before_parametrizations(module))  # it is read from the parametrizations
        edits.remove(module, "_modules", "parametrizations")
    for name, value in plain.items():
        edits.set(module, "_parameters", name, value)


def _parametrizations(module: nn.Module) -> dict[str, ParametrizationList]:
    if not is_parametrized(module):
        return {}
    lists = slots(module, "_modules")["parametrizations"]
    return dict(lists.items())


def _evaluate(parametrization: ParametrizationList) -> Tensor:
    # Not through the property of the module, which may read or fill a cache.
    edits = Edits()
    try:
        for part in parametrization.modules():
            if part.training:
                edits.set(part, "__dict__", "training", False)
        return parametrization()
    finally:
        edits.undo()


def _computes(hook: object) -> str | None:
    """Return the name of the tensor that a hook of torch computes, or whose state it saves and loads."""
    hook = _unwrapped(hook)
    if isinstance(hook, SpectralNormStateDictHook | SpectralNormLoadStateDictPreHook):
        hook = hook.fn
    if isinstance(hook, BasePruningMethod):
        return hook._tensor_name
    return hook.name if isinstance(hook, WeightNorm | SpectralNorm) else None


def _unwrapped(hook: object) -> object:
    return hook.hook if isinstance(hook, _WrappedHook) else hook


def _reads_old_names(hook: object) -> bool:
    """Return whether a hook turns the state of a former implementation into that of a parametrization."""
    return getattr(_unwrapped(hook), "__module__", "") == "torch.nn.utils.parametrizations"


def _family(module: nn.Module, name: str) -> list[str]:
    """Return the name of a tensor and of all those that hooks compute it from."""
    names = [name]
    for member in names:  # it grows: pruning may compute what weight_norm computes from
        for hook in slots(module, "_forward_pre_hooks").values():
            if _computes(hook) == member:
                suffixes = ("g", "v") if isinstance(hook, WeightNorm) else ("orig", "u", "v", "mask")
                names += [f"{member}_{suffix}" for suffix in suffixes]
    return names


def _tensors(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of the module, also those of parametrizations, by the tensor that they belong to."""
    found: dict[str, list[nn.Parameter]] = {}
    for path, tensor in module.named_parameters():
        found.setdefault(path.removeprefix("parametrizations.").partition(".")[0], []).append(tensor)
    return found
