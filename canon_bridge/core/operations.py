"""THE table of operations: what each is, by the name that ATen gives it, and how all its spellings lead to it.

Tracing, making explicit, planning, both adapters and the audit read it. A new operation is one entry, or one call of
:func:`register_operation`; a spelling that torch's own names do not tell is one word in ``_CALLED``.
"""

import copy
import dataclasses
import inspect
import keyword
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from canon_bridge.core import explicit
from canon_bridge.core.activations import ACTIVATIONS, MAX_POOLS
from canon_bridge.core.explicit import MakeModule
from canon_bridge.core.layers.linear import LINEAR
from canon_bridge.core.norms import norm_entry
from canon_bridge.core.registry import Registry, TypeKey, find_entry

T = TypeVar("T")


class Kind(Enum):
    """What an operation is, which decides its rule; the value says it in words."""

    LINEAR_LAYER = "linear layer"
    NORM = "norm"
    ELEMENTWISE = "element-wise function of one input"
    MOVEMENT = "movement of elements"
    SELECTION = "selection of elements"
    LINEAR = "linear in the data"
    SUM = "sum of two"
    PRODUCT = "product"
    NORMALISER = "normaliser"
    SIZE = "reads sizes, no values"
    CREATION = "new tensor without data"
    RANDOM = "random"
    NOT_DIFFERENTIABLE = "not differentiable"
    WITHOUT_RULE = "without a rule"


# What no relevance comes through: a value that is computed so is a constant for everything after it.
STOPS: Final = frozenset({Kind.SIZE, Kind.CREATION, Kind.RANDOM, Kind.NOT_DIFFERENTIABLE})
# What rules have to see as a module of its own.
WANTS_MODULE: Final = frozenset({Kind.ELEMENTWISE, Kind.LINEAR, Kind.SUM, Kind.PRODUCT, Kind.NORMALISER})
# What has the gradient for its rule.
GRADIENT_IS_RULE: Final = frozenset({Kind.MOVEMENT, Kind.SELECTION})


@dataclass(frozen=True)
class Operation:
    """An entry of the table.

    Attributes
    ----------
    name : str
        The operator of ATen (``torch.ops.aten``), or the function of ``torch.nn.functional`` where ATen has none.
    kind : Kind
        What it is; this decides the rule, and whether a per-channel map passes it.
    make : callable, optional
        Makes a module of ``torch.nn`` from the arguments after the tensor, whose parameters have the names of the
        function's; it raises ``ValueError`` where there is none. Without it the generic module of the kind is used.
    tensors : tuple of str
        Parameters of ``make`` that are tensors of the model.
    shares : bool or None
        Whether the result may be the same memory as an argument; None: torch's schema says it.
    note : str
        Why it has no rule, or what there is to know of the rule.
    data : tuple of int
        The arguments that relevance goes to, where not all that carry data do: no weights, gates and indices, provided
        that the first of these does carry data.
    """

    name: str
    kind: Kind
    make: MakeModule | None = None
    tensors: tuple[str, ...] = ()
    shares: bool | None = None
    note: str = ""
    data: tuple[int, ...] = ()


