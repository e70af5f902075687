"""Small inputs that went wrong beside the operations: hooks, noise tunnels, nested blocks, other methods, merges."""

import copy
import math
import sys
import types

import captum.attr
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from zennit.composites import EpsilonPlus

import canon_bridge.captum
from canon_bridge import canonize, plan
from canon_bridge.captum import LRP, presets
from canon_bridge.core import apply
from canon_bridge.core.affine import Affine
from canon_bridge.zennit import ModelCanonizer
from tests.operations.networks import finish, image
from tests.operations.stages import CLASSES, With
from tests.support.errors import relative_error
from tests.support.in_zennit import TARGET, attribute, epsilon_composite
from tests.support.models import gradient_times_input
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

LRP_0 = 1e-30

pytestmark = pytest.mark.zennit


class PreActivation(nn.Module):
    """``conv, relu, bn, OPERATION, conv, head``: prefers to merge right, and cannot merge left."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.conv0, self.relu0, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(6)
        self.between, self.conv1 = between, nn.Conv2d(6, 6, 3, padding=1)
        self.relu1, self.pool, self.head = nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Linear(24, CLASSES)

    def forward(self, x):
        h = self.conv1(self.between(self.norm(self.relu0(self.conv0(x)))))
        return self.head(self.pool(self.relu1(h)).flatten(1))


def simple() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten(), nn.Linear(64, CLASSES)
    )


def test_noise_tunnel():
    model, x = finish(simple), image()
    tunnel = captum.attr.NoiseTunnel(LRP(model))
    torch.manual_seed(0)
    found = tunnel.attribute(x, target=TARGET, nt_type="smoothgrad", nt_samples=3, stdevs=0.1)
    torch.manual_seed(0)
    noisy = x.repeat_interleave(3, 0) + torch.normal(0, torch.full((6, *x.shape[1:]), 0.1))  # as Captum draws it
    expected = LRP(model).attribute(noisy, target=TARGET).view(2, 3, *x.shape[1:]).mean(1)
    assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel_without_noise(nt_type):
    model, x = finish(simple), image()
    found = captum.attr.NoiseTunnel(LRP(model)).attribute(x, target=TARGET, nt_type=nt_type, nt_samples=2, stdevs=1e-30)
    relevance = LRP(model).attribute(x, target=TARGET)
    expected = {"smoothgrad": relevance, "smoothgrad_sq": relevance**2, "vargrad": 0 * relevance}[nt_type]
    assert (found - expected).abs().max() < 1e-12 * relevance.abs().max()


@pytest.mark.parametrize("clipped", ["absorb", "pass"])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU, nn.GELU, nn.Hardswish, nn.Tanh])
def test_a_logging_hook_changes_no_gradient(activation, clipped):
    model, x = finish(lambda: PreActivation(activation())), image().requires_grad_()
    (expected,) = torch.autograd.grad(model(x)[:, TARGET].sum(), x)
    log = []
    for register in (model.between.register_forward_hook, model.between.register_forward_pre_hook):
        handle = register(lambda module, *values: log.append(type(module)))
        with canonize(model, prefer="right", clipped=clipped):
            (found,) = torch.autograd.grad(model(x)[:, TARGET].sum(), x)
        handle.remove()
        assert relative_error(found, expected) < 1e-10
    assert len(log) == 2


@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU])
def test_a_logging_hook_inside_the_block_changes_no_gradient(activation):
    model, x = finish(lambda: PreActivation(activation())), image().requires_grad_()
    (expected,) = torch.autograd.grad(model(x)[:, TARGET].sum(), x)
    with canonize(model, prefer="right"):
        handle = model.between.register_forward_hook(lambda *_: None)
        (found,) = torch.autograd.grad(model(x)[:, TARGET].sum(), x)
        handle.remove()
    assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_a_logging_hook_changes_no_map(prefer):
    model, x = finish(lambda: PreActivation(nn.SiLU())), image()
    by_captum = LRP(model, prefer=prefer).attribute(x, target=TARGET)
    by_zennit = attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer(prefer=prefer)]))
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    assert LRP(model, prefer=prefer).attribute(x, target=TARGET).equal(by_captum)
    assert attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer(prefer=prefer)])).equal(by_zennit)


class PooledNorm(nn.Module):
    """``conv, [relu,] bn, [relu,] max pool, conv, relu, head``."""

    def __init__(self, before: type[nn.Module], behind: type[nn.Module], pool: nn.Module) -> None:
        super().__init__()
        self.conv0, self.before, self.norm = nn.Conv2d(3, 6, 3, padding=1), before(), nn.BatchNorm2d(6)
        self.behind, self.pool, self.conv1, self.relu = behind(), pool, nn.Conv2d(6, 4, 3), nn.ReLU()
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        h = self.pool(self.behind(self.norm(self.before(self.conv0(x)))))
        return self.head(self.relu(self.conv1(h)).flatten(1))


class CalledTwice(nn.Module):
    """An activation inside a container that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(144, CLASSES)

    def forward(self, x):
        return self.head(self.block(self.block(self.stem(x))).flatten(1))


