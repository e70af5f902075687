"""Which modules are one operation, because a table says what they compute.

Floor 6: imports the tables.
"""

from torch import nn

from canon_bridge.core.activations import ACTIVATIONS, MAX_POOLS
from canon_bridge.core.channels.through import THROUGH_MODULES
from canon_bridge.core.layers.linear import LINEAR
from canon_bridge.core.norms import NORMS
from canon_bridge.core.registry import find_entry


def is_known(module: nn.Module) -> bool:
    """Return whether the type of a module has an entry in one of the tables."""
    tables = (NORMS, LINEAR, ACTIVATIONS, MAX_POOLS, THROUGH_MODULES)
    return any(find_entry(table, module) is not None for table in tables)
