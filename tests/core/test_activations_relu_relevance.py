"""The module that a thresholded ReLU lives in: relevance at clipped units, its buffers, its copies."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from canon_bridge.core.activations import absorb_into_relu, stopped_at
from canon_bridge.core.affine import Affine
from canon_bridge.core.restore import Edits
from tests.core.test_activations_relu import (
    MODES,
    ROUNDINGS,
    SCALES,
    TINY,
    absorb,
    affine_grid,
    apply,
    deviation,
    inputs,
)


@pytest.mark.parametrize("scales", [SCALES[:4], SCALES, SCALES + TINY])
def test_buffers_move_with_the_module_and_stay_out_of_its_state(scales: tuple[float, ...]) -> None:
    affine = affine_grid(torch.float32, scales)
    module, left = absorb(affine)
    assert not module.state_dict()
    assert list(dict(module.named_buffers()))[:2] == ["thr_value", "thr_sign"]
    assert {b.dtype for b in module.double().buffers()} == {torch.float64}
    x = inputs(affine)
    assert deviation(apply(left, module(x)), x, affine) < ROUNDINGS
    assert {b.dtype for b in module.to(torch.bfloat16).buffers()} == {torch.bfloat16}
    assert module(x.bfloat16()).dtype == torch.bfloat16
    module.load_state_dict({}, strict=True)


@MODES
def test_in_place_relu_no_longer_writes_to_its_input(grad: bool) -> None:
    module = nn.ReLU(inplace=True)
    absorb_into_relu(Edits(), module, Affine(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5])), True)
    x = torch.randn(5, 2, requires_grad=grad)
    before = x.detach().clone()
    module(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("clip_relevance", [True, False])
def test_copy_is_independent(clip_relevance: bool) -> None:
    affine = Affine(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5]))
    module, _ = absorb(affine, clip_relevance)
    x = torch.randn(5, 2, requires_grad=True)
    before = module(x)
    twin = copy.deepcopy(module)
    twin.thr_value.fill_(100.0)
    assert torch.equal(module(x), before)
    assert not torch.equal(twin(x), before)


class _Pass(torch.autograd.Function):
    """What a Pass rule does: the gradient of the output becomes that of the input."""

    @staticmethod
    def forward(ctx: object, input: Tensor, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def pass_by_backward_hook(module: nn.Module) -> None:
    module.register_full_backward_hook(lambda module, grad_input, grad_output: grad_output)


def pass_by_function(module: nn.Module) -> None:
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    module.register_forward_hook(lambda module, args, output: _Pass.apply(seen.pop(), output))


@pytest.mark.parametrize("attach", [pass_by_backward_hook, pass_by_function])
@pytest.mark.parametrize("first", ["rule", "absorb"])
@pytest.mark.parametrize("clip_relevance", [True, False], ids=["absorb", "pass"])
def test_relevance_at_clipped_units(attach: Callable[[nn.Module], None], first: str, clip_relevance: bool) -> None:
    affine = affine_grid(torch.float64)
    module = nn.ReLU()
    steps = [lambda: attach(module), lambda: absorb_into_relu(Edits(), module, affine, clip_relevance)]
    for step in steps if first == "rule" else reversed(steps):
        step()
    x = torch.randn(20, affine.scale.numel(), dtype=torch.float64, requires_grad=True)
    relevance = torch.randn_like(x)
    output = module(x)
    (arrived,) = torch.autograd.grad(output, x, relevance)
    before = apply(affine, x.detach())
    # A unit counts as clipped where its output does not depend on the input, also where the scale is zero.
    clipped = (before <= 0) | (affine.scale == 0)
    assert 0.2 < float(clipped.double().mean()) < 0.9
    assert torch.equal(arrived, torch.where(clipped, 0, relevance) if clip_relevance else relevance)
    # The clipped output is the same number whatever the rule does.
    reference, _ = absorb(affine)
    assert torch.equal(output, reference(x))


def test_a_unit_at_its_threshold_is_clipped() -> None:
    module, _ = absorb(Affine(torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, -1.0, 0.5])), True)
    pass_by_backward_hook(module)
    x = torch.tensor([[0.0, 0.5, 0.5], [0.1, 0.6, 0.4]], requires_grad=True)
    (arrived,) = torch.autograd.grad(module(x), x, torch.ones(2, 3))
    assert arrived.tolist() == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize("clip_relevance", [True, False])
def test_what_stops_is_all_that_arrives_at_clipped_units(clip_relevance: bool) -> None:
    module, _ = absorb(Affine(torch.tensor([1.0, -1.0]), torch.zeros(2)), clip_relevance)
    x, relevance = torch.tensor([[-1.0, -1.0], [2.0, 2.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert stopped_at(module, x, relevance).tolist() == ([[1, 0], [0, 4]] if clip_relevance else [[0, 0], [0, 0]])
    assert not stopped_at(nn.ReLU(), x, relevance).any()


class Method:
    """A method that compares with a reference input, as DeepLift does."""

    def attribute(self, inputs: Tensor, baselines: Tensor | None = None) -> None:
        """Say by the signature alone what it is."""

    def hook(self, module: nn.Module, args: object, output: Tensor) -> None:
        """Stand on the module while the method runs."""


def test_nothing_stops_for_a_method_that_compares_with_baselines() -> None:
    module, _ = absorb(Affine(torch.tensor([1.0]), torch.tensor([0.0])), True)
    pass_by_backward_hook(module)
    x = torch.tensor([[-1.0], [1.0]], requires_grad=True)
    handle = module.register_forward_hook(Method().hook)
    (arrived,) = torch.autograd.grad(module(x), x, torch.ones(2, 1))
    assert arrived.tolist() == [[1.0], [1.0]]
    handle.remove()
    (arrived,) = torch.autograd.grad(module(x), x, torch.ones(2, 1))
    assert arrived.tolist() == [[0.0], [1.0]]


def test_nan_relevance_stops_at_clipped_units() -> None:
    module, _ = absorb(Affine(torch.tensor([1.0]), torch.tensor([0.0])), True)
    pass_by_backward_hook(module)
    x = torch.tensor([[-1.0], [1.0]], requires_grad=True)
    (arrived,) = torch.autograd.grad(module(x), x, torch.tensor([[torch.nan], [2.0]]))
    assert arrived.tolist() == [[0.0], [2.0]]


def test_without_gradients_the_input_is_passed_on_as_it_is() -> None:
    module, _ = absorb(Affine(torch.tensor([1.0]), torch.tensor([0.0])), True)
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(3, 1)
    module(x)
    with torch.no_grad():
        module(x.requires_grad_())
    assert seen[0] is x
    assert seen[1] is x
