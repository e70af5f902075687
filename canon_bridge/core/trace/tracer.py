"""The tracers: one that knows no values, and one that computes every operation on example inputs.

Containers are inlined, or all children are leaves. Tracing writes nothing to the model and runs no hook.
"""

import ast
import dataclasses
import dis
import functools
import inspect
import linecache
import math
import numbers
import operator
import os
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute
from torch.utils._pytree import tree_leaves, tree_map_only

from canon_bridge.core.facts import UNKNOWN, Facts, entry_of, is_tensor, note_data, returns_indices
from canon_bridge.core.norms import children_after, normalized
from canon_bridge.core.operations import NOT_RECORDED, Kind, operation_of_module, overwritten, result_alone, setitem_
from canon_bridge.core.restore import finder
from canon_bridge.core.trace.flow import (
    CONSTANTS,
    DATA,
    CannotBeWrittenError,
    Flow,
    Frame,
    Inputs,
    OtherCourseError,
    Question,
    Site,
    containers,
    fields_of,
    fill,
    is_proxy,
    is_same,
    kept,
    pattern,
    unpack,
)
from canon_bridge.core.trace.preserve import left_by_hooks

# Classes of torch.nn that have no forward of their own to know.
_CONTAINERS: Final = frozenset(
    {nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict}
)
# What a forward asks or does for gradients alone.
_OF_GRADIENTS: Final = frozenset({"requires_grad", "is_leaf", "grad_fn", "register_hook", "retain_grad"})
WANTS_GRADIENT: Final = ("requires_grad",)
# Attributes of tensors that are tensors or sizes.
_ATTRIBUTES: Final = frozenset({"T", "mT", "H", "mH", "data", "real", "imag", "shape", "ndim", "dtype", "device"})
_STARS: Final = {inspect.Parameter.VAR_POSITIONAL: 1, inspect.Parameter.VAR_KEYWORD: 2}
# What reads one number of a tensor.
_NUMBERS: Final = frozenset({"size", "dim", "ndim", "ndimension", "numel", "nelement", "len"})
_PATTERNS: Final = frozenset({"MATCH_SEQUENCE", "MATCH_MAPPING", "MATCH_CLASS"})
# Functions of torch whose `input` is not the first argument.
_OTHERWISE: Final = frozenset({torch.where, torch.searchsorted})
_OWN: Final = tuple(
    f"{folder}{os.sep}" for folder in (Path(__file__).resolve().parents[2], Path(torch.__file__).parent)
)