_KINDS: Final[Mapping[Kind, str]] = {
    Kind.LINEAR_LAYER: """linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
        conv_tbc """,
    Kind.NORM: "batch_norm native_batch_norm",
    Kind.ELEMENTWISE: """relu relu6 hardtanh leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid sigmoid tanh
        logsigmoid log_sigmoid softplus softsign softshrink hardshrink tanhshrink threshold prelu rrelu clamp clamp_min
        clamp_max abs acos acosh asin asinh atan atanh ceil cos cosh deg2rad rad2deg digamma erf erfc erfinv exp exp2
        expm1 expit floor frac i0 i0e i1 i1e lgamma log log10 log1p log2 log_ndtr logit nan_to_num ndtr ndtri neg
        positive pow float_power reciprocal round rsqrt sgn sign sin sinc sinh sqrt square tan trunc fmod remainder
        polygamma multigammaln erfcx entr""",
    Kind.MOVEMENT: """view reshape reshape_as view_as flatten ravel unflatten permute transpose t numpy_T matrix_H mT H
        adjoint swapaxes movedim squeeze unsqueeze expand expand_as broadcast_to broadcast_tensors type_as to float
        double half bfloat16 type contiguous clone alias narrow narrow_copy select slice getitem index index_select
        gather take take_along_dim split split_with_sizes chunk tensor_split hsplit vsplit dsplit unbind unsafe_split
        unsafe_chunk unsafe_split_with_sizes cat stack hstack vstack dstack column_stack flip fliplr flipud
        roll rot90 repeat repeat_interleave tile pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
        replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle
        native_channel_shuffle unfold im2col diagonal diag diag_embed tril triu where masked_fill masked_scatter
        masked_select index_put index_copy index_fill scatter slice_scatter select_scatter diagonal_scatter as_strided
        atleast_1d atleast_2d atleast_3d meshgrid block_diag identity dropout alpha_dropout feature_alpha_dropout
        feature_dropout native_dropout copy fill zero setitem max_unpool1d max_unpool2d max_unpool3d unsafe_view
        conj resolve_conj resolve_neg real lift_fresh requires_grad _to_copy cpu cuda data view_as_real
        view_as_complex embedding as_tensor asarray
        diagflat cartesian_prod combinations fft_fftshift fft_ifftshift""",
    Kind.SELECTION: """max min amax amin aminmax median nanmedian mode kthvalue topk sort msort maximum minimum
        fmax fmin max_pool1d max_pool2d max_pool3d adaptive_max_pool1d
        adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d cummax cummin
        max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d_with_indices
        adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices fractional_max_pool2d_with_indices
        fractional_max_pool3d_with_indices""",
    Kind.LINEAR: """sum nansum mean nanmean cumsum trace diff avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d interpolate
        upsample_bilinear2d upsample_nearest2d upsample_bicubic2d upsample_linear1d upsample_nearest1d
        upsample_nearest3d upsample_trilinear3d fold col2im lerp scatter_add index_add trapezoid
        sum_to_size affine_grid affine_grid_generator cumulative_trapezoid""",
    Kind.SUM: "add sub rsub",
    Kind.PRODUCT: """mul div matmul mm bmm mv dot vdot inner outer ger einsum tensordot baddbmm addmm addmv addbmm addr
        addcmul addcdiv chain_matmul multi_dot kron vecdot cross grid_sample grid_sampler grid_sampler_2d
        grid_sampler_3d scaled_dot_product_attention glu bilinear""",
    Kind.NORMALISER: """softmax _softmax log_softmax _log_softmax softmin layer_norm native_layer_norm group_norm
        native_group_norm instance_norm rms_norm local_response_norm normalize""",
    Kind.SIZE: """size shape dim ndim ndimension numel nelement element_size stride storage_offset dtype device layout
        itemsize nbytes is_contiguous is_floating_point is_complex is_tensor is_cuda is_quantized is_signed is_leaf
        get_device len requires_grad_flag result_type same_size isinstance sym_size sym_stride sym_numel
        sym_storage_offset sym_is_contiguous grad_fn names is_nonzero_size broadcast_shapes _assert _assert_scalar
        _assert_async _check""",
    Kind.CREATION: """zeros ones empty eye zeros_like ones_like empty_like full_like new_zeros new_ones new_empty
        empty_strided new_empty_strided tril_indices triu_indices hann_window hamming_window""",
    Kind.RANDOM: """rand randn randint randperm rand_like randn_like randint_like bernoulli multinomial normal uniform
        exponential cauchy geometric log_normal random poisson""",
    Kind.NOT_DIFFERENTIABLE: """argmax argmin argsort eq ne lt le gt ge logical_and logical_or logical_xor logical_not
        bitwise_and bitwise_or bitwise_xor bitwise_not bitwise_left_shift bitwise_right_shift isnan isinf isfinite
        isneginf isposinf isclose allclose equal any all nonzero argwhere bincount histc searchsorted bucketize one_hot
        unique unique_consecutive floor_divide item tolist int long short bool byte char count_nonzero detach
        full arange linspace logspace tensor new_full new_tensor from_numpy scalar_tensor
        _local_scalar_dense signbit is_nonzero and or xor not contains numpy is_ truth isin
        isreal""",
}

OF_COMPLEX_NUMBERS: Final = "relevance of complex numbers is not defined"
_WITHOUT_RULE: Final[Mapping[str, str]] = {
    "prod cumprod": "the product of many elements has no signal that could take all",
    "logsumexp logcumsumexp logaddexp logaddexp2": "it mixes elements and is not linear",
    "std var std_mean var_mean norm native_norm frobenius_norm nuclear_norm vector_norm matrix_norm linalg_norm "
    "linalg_vector_norm linalg_matrix_norm renorm dist cdist pdist _cdist_forward _pdist_forward pairwise_distance "
    "cosine_similarity lp_pool1d lp_pool2d lp_pool3d": "a norm, distance or spread mixes elements and is not linear",
    "atan2 hypot copysign nextafter ldexp xlogy xlog1py heaviside gcd lcm frexp": "a function of two inputs that is "
    "neither their sum nor their product",
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell multi_head_attention_forward "
    "embedding_bag _embedding_bag": "several operations in one, whose parts cannot be seen",
    "fft ifft rfft irfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn hfft ihfft fft_fft fft_ifft fft_rfft "
    "fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn _fft_c2r _fft_r2c stft istft imag angle "
    "polar complex": OF_COMPLEX_NUMBERS,
    "det slogdet logdet inverse pinverse svd qr cholesky lu eig eigh inv solve matrix_exp matrix_power lstsq "
    "linalg_inv linalg_solve linalg_det linalg_svd linalg_qr linalg_cholesky linalg_eigh linalg_matrix_exp": "it is "
    "not linear in the matrix",
    "cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy "
    "binary_cross_entropy_with_logits kl_div ctc_loss cosine_embedding_loss": "a loss is not what a map explains",
    "bilinear_layer": "it is a product of two inputs, with a weight of its own",
    "gumbel_softmax": "its noise is drawn anew in each pass, so no map explains its output",
    "quantile nanquantile": "it interpolates between sorted elements",
    "scatter_reduce index_reduce": "it may reduce by a product or a mean of what is there",
}

