"""What tracing finds: the operations of a model in order, and the place in the source that wrote each."""

import copy
import dataclasses
import functools
import inspect
import operator
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, cast

from torch import Tensor, fx

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Question = tuple[Any, ...]

# Types of values that choose a course in forward instead of carrying data, unless they were computed from data.
CONSTANTS: Final[frozenset[type]] = frozenset({type(None), bool, str, int, float})
_DICTIONARIES: Final = (dict, OrderedDict)


class TracingError(RuntimeError):
    """Raise when the data flow of a model cannot be found; the message names the module and the cause."""


class CannotBeWrittenError(RuntimeError):
    """A forward does what a new one would not; the message says what to do, which example inputs do not help with."""


class OtherCourseError(ValueError):
    """Raise when a canonical model is called with values on which its forward would take another course."""


@dataclass(frozen=True)
class Site:
    """Where an operation is written: the forward that wrote it, what it calls, and how many such calls come before.

    The same site is found again when only the owner is traced with its children as leaves.

    Attributes
    ----------
    owner : str
        The module whose forward contains the call, by its path in the canonical model; the empty string is the root.
    what : Hashable
        The function, the name of the method, or the identity of the child module that is called.
    occurrence : int
        How many calls of the same ``what`` come before it in that forward.
    """

    owner: str
    what: Hashable
    occurrence: int


@dataclass(eq=False)
class Flow:
    """A traced model.

    Attributes
    ----------
    graph : fx.Graph
        The operations in order.
    sites : dict
        The site of every call in the graph.
    places : dict
        The path, in the canonical model, of the module that each node calls: where a module is called several times,
        each further call is that of a stand-in.
    stand_ins : dict
        By the site of a further call the path of the stand-in.
    originals : dict
        By the path of a stand-in, or of a module in one, the path of the module that it stands for.
    owners : list of str
        The forwards that were traced, in the order in which they began.
    constants : dict
        Tensors that forward creates anew, by the name under which the graph refers to them.
    expected : dict
        For each argument of the root that is not data alone, the pattern that the flow holds for.
    inputs : dict
        What each container was called with, with proxies for data, by path.
    returns : dict
        What it returned, by the site of the call.
    values : dict
        The value of each node, where the flow was traced with values.
    decided : set of str
        The containers whose course depended on such values, or on whether a gradient is wanted, those that switch
        gradients off, and those that pass a module its input by name: they get a new forward.
    checks : dict
        For each such container what finds out whether a value that its course depends on is known whatever the input
        is (None if it is not).
    decisions : dict
        What the course depended on and is known without values (the number of dimensions, of channels), by site and
        by what was asked, ``len``, ``bool`` or ``int``.
    reread : dict
        For each call in place the containers that read, by its former name, the tensor that it has overwritten.
    written : dict
        What forwards wrote on modules, by the path of the module and the name of the attribute; for a single
        container what it wrote on itself, with nodes for data, which the graph puts out after the result.
    former : list
        What was in the lists, dictionaries, sets and objects beside the model that forwards write into.
    filled : dict
        By the site of a call the lists and dictionaries among its arguments that a container has written into, as it
        has left them, by position or name.
    altered : set of str
        The modules of which another forward sets attributes, or exchanges tensors, before it calls them.
    without_gradient : set of fx.Node
        The calls that forward makes with gradients switched off.
    depends_on : set of tuple
        The questions on whose answers it depends what forward computes: whether a gradient is wanted
        (``("requires_grad",)``), or how it is run (the name of a function of torch and its arguments).
    """

    graph: fx.Graph = field(default_factory=fx.Graph)
    sites: dict[fx.Node, Site] = field(default_factory=dict[fx.Node, Site])
    places: dict[fx.Node, str] = field(default_factory=dict[fx.Node, str])
    stand_ins: dict[Site, str] = field(default_factory=dict[Site, str])
    originals: dict[str, str] = field(default_factory=dict[str, str])
    owners: list[str] = field(default_factory=list[str])
    constants: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    expected: dict[str, Any] = field(default_factory=dict[str, Any])
    inputs: dict[str, Inputs] = field(default_factory=dict[str, Inputs])
    returns: dict[Site, Any] = field(default_factory=dict[Site, Any])
    values: dict[fx.Node, Any] = field(default_factory=dict[fx.Node, Any])
    decided: set[str] = field(default_factory=set[str])
    checks: dict[str, list[Callable[[], Any]]] = field(default_factory=dict[str, list[Callable[[], Any]]])
    decisions: dict[Any, Any] = field(default_factory=dict[Any, Any])
    reread: dict[fx.Node, set[str]] = field(default_factory=dict[fx.Node, set[str]])
    written: dict[str, Any] = field(default_factory=dict[str, Any])
    former: list[Any] = field(default_factory=list[Any])
    filled: dict[Site, dict[Any, Any]] = field(default_factory=dict[Site, dict[Any, Any]])
    altered: set[str] = field(default_factory=set[str])
    without_gradient: set[fx.Node] = field(default_factory=set[fx.Node])
    depends_on: set[Question] = field(default_factory=set[Question])


