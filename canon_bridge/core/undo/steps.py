"""Steps of a restoration: all of them are carried out, whatever happens in between.

Floor 0: imports nothing of the package.
"""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def run_all(items: list[T], action: Callable[[T], None]) -> None:
    """Carry out an action on each item, last first, and take the items out of the list.

    An exception keeps none of the others from its turn; the first one is raised at the end. An item whose action
    raises gets it once more, for an interrupt may have cut it short: an action must be such that it can be repeated.
    A call that was interrupted itself can be repeated, too; the list holds what is left to do.
    """
    try:
        failure = _run(items, action)
    except BaseException as error:  # an interrupt between two items
        failure = _run(items, action) or error
    if failure is not None:
        raise failure


def refill(keys: dict[Any, Any], items: dict[Any, Any]) -> None:
    """Empty a dictionary and put the items into it, in their order; an interrupt leaves none of them out."""
    try:
        _ = keys.clear(), keys.update(items)  # on one line: an interrupt between two lines finds all or nothing done
    finally:
        keys.update(items)


def _run(items: list[T], action: Callable[[T], None]) -> BaseException | None:
    failure: BaseException | None = None
    is_second = False
    while items:
        try:
            action(items[-1])
            items.pop()
            is_second = False
        except BaseException as error:  # whatever it is, the others must have their turn
            failure = failure or error
            if is_second:
                items.pop()
            is_second = not is_second
    return failure
