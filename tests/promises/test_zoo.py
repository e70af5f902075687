"""Whole architectures: a cross-section of the coverage benchmark; test_benchmarks.py shows that it can fail.

The rest of the zoo is slow: ``pytest -m slow tests/promises/test_zoo.py``.
"""

from functools import lru_cache
from importlib.util import find_spec

import pytest
import torch
from torchvision.models.optical_flow import raft_large

from canon_bridge import canonize, plan
from tests.support import zoo
from tests.support.measure import TOLERANCE, measure
from tests.support.sampled import every_other
from tests.support.statistics import randomize_called

FAST = (
    "torchvision/resnet18",
    "torchvision/densenet121",
    "torchvision/googlenet",
    "torchvision/mnasnet0_5",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/efficientnet_b0",
    "torchvision/regnet_y_400mf",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/segmentation/lraspp_mobilenet_v3_large",
    "torchvision/video/mc3_18",
    "torchvision/detection/fasterrcnn_mobilenet_v3_large_fpn.backbone",
)
FAST_TIMM = ("timm/repvgg_a0", "timm/resnet26d", "timm/levit_128s")
HAS_TIMM = find_spec("timm") is not None
FLOAT32_ALONE = "torchvision/optical_flow/raft_large"  # it computes in float32, whatever it is given
SLOW = sorted(
    {group[0] for group in zoo.names("required" if HAS_TIMM else "none")} - {*FAST, *FAST_TIMM, FLOAT32_ALONE}
)

both = pytest.mark.parametrize("prefer", ["left", "right"])


@lru_cache(maxsize=1)  # both directions of one model come one after the other
def _subject(name):
    model = zoo.build(name).double()
    inputs = zoo.inputs(name, model, 32 if name in FAST and "/video/" in name else None)
    return model, inputs, randomize_called(model, inputs)


def _check(name, prefer):
    model, inputs, called = _subject(name)
    row = measure(model, inputs, name, prefer, called=called, rounds=0)
    assert row.error is not None, row.reason
    assert row.error < TOLERANCE < 1e-6 < row.eps_error, row.reason
    assert row.restored, row.differences
    assert row.alive == 0, row.reason
    assert row.batch_norms > 0


@pytest.mark.whole
@pytest.mark.parametrize(("name", "prefer"), every_other(FAST, ["left", "right"]))
def test_no_batch_norm_is_alive_and_nothing_changes(name, prefer):
    _check(name, prefer)


@pytest.mark.slow
@both
@pytest.mark.parametrize("name", FAST_TIMM)
def test_timm(name, prefer):
    pytest.importorskip("timm")
    _check(name, prefer)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
@pytest.mark.filterwarnings("ignore")
def test_the_rest_of_the_zoo(name):
    norms, parameters = zoo.describe(name)
    if not norms or parameters > 200e6:
        pytest.skip("no BatchNorm" if not norms else "too large")
    try:
        for prefer in ("left", "right"):
            _check(name, prefer)
    finally:
        _subject.cache_clear()


@pytest.mark.slow
@both
def test_a_recurrent_network_that_runs_in_float32_alone(prefer):
    model = raft_large().eval()
    images = (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    randomize_called(model, images)
    expected = model(*images)
    assert len(plan(model, prefer=prefer, example_inputs=images).merges) == 15
    with canonize(model, prefer=prefer, example_inputs=images):
        got = model(*images)
    errors = [((g - e).abs().max() / e.abs().max()).item() for g, e in zip(got, expected, strict=True)]
    assert len(errors) == 12
    assert max(errors) < 1e-4