DEEP_LIFT = {
    "norm, pool": lambda: PooledNorm(nn.Identity, nn.Identity, nn.MaxPool2d(2)),
    "norm, relu, pool": lambda: PooledNorm(nn.Identity, nn.ReLU, nn.MaxPool2d(2)),
    "relu, norm, pool": lambda: PooledNorm(nn.ReLU, nn.Identity, nn.MaxPool2d(2)),
    "relu, norm, relu, pool": lambda: PooledNorm(nn.ReLU, nn.ReLU, nn.MaxPool2d(2)),
    "norm, relu, pool that overlaps": lambda: PooledNorm(nn.Identity, nn.ReLU, nn.MaxPool2d(3, 2, 1)),
    "container twice": CalledTwice,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", DEEP_LIFT)
def test_deeplift_is_complete(name, prefer):
    model, x = finish(DEEP_LIFT[name]), image()
    baseline = torch.zeros_like(x)
    with canon_bridge.captum.canonize(model, prefer=prefer):
        found, delta = captum.attr.DeepLift(model).attribute(x, baseline, target=TARGET, return_convergence_delta=True)
    assert delta.abs().max() < 1e-9
    difference = (model(x) - model(baseline))[:, TARGET]
    assert relative_error(found.sum((1, 2, 3)), difference) < 1e-9


class WithSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)) + x)


def nested() -> nn.Module:
    return nn.Sequential(nn.Sequential(WithSum(), WithSum()), nn.Flatten(), nn.Linear(108, CLASSES))


@pytest.mark.parametrize("path", ["0", "0.0", "0.1.norm"])
def test_a_module_that_was_replaced_is_noticed(path):
    model = finish(nested)
    canonization = canonize(model)
    _ = canonization.plan
    assert canonization.is_current()
    model.set_submodule(path, nn.Identity())
    assert not canonization.is_current()
    with pytest.raises(RuntimeError, match="canonize"):
        canonization.apply()


@pytest.mark.parametrize("path", ["0", "0.0", "0.1.norm"])
def test_attribution_after_a_module_was_replaced(path):
    model, x = finish(nested), image()
    lrp = LRP(model, presets.epsilon(LRP_0))
    assert relative_error(lrp.attribute(x, target=TARGET), gradient_times_input(model, x)) < 1e-9
    model.set_submodule(path, nn.Identity())
    assert relative_error(lrp.attribute(x, target=TARGET), gradient_times_input(model, x)) < 1e-9


def test_a_block_planned_inside_another_can_be_entered_later():
    model, x = finish(lambda: PreActivation(nn.ReLU())), image()
    expected = model(x).detach()
    snapshot = Snapshot(model)
    with canonize(model, prefer="right"):
        inner = canonize(model, prefer="left")
        _ = inner.plan
        with inner:
            assert relative_error(model(x).detach(), expected) < 1e-10
    snapshot.check()
    for _ in range(2):
        with inner:
            assert relative_error(model(x).detach(), expected) < 1e-10
        snapshot.check()


