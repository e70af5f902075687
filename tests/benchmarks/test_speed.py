"""That the benchmark of speed fills every row of its table, and writes what was asked for; never how long it takes."""

import json
from itertools import product

import pytest
import torch
from torch import nn

from benchmarks.speed import __main__ as speed
from benchmarks.speed import page
from benchmarks.speed.figures import MIB, ROWS, Figure, goal
from benchmarks.speed.page import Document
from benchmarks.speed.probes import by_zennit
from benchmarks.speed.timing import FEWEST, Clock, Probe, Rounds, interleave

pytestmark = pytest.mark.zennit

NAME = "residual2"
ONLY_ZENNITS_OWN = {"own_open", "own_more"}  # for ResNets and VGGs


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    names = {kind: folder / f"speed.{kind}" for kind in ("json", "md", "png")}
    threads = torch.get_num_threads()
    options = ["--json", names["json"], "--markdown", names["md"], "--plot", names["png"]]
    try:
        speed.main(["--quick", "--models", NAME, *map(str, options)])
    finally:
        torch.set_num_threads(threads)
    return names


@pytest.mark.slow
def test_every_row_is_there(quick):
    document = Document.read(json.loads(quick["json"].read_text()))
    assert {figure.row for figure in document.figures} == set(ROWS) - ONLY_ZENNITS_OWN
    for figure in document.figures:
        if figure.value is None:
            assert figure.note.startswith("raises ")
        else:
            assert figure.low <= figure.value <= figure.high
            assert figure.repetitions >= 1
    assert len({figure.key for figure in document.figures}) == len(document.figures)
    for row in ("first", "plan", "apply", "undo", "again", "forward", "copy", "ours_open", "lrp_over_zennit", "memory"):
        assert {figure.prefer for figure in document.named(row)} == {"left", "right"}
    assert {figure.batch for figure in document.named("forward")} == {1, speed.QUICK.batch}
    assert {figure.size for figure in document.named("lrp")} == {*speed.QUICK.sizes, speed.QUICK.size}
    for found in document.parts:
        assert sum(found.shares.values()) == pytest.approx(1)
    assert {(found.row, found.prefer) for found in document.parts} == {
        ("plain_open", ""),
        *product(("plan", "again", "forward", "copy", "ours_open", "lrp"), ("left", "right")),
    }
    for found in document.parts:
        assert found.python
        assert sum(found.python.values()) <= 1 + 1e-9
    parts = sum(document.named(row)[0].value for row in ("plan", "apply", "undo"))
    assert parts == pytest.approx(document.named("first")[0].value, rel=0.5)  # medians of the parts and of the whole


@pytest.mark.slow
def test_the_page_says_how_it_was_made(quick):
    written = quick["md"].read_text()
    for part in ("torch ", "zennit ", "captum ", "1 thread", "processor time", "](speed.png)", "--quick"):
        assert part in written
    for row in set(ROWS) - ONLY_ZENNITS_OWN:
        assert f"| {ROWS[row][1]} | " in written
    assert "convolutions " in written.partition("## What they are made of")[2]
    assert quick["png"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_earlier_run_stands_beside(quick, tmp_path):
    path = tmp_path / "again.md"
    speed.main(["--from", str(quick["json"]), "--before", str(quick["json"]), "--markdown", str(path)])
    document = Document.read(json.loads(quick["json"].read_text()))
    forward = page.amount(document.named("forward")[0].value, "forwards")
    assert f"| {forward} | {forward} | " in path.read_text()


def test_zennits_own_canonizers_are_for_their_architectures():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).eval()
    found = [probe.rows for probe in speed.probes.by_zennit_alone(model, torch.ones(1, 3, 4, 4), "vgg11_bn")]
    assert found == [("plain_open", "plain_more"), ("own_open", "own_more")]


def test_what_raises_is_a_figure_and_the_rest_goes_on():
    def fail(clock):
        raise KeyError("no such rule")

    probes = [Probe("", ("captum_own",), fail), Probe("left", ("again",), lambda clock: {"again": 3.0})]
    figures = {figure.row: figure for figure in interleave(Clock(), lambda: None, probes, Rounds(5, 60), model="a")}
    assert figures["captum_own"].value is None
    assert figures["captum_own"].note == "raises KeyError: 'no such rule'"
    assert figures["again"].repetitions == 5
    assert figures["again"].milliseconds == 3000


@pytest.mark.parametrize(("seconds", "expected"), [(60, 5), (0, FEWEST)])
def test_rounds_end_when_their_time_is_over(seconds, expected):
    assert len(list(Rounds(5, seconds))) == expected


def test_goals_depend_on_the_model_the_side_and_what_is_merged():
    memory = Figure.of("memory", [70.0], model="a", prefer="left", unit=MIB)
    merged = Figure.of("merged", [30.0], model="a", prefer="left", unit=MIB)
    assert goal(memory, [memory, merged]) == 1.2 * 30 + 20
    assert goal(Figure("again", "vgg16_bn", "right"), []) == 1.1
    assert goal(Figure("forward", "vgg16_bn", "right", 8, 224), []) == 1.1
    assert goal(Figure("forward", "vgg16_bn", "right", 1, 64), []) is None
    assert goal(Figure("again", "efficientnet_b0", "right"), []) is None
    lines = page.markdown(Document("command", "setting", {}, [memory, merged]), None, None)
    assert "| 56 MiB |  | **70 MiB** |" in lines


def test_a_context_that_is_entered_attributes_twice():
    calls = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    model.register_forward_hook(lambda *_: calls.append(1))
    found = by_zennit(model, torch.ones(1, 3, 2, 2), "plain", "", ()).run(Clock())
    assert len(calls) == 2
    assert set(found) == {"plain_open", "plain_more"}
