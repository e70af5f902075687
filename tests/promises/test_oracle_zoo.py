"""LRP-0 equals gradient times input on every piecewise-linear kind of network, in both frameworks and orders.

The reference uses neither framework and no line of this package. Slow, but for two of them:
``pytest -m "slow or not slow" tests/promises/test_oracle_zoo.py``.
"""

from functools import lru_cache
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import ModelCanonizer
from tests.support import zoo
from tests.support.errors import relative_error
from tests.support.in_zennit import attribute, epsilon_composite
from tests.support.models import TARGET, gradient_times_input
from tests.support.statistics import randomize_called

FAST = ("torchvision/mnasnet0_5", "torchvision/shufflenet_v2_x0_5")
SLOW = (
    "torchvision/googlenet",
    "torchvision/inception_v3",
    "torchvision/regnet_x_400mf",
    "torchvision/resnet50",
    "torchvision/mobilenet_v2",
    "timm/resnetv2_50",
    "timm/resnet26d",
    "timm/densenetblur121d",
    "timm/res2net50_26w_4s",
    "timm/dla34",
    "timm/dpn68",
    "timm/hrnet_w18_small",
    "timm/xception41",
    "timm/repvgg_a0",
    "timm/cspdarknet53",
)
TOLERANCE = {"torchvision/mobilenet_v2": 1e-11}
LRP_0 = 1e-30

pytestmark = pytest.mark.zennit


@lru_cache(maxsize=1)  # both orders of one model come one after the other
def _subject(name):
    model = zoo.build(name).double()
    inputs = zoo.inputs(name, model, None)
    randomize_called(model, inputs)
    (x,) = inputs
    saturated = []
    handles = [
        module.register_forward_hook(lambda module, args, output: saturated.append(bool((output == 6).any())))
        for module in model.modules()
        if isinstance(module, nn.ReLU6)
    ]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        model(x)
        while any(saturated):  # relevance of a saturated unit is that of a constant
            for norm in norms:
                norm.weight /= 2
                norm.bias /= 2
            saturated.clear()
            model(x)
    for handle in handles:
        handle.remove()
    return model, x


def _needs(name):
    timm = pytest.mark.skipif(find_spec("timm") is None, reason="the models of timm need timm")
    return [*([] if name in FAST else [pytest.mark.slow]), *([timm] if name.startswith("timm/") else [])]


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=_needs(name)) for name in (*FAST, *SLOW)])
def test_both_frameworks_equal_gradient_times_input(name, prefer):
    model, x = _subject(name)
    expected, tolerance = gradient_times_input(model, x), TOLERANCE.get(name, 1e-12)
    by_zennit = attribute(model, x, epsilon_composite(LRP_0, [ModelCanonizer(prefer=prefer)]))
    by_captum = LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET)
    assert relative_error(by_zennit, expected) < tolerance
    assert relative_error(by_captum, expected) < tolerance
    if name in FAST:  # the tolerance rejects an epsilon that is there
        wrong = LRP(model, presets.epsilon(1e-3), prefer=prefer).attribute(x, target=TARGET)
        assert not relative_error(wrong, expected) < 1e3 * tolerance
