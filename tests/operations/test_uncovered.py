"""What no rule covers is named: in the plan, with its place in the code, and by one warning when a map is made."""

import importlib.util
import inspect
import linecache
import re
import warnings
from functools import partial
from pathlib import Path
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zennit.composites import EpsilonPlus

import canon_bridge
from canon_bridge import canonize, plan
from canon_bridge.captum import LRP, LayerLRP, presets
from canon_bridge.zennit import ModelCanonizer
from tests.operations.networks import finish, image
from tests.operations.stages import CLASSES, BehindReLU, With
from tests.support.errors import relative_error
from tests.support.in_zennit import TARGET, attribute, epsilon_composite
from tests.support.models import gradient_times_input
from tests.support.snapshot import Snapshot

pytestmark = pytest.mark.zennit


class Weighted(torch.autograd.Function):
    """A function of two tensors that nobody knows."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x.sin() * weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient * x.cos() * weight, (gradient * x.sin()).sum((0, 2, 3), keepdim=True)


# The operation, and what stands in its line of code.
OPERATIONS = {
    "linalg.norm": (lambda h: torch.linalg.norm(h, dim=1, keepdim=True), "linalg.norm"),
    "torch.norm": (lambda h: torch.norm(h, dim=1, keepdim=True), "torch.norm"),
    "prod": (lambda h: h.prod(-1), "prod"),
    "torch.prod": (lambda h: torch.prod(h, 2, keepdim=True), "torch.prod"),
    "cumprod": (lambda h: h.cumprod(-1), "cumprod"),
    "std": (lambda h: h.std((2, 3)), "std"),
    "var": (lambda h: torch.var(h, dim=(2, 3)), "torch.var"),
    "logsumexp": (lambda h: h.logsumexp((2, 3)), "logsumexp"),
    "cdist": (lambda h: torch.cdist(h.flatten(2), h.flatten(2)), "cdist"),
    "argmax": (lambda h: h.argmax(3).double(), "argmax"),
    "round": (lambda h: torch.round(h * 3), "torch.round"),
    "sign": (lambda h: h.sign(), "sign"),
    "comparison": (lambda h: (h > 0.1).double(), "h > 0.1"),
    "a part overwritten": (lambda h: (lambda y: [y[:, :2].mul_(3), y])(h * 1)[1], "mul_"),
    "a view overwritten": (lambda h: (lambda y: [y.view(-1).add_(1), y])(h * 1)[1], "add_"),
    "a part overwritten by an activation": (lambda h: (lambda y: [F.elu_(y[:, 1]), y])(h - 1)[1], "elu_"),
    "function with a parameter": (
        With(lambda self, h: Weighted.apply(h, self.w), w=nn.Parameter(torch.rand(1, 4, 1, 1))),
        "Weighted.apply",
    ),
    "fft2, a product": (lambda h: torch.fft.ifft2(torch.fft.fft2(h) * (2 + 1j)).real, "torch.fft"),
    "rfft, einsum": (
        With(
            lambda self, h: torch.fft.irfft(torch.einsum("nchw,cd->ndhw", torch.fft.rfft(h), self.w)),
            w=nn.Parameter(torch.randn(4, 4, dtype=torch.complex128)),
        ),
        "torch.fft.rfft",
    ),
    "rfft, a sum": (lambda h: torch.fft.irfft((lambda f: f + f.flip(-1))(torch.fft.rfft(h))), "torch.fft.rfft"),
    "rfft, abs": (lambda h: torch.fft.rfft(h).abs(), "torch.fft.rfft"),
    "rfft, magnitude and phase": (
        lambda h: torch.fft.irfft((lambda f: F.relu(f.abs() - 0.1) * f / (f.abs() + 0.1))(torch.fft.rfft(h))),
        "torch.fft.rfft",
    ),
    "view_as_complex": (
        lambda h: torch.view_as_real(torch.view_as_complex(h.unflatten(-1, (3, 2)).contiguous()) ** 2).flatten(3),
        "view_as_complex",
    ),
    "MultiheadAttention": (
        With(lambda self, h: (lambda t: self.layer(t, t, t)[0])(h.flatten(2)), layer=nn.MultiheadAttention(36, 2)),
        "self.layer",
    ),
    "TransformerEncoderLayer": (
        With(lambda self, h: self.layer(h.flatten(2)), layer=nn.TransformerEncoderLayer(36, 2, 16)),
        "self.layer",
    ),
    "GRU": (With(lambda self, h: self.gru(h.flatten(2))[0], gru=nn.GRU(36, 5, batch_first=True)), "self.gru"),
    "LSTM": (With(lambda self, h: self.lstm(h.flatten(2))[0], lstm=nn.LSTM(36, 5, batch_first=True)), "self.lstm"),
}


class Ends(nn.Module):
    """A small network, and what is done to its scores."""

    def __init__(self, end, layer=None) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, CLASSES)
        self.end, self.layer = end, layer

    def forward(self, x):
        scores = self.head(self.norm(self.conv(x)).relu().flatten(1))
        return self.end(scores) if self.layer is None else self.layer(scores)


PROBABILITIES = {
    "softmax": lambda: Ends(lambda scores: scores.softmax(1)),
    "F.softmax": lambda: Ends(lambda scores: F.softmax(scores, dim=-1)),
    "torch.softmax": lambda: Ends(lambda scores: torch.softmax(scores, -1)),
    "log_softmax": lambda: Ends(lambda scores: F.log_softmax(scores, 1)),
    "nn.Softmax": lambda: Ends(None, nn.Softmax(dim=1)),
    "nn.LogSoftmax": lambda: Ends(None, nn.LogSoftmax(dim=1)),
    "sigmoid": lambda: Ends(lambda scores: scores.sigmoid()),
    "sigmoid, moved": lambda: Ends(lambda scores: torch.special.expit(scores)[:, None].squeeze(1)),
    "F.logsigmoid": lambda: Ends(F.logsigmoid),
    "nn.Sigmoid": lambda: Ends(None, nn.Sigmoid()),
    "nn.Hardsigmoid": lambda: Ends(None, nn.Hardsigmoid()),
    "nn.LogSigmoid": lambda: Ends(None, nn.LogSigmoid()),
}


def by_captum(model, x):
    return LRP(model).attribute(x, target=TARGET)


def by_layer(model, x):
    return LayerLRP(model, next(m for m in model.modules() if isinstance(m, nn.Conv2d))).attribute(x, target=TARGET)


def by_zennit(model, x):
    return attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer()]))


FRAMEWORKS = {"captum": by_captum, "captum, layer": by_layer, "zennit": by_zennit}


@pytest.mark.parametrize("name", OPERATIONS)
def test_it_is_named_with_its_place(name):
    operation, code = OPERATIONS[name]
    uncovered = plan(finish(lambda: BehindReLU(operation))).uncovered
    places = [entry.place.rpartition(":") for entry in uncovered]
    assert {Path(file).name for file, _, _ in places} == {Path(__file__).name}
    # A lambda over several lines may have any of them.
    lines = [linecache.getline(__file__, int(line) + k) for _, _, line in places for k in (-1, 0, 1)]
    assert any(code in line for line in lines)
    assert {entry.path for entry in uncovered} <= {
        "",
        "operation",
        *(f"operation.{name}" for name in ("gru", "lstm", "layer")),
    }
    assert all(entry.what and entry.reason for entry in uncovered)


def test_what_returns_tensors_with_names_is_named():
    uncovered = plan(finish(lambda: BehindReLU(lambda h: torch.linalg.svd(h, full_matrices=False).S))).uncovered
    assert any("svd" in entry.what for entry in uncovered)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_printed_plan_has_it(name):
    planned = plan(finish(lambda: BehindReLU(OPERATIONS[name][0])))
    assert planned.uncovered
    for entry in planned.uncovered:
        assert entry.what in str(planned)
        assert f"{Path(__file__).name}:{entry.place.rpartition(':')[2]}" in str(planned)


@pytest.mark.filterwarnings("ignore:dropout option")
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("argmax", "comparison")])
def test_one_warning_or_an_error_that_says_what_to_do(name, framework):
    model, x = finish(lambda: BehindReLU(OPERATIONS[name][0])), image()
    snapshot = Snapshot(model)
    message = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            FRAMEWORKS[framework](model, x)
        except (TypeError, ValueError, RuntimeError) as error:
            message = str(error)
    snapshot.check()
    said = [warning for warning in caught if warning.category is canon_bridge.UncoveredOperationWarning]
    assert len(said) == 1 or message
    assert not message or re.search(r"has no rule|no rule covers", message), message
    assert all(f"{Path(__file__).name}:" in str(warning.message) for warning in said)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_are_named_and_the_logit_is_advised(name, framework):
    model, x = finish(PROBABILITIES[name]), image()
    assert any("logit" in entry.reason for entry in plan(model).uncovered)
    with pytest.warns(canon_bridge.UncoveredOperationWarning, match="logit"):
        FRAMEWORKS[framework](model, x)


def test_a_sigmoid_at_the_end_turns_the_map_where_the_logit_is_negative():
    model, x = finish(lambda: Ends(lambda scores: scores)), image()
    with torch.no_grad():
        model.head.bias -= 1 + model(x)[0, TARGET]  # the logit of the first image is -1
    assert plan(model).uncovered == ()
    of_logit = LRP(model, presets.epsilon(1e-30)).attribute(x[:1], target=TARGET)
    model.end = torch.sigmoid
    with pytest.warns(canon_bridge.UncoveredOperationWarning, match="sign of its logit"):
        of_probability = LRP(model, presets.epsilon(1e-30)).attribute(x[:1], target=TARGET)
    assert relative_error(of_probability, -torch.sigmoid(torch.tensor(-1.0, dtype=torch.float64)) * of_logit) < 1e-9


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    "gate", [lambda h: h.flatten(2).softmax(-1).view_as(h), torch.sigmoid], ids=["softmax", "sigmoid"]
)
def test_a_softmax_or_sigmoid_that_is_a_gate_is_not_named(gate, framework):
    model, x = finish(lambda: BehindReLU(lambda h: h * gate(h))), image()
    assert plan(model).uncovered == ()
    FRAMEWORKS[framework](model, x)  # a warning would be an error


def test_a_fourier_transform_is_named_or_right():
    model, x = finish(lambda: BehindReLU(lambda h: torch.fft.fft2(h).real)), image()
    if plan(model).uncovered:
        assert any("fft" in entry.what for entry in plan(model).uncovered)
    else:
        found = LRP(model, presets.epsilon(1e-30)).attribute(x, target=TARGET)
        assert relative_error(found, gradient_times_input(model, x)) < 1e-9


class Returns(nn.Module):
    """A network that returns its scores and features in some structure."""

    def __init__(self, structure) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, CLASSES)
        self.structure = structure

    def forward(self, x):
        features = self.norm(self.conv(x)).relu()
        return self.structure(self.head(features.flatten(1)), features)


@pytest.mark.parametrize(
    ("structure", "kind"),
    [
        (lambda scores, features: (scores, features), "tuple"),
        (lambda scores, features: [scores, features], "list"),
        (lambda scores, features: {"out": scores, "aux": features}, "dict"),
    ],
    ids=["tuple", "list", "dict"],
)
def test_outputs_that_are_no_tensor(structure, kind):
    model, x = finish(lambda: Returns(structure)), image()
    snapshot = Snapshot(model)
    with pytest.raises((TypeError, ValueError), match=rf"(?s)(returns|output).*{kind}.*(wrap|tensor)"):
        LRP(model).attribute(x, target=TARGET)
    snapshot.check()


class OfIds(nn.Module):
    """A text classifier on integer ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv = nn.Embedding(10, 4), nn.Conv1d(4, 6, 3)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, CLASSES)

    def forward(self, ids):
        return self.head(self.norm(self.conv(self.embedding(ids).transpose(1, 2))).relu().amax(-1))


