"""What ``torch.export`` of some versions cannot do, asked of torch itself."""

from functools import cache, partial

import torch
from torch import nn


@cache
def exports_forwards_of_instances() -> bool:
    """Return whether torch exports a module on which a forward was set; 2.6 does so only inside another module."""
    layer = nn.Linear(2, 2)
    layer.forward = partial(nn.Linear.forward, layer)
    try:
        torch.export.export(layer, (torch.ones(1, 2),), strict=False)
    except AttributeError:  # it asks the forward for its code
        return False
    return True


def exportable(twin: nn.Module) -> nn.Module:
    """Return the model, inside another where torch cannot export it itself."""
    return twin if exports_forwards_of_instances() else nn.Sequential(twin)