class InPlaceProxy(fx.Proxy):
    """A proxy that records what happens in place as that (fx records ``x += y`` as ``x = x + y``)."""

    def stands_for(self) -> type:
        """Return the type that a model is to see when it asks ``isinstance(x, Tensor)`` or ``type(x)``."""
        if is_tensor(self.node):
            return Tensor
        tracer: Any = self.tracer
        return tracer.type_of(self.node) or type(self)

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What a forward is told that asks for it by name; Python and torch, which ask without, are told the truth."""
        frame = sys._getframe(1)
        return self.stands_for() if _reads(frame, "__class__") and not _is_own(frame) else type(self)

    def _text(self, write: Callable[..., str], *how: str) -> str:
        """Return the text of a size or a type; where it is not known, that is no matter in a message alone."""
        frame = sys._getframe(2)
        if _is_own(frame) or not self.node.op.startswith("call"):
            return f"{type(self).__name__}({self.node.name})"
        try:
            return write(self._number_or_type(), *how)
        except TypeError:
            if _is_message(frame):
                return f"{type(self).__name__}({self.node.name})"
            raise

    def __repr__(self) -> str:
        return self._text(repr)

    def __str__(self) -> str:
        return self._text(str)

    def __format__(self, specification: str) -> str:
        return self._text(format, specification)

    def __getattr__(self, k: str) -> Any:
        if k in _OF_GRADIENTS:
            return self._of_gradients(k)
        if k == "grad" and is_tensor(self.node):
            return None  # as of all that is computed
        if k in ("_is_param", "_is_buffer"):
            return False
        if k not in _ATTRIBUTES and self._has_no(k):
            raise AttributeError(f"a tensor has no attribute {k!r}")
        frame = sys._getframe(1)
        if self.node.op == "placeholder" and not (hasattr(Tensor, k) or _is_own(frame) or _reads(frame, k)):
            raise TypeError(f"it asks whether its input has an attribute {k!r}, which is not known")
        if k == "type" and is_tensor(self.node):
            return self._cast
        if k == "index" and self._is_device():
            return self._number_or_type().index
        if k == "dtype" and _compares_types(sys._getframe(1).f_code):
            return self._decided_type()
        if k in _ATTRIBUTES:  # fx would return a proxy without in-place operators
            return self.tracer.create_proxy("call_function", getattr, (self, k), {})
        return Asked(self, k)

    def __deepcopy__(self, memo: Any) -> Any:
        copied: Any = self
        return copied.detach().clone() if is_tensor(self.node) else self

    def _is_device(self) -> bool:
        entry = entry_of(self.node)
        return entry is not None and entry.name == "device"

    def _has_no(self, name: str) -> bool:
        """Return whether it is a tensor for sure, which has no such attribute."""
        entry = entry_of(self.node)
        is_known = entry is not None and entry.kind is not Kind.WITHOUT_RULE  # some return several tensors with names
        return is_known and is_tensor(self.node) and not hasattr(Tensor, name)

    def _decided_type(self) -> Any:
        """Return the type of the elements itself, for a forward that asks whether it *is* another."""
        tracer: Any = self.tracer
        node = tracer.create_node("call_function", getattr, (self.node, "dtype"), {})
        value = tracer.known(node, _itself)
        if value is None:
            raise TypeError("the type of its input is asked for, which is not known")
        return tracer.decide(node, same_type, value)

    def _of_gradients(self, name: str) -> Any:
        """Return that no gradient is wanted, and have the forward that asked rewritten.

        What a forward does for gradients alone (checkpoints, hooks on tensors) is no data flow, and runs modules twice.
        Where the course turns out to depend on it, the new forward checks that none is wanted.
        """
        tracer: Any = self.tracer
        if name in ("register_hook", "retain_grad"):
            if not tracer.wants_gradient:
                return Asked(self, name)
            tracer.has_tensor_hooks = True
            return _do_nothing
        tracer.note_course()
        if WANTS_GRADIENT in tracer.whole.depends_on:
            tracer.decide(self.node, no_gradient, False)
        is_wanted = tracer.answer(WANTS_GRADIENT, False)
        if name == "grad_fn":
            return _do_nothing if is_wanted else None
        return is_wanted is (name == "requires_grad")

    def _cast(self, *args: Any, **kwargs: Any) -> Any:
        """Record a change of type; without one, return the name of the type, and have the new forward check it."""
        if args or kwargs:
            return self.tracer.create_proxy("call_method", "type", (self, *args), kwargs)
        return torch.empty(0, dtype=self._decided_type(), device=self.device._number_or_type()).type()

    def __iter__(self) -> Iterator[Any]:
        parts, tracer = self._parts(), cast("SymbolicTracer", self.tracer)
        if parts is None and tracer.inline and self.node.op == "call_module" and entry_of(self.node) is None:
            raise TypeError(
                f"it takes apart what {self.node.target} returns, whose forward is not known: tensors, or None"
            )
        if parts is None:
            parts = _unpacked(sys._getframe(1))
        whole: Any = self
        return iter([whole[index] for index in range(len(self) if parts is None else parts)])

    def __len__(self) -> int:
        parts = self._parts()
        return self._decided(same_length) if parts is None else parts

    def __index__(self) -> int:
        return self._decided(same_number)

    __int__ = __index__

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Any, Any]:
        return other // self, other % self

    def _rounded(self, function: Callable[..., Any], *digits: int) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *digits), {})

    __round__ = functools.partialmethod(_rounded, round)
    __floor__ = functools.partialmethod(_rounded, math.floor)
    __ceil__ = functools.partialmethod(_rounded, math.ceil)
    __trunc__ = functools.partialmethod(_rounded, math.trunc)

    def __hash__(self) -> int:
        tracer: Any = self.tracer  # a size or a type may be looked up in a dictionary
        return hash(self._number_or_type()) if tracer.type_of(self.node) in (int, torch.dtype) else id(self)

    def _number_or_type(self) -> Any:
        """Return a number, a type or a device that is known without values, and have the new forward check it."""
        tracer: Any = self.tracer
        value = tracer.known(self.node, _itself)
        return self._decided(same_number) if value is None else tracer.decide(self.node, same_type, value)

    def _decided(self, check: Callable[..., None]) -> int:
        """Return a number that is known without values, and have the new forward check it."""
        tracer: Any = self.tracer
        value = tracer.known(self.node, len if check is same_length else int)
        if value is None:
            raise TypeError("a size or a value of the input is asked for, which is not known")
        return tracer.decide(self.node, check, value)

    def _parts(self) -> int | None:
        """Return into how many parts a call divides a tensor, where that is written there."""
        entry = entry_of(self.node)
        if returns_indices(self.node) or (entry is not None and entry.name == "aminmax"):
            return 2
        if entry is None or entry.name not in ("chunk", "tensor_split", "split", "split_with_sizes"):
            return None
        names = ("chunks", "sections", "split_size", "split_sizes", "split_size_or_sections")
        given: Any = (*self.node.args[1:2], *(self.node.kwargs[name] for name in names if name in self.node.kwargs))
        if not given or (entry.name == "split" and isinstance(given[0], int)):
            return None
        if isinstance(given[0], list | tuple):
            return len(given[0]) + (entry.name == "tensor_split")
        return given[0] if isinstance(given[0], int) else None

    def __setattr__(self, name: str, value: Any) -> None:
        if "node" in vars(self):  # on an object that a container was called with, say
            raise TypeError(f"it sets {name!r} on a value that it has got, which a new forward would not")
        super().__setattr__(name, value)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", setitem_, (self, index, value), {})

    def _overwrite(self, target: Callable[..., Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    __iadd__ = functools.partialmethod(_overwrite, operator.iadd)
    __isub__ = functools.partialmethod(_overwrite, operator.isub)
    __imul__ = functools.partialmethod(_overwrite, operator.imul)
    __itruediv__ = functools.partialmethod(_overwrite, operator.itruediv)
    __ifloordiv__ = functools.partialmethod(_overwrite, operator.ifloordiv)
    __ipow__ = functools.partialmethod(_overwrite, operator.ipow)
    __imod__ = functools.partialmethod(_overwrite, operator.imod)


class SymbolicTracer(fx.Tracer):
    """Record the site of every call; inline containers, or take all children as leaves.

    Parameters
    ----------
    path : str
        The name of the root in the canonical model.
    inputs : Inputs, optional
        What the root is called with. Constants among them (else the defaults) are taken as they are.
    fixed_numbers : bool
        Whether numbers among the arguments of the root are constants, for a forward that computes sizes from them.
    whole : Flow, optional
        For a container that is traced alone, with its children as leaves: the flow of the whole model, which knows what
        they return, what they write into their arguments, and what the course depends on. Without it, containers are
        inlined.
    """

    proxy_buffer_attributes = True

    def __init__(
        self, path: str = "", inputs: Inputs | None = None, fixed_numbers: bool = True, whole: Flow | None = None
    ) -> None:
        super().__init__()
        self.inline = whole is None
        self.whole = Flow() if whole is None else whole
        self.frames = [Frame(path, self.whole.originals.get(path, path))]
        self.flow = Flow(owners=[path], inputs={} if inputs is None else {path: inputs})
        self.bound: dict[str, Any] = {}
        self.is_computing = False
        self.switched_off = False  # gradients, by forward; else it is an autograd function that has no use for them
        # What forward asks of how it is run, and where; the question that has the other answer than in an attribution.
        self.asked: dict[Question, set[str]] = {}
        self.answered_otherwise: Question | None = None
        self.has_tensor_hooks = False
        self._fixed_numbers = fixed_numbers
        self._root_inputs = inputs
        self._call: tuple[Site, str] | None = None
        self._own: set[int] = set()
        self._left: set[int] = set()  # tensors of former calls
        self._given: list[tuple[Any, Any, Any]] = []  # lists in arguments, as they came, and their proxies
        self._with_fields: list[tuple[Any, Any]] = []  # arguments that have fields, as they are and as they came
        self._called: set[str] = set()
        # The attributes of modules as they were, and of which modules another forward has set some.
        self.former: dict[nn.Module, dict[str, Any]] = {}
        self._altered: set[nn.Module] = set()
        self.generators: dict[torch.Generator, Tensor] = {}  # that modules hold, with the state that they should have
        self._overwritten: dict[fx.Node, fx.Node] = {}
        self._made: dict[int, tuple[Tensor, fx.Node]] = {}  # tensors that forward made and wrote data to
        self._thread = threading.get_ident()

    @property
    def wants_gradient(self) -> bool:
        """Whether forward is told that a gradient is wanted."""
        return self.answered_otherwise == WANTS_GRADIENT

    def answer(self, question: Question, answer: bool) -> bool:
        """Return what forward is told that asks how it is run; both answers are tried."""
        self.asked.setdefault(question, set()).update(frame.owner for frame in self.frames[-1:])
        return answer is not (question == self.answered_otherwise)

    def answer_state(self, question: Question, answer: bool) -> bool:
        """Return what forward is told of torch's state, and have a new forward check it where that matters."""
        if self.switched_off or not self.is_asked_by_forward(sys._getframe(2)):
            return answer
        if question in self.whole.depends_on:
            self.decide(question, same_state, answer)
        return self.answer(question, answer)

    def is_asked_by_forward(self, frame: types.FrameType) -> bool:
        """Return whether what runs in a frame is of a forward that is being traced: neither torch's nor ours."""
        return not (self.is_foreign() or self.is_computing or _is_own(frame))

    def note_course(self) -> None:
        """Note that the course of the present forward is not that of its code alone: it gets a new forward."""
        self.flow.decided.add(self.frames[-1].owner)

    def note_altered(self, module: nn.Module) -> None:
        """Note that forward has set an attribute of another module, or exchanges its tensors."""
        self._altered.add(module)
        if not self.inline:
            raise CannotBeWrittenError(
                "it sets an attribute of another module, which a new forward would not; pass it as an argument, or "
                "keep what it has computed by a forward hook."
            )

    def _is_altered(self, module: nn.Module) -> bool:
        """Return whether a module has other attributes than at its last call, or at the beginning."""
        former, now = self.former.get(module), vars(module)
        if former is None or former.keys() != now.keys():
            return former is not None
        pairs = ((value, now[name]) for name, value in former.items())
        return any(a is not b and (type(a) not in CONSTANTS or a != b) for a, b in pairs)

    def refuse_effect(self, name: str) -> None:
        """Refuse to write a forward that does something which is no operation on values."""
        if not self.inline:
            raise CannotBeWrittenError(f"it uses {name}, which a new forward would not; do it outside of the model.")

    def stands_for_data(self, value: object) -> bool:
        """Return whether a value is a proxy, or a tensor to which one was written."""
        if id(value) in self._left:
            raise CannotBeWrittenError(
                "it reads a tensor that a forward hook has left there, which no trace runs, or another forward; have a "
                "module return it."
            )
        return is_proxy(value) or id(value) in self._made

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a proxy for a parameter that the traced forward uses; other threads get what they ask for."""
        return attr_val if self.is_foreign() else super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_foreign(self) -> bool:
        """Return whether another thread asks: torch is patched for all, and those that run models must not notice."""
        return threading.get_ident() != self._thread

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace the root with the inputs that the tracer was made with."""
        if self._root_inputs is not None:
            args, kwargs = self._root_inputs
            bound = inspect.signature(root.forward).bind(*args, **kwargs)
            bound.apply_defaults()
            self.bound = dict(bound.arguments)
        _refuse_patterns(root.forward)
        self._own = {id(module) for module in root.modules()}
        former = (leaf for leaf in tree_leaves(self.whole.former) if isinstance(leaf, Tensor))
        self._left = left_by_hooks(root) | set(map(id, former))
        self._find = finder(root)
        self.flow.graph = super().trace(root, concrete_args)
        for node in self.flow.graph.nodes:
            if node.op == "call_module" and self._find(str(node.target)) in self._altered:
                node.meta["operation"] = None  # it is not what it is at the moment
                self.flow.altered.add(str(node.target))
        return self.flow.graph

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Return the root's function and its arguments: proxies, and what is known to be no data as it is."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        # In the order of Python's code objects: the two with stars come last.
        parameters = sorted(inspect.signature(root_fn).parameters.values(), key=lambda p: _STARS.get(p.kind, 0))
        return function, [args[0], *map(self._argument, parameters[1:], args[1:])]

    def _argument(self, parameter: inspect.Parameter, proxy: Any) -> Any:
        is_named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        value = self.bound.get(parameter.name, parameter.default if is_named else DATA)
        is_free_number = type(value) in (int, float) and not self._fixed_numbers
        if value is parameter.empty or pattern(value) is DATA or is_free_number:
            return proxy
        # `if mask is None` would take the wrong branch on a proxy, `for part in parts` none at all.
        self.flow.expected[parameter.name] = pattern(value)
        given = unpack(value, proxy)
        self._given += [(now, kept(now), (proxy, keys)) for keys, now in containers(given)]
        if fields_of(given) is not None:
            self._with_fields.append((given, kept(given)))
        return given

    def fill_arguments(self) -> None:
        """Have the new forward write into lists and dictionaries that it is called with what forward has written."""
        for now, before, (whole, keys) in reversed(self._given):
            if not is_same(now, before):
                container = functools.reduce(operator.getitem, keys, whole)
                self.create_proxy("call_function", fill, (container, now), {})
        if not all(is_same(now, before) for now, before in self._with_fields):
            raise CannotBeWrittenError(
                "it writes into a structure that it is called with, which a new forward would not; return a new one."
            )

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the proxy for a node."""
        return InPlaceProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a call of the module is one operation of the graph."""
        return not self.inline or self._is_operation(m, module_qualified_name)

    def _is_operation(self, m: nn.Module, path: str) -> bool:
        if operation_of_module(m) is not None or super().is_leaf_module(m, path):
            return True
        # A subclass of a layer of torch.nn is a layer, even if its forward is not known.
        return any(
            base.__module__.startswith("torch.nn.modules") and base not in _CONTAINERS for base in type(m).__mro__
        )

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record the call of a leaf, or trace the forward of a container."""
        if self.is_foreign():
            return forward(*args, **kwargs)
        if id(m) not in self._own:
            if any(True for _ in (*m.parameters(recurse=False), *m.buffers(recurse=False))):
                raise TypeError(f"it calls a {type(m).__name__} that has tensors and is not registered as a submodule")
            return m.forward(*args, **kwargs)  # made in forward, such as nn.ReLU()(x): part of what forward writes
        path, site = self.path_of_module(m), self.frames[-1].site(id(m))
        if self._is_altered(m):
            self.note_altered(m)
        call = self._call_leaf if self.is_leaf_module(m, path) else self._trace_container
        result = call(m, path, site, args, kwargs)
        if self._is_altered(m):  # by itself
            self.former[m] = dict(vars(m))
        return result

    def _call_leaf(self, m: nn.Module, path: str, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place, given = self._place(path, site), args
        args, kwargs = _first_by_position(m.forward, args, kwargs)
        if args is not given:  # rules see the positional arguments of a module alone: forward has to pass them
            self.note_course()
        named, filled = _by_key(args, kwargs), self.whole.filled.get(site, {})
        lists = {id(named[key]): self._hold(named[key], path) for key in filled}
        held = {key: lists[id(named[key])] for key in filled}
        self._call = site, place
        called = self.create_proxy("call_module", path, *_with(args, kwargs, held))
        if self.inline and is_proxy(called) and type(self.flow.values.get(called.node)) in (tuple, list, dict):
            self.flow.returns[site] = _where_none(self.flow.values[called.node])
        if type(m).__call__ is not nn.Module.__call__:  # what it does besides has been recorded by now
            called.node.meta["is_plain"] = True
        for key, left in filled.items():
            fill(named[key], unpack(left, held[key]))
        result = unpack(self.whole.returns.get(site, DATA), called, named)
        return self._children_after(m, path, place, result) if self.inline else result

    def _trace_container(
        self, m: nn.Module, path: str, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        place, named = self._place(path, site), _by_key(*_first_by_position(m.forward, args, kwargs))
        before = kept(named)
        self.flow.inputs.setdefault(place, (kept(args), kept(kwargs)))
        self.frames.append(Frame(place, path))
        self.flow.owners.append(place)
        _refuse_patterns(m.forward)
        # forward itself, not the call: the user's hooks are not made for proxies and must not run here.
        result = m.forward(*args, **kwargs)
        # Popped only on success: after an exception the last frame names the module that cannot be traced.
        self.frames.pop()
        filled = {key: value for key, value in named.items() if not is_same(value, before[key])}
        if filled:
            self.flow.filled[site] = kept(filled)
        self.flow.returns[site] = kept(result, {id(value): keys for keys, value in containers(named)})
        return result

    def _hold(self, container: Any, path: str) -> Any:
        """Return a list or a dictionary as a value of the graph: a module that is called with it writes into it."""
        if [keys for keys, _ in containers(container)] != [()]:
            raise CannotBeWrittenError(
                f"{path} writes into a list or a dictionary inside of another one that it is called with, or into the "
                "fields of an object, which is not followed; call it with the inner one, or have it return what is to "
                "be kept."
            )
        return self.create_proxy("call_function", type(container), (container,), {})

    def _place(self, path: str, site: Site) -> str:
        """Return the path in the canonical model of the module that a call is of: a stand-in's, if it is not the first.

        What is called in a stand-in is a module of that stand-in.
        """
        frame = self.frames[-1]
        inner = path.removeprefix(f"{frame.original}.") if frame.original else path
        is_inside = not frame.original or inner != path
        place = f"{frame.owner}.{inner}" if is_inside and frame.owner else path
        if place in self._called:
            owner = self._find(frame.original) if self.inline else None
            base, number = f"{frame.owner}.".lstrip(".") + inner.replace(".", "_"), 2
            while f"{base}_{number}" in self._called or hasattr(owner, f"{base}_{number}".rpartition(".")[2]):
                number += 1
            place = self.flow.stand_ins[site] = f"{base}_{number}"
        self._called.add(place)
        if place != path:
            self.flow.originals[place] = path
        return place

    def _children_after(self, norm: nn.Module, path: str, place: str, result: Any) -> Any:
        """Record what a normalization layer calls after itself."""
        self.frames.append(Frame(place, path))
        self.flow.owners.append(place)
        for name in children_after(norm):
            child = getattr(norm, name)
            result = self.call_module(child, child.forward, (result,), {})
        self.frames.pop()
        return result

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **names: Any) -> fx.Node:
        """Create a node; note what it is, its site and its place in the source."""
        if kind == "call_function":
            args, kwargs = _first_by_position(target, args, kwargs)
        is_off = kind.startswith("call") and not torch.is_grad_enabled() and not self.is_computing
        if is_off and not self.inline and not self.switched_off and not torch.is_inference_mode_enabled():
            raise CannotBeWrittenError(
                "it calls an autograd function by the name that it gave to `apply` before; call `Function.apply`."
            )
        node = super().create_node(kind, target, args, kwargs, *more, **names)
        module = self._find(target) if kind == "call_module" else None
        note_data(node, module)
        if is_off:
            node.meta["carries"] = False
            self.flow.without_gradient.add(node)
            self.flow.decided.update(frame.owner for frame in self.frames)
        if kind == "call_module" and self._call is not None:
            (self.flow.sites[node], self.flow.places[node]), self._call = self._call, None
        elif kind in ("call_function", "call_method"):
            # A function that forward makes is another one in each trace.
            self.flow.sites[node] = self.frames[-1].site(target.__name__ if hasattr(target, "calls") else target)
        if self.inline and kind.startswith("call"):
            node.meta["source"] = _source(type(self._find(self.frames[-1].original)))
        base = overwritten(node, module)
        if base is not None and module is not None and not self._is_operation(module, str(target)):
            base = None  # a container has operations in place of its own, or none, whatever its flag is
        if base is not None:  # what reads it from now on reads the result
            self._overwritten[base] = node
            if is_off and not self.inline and (module is None or base not in self.flow.without_gradient):
                raise CannotBeWrittenError(
                    "it overwrites a tensor where gradients are switched off, which a new forward would not; write it "
                    "out of place."
                )
        return node

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **names: Any) -> Any:
        """Record an operation; a tensor that forward has made and writes data to is made anew in each forward."""
        alone = result_alone(target) if kind == "call_function" else None
        if alone is not None:
            return alone(*args, **kwargs), NOT_RECORDED, NOT_RECORDED
        if target in (operator.getitem, setitem_):
            args = (args[0], _without_arrays(args[1]), *args[2:])
        made = args[0] if (args and target is setitem_) or _is_method_in_place(kind, target) else None
        if isinstance(made, Tensor) and id(made) not in self._made and not self._is_attribute(made):
            self._made[id(made)] = made, self.create_node("call_method", "clone", (self.create_arg(made),), {})
        return super().create_proxy(kind, target, args, kwargs, *more, **names)

    def create_arg(self, a: Any) -> Any:
        """Return what stands for a value in the graph; nothing is stored on the model."""
        if is_proxy(a):
            return self._now(a.node)
        if self.stands_for_data(a):
            return self._now(self._made[id(a)][1])
        # fx would store unknown tensors as attributes of the user's model.
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and not self._is_attribute(a):
            constants = self.flow.constants
            name = next((n for n, t in constants.items() if t is a), f"_tensor_constant{len(constants)}")
            constants[name] = a
            return self.create_node("get_attr", name, (), {})
        if isinstance(a, torch.Generator):  # for which fx of 2.6 has no place
            former = None if self.inline else self.generators.get(a)
            if former is not None and not torch.equal(a.get_state(), former):
                raise CannotBeWrittenError(
                    "it seeds a generator of random numbers that it holds, which no trace records; make it in forward "
                    "(torch.Generator().manual_seed(0)), or seed it outside of the model."
                )
            return a
        if isinstance(a, numbers.Number):  # also other packages'
            return a
        if type(a) is OrderedDict:  # fx would write a plain dictionary
            pairs = [(key, self.create_arg(value)) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (pairs,), {})
        if isinstance(a, dict) and dataclasses.is_dataclass(a):  # likewise
            fields = {part.name: getattr(a, part.name) for part in dataclasses.fields(a)}
            given = {name: self.create_arg(value) for name, value in fields.items() if value is not None}
            return self.create_node("call_function", type(a), (), given)
        return super().create_arg(a)

    def _now(self, node: fx.Node) -> fx.Node:
        """Return the node that a tensor comes from by now, if it was overwritten."""
        while node in self._overwritten:
            node = self._overwritten[node]
            self.flow.reread.setdefault(node, set()).add(self.frames[-1].owner)
        return node

    def _facts(self) -> Facts:
        modules = {n: self._find(str(n.target)) for n in self.graph.nodes if n.op == "call_module"}
        return Facts(self.graph, modules, {}, self.root)

    def type_of(self, node: fx.Node) -> type | None:
        """Return the type of what is no tensor, a size for instance, or None if that is not known."""
        entry = entry_of(node)
        if entry is None or node.op == "placeholder":
            return None
        if entry.name == "dtype":
            return torch.dtype
        if entry.kind is Kind.SIZE:
            asks_all = entry.name == "shape" or (entry.name == "size" and len(node.args) == 1 and not node.kwargs)
            return torch.Size if asks_all else int if entry.name in _NUMBERS else None
        if entry.name == "getitem" and isinstance(node.args[0], fx.Node) and self.type_of(node.args[0]) is torch.Size:
            return torch.Size if isinstance(node.args[1], slice) else int
        worlds = self._facts().of(node)
        kinds = {type(world) for world in worlds} if worlds is not UNKNOWN else set[type]()
        return kinds.pop() if len(kinds) == 1 else None

    def known(self, node: fx.Node, measure: Callable[[Any], Any]) -> Any:
        """Return a number that is the same whatever the input is (of dimensions or channels), or None.

        Parameters
        ----------
        node : fx.Node
            What it is asked of.
        measure : callable
            ``len`` for how long a value is, ``bool`` or ``int`` for the value itself, ``_itself`` for a type of
            elements or a device.
        """
        site = self.flow.sites.get(node)
        if (site, measure) in self.whole.decisions:
            return self.whole.decisions[site, measure]
        entry = entry_of(node)
        if measure is _itself and entry is not None and entry.name == "device":  # that of the model
            if site is None or not self.inline:
                return None
            held = next((tensor.device for tensor in (*self.root.parameters(), *self.root.buffers())), None)
            return None if held is None else self.flow.decisions.setdefault((site, measure), held)
        facts = self._facts()
        worlds = facts.of(node) if self.inline else UNKNOWN
        # Sizes that are not known differ in all worlds, and may be equal all the same.
        if measure is bool and worlds is not UNKNOWN and any(map(_varies, map(facts.of, node.all_input_nodes))):
            return None
        kinds = {len: (tuple, list), _itself: (torch.dtype,)}.get(measure, (bool, int))
        if worlds is UNKNOWN or site is None or not isinstance(worlds[0], kinds):
            return None
        values = {measure(world) for world in worlds}
        return self.flow.decisions.setdefault((site, measure), values.pop()) if len(values) == 1 else None

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return a condition that is known."""
        value = self.known(obj.node, bool)
        return super().to_bool(obj) if value is None else self.decide(obj.node, same_truth, bool(value))

    def decide(self, node: fx.Node | Question, check: Callable[..., None], value: Any) -> Any:
        """Return a value that the course may depend on, and have a new forward check that it is the same."""
        self.note_course()
        if not self.inline:
            self.create_node("call_function", check, (node, value, self.frames[0].owner), {})
        elif isinstance(node, fx.Node):
            measure = _MEASURES.get(check, int)
            self.flow.checks.setdefault(self.frames[-1].owner, []).append(partial(self.known, node, measure))
        return value

    def _is_attribute(self, tensor: Tensor) -> bool:
        return tensor in self.tensor_attrs or any(tensor is buffer for buffer in self.root.buffers())


