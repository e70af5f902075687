"""The canonizers for zennit: what apply returns, undo in every order, errors, and zennit's own composites."""

import pytest
import torch
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonAlpha2Beta1Flat, EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat
from zennit.core import RemovableHandleList
from zennit.layer import Sum

from canon_bridge import TracingError
from canon_bridge.zennit import (
    CompositeCanonizer,
    DenseNetSeqThreshCanonizer,
    DenseNetThreshSeqCanonizer,
    ModelCanonizer,
    SequentialMergeBatchNorm,
    ThreshReLUMergeBatchNorm,
)
from tests.support.errors import alive, relative_error
from tests.support.in_zennit import attribute
from tests.support.models import PreActivation, images, network
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

pytestmark = pytest.mark.zennit

TOLERANCE = 1e-12


@pytest.fixture
def model():
    return randomize(PreActivation().double())


@pytest.fixture
def x():
    return images(2, 16)


def test_one_handle_that_undoes_everything_and_can_be_used_twice(model, x):
    snapshot = Snapshot(model)
    canonizer = ModelCanonizer(prefer="right")
    for _ in range(2):
        handles = RemovableHandleList(canonizer.apply(model))
        assert len(handles) == 1
        assert alive(model) == []
        (handle,) = handles
        handles.remove()
        handle.remove()
        snapshot.check()


@pytest.mark.parametrize("composite", [EpsilonPlus, EpsilonPlusFlat, EpsilonAlpha2Beta1Flat, EpsilonGammaBox])
@pytest.mark.parametrize("prefer", ["left", "right"])
def test_builtin_composites_and_restoration(model, x, composite, prefer):
    snapshot = Snapshot(model)
    arguments = {"low": -3.0, "high": 3.0} if composite is EpsilonGammaBox else {}
    rules = composite(canonizers=[ModelCanonizer(prefer=prefer)], **arguments)
    with Gradient(model, rules) as attributor:
        _, relevance = attributor(x, torch.eye(5, dtype=x.dtype)[[3, 3]])
    assert bool(torch.isfinite(relevance).all())
    assert float(relevance.abs().sum()) > 0
    snapshot.check()


def test_residual_sum_gets_the_norm_rule():
    model, x = network("resnet18"), images()
    seen = []

    class Watch(EpsilonPlus):
        def mapping(self, ctx, name, module):
            hook = super().mapping(ctx, name, module)
            if isinstance(module, Sum):
                seen.append((name, type(hook).__name__))
            return hook

    attribute(model, x, Watch(canonizers=[ModelCanonizer()]))
    assert seen == [(f"layer{i}.{j}.add.sum", "Norm") for i in range(1, 5) for j in range(2)]


def test_the_shift_map_is_the_bias_that_rules_see(model, x):
    # Without its bias a convolution behind a BatchNorm distributes all relevance: the sum is conserved better.
    with_bias = attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer(prefer="right")]))
    without = attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer(prefer="right")], zero_params=["bias"]))
    assert relative_error(with_bias, without) > 1e-3


def test_exception_in_the_context(model, x):
    snapshot = Snapshot(model)
    composite = EpsilonPlus(canonizers=[ModelCanonizer()])

    def fail():
        with composite.context(model) as modified:
            modified(x.requires_grad_())
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    snapshot.check()


class ValueDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("canonizer", [ModelCanonizer(), SequentialMergeBatchNorm(), DenseNetThreshSeqCanonizer()])
def test_errors_leave_the_model_alone(canonizer):
    model = ValueDependent().eval()
    snapshot = Snapshot(model)
    with pytest.raises(TracingError, match="example_inputs"):
        canonizer.apply(model)
    snapshot.check()
    model.train()
    with pytest.raises(ValueError, match=r"norm is in training mode.*model\.eval\(\) first"):
        canonizer.apply(model)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        canonizer.apply("model")


def test_keywords_and_copies():
    canonizer = ModelCanonizer(prefer="right", clipped="pass", leftover="keep")
    assert canonizer.copy().options == canonizer.options
    assert DenseNetSeqThreshCanonizer().copy().options.prefer == "left"
    assert DenseNetThreshSeqCanonizer(clipped="pass").copy().options.prefer == "right"
    assert DenseNetThreshSeqCanonizer(clipped="pass").copy().options.clipped == "pass"
    assert ThreshReLUMergeBatchNorm("pass").copy().options.clipped == "pass"
    assert isinstance(CompositeCanonizer([canonizer]).copy().canonizers[0], ModelCanonizer)
    with pytest.raises(ValueError, match="prefer is 'up'; it must be one of 'left', 'right'"):
        ModelCanonizer(prefer="up")
