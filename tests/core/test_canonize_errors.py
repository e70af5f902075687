"""What bad input gets: an error in plain words, before anything is written; and the check with example inputs."""

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import FunctionChangedError, PrecisionWarning, canonize, canonized_copy, plan
from canon_bridge.core.precision import deviation, tensors_in
from canon_bridge.core.restore import writes_in_force
from tests.support.pieces import Written, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

PUBLIC = (canonize, plan, canonized_copy)


def small() -> nn.Module:
    return randomize(nn.Sequential(conv(), norm(), nn.ReLU(), nn.Sequential(conv(), norm())).double())


@pytest.mark.parametrize("function", PUBLIC)
def test_a_norm_in_training_mode_is_named(function: Any) -> None:
    model = small()
    model[3][1].train()
    before = Snapshot(model)
    with pytest.raises(ValueError, match=r"^3\.1 is in training mode.*call model\.eval\(\) first"):
        function(model)
    before.check()


@pytest.mark.parametrize("function", PUBLIC)
def test_a_whole_model_in_training_mode(function: Any) -> None:
    model = small().train()
    before = Snapshot(model)
    with pytest.raises(ValueError, match=r"^1 is in training mode"):
        function(model)
    before.check()


def test_training_mode_is_noticed_at_entry_too() -> None:
    model = small()
    canonization = canonize(model)
    model.train()
    before = Snapshot(model)
    with pytest.raises(ValueError, match=r"^1 is in training mode.*model\.eval\(\)"), canonization:
        pass
    before.check()
    assert not writes_in_force(model)


def test_other_modules_may_be_in_training_mode() -> None:
    model = small()
    model[2].train()
    with canonize(model):
        assert model[2].training


@pytest.mark.parametrize("function", PUBLIC)
def test_a_norm_without_running_statistics_is_named(function: Any) -> None:
    model = nn.Sequential(conv(), nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))).eval()
    before = Snapshot(model)
    with pytest.raises(ValueError, match=r"^1\.0 has no running statistics \(track_running_stats=False\)"):
        function(model)
    before.check()


@pytest.mark.parametrize("function", PUBLIC)
@pytest.mark.parametrize("model", [None, "resnet", nn.Conv2d, lambda x: x])
def test_what_is_no_module_is_told_so(function: Any, model: Any) -> None:
    with pytest.raises(
        TypeError, match=r"it must be a torch\.nn\.Module" + (r".*Conv2d\(" if model is nn.Conv2d else "")
    ):
        function(model)


@pytest.mark.parametrize("x", [(), (image(), image())])
def test_as_many_example_inputs_as_forward_does_not_take_are_told_so(x: Any) -> None:
    with pytest.raises(TypeError, match=rf"cannot be called with {len(x)} positional arguments .*forward\(input"):
        plan(small(), example_inputs=x)


def test_a_norm_that_trains_since_the_plan_is_named() -> None:
    model = Written(lambda m, x: F.relu(m.norm(m.a(x))), a=conv(), norm=norm()).eval()
    canonization = canonize(model)
    model.train()
    with pytest.raises(ValueError, match=r"^norm is in training mode"), canonization:
        pass


def test_example_inputs_that_the_model_cannot_take_change_nothing() -> None:
    model = small()
    before = Snapshot(model)
    with pytest.raises(RuntimeError), canonize(model, example_inputs=torch.ones(1, 5, 3, 3, dtype=torch.float64)):
        pass
    before.check()
    assert not writes_in_force(model)


def test_the_function_error_is_measured_on_entry() -> None:
    model, x = small(), image()
    plain, measured = canonize(model), canonize(model, example_inputs=x)
    with plain:
        assert plain.function_error is None
    with measured:
        assert measured.function_error is not None
        assert measured.function_error < 1e-12
    several = Written(lambda m, x: F.relu(m.a(x)), a=conv())
    with canonize(several, example_inputs=(x,)) as model:
        assert model is several


