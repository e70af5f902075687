"""Operations that move elements, copy them or choose among them; each takes ``(N, 4, 6, 6)``."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.operations.stages import Operation, With

ORDER = torch.tensor([2, 0, 3, 1])
MASK = torch.tensor([True, False, True, True, False, True])
GATHERED = torch.tensor([5, 0, 0, 3, 1, 2]).expand(1, 4, 6, 6)


def _shuffle(h: Tensor, groups: int = 2) -> Tensor:
    n, c, height, width = h.shape
    return h.view(n, groups, c // groups, height, width).transpose(1, 2).contiguous().view(n, c, height, width)


def _space_to_depth(h: Tensor) -> Tensor:
    n, c, height, width = h.size()
    h = h.view(n, c, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
    return h.view(n, c * 4, height // 2, width // 2)


def _focus(h: Tensor) -> Tensor:
    return torch.cat((h[..., ::2, ::2], h[..., 1::2, ::2], h[..., ::2, 1::2], h[..., 1::2, 1::2]), 1)


SHAPES: dict[str, Operation] = {
    "pixel_shuffle": lambda h: F.pixel_shuffle(h, 2),
    "PixelShuffle": With(lambda self, h: self.shuffle(h), shuffle=nn.PixelShuffle(2)),
    "pixel_unshuffle": lambda h: F.pixel_unshuffle(h, 2),
    "PixelUnshuffle": With(lambda self, h: self.shuffle(h), shuffle=nn.PixelUnshuffle(3)),
    "channel_shuffle": lambda h: F.channel_shuffle(h, 2),
    "ChannelShuffle": With(lambda self, h: self.shuffle(h), shuffle=nn.ChannelShuffle(2)),
    "shuffle by views": _shuffle,
    "space to depth": _space_to_depth,
    "focus": _focus,
    "permute": lambda h: h.permute(0, 2, 1, 3),
    "permute(list)": lambda h: h.permute([0, 3, 1, 2]),
    "torch.permute": lambda h: torch.permute(h, (0, 3, 2, 1)),
    "permute there and back": lambda h: h.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "permute(dims=)": lambda h: h.permute(dims=(0, 1, 3, 2)),
    "transpose": lambda h: h.transpose(1, 2),
    "transpose(dim0=, dim1=)": lambda h: torch.transpose(h, dim0=-1, dim1=1),
    "swapaxes": lambda h: h.swapaxes(2, 3),
    "mT": lambda h: h.mT,
    "movedim": lambda h: h.movedim(1, -1),
    "torch.movedim": lambda h: torch.movedim(h, (1, 2), (2, 1)),
    "moveaxis": lambda h: h.moveaxis(source=1, destination=3),
    "view": lambda h: h.view(h.shape[0], -1),
    "view(n, 2, 2, -1)": lambda h: h.view(h.shape[0], 2, 2, -1),
    "view, mixes channels": lambda h: h.view(-1, 6, 4, 6),
    "view_as": lambda h: h.view_as(h.clone()),
    "reshape": lambda h: h.reshape(h.size(0), 4 * 36),
    "reshape, mixes channels": lambda h: torch.reshape(h, (-1, 2, 12, 6)),
    "reshape(tuple)": lambda h: h.reshape((-1, 4, 36)),
    "flatten": lambda h: h.flatten(1),
    "flatten(2)": lambda h: torch.flatten(h, start_dim=2),
    "flatten(1, 2)": lambda h: h.flatten(start_dim=1, end_dim=2),
    "unflatten": lambda h: h.unflatten(1, (2, 2)).flatten(2, 3),
    "nn.Unflatten": With(lambda self, h: self.unflatten(h.flatten(1)), unflatten=nn.Unflatten(1, (6, 24))),
    "squeeze, unsqueeze": lambda h: h.unsqueeze(2).squeeze(2),
    "h[:, None]": lambda h: h[:, None].flatten(1, 2),
    "h[None]": lambda h: h[None].squeeze(0),
    "contiguous": lambda h: h.contiguous(),
    "clone": lambda h: h.clone(memory_format=torch.contiguous_format),
    "to the same dtype": lambda h: h.to(torch.float64),
    "type_as": lambda h: h.type_as(h),
    "double": lambda h: h.double(),
    "channels_last": lambda h: h.to(memory_format=torch.channels_last),
    "expand": lambda h: h[:, 1:2].expand(-1, 3, -1, -1),
    "expand_as": lambda h: h.mean((2, 3), keepdim=True).expand_as(h),
    "broadcast_to": lambda h: torch.broadcast_to(h[:, :, :1], h.shape),
    "repeat": lambda h: h.repeat(1, 2, 1, 1),
    "repeat(tuple)": lambda h: h.repeat((1, 1, 2, 1)),
    "repeat_interleave": lambda h: h.repeat_interleave(2, dim=1),
    "torch.repeat_interleave": lambda h: torch.repeat_interleave(h, 2, 3),
    "tile": lambda h: torch.tile(h, (1, 2, 1, 1)),
    "h.tile": lambda h: h.tile(1, 1, 1, 2),
    "flip": lambda h: torch.flip(h, [2, 3]),
    "flip of channels": lambda h: h.flip(1),
    "fliplr": lambda h: torch.fliplr(h),
    "roll": lambda h: torch.roll(h, shifts=(1, 2), dims=(2, 3)),
    "roll of channels": lambda h: h.roll(1, 1),
    "rot90": lambda h: torch.rot90(h, 1, (2, 3)),
    "tril": lambda h: h.tril(),
    "diagonal": lambda h: torch.diagonal(h, dim1=2, dim2=3),
    "as_strided": lambda h: h.contiguous().as_strided((h.shape[0], 4, 3, 3), (144, 36, 12, 2)),
}

PADS: dict[str, Operation] = {
    "pad": lambda h: F.pad(h, (1, 1, 1, 1)),
    "pad(mode=, value=)": lambda h: F.pad(h, [1, 0, 0, 2], mode="constant", value=0),
    "pad with a value": lambda h: F.pad(h, (1, 1), value=0.7),
    "pad reflect": lambda h: F.pad(h, (1, 1, 1, 1), "reflect"),
    "pad replicate": lambda h: F.pad(h, (2, 1, 1, 1), mode="replicate"),
    "pad circular": lambda h: F.pad(h, pad=(1, 1, 2, 0), mode="circular"),
    "pad negative": lambda h: F.pad(h, (-1, -1, -1, 0)),
    "pad of channels": lambda h: F.pad(h, (0, 0, 0, 0, 1, 2)),
    "pad of channels with stride": lambda h: F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0),
    "pad, then pool": lambda h: F.max_pool2d(F.pad(h, (0, 1, 0, 1)), 3, 2),
    "torch.nn.ZeroPad2d": With(lambda self, h: self.pad(h), pad=nn.ZeroPad2d(1)),
    "ReflectionPad2d": With(lambda self, h: self.pad(h), pad=nn.ReflectionPad2d(2)),
    "ReplicationPad2d": With(lambda self, h: self.pad(h), pad=nn.ReplicationPad2d((1, 0, 2, 0))),
    "CircularPad2d": With(lambda self, h: self.pad(h), pad=nn.CircularPad2d(1)),
    "ConstantPad2d": With(lambda self, h: self.pad(h), pad=nn.ConstantPad2d(1, -0.5)),
    "pad of the last, flat": lambda h: F.pad(h.flatten(2), (2, 1)),
    "pad of features": lambda h: F.pad(h.mean((2, 3)), (1, 2)),
    "cat with zeros": lambda h: torch.cat([h, torch.zeros_like(h)], 1),
    "cat with zeros by shape": lambda h: torch.cat([h, torch.zeros(h.shape[0], 2, 6, 6)], 1),
    "cat with new_zeros": lambda h: torch.cat([h, h.new_zeros(h.size(0), 1, 6, 6)], dim=1),
    "cat with h.mul(0)": lambda h: torch.cat((h, h.mul(0)), 1),
    "cat with ones, expanded": lambda h: torch.cat([h, torch.ones(1, 1, 6, 6).expand(h.shape[0], -1, -1, -1)], 1),
    "cat with coordinates": lambda h: torch.cat(
        [h, torch.linspace(-1, 1, h.shape[3]).view(1, 1, 1, -1).expand(h.shape[0], 1, h.shape[2], -1)], 1
    ),
    "token in front": With(
        lambda self, h: torch.cat([self.token.expand(h.shape[0], -1, -1), h.flatten(2).transpose(1, 2)], dim=1),
        token=nn.Parameter(torch.full((1, 1, 4), 0.3)),
    ),
}

JOINS: dict[str, Operation] = {
    "cat": lambda h: torch.cat([h, h.flip(2)], 1),
    "cat(tensors=, dim=)": lambda h: torch.cat(tensors=(h, h.flip(3)), dim=-3),
    "cat over width": lambda h: torch.cat((h, h.flip(2)), -1),
    "cat(axis=)": lambda h: torch.cat([h, h.flip(2)], axis=1),
    "concat": lambda h: torch.concat([h, h.flip(2)], dim=1),
    "concatenate": lambda h: torch.concatenate((h, h.flip(2)), 1),
    "hstack": lambda h: torch.hstack([h, h.flip(2)]),
    "dstack": lambda h: torch.dstack((h, h.flip(2))),
    "vstack": lambda h: torch.vstack([h, h.flip(2)]).unflatten(0, (2, -1)).sum(0),
    "column_stack": lambda h: torch.column_stack([h, h.flip(2)]),
    "stack": lambda h: torch.stack([h, h.flip(2)], 1).flatten(1, 2),
    "stack(dim=2)": lambda h: torch.stack((h, h.flip(2)), dim=2),
    "stack, interleaved": lambda h: torch.stack([h, h.flip(2)], dim=2).view(h.shape[0], 8, 6, 6),
    "cat of one": lambda h: torch.cat([h], 1),
    "cat of a list that grows": lambda h: torch.cat([h.roll(k, 2) for k in range(3)], 1),
}

PARTS: dict[str, Operation] = {
    "split(2)": lambda h: torch.cat(h.split(2, 1)[::-1], 1),
    "split([1, 3])": lambda h: torch.cat(torch.split(h, [1, 3], dim=1)[::-1], 1),
    "split(split_size=)": lambda h: torch.cat(h.split(split_size=3, dim=2)[::-1], 2),
    "chunk": lambda h: torch.cat(h.chunk(2, 1)[::-1], 1),
    "torch.chunk, added": lambda h: sum(torch.chunk(h, chunks=2, dim=1)),
    "chunk, unpacked": lambda h: (lambda a, b: torch.cat([a.relu(), b], 1))(*h.chunk(2, 1)),
    "chunk, star": lambda h: (lambda *parts: torch.cat(parts[::-1], dim=1))(*h.chunk(2, dim=1)),
    "tensor_split": lambda h: torch.cat(h.tensor_split(3, 1)[1:], 1),
    "tensor_split([1, 2])": lambda h: torch.tensor_split(h, [1, 2], dim=1)[2],
    "unbind": lambda h: torch.stack(h.unbind(1)[::-1], 1),
    "torch.unbind(dim=-1)": lambda h: sum(torch.unbind(h, dim=-1)),
    "narrow": lambda h: h.narrow(1, 1, 2),
    "torch.narrow": lambda h: torch.narrow(h, dim=2, start=0, length=3),
    "select": lambda h: h.select(2, 0),
    "torch.select(1)": lambda h: torch.select(h, 1, 2),
    "slice": lambda h: h[:, 1:3],
    "slice with a step": lambda h: h[:, ::2, ::2, ::3],
    "slice of space": lambda h: h[..., 1:-1, 1:-1],
    "slice by shape": lambda h: h[:, : h.shape[1] // 2],
    "crop to another": lambda h: h[:, :, 1 : 1 + h.size(2) - 2, : h.size(3) - 1],
    "center crop": lambda h: h[..., round((h.size(2) - 4) / 2.0) :, : math.ceil(h.size(3) / 4)],
    "crop, rounded down": lambda h: h[:, :, : int(math.floor(h.size(2)) * 0.7), math.trunc(h.size(3) * 0.4) :],
    "last step": lambda h: h.flatten(2)[:, :, -1],
    "index 0 of space": lambda h: h[:, :, 0, 0],
    "hsplit": lambda h: torch.cat(torch.hsplit(h, 2)[::-1], 1),
    "reversed list": lambda h: torch.cat(list(reversed(h.chunk(4, 1))), 1),
}

GATHERS: dict[str, Operation] = {
    "gather": lambda h: h.gather(3, GATHERED.expand(h.shape[0], -1, -1, -1)),
    "torch.gather(dim=, index=)": lambda h: torch.gather(h, dim=3, index=GATHERED.expand(h.size(0), -1, -1, -1)),
    "take_along_dim": lambda h: torch.take_along_dim(h, GATHERED.expand(h.size(0), -1, -1, -1), dim=3),
    "index_select": With(lambda self, h: h.index_select(1, self.order), order=ORDER),
    "torch.index_select(dim=, index=)": lambda h: torch.index_select(h, dim=1, index=ORDER),
    "index_select by a Variable": With(
        lambda self, h: torch.index_select(h, 1, torch.autograd.Variable(self.index)), index=ORDER
    ),
    "index by a list": lambda h: h[:, [2, 0, 3, 3]],
    "index by a buffer": With(lambda self, h: h[:, self.order], order=ORDER),
    "index by two lists": lambda h: h[:, :, [0, 1, 2], [3, 4, 5]],
    "index by a mask": lambda h: h[..., MASK],
    "index by a mask of channels": With(lambda self, h: h[:, self.mask], mask=torch.tensor([True, False, True, True])),
    "index by arange": lambda h: h[:, torch.arange(4)],
    "relative position table": With(
        lambda self, h: h + self.table[self.index.view(-1)].view(6, 6),
        table=nn.Parameter(torch.rand(5)),
        index=GATHERED[0, 0] % 5,
    ),
    "torch.where(mask, h, 0)": lambda h: torch.where(MASK, h, 0.0),
    "where(mask, h, flip)": lambda h: torch.where(MASK, h, h.flip(2)),
    "h.where": lambda h: h.where(MASK, torch.zeros(())),
    "masked_fill": lambda h: h.masked_fill(MASK, 0.3),
    "times a mask": lambda h: h * MASK,
    "times a mask as numbers": lambda h: h * MASK.double(),
    "index_fill": lambda h: h.index_fill(1, torch.tensor([1]), 0.5),
}

SELECTIONS: dict[str, Operation] = {
    "amax": lambda h: h.amax((2, 3)),
    "torch.amax(keepdim)": lambda h: torch.amax(h, dim=(2, 3), keepdim=True),
    "amin": lambda h: h.amin(dim=-1),
    "max(dim)": lambda h: h.max(2)[0],
    "max(dim).values": lambda h: h.max(dim=-1).values,
    "torch.max(keepdim)": lambda h: torch.max(h, 1, keepdim=True)[0],
    "max, unpacked": lambda h: (lambda values, indices: values)(*torch.max(h, dim=3)),
    "min(dim)": lambda h: torch.min(h, dim=2).values,
    "max of max": lambda h: h.flatten(2).max(-1)[0],
    "topk": lambda h: h.topk(3, dim=-1)[0],
    "torch.topk(largest=False)": lambda h: torch.topk(h, 2, dim=2, largest=False).values,
    "topk mean": lambda h: h.flatten(2).topk(5, -1)[0].mean(-1),
    "sort": lambda h: h.sort(-1)[0],
    "torch.sort(descending)": lambda h: torch.sort(h, dim=2, descending=True).values,
    "kthvalue": lambda h: h.kthvalue(2, dim=-1)[0],
    "median": lambda h: h.median(-1).values,
    "aminmax": lambda h: torch.aminmax(h, dim=-1).max,
    "gathered by argmax": lambda h: h.gather(2, h.argmax(2, keepdim=True)),
    "maximum": lambda h: torch.maximum(h, h.flip(2)),
    "h.maximum": lambda h: h.maximum(h.roll(1, 3)),
    "minimum": lambda h: torch.minimum(h, h.flip(2)),
    "torch.max of two": lambda h: torch.max(h, h.flip(2)),
    "torch.min(input=, other=)": lambda h: torch.min(input=h, other=h.flip(3)),
    "fmax": lambda h: torch.fmax(h, h.flip(2)),
    "maxout by view": lambda h: h.view(h.shape[0], 2, 2, 6, 6).max(2)[0],
    "maxout by halves": lambda h: torch.max(*h.chunk(2, 1)),
    "max_pool2d": lambda h: F.max_pool2d(h, 2),
    "max_pool2d(ceil_mode)": lambda h: F.max_pool2d(h, kernel_size=4, stride=3, ceil_mode=True),
    "max_pool2d, padded": lambda h: F.max_pool2d(h, 3, 1, 1),
    "max_pool2d, dilated": lambda h: F.max_pool2d(h, 2, 1, 0, 2),
    "torch.max_pool2d": lambda h: torch.max_pool2d(h, 2),
    "max_pool1d": lambda h: F.max_pool1d(h.flatten(2), 3),
    "max_pool3d": lambda h: F.max_pool3d(h.unsqueeze(2), (1, 2, 2)),
    "max_pool2d with indices": lambda h: F.max_pool2d(h, 2, return_indices=True)[0],
    "max_unpool2d": lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2),
    "min pool": lambda h: -F.max_pool2d(-h, 2),
    "adaptive_max_pool2d": lambda h: F.adaptive_max_pool2d(h, 2),
    "adaptive_max_pool2d with indices": lambda h: F.adaptive_max_pool2d(h, 2, return_indices=True)[0],
    "AdaptiveMaxPool2d": With(lambda self, h: self.pool(h), pool=nn.AdaptiveMaxPool2d((3, 1))),
    "MaxPool2d": With(lambda self, h: self.pool(h), pool=nn.MaxPool2d(3, 2, 1)),
}

MOVEMENT: dict[str, Operation] = SHAPES | PADS | JOINS | PARTS | GATHERS | SELECTIONS