def test_integer_ids_say_what_to_do():
    model, ids = finish(OfIds), torch.tensor([[1, 4, 2, 7, 3], [9, 0, 0, 5, 6]])
    with pytest.raises((TypeError, ValueError), match=r"(?is)(integer|int64).*LayerLRP"):
        LRP(model).attribute(ids, target=TARGET)


def test_relevance_of_an_embedding():
    model, ids = finish(OfIds), torch.tensor([[1, 4, 2, 7, 3], [9, 0, 0, 5, 6]])
    found = LayerLRP(model, model.embedding, presets.epsilon(1e-30)).attribute(ids, target=TARGET)
    embedded = model.embedding(ids).detach().requires_grad_()
    score = model.head(model.norm(model.conv(embedded.transpose(1, 2))).relu().amax(-1))[:, TARGET].sum()
    assert relative_error(found, embedded.detach() * torch.autograd.grad(score, embedded)[0]) < 1e-9


def test_a_tuple_of_layers_says_what_to_do_or_works():
    model, x = finish(lambda: Ends(lambda scores: scores)), image()
    expected = LayerLRP(model, [model.conv, model.head]).attribute(x, target=TARGET)
    message, found = "", None
    try:
        found = LayerLRP(model, (model.conv, model.head)).attribute(x, target=TARGET)
    except TypeError as error:
        message = str(error)
    assert "list" in message if found is None else all(map(torch.equal, found, expected))