class Asked(Attribute):
    """An attribute of a value, or a method that is to be called; of its text nothing is known."""

    def __str__(self) -> str:
        return self._text(sys._getframe(1))

    def __format__(self, specification: str) -> str:
        return self._text(sys._getframe(1))

    def _text(self, frame: types.FrameType) -> str:
        if _is_own(frame) or _is_message(frame):
            return f"{type(self).__name__}({self.attr})"
        raise TypeError(f"the text of the attribute {self.attr!r} of a value is asked for, which is not known")


class ValueProxy(InPlaceProxy):
    """A proxy with the value that the operation has on the example inputs.

    Conditions, lengths, loops, look-ups and ``isinstance`` see the value; every operation is recorded as usual.
    """

    @property
    def value(self) -> Any:
        """What the proxy stands for."""
        return self._tracer().flow.values[self.node]

    def _tracer(self) -> "ValueTracer":
        tracer = self.tracer
        assert isinstance(tracer, ValueTracer)
        return tracer

    def stands_for(self) -> type:
        """Return the type of the value."""
        return type(self.value)

    def __getattr__(self, name: str) -> Any:
        is_hook = name in ("register_hook", "retain_grad")
        if name in _OF_GRADIENTS and (not is_hook or self._tracer().wants_gradient):
            return self._of_gradients(name)
        if name == "type" and isinstance(self.value, Tensor):
            return self._cast
        attribute = getattr(self.value, name)
        if callable(attribute):
            return Attribute(self, name)  # a method; it is recorded when it is called
        if isinstance(attribute, torch.dtype) and _compares_types(sys._getframe(1).f_code):
            return self._decided_type()
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def _text(self, write: Callable[..., str], *how: str) -> str:
        if _is_own(sys._getframe(2)):
            return super()._text(write, *how)
        is_known = isinstance(self.value, int | float | torch.dtype)
        return write(self._number_or_type() if is_known else self.value, *how)

    def _decided_type(self) -> Any:
        tracer: Any = self.tracer
        node = tracer.create_proxy("call_function", getattr, (self, "dtype"), {}).node
        return tracer.decide(node, same_type, self.value.dtype)

    def _decide(self, check: Callable[..., None], value: Any) -> Any:
        tracer = self.tracer
        assert isinstance(tracer, ValueTracer)
        return tracer.decide(self.node, check, value)

    def __bool__(self) -> bool:
        return self._decide(same_truth, bool(self.value))

    def __len__(self) -> int:
        return self._decide(same_length, len(self.value))

    def __int__(self) -> int:
        return self._decide(same_number, int(self.value))

    def __float__(self) -> float:
        return self._decide(same_number, float(self.value))

    def __index__(self) -> int:
        return self._decide(same_number, self.value.__index__())

    def __contains__(self, item: object) -> bool:
        return any(bool(part == item) for part in self)

    def __hash__(self) -> int:
        return hash(self._number_or_type()) if isinstance(self.value, int | float | torch.dtype) else id(self)

    def _number_or_type(self) -> Any:
        return self._decide(same_type if isinstance(self.value, torch.dtype) else same_number, self.value)

    def __iter__(self) -> Iterator[Any]:
        keys = self.value.keys() if isinstance(self.value, dict) else range(len(self))
        return iter([self.tracer.create_proxy("call_function", operator.getitem, (self, key), {}) for key in keys])

    def keys(self) -> Any:
        """Return the keys of a dictionary, as they are."""
        return self.value.keys()


