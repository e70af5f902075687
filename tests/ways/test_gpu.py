"""On a GPU: the same function, the same restoration, the same relevance; skipped where there is none."""

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize, canonized_copy
from tests.support.errors import relative_error
from tests.support.pieces import BOTH
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize
from tests.ways.models import EPS, MODELS, gradient
from tests.ways.test_precision import RATIO, inputs, mild

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = pytest.mark.skipif(GPUS == 0, reason="needs a GPU")
PREFER = pytest.mark.parametrize("prefer", BOTH)
NAMES = pytest.mark.parametrize("name", MODELS)


def on_gpu(name: str) -> tuple[nn.Module, Tensor]:
    make, draw = MODELS[name]
    return make().cuda(), draw().cuda()


@PREFER
@NAMES
def test_function_and_restoration(name: str, prefer: str) -> None:
    model, x = on_gpu(name)
    before, expected, slope = Snapshot(model), model(x), gradient(model, x)
    with canonize(model, prefer=prefer):
        assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cuda"}
        assert relative_error(model(x), expected) < 256 * EPS
        assert relative_error(gradient(model, x), slope) < 4096 * EPS
    before.check()
    assert relative_error(canonized_copy(model, prefer=prefer)(x), expected) < 256 * EPS


@PREFER
@NAMES
def test_moving_to_the_gpu_inside_the_block_moves_the_model_and_loses_nothing(name: str, prefer: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    expected, values = model(x), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with canonize(model, prefer=prefer):
        model.cuda()
        assert relative_error(model(x.cuda()).cpu(), expected) < 256 * EPS
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cuda"}
    assert all(torch.equal(tensor.cpu(), values[key]) for key, tensor in model.state_dict().items())


@PREFER
def test_a_copy_follows_to_the_gpu(prefer: str) -> None:
    make, draw = MODELS["everything"]
    model, x = make(), draw()
    twin = canonized_copy(model, prefer=prefer).cuda()
    assert relative_error(twin(x.cuda()).cpu(), model(x)) < 256 * EPS


@PREFER
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(prefer: str, dtype: torch.dtype) -> None:
    model, x = mild().cuda(), inputs(torch.float32).cuda()
    exact = mild_in_double(model, x)
    with torch.autocast("cuda", dtype):
        original = relative_error(model(x).double(), exact)
        with canonize(model, prefer=prefer):
            assert relative_error(model(x).double(), exact) <= RATIO * original


def mild_in_double(model: nn.Module, x: Tensor) -> Tensor:
    twin = mild()
    twin.load_state_dict(model.state_dict())
    return twin.cuda().double()(x.double())


@PREFER
def test_lrp_in_both_frameworks(prefer: str) -> None:
    attribution, composites = pytest.importorskip("zennit.attribution"), pytest.importorskip("zennit.composites")
    from canon_bridge.captum import LRP, presets
    from canon_bridge.zennit import ModelCanonizer

    model, x = on_gpu("densenet")
    composite = composites.EpsilonPlusFlat(canonizers=[ModelCanonizer(prefer=prefer)])
    target = torch.eye(5, dtype=x.dtype, device="cuda")[[3, 3]]
    with attribution.Gradient(model, composite) as attributor:
        output, zennit = attributor(x, lambda output: output * target)
    captum = LRP(model, preset=presets.epsilon_plus_flat(), prefer=prefer).attribute(x, target=3)
    assert captum.is_cuda
    assert relative_error(captum, zennit) < 1e-9
    assert output.is_cuda


@PREFER
def test_compile(prefer: str) -> None:
    model, x = on_gpu("everything")
    expected = model(x)
    torch.compiler.reset()
    compiled = torch.compile(canonized_copy(model, prefer=prefer), fullgraph=True)
    assert relative_error(compiled(x), expected) < 256 * EPS


@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
@PREFER
@NAMES
def test_data_parallel_on_two_gpus(name: str, prefer: str) -> None:
    model, x = on_gpu(name)
    expected, slope = model(x), gradient(model, x)
    twin, canonization = canonized_copy(model, prefer=prefer), canonize(model, prefer=prefer)
    for canonical in (twin, canonization.apply()):
        parallel = nn.DataParallel(canonical, [0, 1])
        assert relative_error(parallel(x), expected) < 256 * EPS
        assert relative_error(gradient(parallel, x), slope) < 4096 * EPS


class Split(nn.Module):
    """The first half on one GPU, the second on another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).to("cuda:1"))


@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
@PREFER
def test_a_model_on_two_gpus(prefer: str) -> None:
    model = randomize(Split().double())
    model.first.to("cuda:0")
    model.second.to("cuda:1")
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64, device="cuda:0")
    before, expected = Snapshot(model), model(x)
    with canonize(model, prefer=prefer):
        assert relative_error(model(x), expected) < 256 * EPS
    before.check()