# The arguments that relevance goes to, see :class:`Operation`.
_DATA: Final[Mapping[str, tuple[int, ...]]] = {
    "where": (1, 2),
    "masked_fill gather index_select take take_along_dim getitem masked_select": (0,),
    "index_put setitem masked_scatter": (0, 2),
    "scatter scatter_add index_add index_copy index_fill": (0, 3),
    "max_unpool1d max_unpool2d max_unpool3d": (0,),
    "embedding": (1,),
    "lerp": (0, 1),
    "trapezoid cumulative_trapezoid": (0,),
    "grid_sample grid_sampler grid_sampler_2d grid_sampler_3d": (0,),
    "scaled_dot_product_attention": (2,),
    _KINDS[Kind.LINEAR_LAYER]: (0, 2),  # a bias, too, may be computed from the input
}

# What moves the last of its data to places that another argument says, where several elements may meet.
PLACED: Final = frozenset(
    ["max_unpool1d", "max_unpool2d", "max_unpool3d", "scatter", "index_copy", "index_put", "setitem"]
)

# What an operation is where one of its arguments says so: the argument, and the kind by its value.
BY_ARGUMENT: Final[Mapping[str, tuple[str, Mapping[Any, Kind]]]] = {
    "index_put": ("accumulate", {True: Kind.LINEAR}),
    "scatter": ("reduce", {"add": Kind.LINEAR, "multiply": Kind.WITHOUT_RULE}),
}

# What else an operation is called; only what torch's schemas do not tell.
_CALLED: Final = """
    abs: absolute; acos: arccos; acosh: arccosh; add: iadd __add__ __radd__; argmax: indices; asin: arcsin;
    asinh: arcsinh; atan: arctan; atan2: arctan2; atanh: arctanh; bitwise_and: and_ iand; bitwise_not: invert;
    bitwise_or: or_ ior; bitwise_xor: xor ixor; cat: concat concatenate; clamp: clip; conj: conj_physical;
    digamma: special_psi; div: truediv divide true_divide itruediv; dropout: dropout1d dropout2d dropout3d
    feature_dropout; floor_divide: floordiv ifloordiv; ge: greater_equal; getitem: __getitem__ values; gt: greater;
    interpolate: upsample upsample_nearest upsample_bilinear; le: less_equal; len: __len__; lgamma: special_gammaln;
    lt: less; matmul: imatmul; movedim: moveaxis; mul: multiply imul; multigammaln: mvlgamma;
    native_batch_norm: _native_batch_norm_legit _native_batch_norm_legit_no_training; ne: not_equal; neg: negative;
    numpy_T: T; pinverse: linalg_pinv; positive: pos; pow: ipow; remainder: mod imod; setitem: __setitem__;
    sigmoid: special_expit; sub: subtract isub; swapaxes: swapdims transpose_; trapezoid: trapz; trunc: fix;
    vstack: row_stack"""
_ALIASES: Final[Mapping[str, str]] = {
    spelling: name.strip()
    for name, spellings in (entry.split(":") for entry in _CALLED.split(";"))
    for spelling in spellings.split()
}


def _pool_makers() -> Iterator[tuple[str, MakeModule]]:
    for kind in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool"):
        for dim in (1, 2, 3):
            module = getattr(nn, "".join(part.capitalize() for part in kind.split("_")) + f"{dim}d")
            yield f"{kind}{dim}d", explicit.max_pool(module) if kind == "max_pool" else module


