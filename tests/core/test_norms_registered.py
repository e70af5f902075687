"""A norm that a user registers, with parameters of other names than a BatchNorm's: it is merged as one everywhere."""

from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn
from zennit.composites import EpsilonPlus

import canon_bridge.captum as bridge
from canon_bridge import Affine, canonize, canonized_copy, plan, register_norm
from canon_bridge.captum import presets
from canon_bridge.core.norms import NORMS, is_identity, is_norm, mean_ratio, norm_type, slots_for, width
from canon_bridge.zennit import ModelCanonizer
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, conv, image
from tests.support.snapshot import Snapshot

TOLERANCE, WRONG = 1e-12, 1e-3


class Standardize(nn.Module):
    """``alpha * (x - mean) / sqrt(var + slack) + beta``."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(channels)
        signs = torch.tensor([0.0, *(torch.randint(0, 2, (channels - 1,), generator=generator) * 2.0 - 1)])
        self.alpha = nn.Parameter((torch.rand(channels, generator=generator) + 0.5) * signs)
        self.beta = nn.Parameter(torch.randn(channels, generator=generator), requires_grad=False)
        self.register_buffer("mean", torch.randn(channels, generator=generator))
        self.register_buffer("var", torch.rand(channels, generator=generator) + 0.5)
        self.slack = 0.1

    def forward(self, x: Tensor) -> Tensor:
        mean, var, alpha, beta = (
            value.view(-1, *(1,) * (x.dim() - 2)) for value in (self.mean, self.var, self.alpha, self.beta)
        )
        return (x - mean) / (var + self.slack).sqrt() * alpha + beta


class Affinity(nn.Module):
    """``x * alpha + beta`` with buffers alone, the same in training mode, and an activation after it."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.register_buffer("factors", torch.randn(2, channels))
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x * self.factors[0, :, None, None] + self.factors[1, :, None, None])


def read(module: Any) -> Affine:
    scale = module.alpha / (module.var + module.slack).sqrt()
    return Affine(scale, module.beta - scale * module.mean)


def write(module: Any, affine: Affine) -> dict[str, object]:
    statistics = {"mean": torch.zeros_like(module.mean), "var": torch.ones_like(module.var), "slack": 0.0}
    return {"alpha": affine.scale, "beta": affine.shift, **statistics}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NORMS, "data", dict(NORMS))
    register_norm(Standardize, read=read, write=write, ranks=(2, 3, 4, 5))
    register_norm(
        f"{__name__}.Affinity",
        read=lambda module: Affine(*module.factors),
        write=lambda module, affine: {"factors": torch.stack([affine.scale, affine.shift])},
        ranks=(4,),
        width=lambda module: module.factors.shape[1],
        frozen=True,
        then=("last",),
    )


def made(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules).double().eval()


