"""Changes inside the block: what is lost is named, what is not lost is not; a conversion goes along."""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from canon_bridge import LostChangeWarning, canonize
from canon_bridge.core.guard import Guard
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


def small() -> nn.Module:
    """Merges to the left and to the right, a leftover, computed weights, and a convolution that is not merged."""
    return randomize(
        nn.Sequential(
            *(conv(), norm(), nn.ReLU(), parametrizations.weight_norm(conv()), nn.Tanh(), norm(), nn.Softmax(1)),
            *(norm(), nn.SiLU(), conv(), nn.Softmax(1), conv()),
        ).double()
    )


def lost(model: nn.Module, change: Callable[[], object], **options: object) -> str:
    """Return the text of the warning of a block in which something is changed, or an empty one."""
    before = Snapshot(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with canonize(model, **options), torch.no_grad():
            change()
    assert all(issubclass(warning.category, LostChangeWarning) for warning in caught)
    assert all(warning.filename == __file__ for warning in caught)
    if caught:
        before.check()
    return "".join(str(warning.message) for warning in caught)


def swap(tensor: Tensor) -> None:
    tensor[[0, 1]] = tensor[[1, 0]]


WAYS: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda p: p.add_(1e-3),
    "by .data": lambda p: p.data.mul_(1.001),
    "new .data": lambda p: setattr(p, "data", p.data * 1.001),
    "the smallest change of one number": lambda p: p.view(-1)[3:4].copy_(torch.nextafter(p.view(-1)[3:4], p.max())),
    "a sign": lambda p: p.view(-1)[:1].neg_(),
    "numbers change places": swap,
    "flipped": lambda p: p.copy_(p.flip(-1)),
    "by numpy": lambda p: p.detach().numpy().__imul__(1.001),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("place", "of"),
    [("0.weight", 0), ("0.bias", 0), ("3.weight", 3), ("5.weight", 5), ("9.weight", 9), ("1.weight", 1), ("7.bias", 7)],
)
def test_a_change_to_what_stands_in_is_named(way: str, place: str, of: int) -> None:
    model = small()
    name = place.partition(".")[2]

    def change() -> None:
        tensor = getattr(model[of], name)
        if of in (1, 7) or (of == 5 and way == "flipped"):  # all of its values are the same, or one is in a row
            tensor.view(-1)[1:3] += 1e-9
        else:
            WAYS[way](tensor)

    message = lost(model, change)
    assert message.startswith(f"{place}: changed while the model was canonical")


def test_thresholds_count_too() -> None:
    model = randomize(nn.Sequential(nn.Softmax(1), norm(), nn.ReLU(), conv()).double())
    assert lost(model, lambda: model[2].thr_value.add_(1)).startswith("2.thr_value: changed")


@pytest.mark.parametrize("prefer", BOTH)
def test_statistics_count_too(prefer: str) -> None:
    model = randomize(nn.Sequential(conv(), norm(), conv()).double())
    assert "1.running_mean" in lost(model, lambda: model[1].running_mean.add_(0.1), prefer=prefer)


def test_training_mode_in_the_block_is_refused() -> None:
    model = randomize(nn.Sequential(conv(), norm(), conv()).double())
    before = Snapshot(model)
    with canonize(model):
        model.train()
        with pytest.raises(ValueError, match="training mode"):
            model(image())
        model.eval()
        model[1].num_batches_tracked.zero_()
    before.check()


@pytest.mark.parametrize("prefer", BOTH)
def test_an_optimizer_step_is_named_and_what_is_not_merged_survives(prefer: str) -> None:
    model, x = small(), image()
    kept = model[11].weight.detach().clone()

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with torch.enable_grad():
            model(x).square().sum().backward()
        optimizer.step()

    named = {"left": r"0\.weight.*9\.weight", "right": r"3\.weight.*9\.weight"}
    with pytest.warns(LostChangeWarning, match=named[prefer]), canonize(model, prefer=prefer):
        train()
    assert not torch.equal(model[11].weight, kept)


@pytest.mark.parametrize("prefer", BOTH)
def test_what_is_no_change_is_not_warned_of(prefer: str) -> None:
    model = small()
    uses = [
        lambda: model(image()),
        lambda: model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}),
        lambda: model.load_state_dict(model.state_dict(), assign=True),
        lambda: [setattr(p, "data", p.data.clone()) for p in model.parameters()],
        lambda: model.to(memory_format=torch.channels_last),
        lambda: model[11].weight.data.clone(),
        lambda: model.eval().requires_grad_(False),
    ]
    for use in uses:
        assert lost(model, use, prefer=prefer) == ""


def test_loading_a_state_of_the_original_is_named_or_refused() -> None:
    model = randomize(nn.Sequential(conv(), norm(), conv()).double())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    message = lost(model, lambda: model.load_state_dict(state))
    assert message.startswith("0.weight, 0.bias, 1.weight, 1.bias, 1.running_mean, 1.running_var: changed")
    before = Snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"size mismatch for 2\.bias"), canonize(model, prefer="right"):
            model.load_state_dict(state)
    before.check()


