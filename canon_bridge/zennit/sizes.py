"""The size of its output that a transposed convolution is told: rules compute the layer once more, by its input alone.

A U-Net calls its upsampling layers so, ``up(x, output_size=skip.shape)``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from canon_bridge.core import Edits, bind_forward


@dataclass
class _Size:
    """The size that a layer was told in its last call."""

    value: Any = None
    is_read: bool = False


def remember_sizes(edits: Edits, module: nn.Module) -> None:
    """Have a transposed convolution keep the size that it is told, out of sight of hooks that come later.

    Parameters
    ----------
    edits : Edits
        The journal, which holds as long as the block.
    module : nn.Module
        Any module; others are left as they are.
    """
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        edits.add_pre_hook(module, _take, edits, _Size(), with_kwargs=True)


def _take(
    edits: Edits, size: _Size, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if not torch.is_grad_enabled():  # no rule comes after it; what such a run writes may be taken back, see `preserved`
        return None
    size.value = args[1] if len(args) > 1 else kwargs.get("output_size")
    if size.value is None:
        return None
    if not size.is_read:  # not before: other blocks know the layer by its forward
        bind_forward(edits, module, _with_size, size, module.forward)
        size.is_read = True
    return args[:1], {"output_size": size.value}  # by name, for hooks get the positional arguments alone


def _with_size(
    module: nn.Module, size: _Size, forward: Callable[..., Tensor], input: Tensor, output_size: Any = None
) -> Tensor:
    return forward(input, size.value if output_size is None else output_size)