_MAKERS: Final[Mapping[str, MakeModule]] = {
    **{
        module.__name__.lower(): module
        for module in (
            *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
            *(nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Softshrink),
            *(nn.Hardshrink, nn.Tanhshrink, nn.Threshold),
        )
    },
    "leaky_relu": nn.LeakyReLU,
    "expit": nn.Sigmoid,
    **{name: getattr(explicit, name) for name in ("clamp", "clamp_min", "rrelu", "elu", "prelu")},
    **dict(_pool_makers()),
    **{name: getattr(explicit, name) for name in ("batch_norm", "instance_norm", "linear")},
    "convolution": explicit.any_convolution,
    **{f"conv{dim}d": explicit.convolution for dim in (1, 2, 3)},
    **{f"conv_transpose{dim}d": explicit.transposed_convolution for dim in (1, 2, 3)},
}
_STATISTICS: Final = ("running_mean", "running_var", "weight", "bias")
_TENSORS: Final[Mapping[str, tuple[str, ...]]] = {
    "prelu": ("weight",),
    "batch_norm instance_norm": _STATISTICS,
    _KINDS[Kind.LINEAR_LAYER]: ("weight", "bias"),
}

# Results that may be an argument itself, which no schema of ATen says.
_SHARING: Final = """type_as float double half bfloat16 type dropout alpha_dropout feature_alpha_dropout
    feature_dropout getitem identity setitem broadcast_tensors atleast_1d atleast_2d atleast_3d meshgrid data real
    requires_grad cpu cuda pad numpy_T mT H copy fill zero as_tensor asarray positive sum_to_size einsum unsafe_split
    unsafe_split_with_sizes unsafe_chunk detach numpy from_numpy long int short bool byte char"""


def _by_name(table: Mapping[str, T]) -> dict[str, T]:
    return {name: value for names, value in table.items() for name in names.split()}


def _entries() -> Iterator[Operation]:
    tensors, data, sharing = _by_name(_TENSORS), _by_name(_DATA), _by_name({_SHARING: True})
    for kind, names in _KINDS.items():
        for name in names.split():
            more = tensors.get(name, ()), sharing.get(name), "", data.get(name, ())
            yield Operation(name, kind, _MAKERS.get(name), *more)
    for name, note in _by_name(_WITHOUT_RULE).items():
        yield Operation(name, Kind.WITHOUT_RULE, note=note)


OPERATIONS: Final[dict[str, Operation]] = {entry.name: entry for entry in _entries()}


def setitem_(target: Any, index: Any, value: Any) -> Any:
    """Compute ``target[index] = value`` and return the target: what a forward reads of it later comes from here."""
    target[index] = value
    return target


# Pools that put out the indices, too, unlike their namesakes in torch.nn.functional.
_PAIRS: Final = ("adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d", "fractional_max_pool3d")
_NN: Final[Any] = getattr(torch._C, "_nn")  # noqa: B009 - the type checker does not know it


def _in_order(function: Callable[..., Any], names: str) -> Callable[..., Any]:
    """Return what takes arguments of these names, in this order, and hands on those that a function has."""
    known, kind = inspect.signature(function).parameters, inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names.split()])

    def ordered(*args: Any, **keywords: Any) -> Any:
        given = signature.bind(*args, **keywords).arguments
        return function(**{name: value for name, value in given.items() if name in known})

    vars(ordered)["__signature__"] = signature
    return ordered


def _raw(name: str, by_batch: str) -> Operation:
    """Return the entry of a norm for the function of torch itself, whose arguments are in another order."""
    names = f"weight bias running_mean running_var {by_batch} momentum eps cudnn_enabled"
    return replace(OPERATIONS[name], make=_in_order(_MAKERS[name], names))


# Functions by themselves: arguments in another order than their namesake's, and what users have taught.
_BY_FUNCTION: Final[dict[Any, Operation]] = {
    **dict.fromkeys((torch.batch_norm, torch.ops.aten.batch_norm), _raw("batch_norm", "training")),
    **dict.fromkeys((torch.instance_norm, torch.ops.aten.instance_norm), _raw("instance_norm", "use_input_stats")),
    setitem_: OPERATIONS["setitem"],
    OrderedDict: OPERATIONS["identity"],  # a dictionary of values
    torch.adaptive_max_pool1d: OPERATIONS["adaptive_max_pool1d_with_indices"],
    **{getattr(_NN, name): OPERATIONS[f"{name}_with_indices"] for name in _PAIRS},
    **{getattr(torch.ops.aten, name): OPERATIONS[f"{name}_with_indices"] for name in ("adaptive_max_pool1d", *_PAIRS)},
}


class _NotRecorded:
    """What an operator puts out beside its result: a forward that reads it cannot be traced."""

    def __getattr__(self, name: str) -> Any:
        raise TypeError("it reads the statistics that a norm puts out beside its result")

    def __fx_create_arg__(self, tracer: fx.Tracer) -> Any:
        return self.node


NOT_RECORDED: Final = _NotRecorded()


def _group_norm(
    input: Any, weight: Any, bias: Any, batch: Any, channels: Any, positions: Any, group: int, eps: float
) -> Any:
    return F.group_norm(input, group, weight, bias, eps)


