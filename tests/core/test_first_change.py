"""Where inputs are at hand the canonical model is compared with the model itself; the first change is named."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import canon_bridge.core.apply
from canon_bridge import FunctionChangedError, PrecisionWarning, TracingError, UncoveredOperationWarning, canonize
from canon_bridge.captum import LRP, LayerLRP, presets
from tests.support.errors import relative_error
from tests.support.models import TARGET, gradient_times_input
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

LRP_0 = presets.epsilon(1e-30)


def image(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Network(nn.Module):
    """Three merges and a sum that becomes a module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        h = F.relu(self.norm0(self.conv0(x)))
        h = F.relu(self.norm1(self.conv1(h)) + h)
        return self.head(F.relu(self.norm2(self.conv2(h))).flatten(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return randomize(Network().double(), mild=True)


def wrong_merge(monkeypatch, wanted: str, model: nn.Module) -> None:
    """Have the merge into one layer forget the shift."""
    right = canon_bridge.core.apply.fold_after

    def fold(edits, module, affine):
        right(edits, module, affine)
        if module is model.get_submodule(wanted):
            edits.set(module, "_parameters", "bias", nn.Parameter(module.bias.detach() + 1))

    monkeypatch.setattr(canon_bridge.core.apply, "fold_after", fold)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_wrong_merge_is_named(monkeypatch, number):
    model, x = network(), image()
    before = Snapshot(model)
    wrong_merge(monkeypatch, f"conv{number}", model)
    expected = rf"by [0-9.e+-]+ .*norm{number} was merged left into conv{number}\."
    with pytest.raises(FunctionChangedError, match=expected):
        canonize(model, example_inputs=x).apply()
    before.check()
    lrp = LRP(model)
    for _ in range(2):
        with pytest.raises(FunctionChangedError, match=expected):
            lrp.attribute(x, target=TARGET)
        before.check()
    monkeypatch.undo()
    assert lrp.attribute(x, target=TARGET).isfinite().all()


def test_a_wrong_forward_is_named(monkeypatch):
    model, x = network(), image()
    before = Snapshot(model)
    lrp = LRP(model)
    monkeypatch.setattr(canon_bridge.core.Add, "forward", lambda self, left, right: left - right)
    with pytest.raises(FunctionChangedError, match=r"in the model itself, whose forward was written anew with .*add"):
        canonize(model, example_inputs=x).apply()
    before.check()
    assert lrp.attribute(x, target=TARGET).isfinite().all()  # there the sum is Captum's


def test_what_a_framework_puts_in_is_named(monkeypatch):
    model, x = network(), image()
    monkeypatch.setattr("captum.attr._utils.custom_modules.Addition_Module.forward", lambda self, a, b: a - b)
    with pytest.raises(FunctionChangedError, match="in the modules of the framework"):
        LRP(model).attribute(x, target=TARGET)


def test_random_numbers_are_drawn_alike():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x + torch.rand_like(x))

    torch.manual_seed(0)
    model = randomize(Noisy(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)).double())
    lrp, maps = LRP(model), []
    for _ in range(2):
        torch.manual_seed(1)
        maps.append(lrp.attribute(image(), target=TARGET))
    assert torch.equal(*maps)


def test_nan_and_infinity_are_compared_too():
    model, x = network(), image()
    x[0, 0, 0, 0] = torch.nan
    with canonize(model, example_inputs=x):
        assert model(x).isnan().any()


def test_integers_and_several_outputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x):
            scores = self.inner(x)
            return {"scores": scores, "best": scores.argmax(1), "sure": scores > 0}

    model = Two().eval()
    canonization = canonize(model, example_inputs=image())
    with canonization:
        assert canonization.function_error < 1e-12


def test_a_loss_of_precision_stays_a_warning():
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), mild=True).float()
    model[1].running_mean.fill_(1e5)
    model[1].running_var.fill_(1.0)
    x = torch.full((1, 3, 6, 6), 1e5) + torch.randn(1, 3, 6, 6)
    with pytest.warns(PrecisionWarning, match="standard deviations from zero"), canonize(model, example_inputs=x):
        pass


class Casting(nn.Module):
    """A model of which a part computes in another precision, and says nothing of it in its parameters and output."""

    def __init__(self, inside: torch.dtype) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 5)
        self.inside = inside

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x))).to(self.inside)
        return self.head((h * h.new_full((), 0.7)).to(x.dtype).flatten(1))


