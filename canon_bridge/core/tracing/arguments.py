"""Arguments and results of containers: which parts carry data, which choose a course, and in what structure.

Floor 0: imports torch alone.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

# Types of values that choose a course in forward instead of carrying data, unless they were computed from data.
CONSTANTS: Final[frozenset[type]] = frozenset({type(None), bool, str, int, float})


# Functions of torch whose `input` is not the first argument.
_OTHERWISE: Final = frozenset({torch.where, torch.searchsorted})


class _Data:
    """Stands for any value that carries data."""

    def __repr__(self) -> str:
        return "data"


DATA: Final = _Data()


def is_proxy(value: object) -> bool:
    """Return whether the value is a proxy; not by isinstance, because a proxy may pass itself off as its value."""
    return issubclass(type(value), fx.Proxy)


def pattern(value: Any) -> Any:
    """Return the structure of an argument, with its constants, and ``DATA`` for everything else."""
    if is_proxy(value) or isinstance(value, Tensor):
        return DATA
    if type(value) in (list, tuple):
        return type(value)(pattern(item) for item in value)
    if type(value) is dict:
        return {key: pattern(item) for key, item in cast("dict[Any, Any]", value).items()}
    return value if type(value) in CONSTANTS else DATA


def fits(value: Any, expected: Any) -> bool:
    """Return whether an argument has the structure and the constants of a pattern."""
    if expected is DATA:
        return True
    if type(expected) in (list, tuple):
        same = isinstance(value, type(expected)) and len(cast("list[Any]", value)) == len(expected)
        return same and all(fits(*pair) for pair in zip(cast("list[Any]", value), expected, strict=True))
    if type(expected) is dict:
        if not isinstance(value, Mapping) or set(cast("dict[Any, Any]", value)) != set(
            cast("dict[Any, Any]", expected)
        ):
            return False
        return all(fits(value[key], item) for key, item in cast("dict[Any, Any]", expected).items())
    if isinstance(value, Tensor):
        return False
    return value is expected or value == expected


def unpack(like: Any, whole: Any) -> Any:
    """Give a proxy the structure of a value: constants as they are, data taken from the proxy part by part."""
    if type(like) in (list, tuple):
        return type(like)(unpack(item, whole[index]) for index, item in enumerate(like))
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*(unpack(item, whole[index]) for index, item in enumerate(cast("tuple[Any, ...]", like))))
    if type(like) is dict:
        return {key: unpack(item, whole[key]) for key, item in cast("dict[Any, Any]", like).items()}
    if is_proxy(like) or type(like) not in CONSTANTS:
        return whole
    return like


def kept(structure: Any) -> Any:
    """Return the structure as it is now: forward may append to a list that it has handed on."""
    if type(structure) in (list, tuple):
        return type(structure)(kept(item) for item in structure)
    if type(structure) is dict:
        return {key: kept(item) for key, item in cast("dict[Any, Any]", structure).items()}
    return structure


def by_position(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with the first one by position, if it was passed by name and need not be."""
    if args or not kwargs:
        return args, kwargs
    try:
        first = next(iter(inspect.signature(function).parameters.values()))
    except (ValueError, TypeError, StopIteration):  # built in, without a signature: functions of torch have `input`
        name = None if function in _OTHERWISE else "input"
    else:
        name = first.name if first.kind is first.POSITIONAL_OR_KEYWORD else None
    if name is None or name not in kwargs:
        return args, kwargs
    return (kwargs[name],), {key: value for key, value in kwargs.items() if key != name}


def copied(structure: Any) -> Any:
    """Return the structure with copies of its tensors: forward may overwrite what it is given."""
    return tree_map(_copy, structure)


def _copy(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value


def same_truth(value: Any, expected: bool, path: str) -> None:
    """Raise ``ValueError`` unless the condition is what it was on the example inputs."""
    _same(bool(value), expected, path)


def same_number(value: Any, expected: float, path: str) -> None:
    """Raise ``ValueError`` unless the number is what it was on the example inputs (equal, for it may be a size)."""
    _same(type(expected)(value), expected, path)


def same_length(value: Any, expected: int, path: str) -> None:
    """Raise ``ValueError`` unless the length is what it was on the example inputs."""
    _same(len(value), expected, path)


def _same(now: object, expected: object, path: str) -> None:
    if now != expected:
        raise ValueError(
            f"the course of {path or 'the model'} depends on its input: here on a value that is {now!r} and was "
            f"{expected!r} for the example_inputs; canonize with example_inputs that are like this input."
        )
