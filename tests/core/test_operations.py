"""Every entry of the table of operations is what it claims, by running it; every core operator and spelling has one.

No check shares code with the package: linear is ``f(ax + by) = a f(x) + b f(y)``, element-wise is what commutes with
permutations, movement is what puts out the very numbers that it gets.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from canon_bridge.core import operations
from canon_bridge.core.operations import (
    OPERATIONS,
    Kind,
    Operation,
    may_share,
    operation_of_call,
    operation_of_function,
    operation_of_module,
    out_of_place,
    overwritten,
)
from canon_bridge.core.trace.trace import trace
from tests.support.samples import WITHOUT_SAMPLE, function_of, run, shape_of, tensors

# Core operators of torch that no forward calls: gradients of others, and what resizes memory.
NO_ENTRY = {
    "_adaptive_avg_pool2d_backward",
    "avg_pool2d_backward",
    "convolution_backward",
    "embedding_dense_backward",
    "max_pool2d_with_indices_backward",
    "native_group_norm_backward",
    "native_layer_norm_backward",
    "resize_",
}
CLOSE = 1e-9


def core_operators() -> Iterator[Any]:
    """Yield the operators of ATen that torch tags as core, with their overloads."""
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        packet = getattr(torch.ops.aten, base, None) if space == "aten" else None
        found = getattr(packet, overload or "default", None)
        if found is not None and torch.Tag.core in found.tags:
            yield found


def test_every_core_operator_has_an_entry_or_a_reason_not_to() -> None:
    names = {found.overloadpacket.__name__ for found in core_operators()}
    assert len(names) > 150
    without = {f.overloadpacket.__name__ for f in core_operators() if operation_of_function(f) is None}
    assert without == NO_ENTRY
    # Every other operator that core names: whatever the overload, the same entry.
    for found in core_operators():
        assert operation_of_function(found) is operation_of_function(found.overloadpacket)


def test_what_has_no_rule_says_why() -> None:
    assert {entry.name for entry in OPERATIONS.values() if entry.kind is Kind.WITHOUT_RULE and not entry.note} == set()
    assert all(name == entry.name for name, entry in OPERATIONS.items())
    assert {*WITHOUT_SAMPLE} <= {*OPERATIONS}
    assert len(WITHOUT_SAMPLE) < 35


# What is claimed, by running.


def data(name: str, seed: int = 0) -> Tensor:
    return torch.randn(shape_of(name), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def numbers(name: str, seed: int = 0) -> Tensor:
    """Return data that are whole numbers, all different and none zero, so that each type of tensors holds them."""
    shape = shape_of(name)
    count = torch.Size(shape).numel()
    values = torch.randperm(count, generator=torch.Generator().manual_seed(seed)) - count // 2
    return (values + (values >= 0)).double().view(shape)


def places(x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function from numbers to the places where the data hold them."""
    values, order = x.flatten().sort()
    return lambda found: order[torch.searchsorted(values, found)]


def close(found: Any, expected: Any) -> bool:
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    return bool(pairs) and all(torch.allclose(a, b, rtol=CLOSE, atol=CLOSE, equal_nan=True) for a, b in pairs)


def check_linear(name: str) -> None:
    x, y = data(name), data(name, 1)
    both, first, second = run(name, 0.7 * x - 1.3 * y), run(name, x), run(name, y)
    assert close(both, [0.7 * a - 1.3 * b for a, b in zip(tensors(first), tensors(second), strict=True)])
    assert not close(first, second)


def check_affine(name: str) -> None:
    """Of a product in one factor, or of a layer: linear but for a constant."""
    x, y = data(name), data(name, 1)
    values = [run(name, z)[0] if isinstance(run(name, z), tuple) else run(name, z) for z in (x, y, 0 * x)]
    mixed = run(name, 0.7 * x - 1.3 * y)
    mixed = mixed[0] if isinstance(mixed, tuple) else mixed
    first, second, constant = values
    assert close(mixed - constant, 0.7 * (first - constant) - 1.3 * (second - constant))
    assert not close(first, second)


def check_product(name: str) -> None:
    if name == "glu":  # the first half, times a gate from the second
        x = data(name)
        signal, gate = x.chunk(2, 1)
        assert close(run(name, x), signal * gate.sigmoid())
    else:
        check_affine(name)


