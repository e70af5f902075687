"""What is explained: which inputs, and which output."""

import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

Target = int | tuple[int, ...] | list[Any] | Tensor | None


def as_tuple(inputs: Any) -> tuple[Tensor, ...]:
    """Return the inputs of a model, which are a tensor or a tuple of tensors, as a tuple.

    Raises
    ------
    TypeError
        If they are anything else.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    wrong = [type(value).__name__ for value in cast("tuple[Any, ...]", given) if not isinstance(value, Tensor)]
    if wrong:
        raise TypeError(
            f"inputs hold a {', a '.join(wrong)}; they must be a tensor, or a tuple of tensors. What else the model "
            "takes goes into additional_forward_args."
        )
    return given


def _is_one(target: object) -> bool:
    return isinstance(target, Tensor) and target.numel() == 1


def select(output: Any, target: Target) -> Tensor:
    """Return one value for each example, shape ``(N,)``.

    Parameters
    ----------
    output : Tensor
        What the model returns, ``(N, ...)``.
    target : int, tuple, list, Tensor or None
        An index for all examples (a tuple for outputs of more dimensions), or a list or tensor with one for each;
        None where there is one value an example, or one in all.

    Raises
    ------
    ValueError
        If that does not leave one value for each example.
    TypeError
        If the output is not a tensor.
    """
    if not isinstance(output, Tensor):
        part = repr(next(iter(output), "logits")) if isinstance(output, Mapping) else "0"
        raise TypeError(
            f"the model returns a {type(output).__name__}; a map explains a value of a tensor: wrap the model in a "
            f"module whose forward returns the tensor to explain, for example `return self.model(x)[{part}]`."
        )
    if target is None and output.dim() == 0:  # a loss
        return output.reshape(1)
    try:
        if target is None:
            chosen = output
        elif isinstance(target, int) or getattr(target, "ndim", None) == 0 or _is_one(target):
            chosen = output[:, operator.index(cast(Any, target))]
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
            f"{tuple(output.shape)}; give an index, a tuple of indices, or a list or tensor with one for each."
        ) from None
    return chosen.reshape(len(output))
