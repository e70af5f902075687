"""Blocks on the same model, on parts of it and on the whole, of the core, Captum and zennit, ended in any order."""

import itertools

import pytest
import torch
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

import canon_bridge.captum
from canon_bridge import canonize
from canon_bridge.core.restore import writes_in_force
from canon_bridge.zennit import ModelCanonizer
from tests.inside.models import BLOCKS, made, mostly
from tests.support.errors import relative_error
from tests.support.pieces import BOTH
from tests.support.snapshot import Snapshot


def ended_in_order(name: str, kinds: tuple[str, ...], order: tuple[int, ...]) -> None:
    """Enter the blocks one after the other, end them in the given order, and compare the function at each step."""
    model, x, expected = made(name)
    before, blocks = Snapshot(model), []
    for kind in kinds:
        blocks.append(BLOCKS[kind](model))
        blocks[-1].__enter__()
        assert relative_error(model(x).detach(), expected) < 1e-12
    for number in order:
        blocks[number].__exit__(None, None, None)
        assert relative_error(model(x).detach(), expected) < 1e-12
    before.check()
    assert not writes_in_force(model)


@pytest.mark.parametrize("kinds", list(itertools.product(BLOCKS, repeat=2)), ids="-".join)
@pytest.mark.parametrize("name", mostly("branches"))
def test_two_blocks_on_one_model(name: str, kinds: tuple[str, ...]) -> None:
    for order in ((1, 0), (0, 1)):
        ended_in_order(name, kinds, order)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(
    "kinds", [("left", "right", "left"), ("right", "captum", "zennit"), ("zennit", "captum", "left")], ids="-".join
)
def test_three_blocks_on_one_model(kinds: tuple[str, ...], order: tuple[int, ...]) -> None:
    ended_in_order("everything", kinds, order)


PARTS = {"everything": ("", "3", "14"), "densenet": ("", "features.denseblock1.denselayer1")}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("directions", list(itertools.product(BOTH, repeat=2)), ids="-".join)
@pytest.mark.parametrize("name", PARTS)
def test_blocks_on_parts_and_on_the_whole(name: str, directions: tuple[str, str], order: tuple[int, int]) -> None:
    model, x, expected = made(name)
    before = Snapshot(model)
    for paths in itertools.permutations(PARTS[name], 2):
        blocks = []
        for path, prefer in zip(paths, directions, strict=True):
            blocks.append(canonize(model.get_submodule(path), prefer=prefer))
            blocks[-1].apply()
            assert relative_error(model(x), expected) < 1e-12
        for number in order:
            blocks[number].undo()
            assert relative_error(model(x), expected) < 1e-12
        before.check()


@pytest.mark.parametrize("prefer", BOTH)
def test_attribution_inside_another_block(prefer: str) -> None:
    model, x, _ = made("branches")
    before = Snapshot(model)

    def zennit() -> torch.Tensor:
        with Gradient(model, EpsilonPlus(canonizers=[ModelCanonizer(prefer)])) as attributor:
            return attributor(x, torch.eye(3, dtype=x.dtype)[[1, 1]])[1]

    def captum() -> torch.Tensor:
        return canon_bridge.captum.LRP(model, prefer=prefer).attribute(x, target=1)

    for attribute in (zennit, captum):
        expected = attribute()
        assert expected.abs().max() > 0
        with canonize(model, prefer=prefer):
            assert relative_error(attribute(), expected) < 1e-9
        before.check()
        assert torch.equal(attribute(), expected)


def test_entering_a_zennit_context_twice_and_leaving_it_by_an_error() -> None:
    model, x, expected = made("everything")
    before, composite = Snapshot(model), EpsilonPlus(canonizers=[ModelCanonizer("right")])

    def block() -> None:
        with composite.context(model), composite.context(model):
            assert relative_error(model(x).detach(), expected) < 1e-12
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            block()
        before.check()