class ValueTracer(SymbolicTracer):
    """Trace while computing every operation on example inputs; nothing of the model's state is changed.

    It takes the arguments of :class:`SymbolicTracer`; ``inputs`` may hold proxies of the trace of the whole model.
    """

    def proxy(self, node: fx.Node) -> Any:
        """Compute the node; return a proxy for the result, or the result itself where it chooses a course."""
        values = self.flow.values
        if node not in values:
            self.is_computing = True  # what modules do inside is not traced
            try:
                with torch.no_grad():
                    values[node] = self._compute(node)
            finally:
                self.is_computing = False
            self.generators = {generator: generator.get_state() for generator in self.generators}
        value = values[node]
        if type(value) is bool and node.op.startswith("call_") and node.target is not getattr:
            return self.decide(node, same_truth, value)
        return value if type(value) in (type(None), bool, str) else ValueProxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a proxy for a parameter that forward uses, or the parameter itself to a module that is computed."""
        return attr_val if self.is_computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        """Return what stands for a value in the graph, and note the value of what forward created."""
        made = super().create_arg(a)
        if isinstance(made, fx.Node) and made not in self.flow.values:
            self.flow.values[made] = self._compute(made)
        return made

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record the call, or compute it if it is inside a leaf."""
        if self.is_computing and not self.is_foreign():
            return m.forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def _earlier_value(self, structure: Any) -> Any:
        """Return the structure with the values of the proxies in it."""
        if type(structure) in (tuple, list):
            return type(structure)(self._earlier_value(item) for item in structure)
        if type(structure) in (dict, OrderedDict):
            return type(structure)((key, self._earlier_value(item)) for key, item in structure.items())
        return self.whole.values[structure.node] if is_proxy(structure) else structure

    def _compute(self, node: fx.Node) -> Any:
        args: Any
        values = self.flow.values
        for name in node.all_input_nodes:
            if name not in values:
                values[name] = self._compute(name)
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "placeholder":
            return copied(self._earlier_value(self.bound[str(node.target).lstrip("*")]))
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        if node.op == "call_module":
            module = self._find(str(node.target))
            if self.inline and children_after(module):  # the children have nodes of their own
                return normalized(module, args[0])
            # A copy of each tensor: a module that works in place must not spoil what other nodes read.
            copies = copied(args)
            result = module.forward(*copies, **kwargs)
            for (_, given), (_, filled) in zip(containers(args), containers(copies), strict=True):
                fill(given, filled)
            return result
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _attribute(self, name: str) -> Any:
        if name in self.flow.constants:
            return self.flow.constants[name]
        value: Any = self.root
        for part in name.split("."):
            value = getattr(value, part)
        return value


