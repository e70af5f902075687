"""Canonize any PyTorch network for rule-based attribution, inside a ``with`` block.

This package and ``canon_bridge.core`` need torch alone; ``canon_bridge.zennit`` and ``canon_bridge.captum`` need
the framework of that name.
"""

from canon_bridge.auditing.audit import audit
from canon_bridge.auditing.report import Audit
from canon_bridge.core.activations import register_activation
from canon_bridge.core.affine import Affine
from canon_bridge.core.canonize import Canonization, canonize, canonized_copy, plan
from canon_bridge.core.layers.linear import register_layer
from canon_bridge.core.norms import register_norm
from canon_bridge.core.plan import Leftover, Merge, Plan, Refusal
from canon_bridge.core.trace.flow import TracingError
from canon_bridge.core.undo.alerts import LostChangeWarning, PrecisionWarning

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "Audit",
    "Canonization",
    "Leftover",
    "LostChangeWarning",
    "Merge",
    "Plan",
    "PrecisionWarning",
    "Refusal",
    "TracingError",
    "audit",
    "canonize",
    "canonized_copy",
    "plan",
    "register_activation",
    "register_layer",
    "register_norm",
]