def check_sum(name: str) -> None:
    x, zero = data(name), torch.zeros(shape_of(name), dtype=torch.float64)
    other = run("add", zero) / 2
    expected = {"add": x + 2 * other, "sub": x - 2 * other, "rsub": other - 2 * x}[name]
    assert close(run(name, x), expected)


def check_elementwise(name: str) -> None:
    x = data(name) * 1.5
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(2))
    (result,) = tensors(run(name, x))
    assert result.shape == x.shape
    assert bool(torch.isfinite(result).any())
    assert close(run(name, x.flatten()[order].view(x.shape)), result.flatten()[order].view(x.shape))
    x.view(-1)[0] += 0.25
    changed = tensors(run(name, x))[0] != result
    assert not bool((changed & ~torch.isnan(result)).flatten()[1:].any())


def check_movement(name: str) -> None:
    """Each element of the output is one of the input, or a constant; so is the gradient."""
    x = numbers(name)
    copy = x.clone().requires_grad_()
    results, others = tensors(run(name, copy)), tensors(run(name, numbers(name, 1)))
    expected, total = torch.zeros_like(x).flatten(), torch.zeros((), dtype=torch.float64)
    is_moved = False
    place = places(x)
    for result, other in zip(results, others, strict=True):
        values = result.detach().double().flatten()
        is_constant = values == other.detach().double().flatten()
        is_number = torch.isin(values, x.flatten())
        assert bool((is_constant | is_number).all())
        is_moved |= bool((~is_constant & is_number).any())
        # Whole numbers, which half precision holds, too.
        weights = torch.randint(1, 9, values.shape, generator=torch.Generator().manual_seed(4)).double()
        # A number that is at one place for both inputs may be that of the data all the same.
        own = is_number & ~(is_constant & (torch.isin(values, torch.tensor([0.0, 0.5]).double())))
        expected.index_add_(0, place(values[own]), weights[own])
        if result.requires_grad:
            total = total + (result.double().flatten() * weights).sum()
    assert is_moved or name in ("fill", "zero")
    if name not in NO_GRADIENT:
        (gradient,) = torch.autograd.grad(total, copy)
        assert torch.equal(gradient.flatten(), expected)


# Movement that torch has no gradient for, or none to the data.
NO_GRADIENT = {"data", "native_channel_shuffle", "copy", "fill", "zero", "requires_grad"}


def check_selection(name: str) -> None:
    """Each element of the output is one of the input; the gradient goes there."""
    x = numbers(name)
    copy = x.clone().requires_grad_()
    results = [result for result in tensors(run(name, copy)) if result.requires_grad]
    total, expected = torch.zeros((), dtype=torch.float64), torch.zeros_like(x).flatten()
    place = places(x)
    assert results
    for number, result in enumerate(results):
        values = result.detach().flatten()
        assert bool(torch.isin(values, x.flatten()).all())
        expected.index_add_(0, place(values), torch.full_like(values, number + 1.0))
        total = total + (number + 1.0) * result.sum()
    (gradient,) = torch.autograd.grad(total, copy)
    assert torch.allclose(gradient.flatten(), expected)
    assert not close(run(name, data(name)), run(name, data(name, 1)))


# What leaves the output as it is, where the statistics are those of the input: a shift, a factor.
INVARIANT = {
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax", "softmin"), (1.0, 0.4)),
    **dict.fromkeys(
        ("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm"), (3.0, 0.4)
    ),
    **dict.fromkeys(("rms_norm", "normalize", "local_response_norm"), (3.0, 0.0)),
}


def check_normaliser(name: str) -> None:
    factor, shift = INVARIANT[name]
    x = data(name)
    first, second = tensors(run(name, x))[0], tensors(run(name, factor * x + shift))[0]
    assert close(first, second)
    assert not close(tensors(run(name, x[..., :].sin()))[0], first)
    with pytest.raises((AssertionError, ValueError)):
        check_elementwise(name)


def check_norm(name: str) -> None:
    """A map of each channel by itself: a scale, which differs between channels, and a shift."""
    check_affine(name)
    zero, one = torch.zeros(shape_of(name), dtype=torch.float64), torch.ones(shape_of(name), dtype=torch.float64)
    shift, scale = (tensors(run(name, value))[0] for value in (zero, one))
    scale = scale - shift
    for value in (scale, shift):
        assert close(value, value[:1, :, :1, :1].expand_as(value))
        assert len(set(value[0, :, 0, 0].tolist())) == 4
    x = data(name)
    assert close(tensors(run(name, x))[0], scale * x + shift)