@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_conversion_in_the_block_goes_along(prefer: str, dtype: torch.dtype) -> None:
    model, x = small(), image()
    twin = copy.deepcopy(model)
    ids = [id(parameter) for parameter in model.parameters()]
    with canonize(model, prefer=prefer):
        model.to(dtype)
    assert [id(parameter) for parameter in model.parameters()] == ids
    twin.to(dtype)
    for (name, value), (_, expected) in zip(model.state_dict().items(), twin.state_dict().items(), strict=True):
        assert torch.equal(value, expected), name
        assert value.dtype == expected.dtype, name
    if dtype == torch.float32:
        assert relative_error(model(x.float()), twin(x.float())) == 0


def test_a_conversion_and_a_change_together_are_named() -> None:
    model = small()

    def change() -> None:
        model.float()
        model[0].weight.mul_(1.01)

    with pytest.warns(LostChangeWarning, match=r"^0\.weight: "), canonize(model), torch.no_grad():
        change()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_model_with_statistics_in_another_precision_keeps_both() -> None:
    model = randomize(nn.Sequential(conv(), norm())).half()
    model[1].float()
    with canonize(model):
        model.double()
    assert {tensor.dtype for tensor in (*model.parameters(), model[1].running_mean)} == {torch.float64}
    model = randomize(nn.Sequential(conv(), norm())).half()
    model[1].float()
    with canonize(model):
        pass
    assert model[1].running_mean.dtype == torch.float32
    assert model[0].weight.dtype == torch.float16


def test_the_meta_device_takes_nothing_with_it() -> None:
    model = nn.Sequential(randomize(nn.Sequential(conv(), norm())))
    kept = model[0][0].weight.detach().clone()
    with pytest.warns(LostChangeWarning, match=r"0\.0\.weight"), canonize(model):
        model[0][0].to("meta")
    assert torch.equal(model[0][0].weight, kept)


def test_what_is_gone_or_has_another_shape_is_named() -> None:
    model = small()
    assert lost(model, lambda: setattr(model[0], "bias", nn.Parameter(torch.zeros(2)))).startswith("0.bias: changed")
    assert lost(model, lambda: delattr(model[0], "weight")).startswith("0.weight: changed")


def large() -> nn.Module:
    """A merged weight that is too large for all of its bits to be kept."""
    model = nn.Sequential(nn.Conv2d(16, 64, 3, bias=False), norm(64), nn.Softmax(1))
    return randomize(model.double())


@pytest.mark.parametrize("at", [0, 17, 4096, 9215])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_number_of_a_large_tensor_is_named_whatever_wrote_it(layout: torch.memory_format, at: int) -> None:
    model = large().to(memory_format=layout)
    values = lambda: model[0].weight.detach().numpy()  # noqa: E731
    index = np.unravel_index(at, model[0].weight.shape)

    def change() -> None:
        values()[index] = np.nextafter(values()[index], 9)

    assert lost(model, change).startswith("0.weight: changed")
    assert lost(model, lambda: model[0].weight.data.neg_()).startswith("0.weight: changed")
    assert lost(model, lambda: model[0].weight.copy_(model[0].weight.flip(0).clone())).startswith("0.weight: changed")


def test_a_large_tensor_may_move_to_another_layout_and_to_another_precision() -> None:
    for use in (
        lambda model: model.to(memory_format=torch.channels_last),
        lambda model: model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}),
        lambda model: model.float(),
        lambda model: model.float().half(),
        lambda model: model.to(memory_format=torch.channels_last).bfloat16(),
    ):
        model = large()
        with canonize(model):
            use(model)
        randomize(model)


def test_a_change_of_a_large_tensor_and_a_conversion_together_are_named() -> None:
    model = large()

    def change() -> None:
        model.float()
        model[0].weight.mul_(1.001)

    with pytest.warns(LostChangeWarning, match=r"^0\.weight: "), canonize(model), torch.no_grad():
        change()


def test_values_that_are_no_numbers_are_not_taken_for_changes() -> None:
    for model in (small(), large()):
        with torch.no_grad():
            model[0].weight[0] = float("nan")
            model[0].weight[1] = float("inf")
        for use in (lambda: None, lambda: model.float(), lambda: model[0].weight.data.clone()):  # noqa: B023
            with warnings.catch_warnings():
                warnings.simplefilter("error", LostChangeWarning)
                with canonize(model):
                    use()


def test_entering_a_block_copies_no_weights() -> None:
    """Guard and marks together hold little more than what they look at."""
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    with Allocated() as allocated:
        guard = Guard(model)
        guard._own, guard._storages = set(), set()  # as if all were merged
        guard.watch(model)
        assert guard.changes()[0] == []
    assert allocated.bytes < 0.05 * sum(p.nbytes for p in model.parameters())


class Allocated(TorchDispatchMode):
    """Counts the bytes of new storages that operations return."""

    bytes = 0

    def __torch_dispatch__(self, func: object, types: object, args: object = (), kwargs: object = None) -> object:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.bytes += tensor.untyped_storage().nbytes()
        return result
