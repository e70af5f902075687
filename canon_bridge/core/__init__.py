"""The core: it needs torch alone and names no attribution framework. Adapters and the audit import these names only.

``canonize``, ``plan`` and ``canonized_copy`` are names of ``canon_bridge`` itself: two of them are modules here.
"""

from canon_bridge.core.activations import is_relu, pool_sign, register_activation, stopped_at
from canon_bridge.core.affine import Affine
from canon_bridge.core.alerts import (
    FunctionChangedError,
    LostChangeWarning,
    PrecisionWarning,
    UncoveredOperationWarning,
)
from canon_bridge.core.apply import merge
from canon_bridge.core.canonize import Canonization
from canon_bridge.core.explicit import (
    Add,
    Arithmetic,
    BatchNorm,
    Divide,
    ElementWise,
    Explicit,
    LinearMap,
    Multiply,
    Normaliser,
    OfRank,
    Operand,
    Placed,
    Product,
    Selected,
    Subtract,
    signal_of,
    stand_in,
)
from canon_bridge.core.forwards import bind_forward, by_position
from canon_bridge.core.layers.linear import LINEAR, is_linear, register_layer
from canon_bridge.core.norms import check_norm, is_norm, normalized, register_norm, width
from canon_bridge.core.obstacles import check_module
from canon_bridge.core.operations import Kind, operation_of_module, register_operation
from canon_bridge.core.options import Backend, Clipped, ExampleInputs, LeftoverOption, Options, Prefer, Scope
from canon_bridge.core.plan import Chain, Leftover, Merge, Plan, Refusal, Step, Uncovered, Untangled
from canon_bridge.core.precision import tensors_in
from canon_bridge.core.restore import Edits
from canon_bridge.core.tables import align, folded, html_table
from canon_bridge.core.trace.flow import OtherCourseError, TracingError, fits_defaults
from canon_bridge.core.uncovered import kind_for_rules, warn_uncovered

__all__ = [
    "LINEAR",
    "Add",
    "Affine",
    "Arithmetic",
    "Backend",
    "BatchNorm",
    "Canonization",
    "Chain",
    "Clipped",
    "Divide",
    "Edits",
    "ElementWise",
    "ExampleInputs",
    "Explicit",
    "FunctionChangedError",
    "Kind",
    "Leftover",
    "LeftoverOption",
    "LinearMap",
    "LostChangeWarning",
    "Merge",
    "Multiply",
    "Normaliser",
    "OfRank",
    "Operand",
    "Options",
    "OtherCourseError",
    "Placed",
    "Plan",
    "PrecisionWarning",
    "Prefer",
    "Product",
    "Refusal",
    "Scope",
    "Selected",
    "Step",
    "Subtract",
    "TracingError",
    "Uncovered",
    "UncoveredOperationWarning",
    "Untangled",
    "align",
    "bind_forward",
    "by_position",
    "check_module",
    "check_norm",
    "fits_defaults",
    "folded",
    "html_table",
    "is_linear",
    "is_norm",
    "is_relu",
    "kind_for_rules",
    "merge",
    "normalized",
    "operation_of_module",
    "pool_sign",
    "register_activation",
    "register_layer",
    "register_norm",
    "register_operation",
    "signal_of",
    "stand_in",
    "stopped_at",
    "tensors_in",
    "warn_uncovered",
    "width",
]
