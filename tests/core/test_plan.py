"""The plan in print: totals, groups, then one line for each BatchNorm in the order in which they are resolved."""

import copy
import pickle
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from canon_bridge import Leftover, Merge, Refusal, canonize, plan
from canon_bridge.core.plan import kind_of
from tests.support.errors import relative_error
from tests.support.models import small_densenet
from tests.support.pieces import BOTH, NETWORKS, Written, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


class Network(nn.Module):
    """One of everything: merged left, right, through an activation, into several; a leftover; one not called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(), norm(), nn.ReLU(True))
        self.before, self.first, self.second = norm(), conv(), conv(4, 4, 1, 0)
        self.alone, self.unused = norm(), norm()
        self.last = norm()
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 2)
        y = self.before(x)
        x = self.first(y) + self.second(y)
        x = F.relu(self.last(torch.softmax(self.alone(x), 1)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


TABLE = """\
plan for Network (prefer='left', clipped='absorb', leftover='linear')
total: 5 BatchNorms: 1 merged left, 2 merged right, 2 to explicit linear layers, 0 left as they are; \
5 operations made modules

count  what happens                     through, or why                                                          first
1      merged left                      -                                                                        stem.1
1      merged right                     -                                                                        before
1      made a per-channel linear layer  left: Add before it is not linear; \
right: softmax after it is not linear  alone
1      merged right                     ReLU, adaptive_avg_pool2d, flatten                                  last
1      made a per-channel linear layer  it is not called in forward                                              unused

BatchNorms are resolved in the order of the data flow, each after those before it: the preferred direction, then the \
other one, then what `leftover` says.

order  BatchNorm  direction  merged into                 through, or why
1      stem.1     left       stem.0                      -
2      before     right      first, second               -
3      alone      -          a per-channel linear layer  left: add (Add) before it is not linear; \
right: softmax after it is not linear
4      last       right      classifier                  ReLU relu, adaptive_avg_pool2d, flatten
5      unused     -          a per-channel linear layer  it is not called in forward

