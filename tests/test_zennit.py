"""The canonizers for zennit: what apply returns, undo in every order, errors, and zennit's own composites."""

from itertools import permutations

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
    DenseNetAdaptiveAvgPoolCanonizer,
    DenseNetSeqThreshCanonizer,
    DenseNetThreshSeqCanonizer,
    MergeBatchNormtoRight,
    ModelCanonizer,
    SequentialMergeBatchNorm,
    ThreshReLUMergeBatchNorm,
)
from tests.conftest import Snapshot, alive, randomize, relative_error
from tests.models import gradient_times_input, images, network, small_densenet
from tests.with_zennit import attribute, epsilon_composite

pytestmark = pytest.mark.zennit

TOLERANCE = 1e-12


class PreActivation(nn.Module):
    """Every pattern once, and a convolution that two building blocks write to from both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 6, 3, padding=1)
        self.norm0 = nn.BatchNorm2d(6)
        self.relu0 = nn.ReLU(inplace=True)
        self.norm1 = nn.BatchNorm2d(6)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(2)
        self.norm3 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(4 * 8 * 8, 5)

    def forward(self, x):
        x = self.relu0(self.norm0(self.conv0(x)))
        x = self.norm2(self.conv1(self.relu1(self.norm1(x)))).relu()
        return self.head(self.flatten(self.conv2(self.norm3(self.pool(x)))))


BLOCKS = (SequentialMergeBatchNorm, MergeBatchNormtoRight, ThreshReLUMergeBatchNorm)


@pytest.fixture
def model():
    return randomize(PreActivation().double())


@pytest.fixture
def x():
    return images(2, 16)


@pytest.mark.parametrize("order", list(permutations(BLOCKS)))
def test_building_blocks_in_any_order_undone_first_in_first_out(model, x, order):
    expected, snapshot = model(x).detach(), Snapshot.of(model)
    handles = RemovableHandleList()
    for block in order:
        handles += block().apply(model)
    assert alive(model) == []
    assert len(handles) == 4
    assert relative_error(model(x), expected) < TOLERANCE
    handles.remove()
    snapshot.check()
    assert model(x).equal(expected)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_handles_removed_in_any_order(model, x, order):
    expected, snapshot = model(x).detach(), Snapshot.of(model)
    handles = [handle for block in BLOCKS for handle in block().apply(model)]
    for index in order:
        handles[index].remove()
        handles[index].remove()
    snapshot.check()
    assert model(x).equal(expected)


def test_each_block_does_its_own_pattern(model):
    merged = {}
    for block in BLOCKS:
        before = set(alive(model))
        handles = RemovableHandleList(block().apply(model))
        merged[block] = before - set(alive(model))
        handles.remove()
    assert merged[SequentialMergeBatchNorm] == {"norm0", "norm2"}
    assert merged[MergeBatchNormtoRight] == {"norm3"}
    assert merged[ThreshReLUMergeBatchNorm] == {"norm1"}


def test_composite_canonizer_of_blocks_equals_the_whole(x):
    model = small_densenet()
    blocks = [DenseNetAdaptiveAvgPoolCanonizer(), SequentialMergeBatchNorm(), ThreshReLUMergeBatchNorm()]
    x = images()
    snapshot = Snapshot.of(model)
    relevance = attribute(model, x, epsilon_composite(1e-30, [CompositeCanonizer(blocks)]))
    assert relative_error(relevance, gradient_times_input(model, x)) < TOLERANCE
    snapshot.check()


def test_composite_canonizer_undoes_in_reverse_order(model):
    removed = []

    class Recorder(ModelCanonizer):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def apply(self, root_module):
            return [self]

        def remove(self):
            removed.append(self.name)

    handles = CompositeCanonizer([Recorder("first"), Recorder("second")]).apply(model)
    RemovableHandleList(handles).remove()
    assert removed == ["second", "first"]


def test_composite_canonizer_that_fails_half_way_leaves_nothing(model):
    snapshot = Snapshot.of(model)

    class Failing(ModelCanonizer):
        def apply(self, root_module):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CompositeCanonizer([SequentialMergeBatchNorm(), Failing()]).apply(model)
    snapshot.check()


def test_register_on_given_modules(model, x):
    expected, snapshot = model(x).detach(), Snapshot.of(model)
    canonizers = [SequentialMergeBatchNorm(), MergeBatchNormtoRight(), ThreshReLUMergeBatchNorm()]
    canonizers[0].register((model.conv0,), model.norm0)
    canonizers[1].register([model.conv2], model.norm3)
    canonizers[2].register([model.conv1], model.norm1, model.relu1)
    assert alive(model) == ["norm2"]
    assert relative_error(model(x), expected) < TOLERANCE
    for canonizer in canonizers:
        canonizer.remove()
    snapshot.check()


def test_register_refuses_what_cannot_merge(model):
    snapshot = Snapshot.of(model)
    with pytest.raises(TypeError, match="linears holds a ReLU"):
        SequentialMergeBatchNorm().register([model.relu0], model.norm0)
    with pytest.raises(TypeError, match="batch_norm is a Conv2d"):
        MergeBatchNormtoRight().register([model.conv0], model.conv1)
    with pytest.raises(TypeError, match="relu is a MaxPool2d"):
        ThreshReLUMergeBatchNorm().register([model.conv1], model.norm1, model.pool)
    model.norm1.train()
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        ThreshReLUMergeBatchNorm().register([model.conv1], model.norm1, model.relu1)
    model.norm1.eval()
    snapshot.check()


def test_one_handle_that_undoes_everything_and_can_be_used_twice(model, x):
    snapshot = Snapshot.of(model)
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
    snapshot = Snapshot.of(model)
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
    snapshot = Snapshot.of(model)
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
    snapshot = Snapshot.of(model)
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