_ORDER: Final = "input weight bias running_mean running_var"
# Operators that put out two statistics besides, as programs have that `torch.export` has decomposed: what computes the
# result alone.
_WITH_STATISTICS: Final[dict[Any, Callable[..., Any]]] = {
    torch.ops.aten._native_batch_norm_legit_no_training: _in_order(F.batch_norm, f"{_ORDER} momentum eps"),
    **dict.fromkeys(
        (torch.ops.aten._native_batch_norm_legit, torch.native_batch_norm, torch.ops.aten.native_batch_norm),
        _in_order(F.batch_norm, f"{_ORDER} training momentum eps"),
    ),
    **dict.fromkeys((torch.native_layer_norm, torch.ops.aten.native_layer_norm), F.layer_norm),
    **dict.fromkeys((torch.native_group_norm, torch.ops.aten.native_group_norm), _group_norm),
}


def result_alone(function: Any) -> Callable[..., Any] | None:
    """Return what computes the result of an operator that puts out two statistics besides, or None for any other."""
    return _WITH_STATISTICS.get(_itself(function))


# Modules without tensors that are one operation; layers, norms, activations and pools have tables of their own.
_MODULES: Final[Mapping[str, Iterable[TypeKey]]] = {
    "identity": (nn.Identity, nn.Unflatten),
    "_assert": ("torch.export._unlift.GuardsFn",),  # what an exported program asks of its inputs
    "dropout": (
        *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
        *("timm.layers.drop.DropPath", "torchvision.ops.stochastic_depth.StochasticDepth"),
    ),
    "flatten": (nn.Flatten,),
    "pixel_shuffle": (nn.PixelShuffle,),
    "pixel_unshuffle": (nn.PixelUnshuffle,),
    "channel_shuffle": (nn.ChannelShuffle,),
    "interpolate": (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    "pad": tuple(
        getattr(nn, f"{what}Pad{dim}d")
        for what in ("Zero", "Constant", "Reflection", "Replication", "Circular")
        for dim in (1, 2, 3)
    ),
    "im2col": (nn.Unfold,),
    "fold": (nn.Fold,),
    **{f"avg_pool{dim}d": (getattr(nn, f"AvgPool{dim}d"),) for dim in (1, 2, 3)},
    **{f"adaptive_avg_pool{dim}d": (getattr(nn, f"AdaptiveAvgPool{dim}d"),) for dim in (1, 2, 3)},
    "max_pool2d": (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
    "max_unpool2d": (nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d),
    "softmax": (nn.Softmax, nn.Softmax2d, nn.Softmin),
    "log_softmax": (nn.LogSoftmax,),
    "layer_norm": (
        *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        *("timm.layers.norm.LayerNorm", "timm.layers.norm.LayerNorm2d", "timm.layers.norm.GroupNorm"),
        *("torchvision.models.convnext.LayerNorm2d", "timm.layers.norm.GroupNorm1"),
    ),
    "glu": (nn.GLU,),
    "embedding": (nn.Embedding,),
    "lp_pool2d": (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d),
    "lstm": (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.MultiheadAttention, nn.EmbeddingBag),
    "bilinear_layer": (nn.Bilinear,),
    "cosine_similarity": (nn.CosineSimilarity, nn.PairwiseDistance),
}
MODULES: Final[dict[TypeKey, Operation]] = {key: OPERATIONS[name] for name, keys in _MODULES.items() for key in keys}


def operation_of_module(module: nn.Module) -> Operation | None:
    """Return what a module is, if it is one operation: by its type, whatever was set on the instance; else None."""
    if norm_entry(module) is not None:  # an InstanceNorm may be one, or a normaliser
        return OPERATIONS["batch_norm"]
    name = getattr(type(module), "canonical_operation", None)  # explicit modules say it themselves
    entry = find_entry(MODULES, module) if name is None else OPERATIONS[name]
    if entry is not None:
        return entry
    for table, name in ((LINEAR, "linear"), (MAX_POOLS, "max_pool2d")):
        if table.find(module) is not None:
            return OPERATIONS[name]
    if ACTIVATIONS.find(module) is None:
        return None
    own = OPERATIONS.get(type(module).__name__.lower().removesuffix("me"))
    return own if own is not None and own.kind is Kind.ELEMENTWISE else OPERATIONS["relu"]


def operation_of_call(node: fx.Node) -> Operation | None:
    """Return the entry for a call of a function or a tensor method, however it is spelled; None if it is not known."""
    if node.op == "call_method":
        return _as_called(node, _named(str(node.target)))
    if node.op != "call_function":
        return None
    if node.target is getattr:
        return _named(str(node.args[1]))
    return _as_called(node, operation_of_function(node.target)) or _learned(node)


def _as_called(node: fx.Node, entry: Operation | None) -> Operation | None:
    """Return the entry of a call, of the kind that its arguments say."""
    if entry is None or entry.name not in BY_ARGUMENT:
        return entry
    name, kinds = BY_ARGUMENT[entry.name]
    place = places_of(entry.name)[name]
    value = node.args[place] if place < len(node.args) else node.kwargs.get(name)
    if isinstance(value, fx.Node) or value not in kinds:
        return entry
    return replace(entry, kind=kinds[value], note=f"{name}={value!r}: it mixes elements and is not linear")


@cache
def places_of(name: str) -> Mapping[str, int]:
    """Return the place of each argument of an operation by its name, as torch's schemas and functions have it."""
    packet, function = getattr(torch.ops.aten, name, None), getattr(F, name, None)
    schemas = [] if packet is None else [getattr(packet, overload)._schema for overload in reversed(packet.overloads())]
    lists = [[argument.name for argument in schema.arguments] for schema in schemas]
    if inspect.isfunction(function):
        lists.append([*inspect.signature(function).parameters])
    places = {"input": 0}
    for place, name in [pair for names in lists for pair in enumerate(names)]:
        places.pop(name, None)  # those of torch.nn.functional come last, which users read
        places[name] = place
    return places


def _learned(node: fx.Node) -> Operation | None:
    """Return what an autograd function or a scripted one is, which are known by name only: found by running it."""
    if not hasattr(node.target, "calls") or len(node.all_input_nodes) != 1:
        return None

    def function(value: Tensor) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), lambda _: value)
        return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    is_known = node.args[:1] == tuple(node.all_input_nodes) and is_elementwise(function)
    return Operation(_identifier(node.target), Kind.ELEMENTWISE, shares=True) if is_known else None