@dataclass
class Frame:
    """A forward that is being traced: by which path it is called, which module it is, and what it has called so far."""

    owner: str
    original: str
    counts: Counter[Hashable] = field(default_factory=Counter[Hashable])

    def site(self, what: Hashable) -> Site:
        """Return the site of the next call of ``what``."""
        occurrence = self.counts[what]
        self.counts[what] += 1
        return Site(self.owner, what, occurrence)


# Arguments and results of containers: which parts carry data, which choose a course, and in what structure.


class _Data:
    """Stands for any value that carries data."""

    def __reduce__(self) -> str:
        return "DATA"  # the one that there is

    def __repr__(self) -> str:
        return "data"


DATA: Final = _Data()


def is_proxy(value: object) -> bool:
    """Return whether the value is a proxy; not by isinstance, because a proxy may pass itself off as its value."""
    return issubclass(type(value), fx.Proxy)


class _Fields(dict[str, Any]):
    """The pattern of a named tuple or a dataclass, by the names of its fields."""


def fields_of(value: Any) -> dict[str, Any] | None:
    """Return the fields of a named tuple or a dataclass by their names, or None for what is neither."""
    kind = type(value)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return value._asdict()
    if not dataclasses.is_dataclass(kind) or issubclass(kind, Mapping):
        return None
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind) if hasattr(value, field.name)}


def _with_fields(value: Any, fields: dict[str, Any]) -> Any:
    """Return a copy of a named tuple or a dataclass with other values in its fields."""
    if isinstance(value, tuple):
        return type(value)(*fields.values())
    twin = copy.copy(value)
    for name, item in fields.items():
        object.__setattr__(twin, name, item)
    return twin


def pattern(value: Any) -> Any:
    """Return the structure of an argument, with its constants, and ``DATA`` for everything else."""
    if is_proxy(value) or isinstance(value, Tensor):
        return DATA
    if type(value) in (list, tuple):
        return type(value)(pattern(item) for item in value)
    if type(value) in _DICTIONARIES:
        return {key: pattern(item) for key, item in cast("dict[Any, Any]", value).items()}
    if (fields := fields_of(value)) is not None:
        found = _Fields((name, pattern(item)) for name, item in fields.items())
        return DATA if all(item is DATA for item in found.values()) else found
    return value if type(value) in CONSTANTS else DATA


def fits(value: Any, expected: Any) -> bool:
    """Return whether an argument has the structure and the constants of a pattern."""
    if expected is DATA:
        return True
    if type(expected) in (list, tuple):
        same = isinstance(value, type(expected)) and len(cast("list[Any]", value)) == len(expected)
        return same and all(fits(*pair) for pair in zip(cast("list[Any]", value), expected, strict=True))
    if type(expected) is _Fields:
        wanted = cast("dict[str, Any]", expected)
        return all(hasattr(value, name) and fits(getattr(value, name), item) for name, item in wanted.items())
    if type(expected) is dict:
        wanted = cast("dict[Any, Any]", expected)
        if not isinstance(value, Mapping) or set(cast("dict[Any, Any]", value)) != set(wanted):
            return False
        return all(fits(value[key], item) for key, item in wanted.items())
    if value is expected:
        return True
    if isinstance(value, Tensor) or getattr(value, "shape", ()) != ():  # an array of another package
        return False
    return bool(value == expected or (value != value and expected != expected))  # NaN, too


