"""Element-wise operations pass relevance on in every spelling, and so does a twin made of modules."""

import importlib.util
import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit.composites import EpsilonPlus

from canon_bridge import canonize, plan
from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import ModelCanonizer
from tests.operations.networks import cases, finish, image
from tests.operations.stages import CLASSES
from tests.support.errors import relative_error
from tests.support.in_zennit import TARGET, attribute

TOLERANCE = 1e-10
PARITY = 1e-12

pytestmark = pytest.mark.zennit


class Swish(torch.autograd.Function):
    """A SiLU with a derivative of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s * (1 + x * (1 - s)))


class SwishModule(nn.Module):
    def forward(self, x):
        return Swish.apply(x)


class SiluByHand(nn.Module):
    """A leaf without parameters whose forward is Python."""

    def forward(self, x):
        return x * torch.sigmoid(x)


class Flagged(nn.Module):
    """A SiLU with a flag, as many packages write it, whatever becomes of the flag."""

    def __init__(self, function: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.function, self.inplace = function, True

    def forward(self, x):
        return self.function(x, self.inplace)


def _scripted_swish(x):
    return x * torch.sigmoid(x)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    scripted_swish = torch.jit.script(_scripted_swish)

# The operation, and torch's module for it.
TORCH: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]] = {
    "F.gelu": (lambda h: F.gelu(h), nn.GELU()),
    "F.gelu(tanh)": (lambda h: F.gelu(h, approximate="tanh"), nn.GELU("tanh")),
    "F.silu": (lambda h: F.silu(h), nn.SiLU()),
    "F.silu(inplace)": (lambda h: F.silu(h, inplace=True), nn.SiLU()),
    "x * sigmoid(x)": (lambda h: h * torch.sigmoid(h), nn.SiLU()),
    "x.mul(x.sigmoid())": (lambda h: h.mul(h.sigmoid()), nn.SiLU()),
    "autograd.Function": (lambda h: Swish.apply(h), nn.SiLU()),
    "module of an autograd.Function": (SwishModule(), nn.SiLU()),
    "module by hand": (SiluByHand(), nn.SiLU()),
    "scripted function": (scripted_swish, nn.SiLU()),
    "flag that is handed on": (Flagged(lambda x, inplace: F.silu(x, inplace=inplace)), nn.SiLU()),
    "flag that means nothing": (Flagged(lambda x, inplace: x * x.sigmoid()), nn.SiLU()),
    "flag that chooses": (Flagged(lambda x, flag: x.mul_(x.sigmoid()) if flag else x * x.sigmoid()), nn.SiLU()),
    "F.mish": (lambda h: F.mish(h), nn.Mish()),
    "mish by hand": (lambda h: h * torch.tanh(F.softplus(h)), nn.Mish()),
    "F.softplus": (lambda h: F.softplus(h), nn.Softplus()),
    "F.softplus(beta=2)": (lambda h: F.softplus(h, beta=2), nn.Softplus(2)),
    "F.elu": (lambda h: F.elu(h, alpha=0.5), nn.ELU(0.5)),
    "F.selu": (lambda h: F.selu(h), nn.SELU()),
    "torch.selu_": (lambda h: torch.selu_(h), nn.SELU()),
    "F.celu": (lambda h: F.celu(h, 0.5), nn.CELU(0.5)),
    "torch.tanh": (lambda h: torch.tanh(h), nn.Tanh()),
    "h.tanh": (lambda h: h.tanh(), nn.Tanh()),
    "h.tanh_": (lambda h: h.tanh_(), nn.Tanh()),
    "torch.sigmoid": (lambda h: torch.sigmoid(input=h), nn.Sigmoid()),
    "torch.special.expit": (lambda h: torch.special.expit(h), nn.Sigmoid()),
    "F.logsigmoid": (lambda h: F.logsigmoid(h), nn.LogSigmoid()),
    "F.softsign": (lambda h: F.softsign(h), nn.Softsign()),
    "F.tanhshrink": (lambda h: F.tanhshrink(h), nn.Tanhshrink()),
    "F.softshrink": (lambda h: F.softshrink(h, 0.2), nn.Softshrink(0.2)),
    "F.hardshrink": (lambda h: F.hardshrink(h, 0.2), nn.Hardshrink(0.2)),
    "F.hardtanh": (lambda h: F.hardtanh(h, -0.3, 0.4), nn.Hardtanh(-0.3, 0.4)),
    "clamp": (lambda h: h.clamp(-0.3, 0.4), nn.Hardtanh(-0.3, 0.4)),
    "torch.clip": (lambda h: torch.clip(h, min=-0.3, max=0.4), nn.Hardtanh(-0.3, 0.4)),
    "F.relu6": (lambda h: F.relu6(20 * h), None),
    "F.threshold": (lambda h: F.threshold(h, 0.1, 0.5), nn.Threshold(0.1, 0.5)),
    "F.hardsigmoid": (lambda h: F.hardsigmoid(h), nn.Hardsigmoid()),
    "F.hardswish": (lambda h: F.hardswish(h), nn.Hardswish()),
    "hardswish by hand": (lambda h: h * F.relu6(h + 3) / 6, nn.Hardswish()),
    "F.leaky_relu": (lambda h: F.leaky_relu(h, 0.3), nn.LeakyReLU(0.3)),
    "F.rrelu": (lambda h: F.rrelu(h, 0.1, 0.3), nn.RReLU(0.1, 0.3)),
}

# Those without a module in torch; what they are applied to is in their domain.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.exp": lambda h: torch.exp(h),
    "h.exp": lambda h: h.exp(),
    "torch.expm1": lambda h: torch.expm1(h),
    "exp2": lambda h: torch.exp2(h),
    "log1p(relu)": lambda h: torch.log1p(F.relu(h)),
    "log of exp": lambda h: torch.log(h.exp()),
    "sqrt of exp": lambda h: h.exp().sqrt(),
    "torch.rsqrt": lambda h: torch.rsqrt(torch.exp(h)),
    "reciprocal": lambda h: h.exp().reciprocal(),
    "torch.square": lambda h: torch.square(h),
    "h.square": lambda h: h.square(),
    "pow(2)": lambda h: h.pow(2),
    "torch.pow(h, 3)": lambda h: torch.pow(h, 3),
    "h ** 2": lambda h: h**2,
    "torch.pow(2, h)": lambda h: torch.pow(2, h),
    "torch.sin": lambda h: torch.sin(h),
    "h.cos": lambda h: h.cos(),
    "torch.erf": lambda h: torch.erf(h),
    "h.erf": lambda h: h.erf(),
    "torch.special.erf": lambda h: torch.special.erf(h),
    "atan": lambda h: h.atan(),
    "sinh": lambda h: torch.sinh(h),
    "asinh": lambda h: torch.asinh(h),
    "logit of sigmoid": lambda h: torch.logit(torch.sigmoid(h), eps=1e-6),
    "nan_to_num": lambda h: torch.nan_to_num(h),
    "clamp(min=0.2)": lambda h: h.clamp(min=0.2),
    "clamp(max=0.2)": lambda h: torch.clamp(h, max=0.2),
    "relu squared": lambda h: F.relu(h).square(),
    "quick gelu": lambda h: h * torch.sigmoid(1.702 * h),
    "gelu by hand": lambda h: 0.5 * h * (1 + torch.erf(h / math.sqrt(2))),
}

# Relevance passes them, too, as if their statistics were constants; none of them takes a map.
NORMALISERS: dict[str, nn.Module] = {
    "GroupNorm": nn.GroupNorm(2, 6),
    "GroupNorm without weights": nn.GroupNorm(3, 6, affine=False),
    "InstanceNorm": nn.InstanceNorm2d(6, affine=True),
    "LocalResponseNorm": nn.LocalResponseNorm(3),
    "Softmax2d": nn.Softmax2d(),
}


def _timm() -> dict[str, tuple[nn.Module, nn.Module | None]]:
    activations = pytest.importorskip("timm.layers.activations")
    with_memory = pytest.importorskip("timm.layers.activations_me")
    return {
        "timm Swish": (activations.Swish(), nn.SiLU()),
        "timm Mish": (activations.Mish(), nn.Mish()),
        "timm Sigmoid": (activations.Sigmoid(), nn.Sigmoid()),
        "timm Tanh": (activations.Tanh(), nn.Tanh()),
        "timm HardSwish": (activations.HardSwish(), nn.Hardswish()),
        "timm HardSigmoid": (activations.HardSigmoid(), nn.Hardsigmoid()),
        "timm HardMish": (activations.HardMish(), None),
        "timm PReLU": (activations.PReLU(), nn.PReLU()),
        "timm GELU": (activations.GELU(), nn.GELU()),
        "timm GELUTanh": (activations.GELUTanh(), nn.GELU("tanh")),
        "timm QuickGELU": (activations.QuickGELU(), None),
        "timm swish": (lambda h: activations.swish(h), nn.SiLU()),
        "timm gelu": (lambda h: activations.gelu(h), nn.GELU()),
        "timm SwishMe": (with_memory.SwishMe(), nn.SiLU()),
        "timm MishMe": (with_memory.MishMe(), nn.Mish()),
        "timm HardSigmoidMe": (with_memory.HardSigmoidMe(), nn.Hardsigmoid()),
        "timm HardSwishMe": (with_memory.HardSwishMe(), nn.Hardswish()),
        "timm HardMishMe": (with_memory.HardMishMe(), None),
    }


# With ``prefer="right"`` a BatchNorm goes into the module, but not into a product, or what may not be element-wise.
LEFT_ONLY = {
    "x * sigmoid(x)",
    "x.mul(x.sigmoid())",
    "autograd.Function",
    "module of an autograd.Function",
    "module by hand",
    "flag that means nothing",
    "flag that chooses",
    "scripted function",
    "mish by hand",
    "hardswish by hand",
    "timm swish",
    "timm gelu",
}
WITH_TWIN = TORCH | (_timm() if importlib.util.find_spec("timm") else {})
ALL = {name: operation for name, (operation, _) in WITH_TWIN.items()} | FUNCTIONS


class Network(nn.Module):
    """Two convolutions with BatchNorm and the operation, and a head."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.conv1, self.norm1 = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        self.operation, self.head = operation, nn.Linear(24, CLASSES)

    def forward(self, x):
        h = self.operation(self.norm0(self.conv0(x)))
        return self.head(self.operation(self.norm1(self.conv1(h))).flatten(1))