def _line_of(code, text):
    """Return the file and line of a text in the source of a function."""
    lines, first = inspect.getsourcelines(code)
    return f"{inspect.getsourcefile(code)}:{first + next(k for k, line in enumerate(lines) if text in line)}"


def _of_library(library, source):
    """Return a function as if it were in a file of a library."""
    pytest.importorskip(library, reason=f"{library} is not installed; torchvision stands for it")
    spec = importlib.util.find_spec(library)
    namespace = {"__name__": f"{library}.odd"}
    exec(compile(source, str(Path(spec.origin).parent / "odd.py"), "exec"), namespace)
    return namespace["function"]


class Helped(nn.Module):
    """A forward of ours that calls a function of a library."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, CLASSES)
        self.function = function

    def forward(self, x):
        h = self.norm(self.conv(x)).relu()
        h = self.function(h)  # here
        return self.head(h.flatten(1))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_place_of_what_a_library_calls_is_the_line_of_our_own_forward(library):
    model = finish(lambda: Helped(_of_library(library, "def function(x):\n    return x.std(1, keepdim=True) * x\n")))
    assert [entry.place for entry in plan(model).uncovered] == [_line_of(Helped.forward, "# here")]


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_place_in_a_layer_of_a_library_is_in_that_layer(library):
    function = _of_library(library, "def function(self, x):\n    y = x * 2\n    return y.std(1, keepdim=True) * y\n")
    kind = type("Odd", (nn.Module,), {"forward": function, "__module__": function.__module__})
    model = finish(lambda: BehindReLU(kind()))
    (entry,) = plan(model).uncovered
    assert (entry.path, entry.what, entry.place) == ("operation", "std", f"{function.__code__.co_filename}:3")


class Keeps(nn.Module):
    """A forward that does what no other forward could do in its place."""

    def __init__(self, keep) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, CLASSES)
        self.keep, self.cache, self.found = keep, {}, []

    def forward(self, x):
        h = self.keep(self, F.relu(self.norm(self.conv(x))))
        return self.head(h.flatten(1))


def _into_dictionary(self, h):
    self.cache["h"] = h
    return h


def _into_list(self, h):
    self.found.append(h)
    return h


def _on_another(self, h):
    self.head.last = h
    return h


def _without_gradient(self, h):
    with torch.no_grad():
        return h + 1


@pytest.mark.parametrize("inputs", [None, image()])
@pytest.mark.parametrize(
    ("keep", "advice"),
    [(_into_dictionary, "hook"), (_into_list, "hook"), (_on_another, "hook"), (_without_gradient, "switched off")],
)
def test_the_advice_helps(keep, advice, inputs):
    reasons = [entry.reason for entry in plan(finish(lambda: Keeps(keep)), example_inputs=inputs).uncovered]
    assert reasons
    for reason in reasons:
        assert advice in reason or "no relevance passes" in reason
        assert "example_inputs" not in reason
        assert "register_operation" not in reason


class SetsSlope(nn.Module):
    """Sets an attribute of a child before each call, to what it was in the end of the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(),
            nn.Linear(64, CLASSES),
        )

    def forward(self, x):
        self.relu.negative_slope = 0.3
        h = self.relu(self.norm(self.conv(x)))
        self.relu.negative_slope = 0.01
        return self.head((self.relu(h - 0.5) * 2).flatten(1))