def ill_conditioned() -> tuple[nn.Module, Tensor]:
    """|running_mean| is 1e6 standard deviations: single precision has nothing left after the merge."""
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), conv()).eval()
    model[0].running_mean.fill_(1e6)
    return model, image().float() + 1e6


def test_a_loss_of_precision_is_warned_of() -> None:
    model, x = ill_conditioned()
    before, canonization = Snapshot(model), canonize(model, example_inputs=x)
    with pytest.warns(UserWarning, match=r"changed the output of Sequential on example_inputs by .*model\.double\(\)"):
        canonization.apply()
    assert canonization.function_error is not None
    assert canonization.function_error > 1e-3
    canonization.undo()
    before.check()


def test_a_warning_that_is_made_an_error_leaves_the_model_untouched() -> None:
    model, x = ill_conditioned()
    before, canonization = Snapshot(model), canonize(model, example_inputs=x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning), canonization:
            pass
    before.check()


def test_an_output_that_is_not_finite_any_more_is_warned_of() -> None:
    # Half precision overflows: the original subtracts the mean before it divides by the deviation.
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0)).eval().half()
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[1].running_mean.fill_(3e3)
        model[1].running_var.fill_(1e-6)
    x = torch.full((1, 1, 2, 2), 3e4, dtype=torch.float16)
    x[0, 0, 0, 0] += 32
    assert bool(model(x).isfinite().all())
    with pytest.raises(FunctionChangedError, match="changed the output"), canonize(model, example_inputs=x):
        pass


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_with_nan_is_no_agreement(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(), image()
    outputs = iter([torch.ones(2), torch.tensor([1.0, value])])
    canonization = canonize(model, example_inputs=x)
    following = [torch.ones(2)] * 20
    monkeypatch.setattr("canon_bridge.core.precision.outputs", lambda *_: [next(outputs, following.pop())])
    with pytest.raises(FunctionChangedError, match="changed the output"), canonization:
        pass


@pytest.mark.parametrize("value", [-float("inf"), float("inf"), float("nan"), torch.finfo(torch.float32).min])
def test_what_a_mask_puts_into_an_output_hides_no_change(value: float) -> None:
    assert deviation(torch.tensor([2.0, value]), torch.tensor([3.0, value])) == 0.5
    assert deviation(torch.tensor([2.0, value]), torch.tensor([2.0, value])) == 0


@pytest.mark.parametrize("x", [image()[:0], image() * float("nan")])
def test_example_inputs_on_which_nothing_can_be_compared_are_warned_of(x: Tensor) -> None:
    canonization = canonize(small(), example_inputs=x)
    with pytest.warns(PrecisionWarning, match="has no finite number, so its function was not compared"), canonization:
        assert canonization.function_error is None


@dataclass
class Out:
    logits: Tensor


def test_outputs_that_are_no_tensor_are_compared_too() -> None:
    assert len(tensors_in({"main": [Out(torch.ones(1))], "other": torch.ones(2)})) == 2
    model = Written(lambda m, x: {"out": [F.relu(m.norm(m.a(x)))]}, a=conv(), norm=norm())
    canonization = canonize(randomize(model), example_inputs=image())
    with canonization:
        assert canonization.function_error is not None
        assert canonization.function_error < 1e-12


def test_example_inputs_are_not_overwritten() -> None:
    model, x = Written(lambda m, x: m.a(m.relu(x.sub_(1))), a=conv(), relu=nn.ReLU(True)), image()
    kept = x.clone()
    with canonize(model, example_inputs=x):
        pass
    assert torch.equal(x, kept)


def test_a_lazy_model_that_has_seen_no_input_is_refused() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), norm()).eval()
    with pytest.raises((ValueError, RuntimeError)), canonize(model):
        pass
    assert not writes_in_force(model)
    assert isinstance(model[1], nn.BatchNorm2d)
