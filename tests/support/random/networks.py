"""Hypothesis strategies for descriptions of directed acyclic CNNs; see ``random_steps`` for what they look like."""

from typing import Any

import torch
from hypothesis import strategies as st

from tests.support.random import options as random_options
from tests.support.random import pools as random_pools
from tests.support.random.draft import MOVES, Draft
from tests.support.random.steps import Network, Step


def draw_network(draw: Any, plain: bool = False, size: int = 8) -> Network:
    """Draw a network with at least one BatchNorm.

    Parameters
    ----------
    plain : bool
        Only what LRP-0 has an exact rule for, with five numbers for each example as output.
    size : int
        The largest number of moves; one move may add several steps.
    """
    spatial = draw(st.sampled_from((2, 1, 3)))
    largest = 5 if spatial == 3 else 7
    shape = (draw(st.integers(1, 4)), *(draw(st.integers(3, largest)) for _ in range(spatial)))
    seed = draw(st.integers(0, 10**6))
    torch.manual_seed(seed)
    draft = Draft(draw, [torch.randn(2, *shape, dtype=torch.float64)], plain, 2, [])
    draft.moves(MOVES, 2, size)
    if not any("norm" in step.kind.lower() for step in Network(draft.steps, ()).all_steps()):
        draft.step(len(draft.values) - 1, (random_options.norm,))
    if plain or draft.maybe(50):
        last = draft.step(len(draft.values) - 1, random_pools.PLAIN_HEADS if plain else random_pools.HEADS)
        if plain and draft.values[last].dim() > 2:  # a view of what is not contiguous
            (last,) = draft.attempt(Step(".flatten", last, args=(1,)))
        draft.step(last, (random_options.head,))
    return draft.finish(shape=shape, seed=seed)


networks = st.composite(draw_network)
