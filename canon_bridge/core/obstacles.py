"""What canonization cannot begin with: modules that hide what they run or are made of, and tensors without values."""

from typing import Final

import torch
from torch import nn

from canon_bridge.core.registry import Registry
from canon_bridge.core.restore import paths

# The attribute that holds the module inside.
WRAPPERS: Final = Registry[str](
    {
        "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
        "torch.nn.parallel.data_parallel.DataParallel": "module",
        "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    }
)

# What stands beside quantized modules in torch and computes with floating point numbers, in models yet to be quantized.
_OF_FLOATS: Final = frozenset({"FloatFunctional", "FXFloatFunctional"})


def check_module(model: object) -> None:
    """Raise ``TypeError`` if the model is no module, or one in it hides another or has parts that cannot be changed.

    See also :func:`check_values`.
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        advice = f": an instance, {model.__name__}(...)" if isinstance(model, type) else ""
        raise TypeError(f"model is {what}; it must be a torch.nn.Module{advice}.")
    for module, path in paths(model).items():
        attribute = WRAPPERS.find(module)
        if attribute is not None:
            kind = type(module).__name__
            advice = (
                f"put {path}.{attribute} in its place, and wrap the model as a whole if at all."
                if path
                else f"use model.{attribute} instead. Inside the block the {kind} runs the canonical model, too."
            )
            raise TypeError(f"{path or 'model'} is a {kind}, which hides the module that it runs: {advice}")
        found = _unchangeable(module)
        if found is not None:
            raise TypeError(
                f"{path or 'the model'} is {found}, which cannot be changed; canonize the model it came from."
            )
    check_values(model)


def _unchangeable(module: nn.Module) -> str | None:
    """Return what a module is whose parts cannot be changed: a scripted or a quantized one; None for others."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "a scripted module"
    is_quantized = "quantized" in kind.__module__ and kind.__module__.startswith("torch.")
    return f"a quantized module ({kind.__name__})" if is_quantized and kind.__name__ not in _OF_FLOATS else None


def check_values(model: nn.Module) -> None:
    """Raise ``ValueError`` if a tensor of the model is on the meta device, or has no size yet."""
    for module, path in paths(model).items():
        for name, tensor in (*vars(module)["_parameters"].items(), *vars(module)["_buffers"].items()):
            place = f"{path}.{name}".removeprefix(".")
            if nn.parameter.is_lazy(tensor):
                raise ValueError(
                    f"{place} of a {type(module).__name__} has no size yet; call the model on one input first, as for "
                    "training."
                )
            if tensor is not None and tensor.is_meta:
                raise ValueError(
                    f"{place} is on the meta device and has no values that could be merged; load the weights first "
                    "(model.to_empty(device=...), then model.load_state_dict(...))."
                )
