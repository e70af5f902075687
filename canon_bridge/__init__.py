"""Canonize any PyTorch network for rule-based attribution, inside a ``with`` block.

This package and ``canon_bridge.core`` need torch alone; ``canon_bridge.zennit`` and ``canon_bridge.captum`` need
the framework of that name. The command line is ``canon_bridge.cli``.
"""

from canon_bridge.auditing.audit import audit
from canon_bridge.auditing.report import Audit
from canon_bridge.core import (
    Affine,
    Canonization,
    FunctionChangedError,
    Kind,
    Leftover,
    LostChangeWarning,
    Merge,
    OtherCourseError,
    Plan,
    PrecisionWarning,
    Refusal,
    TracingError,
    Uncovered,
    UncoveredOperationWarning,
    Untangled,
    register_activation,
    register_layer,
    register_norm,
    register_operation,
)
from canon_bridge.core.canonize import canonize, canonized_copy, plan

__version__ = "0.2.0"

__all__ = [
    "Affine",
    "Audit",
    "Canonization",
    "FunctionChangedError",
    "Kind",
    "Leftover",
    "LostChangeWarning",
    "Merge",
    "OtherCourseError",
    "Plan",
    "PrecisionWarning",
    "Refusal",
    "TracingError",
    "Uncovered",
    "UncoveredOperationWarning",
    "Untangled",
    "audit",
    "canonize",
    "canonized_copy",
    "plan",
    "register_activation",
    "register_layer",
    "register_norm",
    "register_operation",
]
