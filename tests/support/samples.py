"""A call of every operation of the table on data, by the name of its entry, for the tests that run them."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from canon_bridge.core.operations import setitem_

IMAGE = (2, 4, 6, 5)
Call = Callable[[Callable[..., Any], Tensor], Any]


@dataclass(frozen=True)
class Sample:
    """A call: from the function of an entry, and data of a shape, to the result."""

    call: Call = lambda f, x: f(x)
    shape: tuple[int, ...] = IMAGE


def with_(*args: Any, shape: tuple[int, ...] = IMAGE, **keywords: Any) -> Sample:
    """Return a call with these arguments after the data."""
    return Sample(lambda f, x: f(x, *args, **keywords), shape)


def like(shape: tuple[int, ...] = IMAGE) -> Sample:
    """Return a call with the data, and the data turned round."""
    return Sample(lambda f, x: f(x, x.flip(0)), shape)


def fixed(*shape: int, seed: int = 3) -> Tensor:
    """Return numbers that are no data."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


ROW, ROWS, LINE, VOLUME = (6,), (4, 6), (2, 4, 6), (2, 4, 4, 4, 5)
TWO, SHUFFLED, DOUBLED = torch.tensor([2, 0]), torch.tensor([0, 2, 1, 4]), torch.tensor([0, 2, 2, 4])
EVEN = (2, 4, 6, 6)
MASK = fixed(6, 5) > 0


def ids(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape) % 4


def _pool(dim: int) -> Sample:
    return with_([2] * dim, shape={1: LINE, 2: IMAGE, 3: VOLUME}[dim])


def _adaptive(dim: int) -> Sample:
    return with_([3] * dim, shape={1: LINE, 2: IMAGE, 3: VOLUME}[dim])


def _fractional(dim: int) -> Sample:
    def call(f: Callable[..., Any], x: Tensor) -> Any:
        return f(x, [2] * dim, [2] * dim, torch.full((2, 4, dim), 0.4, dtype=x.dtype))

    return Sample(call, {2: IMAGE, 3: VOLUME}[dim])


def _unpool(dim: int) -> Sample:
    shape = {1: (1, 2, 3), 2: (1, 2, 3, 3), 3: (1, 2, 3, 3, 3)}[dim]

    def call(f: Callable[..., Any], x: Tensor) -> Any:
        index = (2 * torch.arange(x[0, 0].numel())).view(x.shape[2:]).expand(x.shape)
        return getattr(F, f"max_unpool{dim}d")(x, index, 2)

    return Sample(call, shape)


def _upsample(dim: int, *more: Any) -> Sample:
    return with_([7] * dim, *more, shape={1: LINE, 2: IMAGE, 3: VOLUME}[dim])


def _grid(rank: int) -> Tensor:
    return torch.tanh(fixed(2, *(3,) * rank, rank))


def _list() -> Sample:
    return Sample(lambda f, x: f([x, x.flip(0)]))


def _loss() -> Sample:
    return Sample(lambda f, x: f(x, fixed(*x.shape)))


COMPARED: dict[str, Sample] = {
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge", "isclose", "allclose", "equal", "floor_divide"), like()),
    **dict.fromkeys(("logical_and", "logical_or", "logical_xor"), like()),
    **{
        name: Sample(lambda f, x: f(x.int(), x.flip(0).int().abs() % 4))
        for name in ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift")
    },
    "bitwise_not": Sample(lambda f, x: f(x.int())),
    "bincount": Sample(lambda f, x: f(x.flatten().abs().int())),
    "searchsorted": Sample(lambda f, x: f(x.flatten().sort()[0], x)),
    "bucketize": Sample(lambda f, x: f(x, torch.arange(3.0, dtype=x.dtype))),
    "one_hot": Sample(lambda f, x: f(x.abs().long())),
    **dict.fromkeys(("item", "is_nonzero"), with_(shape=())),
    **dict.fromkeys(("full", "new_full"), Sample(lambda f, x: f([2], float(x.sum())))),
    "new_full": with_([2], 1.0),
    "arange": Sample(lambda f, x: f(float(x.abs().sum()))),
    **dict.fromkeys(("linspace", "logspace"), Sample(lambda f, x: f(0.0, float(x.mean()), 3))),
    **dict.fromkeys(("tensor", "scalar_tensor"), Sample(lambda f, x: f(float(x.sum())))),
    "new_tensor": with_([1.0]),
    "numpy": Sample(lambda f, x: f(x.detach())),
    "from_numpy": Sample(lambda f, x: f(x.detach().numpy())),
    "_local_scalar_dense": with_(shape=()),
    "isin": like(),
    "contains": Sample(lambda f, x: 3.0 in x),
}

