"""Numbers that warn: means that are many standard deviations from zero, and what the merge costs on example inputs."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import FunctionChangedError, PrecisionWarning, canonize
from canon_bridge.core.precision import TOLERANCES, doubtful, losses
from tests.support.errors import relative_error
from tests.support.pieces import conv, norm

KINDS = {
    "right": lambda: nn.Sequential(nn.Identity(), norm(), conv()),
    "thresholded": lambda: nn.Sequential(nn.Identity(), norm(), nn.ReLU(), conv()),
    "activation": lambda: nn.Sequential(nn.Identity(), norm(), nn.SiLU(), conv()),
    "left": lambda: nn.Sequential(conv(), norm(), nn.ReLU()),
    "leftover": lambda: nn.Sequential(nn.Identity(), norm(), nn.Softmax(1)),
}
LOSES = ("right", "thresholded", "activation")


def model_of(kind: str, ratio: float, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """Return a model whose BatchNorm has a mean of so many standard deviations, and inputs with these statistics."""
    model = KINDS[kind]().eval()
    layer, x = model[1], torch.randn(8, 4, 8, 8)
    if kind == "left":
        with torch.no_grad():
            outputs = model[0](x)
            shift = ratio * outputs.std((0, 2, 3)) - outputs.mean((0, 2, 3))
            model[0].bias.add_(shift)
            layer.running_mean.copy_(outputs.mean((0, 2, 3)) + shift)
            layer.running_var.copy_(outputs.var((0, 2, 3)))
    else:
        layer.running_mean.copy_(ratio * torch.tensor([1.0, -0.93, 0.87, -0.98]))
        x = x + layer.running_mean.view(-1, 1, 1)
    return model.to(dtype), x.to(dtype)


def warnings_of(model: nn.Module, prefer: Any = "right", **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with canonize(model, prefer=prefer, **options):
            pass
    assert all(issubclass(warning.category, PrecisionWarning) for warning in caught)
    assert all(warning.filename == __file__ for warning in caught)  # it points to the line that enters the block
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_of_a_thousand_deviations_is_warned_of_where_the_merge_loses_precision(kind: str) -> None:
    assert not warnings_of(model_of(kind, 500)[0], "left" if kind == "left" else "right")
    (*found,) = warnings_of(model_of(kind, 2e3)[0], "left" if kind == "left" else "right")
    assert len(found) == (kind in LOSES)
    for message in found:
        assert "1 (2.0e+03)" in message
        assert "model.double()" in message
        assert 'prefer="left"' in message


@pytest.mark.parametrize("kind", KINDS)
def test_the_warning_is_true(kind: str) -> None:
    # Where it warns the error is more than ten times the rounding of the original; where it does not, it is less.
    model, x = model_of(kind, 1e4)
    exact = model.double()(x.double()).detach()
    original = relative_error(model.float()(x).double(), exact)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with canonize(model, prefer="left" if kind == "left" else "right"):
            canonical = relative_error(model(x).double(), exact)
    if kind in LOSES:
        assert canonical > 5 * original
        assert 0.3 * 1e4 * 1.2e-7 < canonical < 10 * 1e4 * 1.2e-7
    else:
        assert canonical < 5 * original


def test_float64_has_room() -> None:
    assert not warnings_of(model_of("thresholded", 1e8, torch.float64)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_from_ten_deviations_on(dtype: torch.dtype) -> None:
    assert not warnings_of(model_of("thresholded", 5, dtype)[0])
    assert len(warnings_of(model_of("thresholded", 20, dtype)[0])) == 1
    assert len(warnings_of(model_of("leftover", 20, dtype)[0])) == 1
    assert not warnings_of(model_of("left", 0, dtype)[0], "left")


def test_a_layer_in_half_precision_counts_behind_a_norm_in_float32() -> None:
    model, _ = model_of("right", 20)
    assert not warnings_of(model)
    model[2].half()
    assert len(warnings_of(model)) == 1


def test_channels_count_by_their_weight() -> None:
    model, _ = model_of("right", 0)
    model[1].running_mean[1] = 2e3
    assert len(warnings_of(model)) == 1
    with torch.no_grad():
        model[1].weight[1] = 1e-3
    assert not warnings_of(model)
    with torch.no_grad():
        model[1].weight.zero_()
    assert not warnings_of(model)


def test_the_worst_are_named_first_and_not_all() -> None:
    layers = [layer for ratio in range(7) for layer in (nn.Softmax(1), norm(), conv())]
    model = nn.Sequential(*layers).eval()
    for number in range(7):
        model[3 * number + 1].running_mean.fill_(2e3 + number)
    (message,) = warnings_of(model)
    assert message.index("19 (") < message.index("16 (") < message.index("7 (")
    assert "and 2 more" in message
    assert "4 (" not in message
    found = doubtful(losses(model, canonize(model, prefer="right").plan))
    assert [loss.norm for loss in found] == ["19", "16", "13", "10", "7", "4", "1"]


def test_with_example_inputs_the_error_is_measured_and_told() -> None:
    model, x = model_of("thresholded", 1e4)
    (message,) = warnings_of(model, example_inputs=x)
    assert "changed the output of Sequential on example_inputs by" in message
    assert "1 (1.0e+04)" in message
    canonization = canonize(model, prefer="right", example_inputs=x)
    with pytest.warns(PrecisionWarning):
        canonization.apply()
    assert canonization.function_error is not None
    assert 1e-4 < canonization.function_error < 1e-1
    assert f"function error {canonization.function_error:.1e}" in repr(canonization)
    assert "canonical, 1 of 1 BatchNorms merged" in repr(canonization)
    canonization.undo()
    assert "as it was" in repr(canonization)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_measured_error_of_a_usual_model_is_below_the_tolerance(dtype: torch.dtype) -> None:
    model, x = model_of("thresholded", 0.5, dtype)
    assert not warnings_of(model, example_inputs=x)
    canonization = canonize(model, example_inputs=x)
    with canonization:
        error = canonization.function_error
    assert error is not None
    assert error < TOLERANCES[dtype] / 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_error_that_no_statistics_explain_is_an_error(dtype: torch.dtype) -> None:
    model, x = model_of("right", 0.5, dtype)
    model[2].register_forward_hook(lambda module, args, output: output * module.bias.sum())  # another one inside
    with pytest.raises(FunctionChangedError, match=r"does not account for.*first where 1 was merged right into 2\."):
        warnings_of(model, example_inputs=x)


class Chaotic(nn.Sequential):
    """The logistic map many times over, which doubles what its input changes by each time."""

    def forward(self, input: Tensor) -> Tensor:
        value = super().forward(input).sigmoid()
        for _ in range(25):
            value = 4 * value * (1 - value)
        return value


def test_a_model_that_rounding_of_its_input_changes_as_much_is_warned_of() -> None:
    torch.manual_seed(0)
    model = Chaotic(*model_of("right", 2.0, torch.float64)[0]).eval()
    x = torch.randn(8, 4, 8, 8, dtype=torch.float64)
    (message,) = warnings_of(model, example_inputs=x)
    assert "rounding of the inputs alone changes it as much" in message
    model[2].register_forward_hook(lambda module, args, output: output + 1e-4 * module.bias.sum())
    with pytest.raises(FunctionChangedError, match=r"first where 1 was merged right into 2\."):
        warnings_of(model, example_inputs=x)