def _where_none(value: Any) -> Any:
    """Return a structure with ``DATA`` for all that is in it but None."""
    if type(value) in (tuple, list):
        return type(value)(map(_where_none, value))
    if type(value) is dict:
        return {key: _where_none(item) for key, item in cast("dict[Any, Any]", value).items()}
    return None if value is None else DATA


def _without_arrays(index: Any) -> Any:
    """Return an index with tensors in the place of arrays of numpy, which mean the same there."""
    if isinstance(index, tuple):
        return tuple(map(_without_arrays, index))
    return torch.as_tensor(index) if type(index).__module__ == "numpy" and hasattr(index, "shape") else index


def _unpacked(frame: Any) -> int | None:
    """Return into how many names the statement that runs in a frame unpacks a value, or None if it does not."""
    code, place = frame.f_code.co_code, frame.f_lasti
    return code[place + 1] if code[place] == dis.opmap["UNPACK_SEQUENCE"] else None


def _reads(frame: types.FrameType, name: str) -> bool:
    """Return whether what runs in a frame reads an attribute by its name (``getattr`` and ``hasattr`` do not)."""
    return frame.f_lasti in _readings(frame.f_code, name)


@functools.lru_cache(maxsize=2048)
def _readings(code: types.CodeType, name: str) -> frozenset[int]:
    reading = ("LOAD_ATTR", "LOAD_METHOD")
    return frozenset(s.offset for s in dis.get_instructions(code) if s.opname in reading and s.argval == name)