def fits_defaults(forward: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    """Return whether the optional arguments of a call fit their defaults, which a trace without values takes them for.

    True for a call that the forward cannot take, which the call itself will tell.
    """
    try:
        given = inspect.signature(forward).bind(*arguments)
    except (TypeError, ValueError):
        return True
    defaults = {name: parameter.default for name, parameter in given.signature.parameters.items()}
    return all(
        defaults[name] is inspect.Parameter.empty or fits(value, pattern(defaults[name]))
        for name, value in given.arguments.items()
    )


@dataclass(frozen=True)
class Argument:
    """Stands for a list or a dictionary that a container has got and returns: the keys that lead to it."""

    keys: tuple[Any, ...]


def unpack(like: Any, whole: Any, arguments: Any = None) -> Any:
    """Give a proxy the structure of a value: constants as they are, data taken from the proxy part by part.

    The lists and dictionaries that are those of ``arguments`` stay these.
    """

    def part(item: Any, key: Any) -> Any:
        return unpack(item, whole[key], arguments)

    if isinstance(like, Argument):
        return functools.reduce(operator.getitem, like.keys, arguments)
    if type(like) in (list, tuple):
        return type(like)(part(item, index) for index, item in enumerate(like))
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*(part(item, index) for index, item in enumerate(cast("tuple[Any, ...]", like))))
    if type(like) in _DICTIONARIES:
        return type(like)((key, part(item, key)) for key, item in cast("dict[Any, Any]", like).items())
    if dataclasses.is_dataclass(like) and not isinstance(like, type):
        found = {field.name: getattr(like, field.name) for field in dataclasses.fields(like)}
        for name, value in found.items():
            if type(value) not in CONSTANTS:
                inner = whole.tracer.create_proxy("call_function", getattr, (whole, name), {})
                found[name] = unpack(value, inner, arguments)
        if isinstance(like, Mapping):  # with its fields for items, too
            return type(like)(**found)
        return _with_fields(like, found)
    if is_proxy(like) or type(like) not in CONSTANTS:
        return whole
    return like


def kept(structure: Any, arguments: Mapping[int, tuple[Any, ...]] = MappingProxyType({})) -> Any:
    """Return the structure as it is now: forward may append to a list that it has handed on.

    What is among the arguments, by its identity, is named by its keys there.
    """
    if id(structure) in arguments:
        return Argument(arguments[id(structure)])
    if type(structure) in (list, tuple):
        return type(structure)(kept(item, arguments) for item in structure)
    if type(structure) in _DICTIONARIES:
        pairs = cast("dict[Any, Any]", structure).items()
        return type(structure)((key, kept(item, arguments)) for key, item in pairs)
    if (fields := fields_of(structure)) is not None:
        return _with_fields(structure, {name: kept(item, arguments) for name, item in fields.items()})
    return structure


def is_same(now: Any, before: Any) -> bool:
    """Return whether a structure has the same lists, dictionaries and values as a copy that was kept of it."""
    if type(now) in (list, tuple, *_DICTIONARIES) and type(now) is not type(before):
        return False
    if type(now) in (list, tuple):
        return len(now) == len(before) and all(map(is_same, now, before))
    if type(now) in _DICTIONARIES:
        return [*now] == [*before] and all(map(is_same, now.values(), before.values()))
    if (fields := fields_of(now)) is not None:
        return type(now) is type(before) and is_same(fields, fields_of(before))
    return now is before


def containers(structure: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the lists and dictionaries in a structure, the outer before the inner, with the keys that lead there."""
    if type(structure) in (list, *_DICTIONARIES):
        yield keys, structure
    if type(structure) in (list, tuple, *_DICTIONARIES):
        pairs = structure.items() if type(structure) in _DICTIONARIES else enumerate(structure)
        for key, value in list(pairs):
            yield from containers(value, (*keys, key))


def fill(container: Any, contents: Any) -> None:
    """Give a list, a dictionary or a set other contents."""
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(contents)