def is_elementwise(function: Callable[[Tensor], Any]) -> bool:
    """Return whether each element of the result comes from the element at the same place, by running the function."""
    with torch.no_grad(), torch._C.DisableTorchFunction():  # not recorded, where a model is being traced
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
        order = torch.randperm(values.numel(), generator=generator)
        moved = values.flatten()[order].view(values.shape)
        try:
            result, of_moved, shorter = (function(value.clone()) for value in (values, moved, values[:1]))
            return bool(
                result.shape == values.shape
                and torch.allclose(result.flatten()[order], of_moved.flatten(), rtol=1e-9)
                and torch.allclose(result[:1], shorter, rtol=1e-9)
            )
        except Exception:  # whatever it raises on such a tensor
            return False


def keeps_to(kind: Kind, module: nn.Module, sizes: list[int]) -> bool | None:
    """Return whether a module is what the rule of a kind takes it for, by running it; None if it cannot be run.

    ``sizes`` are those of the input. A linear layer is linear but for its bias, and linear in its parameters, which
    rules change; what else counts as linear need only be homogeneous, which is what the epsilon rule asks for. A copy
    is run, because it may write on itself.
    """
    try:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            twin = copy.deepcopy(module)
            tensors = [value for value in (*twin.parameters(), *twin.buffers()) if value.is_floating_point()]
            own = tensors[0] if tensors else torch.zeros(1)
            if own.dtype not in (torch.float32, torch.float64):
                own = own.float()
                twin.float()
            generator = torch.Generator().manual_seed(0)
            values, others = (torch.randn(sizes, generator=generator, dtype=torch.float64).to(own) for _ in range(2))
            parameters = [(tensor, tensor.clone()) for tensor in twin.parameters(recurse=False)]

            def run(value: Tensor, factor: float = 1) -> Any:
                for tensor, before in parameters:
                    tensor.copy_(factor * before)
                return twin.forward(value.clone())

            if kind in GRADIENT_IS_RULE:  # padding is zero
                return bool(torch.isin(run(values), torch.cat([values.flatten(), 0 * values.flatten()[:1]])).all())
            if kind is Kind.LINEAR:
                return _is_near(run(2 * values), 2 * run(values))
            if kind is Kind.LINEAR_LAYER:
                result, constant = run(values), run(others, 0)
                is_by_weight = _is_near(run(values, -2) - constant, -2 * (result - constant))
                return is_by_weight and _is_near(run(2 * values - others), 2 * result - run(others))
            if kind is Kind.ELEMENTWISE:
                mixed = torch.where(others > 0, values, others)
                return _is_near(run(mixed), torch.where(others > 0, run(values), run(others)))
    except Exception:  # whatever it raises on such a tensor
        return None
    return kind is not Kind.NORMALISER


def _is_near(value: Tensor, expected: Tensor) -> bool:
    scale = expected.abs().max().item()
    return value.shape == expected.shape and torch.allclose(value, expected, rtol=1e-4, atol=1e-4 * scale)