LINEAR: dict[str, Sample] = {
    "cumsum": with_(1),
    "trace": with_(shape=ROWS),
    **{f"avg_pool{dim}d": _pool(dim) for dim in (1, 2, 3)},
    **{f"adaptive_avg_pool{dim}d": _adaptive(dim) for dim in (1, 2, 3)},
    **{f"_adaptive_avg_pool{dim}d": _adaptive(dim) for dim in (2, 3)},
    "interpolate": with_(scale_factor=1.5, mode="bilinear"),
    "upsample_bilinear2d": _upsample(2, False),
    "upsample_bicubic2d": _upsample(2, False),
    "upsample_nearest2d": _upsample(2),
    "upsample_linear1d": _upsample(1, False),
    "upsample_nearest1d": _upsample(1),
    "upsample_nearest3d": _upsample(3),
    "upsample_trilinear3d": _upsample(3, False),
    "fold": with_((4, 4), 2, shape=(2, 8, 9)),
    "col2im": with_([4, 4], [2, 2], [1, 1], [0, 0], [1, 1], shape=(2, 8, 9)),
    "lerp": Sample(lambda f, x: f(x, x.flip(0), 0.3)),
    "scatter_add": Sample(lambda f, x: f(torch.zeros(5, 6, dtype=x.dtype), 0, ids(4, 6), x), ROWS),
    "index_add": Sample(lambda f, x: f(torch.zeros(5, 6, dtype=x.dtype), 0, DOUBLED, x), ROWS),
    "sum_to_size": with_((2, 4, 1, 1)),
    "affine_grid": with_((2, 1, 3, 3), align_corners=False, shape=(2, 2, 3)),
    "affine_grid_generator": with_((2, 1, 3, 3), False, shape=(2, 2, 3)),
}