@pytest.mark.parametrize("inside", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prefer", ["left", "right"])
def test_the_tolerance_is_that_of_the_coarsest_type_on_the_way(inside, prefer):
    torch.manual_seed(0)
    model, x = randomize(Casting(inside).double(), mild=True), image()
    expected = model(x).detach()
    before = Snapshot(model)
    with canonize(model, prefer=prefer, example_inputs=x):  # a warning would be an error
        assert relative_error(model(x).detach(), expected) < 10 * torch.finfo(inside).eps
    found = LRP(model, LRP_0, prefer=prefer).attribute(x, target=TARGET)
    before.check()
    assert relative_error(found, gradient_times_input(model, x)) < 10 * torch.finfo(inside).eps


def test_a_wrong_merge_is_noticed_in_a_model_that_casts(monkeypatch):
    torch.manual_seed(0)
    model, x = randomize(Casting(torch.float32).double(), mild=True), image()
    wrong_merge(monkeypatch, "conv", model)
    with pytest.raises(FunctionChangedError, match="norm was merged left into conv"):
        canonize(model, example_inputs=x).apply()


class Branching(nn.Module):
    """A forward that takes one of two courses by the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.one, self.other = nn.Linear(64, 5), nn.Linear(64, 5)

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x))).flatten(1)
        return self.one(h) if x.sum() > 0 else self.other(h)


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_values_that_take_another_course_are_traced_anew(prefer):
    torch.manual_seed(0)
    model = randomize(Branching().double())
    with pytest.raises(TracingError):
        canonize(model)
    lrp, layer = LRP(model, LRP_0, prefer=prefer), LayerLRP(model, model.conv, LRP_0, prefer=prefer)
    for shift in (5.0, 5.5, -5.0, 5.0):
        for batch in (1, 2):
            x = image(batch) + shift
            expected = gradient_times_input(model, x)
            assert relative_error(lrp.attribute(x, target=TARGET), expected) < 1e-9
            assert layer.attribute(x, target=TARGET).shape == (batch, 4, 4, 4)


def test_a_plan_is_kept_while_the_values_take_its_course():
    torch.manual_seed(0)
    model = randomize(Branching().double())
    lrp = LRP(model)
    lrp.attribute(image() + 5, target=TARGET)
    planned = lrp._canonization
    lrp.attribute(image() + 6, target=TARGET)
    assert lrp._canonization is planned


class Uncovered(nn.Module):
    """An operation that no rule covers, and more where no relevance comes."""

    def __init__(self, gate) -> None:
        super().__init__()
        self.conv, self.norm, self.head, self.gate = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 5), gate

    def forward(self, x):
        h = self.norm(self.conv(x)).relu()
        return self.head(self.gate(h).flatten(1))


def warnings_of(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(warning.category is UncoveredOperationWarning for warning in caught)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_one_warning_for_each_plan():
    torch.manual_seed(0)
    model, x = randomize(Uncovered(lambda h: h.cumprod(2) + h.prod(2, keepdim=True)).double()), image()
    lrp = LRP(model)
    (message,) = warnings_of(lambda: lrp.attribute(x, target=TARGET))
    assert "cumprod" in message
    assert "- prod" in message
    assert not warnings_of(lambda: lrp.attribute(x, target=TARGET))
    assert len(warnings_of(lambda: LRP(model).attribute(x, target=TARGET))) == 1
    model.head = nn.Linear(64, 5).double().eval()
    assert len(warnings_of(lambda: lrp.attribute(x, target=TARGET))) == 1


@pytest.mark.parametrize(
    "gate",
    [
        lambda h: h * (h > 0.1),
        lambda h: torch.where(h > 0.1, h, 0.5 * h),
        lambda h: h.masked_fill(h < 0.2, 0.0),
        lambda h: h.gather(3, h.argsort(3)),
        lambda h: h / h.amax((1, 2, 3), keepdim=True).detach(),
        lambda h: h[:, torch.arange(4)],
    ],
    ids=["mask", "where", "masked_fill", "gather", "divisor", "index"],
)
def test_what_no_relevance_comes_to_is_not_named(gate):
    torch.manual_seed(0)
    model = randomize(Uncovered(gate).double())
    assert not canonize(model).plan.uncovered
    assert not warnings_of(lambda: LRP(model).attribute(image(), target=TARGET))


@pytest.mark.parametrize("place", ["conv", "relu", "block"])
@pytest.mark.parametrize("at_input", [False, True])
def test_a_layer_that_runs_twice(place, at_input):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
            self.head = nn.Linear(144, 5)

        def forward(self, x):
            h = self.relu(self.conv(self.relu(self.stem(x))))
            return self.head(self.block(self.block(self.conv(h))).flatten(1))

    torch.manual_seed(0)
    model, x = randomize(Twice().double()), image()
    before = Snapshot(model)
    layer = LayerLRP(model, model.get_submodule(place))
    with pytest.raises(ValueError, match=r"ran 2 times in the forward pass.*it must run once"):
        layer.attribute(x, target=TARGET, attribute_to_layer_input=at_input)
    before.check()
    assert layer.canonical().plan.calls(place) == 2
    assert layer.canonical().plan.calls("stem") == 1
