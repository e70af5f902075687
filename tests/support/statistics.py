"""Random BatchNorm statistics that let no forgotten term pass; for deep networks scaled so that they stay finite."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.support.zoo import is_batch_norm

EPS = 0.01


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0, eps: float = 0.1, mild: bool = False) -> nn.Module:
    """Give every BatchNorm random statistics: weights of both signs, one zero, one tiny; a large eps.

    With ``mild`` all scales are positive and near one, as after training.
    """
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            width = norm.num_features
            norm.eps = eps
            norm.running_mean.copy_(torch.randn(width, generator=generator) * 0.5)
            norm.running_var.copy_(torch.rand(width, generator=generator) + 0.5)
            if norm.affine:
                norm.weight.copy_(torch.rand(width, generator=generator) * 0.5 + 0.75)
                norm.bias.copy_(torch.randn(width, generator=generator) * 0.3)
                if not mild:
                    norm.weight.mul_(torch.randint(0, 2, (width,), generator=generator) * 2 - 1)
                    norm.weight[0] = 0
                    norm.weight[-1] = 1e-20
    return model.eval()


@torch.no_grad()
def randomize_called(model: nn.Module, inputs: tuple[Tensor, ...], seed: int = 0) -> list[str]:
    """Give every BatchNorm random statistics, in place, and return the paths of those that forward calls.

    Weights have both signs and magnitudes around one, with some exact zeros and some tiny ones; biases and means are
    of scale 0.1 and not zero; variances are in [0.5, 1.5], and ``eps`` is 0.01 of their unit. The unit is one, and
    the mean square of the actual input where that is outside [0.01, 100]: random networks let activations explode or
    vanish over many layers, and then nobody would see a wrong shift. Parameters elsewhere that are zero or tiny
    everywhere (biases, layer scales, zero-initialised gains) get random values, so that they hide nothing.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    inputs : tuple of Tensor
        Its arguments.
    seed : int
        For the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {path: module for path, module in model.named_modules() if is_batch_norm(module)}
    owned = {id(tensor) for norm in norms.values() for tensor in norm.parameters(recurse=False)}
    for parameter in model.parameters():
        flat = parameter.flatten()
        if id(parameter) not in owned and flat.numel() and bool((flat == flat[0]).all()) and abs(float(flat[0])) < 0.01:
            parameter.copy_(0.1 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator))
    called: list[str] = []

    def prepare(path: str, norm: nn.Module, x: Tensor) -> None:
        if path not in called:
            square = float(x.square().mean())
            _randomize_norm(norm, square if square > 0 and not 0.01 <= square <= 100 else 1.0, generator)
            called.append(path)

    handles = [
        norm.register_forward_pre_hook(lambda module, args, path=path: prepare(path, module, args[0]))
        for path, norm in norms.items()
    ]
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    for path, norm in norms.items():
        if path not in called:
            _randomize_norm(norm, 1.0, generator)
    return called


def _randomize_norm(norm: nn.Module, unit: float, generator: torch.Generator) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return  # normalizes by the batch; canonize must refuse it
    width, scale = mean.numel(), unit**0.5
    norm.eps = EPS * unit
    mean.copy_(scale * _away_from_zero(width, generator))
    variance.copy_(unit * (torch.rand(width, generator=generator) + 0.5))
    if isinstance(norm.weight, Tensor):
        weight = (torch.rand(width, generator=generator) * 0.5 + 0.75).double()
        weight *= torch.randint(0, 2, (width,), generator=generator) * 2 - 1
        kind = torch.rand(width, generator=generator)
        weight[(kind < 0.03) & (width > 3)] = 0.0
        weight[(kind > 0.97) & (width > 3)] *= 1e-20
        if width > 3:  # one of each at least
            weight[0], weight[-1] = 0.0, 1e-20
        norm.weight.copy_(weight)
    if isinstance(norm.bias, Tensor):
        norm.bias.copy_(_away_from_zero(width, generator))


def _away_from_zero(width: int, generator: torch.Generator) -> Tensor:
    """Return random numbers of scale 0.1, none of them near zero."""
    values = torch.randn(width, generator=generator, dtype=torch.float64)
    return 0.1 * (values + 0.2 * values.sign())