class Depthwise(nn.Module):
    """A BatchNorm with a large shift in front of a depthwise convolution with a large kernel."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv0, self.relu, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4)
        self.wide = nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=4)
        self.head = nn.Linear(144, CLASSES)

    def forward(self, x):
        return self.head(self.wide(self.norm(self.relu(self.conv0(x)))).relu().flatten(1))


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("kernel", [3, 31])
def test_a_bias_map_is_not_many_times_its_layer(kernel, prefer):
    model, x = finish(lambda: Depthwise(kernel)), image()
    expected = model(x).detach()
    numbers = model.wide.weight.numel()
    with canonize(model, prefer=prefer):
        bias = model.wide.bias.numel()
        assert relative_error(model(x).detach(), expected) < 1e-10
    # A depthwise 3 x 3 has 9 weights a channel, and its map 16 entries.
    assert bias <= 4 * numbers
    found = LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET)
    assert relative_error(found, gradient_times_input(model, x)) < 1e-9
    assert len(plan(model, prefer=prefer).entries) == 1


class Rescaled(nn.Module):
    """A factor that depends on values in a way that a trace of other values does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, CLASSES)

    def forward(self, x):
        h = self.norm(self.conv(x))
        if h.sum() > -math.inf:
            h = h.relu()
        return self.head(h.flatten(1))


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_lrp_follows_branches_on_values_with_its_own_inputs(prefer):
    model, x = finish(Rescaled), image()
    expected = gradient_times_input(model, x)
    found = LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET)
    assert relative_error(found, expected) < 1e-9


def test_parameter_factor_with_example_inputs():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, CLASSES)
            self.scale = nn.Parameter(torch.rand(4, 1, 1))

        def forward(self, x):
            return self.head((self.norm(self.conv(x)).relu() * self.scale).flatten(1))

    model, x = finish(Scaled), image()
    found = attribute(model, x, epsilon_composite(LRP_0, [ModelCanonizer(example_inputs=x)]))
    assert relative_error(found, gradient_times_input(model, x)) < 1e-9


class Collects(nn.Module):
    """A block that hands its features on by what it was called with, too."""

    def __init__(self, keep) -> None:
        super().__init__()
        self.conv, self.norm, self.keep = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), keep

    def forward(self, x, kept):
        h = self.norm(self.conv(x))
        self.keep(kept, h)
        return F.relu(h)


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x, kept):
        return F.relu(self.norm(x) - kept)


class WithCollected(nn.Module):
    """A network whose course depends on what a block has put into an argument."""

    def __init__(self, empty, keep, read) -> None:
        super().__init__()
        self.stem, self.collects, self.fused = nn.Conv2d(3, 4, 3), Collects(keep), Fused()
        self.head, self.empty, self.read = nn.Linear(64, CLASSES), empty, read

    def forward(self, x):
        kept = self.empty()
        h = F.relu(self.collects(self.stem(x), kept) - 0.1)
        for part in self.read(kept):
            h = self.fused(h, part)
        return self.head(h.flatten(1))


COLLECTED = {
    "list": (list, lambda kept, h: kept.append(h), lambda kept: kept),
    "dictionary": (dict, lambda kept, h: kept.update(h=h), lambda kept: kept.values()),
    "dictionary that has it": (
        lambda: {"h": None},
        lambda kept, h: kept.update(h=h),
        lambda kept: [] if kept["h"] is None else [kept["h"]],
    ),
    "list in a tuple": (lambda: ([], 1), lambda kept, h: kept[0].append(h), lambda kept: kept[0]),
    "object": (types.SimpleNamespace, lambda kept, h: setattr(kept, "h", h), lambda kept: [*vars(kept).values()]),
}


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", COLLECTED)
def test_what_a_block_puts_into_its_arguments_is_there(name, prefer):
    model, x = finish(lambda: WithCollected(*COLLECTED[name])), image()
    expected = model(x).detach()
    with canonize(model, prefer=prefer):
        assert relative_error(model(x).detach(), expected) < 1e-10
    reference = gradient_times_input(model, x)
    if plan(model, prefer=prefer).uncovered:
        with pytest.warns(canon_bridge.UncoveredOperationWarning, match="collects"):
            LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET)
    else:
        found = LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET)
        assert relative_error(found, reference) < 1e-9


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x))


