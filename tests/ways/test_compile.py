"""``torch.compile``: of the canonical model, of the copy, and of a model that becomes canonical afterwards."""

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize, canonized_copy
from tests.support.errors import relative_error
from tests.support.pieces import conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize
from tests.ways.models import EPS, MODELS, gradient

# Dynamo takes seconds for each of the larger ones.
LARGER = [pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "rows"]
NAMES = pytest.mark.parametrize("name", ["rows", *LARGER])
PREFER = pytest.mark.parametrize("prefer", [pytest.param("left", marks=pytest.mark.slow), "right"])
# Inductor needs a C++ compiler and most of a minute.
SLOWER = [pytest.param(backend, marks=pytest.mark.slow) for backend in ("eager", "inductor")]
BACKENDS = pytest.mark.parametrize("backend", ["aot_eager", *SLOWER])
pytestmark = [
    pytest.mark.usefixtures("nothing_compiled"),
    # Inside torch: dynamo instantiates autograd functions, inductor uses what torch itself has deprecated.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning"),
]


def larger(x: Tensor) -> Tensor:
    """Return another batch of, where there are any, larger images."""
    return torch.randn(3, x.shape[1], *(n + 7 for n in x.shape[2:]), dtype=x.dtype)


@BACKENDS
@PREFER
@NAMES
def test_a_copy_compiles_as_one_graph(name: str, prefer: str, backend: str) -> None:
    if (name, backend) == ("densenet", "inductor"):
        pytest.skip("its C++ compiler takes over ten minutes; the smaller models have every kind of edit")
    make, draw = MODELS[name]
    model, x = make(), draw()
    compiled = torch.compile(canonized_copy(model, prefer=prefer), backend=backend, fullgraph=True)
    for value in (x, larger(x)):  # the second time with symbolic sizes
        assert relative_error(compiled(value), model(value)) < 64 * EPS
    assert relative_error(gradient(compiled, x), gradient(model, x)) < 4096 * EPS


@PREFER
@NAMES
def test_the_canonical_model_compiles_and_the_compiled_one_goes_back_with_it(name: str, prefer: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    expected, slope = model(x), gradient(model, x)
    with canonize(model, prefer=prefer):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert relative_error(compiled(x), expected) < 64 * EPS
        assert relative_error(gradient(compiled, x), gradient(model, x)) < 4096 * EPS
    assert torch.equal(compiled(x), expected)
    assert relative_error(gradient(compiled, x), slope) < 64 * EPS
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    changed = model(x)
    assert relative_error(changed, expected) > 1e-3
    assert relative_error(compiled(x), changed) < 64 * EPS


@PREFER
@NAMES
def test_a_model_compiled_before_is_canonical_inside_and_itself_afterwards(name: str, prefer: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected, slope = compiled(x), gradient(compiled, x)
    canonization = canonize(model, prefer=prefer)
    for _ in range(2):
        with canonization:
            inside = compiled(x)
            assert relative_error(inside, model(x)) < 64 * EPS
            assert not torch.equal(inside, expected)  # another computation, with other rounding
            assert relative_error(gradient(compiled, x), gradient(model, x)) < 4096 * EPS
        assert torch.equal(compiled(x), expected)
        assert torch.equal(gradient(compiled, x), slope)


def test_a_merge_that_changes_nothing_but_values_is_seen_by_a_compiled_model() -> None:
    model, x = randomize(nn.Sequential(conv(), norm(), nn.ReLU()).double()), image()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = compiled(x)
    canonization = canonize(model)
    canonization.apply()
    assert relative_error(compiled(x), expected) < 64 * EPS
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(compiled(x), model(x))
    assert relative_error(compiled(x), expected) > 0.1
    with pytest.warns(UserWarning, match=r"0\.weight: changed while"):
        canonization.undo()
    assert torch.equal(compiled(x), expected)


@pytest.mark.parametrize("name", ["model", "child"])
def test_a_compiled_module_is_refused_by_name(name: str) -> None:
    model = randomize(nn.Sequential(conv(), nn.Sequential(norm(), nn.ReLU()), conv()).double())
    if name == "child":
        model[1] = torch.compile(model[1], backend="eager")
    compiled = model if name == "child" else torch.compile(model, backend="eager")
    message = {
        "model": r"model is a OptimizedModule, .*: use model\._orig_mod instead",
        "child": r"1 is a OptimizedModule, .*: put 1\._orig_mod in its place",
    }[name]
    before = Snapshot(compiled)
    for function in (canonize, canonized_copy):
        with pytest.raises(TypeError, match=message):
            function(compiled)
    before.check()


@PREFER
def test_a_model_that_was_compiled_in_place_is_canonized_like_any_other(prefer: str) -> None:
    make, draw = MODELS["rows"]
    model, x = make(), draw()
    model.compile(backend="eager")
    expected, before = model(x), Snapshot(model)
    with canonize(model, prefer=prefer):
        assert relative_error(model(x), expected) < 64 * EPS
    before.check()
    assert torch.equal(model(x), expected)
    assert relative_error(canonized_copy(model, prefer=prefer)(x), expected) < 64 * EPS
