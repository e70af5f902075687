"""Tracing with example inputs: control flow follows their values, and neither they nor the model are changed."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import TracingError, canonize, plan
from tests.support.errors import relative_error
from tests.support.pieces import Written, alive, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

Function = Callable[[nn.Module, Tensor], Any]


def body(m: nn.Module, x: Tensor) -> Tensor:
    return m.b(m.relu(m.norm(m.a(x))))


def refuses_others(m: nn.Module, x: Tensor) -> Tensor:
    if x.dim() != 4 or not isinstance(x, Tensor) or not torch.is_tensor(x):
        raise ValueError("images only")
    return F.relu(body(m, x))


def pads_to_a_multiple(m: nn.Module, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    x = F.pad(x, (0, -width % 4, 0, math.ceil(height / 4) * 4 - height))
    return F.relu(body(m, x))[..., :height, :width]


def loops(m: nn.Module, x: Tensor) -> Tensor:
    steps = 0
    while x.abs().max() > 0.5:
        x, steps = x / 2, steps + 1
    for _ in range(x.shape[1] - 3):
        x = body(m, x)
    return F.relu(x) + steps


def walks(m: nn.Module, x: Tensor) -> Tensor:
    parts = [F.relu(body(m, part[None])) for part in x]
    return torch.cat([part + len(parts) for part in parts if part.sum() > -1e9])


def branches_deep_inside(m: nn.Module, x: Tensor) -> Tensor:
    return F.relu(m.inner(body(m, x)) + x)


def unpacks_a_dictionary(m: nn.Module, x: Tensor) -> Tensor:
    out = m.dictionary(x)
    total = sum(F.relu(value) for value in out.values())
    if "b" in out:
        total = total + out["b"] * len(out)
    return total


def asks_for_types(m: nn.Module, x: Tensor) -> Tensor:
    parts = [x, x * 2] if isinstance(x, Tensor) and x.dtype == torch.float64 and x.ndim == 4 else x
    if not isinstance(parts, list | tuple) or len(parts) != 2 or len(x) != x.size(0) or x.is_sparse:
        raise ValueError("two parts only")
    if x.device.type == "cpu" and x.shape == parts[1].shape and 4 in x.shape and not x.is_complex():
        return F.relu(body(m, parts[0])) + parts[1]
    return x


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = conv(), nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 1e9:
            return x
        return self.relu(self.conv(self.relu(F.relu(x))))


class Dictionary(Inner):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"a": self.conv(x), "b": self.relu(x * 2)} if len(x) else {}


FORWARDS: dict[str, Function] = {
    "checks of the input": refuses_others,
    "checks of types": asks_for_types,
    "padding to a multiple": pads_to_a_multiple,
    "loops": loops,
    "a walk over the batch": walks,
    "a branch deep inside": branches_deep_inside,
    "a dictionary": unpacks_a_dictionary,
    "a number": lambda m, x: F.relu(body(m, x)) * float(x.max()) + int(x.shape[0]),
    "item": lambda m, x: F.relu(body(m, x)) * x.max().item() if x.min().item() < 9 else x,
    "comparison of shapes": lambda m, x: F.relu(y) + x if (y := body(m, x)).shape == x.shape else y,
}


def build(name: str) -> nn.Module:
    children = {"a": conv(), "norm": norm(), "relu": nn.ReLU(True), "b": conv()}
    return randomize(Written(FORWARDS[name], **children, inner=Inner(), dictionary=Dictionary()))


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", FORWARDS)
def test_forward_is_followed_on_example_inputs(name: str, prefer: str) -> None:
    model, x = build(name), image(2, 4, 6, 7)
    if name != "padding to a multiple":  # fx itself knows how to count with sizes
        with pytest.raises(TracingError, match="example_inputs"):
            plan(model)
    before, expected, kept = Snapshot(model), model(x), x.clone()
    canonization = canonize(model, prefer=prefer, example_inputs=x)
    before.check()
    assert torch.equal(x, kept)
    with canonization:
        assert alive(model) == []
        assert relative_error(model(x), expected) < 1e-12
    before.check()


def test_the_same_course_holds_for_other_inputs() -> None:
    model, x = build("checks of the input"), image(2, 4, 6, 7)
    with canonize(model, example_inputs=image(1, 4, 5, 5)):
        inside = model(x)
    assert relative_error(inside, model(x)) < 1e-12


def test_hooks_of_the_user_do_not_run_and_nothing_is_left() -> None:
    model, calls = build("a branch deep inside"), []
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    before, x, state = Snapshot(model), image(), torch.get_rng_state()
    plan(model, example_inputs=x)
    before.check()
    assert calls == []
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_an_operation_in_place_spoils_neither_the_inputs_nor_a_buffer() -> None:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        m.steps.add_(1)
        x = m.relu(x.sub_(1))
        return m.a(x) if x.sum() > -1e9 else x

    model, x = Written(function, a=conv(), relu=nn.ReLU(True)), image()
    model.register_buffer("steps", torch.zeros(()))
    before, kept = Snapshot(model), x.clone()
    plan(model, example_inputs=x)
    assert torch.equal(x, kept)
    before.check()


def test_several_inputs_and_those_that_are_left_out() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.relu = norm(), conv(), nn.ReLU(True)

        def forward(self, x: Tensor, others: tuple[Tensor, ...] = (), mask: Tensor | None = None) -> Tensor:
            x = self.relu(self.norm(x))
            for other in others:
                x = x + other
            return F.relu(self.a(x if mask is None else x * mask))

    model = randomize(Several().double())
    for inputs in ((image(),), (image(), (image(), image())), (image(), (), image())):
        before, expected = Snapshot(model), model(*inputs)
        with canonize(model, prefer="right", example_inputs=inputs):
            assert relative_error(model(*inputs), expected) < 1e-12
        before.check()


def test_what_cannot_be_traced_even_so_is_named() -> None:
    class Stage(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            memory = memoryview(x.detach().numpy())  # of a tensor, not of what stands for one
            return torch.frombuffer(memory, dtype=x.dtype).view_as(x) if x.sum() > -1e9 else x

    model = nn.Sequential(conv(), nn.Sequential(Stage())).eval()
    before = Snapshot(model)
    with pytest.raises(TracingError, match=r"1\.0 \(Stage\)"):
        plan(model, example_inputs=image().float())
    before.check()


def test_an_error_of_the_model_itself_is_told() -> None:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        if x.shape[-1] < 100:
            raise ValueError("the image is too small")
        return x

    model = Written(function, a=conv())
    with pytest.raises((TracingError, ValueError), match="the image is too small"):
        plan(model, example_inputs=image())