class SetsMode(SetsSlope):
    """Sets a flag of a container, which its forward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = Switched()

    def forward(self, x):
        self.relu.mode = "double"
        h = self.relu(self.norm(self.conv(x)))
        self.relu.mode = "usual"
        return self.head((self.relu(h) - 1).flatten(1))


class Switched(nn.Module):
    mode = "usual"

    def forward(self, h):
        return F.relu(h) * 2 if self.mode == "double" else F.relu(h)


class Exchanged(SetsSlope):
    """Calls a part with other parameters than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(self.conv, self.norm, self.relu)

    def forward(self, x):
        parameters = {name: parameter * 0.5 for name, parameter in self.part.named_parameters()}
        return self.head((torch.func.functional_call(self.part, parameters, (x,)) + 1).flatten(1))


class Cast(SetsSlope):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.head(F.relu(self.norm(self.conv(x))).flatten(1))


class Seeded(SetsSlope):
    def forward(self, x):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            factor = torch.rand(4, 1, 1, dtype=x.dtype)
        return self.head(F.relu(self.norm(self.conv(x)) * factor).flatten(1))


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("network", [SetsSlope, SetsMode, Exchanged, Cast, Seeded])
def test_what_a_forward_sets_for_others_is_kept_and_named(network, prefer):
    model, x = finish(network), image()
    model(x)
    expected = model(x).detach()
    with canonize(model, prefer=prefer):
        assert relative_error(model(x).detach(), expected) < (1e-2 if network is Cast else 1e-10)
    assert plan(model, prefer=prefer).uncovered


