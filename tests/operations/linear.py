"""Operations that are linear (or affine) in the data, in many spellings; each takes ``(N, 4, 6, 6)``."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.operations.stages import Operation, With, constant

C4, C44, C6, C66, C36 = constant(4), constant(4, 4), constant(6), constant(6, 6), constant(5, 36)
GRID = torch.rand(1, 5, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1
THETA = torch.tensor([[[0.8, 0.3, 0.1], [-0.2, 0.9, -0.1]]], dtype=torch.float64)


def _parameter(*shape: int, seed: int = 5) -> nn.Parameter:
    return nn.Parameter(constant(*shape, seed=seed))


SUMS: dict[str, Operation] = {
    "sum((2, 3))": lambda h: h.sum((2, 3)),
    "sum([2, 3])": lambda h: h.sum([2, 3]),
    "sum(2, 3)": lambda h: h.sum(dim=(2, 3)),
    "sum(-1)": lambda h: h.sum(-1),
    "sum(dim=-1)": lambda h: h.sum(dim=-1),
    "sum(axis=-1)": lambda h: torch.sum(h, axis=-1),
    "sum(axis, keepdims)": lambda h: torch.sum(h, axis=(2, 3), keepdims=True),
    "sum(1, keepdim=True)": lambda h: h.sum(1, keepdim=True),
    "sum(1, True)": lambda h: h.sum(1, True),
    "sum(-3, keepdim)": lambda h: h.sum(-3, keepdim=True),
    "torch.sum(h, 2)": lambda h: torch.sum(h, 2),
    "torch.sum(input=, dim=)": lambda h: torch.sum(input=h, dim=(1, 2)),
    "sum twice": lambda h: h.sum(-1).sum(-1),
    "nansum": lambda h: h.nansum((2, 3)),
    "sum_to_size": lambda h: h.sum_to_size(h.shape[0], 4, 1, 1),
    "mean((2, 3))": lambda h: h.mean((2, 3)),
    "mean([2, 3], True)": lambda h: h.mean([2, 3], True),
    "mean(-1)": lambda h: h.mean(-1),
    "mean(-1).mean(-1)": lambda h: h.mean(-1).mean(-1),
    "mean(1)": lambda h: h.mean(1, keepdim=True),
    "mean(axis=)": lambda h: torch.mean(h, axis=(2, 3)),
    "mean(axis=, keepdims=)": lambda h: h.mean(axis=(-2, -1), keepdims=True),
    "torch.mean(input=)": lambda h: torch.mean(input=h, dim=[2, 3]),
    "mean(dtype=)": lambda h: h.mean((2, 3), dtype=torch.float64),
    "flatten, mean": lambda h: h.flatten(2).mean(-1),
    "view, sum": lambda h: h.view(h.size(0), 4, -1).sum(2),
    "minus its mean": lambda h: h - h.mean((2, 3), keepdim=True),
    "stack, sum": lambda h: torch.stack([h, h.flip(2)]).sum(0),
    "stack, mean": lambda h: torch.stack((h, h.flip(2)), dim=0).mean(dim=0),
    "stack behind, sum": lambda h: torch.stack([h, h.flip(2)], dim=-1).sum(-1),
    "stack, weighted": lambda h: (torch.stack([h, h.flip(2)], -1) * torch.tensor([0.3, 0.7])).sum(-1),
    "builtin sum": lambda h: sum([h, h.flip(2), h.flip(3)]),
    "cumsum": lambda h: h.cumsum(-1),
    "torch.cumsum(dim=1)": lambda h: torch.cumsum(h, dim=1),
    "diff": lambda h: torch.diff(h, dim=-1),
    "trace by einsum": lambda h: torch.einsum("ncii->nc", h),
    "diagonal sum": lambda h: h.diagonal(dim1=2, dim2=3).sum(-1),
    "logical count": lambda h: h.sum((2, 3)) / (h.shape[2] * h.shape[3]),
}

CELLS = torch.tensor([0, 2, 1, 0, 2, 2])


def _zeros(h, *shape):
    return torch.zeros(*h.shape[:3], *shape, dtype=h.dtype)


# Several elements that come to one place are added up there, and so is a bias that is computed from the input.
ADDED_UP: dict[str, Operation] = {
    "index_put(accumulate)": lambda h: h.new_zeros(3, *h.shape[:3]).index_put(
        (CELLS,), h.movedim(-1, 0), accumulate=True
    ),
    "index_put_(accumulate)": lambda h: torch.zeros(3, *h.shape[:3], dtype=h.dtype).index_put_(
        (CELLS,), h.movedim(-1, 0), True
    ),
    "index_add(zeros)": lambda h: _zeros(h, 3).index_add(3, CELLS, h),
    "scatter_add(zeros)": lambda h: _zeros(h, 3).scatter_add(3, CELLS.expand(h.shape), h),
    "F.linear(bias=)": lambda h: F.linear(h, C66, h[0, 0, 0]),
    "F.linear(weight, bias by name)": lambda h: F.linear(h, bias=h[0, 0, 0], weight=C66),
    "F.conv2d(bias=)": lambda h: F.conv2d(h, C44[:, :, None, None], h[0, :, 0, 0], padding=1),
    "F.conv2d(padding, bias by name)": lambda h: F.conv2d(h, C44[:, :, None, None], padding=1, bias=h[0, :, 0, 0]),
}

WEIGHTED: dict[str, Operation] = {
    "add": lambda h: h + h.flip(2),
    "torch.add": lambda h: torch.add(h, h.flip(2)),
    "torch.add(alpha)": lambda h: torch.add(h, h.flip(2), alpha=0.5),
    "add(alpha)": lambda h: h.add(h.flip(2), alpha=-2),
    "torch.add(input=, other=)": lambda h: torch.add(input=h, other=h.flip(2), alpha=3),
    "add a number": lambda h: h + 0.5,
    "number first": lambda h: 0.5 + h,
    "plus integers": lambda h: h + torch.arange(h.shape[-1]),
    "integers plus": lambda h: torch.tensor([[1, 2, 0, 1, 0, 3]]) + h,
    "minus truth values": lambda h: h - (torch.arange(6) > 2).int(),
    "integers times": lambda h: torch.arange(1, 7) * h,
    "divided by integers": lambda h: h / torch.arange(1, 7),
    "torch.add(2, h)": lambda h: torch.add(2, h),
    "add(1, alpha=2)": lambda h: torch.add(h, 1, alpha=2),
    "sub": lambda h: h - 0.5 * h.flip(2),
    "torch.sub(alpha)": lambda h: torch.sub(h, h.flip(2), alpha=0.5),
    "subtract": lambda h: torch.subtract(h, h.flip(3), alpha=2),
    "rsub": lambda h: 2 - h,
    "torch.rsub": lambda h: torch.rsub(h, 2),
    "rsub(alpha)": lambda h: torch.rsub(h, h.flip(2), alpha=0.5),
    "neg": lambda h: -h,
    "torch.neg": lambda h: torch.neg(h),
    "negative": lambda h: h.negative(),
    "positive": lambda h: +h,
    "lerp": lambda h: torch.lerp(h, h.flip(2), 0.3),
    "h.lerp": lambda h: h.lerp(h.flip(2), weight=0.3),
    "lerp(tensor)": With(lambda self, h: torch.lerp(h, h.flip(2), self.w), w=_parameter(4, 1, 1)),
    "addcmul": lambda h: torch.addcmul(h, C6, C6.flip(0), value=0.5),
    "addcmul(data)": lambda h: torch.addcmul(C6, h, C66, value=2),
    "addcdiv": lambda h: torch.addcdiv(h.flip(2), h, C66 + 5, value=2),
    "times a number": lambda h: h * 0.3,
    "number times": lambda h: 0.3 * h,
    "torch.mul": lambda h: torch.mul(h, 3),
    "mul(other=)": lambda h: torch.mul(input=h, other=-3),
    "multiply": lambda h: h.multiply(0.5),
    "divide": lambda h: h / 3,
    "torch.div": lambda h: torch.div(h, -3),
    "div(tensor)": lambda h: h.div(C66 + 5),
    "true_divide": lambda h: torch.true_divide(h, 2),
    "times parameter": With(lambda self, h: h * self.w, w=_parameter(4, 1, 1)),
    "times parameter of rank 4": With(lambda self, h: h * self.w, w=_parameter(1, 4, 1, 1)),
    "times parameter over width": With(lambda self, h: h * self.w, w=_parameter(6)),
    "times scalar parameter": With(lambda self, h: self.w * h, w=_parameter(1)),
    "times parameter of rank 0": With(lambda self, h: self.w * h, w=_parameter()),
    "times map": With(lambda self, h: h * self.w, w=_parameter(1, 1, 6, 6)),
    "times view of parameter": With(lambda self, h: h * self.w.view(1, -1, 1, 1), w=_parameter(4)),
    "times parameter[:, None, None]": With(lambda self, h: h * self.w[:, None, None], w=_parameter(4)),
    "plus parameter": With(lambda self, h: h + self.w, w=_parameter(1, 4, 1, 1)),
    "scale and shift": With(lambda self, h: h * self.w + self.b, w=_parameter(4, 1, 1), b=_parameter(4, 1, 1, seed=6)),
    "layer scale": With(lambda self, h: h + self.w * h.flip(2), w=_parameter(4, 1, 1)),
    "factor that broadcasts the channels": With(lambda self, h: h[:, 1:2] * self.w, w=_parameter(1, 4, 1, 1)),
    "term that broadcasts the channels": With(lambda self, h: h[:, 1:2] + self.w, w=_parameter(1, 4, 1, 1)),
    "factor that adds a dimension": With(lambda self, h: (h * self.w).flatten(0, 1), w=_parameter(1, 1, 4, 1, 1)),
    "two weights": With(lambda self, h: self.w[0] * h + self.w[1] * h.flip(2), w=_parameter(2)),
    "weights by softmax": With(
        lambda self, h: (torch.softmax(self.w, 0)[0] * h) + torch.softmax(self.w, 0)[1] * h.flip(2), w=_parameter(2)
    ),
    "fast normalized fusion": With(
        lambda self, h: (F.relu(self.w)[0] * h + F.relu(self.w)[1] * h.flip(2)) / (F.relu(self.w).sum(dim=0) + 1e-4),
        w=nn.Parameter(torch.tensor([0.7, 0.4])),
    ),
    "exponential of a parameter": With(lambda self, h: h * self.w.exp(), w=_parameter(4, 1, 1)),
    "norm of a parameter": With(lambda self, h: h * self.w / self.w.norm(), w=_parameter(4, 1, 1)),
}

PRODUCTS: dict[str, Operation] = {
    "matmul behind": With(lambda self, h: h.matmul(self.w), w=_parameter(6, 6)),
    "@ behind": With(lambda self, h: h @ self.w, w=C66),
    "@ in front": With(lambda self, h: self.w @ h, w=_parameter(6, 6)),
    "@ of tokens": With(lambda self, h: h.flatten(2) @ self.w, w=_parameter(36, 5)),
    "@ of channels": With(lambda self, h: self.w @ h.flatten(2), w=_parameter(4, 4)),
    "@ transposed": With(lambda self, h: h.mean((2, 3)) @ self.w.t(), w=_parameter(5, 4)),
    "torch.matmul(h, vector)": With(lambda self, h: torch.matmul(h, self.w), w=_parameter(6)),
    "bmm": lambda h: torch.bmm(C44.expand(h.shape[0], -1, -1), h.flatten(2)),
    "h.bmm": With(lambda self, h: h.flatten(2).bmm(self.w.expand(h.size(0), -1, -1)), w=_parameter(1, 36, 5)),
    "mm": With(lambda self, h: torch.mm(h.flatten(1), self.w), w=_parameter(144, 5)),
    "addmm": With(lambda self, h: torch.addmm(self.b, h.flatten(1), self.w), b=C6[:5], w=_parameter(144, 5)),
    "baddbmm": With(
        lambda self, h: torch.baddbmm(self.b, self.w.expand(h.shape[0], 4, 4), h.flatten(2), beta=0.5, alpha=2),
        b=_parameter(1, 1, 36),
        w=_parameter(1, 4, 4),
    ),
    "tensordot": With(lambda self, h: torch.tensordot(h, self.w, dims=([1], [0])), w=_parameter(4, 5)),
    "tensordot(dims=1)": With(lambda self, h: torch.tensordot(h, self.w, dims=1), w=_parameter(6, 5)),
    "einsum of channels": With(lambda self, h: torch.einsum("nchw,oc->nohw", h, self.w), w=_parameter(5, 4)),
    "einsum with a list": With(lambda self, h: torch.einsum("nchw,oc->nohw", [h, self.w]), w=_parameter(5, 4)),
    "einsum of positions": With(lambda self, h: torch.einsum("bchw,hk->bckw", h, self.w), w=C66),
    "einsum constant first": With(lambda self, h: torch.einsum("c, n c h w -> n c h w", self.w, h), w=_parameter(4)),
    "einsum with dots": With(lambda self, h: torch.einsum("...w,wv->...v", h, self.w), w=_parameter(6, 5)),
    "einsum of one": lambda h: torch.einsum("nchw->nc", h),
    "einsum, permuted": lambda h: torch.einsum("nchw->nwhc", h),
    "einsum of three": With(
        lambda self, h: torch.einsum("nchw,hp,wq->ncpq", h, self.a, self.b), a=_parameter(6, 3), b=_parameter(6, 2)
    ),
    "F.linear over width": With(lambda self, h: F.linear(h, self.w, self.b), w=_parameter(5, 6), b=_parameter(5)),
    "F.linear(weight=, bias=)": With(
        lambda self, h: F.linear(h.flatten(1), weight=self.w, bias=None), w=C36.repeat(1, 4)
    ),
    "F.linear(channels last)": With(
        lambda self, h: F.linear(h.permute(0, 2, 3, 1), self.w).permute(0, 3, 1, 2), w=_parameter(5, 4)
    ),
    "F.linear of a scaled weight": With(lambda self, h: F.linear(h.mean((2, 3)), self.w * 0.5), w=_parameter(5, 4)),
    "nn.Linear over width": With(lambda self, h: self.fc(h), fc=nn.Linear(6, 5)),
    "nn.Linear of tokens": With(lambda self, h: self.fc(h.flatten(2).transpose(1, 2)), fc=nn.Linear(4, 5)),
    "F.conv2d": With(lambda self, h: F.conv2d(h, self.w, padding=1), w=_parameter(5, 4, 3, 3)),
    "F.conv2d with a buffer": With(
        lambda self, h: F.conv2d(h, self.w, None, 2, (1, 1), 1, 4), w=torch.full((4, 1, 3, 3), 1 / 9)
    ),
    "F.conv2d(blur), padded": With(
        lambda self, h: F.conv2d(F.pad(h, (1, 1, 1, 1), mode="reflect"), self.w, groups=h.shape[1]),
        w=constant(4, 1, 3, 3),
    ),
    "F.conv_transpose2d": With(lambda self, h: F.conv_transpose2d(h, self.w, stride=2), w=_parameter(4, 5, 2, 2)),
    "torch.conv2d": With(lambda self, h: torch.conv2d(h, self.w, stride=2), w=_parameter(5, 4, 3, 3)),
    "F.conv1d": With(lambda self, h: F.conv1d(h.flatten(2), self.w, self.b), w=_parameter(5, 4, 3), b=_parameter(5)),
    "inner": With(lambda self, h: torch.inner(h, self.w), w=_parameter(5, 6)),
    "kron by outer sum": lambda h: h.unsqueeze(-1).mul(C6).sum(-2),
    "F.bilinear with a constant": With(
        lambda self, h: F.bilinear(h.mean((2, 3)), self.c.expand(h.shape[0], -1), self.w),
        c=constant(1, 3),
        w=_parameter(5, 4, 3),
    ),
}

INTERPOLATIONS: dict[str, Operation] = {
    f"{spelling} {mode}, {align}": operation
    for mode, align in (
        ("nearest", None),
        ("nearest-exact", None),
        ("area", None),
        ("bilinear", False),
        ("bilinear", True),
        ("bicubic", False),
        ("bicubic", True),
    )
    for spelling, operation in (
        ("interpolate", lambda h, m=mode, a=align: F.interpolate(h, scale_factor=2, mode=m, align_corners=a)),
        ("interpolate to size", lambda h, m=mode, a=align: F.interpolate(h, size=(9, 4), mode=m, align_corners=a)),
        ("Upsample", With(lambda self, h: self.up(h), up=nn.Upsample(scale_factor=2, mode=mode, align_corners=align)))
        if mode != "area"
        else ("interpolate down", lambda h: F.interpolate(h, scale_factor=0.5, mode="area")),
    )
} | {
    "interpolate to the size of another": lambda h: (
        h + F.interpolate(h[:, :, ::2, ::2], size=h.shape[2:], mode="bilinear")
    ),
    "interpolate(size=h.shape[-2:])": lambda h: F.interpolate(F.avg_pool2d(h, 2), h.shape[-2:], mode="bicubic"),
    "F.upsample": lambda h: F.interpolate(input=h, scale_factor=(2.0, 1.5), mode="bilinear"),
    "antialias": lambda h: F.interpolate(h, size=(3, 4), mode="bilinear", antialias=True),
    "recompute_scale_factor": lambda h: F.interpolate(
        h, scale_factor=1.4, mode="bilinear", recompute_scale_factor=True
    ),
    "linear, 1d": lambda h: F.interpolate(h.flatten(2), scale_factor=2, mode="linear"),
    "trilinear, 3d": lambda h: F.interpolate(h.unsqueeze(2), size=(2, 5, 5), mode="trilinear"),
    "UpsamplingBilinear2d": With(lambda self, h: self.up(h), up=nn.UpsamplingBilinear2d(scale_factor=2)),
    "UpsamplingNearest2d": With(lambda self, h: self.up(h), up=nn.UpsamplingNearest2d(scale_factor=2)),
    "grid_sample": With(
        lambda self, h: F.grid_sample(h, self.grid.expand(h.shape[0], -1, -1, -1), align_corners=False), grid=GRID
    ),
    "grid_sample, nearest": With(
        lambda self, h: F.grid_sample(
            h, self.grid.expand(h.shape[0], -1, -1, -1), mode="nearest", padding_mode="border", align_corners=True
        ),
        grid=GRID,
    ),
    "grid_sample of affine_grid": With(
        lambda self, h: F.grid_sample(
            h, F.affine_grid(self.theta.expand(h.shape[0], -1, -1), h.shape, align_corners=False), align_corners=False
        ),
        theta=THETA,
    ),
}

POOLS: dict[str, Operation] = {
    "avg_pool2d": lambda h: F.avg_pool2d(h, 2),
    "torch avg_pool2d(kernel_size=)": lambda h: F.avg_pool2d(h, kernel_size=3, stride=2, padding=1),
    "avg_pool2d, padding not counted": lambda h: F.avg_pool2d(h, 3, 2, 1, count_include_pad=False),
    "avg_pool2d, divisor": lambda h: F.avg_pool2d(h, 2, divisor_override=3),
    "avg_pool2d, ceil": lambda h: F.avg_pool2d(h, 4, 3, ceil_mode=True),
    "avg_pool2d, ceil, padded": lambda h: F.avg_pool2d(h, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "avg_pool2d, kernel is the size": lambda h: F.avg_pool2d(h, h.size()[2:]),
    "avg_pool1d": lambda h: F.avg_pool1d(h.flatten(2), 3),
    "avg_pool3d": lambda h: F.avg_pool3d(h.unsqueeze(2), (1, 2, 2)),
    "AvgPool2d": With(lambda self, h: self.pool(h), pool=nn.AvgPool2d(3, 2, 1)),
    "AvgPool2d, not counted": With(lambda self, h: self.pool(h), pool=nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    "AvgPool2d, divisor": With(lambda self, h: self.pool(h), pool=nn.AvgPool2d(2, divisor_override=1)),
    "adaptive_avg_pool2d(1)": lambda h: F.adaptive_avg_pool2d(h, 1),
    "adaptive_avg_pool2d((1, 1)), flat": lambda h: torch.flatten(F.adaptive_avg_pool2d(h, (1, 1)), 1),
    "adaptive_avg_pool2d((4, None))": lambda h: F.adaptive_avg_pool2d(h, (4, None)),
    "AdaptiveAvgPool2d": With(lambda self, h: self.pool(h), pool=nn.AdaptiveAvgPool2d(4)),
    "AdaptiveAvgPool1d": With(lambda self, h: self.pool(h.flatten(2)), pool=nn.AdaptiveAvgPool1d(5)),
    "AdaptiveAvgPool3d": With(lambda self, h: self.pool(h.unsqueeze(2)), pool=nn.AdaptiveAvgPool3d((1, 2, 3))),
    "half max, half mean": lambda h: 0.5 * (F.adaptive_max_pool2d(h, 2) + F.adaptive_avg_pool2d(h, 2)),
    "lp_pool2d(1)": lambda h: F.lp_pool2d(F.relu(h), 1, 2),
    "lp_pool2d(2)": lambda h: F.lp_pool2d(F.relu(h) + 0.01, 2, 2),
    "LPPool2d": With(lambda self, h: self.pool(h.relu() + 0.01), pool=nn.LPPool2d(2, 3, 1)),
}

FOLDS: dict[str, Operation] = {
    "unfold": lambda h: F.unfold(h, 3, padding=1),
    "nn.Unfold": With(lambda self, h: self.unfold(h), unfold=nn.Unfold(2, stride=2)),
    "fold": lambda h: F.fold(F.unfold(h, 3, padding=1), (6, 6), 3, padding=1),
    "nn.Fold": With(lambda self, h: self.fold(F.unfold(h, 2)), fold=nn.Fold((6, 6), 2)),
    "tensor.unfold": lambda h: h.unfold(2, 2, 1).sum(-1),
    "index_add": lambda h: h.index_add(1, torch.tensor([0, 2]), h[:, 1:3]),
    "scatter_add by expand_as": lambda h: torch.zeros_like(h).scatter_add(
        1, torch.tensor([0, 2, 1, 1]).view(1, 4, 1, 1).expand_as(h), h
    ),
    "scatter_add to the largest": lambda h: (
        lambda values, places: torch.zeros_like(h.flatten(2)).scatter_add(-1, places, values)
    )(*h.flatten(2).topk(5, -1)),
    "scatter_add to the maximum": lambda h: (lambda pair: torch.zeros_like(h).scatter_add(1, pair[1], pair[0] * 2))(
        h.max(1, keepdim=True)
    ),
    "scatter_add by sort": lambda h: (lambda r: torch.zeros_like(h).scatter_add(1, r.indices, r.values))(h.sort(1)),
    "index_add by argsort": lambda h: torch.zeros_like(h).index_add(1, h[0, :, 0, 0].argsort(), h),
    "a factor of a type": lambda h: torch.full((4, 1, 1), 0.5).type_as(h) * h,
    "scatter_add": lambda h: torch.zeros_like(h).scatter_add(
        3, torch.tensor([0, 1, 1, 3, 3, 3]).expand(h.shape[0], 4, 6, 6), h
    ),
}

LINEAR: dict[str, Operation] = SUMS | ADDED_UP | WEIGHTED | PRODUCTS | INTERPOLATIONS | POOLS | FOLDS
