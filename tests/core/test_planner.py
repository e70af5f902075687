"""How conflicts are resolved, and what becomes of the BatchNorms that are not in the flow, or of a strange kind."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from canon_bridge import Canonization, Leftover, LostChangeWarning, Merge, Plan, Refusal, TracingError, canonize, plan
from canon_bridge.core.options import Options, Scope
from canon_bridge.core.planner import make_plan
from tests.core.test_search_right import SIZES, written
from tests.support.decisions import LINEAR, STAYS, WRONG, Case, check, decided
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, Written, conv, image, norm, tiny_densenet
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


def test_norms_are_resolved_in_the_order_of_the_flow_each_after_those_before_it() -> None:
    # Registered the other way round than called.
    build = lambda: Written(  # noqa: E731
        lambda m, x: m.last(F.relu(m.z(m.y(m.first(m.x(x)))))),
        **{"z": norm(), "y": norm(), "x": norm()},
        first=conv(),
        last=conv(),
    )
    made = plan(randomize(build()))
    assert [entry.norm for entry in made.entries] == ["x", "y", "z"]
    check(Case(build, {"x": "right first", "y": "left first", "z": ("left first", "right last")}, SIZES))


def test_a_norm_that_was_merged_is_no_target_and_no_obstacle_for_those_behind_it() -> None:
    # The second one reaches the convolution across the first, which is the identity by then.
    build = lambda: nn.Sequential(conv(), norm(), nn.Dropout(), norm(), nn.Softmax(1))  # noqa: E731
    check(Case(build, {"1": "left 0", "3": "left 0"}, SIZES))


def test_a_norm_that_is_kept_is_no_target() -> None:
    build = lambda: nn.Sequential(nn.Softmax(1), norm(), nn.Softmax(1), norm(), norm())  # noqa: E731
    check(Case(build, {"1": STAYS, "3": "right 4", "4": STAYS}, SIZES, {"leftover": "keep"}))

    def function(m: nn.Module, x: Tensor) -> Tensor:
        return m.other(m.norm(F.softmax(x, 1))) + m.other(m.a(x))

    build = written(function, other=norm, a=conv)
    check(Case(build, {"norm": "right other", "other": LINEAR, "other_2": "left a"}, SIZES))
    check(Case(build, {"norm": "right other", "other": STAYS, "other_2": "left a"}, SIZES, {"leftover": "keep"}))


def test_one_convolution_takes_a_norm_from_each_side_and_two_from_one() -> None:
    build = lambda: nn.Sequential(norm(), norm(), nn.GELU(), conv(), norm(), norm())  # noqa: E731
    decisions = {"0": "right 1", "1": "right 3", "4": "left 3", "5": "left 3"}
    check(Case(build, decisions, SIZES))


class Named(nn.BatchNorm2d):
    """A subclass that changes nothing, as libraries have them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.01)

    def extra_repr(self) -> str:
        return "named"


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Squared(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) ** 2


class Holder(nn.Conv2d):
    """A layer of torch.nn by type, with a BatchNorm that its own forward reads."""

    def __init__(self) -> None:
        super().__init__(4, 4, 1)
        self.norm = norm()

    def forward(self, input: Tensor) -> Tensor:
        norm = self.norm
        mean, variance = norm.running_mean, norm.running_var
        return F.batch_norm(super().forward(input), mean, variance, norm.weight, norm.bias, eps=norm.eps)


def parametrized() -> nn.Module:
    layer = norm()
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def own_forward() -> nn.Module:
    layer = norm()
    layer.forward = lambda x: nn.BatchNorm2d.forward(layer, x) ** 2
    return layer


