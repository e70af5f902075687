"""Max pooling behind an affine map: by the sign of the scale.

Floor 3: imports ``absorbed``, ``affine``, ``edits`` and ``forwards``.
"""

import torch
from torch import Tensor, nn

from canon_bridge.core.affine import Affine
from canon_bridge.core.modules.absorbed import per_channel
from canon_bridge.core.undo.edits import Edits
from canon_bridge.core.undo.forwards import bind_forward


def absorb_into_max_pool(edits: Edits, module: nn.Module, affine: Affine, clip_relevance: bool) -> Affine:
    r"""Turn a max pooling into a max or min pooling, channel by channel, and return the map left behind it.

    .. math:: \max_k (s x_k + b) = s \, \mathrm{pool}(x) + b, \qquad
              \mathrm{pool}(x) = \max_k x_k \; (s \geq 0), \quad \min_k x_k \; (s < 0)

    Parameters
    ----------
    edits : Edits
        The journal that records the writes.
    module : nn.Module
        The pooling; it gets a buffer ``pool_sign`` that moves with the module and stays out of ``state_dict``.
    affine : Affine
        What came before the pooling, scale :math:`s` and shift :math:`b` of shape ``(C,)``.
    clip_relevance : bool
        Without meaning here: the winner of each window takes all relevance.

    Returns
    -------
    Affine
        The same map.
    """
    sign = torch.where(affine.scale < 0, -1.0, 1.0).to(affine.scale.dtype)
    former = vars(module)["_buffers"].get("pool_sign")
    edits.set_buffer(module, "pool_sign", sign if former is None else sign * former)
    bind_forward(edits, module, _signed_pool)
    return affine


def _signed_pool(module: nn.Module, input: Tensor) -> Tensor:
    sign = per_channel(vars(module)["_buffers"]["pool_sign"], input)
    return type(module).forward(module, input * sign) * sign
