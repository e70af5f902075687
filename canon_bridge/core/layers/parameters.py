"""What goes into a parameter slot: a Parameter with values of its own, or one that is computed from others.

The second kind keeps the graph to what it was computed from, so that gradients reach
the parameters of the original model.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from canon_bridge.core.restore import Edits, slots

_KEEPS_GRAPH: Final = ContextVar("_KEEPS_GRAPH", default=False)


class LiveParameter(Tensor):
    """A parameter that is computed from other parameters, and through which gradients reach them.

    A framework that takes ``param.data``, changes it and wraps it as a new Parameter would cut the graph; here
    ``data`` and ``detach()`` are the tensor itself, and what is computed from live parameters alone is live, too. What
    is computed together with any other tensor, as in the forward of a layer, is a plain tensor.
    """

    _is_param = True  # for isinstance(…, nn.Parameter)
    data = property(lambda self: self)
    # Modules refuse parameters that are the result of a computation. (To the type checker an attribute is no property.)
    grad_fn = property(lambda _: None)  # pyright: ignore[reportAssignmentType]

    def detach(self) -> "LiveParameter":
        """Return the tensor itself, with its graph."""
        return self

    def plain(self) -> nn.Parameter:
        """Return a Parameter of its own with the same values."""
        return nn.Parameter(self.as_subclass(Tensor).detach().clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.plain().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if all(isinstance(tensor, LiveParameter) for tensor in tensors):
                return tree_map_only(Tensor, lambda tensor: tensor.as_subclass(LiveParameter), result)
            return result


@contextmanager
def keeping_graph(keeps: bool) -> Generator[None]:
    """Inside, :func:`parameter` and :func:`tracked` keep the graph to what values were computed from, or do not."""
    token = _KEEPS_GRAPH.set(keeps)
    try:
        with torch.inference_mode(False), torch.set_grad_enabled(keeps):  # in this order: the first enables gradients
            yield
    finally:
        _KEEPS_GRAPH.reset(token)


def gradients() -> torch.set_grad_enabled:
    """Return a context in which gradients are recorded if the graph is kept."""
    return torch.set_grad_enabled(_KEEPS_GRAPH.get())


def tracked(value: Tensor) -> Tensor:
    """Return the values of a tensor, with its graph if that is kept."""
    return value if _KEEPS_GRAPH.get() or not value.requires_grad else value.detach()


def parameter(value: Tensor, requires_grad: bool) -> Tensor:
    """Return a Parameter with these values, live if the graph is kept and there is one."""
    if _KEEPS_GRAPH.get() and value.requires_grad:
        return live(value)
    return nn.Parameter(value.detach() if value.requires_grad else value, requires_grad)


def trial_input(like: Tensor, *sizes: int) -> Tensor:
    """Return numbers of both signs to try a taught layer on, in the precision and on the device of a tensor."""
    numbers = like.new_empty(sizes)
    return numbers.copy_(torch.linspace(-2, 2, numbers.numel()).view_as(numbers))


def live(value: Tensor) -> LiveParameter:
    """Return a live view of a tensor."""
    with torch.enable_grad():
        return value.as_subclass(LiveParameter)


def make_live(edits: Edits, modules: Iterable[nn.Module]) -> None:
    """Put live views into the place of all parameters that require gradients; one that is shared stays shared."""
    views: dict[int, LiveParameter] = {}
    for module in modules:
        for name, value in list(slots(module, "_parameters").items()):
            if isinstance(value, nn.Parameter) and value.requires_grad and not isinstance(value, LiveParameter):
                edits.set(module, "_parameters", name, views.setdefault(id(value), live(value)))