MOVEMENT: dict[str, Sample] = {
    "view": with_([2, -1]),
    "reshape": with_([2, -1]),
    **{name: Sample(lambda f, x: f(x, torch.zeros(8, 30))) for name in ("reshape_as", "view_as")},
    "unflatten": with_(1, (2, 2)),
    "permute": with_([0, 2, 3, 1]),
    **dict.fromkeys(("transpose", "swapaxes", "movedim"), with_(1, 2)),
    **dict.fromkeys(("t", "numpy_T", "matrix_H", "mT", "adjoint"), with_(shape=ROWS)),
    "H": Sample(lambda f, x: x.H, ROWS),
    "unsqueeze": with_(1),
    "expand": with_([2, 4, 6], shape=(2, 1, 6)),
    "broadcast_to": with_([2, 4, 6], shape=(2, 1, 6)),
    "expand_as": Sample(lambda f, x: f(x, torch.zeros(2, 4, 6)), (2, 1, 6)),
    "broadcast_tensors": Sample(lambda f, x: f([x, torch.zeros(2, 4, 6)]), (2, 1, 6)),
    "type_as": Sample(lambda f, x: f(x, torch.zeros(1))),
    "narrow": with_(1, 1, 2),
    "narrow_copy": with_(1, 1, 2),
    "select": with_(1, 2),
    "slice": with_(1, 1, 3),
    "getitem": Sample(lambda f, x: x[:, 1:, None]),
    "setitem": Sample(lambda f, x: f(torch.zeros(2, 6, 6, 5, dtype=x.dtype), (slice(None), slice(1, 5)), x)),
    "index": with_([None, TWO]),
    "index_select": with_(1, TWO),
    "gather": with_(1, ids(2, 3, 6, 5)),
    "take": with_(ids(2, 3)),
    "take_along_dim": with_(ids(2, 3, 6, 5), 1),
    **dict.fromkeys(("split", "unsafe_split"), with_(2, 1)),
    **dict.fromkeys(("split_with_sizes", "unsafe_split_with_sizes"), with_([1, 3], 1)),
    **dict.fromkeys(("chunk", "unsafe_chunk", "tensor_split"), with_(2, 1)),
    **dict.fromkeys(("hsplit", "vsplit"), with_(2)),
    "dsplit": with_(2),
    **dict.fromkeys(("cat", "stack", "hstack", "vstack", "dstack", "column_stack"), _list()),
    **dict.fromkeys(("meshgrid", "block_diag"), Sample(lambda f, x: f([x, x.flip(0)]), ROW)),
    "flip": with_([1]),
    "roll": with_([1], [1]),
    "repeat": with_([1, 2, 1, 1]),
    "tile": with_([1, 2, 1, 1]),
    "repeat_interleave": with_(2, 1),
    "pad": with_([1, 2]),
    "constant_pad_nd": with_([1, 2], 0.5),
    **{f"reflection_pad{n}d": with_([1] * 2 * n, shape=s) for n, s in ((1, LINE), (2, IMAGE), (3, VOLUME))},
    **{f"replication_pad{n}d": with_([1] * 2 * n, shape=s) for n, s in ((1, LINE), (2, IMAGE), (3, VOLUME))},
    **dict.fromkeys(("pixel_shuffle", "channel_shuffle", "native_channel_shuffle"), with_(2)),
    "pixel_unshuffle": with_(2, shape=EVEN),
    "unfold": with_(2, 3, 2),
    "im2col": with_([2, 2], [1, 1], [0, 0], [1, 1]),
    "diag": with_(shape=ROWS),
    "where": Sample(lambda f, x: f(MASK, x, torch.zeros(())), IMAGE),
    "masked_fill": with_(MASK, 0.5),
    "masked_scatter": Sample(lambda f, x: f(torch.zeros(2, 4, 6, 5, dtype=x.dtype), MASK, x)),
    "masked_select": with_(MASK),
    "index_put": Sample(lambda f, x: f(torch.zeros(3, 4, 6, 5, dtype=x.dtype), [TWO], x)),
    "index_copy": Sample(lambda f, x: f(torch.zeros(3, 4, 6, 5, dtype=x.dtype), 0, TWO, x)),
    "index_fill": with_(1, TWO, 0.5),
    "scatter": Sample(
        lambda f, x: f(torch.zeros(5, 6, dtype=x.dtype), 0, torch.tensor([[0], [2], [1], [4]]).expand(4, 6), x), ROWS
    ),
    "slice_scatter": Sample(lambda f, x: f(torch.zeros(2, 6, 6, 5, dtype=x.dtype), x, 1, 1, 5)),
    "select_scatter": Sample(lambda f, x: f(torch.zeros(2, 3, 4, 6, 5, dtype=x.dtype), x, 1, 0)),
    "diagonal_scatter": Sample(lambda f, x: f(torch.zeros(6, 6, dtype=x.dtype), x), ROW),
    "as_strided": with_([2, 3], [3, 1], shape=ROWS),
    **dict.fromkeys(("dropout", "alpha_dropout", "feature_alpha_dropout", "feature_dropout"), with_(0.5, False)),
    "native_dropout": with_(0.5, False),
    "copy": Sample(lambda f, x: f(torch.zeros(2, 4, 6, 5, dtype=x.dtype), x)),
    "fill": with_(0.5),
    **{f"max_unpool{dim}d": _unpool(dim) for dim in (1, 2, 3)},
    "unsafe_view": Sample(lambda f, x: torch.ops.aten._unsafe_view(x, [2, -1])),
    "view_as_real": Sample(lambda f, x: f(torch.complex(x, x.flip(0)))),
    "view_as_complex": with_(shape=(3, 2)),
    "diagflat": with_(shape=ROWS),
    "cartesian_prod": Sample(lambda f, x: torch.cartesian_prod(x, x.flip(0)), ROW),
    "combinations": with_(shape=ROW),
    "identity": Sample(lambda f, x: torch.nn.Identity()(x)),
    "requires_grad": Sample(lambda f, x: x.clone().requires_grad_()),
    "embedding": Sample(lambda f, x: torch.ops.aten.embedding(x, ids(2, 3)), ROWS),
    "data": Sample(lambda f, x: x.data),
    "type": with_(torch.float64),
    "to": with_(torch.float64),
    "_to_copy": with_(dtype=torch.float64),
}

