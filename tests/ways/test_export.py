"""The copy leaves Python: ``torch.export``, ONNX and ``torch.jit.trace``, for one size of the input and for any."""

import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize, canonized_copy
from tests.support.errors import relative_error
from tests.support.export import exportable, exports_forwards_of_instances
from tests.support.pieces import BOTH, Preactivation, conv, norm
from tests.support.statistics import randomize
from tests.ways.models import EPS, MODELS

PREFER = pytest.mark.parametrize("prefer", BOTH)
NAMES = pytest.mark.parametrize("name", ["everything", "rows", pytest.param("densenet", marks=pytest.mark.slow)])

pytestmark = [
    pytest.mark.usefixtures("nothing_compiled"),
    # Torch 2.6 says of each constant that it has lifted that it is not there, and then puts it there.
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node with no underlying reference:UserWarning"),
    pytest.mark.filterwarnings("ignore:Node .* does not reference an nn.Module:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:Additional \d+ warnings suppressed about get_attr references:UserWarning"),
    # Torch 2.9 reads tensors from a file as from memory that is not its own.
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
]


def any_size(x: Tensor) -> tuple[dict[int, Any]]:
    auto = torch.export.Dim.AUTO
    return ({0: auto, **dict.fromkeys(range(2, x.dim()), auto)},)


def sizes(x: Tensor) -> list[Tensor]:
    """Return inputs of the size of x, of another batch and, for images, of other heights and widths."""
    others = [torch.cat([x, x])]
    if x.dim() == 4:
        others += [torch.cat([x, x], 2), torch.cat([x, x, x], 3)]
    return [x, *others]


@PREFER
@NAMES
def test_an_exported_copy_computes_the_same_for_every_size(name: str, prefer: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    twin = canonized_copy(model, prefer=prefer)
    exported = torch.export.export(exportable(twin), (x,), dynamic_shapes=any_size(x)).module()
    for value in sizes(x):
        assert relative_error(exported(value), model(value)) < 64 * EPS


@PREFER
@NAMES
def test_an_exported_program_is_saved_and_loaded(name: str, prefer: str, tmp_path: Any) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    file = tmp_path / "canonical.pt2"
    twin = exportable(canonized_copy(model, prefer=prefer))
    torch.export.save(torch.export.export(twin, (x,), strict=False), file)  # strict, 2.6 cannot load what it saves
    assert relative_error(torch.export.load(file).module()(x), model(x)) < 64 * EPS


@PREFER
def test_a_strict_export_computes_the_same_for_every_size(prefer: str) -> None:
    model = randomize(nn.Sequential(conv(), norm(), nn.ReLU(), norm(), nn.SiLU(), conv()).double())
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    twin = canonized_copy(model, prefer=prefer)
    exported = torch.export.export(exportable(twin), (x,), dynamic_shapes=any_size(x), strict=True).module()
    for value in sizes(x):
        try:
            found = exported(value)
        except NameError:
            pytest.xfail("this torch (2.9) lets the guards of a strict program name what only dynamo knows")
        assert relative_error(found, model(value)) < 64 * EPS


def test_an_export_inside_the_block_keeps_what_the_block_had() -> None:
    make, draw = MODELS["everything"]
    model, x = make(), draw()
    with canonize(model, prefer="right"):
        exported = torch.export.export(model, (x,), dynamic_shapes=any_size(x)).module()
    for value in sizes(x):
        assert relative_error(exported(value), model(value)) < 64 * EPS


def test_a_model_with_a_rewritten_forward_is_exported_in_a_container() -> None:
    make, draw = MODELS["rows"]
    model, x = make(), draw()
    twin = canonized_copy(model)
    assert "forward" in vars(twin)
    exported = torch.export.export(nn.Sequential(twin), (x,), strict=False).module()
    assert relative_error(exported(x), model(x)) < 64 * EPS


@pytest.mark.skipif(exports_forwards_of_instances(), reason="this torch exports a module on which a forward was set")
@pytest.mark.parametrize("strict", [True, False])
def test_where_torch_cannot_export_a_rewritten_forward_it_raises(strict: bool) -> None:
    make, draw = MODELS["rows"]
    with pytest.raises((AssertionError, AttributeError), match=r"Unexpectedly found a .*Tensor|__code__"):
        torch.export.export(canonized_copy(make()), (draw(),), strict=strict)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of numbers of channels, which are constants
@PREFER
@NAMES
def test_a_traced_copy_computes_the_same_for_every_size(name: str, prefer: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    traced = torch.jit.trace(canonized_copy(model, prefer=prefer), (x,), check_trace=False)
    for value in sizes(x):
        assert relative_error(traced(value), model(value)) < 64 * EPS


def classifier() -> nn.Module:
    """Maps at the border with strides, and heads that any size of image goes through."""
    layers = (
        conv(),
        norm(),
        nn.ReLU(),
        Preactivation(),
        norm(),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, 2, 1),
        nn.Hardtanh(),
        norm(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return randomize(nn.Sequential(*layers), mild=True)


def written(twin: nn.Module, x: Tensor, dynamo: bool) -> bytes:
    """Return the ONNX model, for every batch and every size."""
    axes = {0: "batch", 2: "height", 3: "width"}
    keywords: dict[str, Any] = (
        {"dynamic_shapes": any_size(x), "verbose": False} if dynamo else {"dynamic_axes": {"input": axes}}
    )
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn of their own deprecated parts
        target = None if dynamo else file
        program = torch.onnx.export(twin, (x,), target, dynamo=dynamo, input_names=["input"], **keywords)
        if dynamo:
            program.save(file)
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "script"])
@PREFER
def test_a_copy_in_onnx_computes_the_same_for_every_size(prefer: str, dynamo: bool) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript" if dynamo else "onnx")
    model, x = classifier(), torch.randn(2, 4, 12, 12)
    session = runtime.InferenceSession(written(canonized_copy(model, prefer=prefer), x, dynamo))
    for value in (x, torch.randn(5, 4, 12, 12), torch.randn(1, 4, 17, 23)):
        (found,) = session.run(None, {session.get_inputs()[0].name: value.numpy()})
        expected = model.double()(value.double())
        model.float()
        assert relative_error(torch.from_numpy(found).double(), expected) < 64 * torch.finfo(torch.float32).eps
