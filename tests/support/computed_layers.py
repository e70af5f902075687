"""Layers whose weight or bias is computed anew for each forward, in every way that torch offers; a snapshot of them."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

Wrap = Callable[[nn.Module], object]


class Gain(nn.Module):
    """A parametrization of a user with a parameter of its own, which differs between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor.sinh() * self.gain + (1.0 if self.training else 0.0)


class Sum(nn.Module):
    """A parametrization by two tensors."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - right**2

    def right_inverse(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        return tensor + 0.25, torch.full_like(tensor, 0.5)


def old(function: Callable[..., object], *arguments: Any, **keywords: Any) -> Wrap:
    def wrap(layer: nn.Module) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return function(layer, *arguments, **keywords)

    return wrap


def on(name: str, parametrization: Callable[[], nn.Module]) -> Wrap:
    return lambda layer: parametrize.register_parametrization(layer, name, parametrization())


def both(*wraps: Wrap) -> Wrap:
    return lambda layer: [wrap(layer) for wrap in wraps]


PRUNE_WEIGHT = old(prune.random_unstructured, "weight", 0.5)
PRUNE_BIAS = old(prune.l1_unstructured, "bias", 2)
WEIGHT_NORM, SPECTRAL_NORM = old(nn.utils.weight_norm), old(nn.utils.spectral_norm)

WRAPS: dict[str, Wrap] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": on("weight", Gain),
    "own of two": on("weight", Sum),
    "own on bias": on("bias", Gain),
    "own on both": both(on("bias", Sum), on("weight", Gain)),
    "stacked": both(parametrizations.weight_norm, on("weight", Gain), on("weight", nn.Softsign), on("bias", Gain)),
    "old weight_norm": WEIGHT_NORM,
    "old weight_norm of all": old(nn.utils.weight_norm, dim=None),
    "old weight_norm of both": both(old(nn.utils.weight_norm, "bias"), WEIGHT_NORM),
    "old spectral_norm": SPECTRAL_NORM,
    "pruned": PRUNE_WEIGHT,
    "pruned twice": both(PRUNE_WEIGHT, old(prune.l1_unstructured, "weight", 0.4)),
    "pruned bias": PRUNE_BIAS,
    "pruned both": both(PRUNE_BIAS, PRUNE_WEIGHT),
    "old weight_norm, pruned bias": both(WEIGHT_NORM, PRUNE_BIAS),
    "old spectral_norm, own on bias": both(SPECTRAL_NORM, on("bias", Gain)),
    "pruned, own on bias": both(PRUNE_WEIGHT, on("bias", Gain)),
    "old weight_norm, own on weight_v": both(WEIGHT_NORM, on("weight_v", Gain)),
    "old weight_norm, pruned weight_v": both(WEIGHT_NORM, old(prune.l1_unstructured, "weight_v", 3)),
}


def wrapped(layer: nn.Module, wrap: Wrap) -> nn.Module:
    """Wrap a layer between two hooks of a user, and change its parameters since: what hooks have left is old."""
    layer.register_forward_pre_hook(lambda module, inputs: None)
    wrap(layer)
    layer.register_forward_pre_hook(lambda module, inputs: None)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5)
    return layer.eval()


def output(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what the layer computes in evaluation mode, without gradients; old attributes stay as they are."""
    before = {module: dict(vars(module)) for module in layer.modules()}
    with torch.no_grad():
        result = layer.eval()(x)
    for module, attributes in before.items():
        vars(module).update(attributes)
    return result


class Deep:
    """Everything about a module: each object by identity, the order of the keys in each dictionary, all values."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.state = module, list(self._walk(module))
        self.held = [value for _, value in self.state]  # so that no identity is given out again
        tensors = (value for value in self.held if isinstance(value, Tensor))
        self.values = [(tensor, tensor.detach().clone(), tensor.requires_grad) for tensor in tensors]

    @classmethod
    def _walk(cls, module: nn.Module, path: str = "") -> Iterator[tuple[object, object]]:
        yield path, type(module)
        yield path, vars(module)
        for name, value in vars(module).items():
            yield f"{path}.{name}", value
            if isinstance(value, dict):
                for key, item in value.items():
                    yield (path, name, key), item
        for name, child in vars(module)["_modules"].items():
            yield from cls._walk(child, f"{path}.{name}")

    def check(self) -> None:
        """Fail unless the module is itself again."""
        for (place, value), (place_now, value_now) in zip(self.state, self._walk(self.module), strict=True):
            assert place == place_now
            assert value is value_now, place
        for tensor, value, requires_grad in self.values:
            assert torch.equal(tensor, value)
            assert tensor.requires_grad is requires_grad