explicit modules in the model itself: max_pool2d, add, softmax, relu, adaptive_avg_pool2d"""


def cells(text: str) -> list[list[str]]:
    """Return the cells of each line, without the rules and the widths of the columns, which nobody reads."""
    lines = [line for line in text.splitlines() if not line.startswith("---")]
    return [[cell.strip() for cell in line.split("  ") if cell] for line in lines]


def test_the_plan_is_printed_with_a_total_groups_and_details() -> None:
    made = plan(randomize(Network()))
    text = str(made)
    assert cells(text) == cells(TABLE)
    assert {len(line) - len(line.rstrip()) for line in text.splitlines()} == {0}
    assert text.splitlines()[1] == made.total()


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_leftovers_and_their_reasons_can_be_sent_to_another_process(again: Callable[[Any], Any]) -> None:
    left = plan(Network().eval()).leftovers
    sent = [again(entry) for entry in left]
    assert tuple(sent) == tuple(left)
    assert [kind_of(again(entry.reason)) for entry in left] == [kind_of(entry.reason) for entry in left]
    assert kind_of(sent[0].reason) != sent[0].reason


def test_the_entries_are_in_the_order_of_the_flow_and_fall_into_three_kinds() -> None:
    made = plan(randomize(Network()))
    assert [entry.norm for entry in made.entries] == ["stem.1", "before", "alone", "last", "unused"]
    assert [merge.norm for merge in made.merges] == ["stem.1", "before", "last"]
    assert [type(entry) for entry in made.entries] == [Merge, Merge, Leftover, Merge, Leftover]
    assert {*made.merges, *made.leftovers, *made.refusals} == {*made.entries}


def test_every_keyword_has_its_say() -> None:
    model = randomize(nn.Sequential(nn.MaxPool2d(2), conv(), norm(), conv(), nn.Softmax(1), norm()))
    left, right = plan(model), plan(model, prefer="right", clipped="pass", leftover="keep")
    assert (left.merges[0].chain.direction, right.merges[0].chain.direction) == ("left", "right")
    assert (len(left.leftovers), len(left.refusals)) == (1, 0)
    assert (len(right.leftovers), len(right.refusals)) == (0, 1)
    assert set(left.leftovers[0].reason.split("; ")) == set(right.refusals[0].reason.split("; "))
    assert "(prefer='right', clipped='pass', leftover='keep')" in str(right)


@pytest.mark.parametrize("prefer", BOTH)
def test_a_leftover_says_for_each_direction_what_stood_in_the_way_the_preferred_one_first(prefer: Any) -> None:
    (entry,) = plan(randomize(nn.Sequential(nn.Softmax(1), norm())), prefer=prefer).leftovers
    reasons = {
        "left": "left: 0 (Softmax) before it is not linear",
        "right": "right: the output of the model after it is not linear",
    }
    assert entry.reason == "; ".join(sorted(reasons.values(), key=lambda reason: not reason.startswith(prefer)))


@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("network", NETWORKS)
def test_known_networks_are_merged_to_the_last_norm(network: str, prefer: Any) -> None:
    model = randomize(NETWORKS[network]())
    before = Snapshot(model)
    made = plan(model, prefer=prefer)
    before.check()
    norms = {path for path, module in model.named_modules() if isinstance(module, _BatchNorm)}
    assert {merge.norm for merge in made.merges} == norms
    assert len(made.entries) == len(norms)
    assert made.uncovered == ()
    # A linear layer takes at most one BatchNorm on each side.
    taken = [(merge.chain.direction, target) for merge in made.merges for target in merge.chain.targets]
    assert len(taken) == len(set(taken)) >= len(norms)
    text = str(made)
    for path in norms:
        assert sum(line.split()[1:2] == [path] for line in text.splitlines()) == 1
    assert f"total: {len(norms)} BatchNorms" in text


class Block(nn.Module):
    """Five BatchNorms: left, right through an activation, one of either and two leftovers, of any width."""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.conv1, self.norm1, self.norm2, self.conv2 = conv(width, wide), norm(wide), norm(wide), conv(wide, width)
        self.act, self.norm3, self.gate, self.norm4 = nn.SiLU(), norm(width), nn.Softmax(1), norm(width)
        self.rows, self.norm5 = nn.Linear(wide + 1, 5), norm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm3(self.conv2(self.act(self.norm2(F.relu(self.norm1(self.conv1(x)))))))
        return x + y * self.norm4(self.gate(y)) + self.rows(self.norm5(x + y)).sum()


def test_five_hundred_norms_are_summed_up_before_they_are_listed() -> None:
    made = plan(randomize(nn.Sequential(*(Block(2, 2 + index % 7) for index in range(100)))))
    lines = str(made).splitlines()
    counts = lines.index("", lines.index("") + 1)
    groups = [line.split(maxsplit=1) for line in lines[5:counts]]
    # One line for each way that is taken, however many modules and widths take it, the most frequent first.
    assert len(groups) <= 6
    assert [int(count) for count, _ in groups] == sorted((int(count) for count, _ in groups), reverse=True)
    assert sum(int(count) for count, _ in groups) == 500
    assert lines[1].startswith("total: 500 BatchNorms: 200 merged left, 100 merged right, 200 to explicit linear")
    assert all(len(line) <= 160 for line in lines[:counts])
    details = lines[counts + 5 : counts + 505]
    assert [int(line.split()[0]) for line in details] == list(range(1, 501))
    assert [line.split()[1] for line in details] == [entry.norm for entry in made.entries]
    assert sum("left: " in line and "right: " in line for line in details) == 200
    assert "resolved in the order of the data flow" in lines[counts + 1]


def test_a_group_is_named_by_what_happens_whatever_the_modules_are_called() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.the, self.it, self.pooling = nn.Linear(3, 4), norm(), norm(), nn.ReLU()
            self.pool, self.conv = nn.AdaptiveAvgPool2d(1), conv()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.left(self.the(x)), self.conv(self.pool(self.pooling(self.it(x))))

    leftover, merged = plan(randomize(Named())).entries
    assert isinstance(leftover, Leftover)
    assert leftover.group[1] == (
        "left: no linear layer comes before it; right: Linear acts on another dimension than the channels"
    )
    assert merged.group == ("merged right", "ReLU, adaptive_avg_pool2d")
    numbered = nn.Sequential(norm(), nn.Flatten(2), nn.Softmax(2), nn.Linear(9, 9), nn.BatchNorm1d(4), nn.Linear(9, 9))
    assert "BatchNorm1d" not in plan(randomize(numbered)).leftovers[-1].group[1]


def test_a_model_without_norms_has_a_plan_too() -> None:
    text = str(plan(nn.Sequential(conv(), nn.ReLU()).eval()))
    assert text.splitlines()[1].startswith("total: 0 BatchNorms")
    assert "direction" not in text
    assert "order" not in text


def test_what_else_is_changed_is_listed() -> None:
    layer = nn.utils.parametrizations.weight_norm(conv())
    model = Written(lambda m, x: m.a(F.relu(x)) + m.b(m.norm(x)).mul(x.sum()), a=layer, b=conv(), norm=norm())
    text = str(plan(model))
    assert "explicit modules in the model itself: relu, sum, multiply, add" in text
    assert "computed weights made parameters: a" in text
    odd = Written(lambda m, x: m.norm(x).cumprod(1), norm=norm())
    assert "operations without a rule, in whose place the map has a gradient:\n- cumprod in the model itself" in str(
        plan(odd)
    )


def test_modules_in_place_that_nobody_relies_on_are_listed() -> None:
    model = nn.Sequential(conv(), nn.ReLU(True), conv(), nn.LeakyReLU(0.1, True), nn.ReLU()).eval()
    assert plan(model).out_of_place == ("1", "3")

    def overwritten(model: nn.Module, x: Tensor) -> Tensor:
        y = model.a(x)
        return model.relu(y) + y  # y is the result of the ReLU by now

    def under_another_name(model: nn.Module, x: Tensor) -> Tensor:
        y = model.a(x)
        z = y.flatten(2)
        return model.relu(y).flatten(2) + z

    # A new forward hands the result on to those who read the name that was overwritten, and to no others.
    for function, made in ((overwritten, ("relu",)), (under_another_name, ())):
        model, x = Written(function, a=conv(), relu=nn.ReLU(True)), image()
        assert plan(model).out_of_place == made
        expected = model(x)
        with canonize(model):
            assert relative_error(model(x), expected) == 0


def test_a_refusal_is_printed_with_its_reason() -> None:
    layer = nn.BatchNorm2d(4, eps=0)
    made = plan(nn.Sequential(conv(), layer).eval())
    assert made.refusals == (Refusal("1", "it is the identity already"),)
    assert cells(str(made))[-1] == ["1", "1", "-", "nothing", "it is the identity already"]


def test_lines_are_not_wider_than_a_reader_can_follow():
    model = small_densenet()
    for prefer in ("left", "right", "untangled"):
        made = plan(model, prefer=prefer)
        lines = [line for line in str(made).splitlines() if not line.startswith(("total", "BatchNorms are"))]
        assert max(map(len, lines)) <= 170
    assert all(entry.norm in str(made) for entry in made.entries)


def test_a_notebook_shows_totals_what_stays_and_what_has_no_rule():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.gru = nn.BatchNorm1d(4), nn.GRU(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(self.norm(x) * x)[0]

    made = plan(Model().eval(), leftover="keep")
    html = made._repr_html_()
    assert made.total() in html
    assert "1 left as they are" in html
    assert "operations without a rule" in html
    assert "<td" in html
    parsed = ElementTree.fromstring(
        html.replace("<wbr>", "").replace("<br>", "").replace("<details open>", "<details>")
    )
    cells = ["".join(cell.itertext()) for cell in parsed.iter("td")]
    assert {"norm", "GRU", made.refusals[0].reason} <= set(cells)
    assert all(entry.norm in cells for entry in made.entries)