class Passed(nn.ReLU):
    """A function that zennit takes for an activation, by the base class."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x.clone()).clone()  # a scripted function puts out more than one gradient


def by_hand(model: Network) -> nn.Module:
    """Return the network with torch's own merge of BatchNorms, the operation an activation to zennit."""
    return nn.Sequential(
        fuse_conv_bn_eval(model.conv0, model.norm0),
        Passed(model.operation),
        fuse_conv_bn_eval(model.conv1, model.norm1),
        Passed(model.operation),
        nn.Flatten(),
        model.head,
    ).eval()


def by_zennit(model, x, **keywords):
    return attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer(**keywords)]))


def by_captum(model, x, **keywords):
    return LRP(model, presets.epsilon_plus(), **keywords).attribute(x, target=TARGET)


FRAMEWORKS = {"zennit": by_zennit, "captum": by_captum}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", [*ALL, *NORMALISERS])
def test_the_map_is_that_of_a_twin_merged_by_hand(name, framework):
    model, x = finish(lambda: Network((ALL | NORMALISERS)[name])), image()
    expected = attribute(by_hand(model), x, EpsilonPlus())
    assert expected.isfinite().all()
    assert expected.abs().max() > 1e-6
    assert relative_error(FRAMEWORKS[framework](model, x, prefer="left"), expected) < TOLERANCE


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("name", "prefer"),
    [
        (name, prefer)
        for name, (_, twin) in WITH_TWIN.items()
        for prefer in ("left", "right")
        if twin is not None and (prefer == "left" or name not in LEFT_ONLY)
    ],
)
def test_the_map_is_that_of_torchs_module(name, prefer, framework):
    operation, module = WITH_TWIN[name]
    model, twin = finish(lambda: Network(operation)), finish(lambda: Network(module))
    x = image()
    assert relative_error(model(x), twin(x)) < TOLERANCE
    expected = FRAMEWORKS[framework](twin, x, prefer=prefer)
    assert relative_error(FRAMEWORKS[framework](model, x, prefer=prefer), expected) < TOLERANCE


@pytest.mark.parametrize(("name", "prefer", "clipped"), cases(ALL, ("left", "right"), ("absorb", "pass")))
def test_both_frameworks_give_the_same_map(name, prefer, clipped):
    model, x = finish(lambda: Network(ALL[name])), image()
    first, second = (attribute_by(model, x, prefer=prefer, clipped=clipped) for attribute_by in FRAMEWORKS.values())
    assert relative_error(second, first) < PARITY


@pytest.mark.parametrize(("name", "prefer"), cases(ALL, ("left", "right")))
def test_it_is_covered_and_the_function_is_kept(name, prefer):
    model, x = finish(lambda: Network(ALL[name])), image()
    expected = model(x).detach()
    assert plan(model, prefer=prefer).uncovered == ()
    with canonize(model, prefer=prefer):
        assert relative_error(model(x).detach(), expected) < 1e-9