class Matches(SetsSlope):
    def forward(self, x):
        match x.shape:
            case [_, 3, _, _]:
                return self.head(F.relu(self.norm(self.conv(x))).flatten(1))
        return self.head(x.flatten(1)[:, :64])


class Unlike(SetsSlope):
    def forward(self, x):
        h = self.head(F.relu(self.norm(self.conv(x))).flatten(1))
        return h * x.mask if hasattr(x, "mask") else h


class Hooked(SetsSlope):
    """Reads what a hook has kept: a method, a function that knows a list, or an object."""

    def __init__(self, way) -> None:
        super().__init__()
        self.kept, self.last = ({} if way == "method" else []), torch.zeros(1, 4, 4, 4)
        kept, hooks = self.kept, {"method": self.keep, "function": lambda _, args, out: kept.append(out)}
        self.conv.register_forward_hook(hooks.get(way, partial(_keep, self)))
        self.way = way

    def keep(self, module, args, output):
        self.kept["conv"] = output

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x)))
        if self.way == "attribute":
            return self.head((h + self.last.abs()).flatten(1))
        kept = self.kept["conv"] if self.way == "method" else self.kept[-1]
        return self.head((h + kept.abs()).flatten(1))


def _keep(model, module, args, output):
    model.last = output


@pytest.mark.parametrize("way", ["method", "function", "attribute"])
def test_what_a_hook_has_left_is_no_constant(way):
    model = finish(lambda: Hooked(way))
    with torch.no_grad():
        model(image())
    with pytest.raises(canon_bridge.TracingError, match="a forward hook has left"):
        plan(model)
    model.conv._forward_hooks.clear()
    plan(model)


@pytest.mark.parametrize(("network", "reason"), [(Matches, "pattern"), (Unlike, "'mask'")])
def test_a_question_that_a_trace_cannot_answer_is_refused(network, reason):
    model = finish(network)
    with pytest.raises(canon_bridge.TracingError, match=reason):
        plan(model)


class Rectified(nn.BatchNorm2d):
    """A subclass with a forward of its own, of which nobody knows what it computes."""

    def forward(self, input):
        return F.relu(super().forward(input))


class Staying(nn.Module):
    """A BatchNorm that stays as it is: of a class that is not known, or with tensors that another forward reads."""

    def __init__(self, norm, factor) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), norm(4), nn.Linear(64, CLASSES)
        self.factor = factor

    def forward(self, x):
        h = self.norm(self.conv(x)).relu()  # here
        return self.head((h * self.norm.weight.view(1, -1, 1, 1) if self.factor else h).flatten(1))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("norm", "factor"), [(Rectified, False), (nn.BatchNorm2d, True)])
def test_a_norm_that_stays_is_named(norm, factor, framework):
    model, x = finish(lambda: Staying(norm, factor)), image()
    (entry,) = plan(model).uncovered
    assert (entry.path, entry.what, entry.place) == ("norm", norm.__name__, _line_of(Staying.forward, "# here"))
    with pytest.warns(canon_bridge.UncoveredOperationWarning, match="it stays as it is: .*register_norm"):
        FRAMEWORKS[framework](model, x)


def test_a_norm_that_the_user_keeps_is_not_named():
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(108, CLASSES)

        def forward(self, x):
            return self.head((self.norm(x) + x).flatten(1))

    planned = plan(finish(Kept), leftover="keep")
    assert [refusal.norm for refusal in planned.refusals] == ["norm"]
    assert planned.uncovered == ()


def test_what_no_forward_wrote_has_no_place_and_least_of_all_the_one_that_asked_for_the_plan():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.LPPool2d(2, 2))).eval()
    planned = plan(model)
    assert [(entry.path, entry.what, entry.place) for entry in planned.uncovered] == [("2.0", "LPPool2d", "")]
    assert "\n\noperations without a rule" in str(planned)
    assert "\n\n\n" not in str(planned)
    assert "\n- LPPool2d in 2.0: a norm" in str(planned)


class Scaled(nn.Conv2d):
    def forward(self, input):
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight * 2, self.bias)