class WithoutGradient(nn.Module):
    """A branch that is computed with gradients switched off: of modules alone, or of functions, too."""

    def __init__(self, mode, modules_alone) -> None:
        super().__init__()
        self.mode, self.modules_alone = mode, modules_alone
        self.conv, self.norm, self.encoder, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Encoder(), nn.ReLU()
        self.inner, self.head = nn.ReLU(inplace=True), nn.Linear(64, CLASSES)

    def forward(self, x):
        with self.mode():
            h = self.inner(self.encoder(x))
            if not self.modules_alone:
                low, high = h.chunk(2, 1)
                h = torch.cat([low * 2, F.relu(high)], 1) / h.shape[1]
        return self.head((self.relu(self.norm(self.conv(x))) + h).flatten(1))


@pytest.mark.parametrize("framework", ["captum", "zennit"])
@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("modules_alone", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_computed_without_gradients_gets_no_relevance_and_a_name(mode, modules_alone, prefer, framework):
    model, x = finish(lambda: WithoutGradient(mode, modules_alone)), image()
    twin = copy.deepcopy(model)
    twin.mode = torch.no_grad  # tensors of inference mode take no part in torch's own gradients
    expected = model(x).detach()
    with canonize(model, prefer=prefer) as canonical:
        output = canonical(x.requires_grad_())
        assert relative_error(output.detach(), expected) < 1e-10
        assert torch.autograd.grad(output.sum(), model.encoder.conv.weight, allow_unused=True) == (None,)
    (entry,) = plan(model, prefer=prefer).uncovered
    assert "gradients are switched off" in entry.reason
    explain = {
        "captum": lambda x: LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET),
        "zennit": lambda x: attribute(model, x, epsilon_composite(LRP_0, [ModelCanonizer(prefer=prefer)])),
    }[framework]
    with pytest.warns(canon_bridge.UncoveredOperationWarning, match="gradients are switched off"):
        found = explain(x.detach())
    assert relative_error(found, gradient_times_input(twin, x.detach())) < 1e-9


def test_isinstance_in_another_package_than_that_of_the_model(monkeypatch):
    # A model of a notebook or a script, which calls a function of a package.
    helper = types.ModuleType("helpers_of_somebody")
    code = "import torch\n\ndef act(x):\n    return x.relu() if isinstance(x, torch.Tensor) else x.flip(2)\n"
    exec(code, vars(helper))
    monkeypatch.setitem(sys.modules, helper.__name__, helper)
    model, x = finish(lambda: PreActivation(With(lambda self, h: helper.act(h)))), image()
    expected = model(x).detach()
    with canonize(model):
        assert relative_error(model(x).detach(), expected) < 1e-10
    assert "isinstance" not in vars(helper)


def folded_wrongly(monkeypatch):
    """A small network, and a fold that forgets the shift: what a mistake of ours would look like."""
    right = apply.fold_after

    def wrong(edits, module, affine):
        right(edits, module, Affine(affine.scale, torch.zeros_like(affine.shift)))

    monkeypatch.setattr(apply, "fold_after", wrong)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)]
    return finish(lambda: nn.Sequential(*layers))


def test_another_function_is_an_error_of_attribute(monkeypatch):
    model, x = folded_wrongly(monkeypatch), image()
    with pytest.raises(canon_bridge.FunctionChangedError, match="1"):
        LRP(model).attribute(x, target=TARGET)


def test_another_function_is_an_error_on_entry_with_example_inputs(monkeypatch):
    model, x = folded_wrongly(monkeypatch), image()
    canonization = canonize(model, example_inputs=x)
    with pytest.raises(canon_bridge.FunctionChangedError, match="1"):
        canonization.apply()
    features = x[:, [0, 1, 2, 0]]
    assert not torch.equal(model[1](features), features)  # the model is itself


def test_function_changed_error_is_a_runtime_error():
    assert issubclass(canon_bridge.FunctionChangedError, RuntimeError)


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_norm0_of_a_densenet_goes_left(prefer):
    torch.manual_seed(0)
    model = randomize(torchvision.models.DenseNet(8, (2, 2), 16, num_classes=CLASSES).double())
    chains = {merge.norm: merge.chain for merge in plan(model, prefer=prefer).merges}
    assert chains["features.norm0"].direction == "left"
    assert chains["features.norm0"].targets == ("features.conv0",)
    assert chains["features.denseblock1.denselayer1.norm1"].direction == "right"
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET)
    assert relative_error(found, gradient_times_input(model, x)) < 1e-9