def plain(result: Any) -> Any:
    return [plain(part) for part in result] if isinstance(result, tuple | list | torch.Size) else result


def check_size(name: str) -> None:
    x = data(name)
    for value in (x, x.clone().requires_grad_()):
        first, second = run(name, value), run(name, value.detach() * 3 + 1)
        assert not isinstance(first, Tensor) or not first.requires_grad
        assert name == "grad_fn" or name == "is_leaf" or plain(first) == plain(second)


def check_creation(name: str) -> None:
    x = data(name)
    first, second = run(name, x.clone().requires_grad_()), run(name, x * 3 + 1)
    assert isinstance(first, Tensor)
    assert not first.requires_grad
    assert first.shape == second.shape
    assert "empty" in name or torch.equal(first, second)


def check_random(name: str) -> None:
    x = data(name)
    results = [run(name, x) for _ in range(8)]
    assert all(isinstance(result, Tensor) for result in results)
    assert any(not torch.equal(result, results[0]) for result in results)


def check_not_differentiable(name: str) -> None:
    x = data(name).requires_grad_()
    for result in tensors(run(name, x)):
        if result.requires_grad:
            with pytest.raises((RuntimeError, NotImplementedError), match=r"derivative|not implemented"):
                result.sum().backward()


# What is linear, or element-wise, and all the same without a rule: relevance of complex numbers is not defined.
COMPLEX = {name for name in OPERATIONS if "fft" in name} | {"imag", "polar", "complex", "angle"}
# Linear or not by a parameter, or linear where nothing is reduced.
BY_ARGUMENT = {"embedding_bag", "nll_loss"}
# Functions of two that are nearly one of them, or are one of them but where it is zero.
ALMOST = {"nextafter", "heaviside", "frexp"}


def check_without_rule(name: str) -> None:
    result = run(name, data(name))
    assert result is not None
    if name not in COMPLEX | BY_ARGUMENT | ALMOST:
        for check in (check_linear, check_elementwise):
            with pytest.raises((AssertionError, ValueError, RuntimeError)):
                check(name)


CHECKS: dict[Kind, Callable[[str], None]] = {
    Kind.LINEAR_LAYER: check_affine,
    Kind.NORM: check_norm,
    Kind.ELEMENTWISE: check_elementwise,
    Kind.MOVEMENT: check_movement,
    Kind.SELECTION: check_selection,
    Kind.LINEAR: check_linear,
    Kind.SUM: check_sum,
    Kind.PRODUCT: check_product,
    Kind.NORMALISER: check_normaliser,
    Kind.SIZE: check_size,
    Kind.CREATION: check_creation,
    Kind.RANDOM: check_random,
    Kind.NOT_DIFFERENTIABLE: check_not_differentiable,
    Kind.WITHOUT_RULE: check_without_rule,
}
CALLED = [name for name in OPERATIONS if name not in WITHOUT_SAMPLE]
quiet = pytest.mark.filterwarnings("ignore")


def skip_what_older_versions_lack(name: str) -> None:
    """Skip what torch 2.6 lacks of operations that later versions have, if this torch does: asked of torch itself."""
    if name == "sym_is_contiguous" and function_of(name) is None:
        pytest.skip("this torch has no such operation")
    if name in ("narrow_copy", "asarray", "aminmax"):
        x = data(name).requires_grad_()
        try:
            torch.autograd.grad(tensors(run(name, x))[0].sum(), x)
        except RuntimeError as error:
            pytest.skip(f"this torch has no gradient of it: {error}")


@quiet
@pytest.mark.parametrize("name", CALLED)
def test_an_operation_is_what_its_entry_claims(name: str) -> None:
    skip_what_older_versions_lack(name)
    CHECKS[OPERATIONS[name].kind](name)