PLACES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "left": (lambda: made(conv(), Standardize(), nn.Tanh()), "left 0"),
    "right": (lambda: made(nn.Tanh(), Standardize(), conv()), "right 2"),
    "through a ReLU": (lambda: made(nn.Tanh(), Standardize(), nn.ReLU(True), conv()), "right 3"),
    "into another": (lambda: made(nn.Tanh(), Standardize(), Standardize(), nn.Sigmoid()), "right 2"),
    "into a BatchNorm": (lambda: made(nn.Tanh(), Standardize(), nn.BatchNorm2d(4), nn.Sigmoid()), "right 2"),
    "a BatchNorm into it": (lambda: made(nn.BatchNorm2d(4), nn.Sigmoid(), Standardize(), nn.Sigmoid()), "linear"),
    "left over": (lambda: made(nn.Tanh(), Standardize(), nn.Sigmoid()), "linear"),
    "with a child": (lambda: made(nn.Tanh(), conv(), Affinity(), conv()), "left 1"),
    "with a child, left over": (lambda: made(nn.Tanh(), Affinity(), nn.Sigmoid()), "linear"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("prefer", BOTH)
def test_the_block_and_the_copy(place: str, prefer: str) -> None:
    build, what = PLACES[place]
    model, x = build(), image()
    kept, expected = Snapshot(model), model(x).detach()
    entries = {entry.norm: entry for entry in plan(model, prefer=prefer).entries}
    assert not plan(model, prefer=prefer).refusals
    if prefer in what:
        (merge,) = (entry.chain for entry in plan(model, prefer=prefer).merges if entry.chain.direction == prefer)
        assert f"{merge.direction} {merge.targets[0]}" == what
    elif what == "linear":
        assert entries
    for _ in range(2):
        with canonize(model, prefer=prefer):
            assert relative_error(model(x), expected) < TOLERANCE
            norms = [module for module in model.modules() if is_norm(module)]
            assert all(is_identity(norm) and torch.equal(norm(x), x) for norm in norms)
        kept.check()
        assert torch.equal(model(x), expected)
    twin = canonized_copy(model, prefer=prefer)
    kept.check()
    assert relative_error(twin(x), expected) < TOLERANCE
    assert not any(NORMS.find(module) for module in twin.modules())


@pytest.mark.parametrize("place", ["into another", "into a BatchNorm"])
def test_one_that_takes_another_and_stays_computes_both(place: str) -> None:
    model, x = PLACES[place][0](), image()
    kept, expected = Snapshot(model), model(x)
    with canonize(model, leftover="keep"):
        assert (is_identity(model[1]), is_norm(model[2]), is_identity(model[2])) == (True, True, False)
        assert relative_error(model(x), expected) < TOLERANCE
    kept.check()


def test_what_is_written_is_what_is_computed_to_the_bit() -> None:
    norm, x = Standardize().double().eval(), image()
    assert (width(norm), norm_type(norm).ranks, mean_ratio(norm)) == (4, (2, 3, 4, 5), None)
    assert relative_error(x * read(norm).scale.view(-1, 1, 1) + read(norm).shift.view(-1, 1, 1), norm(x)) < TOLERANCE
    slots = slots_for(norm, write(norm, Affine.identity(read(norm).scale)))
    assert {table for table, _ in slots} == {"_parameters", "_buffers", "__dict__"}
    assert (slots["_parameters", "alpha"].requires_grad, slots["_parameters", "beta"].requires_grad) == (True, False)
    assert not is_identity(norm)
    for (table, name), value in slots.items():
        (vars(norm) if table == "__dict__" else vars(norm)[table])[name] = value
    assert is_identity(norm)
    assert torch.equal(norm(x), x)
    norm.slack = 1e-30  # that rounding hides, here
    assert not is_identity(norm)


def test_training_mode_is_refused_unless_it_is_frozen() -> None:
    with pytest.raises(ValueError, match=r"1 is in training mode"):
        plan(made(conv(), Standardize()).train())
    assert plan(made(conv(), Affinity()).train()).merges


def network() -> nn.Module:
    torch.manual_seed(1)
    layers = (conv(4, 4), Standardize(), nn.ReLU(), Standardize(), nn.ReLU(), conv(4, 4), nn.ReLU())
    return made(*layers, conv(4, 3, 6, 0))


def batch_norm_of(norm: Standardize) -> nn.BatchNorm2d:
    """Return the BatchNorm that computes the same."""
    twin = nn.BatchNorm2d(4, eps=norm.slack).double().eval()
    twin.load_state_dict(
        {"weight": norm.alpha, "bias": norm.beta, "running_mean": norm.mean, "running_var": norm.var}, strict=False
    )
    return twin


@pytest.mark.parametrize("prefer", BOTH)
def test_relevance_is_that_of_the_same_network_with_batch_norms(prefer: str) -> None:
    model, x = network(), image()
    kept = Snapshot(model)
    twin = nn.Sequential(*(batch_norm_of(part) if isinstance(part, Standardize) else part for part in model)).eval()
    assert relative_error(twin(x), model(x)) < TOLERANCE

    def by_zennit(network: nn.Module) -> Tensor:
        leaf = x.clone().requires_grad_()
        with EpsilonPlus(canonizers=[ModelCanonizer(prefer=prefer)]).context(network) as modified:
            (relevance,) = torch.autograd.grad(modified(leaf)[:, 1].sum(), leaf)
        return relevance

    def by_ours(network: nn.Module) -> Tensor:
        return bridge.LRP(network, presets.epsilon_plus(), prefer=prefer).attribute(x, target=(1, 0, 0))

    def by_captum(network: nn.Module) -> Tensor:
        with bridge.canonize(network, prefer=prefer):
            for module in network.modules():
                if isinstance(module, Standardize | nn.BatchNorm2d):
                    module.rule = bridge.rules.Pass()
            return captum.attr.LRP(network).attribute(x, target=(1, 0, 0))

    for explain in (by_zennit, by_ours, by_captum):
        assert relative_error(explain(model), explain(twin)) < TOLERANCE
        kept.check()
    uncanonized = by_ours(nn.Sequential(*(part for part in model if not isinstance(part, Standardize))).eval())
    assert relative_error(uncanonized, by_ours(model)) > WRONG


@pytest.mark.parametrize("prefer", BOTH)
def test_gradients_of_a_relevance_map_reach_its_parameters(prefer: str) -> None:
    model, x = network(), image()
    leaf = x.clone().requires_grad_()
    with EpsilonPlus(canonizers=[ModelCanonizer(prefer=prefer, differentiable=True)]).context(model) as modified:
        (relevance,) = torch.autograd.grad(modified(leaf)[:, 1].sum(), leaf, create_graph=True)
        relevance.square().sum().backward()
    gradients = [model[index].alpha.grad for index in (1, 3)]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert float(gradients[1].abs().max()) > 0
    assert model[1].beta.grad is None


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"type_or_name": "Standardize"}, TypeError, "is no type of module; it must be a subclass"),
        ({"type_or_name": int}, TypeError, "is no type of module"),
        ({"type_or_name": nn.Module}, TypeError, "is no type of module"),
        ({"type_or_name": Standardize()}, TypeError, "is no type of module"),
        ({"type_or_name": "a..b"}, TypeError, "is no type of module"),
        ({"read": "alpha"}, TypeError, "read is 'alpha'; it must be a function"),
        ({"write": None}, TypeError, "write is None; it must be a function"),
        ({"ranks": ()}, ValueError, "ranks is"),
        ({"ranks": (1, 4)}, ValueError, "ranks is"),
    ],
)
def test_what_is_no_entry_is_refused(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"type_or_name": Standardize, "read": read, "write": write, "ranks": (4,)} | wrong
    before = dict(NORMS)
    with pytest.raises(error, match=message):
        register_norm(arguments.pop("type_or_name"), **arguments)
    assert dict(NORMS) == before


