"""Where tensors are: the meta device, a model in two places, memory that processes share, other processes."""

import pickle

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize, canonized_copy, plan
from tests.core.test_canonize_restore import everything
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, image
from tests.support.snapshot import Snapshot
from tests.ways.models import EPS, MODELS

PREFER = pytest.mark.parametrize("prefer", BOTH)


@pytest.mark.parametrize("where", ["", "0", "1", "3.norm2"])
def test_tensors_without_values_are_refused_by_name(where: str) -> None:
    model = everything()
    model.get_submodule(where).to("meta")
    before = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    name = f"{where or '0'}.".replace(".", r"\.")
    for function in (canonize, canonized_copy, plan):
        with pytest.raises(ValueError, match=rf"^{name}.* is on the meta device and has no values"):
            function(model)
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == before


def test_layers_without_a_size_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(2, 3)).eval()
    for function in (canonize, canonized_copy, plan):
        with pytest.raises(ValueError, match=r"^1\.weight of a LazyBatchNorm2d has no size yet; call the model"):
            function(model)
    model(torch.randn(1, 3, 8, 8))
    assert len(plan(model).merges) == 1


def test_a_model_that_lost_its_values_after_the_plan_is_refused_on_entry() -> None:
    model = everything()
    canonization = canonize(model)
    model.to("meta")
    with pytest.raises(ValueError, match=r"^0\.weight is on the meta device"):
        canonization.apply()
    assert "forward" not in vars(model[3])


@PREFER
def test_a_conversion_in_the_block_converts_the_model_and_loses_nothing(prefer: str) -> None:
    model, x = everything(), image()
    expected, values = model(x), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with canonize(model, prefer=prefer):
        model.float()
        assert relative_error(model(x.float()).double(), expected) < 1e-3
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, values[name].to(tensor.dtype)), name
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


@PREFER
def test_shared_memory_in_the_block(prefer: str) -> None:
    model, x = everything(), image()
    expected, values = model(x), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with canonize(model, prefer=prefer):
        model.share_memory()
        assert all(tensor.is_shared() for tensor in (*model.parameters(), *model.buffers()))
        assert relative_error(model(x), expected) < 64 * EPS
    assert torch.equal(model(x), expected)
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())


def of_model(model: nn.Module, x: Tensor, results: torch.multiprocessing.SimpleQueue) -> None:
    with torch.no_grad():
        results.put(model(x).numpy())


@pytest.mark.parametrize("what", ["in the block", "copy"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # from Python 3.12 on, where threads run
def test_a_forked_process_runs_the_canonical_model(what: str) -> None:
    context = torch.multiprocessing.get_context("fork")
    model, x = everything(), image()
    expected, results = model(x), context.SimpleQueue()
    canonization = canonize(model, prefer="right")
    canonical = canonization.apply() if what == "in the block" else canonized_copy(model, prefer="right")
    process = context.Process(target=of_model, args=(canonical, x, results))
    process.start()
    found = torch.from_numpy(results.get())
    process.join()
    canonization.undo()
    assert process.exitcode == 0
    assert relative_error(found, expected) < 64 * EPS


class Canonical(torch.utils.data.Dataset[Tensor]):
    """A data set that maps its items through a model in the process that loads them."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.model(self.x[index : index + 1])[0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_of_a_data_loader_run_the_canonical_model() -> None:
    model, x = everything(), image()
    expected = model(x)
    with canonize(model, prefer="right"):
        loader = torch.utils.data.DataLoader(Canonical(model, x), batch_size=2, num_workers=1)
        (found,) = list(loader)
    assert relative_error(found, expected) < 64 * EPS


@pytest.mark.parametrize("name", MODELS)
@PREFER
def test_what_is_pickled_in_the_block_is_canonical(name: str, prefer: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    before, expected = Snapshot(model), model(x)
    with canonize(model, prefer=prefer):
        assert relative_error(pickle.loads(pickle.dumps(model))(x), expected) < 64 * EPS
    before.check()