SELECTION: dict[str, Sample] = {
    "kthvalue": with_(2, 1),
    "topk": with_(2, 1),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), like()),
    **{f"max_pool{dim}d": _pool(dim) for dim in (1, 2, 3)},
    **{f"max_pool{dim}d_with_indices": _pool(dim) for dim in (2, 3)},
    "max_pool1d_with_indices": Sample(lambda f, x: torch.max_pool1d_with_indices(x, 2), LINE),
    **{f"adaptive_max_pool{dim}d": _adaptive(dim) for dim in (1, 2, 3)},
    **{
        f"adaptive_max_pool{dim}d_with_indices": Sample(
            lambda f, x, dim=dim: getattr(F, f"adaptive_max_pool{dim}d_with_indices")(x, 3), _adaptive(dim).shape
        )
        for dim in (1, 2, 3)
    },
    **{f"fractional_max_pool{dim}d": _fractional(dim) for dim in (2, 3)},
    **{
        f"fractional_max_pool{dim}d_with_indices": Sample(
            lambda f, x, dim=dim: _fractional(dim).call(getattr(torch.ops.aten, f"fractional_max_pool{dim}d"), x),
            _fractional(dim).shape,
        )
        for dim in (2, 3)
    },
    **dict.fromkeys(("cummax", "cummin", "mode"), with_(1)),
}

ELEMENTWISE: dict[str, Sample] = {
    "threshold": with_(0.2, -0.3),
    "prelu": Sample(lambda f, x: f(x, torch.tensor([0.3], dtype=x.dtype))),
    "clamp": with_(-0.5, 0.7),
    "clamp_min": with_(0.3),
    "clamp_max": with_(0.3),
    "pow": with_(3),
    "float_power": with_(3),
    "fmod": with_(0.7),
    "remainder": with_(0.7),
    "polygamma": Sample(lambda f, x: f(1, x)),
    "multigammaln": Sample(lambda f, x: f(x.abs() + 1, 2)),
    "rrelu": with_(0.1, 0.3, False),
    "logit": with_(1e-3),
}