def _refuse_patterns(function: Callable[..., Any]) -> None:
    """Refuse a function that matches patterns of structures or classes, for which Python asks no proxy."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is not None and _matches(code):
        raise TypeError(
            "it matches a pattern of a sequence, a mapping or a class (`case [n, c, *_]`); use `if` instead"
        )


@functools.lru_cache(maxsize=2048)
def _matches(code: types.CodeType) -> bool:
    return any(step.opname in _PATTERNS for step in dis.get_instructions(code))


def _is_own(frame: types.FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OWN)


def _is_message(frame: types.FrameType) -> bool:
    """Return whether what runs in a frame is a call whose result nobody reads, an assertion or an error."""
    lines = _messages(frame.f_code.co_filename)
    return frame.f_code.co_name != "<lambda>" and any(first <= frame.f_lineno <= last for first, last in lines)


@functools.lru_cache(maxsize=64)
def _messages(file: str) -> tuple[tuple[int, int], ...]:
    """Return the first and last lines of such statements in a file."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return ()
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Expr | ast.Assert | ast.Raise))
    return tuple((node.lineno, node.end_lineno or node.lineno) for node in found)


@functools.lru_cache(maxsize=2048)
def _compares_types(code: types.CodeType) -> bool:
    """Return whether a function asks of something whether it *is* a type of elements; ``==`` records itself."""
    before = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IS_OP" and before is not None:
            name = before.argval
            if name == "dtype" or isinstance(getattr(torch, str(name), None), torch.dtype):
                return True
        before = instruction
    return False


