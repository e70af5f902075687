"""What models and users seldom do: refusals that stand in nobody's way, and branches that few calls take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.nn.quantized import QFunctional

from canon_bridge import canonize, canonized_copy, plan
from canon_bridge.captum import LRP, presets, rules
from canon_bridge.core.explicit import Add, OfRank
from canon_bridge.core.layers.weights import make_tensors_plain
from canon_bridge.core.restore import Edits
from tests.support.errors import relative_error
from tests.support.pieces import Written, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

OTHER = "last acts on another dimension than the channels"
OBSTACLES: dict[str, tuple[Callable[..., Any], str]] = {
    "parts that are stacked": (
        lambda m, x: m.last(torch.stack(m.norm(x).chunk(2, 1)).sum(0)),
        "sum does not keep constants: it sums, scales or mixes channels",
    ),
    "rows and not channels": (
        lambda m, x: m.last(m.norm(x).transpose(1, 2).chunk(3, 1)[0]),
        OTHER,
    ),
    "channels on different axes": (
        lambda m, x: m.last(torch.cat([y := m.norm(x)[:, :, :4, :4], y.transpose(1, 2)], 1)[:, 3:5]),
        OTHER,
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_stands_in_the_way_to_the_right(name: str) -> None:
    function, reason = OBSTACLES[name]
    model = randomize(Written(function, norm=norm(), last=conv(2))).double()
    x, before = image(), Snapshot(model)
    expected = model(x)
    (leftover,) = plan(model, prefer="right").leftovers
    assert reason in leftover.reason
    with canonize(model, prefer="right"):
        assert relative_error(model(x), expected) < 1e-12
    before.check()


class Flagged(nn.Module):
    """Its forward has a flag, and nothing in it that becomes a module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        y = self.norm(self.conv(x))
        return self.conv(y) if twice else y


def test_a_forward_that_is_not_written_anew_refuses_another_flag_too() -> None:
    model, x = randomize(Flagged()).double(), image()
    before, expected = Snapshot(model), model(x)
    with canonize(model):
        assert relative_error(model(x, False), expected) < 1e-12
        with pytest.raises(ValueError, match="twice"):
            model(x, True)
    before.check()


def test_a_layer_with_a_computed_weight_that_nothing_calls_is_copied() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        idle = nn.utils.weight_norm(conv())
    model = randomize(Written(lambda m, x: m.norm(m.first(x)), first=conv(), norm=norm(), idle=idle)).double()
    before, expected = Snapshot(model), model(image()).shape
    assert canonized_copy(model)(image()).shape == expected
    before.check()


def test_a_quantized_module_is_refused() -> None:
    kind = type("Linear", (nn.Linear,), {"__module__": "torch.ao.nn.quantized.modules.linear"})
    for module, name in ((kind(2, 2), "Linear"), (QFunctional(), "QFunctional")):
        with pytest.raises(TypeError, match=rf"1 is a quantized module \({name}\).*canonize the model it came from"):
            plan(nn.Sequential(nn.ReLU(), module).eval())


def test_bounds_of_a_box_that_fit_no_input() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 2)).eval()
    box = rules.ZBox(low=torch.zeros(4, 4), high=1.0)
    preset = presets.Preset(first_map=[(nn.Conv2d, box)], layer_map=[(nn.Linear, rules.Epsilon())])
    with pytest.raises(ValueError, match="4, 4"):
        LRP(model, preset).attribute(torch.randn(1, 3, 4, 4), target=0)


def test_a_copy_for_one_number_of_dimensions_refuses_another() -> None:
    assert torch.equal(OfRank((2, 3))(torch.ones(1, 2)), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"canonized for 2 or 3 dimensions here, but got \(1, 2, 3, 4\)"):
        OfRank((2, 3))(torch.ones(1, 2, 3, 4))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x, 2, return_indices=True),
        lambda x: F.max_pool2d(x, 2, 2, 0, 1, False, True),
        lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True),
        lambda x: F.adaptive_max_pool2d(x, 2, True),
    ],
)
def test_a_pool_with_two_outputs_has_no_module(pool: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    for outputs, modules in ((pool, 0), (lambda x: (F.max_pool2d(x, 2), None), 1)):
        model = Written(lambda m, x, outputs=outputs: outputs(m.first(x))[0], first=conv()).eval()
        assert sum(len(rewrite.children) for rewrite in plan(model).rewrites) == modules


def test_an_operation_shows_which_operand_is_the_signal() -> None:
    assert (repr(Add()), repr(Add(1))) == ("Add()", "Add(signal=1)")


def test_a_layer_that_computes_nothing_stays_as_it_is() -> None:
    layer = nn.Linear(2, 2)
    before = Snapshot(layer)
    make_tensors_plain(Edits(), layer)
    before.check()


class Parted(nn.Module):
    """Its block is given a list or a dictionary; what it computes is written as operators."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named = named
        self.conv, self.norm, self.block = conv(), norm(), Joining()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.block({"left": y, "right": x}) if self.named else self.block([y, x])


class Joining(nn.Module):
    def forward(self, parts: Any) -> Tensor:
        first, second = (parts["left"], parts["right"]) if isinstance(parts, dict) else parts
        return first + second if bool(first.sum() > -1e9) else first


@pytest.mark.parametrize("named", [False, True])
def test_parts_in_a_list_or_a_dictionary_traced_with_values(named: bool) -> None:
    model, x = randomize(Parted(named)).double(), image()
    before, expected = Snapshot(model), model(x)
    with canonize(model, example_inputs=x):
        assert relative_error(model(x), expected) < 1e-12
        assert [name for name, _ in model.block.named_children()], "the sum is no module"
    before.check()


def test_questions_of_a_forward_about_a_tensor_traced_with_values() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.first(x))
        assert {y: 1}[y] == 1
        assert bool(y.sum() > -1e9)  # it has no course without values
        return y * 2 if y.requires_grad else y

    model = randomize(Written(forward, first=conv(), norm=norm())).double()
    x = image()
    with torch.no_grad():
        expected = model(x)
        with canonize(model, example_inputs=x):
            assert relative_error(model(x), expected) < 1e-12
