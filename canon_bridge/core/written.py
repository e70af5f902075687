"""Forwards that canonization writes: functions made from source, which can be copied and saved with their module.

pickle stores functions by name, and finds none that was made from source. So a written forward is stored as its source
with what the source refers to.
"""

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from canon_bridge.core.portable import Portable, portable
from canon_bridge.core.trace.flow import OtherCourseError, fits


class Written:
    """A forward, ``forward(self, ...)``, to be bound to a module.

    Parameters
    ----------
    body : str or callable
        Its source, which defines ``forward``; or the function itself, where there are only checks to add.
    names : mapping
        What the source refers to.
    path : str
        The module, for messages.
    signature : inspect.Signature
        That of the forward in whose place it comes.
    written : tuple of str
        Attributes of the module that the source puts out after its result, to be set.
    expected : mapping
        For arguments that are not data alone, the pattern that they must have.
    flags : mapping
        What attributes of the module must be: the source holds them as constants.

    Raises
    ------
    ValueError
        When it is called with other arguments, or in another mode or with other flags.
    """

    def __init__(
        self,
        body: str | Callable[..., Any],
        names: Mapping[str, Any],
        path: str,
        signature: inspect.Signature,
        written: tuple[str, ...] = (),
        expected: Mapping[str, Any] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> None:
        body = body.found if isinstance(body, Portable) else body  # as it comes from a file
        self.body, self.names, self.path = body, dict(names), path
        self.signature, self.written = signature, written
        self.expected, self.flags = dict(expected or {}), dict(flags or {})
        self.__wrapped__ = _compiled(body, self.names, path) if isinstance(body, str) else body
        self.__name__ = "forward"
        self.__code__ = inspect.unwrap(self.__wrapped__).__code__  # which torch.export asks for

    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Compute the forward of a module."""
        for name, wanted in self.flags.items():
            found = getattr(module, name, None)
            if type(found) is not type(wanted) or found != wanted:
                self._refuse(name, found, wanted)
        if self.expected:
            self._check(args, kwargs)
        result = self.__wrapped__(module, *args, **kwargs)
        if not self.written:
            return result
        result, *values = result
        for name, value in zip(self.written, values, strict=True):
            setattr(module, name, value)
        return result

    def _refuse(self, name: str, found: Any, wanted: Any) -> None:
        if name == "training":
            state = f"is in {'training' if found else 'evaluation'} mode"
            former = "in the other one. Change the mode outside the block."
        else:
            state, former = f"has {name}={found!r}", f"with {wanted!r}. Set it before."
        raise ValueError(
            f"{self.path or 'the model'} {state} now, and its forward asks for that: it was canonized {former}"
        )

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, wanted in self.expected.items():
            if not fits(bound.arguments[name], wanted):
                raise OtherCourseError(
                    f"{self.path or 'the model'} was called with another {name} than it was canonized for "
                    f"({wanted!r}); pass example_inputs with all the arguments that you will use."
                )

    def __reduce__(self) -> tuple[Any, ...]:
        names = {name: portable(value) for name, value in self.names.items()}
        signature = self.signature.replace(
            parameters=[p.replace(annotation=p.empty) for p in self.signature.parameters.values()],
            return_annotation=inspect.Signature.empty,
        )
        body = self.body if isinstance(self.body, str) else portable(self.body)
        return type(self), (body, names, self.path, signature, self.written, self.expected, self.flags)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Written":
        return self  # it holds no tensor


def _compiled(source: str, names: dict[str, Any], path: str) -> Callable[..., Any]:
    namespace = {name: value.found if isinstance(value, Portable) else value for name, value in names.items()}
    namespace["__name__"] = __name__
    exec(compile(source, f"<canon_bridge: forward of {path or 'the model'}>", "exec"), namespace)
    # What it is called belongs to the function by now; in its globals dynamo takes it for the module that holds them.
    del namespace["__name__"]
    return namespace["forward"]
