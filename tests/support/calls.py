"""Ways to write an operation that becomes a module as a call of a function or a method, by the name of its entry.

A way takes the function (or the method, as a function), a model with tensors, and two inputs. A spelling that does
not know the arguments of a way raises ``TypeError`` and is left out.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPES = {1: (2, 3, 12), 2: (2, 3, 9, 12), 3: (2, 3, 6, 7, 8)}

Way = Callable[..., Any]


class Tensors(nn.Module):
    """Parameters and buffers that forward may use; ``function(self, x, y)`` is its forward."""

    def __init__(self, function: Way, rank: int = 2) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(5, 3, *(3,) * rank) + 0.3)
        self.grouped = nn.Parameter(torch.randn(6, 1, *(3,) * rank) + 0.3)
        self.backward_weight = nn.Parameter(torch.randn(3, 5, *(3,) * rank) + 0.3)
        self.bias = nn.Parameter(torch.randn(5))
        self.wide = nn.Parameter(torch.randn(6))
        self.features = nn.Parameter(torch.randn(5, 12))
        self.gain, self.offset = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("variance", torch.rand(3) + 0.5)
        self.double().eval()

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(self, x, y)


# Other names of an operation, besides that of the entry.
ALSO: dict[str, tuple[str, ...]] = {
    "sub": ("subtract", "isub"),
    "mul": ("multiply", "imul"),
    "div": ("divide", "true_divide", "truediv", "itruediv"),
    "add": ("iadd",),
    "neg": ("negative",),
    "clamp": ("clip",),
    "logsigmoid": ("log_sigmoid",),
}


def spellings(name: str) -> Iterator[tuple[str, Any]]:
    """Yield every function of torch, and the name of every method of tensors, that has one of the names of an entry."""
    known: set[int] = set()
    names = [spelling for base in (name, *ALSO.get(name, ())) for spelling in (base, f"{base}_")]
    for home, title in ((torch, "torch"), (F, "F"), (torch.special, "special"), (operator, "operator")):
        for spelling in names:
            found = getattr(home, spelling, None)
            if callable(found) and id(found) not in known:
                known.add(id(found))
                yield f"{title}.{spelling}", found
    for spelling in names:
        if hasattr(Tensor, spelling):
            yield f"Tensor.{spelling}", spelling


def spelled(target: Any) -> Callable[..., Any]:
    """Return a spelling as a function."""
    if not isinstance(target, str):
        return target

    def method(input: Tensor, *args: Any, **keywords: Any) -> Any:
        return getattr(input, target)(*args, **keywords)

    return method


def rank_of(name: str) -> int:
    return int(name[-2]) if name.endswith("d") and name[-2:-1].isdigit() else 2


def inputs(name: str) -> tuple[Tensor, Tensor]:
    shape = SHAPES[rank_of(name)]
    return torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)


def _with(*args: Any, **keywords: Any) -> Way:
    return lambda f, m, x, y: f(x, *args, **keywords)


def _activation(*arguments: Way) -> list[Way]:
    """Return the ways with the given arguments, and all ways to say that it works in place."""
    return [
        *arguments,
        lambda f, m, x, y: f(input=x),
        _with(inplace=True),
        _with(inplace=False),
        lambda f, m, x, y: f(input=x, inplace=True),
        _with(True) if not arguments[1:] else _with(inplace=True),
    ]


def _sums(*more: Way) -> list[Way]:
    return [
        lambda f, m, x, y: f(x, y),
        lambda f, m, x, y: f(y, x),
        lambda f, m, x, y: f(x, x),
        lambda f, m, x, y: f(x, other=y),
        lambda f, m, x, y: f(input=x, other=y),
        lambda f, m, x, y: f(other=y, input=x),
        *more,
    ]


def _average(rank: int) -> list[Way]:
    return [
        *(_with(3), _with(3, 2), _with(3, None, 1), _with(2, 2, 1, True, False)),
        _with(kernel_size=3, stride=2, padding=1, count_include_pad=False),
        _with(kernel_size=3, stride=2, ceil_mode=True),
        lambda f, m, x, y: f(input=x, kernel_size=2, stride=1),
        *(_with(3, padding=1, stride=2), _with(3, 2, 1, False, True, 5), _with(2, divisor_override=3)),
        _with([3, 2, 1][:rank], (1, 2, 3)[:rank]),
    ]


def _maximum(rank: int) -> list[Way]:
    return [
        *(_with(3), _with(3, 2), _with(2, 1, 1, 2), _with(3, 2, 1, 1, True)),
        _with(kernel_size=3, stride=2, padding=1, dilation=2, ceil_mode=True),
        lambda f, m, x, y: f(input=x, kernel_size=2, stride=1),
        *(_with(2, dilation=3, stride=1), _with((2,), padding=0), _with(2, return_indices=False)),
    ]


def _adaptive(rank: int) -> list[Way]:
    sizes: list[Any] = [1, 5, 15, (4,) * rank, *([(None, 2, 1)[:rank], [3, 1, 2][:rank]] if rank > 1 else [])]
    return [*(_with(size) for size in sizes), _with(output_size=2), lambda f, m, x, y: f(input=x, output_size=2)]


def _convolution(*more: Way) -> list[Way]:
    return [
        lambda f, m, x, y: f(x, m.weight),
        lambda f, m, x, y: f(x, m.weight, m.bias, 2, 1),
        lambda f, m, x, y: f(x, m.weight, bias=m.bias, stride=2, padding=2, dilation=2),
        lambda f, m, x, y: f(input=x, weight=m.weight, bias=None, padding=1),
        lambda f, m, x, y: f(x, m.grouped, m.wide, 1, 1, 1, 3),
        lambda f, m, x, y: f(x, m.weight, padding="same"),
        lambda f, m, x, y: f(x, m.weight * 2 - m.weight.mean(), m.bias.exp()),
        lambda f, m, x, y: f(x, torch.tanh(m.weight), (m.bias + 1) / 2, padding="valid"),
    ]


_TRANSPOSED: list[Way] = [
    lambda f, m, x, y: f(x, m.backward_weight),
    lambda f, m, x, y: f(x, m.backward_weight, m.bias, 2, 1, 1),
    lambda f, m, x, y: f(x, m.backward_weight, bias=m.bias, stride=2, output_padding=1, dilation=2),
    lambda f, m, x, y: f(x, m.grouped[:3], m.gain, 1, 0, 0, 3, 2),
    lambda f, m, x, y: f(input=x, weight=m.backward_weight.exp(), bias=None),
]

WAYS: dict[str, list[Way]] = {
    "add": _sums(
        lambda f, m, x, y: f(x, y, alpha=1),
        lambda f, m, x, y: f(input=x, other=y, alpha=1.0),
    ),
    "sub": [way for number, way in enumerate(_sums(lambda f, m, x, y: f(x, y, alpha=1))) if number != 2],  # x - x
    "div": _sums(lambda f, m, x, y: f(x, m.mean[0]), lambda f, m, x, y: f(x, y.mean((2, 3), keepdim=True))),
    "neg": [lambda f, m, x, y: f(x), lambda f, m, x, y: f(input=x), lambda f, m, x, y: f(y)],
    "mul": _sums(lambda f, m, x, y: f(x.sigmoid(), y), lambda f, m, x, y: f(x, y.mean((2, 3), keepdim=True))),
    "linear": [
        lambda f, m, x, y: f(x, m.features),
        lambda f, m, x, y: f(x, m.features, m.bias),
        lambda f, m, x, y: f(input=x, weight=m.features, bias=m.bias),
        lambda f, m, x, y: f(x, m.features.abs(), bias=m.bias * 2),
    ],
    **{f"conv{rank}d": _convolution() for rank in SHAPES},
    **{f"conv_transpose{rank}d": _TRANSPOSED for rank in SHAPES},
    **{f"avg_pool{rank}d": _average(rank) for rank in SHAPES},
    **{f"max_pool{rank}d": _maximum(rank) for rank in SHAPES},
    **{f"adaptive_avg_pool{rank}d": _adaptive(rank) for rank in SHAPES},
    **{f"adaptive_max_pool{rank}d": _adaptive(rank) for rank in SHAPES},
    "mean": [
        *(_with((2, 3)), _with([2, 3]), _with(-1), _with(3, True), _with((-1, -2), keepdim=True), _with(2, False)),
        *(_with(dim=[2, 3]), _with(dim=(-2, -1), keepdim=True), _with(dim=3, keepdim=False), _with(1)),
        lambda f, m, x, y: f(input=x, dim=(2, 3)),
    ],
    "interpolate": [
        *(_with(None, 2), _with((5, 7)), _with(size=11), _with(scale_factor=(2.0, 0.5)), _with(scale_factor=1.7)),
        _with(scale_factor=2, mode="bilinear", align_corners=True),
        _with(scale_factor=2, mode="bilinear", align_corners=False),
        _with(size=[4, 20], mode="bicubic"),
        _with(None, 1.7, "bilinear", False, True),
        _with(scale_factor=1.7, mode="nearest-exact"),
        _with(size=(4, 5), mode="area"),
        lambda f, m, x, y: f(input=x, size=(3, 3), antialias=False),
    ],
    "batch_norm": [
        lambda f, m, x, y: f(x, m.mean, m.variance, m.gain, m.offset, False, 0.1, 0.2),
        lambda f, m, x, y: f(x, m.mean, m.variance),
        lambda f, m, x, y: f(x, m.mean, m.variance, weight=m.gain, eps=0.3),
        lambda f, m, x, y: f(x, running_var=m.variance, running_mean=m.mean, bias=m.offset, training=m.training),
        lambda f, m, x, y: f(input=x, running_var=m.variance, running_mean=m.mean.abs(), weight=m.gain.exp()),
        lambda f, m, x, y: f(x, m.gain, m.offset, m.mean, m.variance, False, 0.1, 0.2, True),
        lambda f, m, x, y: f(x, None, None, m.mean, m.variance, False, 0.1, 0.2, False),
    ],
    "clamp": [
        *(_with(0, 6), _with(min=-0.5, max=0.7), _with(max=0.7, min=-1), _with(0), _with(min=0), _with(0.0)),
        lambda f, m, x, y: f(input=x, min=0, max=None),
    ],
    "clamp_min": [_with(0), _with(0.0), _with(min=0), lambda f, m, x, y: f(input=x, min=0)],
    "prelu": [
        lambda f, m, x, y: f(x, m.gain),
        lambda f, m, x, y: f(x, weight=m.gain),
        lambda f, m, x, y: f(input=x, weight=m.gain[:1]),
    ],
    "hardtanh": _activation(_with(), _with(-0.5, 2.0), _with(min_val=0.0, max_val=0.7), _with(-0.5, 2.0, True)),
    "leaky_relu": _activation(_with(), _with(0.3), _with(negative_slope=0.3), _with(0.3, True)),
    "elu": _activation(_with(), _with(1.3), _with(alpha=1.3), _with(alpha=1.3, inplace=True)),
    "celu": _activation(_with(), _with(0.6), _with(alpha=0.6), _with(0.6, True)),
    "gelu": _activation(_with(), _with(approximate="tanh"), _with(approximate="none")),
    "softplus": _activation(_with(), _with(2.0), _with(2.0, 5.0), _with(beta=3, threshold=1)),
    "softshrink": _activation(_with(), _with(0.3), _with(lambd=0.2)),
    "hardshrink": _activation(_with(), _with(0.3), _with(lambd=0.2)),
    "threshold": [_with(0.2, -0.3), _with(threshold=0.2, value=-0.3), _with(0.2, -0.3, True)],
}
_OTHERS = ("relu", "relu6", "selu", "silu", "mish", "hardswish", "hardsigmoid")
for _name in (*_OTHERS, "sigmoid", "tanh", "logsigmoid", "softsign", "tanhshrink"):
    WAYS[_name] = _activation(_with())


def accepted(target: Any, name: str) -> list[Way]:
    """Return the ways of the entry that this spelling knows, as functions of a model and two inputs."""
    found: list[Way] = []
    call, rank = spelled(target), rank_of(name)
    for way in WAYS[name]:
        model = Tensors(lambda m, x, y, way=way: way(call, m, x, y), rank)
        try:
            result = model(*inputs(name))
        except (TypeError, RuntimeError):
            continue
        if isinstance(result, Tensor):  # some put out indices, too
            found.append(model.function)
    return found
