"""After the block, however it ends, the model is itself again: objects, storages, keys, hooks, flags, outputs."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.models import DenseNet

from canon_bridge import canonize
from canon_bridge.core.restore import Edits, _Layer, writes_in_force
from tests.support.errors import relative_error
from tests.support.faults.patterns import Tensors
from tests.support.named_norms import randomize_any
from tests.support.pieces import Preactivation, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


def small() -> nn.Module:
    """A model in which every kind of edit happens: left, right, thresholded, a map, leftover, new children."""
    model = nn.Sequential(
        conv(), norm(), nn.ReLU(True), Preactivation(), nn.Tanh(), norm(), nn.Sigmoid(), norm(), conv()
    )
    model[3].conv1.weight.requires_grad_(False)
    return randomize(model.double())


def everything() -> nn.Module:
    """Besides, norms that go through activations and pools, computed weights, functions, and a norm with its act."""
    more = [norm(), nn.LeakyReLU(0.2, True), nn.MaxPool2d(2, 1), nn.SiLU(), parametrizations.weight_norm(conv())]
    return randomize_any(nn.Sequential(*small(), *more, Tensors(), nn.Softmax(1), norm(), nn.ELU(), conv()).double())


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit, StopIteration])
@pytest.mark.parametrize("prefer", ["left", "right"])
def test_the_model_is_itself_again_however_the_block_ends(prefer: str, error: type[BaseException] | None) -> None:
    model, x = everything(), image()
    before, expected = Snapshot(model), model(x)

    def block() -> None:
        with canonize(model, prefer=prefer):
            with pytest.raises(AssertionError):
                before.check()
            model(x).sum().backward()
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(error):
            block()
    model.zero_grad()  # parameters that are not merged have their gradients, as asked for
    before.check()
    assert torch.equal(model(x), expected)
    assert not writes_in_force(model)


class FaultError(BaseException):
    """Raised behind one of the writes; no ``Exception``, as an interrupt is none."""


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, k: int) -> None:
    """Make the k-th call of a method raise, after it has done its work."""
    count, original = itertools.count(), getattr(owner, name)

    def faulty(*args: Any, **keywords: Any) -> Any:
        result = original(*args, **keywords)
        if next(count) == k:
            raise FaultError
        return result

    monkeypatch.setattr(owner, name, faulty)


COUNTS = {"set": 100, "remove": 1, "set_class": 1, "set_buffer": 3, "add_pre_hook": 2, "on_undo": 3}


@pytest.mark.parametrize("method", COUNTS)
@pytest.mark.parametrize("prefer", ["left", "right"])
def test_an_exception_at_any_edit_leaves_the_model_untouched(prefer: str, method: str) -> None:
    model, x = everything(), image()
    before, expected, failed = Snapshot(model), model(x), 0
    canonization = canonize(model, prefer=prefer)
    for k in itertools.count():
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, Edits, method, k)
            try:
                canonization.apply()
            except FaultError:
                failed += 1
                before.check()
                assert not writes_in_force(model)
            else:
                canonization.undo()
                before.check()
                break
    assert failed >= COUNTS[method]
    assert torch.equal(model(x), expected)
    with canonization:  # and it can be used after all that
        assert relative_error(model(x), expected) < 1e-12


def test_an_exception_while_a_child_is_made_leaves_the_model_untouched() -> None:
    model = small()
    before, canonization = Snapshot(model), canonize(model)
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, Edits, "set", 1)
        with pytest.raises(FaultError):
            canonization.apply()
    before.check()


def test_an_interrupt_right_after_a_hook_was_registered_leaves_no_hook() -> None:
    model = small()
    before, canonization = Snapshot(model), canonize(model, prefer="right")
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, nn.Module, "register_forward_pre_hook", 0)
        with pytest.raises(FaultError):
            canonization.apply()
    before.check()


def test_an_interrupted_undo_can_be_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    before, canonization = Snapshot(model), canonize(model)
    canonization.apply()
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, _Layer, "_put_back", 5)
        with pytest.raises(FaultError):
            canonization.undo()
    canonization.undo()
    before.check()


USES: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "state_dict": lambda model, x: model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}),
    "assign": lambda model, x: model.load_state_dict(model.state_dict(), assign=True),
    "zero_grad": lambda model, x: (model(x).sum().backward(), model.zero_grad()),
    "requires_grad": lambda model, x: model.requires_grad_(False),
    "same dtype": lambda model, x: model.double(),
    "eval": lambda model, x: model.eval(),
    "inference": lambda model, x: torch.inference_mode()(model)(x),
    "a hook, removed": lambda model, x: model[1].register_forward_hook(lambda *_: None).remove(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("prefer", ["left", "right"])
def test_what_is_done_to_models_in_the_block_does_no_harm(prefer: str, use: str) -> None:
    model, x = everything(), image()
    before, expected = Snapshot(model), model(x)
    with canonize(model, prefer=prefer):
        USES[use](model, x)
        assert relative_error(model(x), expected) < 1e-12
    before.check()


def test_hooks_of_the_user_stay_in_their_order() -> None:
    model, calls = small(), []
    for number, module in enumerate([model[2], model[3].relu, model[2]]):
        module.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    before = Snapshot(model)
    with canonize(model, prefer="right"):
        late = model[2].register_forward_pre_hook(lambda *_: calls.append("late"))
        model(image())
    assert calls == [0, 2, "late", 1, 1]
    late.remove()
    before.check()


def test_inside_inference_mode_and_without_gradients() -> None:
    for context in (torch.inference_mode, torch.no_grad):
        model, x = small(), image()
        before = Snapshot(model)
        with context():
            expected = model(x)
            with canonize(model):
                assert relative_error(model(x), expected) < 1e-12
        before.check()
        with context():
            built = small()
            expected = built(x)
            with canonize(built):
                assert relative_error(built(x), expected) < 1e-12
            assert torch.equal(built(x), expected)


def test_a_real_densenet_comes_back_too() -> None:
    model = randomize(DenseNet(8, (2, 2, 2, 2), 16, num_classes=5))
    before = Snapshot(model)
    for prefer in ("left", "right"):
        with canonize(model, prefer=prefer):
            model(torch.randn(1, 3, 32, 32)).sum().backward()
        model.zero_grad()
        before.check()
