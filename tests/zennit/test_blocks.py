"""The building blocks for zennit: each its own pattern, undone in every order, errors."""

from itertools import permutations

import pytest
import torch
from torch import nn
from zennit.core import RemovableHandleList

from canon_bridge.zennit import (
    CompositeCanonizer,
    DenseNetAdaptiveAvgPoolCanonizer,
    MergeBatchNormtoRight,
    ModelCanonizer,
    SequentialMergeBatchNorm,
    ThreshReLUMergeBatchNorm,
)
from tests.support.errors import alive, relative_error
from tests.support.in_zennit import attribute, epsilon_composite
from tests.support.models import PreActivation, gradient_times_input, images, small_densenet
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

pytestmark = pytest.mark.zennit

TOLERANCE = 1e-12

BLOCKS = (SequentialMergeBatchNorm, MergeBatchNormtoRight, ThreshReLUMergeBatchNorm)


@pytest.fixture
def model():
    return randomize(PreActivation().double())


@pytest.fixture
def x():
    return images(2, 16)


@pytest.mark.parametrize("order", list(permutations(BLOCKS)))
def test_building_blocks_in_any_order_undone_first_in_first_out(model, x, order):
    expected, snapshot = model(x).detach(), Snapshot(model)
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
    expected, snapshot = model(x).detach(), Snapshot(model)
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
    snapshot = Snapshot(model)
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
    snapshot = Snapshot(model)

    class Failing(ModelCanonizer):
        def apply(self, root_module):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CompositeCanonizer([SequentialMergeBatchNorm(), Failing()]).apply(model)
    snapshot.check()


def test_register_on_given_modules(model, x):
    expected, snapshot = model(x).detach(), Snapshot(model)
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
    snapshot = Snapshot(model)
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


def test_the_thresholded_relu_is_for_relus_alone():
    layers = nn.BatchNorm2d(3), nn.GELU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)
    model = randomize(nn.Sequential(*layers)).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = model(x)
    instances = ThreshReLUMergeBatchNorm().apply(model)
    assert len(instances) == 1
    assert alive(model) == ["0"]
    assert relative_error(model(x), expected) < 1e-12
    instances[0].remove()
    assert alive(model) == ["0", "3"]