WRONGLY_TAUGHT: dict[str, tuple[dict[str, Any], str]] = {
    "a name that it has not": ({"write": lambda m, a: {"gain": a.scale}}, "names of attributes"),
    "no values": ({"write": lambda m, a: None}, "names of attributes"),
    "too few": ({"write": lambda m, a: {"alpha": a.scale}}, "and it does not"),
    "not the identity": ({"write": lambda m, a: write(m, a) | {"slack": 0.1}}, "and it does not"),
    "another map": ({"read": lambda m: Affine(m.alpha, m.beta)}, "and it does not"),
    "no map": ({"read": lambda m: (m.alpha, m.beta)}, "return Affine"),
    "nothing": ({"read": lambda m: None}, "return Affine"),
}


@pytest.mark.parametrize("name", WRONGLY_TAUGHT)
def test_what_was_taught_wrongly_is_refused(name: str) -> None:
    functions, message = WRONGLY_TAUGHT[name]
    register_norm(Standardize, **{"read": read, "write": write, "ranks": (4,), **functions})
    model = nn.Sequential(conv(), Standardize(4)).double().eval()
    before = Snapshot(model)
    with pytest.raises((TypeError, ValueError), match=message):
        plan(model)
    before.check()


def test_ranks_are_a_tuple() -> None:
    with pytest.raises(ValueError, match="must be a tuple"):
        register_norm(Standardize, read=read, write=write, ranks=4)  # pyright: ignore[reportArgumentType]
