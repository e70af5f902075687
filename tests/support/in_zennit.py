"""How zennit is called, and the composite that it has no name for."""

import torch
from torch import Tensor, nn
from zennit.composites import LayerMapComposite
from zennit.core import Composite
from zennit.layer import Sum
from zennit.rules import Epsilon, Norm, Pass
from zennit.types import Activation, AvgPool, BatchNorm, Linear

TARGET = 3


def epsilon_composite(epsilon: float, canonizers) -> Composite:
    """Return a composite with epsilon on all linear layers and the same stabilizer on pools and sums."""
    layer_map = [
        (Activation, Pass()),
        (BatchNorm, Pass()),
        (Sum, Norm(epsilon)),
        (AvgPool, Norm(epsilon)),
        (Linear, Epsilon(epsilon)),
    ]
    return LayerMapComposite(layer_map, canonizers=canonizers)


def attribute(model: nn.Module, x: Tensor, composite: Composite) -> Tensor:
    """Return zennit's relevance with the target's score as the output gradient, as Captum scales it."""
    with composite.context(model) as modified:
        x = x.detach().clone().requires_grad_()
        output = modified(x)
        score = torch.zeros_like(output)
        score[:, TARGET] = output[:, TARGET].detach()
        return torch.autograd.grad(output, x, score)[0]