PRODUCT: dict[str, Sample] = {
    "mul": Sample(lambda f, x: f(x, fixed(6, 5))),
    "div": Sample(lambda f, x: f(x, fixed(6, 5) + 3)),
    **dict.fromkeys(("matmul", "mm", "inner"), Sample(lambda f, x: f(x, fixed(6, 6)), ROWS)),
    "bmm": Sample(lambda f, x: f(x, fixed(2, 6, 3)), LINE),
    "mv": Sample(lambda f, x: f(x, fixed(6)), ROWS),
    **dict.fromkeys(("dot", "vdot", "outer", "ger"), Sample(lambda f, x: f(x, fixed(6)), ROW)),
    "vecdot": Sample(lambda f, x: f(x, fixed(4, 6)), ROWS),
    "cross": Sample(lambda f, x: f(x, fixed(4, 3)), (4, 3)),
    "einsum": Sample(lambda f, x: torch.einsum("ij,kj->ik", x, fixed(5, 6)), ROWS),
    "tensordot": Sample(lambda f, x: torch.tensordot(x, fixed(6, 3), [[1], [0]]), ROWS),
    "baddbmm": Sample(lambda f, x: f(x, fixed(2, 4, 3), fixed(2, 3, 6)), LINE),
    "addmm": Sample(lambda f, x: f(fixed(4, 5), x, fixed(6, 5)), ROWS),
    "addmv": Sample(lambda f, x: f(fixed(4), x, fixed(6)), ROWS),
    "addbmm": Sample(lambda f, x: f(fixed(4, 3), x, fixed(2, 6, 3)), LINE),
    "addr": Sample(lambda f, x: f(fixed(6, 3), x, fixed(3)), ROW),
    **dict.fromkeys(("addcmul", "addcdiv"), Sample(lambda f, x: f(fixed(6), x, fixed(6) + 3), ROWS)),
    **dict.fromkeys(("chain_matmul", "multi_dot"), Sample(lambda f, x: f([x, fixed(6, 3), fixed(3, 5)]), ROWS)),
    "kron": Sample(lambda f, x: f(x, fixed(2, 2)), ROWS),
    "grid_sample": Sample(lambda f, x: f(x, _grid(2), align_corners=False)),
    "grid_sampler": Sample(lambda f, x: f(x, _grid(2), 0, 0, False)),
    "grid_sampler_2d": Sample(lambda f, x: f(x, _grid(2), 0, 0, False)),
    "grid_sampler_3d": Sample(lambda f, x: f(x, _grid(3), 0, 0, False), VOLUME),
    "scaled_dot_product_attention": Sample(
        lambda f, x: F.scaled_dot_product_attention(fixed(2, 4, 6), fixed(2, 4, 6), x), LINE
    ),
    "glu": with_(1),
    "bilinear": Sample(lambda f, x: f(x, fixed(4, 3), fixed(5, 6, 3)), ROWS),
}

NORMALISER: dict[str, Sample] = {
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), with_(1)),
    **dict.fromkeys(("_softmax", "_log_softmax"), with_(1, False)),
    "layer_norm": with_([6, 5], eps=0.0),
    "native_layer_norm": with_([6, 5], None, None, 0.0),
    "group_norm": with_(2, eps=0.0),
    "native_group_norm": with_(None, None, 2, 4, 30, 2, 0.0),
    "instance_norm": Sample(lambda f, x: F.instance_norm(x, eps=0.0)),
    "rms_norm": with_([6, 5], eps=0.0),
    "normalize": with_(),
    "local_response_norm": with_(3, alpha=1.0, beta=0.5, k=0.0),
}

