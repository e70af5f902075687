"""What tracing finds: the operations of a model in order, and the place in the source that wrote each.

Floor 0: imports torch alone.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Site:
    """Where an operation is written: the module whose forward wrote it, what it calls, and the how-manieth time.

    The same site is found again when only ``owner`` is traced with its children as leaves.

    Attributes
    ----------
    owner : str
        Path of the module whose forward contains the call; the empty string is the root.
    what : Hashable
        The function, the name of the method, or the identity of the child module that is called.
    occurrence : int
        How many calls of the same ``what`` come before it in that forward.
    """

    owner: str
    what: Hashable
    occurrence: int


@dataclass(frozen=True, eq=False)
class Flow:
    """A traced model.

    Attributes
    ----------
    graph : fx.Graph
        The operations in order.
    sites : dict
        The site of every call in the graph.
    constants : dict
        Tensors that forward creates anew, by the name under which the graph refers to them.
    expected : dict
        For each argument of the root that is not data alone, the pattern that the flow holds for.
    inputs, returns : dict
        What each container was called with and what it returned, with proxies for data, by path.
    values : dict
        The value of each node, where the flow was traced with values.
    decided : frozenset of str
        The containers whose course depended on such values, or on whether a gradient is wanted, and those that pass
        a module its input by name: they get a new forward.
    """

    graph: fx.Graph
    sites: dict[fx.Node, Site]
    constants: dict[str, Tensor]
    expected: dict[str, Any]
    inputs: dict[str, Inputs]
    returns: dict[str, Any]
    values: dict[fx.Node, Any]
    decided: frozenset[str]


@dataclass
class Frame:
    """A forward that is being traced: whose it is, and how often it has called what so far."""

    owner: str
    counts: Counter[Hashable] = field(default_factory=Counter[Hashable])
    stops_gradients: bool = False

    def site(self, what: Hashable) -> Site:
        """Return the site of the next call of ``what``."""
        occurrence = self.counts[what]
        self.counts[what] += 1
        return Site(self.owner, what, occurrence)
