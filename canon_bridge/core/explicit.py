"""Explicit modules: operations that a forward writes as functions or operators, as modules that rules can see.

One generic module for each kind of operation calls the function itself; where ``torch.nn`` has a module for it, that is
made instead, because rules, composites and users know its type.
"""

import copy
import itertools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.forwards import bound_function, forward_slots
from canon_bridge.core.layers.parameters import parameter
from canon_bridge.core.portable import portable
from canon_bridge.core.registry import TypeKey

MakeModule = Callable[..., nn.Module]
Operand = Tensor | float


@dataclass(frozen=True)
class Slot:
    """The place of a value in the arguments of a call."""

    index: int


def fill(structure: Any, values: tuple[Any, ...]) -> Any:
    """Return nested arguments with values in place of their slots."""
    if isinstance(structure, Slot):
        return values[structure.index]
    if isinstance(structure, tuple | list):
        return type(structure)([fill(item, values) for item in structure])
    if isinstance(structure, dict):
        return {key: fill(item, values) for key, item in structure.items()}
    if isinstance(structure, slice):
        return slice(*(fill(part, values) for part in (structure.start, structure.stop, structure.step)))
    return structure


class Explicit(nn.Module):
    """A call of a function, ``function(*args, **kwargs)``, as a module.

    Parameters
    ----------
    function : callable
        What is computed; it overwrites none of its arguments.
    args, kwargs : tuple, dict
        Its arguments, with a :class:`Slot` for each value that forward hands over: first those that carry the data of
        the input, then sizes and tensors of the model.
    data : int
        How many of the values carry data.
    """

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], data: int) -> None:
        super().__init__()
        self.function, self.args, self.kwargs, self.data_count = portable(function), args, kwargs, data

    def forward(self, *values: Any) -> Any:
        """Return what the function makes of the values."""
        return self.function(*fill(self.args, values), **fill(self.kwargs, values))

    def extra_repr(self) -> str:
        """Return the name of the function."""
        return str(getattr(self.function, "__name__", self.function))


class ElementWise(Explicit):
    r"""An element-wise function of one input, :math:`y_i = \phi(x_i)`: relevance passes as through an activation."""

    canonical_operation = "relu"


class LinearMap(Explicit):
    r"""A function that is linear in its data, :math:`y = A x`.

    Its rule is the epsilon rule, :math:`R_{in} = x \odot A^T (R / (y + \epsilon))`, LRP-0 of any linear map (Bach et
    al. 2015, eq. 58).
    """

    canonical_operation = "sum"


class Normaliser(Explicit):
    """A normalisation by statistics of the input itself: relevance passes as if these were constants."""

    canonical_operation = "layer_norm"


class Placed(Explicit):
    """A movement that may put several elements in one place: relevance goes to the one that stays there.

    The gradient that torch has for it goes to all of them.

    Parameters
    ----------
    function, args, kwargs, data
        See :class:`Explicit`.
    source : int
        Which of the values is put into places.
    """

    canonical_operation = "max_unpool2d"

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any], data: int, source: int) -> None:
        super().__init__(function, args, kwargs, data)
        self.source = source

    def forward(self, *values: Any) -> Any:
        """Return what the function makes of the values."""
        if values[self.source].requires_grad:
            values = tuple(self._staying(values) if i == self.source else value for i, value in enumerate(values))
        return super().forward(*values)

    @torch.no_grad()
    def _stays(self, values: tuple[Any, ...]) -> Tensor:
        """Return which elements of the source are in the result, by moving their numbers in their place."""
        source = values[self.source]
        blank = [torch.zeros_like(v, dtype=torch.float64) if _is_float(v) else v for v in values]
        blank[self.source] = torch.arange(1, source.numel() + 1, device=source.device).double().view(source.shape)
        moved = super().forward(*blank).long().flatten()
        found = torch.zeros(source.numel() + 1, dtype=torch.bool, device=source.device)
        return found.scatter(0, moved, torch.ones_like(moved, dtype=torch.bool))[1:].view(source.shape)

    def _staying(self, values: tuple[Any, ...]) -> Tensor:
        source = values[self.source]
        return torch.where(self._stays(values), source, source.detach())


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def with_item(target: Tensor, index: Any, value: Any) -> Tensor:
    """Return a copy of the target in which ``target[index] = value`` holds."""
    copied = target.clone()
    copied[index] = value
    return copied


