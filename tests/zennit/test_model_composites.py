"""zennit's built-in composites, unchanged, on networks with sums and gates: nothing is lost, the model restored."""

from functools import cache

import pytest
import torch
import torchvision
from torch import nn
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat
from zennit.core import Composite

from canon_bridge import audit
from canon_bridge.auditing.causes import ELSEWHERE, GATES
from canon_bridge.core.norms import is_norm
from canon_bridge.zennit import ModelCanonizer
from tests.support.in_zennit import attribute
from tests.support.models import TARGET, images
from tests.support.sampled import every_other
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

pytestmark = pytest.mark.zennit


class SENet(nn.Module):
    """Squeeze and excitation written as people write it: sigmoid, multiplication, sum, all in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        gate = torch.sigmoid(self.up(self.relu(self.down(y.mean((2, 3))))))
        x = self.relu(y * gate[:, :, None, None] + x)
        return self.head(x.mean((2, 3)))


@cache
def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "senet":
        return randomize(SENet().double(), mild=True)
    return randomize(getattr(torchvision.models, name)(num_classes=5).double(), mild=True)


NAMES = ("resnet18", "efficientnet_b0", "mobilenet_v3_small", "senet", "regnet_y_400mf")
COMPOSITES = {
    "EpsilonPlus": EpsilonPlus,
    "EpsilonPlusFlat": EpsilonPlusFlat,
    "EpsilonAlpha2Beta1": EpsilonAlpha2Beta1,
    "EpsilonGammaBox": lambda canonizers=None: EpsilonGammaBox(-4.0, 4.0, canonizers=canonizers),
}


@pytest.mark.whole
@pytest.mark.parametrize(("name", "composite", "prefer"), every_other(NAMES, [*COMPOSITES], ["left", "right"]))
def test_nothing_is_lost_at_sums_and_gates(name, composite, prefer):
    model, x = build(name), images()
    before = Snapshot(model)
    report = audit(model, x, TARGET, COMPOSITES[composite](canonizers=[ModelCanonizer(prefer=prefer)]))
    before.check()
    assert report.defect_of_flow < 1e-13
    assert report.worst() == []
    kinds = {entry.kind for entry in report.entries}
    assert ("SignalTimesGate" in kinds) == (name != "resnet18")
    assert "StackedSum" in kinds


@pytest.mark.parametrize("name", NAMES)
def test_without_the_canonizer_it_is(name):
    model, x = build(name), images()
    report = audit(model, x, TARGET, EpsilonPlus())
    assert report.defect > 0.1
    assert abs(report.taken(ELSEWHERE)) > 0.01 * report.scale
    assert report.taken(GATES) == 0  # zennit sees none


@pytest.mark.parametrize("name", NAMES)
def test_the_block_restores_the_parameter_objects_that_zennit_replaces(name):
    model, x = build(name), images()
    before = Snapshot(model)
    objects = dict(model.named_parameters())
    for _ in range(2):
        attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer()]))
        before.check()
    assert all(objects[key] is value for key, value in model.named_parameters())


def test_each_branch_of_a_sum_gets_its_share_and_the_signal_all_of_a_product():
    model, x = build("senet"), images()
    composite: Composite = EpsilonPlus(canonizers=[ModelCanonizer()])
    flows = {entry.path: entry for entry in audit(model, x, TARGET, composite).entries}
    (sum_,) = (entry for entry in flows.values() if entry.kind == "StackedSum")
    (product,) = (entry for entry in flows.values() if entry.kind == "SignalTimesGate")
    assert sum_.arrived == pytest.approx(sum_.handed_down, rel=1e-4)
    assert product.arrived == pytest.approx(product.handed_down, rel=1e-9)
    assert flows["up"].arrived == 0  # the gate gets nothing
    assert flows["down"].arrived == 0
    assert not any(is_norm(module) and module.eps == 0 for module in model.modules())