def bound_of(function: Callable[[Tensor], Any]) -> int:
    """Return 2 if all that a function puts out is between zero and one, 1 if it is bounded, else 0, by running it."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None]
    sizes = (torch.cat([torch.zeros(1), torch.logspace(-3, end, 59)]).double() for end in (15, 30))
    try:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            near, far = (function((signs * size).view(2, 3, 4, 5)) for size in sizes)
        low, high = (min(near.min(), far.min()).item(), max(near.max(), far.max()).item())
        is_bounded = bool(near.isfinite().all()) and far.abs().max() <= 1.2 * near.abs().max()
    except Exception:  # whatever it raises on such a tensor
        return 0
    return 0 if not is_bounded or low == high else 2 if low >= 0 and high <= 1 else 1


def operation_of_function(function: Any) -> Operation | None:
    """Return the entry for a function of torch, of the ``operator`` module, or one that was registered."""
    taught = _BY_FUNCTION.get(_itself(function))
    if taught is not None:
        return taught
    if isinstance(function, type) and dataclasses.is_dataclass(function):
        return OPERATIONS["identity"]  # a structure of values
    name = _name_in_aten(function) or _spellings().get(function)
    return None if name is None else _named(name)


def _itself(function: Any) -> Any:
    """Return what stands for a function however it is called: the class of ``apply``, the operator of an overload."""
    function = getattr(function, "calls", function)  # as tracing records it
    function = getattr(function, "_opoverload", function)  # torch.library.custom_op
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        return owner
    return getattr(function, "overloadpacket", function)


def _identifier(function: Any) -> str:
    """Return a name for the module of a function."""
    name = str(getattr(function, "__name__", type(function).__name__)).partition(".")[0]
    return name if name.isidentifier() and not keyword.iskeyword(name) else "function"


def _name_in_aten(function: Any) -> str | None:
    packet = getattr(function, "overloadpacket", function)
    is_known = isinstance(packet, torch._ops.OpOverloadPacket) and str(packet).startswith("aten.")
    return packet.__name__ if is_known else None


@cache
def _spellings() -> Mapping[Any, str]:
    """Return the name of every function that torch and Python have, by the function itself."""
    homes = (
        *(operator, F, torch.special, torch.linalg, torch.fft),
        *(getattr(torch._C, name) for name in ("_nn", "_special", "_linalg", "_VariableFunctions")),
        torch,
    )
    found: dict[Any, str] = {len: "len", isinstance: "isinstance"}
    for home in homes:
        for name in dir(home):
            value = getattr(home, name, None)
            is_function = callable(value) and not isinstance(value, type) and getattr(value, "__hash__", None)
            if is_function and (value not in found or _named(found[value]) is None):  # some have several names
                found[value] = name
    return found


@cache
def _named(name: str) -> Operation | None:
    for spelling in (name, name.removesuffix("_"), name.removeprefix("special_"), name.removeprefix("linalg_")):
        found = OPERATIONS.get(_ALIASES.get(spelling, spelling))
        if found is not None:
            return found
    return None


def is_random(function: Any) -> bool:
    """Return whether a function or method draws random numbers."""
    entry = operation_of_function(function) or _named(str(getattr(function, "__name__", "")))
    return entry is not None and entry.kind is Kind.RANDOM


def overwritten(node: fx.Node, module: nn.Module | None) -> fx.Node | None:
    """Return the argument that a call overwrites, or None: by its name, as torch has it, ``inplace`` and ``out``."""
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return out
    first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("self"))
    return first if isinstance(first, fx.Node) and _works_in_place(node, module) else None


def _works_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return getattr(module, "inplace", False) is True
    if node.kwargs.get("inplace") is True:  # functions hand it on by keyword, however they were called
        return True
    if node.op == "call_method":
        name = str(node.target)
        return name == "__setitem__" or _says_in_place(name)
    if node.op != "call_function":
        return False
    name, home = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", "")
    if home == "_operator":  # `and_` and `or_` overwrite nothing
        return name == "setitem" or (name.startswith("i") and hasattr(operator, f"__{name}__") and name != "invert")
    return _says_in_place(_name_in_aten(node.target) or name)


def _says_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def may_share(entry: Operation | None, node: fx.Node) -> bool:
    """Return whether the result of a call may be the memory of an argument; so it may if nothing is known of it."""
    if entry is None or node.op == "call_module":
        return entry is None or entry.kind not in _FRESH
    if entry.shares is not None:
        return entry.shares
    return entry.kind is Kind.MOVEMENT and _schema_shares(entry.name)


_FRESH: Final = frozenset({*Kind} - {Kind.MOVEMENT, Kind.WITHOUT_RULE})


@cache
def _schema_shares(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:  # a function of Python alone: what it returns may be what it got
        return True
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    return any(r.alias_info is not None and not r.alias_info.is_write for s in schemas for r in s.returns)


def out_of_place(node: fx.Node) -> Callable[..., Any]:
    """Return the function of a call that returns its result and overwrites nothing."""
    if node.op == "call_method":
        name = str(node.target)
        return getattr(Tensor, name.removesuffix("_") if hasattr(Tensor, name.removesuffix("_")) else name)
    function: Any = node.target
    if function is setitem_:
        return explicit.with_item
    name, home = getattr(function, "__name__", ""), getattr(function, "__module__", "")
    if home == "_operator":
        return getattr(operator, name[1:]) if name.startswith("i") and hasattr(operator, name[1:]) else function
    known = _name_in_aten(function)
    places, name = ((torch, _NN, F), name) if known is None else ((torch.ops.aten,), known)
    for place in places:  # F.elu has other arguments than F.elu_, which is torch's own
        if _says_in_place(name) and hasattr(place, name[:-1]):
            return getattr(place, name[:-1])
    return function


def register_operation(function: Any, kind: Kind | str, *, make: MakeModule | None = None) -> None:
    """Teach what a function is, for tracing, planning and the rules of both frameworks.

    Parameters
    ----------
    function : callable
        The function, as forward calls it: one that tracing records (``torch.fx.wrap``, a custom
        ``torch.autograd.Function``'s ``apply``, a scripted function, an operator of ``torch.ops``).
    kind : Kind or str
        What it is: ``"elementwise"``, ``"movement"``, ``"selection"``, ``"linear"``, ``"sum"``, ``"product"``,
        ``"normaliser"`` or ``"not_differentiable"``. The data are its first argument; for sums and products its first
        two.
    make : callable, optional
        Makes the module that stands for a call, from the arguments after the first.

    Raises
    ------
    TypeError
        If ``function`` is not callable or a module, or ``make`` is not callable.
    ValueError
        If ``kind`` is not one of those, or the function is tried on numbers and is not of that kind. It is tried where
        it takes one tensor: a linear one or a movement whether it is additive, an element-wise one whether an output
        depends on other elements.
    """
    if not callable(function):
        raise TypeError(f"function is a {type(function).__name__}; it must be callable, as forward calls it.")
    if isinstance(function, nn.Module) or (isinstance(function, type) and issubclass(function, nn.Module)):
        raise TypeError(
            f"function is {function!r}, a module: teach it with register_activation, register_layer or register_norm, "
            "or the functions that its forward calls with register_operation."
        )
    if make is not None and not callable(make):
        raise TypeError(f"make is {make!r}; it must be a function that makes a module.")
    allowed = {k.name.lower(): k for k in (*WANTS_MODULE, *GRADIENT_IS_RULE, Kind.NOT_DIFFERENTIABLE)}
    found = allowed.get(kind.name.lower() if isinstance(kind, Kind) else str(kind))
    if found is None:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(sorted(map(repr, allowed)))}.")
    if found in _CLAIMS and any(_is_refuted(function, found, shape) for shape in _SHAPES):
        holder = getattr(function, "__self__", None)
        name = f"{holder.__name__}.{function.__name__}" if isinstance(holder, type) else _identifier(function)
        raise ValueError(f"{name} is not {found.name.lower()!r}: {_CLAIMS[found]}; teach what it is.")
    if found is Kind.SUM:  # of any number of terms: linear in all of them
        found = Kind.LINEAR
    function = _itself(function)
    _BY_FUNCTION[function] = Operation(_identifier(function), found, make, shares=True)
    Registry.changes += 1


_CLAIMS: Final = {
    Kind.LINEAR: "f(x) + f(y) is not f(x + y)",
    Kind.MOVEMENT: "f(x) + f(y) is not f(x + y)",
    Kind.ELEMENTWISE: "an output depends on more than the element of the input at its place",
}
_SHAPES: Final = ((2, 4, 6, 6), (2, 4, 6), (2, 4))


@torch.no_grad()
def _is_refuted(function: Callable[..., Any], kind: Kind, shape: tuple[int, ...]) -> bool:
    """Return whether a function turns out not to be what it is said to be; False where it does not take such input."""
    x, y = torch.rand(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4 - 2
    kept = torch.arange(x.numel()).view(shape) % 3 > 0
    third = x + y if kind is not Kind.ELEMENTWISE else torch.where(kept, x, y)
    try:
        of_x, of_y, of_third, again = (function(value.clone()) for value in (x, y, third, x))
        if not torch.equal(of_x, again):  # it draws random numbers
            return False
        error = of_third - (of_x + of_y if kind is not Kind.ELEMENTWISE else torch.where(kept, of_x, of_y))
        return bool(error.abs().max() > 1e-3 * max(of_x.abs().max(), of_y.abs().max(), of_third.abs().max()))
    except Exception:  # whatever it says to input that it is not for
        return False