class Unpooled(nn.Module):
    """A max unpooling; windows that overlap may have the same index.

    Parameters
    ----------
    unpool : nn.Module
        The module of torch.
    """

    def __init__(self, unpool: Any) -> None:
        super().__init__()
        function = getattr(F, f"max_unpool{type(unpool).__name__[-2:]}")
        args = (Slot(0), Slot(1), unpool.kernel_size, unpool.stride, unpool.padding, Slot(2))
        self.place = Placed(function, args, {}, 1, source=0)

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Any:
        """Return the input at the places that the indices say."""
        return self.place(input, indices, output_size)


class MaxPool1d(Explicit):
    """A max pooling whose window or output size is computed in forward from sizes, which it is handed besides."""

    canonical_operation = "max_pool1d"


class MaxPool2d(Explicit):
    """See :class:`MaxPool1d`."""

    canonical_operation = "max_pool2d"


class MaxPool3d(Explicit):
    """See :class:`MaxPool1d`."""

    canonical_operation = "max_pool3d"


class Arithmetic(nn.Module):
    """An operation on two operands of which one or both carry the data of the input.

    Parameters
    ----------
    signal : {0, 1} or None
        Which operand carries the signal: the only one with data (the other is a number or a tensor of the model), or,
        in products, the one that is no gate. None if both do, or if only their shapes tell.
    """

    def __init__(self, signal: int | None = None) -> None:
        super().__init__()
        self.signal = signal

    def extra_repr(self) -> str:
        """Return the arguments."""
        return "" if self.signal is None else f"signal={self.signal}"


class Add(Arithmetic):
    """Add two operands, ``y = a + b``, as a module of its own, so that rules and hooks can see the sum."""

    canonical_operation = "add"

    def forward(self, left: Operand, right: Operand) -> Any:
        """Return ``left + right``; shapes broadcast as in :func:`torch.add`."""
        return left + right


class Subtract(Arithmetic):
    """Subtract two operands, ``y = a - b``: for rules the sum of ``a`` and ``-b``."""

    canonical_operation = "sub"

    def forward(self, left: Operand, right: Operand) -> Any:
        """Return ``left - right``; shapes broadcast as in :func:`torch.sub`."""
        return left - right


class Multiply(Arithmetic):
    """Multiply two operands, ``y = a * b``: one of the two usually is a gate, or a factor."""

    canonical_operation = "mul"

    def forward(self, left: Operand, right: Operand) -> Any:
        """Return ``left * right``; shapes broadcast as in :func:`torch.mul`."""
        return left * right


class Divide(Arithmetic):
    """Divide two operands, ``y = a / b``; the signal is in the numerator."""

    canonical_operation = "div"

    def forward(self, left: Operand, right: Operand) -> Any:
        """Return ``left / right``; shapes broadcast as in :func:`torch.div`."""
        return left / right


class Product(Explicit):
    """A function that is linear in each of several values that carry data, such as a product of matrices.

    The signal takes all relevance, by the epsilon rule of the map that the other values make it; where no value is
    known to be the signal, each gets an equal share.

    Parameters
    ----------
    function, args, kwargs, data
        See :class:`Explicit`.
    signal : int or None
        Which of the values with data is the signal.
    """

    canonical_operation = "matmul"

    def __init__(
        self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any], data: int, signal: int | None = None
    ) -> None:
        super().__init__(function, args, kwargs, data)
        self.signal = signal


class Gated(nn.Module):
    r"""The gated linear unit, :math:`y = a \odot \sigma(b)` for the halves :math:`a, b` of the input.

    Parameters
    ----------
    dim : int, default -1
        The dimension that is halved.

    References
    ----------
    Dauphin et al. 2017, "Language Modeling with Gated Convolutional Networks".
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim
        self.gate, self.multiply = nn.Sigmoid(), Multiply(signal=0)

    def forward(self, input: Tensor) -> Any:
        """Return the first half times the sigmoid of the second."""
        signal, gate = input.chunk(2, self.dim)
        return self.multiply(signal, self.gate(gate))


def signal_of(signal: int | None, left: Operand, right: Operand) -> int | None:
    """Return which operand of a product carries the signal: as stated, else the only tensor, else the larger one.

    None if both are of one size: then neither is known to be a gate, and each gets half of the relevance.
    """
    if signal is not None:
        return signal
    sizes = [operand.numel() if isinstance(operand, Tensor) else 0 for operand in (left, right)]
    return None if sizes[0] == sizes[1] else int(sizes[0] < sizes[1])


class BatchNorm(nn.Module):
    """A BatchNorm by running statistics that a forward computes by :func:`torch.nn.functional.batch_norm`.

    Parameters
    ----------
    running_mean, running_var : Tensor
        Shape ``(C,)``; the very tensors of the module that the forward belongs to.
    weight, bias : Tensor or None
        Shape ``(C,)``.
    eps : float
        Added to the variance.
    """

    canonical_operation = "batch_norm"

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self, running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> None:
        super().__init__()
        self.register_buffer("running_mean", running_mean, persistent=False)
        self.register_buffer("running_var", running_var, persistent=False)
        for name, value in (("weight", weight), ("bias", bias)):
            if value is None or isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value, persistent=False)
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized input, ``(N, C, *spatial)``."""
        mean, variance, weight, bias = self.running_mean, self.running_var, self.weight, self.bias
        return F.batch_norm(input, mean, variance, weight, bias, eps=self.eps)


