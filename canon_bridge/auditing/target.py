"""Which output is explained."""

from typing import Any

import torch
from torch import Tensor

Target = int | tuple[int, ...] | list[Any] | Tensor | None


def select(output: Any, target: Target) -> Tensor:
    """Return one value for each example, shape ``(N,)``.

    Parameters
    ----------
    output : Tensor
        What the model returns, ``(N, ...)``.
    target : int, tuple, list, Tensor or None
        An index for all examples (a tuple for outputs of more dimensions), or a list or tensor with one for each;
        None where there is one value an example.

    Raises
    ------
    ValueError
        If that does not leave one value for each example.
    TypeError
        If the output is not a tensor.
    """
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the model returns a {type(output).__name__}; the audit explains one tensor: wrap the model in a module "
            "that returns it."
        )
    try:
        if target is None:
            chosen = output
        elif isinstance(target, int) or (isinstance(target, Tensor) and target.numel() == 1):
            chosen = output[:, int(target)]
        elif isinstance(target, tuple):
            chosen = output[(slice(None), *target)]
        else:
            if len(target) != len(output):
                raise IndexError
            indices = torch.as_tensor(target, device=output.device).reshape(len(target), -1).T
            chosen = output[(torch.arange(len(output), device=output.device), *indices)]
        if chosen.shape[:1] != output.shape[:1] or chosen.numel() != len(output):
            raise IndexError
    except (IndexError, TypeError):
        raise ValueError(
            f"target {target!r} does not select one value for each example of an output of shape "
            f"{tuple(output.shape)}; give an index, a tuple of indices, or a list with one for each example."
        ) from None
    return chosen.reshape(len(output))
