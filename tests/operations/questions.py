"""Operations that ask what their input is before they compute with it; each takes ``(N, 4, 6, 6)`` in float64.

What the wrong answer leads to is another function.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.operations.stages import Operation


def _by_type_in_a_variable(h: Tensor) -> Tensor:
    kind = h.dtype
    return h.flip(2) if kind is not torch.float64 else F.relu(h)


def _safe_in_half_precision(h: Tensor) -> Tensor:
    kind = h.dtype
    if kind in (torch.float16, torch.bfloat16):
        h = -h.float()
    return F.relu(h).to(kind)


def _by_sizes(h: Tensor) -> Tensor:
    height, size = h.shape[2], h.size()
    is_usual = isinstance(height, int) and type(height) is int and isinstance(size, tuple)
    return F.relu(h) if is_usual and isinstance(h.shape[2:], torch.Size) else h.flip(2)


def _by_gradient(h: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of a tensor that is no leaf
        return F.relu(h) if h.grad is None else h.flip(2)


def _with_message(h: Tensor) -> Tensor:
    torch._assert(h.shape[2] > 2, f"at least 3 rows, not {h.shape[2]}")
    if h.dim() != 4:
        raise ValueError(f"four dimensions, not {h.shape}")
    return F.relu(h)


QUESTIONS: dict[str, Operation] = {
    "dtype is": lambda h: F.relu(h) if h.dtype is torch.float64 else h.flip(2),
    "dtype is not": lambda h: h.flip(2) if h.dtype is not torch.double else F.relu(h),
    "dtype ==": lambda h: F.relu(h) if h.dtype == torch.float64 else h.flip(2),
    "dtype in a variable": _by_type_in_a_variable,
    "safe in half precision": _safe_in_half_precision,
    "finfo": lambda h: h.masked_fill(h < 0.1, torch.finfo(h.dtype).tiny),
    "is_floating_point": lambda h: F.relu(h) if h.is_floating_point() else h.flip(2),
    "torch.is_complex": lambda h: h.flip(2) if torch.is_complex(h) else F.relu(h),
    "is_quantized": lambda h: h.flip(2) if h.is_quantized else F.relu(h),
    "is_cuda": lambda h: h.flip(2) if h.is_cuda else F.relu(h),
    "device.type": lambda h: F.relu(h) if h.device.type == "cpu" else h.flip(2),
    "is_contiguous": lambda h: F.relu(h) if h.is_contiguous() else h.flip(2),
    "type(h) is": lambda h: F.relu(h) if type(h) is Tensor else h.flip(2),
    "__class__ is": lambda h: F.relu(h) if h.__class__ is Tensor else h.flip(2),
    "callable": lambda h: h(2) if callable(h) else F.relu(h),
    "grad is None": _by_gradient,
    "size in a set": lambda h: F.relu(h) if h.shape[1] in {4, 5} else h.flip(2),
    "size by dictionary.get": lambda h: {4: F.relu}.get(h.size()[1], torch.neg)(h),
    "dtype in a set": lambda h: F.relu(h) if h.dtype in {torch.float64} else h.flip(2),
    "divmod of a size": lambda h: F.relu(h) * divmod(h.shape[2], 4)[1] + divmod(13, h.shape[3])[0],
    "text of a size": lambda h: {"c4": F.relu}.get(f"c{h.shape[1]}", torch.neg)(h),
    "text of a size, formatted": lambda h: {"04": F.relu}.get(f"{h.size(1):02d}", torch.neg)(h),
    "text of a type": lambda h: F.relu(h) if "float64" in str(h.dtype) else h.flip(2),
    "text of a device": lambda h: F.relu(h) if str(h.device) == "cpu" else h.flip(2),
    "text in a message": _with_message,
    "type(h) in": lambda h: F.relu(h) if type(h) in (Tensor, nn.Parameter) else h.flip(2),
    "type(h) is list": lambda h: h[0] if type(h) is list else F.relu(h),
    "isinstance": lambda h: F.relu(h) if isinstance(h, Tensor) else h.flip(2),
    "isinstance of sizes": _by_sizes,
    "hasattr": lambda h: h.tensors if hasattr(h, "tensors") else F.relu(h),
    "hasattr of a method": lambda h: F.relu(h) if hasattr(h, "unsqueeze") else h.flip(2),
}