def _itself(value: Any) -> Any:
    """Measure a type of elements or a device: it is that itself."""
    return value


def _varies(worlds: Any) -> bool:
    """Return whether a value is not known; of tensors, of which a condition reads no sizes, whether there are none."""
    return worlds is UNKNOWN or not (isinstance(worlds[0], Tensor) or all(world == worlds[0] for world in worlds))


def copied(structure: Any) -> Any:
    """Return the structure with copies of its tensors: forward may overwrite what it is given."""
    return tree_map_only(Tensor, Tensor.clone, structure)


def detached(structure: Any) -> Any:
    """Return the structure without the gradients of its tensors."""
    return tree_map_only(Tensor, Tensor.detach, structure)


def same_truth(value: Any, expected: bool, path: str) -> None:
    """Raise ``OtherCourseError`` unless the condition is what it was on the example inputs."""
    _same(bool(value), expected, path)


def same_number(value: Any, expected: float, path: str) -> None:
    """Raise ``OtherCourseError`` unless the number is what it was on the example inputs (it may be a size)."""
    _same(type(expected)(value), expected, path)


def same_type(value: Any, expected: torch.dtype | torch.device, path: str) -> None:
    """Raise ``OtherCourseError`` unless the elements have the type, or the device, that they were traced with."""
    _same(value, expected, path)


