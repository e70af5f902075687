"""What canonization cannot begin with: modules that hide the one that they run, and tensors without values."""

from typing import Final

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


def check_wrappers(model: nn.Module) -> None:
    """Raise ``TypeError`` if the model, or a module in it, is one of ``WRAPPERS``."""
    for module, path in paths(model).items():
        attribute = WRAPPERS.find(module)
        if attribute is None:
            continue
        kind = type(module).__name__
        if not path:
            raise TypeError(
                f"model is a {kind}, which hides the module that it runs: use model.{attribute} instead. Inside the "
                f"block the {kind} runs the canonical model, too."
            )
        raise TypeError(
            f"{path} is a {kind}, which hides the module that it runs: put {path}.{attribute} in its place, and wrap "
            "the model as a whole if at all."
        )


def check_values(model: nn.Module) -> None:
    """Raise ``ValueError`` if a tensor of the model is on the meta device, or has no size yet."""
    for module, path in paths(model).items():
        for name, tensor in (*vars(module)["_parameters"].items(), *vars(module)["_buffers"].items()):
            if tensor is None:
                continue
            place = f"{path}.{name}".removeprefix(".")
            if nn.parameter.is_lazy(tensor):
                raise ValueError(
                    f"{place} of a {type(module).__name__} has no size yet; call the model on one input first, as for "
                    "training."
                )
            if not tensor.is_meta:
                continue
            raise ValueError(
                f"{place} is on the meta device and has no values that could be merged; load the weights first "
                "(model.to_empty(device=...), then model.load_state_dict(...))."
            )
