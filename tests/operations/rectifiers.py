"""Piecewise-linear functions of one element through zero, and writes in place; each takes ``(N, 4, 6, 6)``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.operations.stages import Operation, With

# Bounds that no value reaches: passing relevance on is the gradient only where nothing is clipped to another constant.
FAR = 1e3
MASKED = torch.tensor([True, False, True, True, False, True])

RECTIFIERS: dict[str, Operation] = {
    "F.relu": lambda h: F.relu(h),
    "torch.relu": lambda h: torch.relu(h),
    "h.relu": lambda h: h.relu(),
    "F.relu(input=, inplace=)": lambda h: F.relu(input=h + 0.1, inplace=True),
    "relu6": lambda h: F.relu6(h * 0.1),
    "nn.ReLU6": With(lambda self, h: self.act(h * 0.1), act=nn.ReLU6()),
    "leaky_relu": lambda h: F.leaky_relu(h, 0.2),
    "leaky_relu(negative_slope=)": lambda h: F.leaky_relu(h, negative_slope=-0.3),
    "rrelu": lambda h: F.rrelu(h, 0.1, 0.3, training=False),
    "prelu": With(lambda self, h: F.prelu(h, self.w), w=nn.Parameter(torch.tensor([0.1, -0.2, 0.3, 0.4]))),
    "nn.PReLU": With(lambda self, h: self.act(h), act=nn.PReLU(4)),
    "abs": lambda h: h.abs(),
    "torch.abs": lambda h: torch.abs(h),
    "abs()": lambda h: abs(h),
    "hardtanh": lambda h: F.hardtanh(h, -FAR, FAR),
    "hardtanh from 0": lambda h: F.hardtanh(h, min_val=0.0, max_val=FAR),
    "clamp(min=0)": lambda h: h.clamp(min=0),
    "clamp(0)": lambda h: torch.clamp(h, 0),
    "clamp(max=0)": lambda h: h.clamp(max=0),
    "clamp_min": lambda h: h.clamp_min(0),
    "torch.clamp_max": lambda h: torch.clamp_max(h, 0.0),
    "clip": lambda h: torch.clip(h, min=0.0),
    "clip of numpy": lambda h: h.clip(0, FAR),
    "threshold": lambda h: F.threshold(h, 0.0, 0.0),
    "nn.Threshold(0.2, 0)": With(lambda self, h: self.act(h), act=nn.Threshold(0.2, 0)),
    "hardshrink": lambda h: F.hardshrink(h, 0.3),
    "crelu": lambda h: torch.cat([F.relu(h), F.relu(-h)], 1),
    "relu of negative": lambda h: -F.relu(-h),
    "leaky by maximum": lambda h: torch.maximum(h, 0.1 * h),
    "relu by maximum": lambda h: torch.maximum(h, torch.zeros_like(h)),
    "relu by a number": lambda h: torch.max(h, torch.tensor(0.0, dtype=torch.float64)),
    "where(h > 0)": lambda h: torch.where(h > 0, h, 0.1 * h),
    "h.where(h > 0)": lambda h: h.where(h > 0, 0.1 * h),
    "h.where(condition=)": lambda h: h.where(condition=h > 0, other=-0.5 * h.flip(2)),
    "times (h > 0)": lambda h: h * (h > 0),
    "masked_fill(h < 0)": lambda h: h.masked_fill(h < 0, 0),
    "dropout in evaluation": With(lambda self, h: self.drop(F.dropout(h, 0.5, self.training)), drop=nn.Dropout2d()),
    "F.dropout2d(training=False)": lambda h: F.dropout2d(h, p=0.3, training=False),
    "nn.Identity": With(lambda self, h: self.identity(h), identity=nn.Identity()),
    "detach of a constant": With(lambda self, h: h + self.w.detach(), w=nn.Parameter(torch.ones(4, 1, 1))),
}


def _zero_negatives(h: Tensor) -> Tensor:
    h[h < 0] = 0
    return h


def _zero_channel(h: Tensor) -> Tensor:
    h[:, 1] = 0
    return h


def _copy_channels(h: Tensor) -> Tensor:
    o = h.clone()
    o[:, :2] = h[:, 2:]
    return o


def _assign_into_zeros(h: Tensor) -> Tensor:
    o = torch.zeros(h.shape[0], 6, 6, 6, dtype=h.dtype)
    o[:, 1:5] = h
    return o


def _assign_into_zeros_like(h: Tensor) -> Tensor:
    o = torch.zeros_like(h)
    o[:, :, ::2] = h[:, :, ::2]
    return o


def _copy_into_zeros(h: Tensor) -> Tensor:
    return torch.zeros(h.shape, dtype=h.dtype).copy_(h)


def _copy_part(h: Tensor) -> Tensor:
    o = torch.zeros_like(h)
    o[:, 2:].copy_(h[:, :2])
    return o


def _shift_channels(h: Tensor) -> Tensor:
    o = torch.zeros_like(h)
    o[:, :1, :, :-1] = h[:, :1, :, 1:]
    o[:, 1:2, :, 1:] = h[:, 1:2, :, :-1]
    o[:, 2:] = h[:, 2:]
    return o


def _add_into_slice(h: Tensor) -> Tensor:
    o = h.clone()
    o[:, :2] += h[:, 2:]
    return o


def _relu_of_part(part: object) -> Operation:
    """Write a ReLU on a view of the value, and return the value."""

    def operation(h: Tensor) -> Tensor:
        F.relu_(part(h))  # pyright: ignore[reportCallIssue]
        return h

    return operation


def _add_inplace(h: Tensor) -> Tensor:
    h += h.flip(2)
    return h


def _multiply_inplace(h: Tensor) -> Tensor:
    h *= 0.5
    return h


def _method_inplace(h: Tensor) -> Tensor:
    h.add_(0.3).mul_(2)
    return h


def _relu_behind_alias(h: Tensor) -> Tensor:
    y = h
    y.relu_()
    return h


# What a ReLU has returned must not be written to: autograd has kept it. These stand behind layers and BatchNorms only.
WRITES: dict[str, Operation] = {
    "h[h < 0] = 0": _zero_negatives,
    "h[:, 1] = 0": _zero_channel,
    "o[:, :2] = h[:, 2:]": _copy_channels,
    "zeros(shape)[:, 1:5] = h": _assign_into_zeros,
    "zeros_like[:, :, ::2] = h": _assign_into_zeros_like,
    "zeros.copy_": _copy_into_zeros,
    "zeros_like[:, 2:].copy_": _copy_part,
    "shift of channels": _shift_channels,
    "o[:, :2] += h": _add_into_slice,
    "h += flip": _add_inplace,
    "h *= 0.5": _multiply_inplace,
    "h.add_().mul_()": _method_inplace,
    "alias.relu_()": _relu_behind_alias,
    "relu_": lambda h: h.relu_(),
    "F.relu_": lambda h: F.relu_(h),
    "F.relu(inplace)": lambda h: F.relu(h, inplace=True),
    "clamp_": lambda h: h.clamp_(min=0),
    "leaky_relu_": lambda h: F.leaky_relu_(h, 0.1),
    "threshold_": lambda h: F.threshold_(h, 0, 0),
    "neg_": lambda h: h.neg_(),
    "abs_": lambda h: h.abs_(),
    "sub_": lambda h: h.sub_(1.5),
    "div_": lambda h: h.div_(2),
    "masked_fill_": lambda h: h.masked_fill_(MASKED, 0.2),
    "nn.ReLU(inplace)": With(lambda self, h: self.act(h), act=nn.ReLU(inplace=True)),
    "relu_ of tensor_split": _relu_of_part(lambda h: h.tensor_split(2, 1)[0]),
    "relu_ of slice": _relu_of_part(lambda h: h[:, 1:3]),
    "relu_ of select": _relu_of_part(lambda h: h.select(1, 2)),
    "relu_ of narrow": _relu_of_part(lambda h: h.narrow(1, 0, 2)),
    "relu_ of view": _relu_of_part(lambda h: h.view(h.shape[0], -1)),
    "relu_ of reshape": _relu_of_part(lambda h: h.reshape(h.shape[0], 4, 36)),
    "relu_ of flatten": _relu_of_part(lambda h: h.flatten(2)),
    "relu_ of permute": _relu_of_part(lambda h: h.permute(0, 2, 3, 1)),
    "relu_ of transpose": _relu_of_part(lambda h: h.transpose(1, 2)[:, :3]),
    "relu_ of unsqueeze": _relu_of_part(lambda h: h.unsqueeze(1)),
    "relu_ of squeeze": _relu_of_part(lambda h: h.squeeze()),
    "relu_ of diagonal": _relu_of_part(lambda h: h.diagonal(dim1=2, dim2=3)),
    "relu_ of movedim": _relu_of_part(lambda h: h.movedim(1, 3)),
    "relu_ of unflatten": _relu_of_part(lambda h: h.unflatten(1, (2, 2))[:, 0]),
    "relu_ of view_as": _relu_of_part(lambda h: h.view_as(h)),
    "relu_ of swapaxes": _relu_of_part(lambda h: h.swapaxes(1, 2)),
    "relu_ of mT": _relu_of_part(lambda h: h.mT),
    "relu_ of expand": _relu_of_part(lambda h: h.expand(-1, 4, -1, -1)),
    "relu_ of contiguous": _relu_of_part(lambda h: h.contiguous()),
    "relu_ of to": _relu_of_part(lambda h: h.to(torch.float64)),
    "relu_ of dropout": _relu_of_part(lambda h: F.dropout(h, 0.5, False)),
    "relu_ of Identity": With(lambda self, h: (F.relu_(self.identity(h)), h)[1], identity=nn.Identity()),
    "relu_ of clone": _relu_of_part(lambda h: h.clone()),
    "relu_ of index": _relu_of_part(lambda h: h[:, [0, 1]]),
}

# Not differentiated by torch, in the original either (`out=`, one of several views), and the same otherwise.
WITHOUT_GRADIENT: dict[str, tuple[Operation, Operation]] = {
    "add(out=)": (lambda h: torch.add(h, h.flip(2), out=torch.empty_like(h)), lambda h: h + h.flip(2)),
    "mul(out=)": (lambda h: torch.mul(h, 0.5, out=torch.empty_like(h)), lambda h: h * 0.5),
    "sum(out=)": (lambda h: torch.sum(h, (2, 3), out=h.new_empty(h.shape[0], 4)), lambda h: h.sum((2, 3))),
    "cat(out=)": (
        lambda h: torch.cat([h, h.flip(2)], 1, out=h.new_empty(h.shape[0], 8, 6, 6)),
        lambda h: torch.cat([h, h.flip(2)], 1),
    ),
    "abs(out=), then the buffer": (lambda h: (torch.abs(h, out=h), h)[1], lambda h: h.abs()),
    "relu_ of chunk": (
        _relu_of_part(lambda h: h.chunk(2, 1)[1]),
        lambda h: torch.cat([h[:, :2], h[:, 2:].relu()], 1),
    ),
    "relu_ of split": (
        _relu_of_part(lambda h: h.split([1, 3], 1)[1]),
        lambda h: torch.cat([h[:, :1], h[:, 1:].relu()], 1),
    ),
    "relu_ of unbind": (
        _relu_of_part(lambda h: h.unbind(1)[2]),
        lambda h: torch.cat([h[:, :2], h[:, 2:3].relu(), h[:, 3:]], 1),
    ),
}