class Standardized(nn.Conv2d):
    def forward(self, input):
        return F.conv2d(input, F.normalize(self.weight.flatten(1)).view(self.weight.shape), self.bias)


class Gained(nn.Conv2d):
    def __init__(self, *sizes) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))

    def forward(self, input):
        return F.conv2d(input, self.weight * self.gain, self.bias)


class Clipping(nn.Conv2d):
    def forward(self, input):
        return super().forward(input).relu()


class Holding(nn.Conv2d):
    def __init__(self, *sizes) -> None:
        super().__init__(*sizes)
        self.before = nn.Conv2d(4, 4, 1)

    def forward(self, input):
        return super().forward(self.before(input))


class Cosine(nn.Linear):
    def forward(self, input):
        return super().forward(F.normalize(input, dim=-1))


class Centered(nn.ReLU):
    def forward(self, input):
        return super().forward(input) - input.mean(1, keepdim=True)


class Biased(nn.ReLU):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, input):
        return super().forward(input + self.bias)


class Largest(nn.MaxPool2d):
    def forward(self, input):
        return -super().forward(-input)


class Mixed(nn.MaxPool2d):
    def forward(self, input):
        return super().forward(input) + F.avg_pool2d(input, 2)


class Twice(nn.Upsample):
    def forward(self, input):
        return 2 * super().forward(input)


class Shifted(nn.Upsample):
    def forward(self, input):
        return (super().forward(input) - 0.1).relu()


class Conditional(nn.Conv2d):
    def forward(self, input, factor=1):
        return super().forward(input * factor)


class Calling(nn.Module):
    """A forward that calls a layer with more than one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Conditional(4, 4, 3)

    def forward(self, x):
        return self.layer(x, 2)


def _set(module, forward):
    module.forward = MethodType(forward, module)
    return module


class Made(nn.Module):
    """A subclass between layers, or in front of them all."""

    def __init__(self, made, is_first) -> None:
        super().__init__()
        self.conv, self.norm, self.made = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), made
        self.head, self.is_first = nn.Linear(4, CLASSES), is_first

    def forward(self, x):
        h = self.made(x[:, [0, 1, 2, 0]]) if self.is_first else self.made(self.norm(self.conv(x)).relu())
        return self.head(h.mean((2, 3)))


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Scaled(4, 4, (3, 5)), None),
        (lambda: Standardized(4, 4, 3), "register_layer"),
        (lambda: Gained(4, 4, 3), "register_layer"),
        (lambda: Clipping(4, 4, 3), "linear layer"),
        (lambda: Holding(4, 4, 3), "holds modules"),
        (lambda: Cosine(6, 2), "linear layer"),
        (Calling, "first argument"),
        (lambda: _set(nn.Conv2d(4, 4, 1), lambda self, x: F.conv2d(x, 2 * self.weight, self.bias)), None),
        (lambda: _set(nn.Conv2d(4, 4, 1), lambda self, x: F.conv2d(x, self.weight**2, self.bias)), "not that of its"),
        (lambda: _set(nn.ReLU(), lambda self, x: x - x.mean(1, keepdim=True)), "not that of its"),
        (lambda: _set(nn.Dropout(), lambda self, x: x * x), "movement"),
        (lambda: _set(nn.Identity(), lambda self, x: x.flip(1)), None),
        (lambda: _set(nn.GroupNorm(1, 4), lambda self, x: x * x), "normaliser"),
        (Biased, None),
        (Centered, "element-wise"),
        (lambda: Largest(2), None),
        (lambda: Mixed(2), "selection"),
        (lambda: Twice(scale_factor=2), None),
        (lambda: Shifted(scale_factor=2), "linear in the data"),
    ],
)
def test_a_subclass_of_a_layer_that_is_something_else_is_named(make, reason, is_first):
    model, x = finish(lambda: Made(make(), is_first)), image()
    entries = plan(model).uncovered
    assert len(plan(model, example_inputs=x).uncovered) == len(entries)
    assert [entry.path.partition(".")[0] for entry in entries] == ["made"] * (reason is not None)
    if reason is not None:
        assert reason in entries[0].reason
    elif not isinstance(model.made, Biased):
        expected = gradient_times_input(model, x)
        by_zennit = attribute(model, x, epsilon_composite(1e-30, [ModelCanonizer()]))
        assert relative_error(by_zennit, expected) < 1e-10
        assert relative_error(LRP(model, presets.epsilon(1e-30)).attribute(x, target=TARGET), expected) < 1e-10