WRONG_CLAIMS = {
    "relu": (Kind.LINEAR, Kind.MOVEMENT, Kind.SELECTION, Kind.PRODUCT, Kind.SIZE, Kind.RANDOM),
    "softmax": (Kind.ELEMENTWISE, Kind.LINEAR, Kind.MOVEMENT),
    "mean": (Kind.ELEMENTWISE, Kind.SELECTION, Kind.MOVEMENT, Kind.SIZE, Kind.WITHOUT_RULE),
    "cumsum": (Kind.ELEMENTWISE, Kind.MOVEMENT),
    "flip": (Kind.ELEMENTWISE, Kind.SIZE, Kind.CREATION, Kind.WITHOUT_RULE),
    "amax": (Kind.LINEAR, Kind.ELEMENTWISE, Kind.NOT_DIFFERENTIABLE),
    "prod": (Kind.LINEAR, Kind.ELEMENTWISE, Kind.MOVEMENT, Kind.PRODUCT),
    "mul": (Kind.MOVEMENT, Kind.SELECTION, Kind.WITHOUT_RULE),
    "std": (Kind.LINEAR, Kind.SELECTION),
    "argmax": (Kind.SELECTION, Kind.LINEAR, Kind.MOVEMENT),
    "batch_norm": (Kind.LINEAR, Kind.ELEMENTWISE, Kind.MOVEMENT),
    "where": (Kind.ELEMENTWISE, Kind.SIZE),
    "pad": (Kind.ELEMENTWISE, Kind.SELECTION),
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in WRONG_CLAIMS.items() for kind in kinds])
def test_a_wrong_claim_is_found(name: str, kind: Kind) -> None:
    assert OPERATIONS[name].kind is not kind
    with pytest.raises(
        (AssertionError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, pytest.fail.Exception)
    ):
        CHECKS[kind](name)


# Memory.


def node_of(function: Any, *arguments: Any, **keywords: Any) -> fx.Node:
    graph = fx.Graph()
    made = [graph.placeholder(f"x{number}") for number in range(max(1, len(arguments)))]
    return graph.call_function(function, tuple(made), keywords)


def shares_memory(name: str) -> bool:
    x = data(name)
    memory = x.untyped_storage().data_ptr()
    with torch.no_grad():
        return any(t.untyped_storage().data_ptr() == memory for t in tensors(run(name, x)))


@quiet
@pytest.mark.parametrize("name", CALLED)
def test_what_returns_memory_that_it_got_is_claimed_to(name: str) -> None:
    skip_what_older_versions_lack(name)
    assert may_share(OPERATIONS[name], node_of(function_of(name) or operator.getitem)) or not shares_memory(name)