class OfRank(nn.Identity):
    """The identity for input with a given number of dimensions; where a merge holds for no other.

    Parameters
    ----------
    ranks : tuple of int
        Numbers of dimensions, the batch and the channels included.
    """

    canonical_operation = "identity"

    def __init__(self, ranks: tuple[int, ...]) -> None:
        super().__init__()
        self.ranks = ranks

    def forward(self, input: Tensor) -> Tensor:
        """Return the input; raise ``ValueError`` if it has another number of dimensions."""
        if input.dim() not in self.ranks:
            wanted = " or ".join(map(str, self.ranks))
            raise ValueError(f"this copy was canonized for {wanted} dimensions here, but got {tuple(input.shape)}.")
        return input


class Selected(nn.Module):
    """Select channels of the input, ``(N, C, *spatial)``: what was computed for this reader among several.

    Parameters
    ----------
    index : tuple of int
        The place of each output channel in the input.
    rest : tuple of int
        The output channels that go through ``linear`` besides.
    ranks : tuple of int
        Numbers of dimensions that the input may have.
    linear : nn.Module, optional
        What maps the rest.
    """

    canonical_operation = "index_select"

    def __init__(
        self,
        index: tuple[int, ...],
        rest: tuple[int, ...] = (),
        ranks: tuple[int, ...] = (4,),
        linear: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.ranks, self.width = ranks, len(index)
        after = {channel: place for place, channel in enumerate(rest)}
        # Neighbours are taken at once: (from the input or from the linear layer, first, number).
        self.of_rest = tuple((False, *run) for run in _runs([index[channel] for channel in rest]))
        places = [(channel in after, after.get(channel, place)) for channel, place in enumerate(index)]
        self.parts: tuple[tuple[bool, int, int], ...] = tuple(
            (is_rest, first, number)
            for is_rest, group in itertools.groupby(places, key=operator.itemgetter(0))
            for first, number in _runs([place for _, place in group])
        )
        self.linear = linear

    def forward(self, input: Tensor) -> Tensor:
        """Return the selected channels; raise ``ValueError`` where the input has another number of dimensions."""
        if input.dim() not in self.ranks:
            wanted = " or ".join(map(str, self.ranks))
            raise ValueError(f"the model was canonized for {wanted} dimensions here, but got {tuple(input.shape)}.")
        rest = None if self.linear is None else self.linear(_joined(self.of_rest, input, None))
        return _joined(self.parts, input, rest)

    def extra_repr(self) -> str:
        """Return the number of channels."""
        return f"{self.width} channels"


def _runs(places: list[int]) -> list[tuple[int, int]]:
    """Return runs of successive numbers: the first of each, and how many."""
    runs: list[tuple[int, int]] = []
    for place in places:
        first, number = runs[-1] if runs else (place, 0)
        if runs and first + number == place:
            runs[-1] = first, number + 1
        else:
            runs.append((place, 1))
    return runs


def _joined(parts: tuple[tuple[bool, int, int], ...], input: Tensor, rest: Tensor | None) -> Tensor:
    sources = (rest if is_rest and rest is not None else input for is_rest, _, _ in parts)
    pieces = [source.narrow(1, first, number) for source, (_, first, number) in zip(sources, parts, strict=True)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


def stand_in(module: nn.Module, known: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """Return a module for another call of ``module``: same types, same tensors, dictionaries and children of its own.

    Rules keep what one call has seen, so each call needs a module. Hooks that are on the module now are called for
    every call; hooks added later are added to one of them.
    """
    known = {} if known is None else known
    if module in known:
        return known[module]
    # Not by copy.copy, which asks the class: one with parametrizations refuses, others leave something out.
    twin = known[module] = object.__new__(type(module))
    for name, value in vars(module).items():
        vars(twin)[name] = copy.copy(value) if isinstance(value, dict | set) else value
    bound = bound_function(module)
    if bound is not None:  # a forward of canonization's own is bound to its module
        vars(twin).update(forward_slots(twin, bound[0], *bound[1]))
    children: dict[str, nn.Module | None] = vars(twin)["_modules"]
    children.update({name: child and stand_in(child, known) for name, child in children.items()})
    return twin


# Modules of torch that are several operations in one, or have a wrong gradient, and what makes the right module of one.
EXPANSIONS: Final[Mapping[TypeKey, Callable[[Any], nn.Module]]] = {
    nn.GLU: lambda glu: Gated(glu.dim),
    **dict.fromkeys((nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d), Unpooled),
}


# Builders: modules of torch.nn from the arguments of functions, where the two differ. Each raises ``ValueError`` for
# arguments that have no module form.


def max_pool(module: MakeModule) -> MakeModule:
    """Return what makes a max pooling from the arguments of the function, which are in another order."""

    def build(
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> nn.Module:
        return module(kernel_size, stride, padding, dilation, return_indices, ceil_mode)

    return build


def clamp(min: Any = None, max: Any = None) -> nn.Module:
    """Return the module of a clamp: from zero, or between two numbers."""
    if min == 0 and max is None:
        return nn.ReLU()
    if not isinstance(min, int | float) or not isinstance(max, int | float) or not min < max:
        raise ValueError("clamp has a module of torch only between two numbers, or from 0")
    return nn.Hardtanh(min, max)


def clamp_min(min: Any) -> nn.Module:
    """Return the module of a clamp from zero."""
    return clamp(min)


def elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> nn.Module:
    """Return the module of an ELU, from the arguments of the function or of torch's own ``elu_``."""
    if (float(scale), input_scale) != (1.0, 1.0):
        raise ValueError("a scaled elu has no module of torch")
    return nn.ELU(alpha)


def rrelu(lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> nn.Module:
    """Return the randomized leaky ReLU, which has the mean of two slopes when it is not trained."""
    if training:
        raise ValueError("its slopes are random")
    return nn.RReLU(lower, upper)


def prelu(weight: Any) -> nn.Module:
    """Return the PReLU with the given slopes."""
    return _with_tensors(nn.PReLU(weight.numel(), device="meta"), weight=weight)


def batch_norm(
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> nn.Module:
    """Return the module of a normalization by running statistics."""
    if training or running_mean is None or running_var is None:
        raise ValueError("batch_norm by the statistics of the batch is not an affine map")
    return BatchNorm(running_mean, running_var, weight, bias, eps)


def instance_norm(
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> nn.Module:
    """Return the module of a normalization by running statistics, which is the same for batches and instances."""
    if use_input_stats:
        raise ValueError("instance_norm by the statistics of the input is not an affine map")
    return batch_norm(running_mean, running_var, weight, bias, False, momentum, eps)


def linear(weight: Any, bias: Any = None) -> nn.Module:
    """Return the linear layer with the given tensors."""
    return _with_tensors(nn.Linear(weight.shape[1], weight.shape[0], device="meta"), weight=weight, bias=bias)


def convolution(
    weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> nn.Module:
    """Return the convolution with the given tensors, of as many dimensions as its weight has."""
    out_channels, in_channels, *kernel = weight.shape
    module, sizes = getattr(nn, f"Conv{len(kernel)}d"), (in_channels * groups, out_channels, tuple(kernel))
    made = module(*sizes, stride, padding, dilation, groups, device="meta")
    return _with_tensors(made, weight=weight, bias=bias)


def transposed_convolution(
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> nn.Module:
    """Return the transposed convolution with the given tensors, of as many dimensions as its weight has."""
    in_channels, out_channels, *kernel = weight.shape
    module, sizes = getattr(nn, f"ConvTranspose{len(kernel)}d"), (in_channels, out_channels * groups, tuple(kernel))
    made = module(*sizes, stride, padding, output_padding, groups, dilation=dilation, device="meta")
    return _with_tensors(made, weight=weight, bias=bias)


def any_convolution(
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> nn.Module:
    """Return a convolution, transposed or not."""
    if transposed:
        return transposed_convolution(weight, bias, stride, padding, output_padding, groups, dilation)
    return convolution(weight, bias, stride, padding, dilation, groups)


def _with_tensors(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Put tensors of the model, or what it computes from them, into a new layer; parameters as they are."""
    for name, value in tensors.items():
        if value is not None and not isinstance(value, nn.Parameter):
            value = parameter(value, value.requires_grad)
        vars(module)["_parameters"][name] = value
    return module