def same_length(value: Any, expected: int, path: str) -> None:
    """Raise ``OtherCourseError`` unless the length is what it was on the example inputs."""
    _same(len(value), expected, path)


def no_gradient(value: Tensor, expected: bool, path: str) -> None:
    """Raise ``OtherCourseError`` where a gradient is wanted, and forward would do something else."""
    if value.requires_grad is not expected:
        raise OtherCourseError(
            f"{path or 'the model'} computes something else where a gradient is wanted (it asks `requires_grad` or the "
            "like), and was canonized for where none is; take the question out of its forward, or run it under "
            "torch.no_grad()."
        )


def same_state(question: Question, expected: bool, path: str) -> None:
    """Raise ``OtherCourseError`` where a function of torch says otherwise of how the model is run."""
    name, *given = question
    if getattr(torch, name)(*given) is not expected:
        raise OtherCourseError(
            f"{path or 'the model'} computes something else where torch.{name}() is {not expected}, and was canonized "
            f"for {expected}; run it like that, or take the question out of its forward."
        )


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Stand for a hook on a tensor."""


_MEASURES: Final[Any] = {same_truth: bool, same_length: len, same_type: _itself}


def _same(now: object, expected: object, path: str) -> None:
    if now != expected:
        raise OtherCourseError(
            f"the course of {path or 'the model'} depends on its input: here on a value that is {now!r} and was "
            f"{expected!r} for the example_inputs; canonize with example_inputs that are like this input."
        )


def _by_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Any, Any]:
    """Return the arguments of a call by their position or their name."""
    return {**dict(enumerate(args)), **kwargs}


def _with(args: tuple[Any, ...], kwargs: dict[str, Any], others: dict[Any, Any]) -> tuple[Any, Any]:
    """Return the arguments of a call with others in place of some."""
    values = _by_key(args, kwargs) | others
    return tuple(values[index] for index in range(len(args))), {name: values[name] for name in kwargs}


def _first_by_position(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with the first one by position, if it was passed by name and need not be."""
    if args or not kwargs:
        return args, kwargs
    name = _name_of_first(function)
    if name is None or name not in kwargs:
        return args, kwargs
    return (kwargs[name],), {key: value for key, value in kwargs.items() if key != name}


def _name_of_first(function: Callable[..., Any]) -> str | None:
    schema = getattr(function, "_schema", None)  # of an operator of torch.ops
    if schema is not None:
        return schema.arguments[0].name
    try:
        first = next(iter(inspect.signature(function).parameters.values()))
    except (ValueError, TypeError, StopIteration):  # built in, without a signature: functions of torch have `input`
        return None if function in _OTHERWISE else "input"
    return first.name if first.kind is first.POSITIONAL_OR_KEYWORD else None


def _is_method_in_place(kind: str, target: Any) -> bool:
    return kind == "call_method" and str(target).endswith("_") and not str(target).endswith("__")


def _source(owner: type) -> tuple[str, int]:
    """Return the file and line of the call that is being recorded by the forward of a class.

    It is the innermost in the package of that class, which is at most what the forward calls; where there is none (the
    class is torch's), the innermost that is not ours or torch's. What called for the trace has written nothing.
    """
    frame, innermost = sys._getframe(2), None
    while frame is not None and frame.f_code is not SymbolicTracer.trace.__code__:
        if not frame.f_code.co_filename.startswith(_OWN):
            innermost = innermost or frame
            if str(frame.f_globals.get("__name__")).partition(".")[0] == owner.__module__.partition(".")[0]:
                innermost = frame
                break
        frame = frame.f_back
    return ("", 0) if innermost is None else (innermost.f_code.co_filename, innermost.f_lineno)
