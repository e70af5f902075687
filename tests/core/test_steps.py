"""Steps of a restoration are all carried out, whatever is raised, and wherever."""

import pytest

from canon_bridge.core.undo.steps import refill, run_all


class Interrupted(list[int]):
    """A list that is interrupted once, between two of its items."""

    def __init__(self, items: list[int], at: int) -> None:
        super().__init__(items)
        self.at = at

    def __bool__(self) -> bool:
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt
        return len(self) > 0


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_interrupt_between_two_items_keeps_none_from_its_turn(at: int) -> None:
    items, done = Interrupted([1, 2, 3], at), list[int]()
    with pytest.raises(KeyboardInterrupt):
        run_all(items, done.append)
    assert done == [3, 2, 1]
    assert len(items) == 0


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize("times", [1, 2])
def test_an_item_that_raises_has_a_second_turn_and_no_third(failing: int, times: int) -> None:
    items, done = [1, 2, 3], list[int]()

    def act(item: int) -> None:
        done.append(item)
        if item == failing and done.count(item) <= times:
            raise ValueError(item, done.count(item))

    with pytest.raises(ValueError, match=rf"\({failing}, 1\)"):
        run_all(items, act)
    assert sorted(done) == sorted([1, 2, 3, failing])
    assert not items


def test_nothing_is_raised_where_nothing_fails() -> None:
    done: list[int] = []
    run_all([1, 2], done.append)
    assert done == [2, 1]


def test_a_dictionary_is_filled_in_the_order_of_the_items() -> None:
    keys = {"a": 1, "b": 2, "c": 3}
    refill(keys, {"c": 3, "a": 1})
    assert list(keys.items()) == [("c", 3), ("a", 1)]
