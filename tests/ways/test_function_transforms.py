"""``torch.func`` over the canonical model and the copy, and the modes in which no gradients are recorded."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from canon_bridge import canonize, canonized_copy
from tests.core.test_canonize_restore import everything
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, image
from tests.support.snapshot import Snapshot
from tests.ways.models import EPS, MODELS, gradient

PREFER = pytest.mark.parametrize("prefer", BOTH)
NAMES = pytest.mark.parametrize("name", MODELS)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def weighted(output: Tensor) -> Tensor:
    return (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum()


@PREFER
@NAMES
def test_functional_call_with_the_state_of_the_block(name: str, prefer: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    before, expected = Snapshot(model), model(x)
    with canonize(model, prefer=prefer):
        state = {key: tensor.detach().clone() for key, tensor in state_of(model).items()}
        assert relative_error(functional_call(model, state, (x,)), expected) < 64 * EPS
        for name_of_one in (key for key in state if key.endswith("weight")):
            other = functional_call(model, {**state, name_of_one: state[name_of_one] * 1.5}, (x,))
            assert other.shape == expected.shape
        zeros = {key: torch.zeros_like(tensor) if key.endswith("weight") else tensor for key, tensor in state.items()}
        assert relative_error(functional_call(model, zeros, (x,)), expected) > 1e-3
    before.check()
    twin = canonized_copy(model, prefer=prefer)
    assert relative_error(functional_call(twin, state_of(twin), (x,)), expected) < 64 * EPS


@PREFER
def test_gradients_for_the_parameters_are_those_of_backward(prefer: str) -> None:
    model, x = everything(), image()
    with canonize(model, prefer=prefer):
        parameters = {key: tensor.detach() for key, tensor in model.named_parameters()}
        found = grad(lambda values: weighted(functional_call(model, values, (x,))))(parameters)
        weighted(model(x)).backward()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                assert torch.allclose(found[key], parameter.grad, rtol=1e-10, atol=1e-12), key


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own forward mode uses it
@PREFER
@NAMES
def test_grad_vmap_and_jacobians(name: str, prefer: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    expected, slope = model(x), gradient(model, x)
    one = gradient(lambda value: model(value[None])[0], x[0])
    tangent = torch.randn_like(x)
    _, derivative = torch.autograd.functional.jvp(model, x, tangent)
    with canonize(model, prefer=prefer):
        for canonical in (model, canonized_copy(model, prefer=prefer)):
            assert relative_error(grad(lambda v, c=canonical: weighted(c(v)))(x), slope) < 4096 * EPS
            assert relative_error(vmap(lambda v, c=canonical: c(v[None])[0])(x), expected) < 64 * EPS
            each = vmap(grad(lambda v, c=canonical: weighted(c(v[None])[0])))(x)
            assert relative_error(each[0], one) < 4096 * EPS
            assert relative_error(jvp(canonical, (x,), (tangent,))[1], derivative) < 4096 * EPS


@PREFER
def test_a_jacobian_of_the_canonical_model(prefer: str) -> None:
    model, x = everything(), image(1, 4, 5, 5)
    expected = torch.autograd.functional.jacobian(model, x)
    with canonize(model, prefer=prefer):
        assert relative_error(jacrev(model)(x), expected) < 4096 * EPS


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
}


@pytest.mark.parametrize("mode", MODES)
@PREFER
@NAMES
def test_the_block_inside_and_outside_of_a_mode_without_gradients(name: str, prefer: str, mode: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    before, expected, slope = Snapshot(model), model(x), gradient(model, x)
    with MODES[mode](), canonize(model, prefer=prefer):
        assert relative_error(model(x), expected) < 64 * EPS
    before.check()
    with canonize(model, prefer=prefer):
        with MODES[mode]():
            assert relative_error(model(x), expected) < 64 * EPS
        assert relative_error(gradient(model, x), slope) < 4096 * EPS
    with MODES[mode]():
        canonization = canonize(model, prefer=prefer)
        twin = canonized_copy(model, prefer=prefer)
        canonization.apply()
    assert relative_error(gradient(model, x), slope) < 4096 * EPS  # what was made in there takes part in autograd
    canonization.undo()
    before.check()
    assert relative_error(gradient(twin, x), slope) < 4096 * EPS


@PREFER
@NAMES
def test_a_model_that_was_built_in_inference_mode_and_is_used_outside(name: str, prefer: str) -> None:
    make, draw = MODELS[name]
    with torch.inference_mode():
        model = make()
    x = draw()
    with torch.no_grad():
        expected = model(x)
        before = Snapshot(model)
        with canonize(model, prefer=prefer):
            assert relative_error(model(x), expected) < 64 * EPS
        before.check()
        assert relative_error(canonized_copy(model, prefer=prefer)(x), expected) < 64 * EPS
        assert torch.equal(model(x), expected)
