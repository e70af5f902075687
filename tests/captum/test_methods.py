"""Captum's other methods: what raises or is wrong on a model as it is, and right inside the block."""

import copy
from dataclasses import replace

import captum.attr
import pytest
import torch
import torchvision
from torch import nn

import canon_bridge
import canon_bridge.captum
from canon_bridge import UncoveredOperationWarning, canonize
from canon_bridge.captum import preprocess
from canon_bridge.core.activations import compares_with_baselines
from canon_bridge.core.canonize import Canonization
from canon_bridge.core.options import Options
from tests.support.errors import relative_error
from tests.support.models import TARGET, images, network, small_densenet
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

BLOCKS = [canon_bridge.canonize, canon_bridge.captum.canonize]
blocks = pytest.mark.parametrize("canonize", BLOCKS, ids=["core", "captum"])


class SharedReLU(nn.Module):
    """One in-place ReLU for everything, BatchNorms in front and behind, a sum, pools without overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.bn3 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = x + self.relu(self.bn2(self.conv2(x)))
        x = self.relu(self.bn3(x))
        return self.head(x.mean((2, 3)))


def completeness(model, x, reference):
    relevance, delta = captum.attr.DeepLift(model).attribute(x, reference, TARGET, return_convergence_delta=True)
    scores = (model(x) - model(reference))[:, TARGET].detach()
    assert relative_error(relevance.sum((1, 2, 3)) - delta, scores) < 1e-9
    return float((delta.abs() / scores.abs()).max())


@blocks
@pytest.mark.parametrize("prefer", ["left", "right"])
def test_deep_lift_with_one_relu_for_all(canonize, prefer):
    model, x = randomize(SharedReLU().double(), mild=True), images(size=16)
    reference = torch.zeros_like(x)
    with pytest.raises(RuntimeError, match="being used more than once"):
        captum.attr.DeepLift(copy.deepcopy(model)).attribute(x.clone(), reference, TARGET)
    before = Snapshot(model)
    with canonize(model, prefer=prefer):
        assert completeness(model, x.clone(), reference) < 1e-9
    before.check()


def test_deep_lift_with_any_reference():
    # Captum's hooks change a tensor's whole gradient: only with inputs of its own has each pool its own rule.
    model, x = randomize(SharedReLU().double(), mild=True), images(size=16)
    reference = torch.randn_like(x)
    with canon_bridge.captum.canonize(model):
        assert completeness(model, x.clone(), reference) < 1e-9
    with canon_bridge.canonize(model):
        assert completeness(model, x.clone(), reference) > 1e-3


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_deep_lift_names_the_pool_where_it_is_incomplete(prefer):
    model, x = randomize(SharedReLU().double(), mild=True), images(size=16)
    model.pool = nn.MaxPool2d(3, 2, 1)
    with canon_bridge.captum.canonize(model, prefer=prefer):
        assert completeness(model, x.clone(), torch.zeros_like(x)) < 1e-9
        with pytest.warns(UncoveredOperationWarning, match=r"MaxPool2d\(kernel_size=3, stride=2, .* not complete here"):
            assert completeness(model, x.clone(), torch.randn_like(x)) > 1e-3


@blocks
@pytest.mark.parametrize("name", ["densenet121", "resnet18"])
def test_deep_lift_of_whole_networks(canonize, name):
    model, x = network(name), images()
    with canonize(model):
        assert completeness(model, x.clone(), torch.zeros_like(x)) < 1e-9
        shap = captum.attr.DeepLiftShap(model).attribute(x.clone(), torch.zeros_like(x), TARGET)
        lift = captum.attr.DeepLift(model).attribute(x.clone(), torch.zeros_like(x), TARGET)
        assert relative_error(shap, lift) < 1e-9


def test_deep_lift_is_incomplete_where_a_clipped_unit_counts_as_constant(monkeypatch):
    model, x = small_densenet(), images()
    monkeypatch.setattr("canon_bridge.core.activations._takes_baselines", lambda kind: False)
    backend = replace(preprocess.PREPROCESSING, compares_with_reference=lambda module: False)
    for block in (canonize(model, prefer="right"), Canonization(model, Options(prefer="right"), backend)):
        with block:
            assert completeness(model, x.clone(), torch.zeros_like(x)) > 1e-3


def test_only_methods_that_compare_with_a_reference_count_as_such():
    class Compares:
        def attribute(self, inputs, baselines=None):
            pass

        def hook(self, *_):
            pass

    class Explains(Compares):
        def attribute(self, inputs, target=None):
            pass

    for owner, wanted in ((Compares(), True), (Explains(), False)):
        module = nn.ReLU()
        module.register_forward_hook(owner.hook)
        assert compares_with_baselines(module) is wanted
        assert not preprocess.compares_with_reference(module)
    assert not compares_with_baselines(nn.ReLU())
    for method, wanted in ((captum.attr.DeepLift, True), (captum.attr.DeepLiftShap, True), (captum.attr.LRP, False)):
        module = nn.ReLU()
        module.register_forward_hook(method(module).attribute)
        assert compares_with_baselines(module) is preprocess.compares_with_reference(module) is wanted


def hooked_gradient(model, x):
    seen = []
    handles = [m.register_full_backward_hook(lambda module, *_: seen.append(module)) for m in model.modules()]
    try:
        leaf = x.clone().requires_grad_()
        model(leaf)[:, TARGET].sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    return leaf.grad, seen


# A dense layer gets a list, and torch looks for tensors alone.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@blocks
@pytest.mark.parametrize("name", ["densenet121", "resnet18"])
def test_full_backward_hooks(canonize, name):
    model, x = network(name), images()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, TARGET].sum(), leaf)
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        hooked_gradient(model, x)
    with canonize(model):
        gradient, seen = hooked_gradient(model, x)
        assert len(set(seen)) == len(set(model.modules()))
    assert relative_error(gradient, expected) < 1e-9


@blocks
def test_grad_cam_of_a_densenet_beside_a_backward_hook(canonize):
    # torchvision's DenseNet overwrites the output of `features` by relu(inplace=True), which hooked outputs forbid.
    model, x = network("densenet121"), images()
    expected = captum.attr.LayerGradCam(model, model.features.denseblock4).attribute(x, TARGET)
    handle = model.features.register_full_backward_hook(lambda *_: None)
    try:
        for attribution in (captum.attr.LayerGradCam(model, model.features.denseblock4), captum.attr.Saliency(model)):
            with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
                attribution.attribute(x.clone(), TARGET)
        with canonize(model):
            leaf = x.clone().requires_grad_()
            inside = captum.attr.LayerGradCam(model, model.features.denseblock4).attribute(leaf, TARGET)
            # Where the map is taken BatchNorms are merged behind it alone: the same activations, the same map.
            assert relative_error(inside, expected) < 1e-9
    finally:
        handle.remove()


@blocks
def test_guided_backprop_reaches_functional_relus(canonize):
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 14)

        def forward(self, x):
            return self.head(nn.functional.relu(self.norm(self.conv(x)))).flatten(1)

    model, x = randomize(Functional().double(), mild=True), images(size=16)
    leaf = x.clone().requires_grad_()
    before = model.norm(model.conv(leaf))
    (weights,) = torch.autograd.grad(model.head(before.relu())[:, TARGET].sum(), before, retain_graph=True)
    (expected,) = torch.autograd.grad(before, leaf, weights.clamp(min=0))
    assert relative_error(captum.attr.GuidedBackprop(model).attribute(x.clone(), TARGET), expected) > 0.1
    with canonize(model):
        assert relative_error(captum.attr.GuidedBackprop(model).attribute(x.clone(), TARGET), expected) < 1e-9


@blocks
@pytest.mark.parametrize(
    "method",
    [
        lambda model, layer: captum.attr.Saliency(model),
        lambda model, layer: captum.attr.InputXGradient(model),
        lambda model, layer: captum.attr.IntegratedGradients(model),
        lambda model, layer: captum.attr.GuidedBackprop(model),
        lambda model, layer: captum.attr.GuidedGradCam(model, layer),
        lambda model, layer: captum.attr.Deconvolution(model),
        lambda model, layer: captum.attr.DeepLift(model),
        lambda model, layer: captum.attr.LayerDeepLift(model, layer),
        lambda model, layer: captum.attr.LayerConductance(model, layer),
        lambda model, layer: captum.attr.LayerActivation(model, layer),
    ],
    ids=lambda method: method(nn.Identity(), nn.Identity()).__class__.__name__,
)
def test_every_method_runs_and_leaves_nothing(canonize, method):
    model = randomize(torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5).double())
    before = Snapshot(model)
    with canonize(model):
        attribution = method(model, model.features.denseblock2.denselayer1.conv1)
        arguments = {} if isinstance(attribution, captum.attr.LayerActivation) else {"target": TARGET}
        relevance = attribution.attribute(images(size=32), **arguments)
        assert relevance.isfinite().all()
        assert relevance.abs().sum() > 0
    if canonize is canon_bridge.captum.canonize or not isinstance(attribution, captum.attr.LayerDeepLift):
        before.check()  # Captum leaves `input` and `output` on what comes before the layer