# What becomes of it between two convolutions, and what the reason says.
STRANGE: dict[str, tuple[Callable[[], nn.Module], str | tuple[str, str], str]] = {
    "a subclass that overrides nothing": (lambda: Named(4), ("left 0", "right 3"), ""),
    "a subclass with a forward of its own": (lambda: Squared(4), STAYS, r"may differ from a BatchNorm's \(Squared\)"),
    "a forward of its own": (own_forward, STAYS, "may differ"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_norm_of_a_strange_kind_is_merged_or_listed_with_a_reason(kind: str) -> None:
    # Design 4.5: a BatchNorm that cannot be merged is a refusal, never silence; and it may stand in any model.
    make, what, reason = STRANGE[kind]
    build = lambda: nn.Sequential(conv(), make(), nn.ReLU(), conv(), norm())  # noqa: E731
    check(Case(build, {"1": what, "4": "left 3"}, SIZES))
    (entry,) = (entry for entry in plan(randomize(build())).entries if entry.norm == "1")
    if isinstance(entry, Refusal):
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(entry.reason)


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "parametrized": parametrized,
    "pruned weight": lambda: prune.l1_unstructured(norm(), "weight", 2),
    "pruned bias": lambda: prune.l1_unstructured(norm(), "bias", 2),
}


@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("prefer", BOTH)
def test_a_norm_that_computes_its_weight_keeps_its_function(kind: str, prefer: Any) -> None:
    layers = (conv(), COMPUTED[kind](), nn.ReLU(), norm(), COMPUTED[kind](), nn.Softmax(1), COMPUTED[kind](), conv())
    model, x = randomize(nn.Sequential(*layers).double()), image()
    expected = model(x)
    assert {entry.norm for entry in plan(model).entries} == {"1", "3", "4", "6"}
    with canonize(model, prefer=prefer):
        assert relative_error(model(x), expected) < 1e-12
    assert relative_error(model(x), expected) == 0


def test_what_forward_does_not_call_becomes_a_linear_layer_that_says_so() -> None:
    build = written(lambda m, x: m.a(x), a=conv)
    check(Case(build, {"norm": LINEAR}, SIZES))
    check(Case(build, {"norm": STAYS}, SIZES, {"leftover": "keep"}))
    for leftover, kind in (("linear", Leftover), ("keep", Refusal)):
        (entry,) = plan(randomize(build()), leftover=leftover).entries
        assert isinstance(entry, kind)
        assert entry.reason == "it is not called in forward"


def test_what_forward_reads_without_a_call_stays() -> None:
    build = written(lambda m, x: m.a(x - m.norm.running_mean[:, None, None]), a=conv)
    check(Case(build, {"norm": STAYS}, SIZES))
    check(Case(lambda: nn.Sequential(Holder(), conv()), {"0.norm": STAYS}, SIZES))


def test_an_almost_exact_identity_is_none() -> None:
    layer = nn.BatchNorm2d(4, eps=0)
    (entry,) = plan(nn.Sequential(conv(), layer).eval()).entries
    assert entry == Refusal("1", "it is the identity already")
    for name, value in (("eps", 1e-5), ("weight", nn.Parameter(torch.ones(4) + 1e-6))):
        other = nn.BatchNorm2d(4, eps=0)
        setattr(other, name, value)
        assert isinstance(plan(nn.Sequential(conv(), other).eval()).entries[0], Merge)


def test_planning_changes_nothing_and_runs_nothing() -> None:
    model, calls = randomize(nn.Sequential(conv(), norm(), nn.ReLU(), norm(), conv())), []
    model.register_forward_hook(lambda *_: calls.append("ran"))
    before = Snapshot(model)
    state = torch.get_rng_state()
    assert isinstance(plan(model), Plan)
    canonize(model)
    str(plan(model, prefer="right"))
    before.check()
    assert calls == []
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_a_scope_of_kinds_leaves_all_other_norms_alone() -> None:
    model = randomize(nn.Sequential(conv(), norm(), nn.ReLU(), norm(), conv(), norm(), nn.GELU(), conv()))
    kinds = {"left": {"1": "left 0", "3": STAYS, "5": "left 4"}, "right": {"1": STAYS, "3": "right 4", "5": STAYS}}
    kinds["activation"] = {"1": STAYS, "3": STAYS, "5": "right 7"}
    for kind, wanted in kinds.items():
        made = make_plan(model, Options(), Scope(frozenset([kind]), explicit=False))
        assert decided(made) == wanted
        assert not made.leftovers
        assert made.out_of_place == ()


def test_without_stand_ins_a_layer_that_is_called_elsewhere_takes_nothing() -> None:
    model = randomize(Written(lambda m, x: m.norm(m.a(x)) + m.b(m.a(x * 2)), a=conv(), b=conv(), norm=norm()))
    scope = Scope(frozenset(["left"]), explicit=False)
    (refusal,) = make_plan(model, Options(), scope).refusals
    assert refusal.reason.startswith("left: a is called elsewhere, too")
    (merge,) = make_plan(model, Options(), Scope(frozenset(["left"]))).merges
    assert merge.chain.targets == ("a",)


@pytest.mark.parametrize("prefer", BOTH)
def test_the_first_norm_of_a_densenet_goes_left_in_both_orders(prefer: Any) -> None:
    # To the right of it are the norms of all later layers; a linear layer on either side comes before those.
    chains = {merge.norm: merge.chain for merge in plan(tiny_densenet(), prefer=prefer).merges}
    first = chains.pop("features.norm0")
    assert (first.direction, first.targets) == ("left", ("features.conv0",))
    assert not any("norm" in target for chain in chains.values() for target in chain.targets)


@pytest.mark.parametrize("prefer", BOTH)
def test_with_example_inputs_the_same_chains_are_found(prefer: Any) -> None:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(x)
        if x.sum() > 1e6:  # needs values to be traced
            y = y * 2
        y = torch.cat([F.silu(y), x.roll(1, 2)], 1)
        return m.fc(y.view(y.size(0), y.size(1), -1).mean(-1))

    model = randomize(Written(function, norm=norm(), fc=nn.Linear(8, 3)))
    inputs = [image(*shape) for shape in SIZES]
    expected = [model(x) for x in inputs]
    with canonize(model, prefer=prefer, example_inputs=inputs[0]) as canonical:
        for x, right in zip(inputs, expected, strict=True):
            assert relative_error(canonical(x), right) < 1e-12
    assert decided(plan(model, example_inputs=inputs[0])) == {"norm": "right fc"}
    canonization = canonize(model, example_inputs=inputs[0])
    with pytest.warns(LostChangeWarning, match=r"fc\.bias"):
        spoil(canonization)
    assert relative_error(model(inputs[0]), expected[0]) == 0


def spoil(canonization: Canonization) -> None:
    """Change a merged parameter in the block, and see that the checks above notice."""
    model, x = canonization.model, image(*SIZES[0])
    expected = model(x)
    with canonization:
        model.fc.bias.data += WRONG
        assert relative_error(model(x), expected) > 1e-12


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        return torch.jit.script(nn.Sequential(nn.BatchNorm2d(4)).eval())


class CallsItself(nn.Module):
    """Some rounds of one block, by recursion: of the module, or of its forward alone."""

    def __init__(self, again: Callable[[nn.Module], Callable[..., Tensor]]) -> None:
        super().__init__()
        self.conv, self.norm, self.again = conv(), norm(), again

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        return x if depth == 0 else self.again(self)(self.norm(self.conv(x)).relu(), depth - 1)


@pytest.mark.parametrize("with_example", [False, True])
def test_a_model_that_calls_itself_is_refused_with_what_helps(with_example: bool) -> None:
    x = image()
    keywords: Any = {"example_inputs": x} if with_example else {}
    model, helped = (randomize(CallsItself(again).double()) for again in (lambda m: m, lambda m: m.forward))
    with pytest.raises(TracingError, match=r"\(CallsItself\) calls the model itself.*`self.forward`.*nn.Sequential"):
        canonize(model, **keywords)
    for other in (helped, nn.Sequential(model).eval()):
        before, expected = Snapshot(other), other(x)
        assert len(plan(other, **keywords).merges) == 2
        with canonize(other, **keywords):
            assert relative_error(other(x), expected) < 1e-12
        before.check()


def test_a_scripted_module_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"\b1\b.*script"):
        plan(nn.Sequential(conv(), scripted()).eval())


def test_a_norm_in_training_mode_is_refused_by_name() -> None:
    model = nn.Sequential(conv(), norm()).eval()
    model[1].train()
    with pytest.raises(ValueError, match=r"^1 is in training mode"):
        plan(model)
    model[1] = nn.BatchNorm2d(4, track_running_stats=False).eval()
    with pytest.raises(ValueError, match=r"^1 has no running statistics"):
        plan(model)