OTHERS: dict[str, Sample] = {
    **dict.fromkeys(("add", "sub", "rsub"), Sample(lambda f, x: f(x, fixed(6, 5), alpha=2))),
    "linear": Sample(lambda f, x: f(x, fixed(3, 5), fixed(3))),
    **{
        f"conv{d}d": Sample(lambda f, x, d=d: f(x, fixed(3, 4, *(2,) * d), fixed(3)), s)
        for d, s in ((1, LINE), (2, IMAGE), (3, VOLUME))
    },
    **{
        f"conv_transpose{d}d": Sample(lambda f, x, d=d: f(x, fixed(4, 3, *(2,) * d), fixed(3)), s)
        for d, s in ((1, LINE), (2, IMAGE), (3, VOLUME))
    },
    "convolution": Sample(
        lambda f, x: torch.ops.aten.convolution(x, fixed(3, 4, 2, 2), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    ),
    "conv_tbc": Sample(lambda f, x: f(x, fixed(2, 6, 3), fixed(3)), LINE),
    "batch_norm": Sample(lambda f, x: F.batch_norm(x, fixed(4), fixed(4) ** 2, fixed(4), fixed(4), False, 0.1, 0.2)),
    "native_batch_norm": Sample(lambda f, x: f(x, fixed(4), fixed(4), fixed(4), fixed(4) ** 2, False, 0.1, 0.2)),
    # Sizes.
    **{
        name: Sample(lambda f, x, name=name: getattr(x, name))
        for name in (
            "shape",
            "ndim",
            "itemsize",
            "nbytes",
            "is_cuda",
            "is_quantized",
            "dtype",
            "device",
            "layout",
            "grad_fn",
            "is_leaf",
        )
    },
    "result_type": like(),
    "broadcast_shapes": Sample(lambda f, x: f(x.shape, (5,))),
    "isinstance": Sample(lambda f, x: isinstance(x, Tensor)),
    "_assert": Sample(lambda f, x: f(x.dim() > 0, "")),
    "_check": Sample(lambda f, x: f(x.dim() > 0)),
    "_assert_scalar": Sample(lambda f, x: f(x.dim(), "")),
    "_assert_async": Sample(lambda f, x: f(torch.ones(x.dim()).all())),
    # New tensors.
    **{name: Sample(lambda f, x: f([x.size(0), 3])) for name in ("zeros", "ones", "empty")},
    "eye": Sample(lambda f, x: f(x.size(1))),
    "full_like": with_(2.0),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty"), with_([2, 3])),
    "empty_strided": Sample(lambda f, x: f([x.size(0), 3], [3, 1])),
    "new_empty_strided": with_([2, 3], [3, 1]),
    **{name: Sample(lambda f, x: f(x.size(1), 3)) for name in ("tril_indices", "triu_indices")},
    **{name: Sample(lambda f, x: f(x.size(1))) for name in ("hann_window", "hamming_window")},
    # Random.
    **{name: Sample(lambda f, x: f([x.size(0), 3])) for name in ("rand", "randn")},
    "randint": Sample(lambda f, x: f(5, [x.size(0)])),
    "randperm": Sample(lambda f, x: f(x.size(1))),
    "randint_like": with_(5),
    **{name: Sample(lambda f, x: f(x.detach().sigmoid())) for name in ("bernoulli", "poisson")},
    "multinomial": Sample(lambda f, x: f(x.detach().abs(), 2), ROWS),
    "geometric": with_(0.4),
    # Without a rule.
    **dict.fromkeys(("cumprod", "logsumexp", "logcumsumexp"), with_(1)),
    "logsumexp": with_([1]),
    **dict.fromkeys(("logaddexp", "logaddexp2", "atan2", "hypot", "copysign", "nextafter", "xlogy", "xlog1py"), like()),
    "heaviside": like(),
    "ldexp": like(),
    **{name: Sample(lambda f, x: f(x.int(), x.flip(0).int())) for name in ("gcd", "lcm")},
    **dict.fromkeys(("dist", "cosine_similarity", "pairwise_distance"), like()),
    "cdist": like(ROWS),
    "pdist": with_(shape=ROWS),
    "_pdist_forward": with_(shape=ROWS),
    "_cdist_forward": Sample(lambda f, x: f(x, x.flip(0), 2.0, None), ROWS),
    "renorm": with_(2, 0, 1.0),
    "frobenius_norm": with_([1]),
    **{f"lp_pool{dim}d": Sample(lambda f, x: f(x, 2.0, 2), _pool(dim).shape) for dim in (1, 2, 3)},
    **dict.fromkeys(("quantile", "nanquantile"), with_(0.3)),
    "scatter_reduce": Sample(lambda f, x: f(torch.zeros(5, 6, dtype=x.dtype), 0, ids(4, 6), x, "prod"), ROWS),
    "index_reduce": Sample(lambda f, x: f(torch.ones(5, 6, dtype=x.dtype), 0, DOUBLED, x, "prod"), ROWS),
    **dict.fromkeys(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div"), _loss()),
    "cross_entropy": Sample(lambda f, x: F.cross_entropy(x, ids(4)), ROWS),
    "nll_loss": Sample(lambda f, x: F.nll_loss(x, ids(4)), ROWS),
    "binary_cross_entropy": Sample(lambda f, x: f(x.sigmoid(), fixed(*x.shape).sigmoid())),
    "binary_cross_entropy_with_logits": _loss(),
    "linalg_solve": Sample(lambda f, x: f(x, fixed(6, 2)), (6, 6)),
    **dict.fromkeys(("det", "slogdet", "inverse", "inv", "linalg_inv", "linalg_det", "eigh"), with_(shape=(4, 4))),
    **dict.fromkeys(
        ("pinverse", "svd", "linalg_svd", "linalg_eigh", "matrix_exp", "linalg_matrix_exp"), with_(shape=(4, 4))
    ),
    **dict.fromkeys(("linalg_qr", "lu"), with_(shape=(4, 4))),
    **dict.fromkeys(
        ("linalg_cholesky", "logdet"), Sample(lambda f, x: f(x @ x.mT + torch.eye(4, dtype=x.dtype)), (4, 4))
    ),
    "matrix_power": with_(2, shape=(4, 4)),
    "angle": with_(),
    "polar": like(),
    "complex": like(),
    "imag": Sample(lambda f, x: f(torch.complex(x, x))),
    "embedding_bag": Sample(lambda f, x: F.embedding_bag(ids(2, 3), x), ROWS),
}

SAMPLES: dict[str, Sample] = {
    **{**COMPARED, **LINEAR, **MOVEMENT, **SELECTION},
    **{**ELEMENTWISE, **PRODUCT, **NORMALISER, **OTHERS},
}

# Entries that nothing can be called for here, and why.
WITHOUT_SAMPLE: dict[str, str] = {
    "cuda": "it needs a device",
    "requires_grad_flag": "a flag, which proxies answer",
    **dict.fromkeys(("same_size", "is_nonzero_size"), "no operator"),
    **dict.fromkeys(("and", "or", "xor", "not", "is_", "truth"), "an operator of Python on the result of a comparison"),
    "names": "an attribute of Python",
    **dict.fromkeys(("qr", "cholesky", "eig", "solve", "lstsq"), "torch has removed it"),
    "native_norm": "torch has it for sparse tensors alone",
    "bilinear_layer": "nn.Bilinear, a module",
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "many arguments, and no rule"),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), "many arguments, and no rule"),
    **dict.fromkeys(("multi_head_attention_forward", "_embedding_bag"), "many arguments, and no rule"),
    **dict.fromkeys(("ctc_loss", "cosine_embedding_loss"), "many arguments, and no rule"),
    **dict.fromkeys(("_fft_c2r", "_fft_r2c", "stft", "istft"), "complex numbers, and no rule"),
}

_HOMES = (torch.ops.aten, F, torch, torch.special, torch.linalg, torch.fft, Tensor, operator)


def function_of(name: str) -> Callable[..., Any] | None:
    """Return the function of an entry: the operator of ATen, else what torch has of that name."""
    if name == "setitem":
        return setitem_
    for home in _HOMES:
        found = getattr(home, name, None)
        if callable(found):
            return found
    return None


def run(name: str, x: Tensor) -> Any:
    """Return what the operation of an entry makes of data."""
    return SAMPLES.get(name, Sample()).call(function_of(name), x)  # type: ignore[arg-type]


def shape_of(name: str) -> tuple[int, ...]:
    return SAMPLES.get(name, Sample()).shape


def tensors(result: Any) -> list[Tensor]:
    """Return the tensors with a gradient in a result, complex ones as real."""
    parts = result if isinstance(result, tuple | list) else [result]
    found = [part for part in parts if isinstance(part, Tensor)]
    return [
        torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
        for t in found
        if t.is_floating_point() or t.is_complex()
    ]