VIEWS = [
    *("view", "permute", "transpose", "numpy_T", "mT", "t", "adjoint", "swapaxes", "movedim", "squeeze"),
    *("unsqueeze", "expand", "expand_as", "broadcast_to", "alias", "narrow", "select", "slice", "getitem", "split"),
    *("split_with_sizes", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind", "diagonal"),
    *("as_strided", "unfold", "detach", "view_as", "view_as_complex", "identity", "positive", "flatten"),
    *("unflatten", "contiguous", "reshape", "data", "real", "type", "to", "atleast_1d", "atleast_2d", "atleast_3d"),
    *("meshgrid", "dropout", "matrix_H", "H"),
]


@quiet
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_memory_of_its_argument(name: str) -> None:
    assert shares_memory(name)
    assert may_share(OPERATIONS[name], node_of(function_of(name) or operator.getitem))


def test_what_nobody_knows_may_be_anything() -> None:
    assert may_share(None, node_of(len))


# Spellings: (forward, entry, whether it overwrites its first argument).
SPELLED: dict[str, tuple[Callable[..., Any], str, bool]] = {
    "x + y": (lambda x, y: x + y, "add", False),
    "1 + x": (lambda x, y: 1 + x, "add", False),
    "x += y": (lambda x, y: operator.iadd(x, y), "add", True),
    "x.add(y)": (lambda x, y: x.add(y), "add", False),
    "x.add_(y)": (lambda x, y: x.add_(y), "add", True),
    "torch.add": (lambda x, y: torch.add(x, y), "add", False),
    "torch.add by name": (lambda x, y: torch.add(input=x, other=y), "add", False),
    "operator.add": (lambda x, y: operator.add(x, y), "add", False),
    "aten.add": (lambda x, y: torch.ops.aten.add(x, y), "add", False),
    "aten.add.Tensor": (lambda x, y: torch.ops.aten.add.Tensor(x, y), "add", False),
    "aten.add_.Tensor": (lambda x, y: torch.ops.aten.add_.Tensor(x, y), "add", True),
    "torch.add, out": (lambda x, y: torch.add(y, y, out=x), "add", True),
    "x - y": (lambda x, y: x - y, "sub", False),
    "1 - x": (lambda x, y: 1 - x, "sub", False),
    "x.subtract_": (lambda x, y: x.subtract_(y), "sub", True),
    "torch.rsub": (lambda x, y: torch.rsub(x, y), "rsub", False),
    "x * y": (lambda x, y: x * y, "mul", False),
    "x *= y": (lambda x, y: operator.imul(x, y), "mul", True),
    "x.multiply": (lambda x, y: x.multiply(y), "mul", False),
    "x / y": (lambda x, y: x / y, "div", False),
    "x.true_divide": (lambda x, y: x.true_divide(y), "div", False),
    "torch.divide": (lambda x, y: torch.divide(x, y), "div", False),
    "x /= y": (lambda x, y: operator.itruediv(x, y), "div", True),
    "x // 2": (lambda x, y: x // 2, "floor_divide", False),
    "x % 2": (lambda x, y: x % 2, "remainder", False),
    "x ** 2": (lambda x, y: x**2, "pow", False),
    "-x": (lambda x, y: -x, "neg", False),
    "+x": (lambda x, y: +x, "positive", False),
    "~x": (lambda x, y: ~(x > 0), "bitwise_not", False),
    "x > y": (lambda x, y: x > y, "gt", False),
    "and": (lambda x, y: (x > 0) & (y > 0), "bitwise_and", False),
    "x @ y": (lambda x, y: x @ y, "matmul", False),
    "x.absolute()": (lambda x, y: x.absolute(), "abs", False),
    "abs(x)": (lambda x, y: abs(x), "abs", False),
    "F.relu": (lambda x, y: F.relu(x), "relu", False),
    "F.relu in place": (lambda x, y: F.relu(x, True), "relu", True),
    "F.relu in place by name": (lambda x, y: F.relu(x, inplace=True), "relu", True),
    "F.relu_": (lambda x, y: F.relu_(x), "relu", True),
    "torch.relu_": (lambda x, y: torch.relu_(x), "relu", True),
    "x.relu_": (lambda x, y: x.relu_(), "relu", True),
    "aten.relu_": (lambda x, y: torch.ops.aten.relu_(x), "relu", True),
    "aten.relu_.default": (lambda x, y: torch.ops.aten.relu_.default(x), "relu", True),
    "F.silu by position": (lambda x, y: F.silu(x, True), "silu", True),
    "F.threshold by position": (lambda x, y: F.threshold(x, 0.1, 0.2, True), "threshold", True),
    "F.elu_": (lambda x, y: F.elu_(x, 1.5), "elu", True),
    "F.hardtanh by position": (lambda x, y: F.hardtanh(x, 0.0, 6.0, True), "hardtanh", True),
    "F.dropout by position": (lambda x, y: F.dropout(x, 0.5, False, True), "dropout", True),
    "F.dropout2d": (lambda x, y: F.dropout2d(x, 0.5, False), "dropout", False),
    "x.clip": (lambda x, y: x.clip(0, 1), "clamp", False),
    "x.clamp_": (lambda x, y: x.clamp_(0), "clamp", True),
    "special.expit": (lambda x, y: torch.special.expit(x), "expit", False),
    "special.log_softmax": (lambda x, y: torch.special.log_softmax(x, 1), "log_softmax", False),
    "torch.concat": (lambda x, y: torch.concat([x, y], 1), "cat", False),
    "torch.concatenate": (lambda x, y: torch.concatenate([x, y], axis=1), "cat", False),
    "torch.row_stack": (lambda x, y: torch.vstack([x, y]), "vstack", False),
    "x.moveaxis": (lambda x, y: x.moveaxis(1, 2), "movedim", False),
    "x.swapdims": (lambda x, y: x.swapdims(1, 2), "swapaxes", False),
    "x.T": (lambda x, y: x.T, "numpy_T", False),
    "x.mT": (lambda x, y: x.mT, "mT", False),
    "x[0]": (lambda x, y: x[:, 0], "getitem", False),
    "x[0] = y": (lambda x, y: operator.setitem(x, 0, y), "setitem", True),
    "x.shape": (lambda x, y: x.shape, "shape", False),
    "x.ndim": (lambda x, y: x.ndim, "ndim", False),
    "x.size()": (lambda x, y: x.size(0), "size", False),
    "torch.numel": (lambda x, y: torch.numel(x), "numel", False),
    "x.mean": (lambda x, y: x.mean(axis=1), "mean", False),
    "aten.mean.dim": (lambda x, y: torch.ops.aten.mean.dim(x, [1]), "mean", False),
    "aten._softmax": (lambda x, y: torch.ops.aten._softmax(x, 1, False), "_softmax", False),
    "F.interpolate": (lambda x, y: F.interpolate(x, scale_factor=2), "interpolate", False),
    "F.adaptive_max_pool1d": (lambda x, y: F.adaptive_max_pool1d(x, 2), "adaptive_max_pool1d", False),
    "torch.adaptive_max_pool1d": (
        lambda x, y: torch.adaptive_max_pool1d(x, 2),
        "adaptive_max_pool1d_with_indices",
        False,
    ),
    "F.max_pool2d": (lambda x, y: F.max_pool2d(x, 2), "max_pool2d", False),
    "F.max_pool2d with indices": (
        lambda x, y: F.max_pool2d(x, 2, return_indices=True),
        "max_pool2d_with_indices",
        False,
    ),
    "linalg.norm": (lambda x, y: torch.linalg.norm(x), "norm", False),
    "linalg.vector_norm": (lambda x, y: torch.linalg.vector_norm(x), "vector_norm", False),
    "linalg.multi_dot": (lambda x, y: torch.linalg.multi_dot([x, y]), "multi_dot", False),
    "fft.rfft": (lambda x, y: torch.fft.rfft(x), "rfft", False),
    "torch.as_tensor": (lambda x, y: torch.as_tensor(x), "as_tensor", False),
    "x.detach_()": (lambda x, y: x.detach_(), "detach", True),
    "x.zero_()": (lambda x, y: x.zero_(), "zero", True),
    "x.copy_": (lambda x, y: x.copy_(y), "copy", True),
    "x.index_add_": (lambda x, y: x.index_add_(0, torch.tensor([0, 0]), y), "index_add", True),
    "x.to": (lambda x, y: x.to(torch.float64), "to", False),
    "x.float()": (lambda x, y: x.float(), "float", False),
}


class Spelled(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(x, y)


@pytest.mark.parametrize("name", SPELLED)
def test_every_spelling_leads_to_the_entry(name: str) -> None:
    function, wanted, is_in_place = SPELLED[name]
    graph = trace(Spelled(function).eval()).graph
    calls = [node for node in graph.nodes if node.op.startswith("call") and operation_of_call(node) is not None]
    found = operation_of_call(calls[-1])
    assert found is not None
    assert found.name == wanted
    first = next(iter(graph.nodes))
    assert overwritten(calls[-1], None) is (first if is_in_place else None)
    assert calls[-1].meta["operation"] is found


def spelled_functions() -> Iterator[tuple[str, Any, Operation]]:
    """Yield functions and operators that have the name of an entry, in place or not."""
    homes = {"torch": torch, "F": F, "special": torch.special, "linalg": torch.linalg, "aten": torch.ops.aten}
    for entry in OPERATIONS.values():
        for spelling in (entry.name, f"{entry.name}_"):
            for title, home in homes.items():
                found = getattr(home, spelling, None)
                if callable(found) and not isinstance(found, type) and title != "aten":
                    yield f"{title}.{spelling}", found, entry
                elif isinstance(found, torch._ops.OpOverloadPacket):
                    yield from ((f"aten.{spelling}.{o}", getattr(found, o), entry) for o in found.overloads())


def test_functions_and_operators_by_the_name_of_an_entry_are_of_its_kind() -> None:
    seen = 0
    for title, function, entry in spelled_functions():
        found = operation_of_function(function)
        assert found is not None, title
        assert found.kind is entry.kind, title
        seen += 1
    assert seen > 2000


def test_methods_by_the_name_of_an_entry_are_of_its_kind() -> None:
    seen = 0
    for entry in OPERATIONS.values():
        for name in (entry.name, f"{entry.name}_"):
            if callable(getattr(Tensor, name, None)):
                graph = fx.Graph()
                node = graph.call_method(name, (graph.placeholder("x"),))
                found = operation_of_call(node)
                assert found is not None
                assert found.kind is entry.kind, name
                assert (overwritten(node, None) is not None) is name.endswith("_"), name
                seen += 1
    assert seen > 400


def test_no_operator_of_another_library_is_taken_for_one_of_torch() -> None:
    with torch.library._scoped_library("canon_tests", "DEF") as library:
        library.define("relu(Tensor x) -> Tensor")
        assert operation_of_function(torch.ops.canon_tests.relu) is None
        assert operation_of_function(torch.ops.canon_tests.relu.default) is None


IN_PLACE = [
    *(torch.relu_, F.elu_, F.leaky_relu_, F.hardtanh_, F.celu_, F.selu_, F.relu_, torch.sigmoid_, torch.exp_),
    *(torch.ops.aten.elu_, torch.ops.aten.relu_.default, torch.ops.aten.hardtanh_, torch.ops.aten.silu_),
    *(operator.iadd, operator.imul, operator.isub, operator.itruediv, operator.ipow),
]


@pytest.mark.parametrize("function", IN_PLACE, ids=lambda function: function.__name__)
def test_the_function_out_of_place_computes_the_same_and_overwrites_nothing(function: Any) -> None:
    x = torch.randn(5, dtype=torch.float64)
    more = (torch.full((5,), 2.0, dtype=torch.float64),) if function.__name__.startswith("i") else ()
    before, expected = x.clone(), function(x.clone(), *more)
    assert torch.equal(out_of_place(node_of(function))(x, *more), expected)
    assert torch.equal(x, before)


def test_a_scaled_elu_stays_scaled_out_of_place() -> None:
    x = torch.randn(5, dtype=torch.float64)
    for function in (F.elu_, torch.ops.aten.elu_, torch.ops.aten.elu_.default):
        assert torch.equal(out_of_place(node_of(function))(x, 1.0, 2.0), function(x.clone(), 1.0, 2.0))


MODULES: dict[str, tuple[nn.Module, str | None]] = {
    "ReLU": (nn.ReLU(), "relu"),
    "SiLU": (nn.SiLU(), "silu"),
    "Conv2d": (nn.Conv2d(2, 2, 1), "linear"),
    "BatchNorm2d": (nn.BatchNorm2d(2), "batch_norm"),
    "MaxPool2d": (nn.MaxPool2d(2), "max_pool2d"),
    "AvgPool3d": (nn.AvgPool3d(2), "avg_pool3d"),
    "Flatten": (nn.Flatten(), "flatten"),
    "Softmax": (nn.Softmax(1), "softmax"),
    "LayerNorm": (nn.LayerNorm(2), "layer_norm"),
    "Upsample": (nn.Upsample(scale_factor=2), "interpolate"),
    "GRU": (nn.GRU(2, 2), "lstm"),
    "Sequential": (nn.Sequential(), None),
    "loss": (nn.MSELoss(), None),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_the_operation_of_its_type(name: str) -> None:
    module, wanted = MODULES[name]
    found = operation_of_module(module)
    assert (None if found is None else found.name) == wanted


class Squared(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) ** 2


def test_a_subclass_that_computes_something_else_is_none() -> None:
    assert operation_of_module(Squared()) is None


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Any], bool]] = {
    "relu": (torch.relu, True),
    "with a parameter": (lambda x: torch.nn.functional.elu(x, 0.3), True),
    "per channel": (lambda x: x * torch.arange(3.0, dtype=x.dtype).view(-1, 1, 1), False),
    "softmax": (lambda x: x.softmax(1), False),
    "mean": (lambda x: x.mean(1), False),
    "normalised by its mean": (lambda x: x / x.abs().mean(), False),
    "normalised by the batch": (lambda x: x / x.norm(dim=0), False),
    "flip": (lambda x: x.flip(1), False),
    "tuple": (lambda x: (x, x), False),
    "an error": (lambda x: x.nothing, False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_whether_an_unknown_function_is_elementwise_is_found_by_running_it(name: str) -> None:
    function, expected = FUNCTIONS[name]
    assert operations.is_elementwise(function) is expected
