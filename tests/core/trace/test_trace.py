"""Tracing: every operation with the place that wrote it, nothing left on the model, errors that name the module."""

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from canon_bridge import TracingError, canonize, plan
from canon_bridge.core.trace.flow import Flow, Site
from canon_bridge.core.trace.trace import trace, trace_locally
from tests.support.snapshot import Snapshot


class Block(nn.Module):
    """ReLU called twice, written once as a function; two sums, one in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.relu = nn.ReLU()
        self.register_buffer("offset", torch.ones(1, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv(self.relu(x)))
        y += x
        return F.relu(y + self.offset)


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Stage(nn.Module):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x)


class Gated(nn.Module):
    """What cannot be traced stands deep inside, at blocks.1.gate."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)), Stage(gate)])
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Written(nn.Module):
    """A forward given as a function, with a convolution and a buffer."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.register_buffer("steps", torch.zeros(()))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def sites_of(flow: Flow) -> list[Site]:
    # Without the parts of arguments, which a container that is traced alone has to take out by itself.
    return [site for site in flow.sites.values() if site.what is not operator.getitem]


def test_every_call_has_a_site_with_its_owner_and_its_count() -> None:
    model = nn.Sequential(Block(), Block())
    flow, relu = trace(model), id(model[1].relu)
    mine = [site for site in sites_of(flow) if site.owner == "1"]
    assert mine == [
        Site("1", relu, 0),
        Site("1", id(model[1].conv), 0),
        Site("1", relu, 1),
        Site("1", operator.iadd, 0),
        Site("1", operator.add, 0),
        Site("1", F.relu, 0),
    ]
    calls = [node for node in flow.graph.nodes if node.op.startswith("call")]
    assert list(flow.sites) == calls


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(Block(), nn.Sequential(Block(), nn.ReLU())),
        torchvision.models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=5),
        torchvision.models.resnet18(),
    ],
    ids=["blocks", "densenet", "resnet18"],
)
def test_a_container_traced_alone_has_the_sites_that_it_has_in_the_whole(model: nn.Module) -> None:
    model.eval()
    flow = trace(model)
    whole = sites_of(flow)
    containers = {id(module) for module in model.modules() if list(module.children())}  # inlined in the whole
    owners = {site.owner for site in whole}
    for path in owners:
        local = sites_of(trace_locally(model.get_submodule(path), path, flow))
        alone = [site for site in local if site.what not in containers]
        assert alone == [site for site in whole if site.owner == path]
    assert len(owners) > 2


def test_containers_are_inlined_and_layers_are_not() -> None:
    model = nn.Sequential(Block(), nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()))
    called = [str(node.target) for node in trace(model).graph.nodes if node.op == "call_module"]
    assert called == ["0.relu", "0.conv", "0.relu", "1.0", "1.1"]
    alone = [
        str(node.target) for node in trace_locally(model, "", trace(model)).graph.nodes if node.op == "call_module"
    ]
    assert alone == ["0", "1"]


def test_a_module_that_is_reached_by_two_names_is_one_module() -> None:
    block = Block()
    flow = trace(nn.Sequential(block, nn.ReLU(), block))
    convolutions = [site for site in sites_of(flow) if site.what == id(block.conv)]
    assert convolutions == [Site("0", id(block.conv), 0), Site("0_2", id(block.conv), 0)]
    assert flow.stand_ins[Site("", id(block), 1)] == "0_2"
    assert flow.originals["0_2.conv"] == "0.conv"


@pytest.mark.parametrize("target", [operator.iadd, operator.isub, operator.imul, operator.itruediv])
def test_an_in_place_operator_is_recorded_as_such(target: Callable[[Tensor, Tensor], Tensor]) -> None:
    def function(module: nn.Module, x: Tensor) -> Tensor:
        return target(module.conv(x), x)

    assert [n.target for n in trace(Written(function)).graph.nodes if n.op == "call_function"] == [target]


def test_hooks_of_the_user_do_not_run() -> None:
    model, calls = nn.Sequential(Block(), nn.ReLU()).eval(), []
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, args: calls.append(module))
        module.register_forward_hook(lambda module, args, output: calls.append(module))
    trace_locally(model[0], "0", trace(model))
    plan(model)
    assert calls == []
    model(torch.randn(1, 2, 4, 4))
    assert len(calls) == 2 * 6  # they do run in earnest: root, block, conv, two ReLU calls, ReLU


def test_constants_stay_in_the_flow_and_not_on_the_model() -> None:
    def function(module: nn.Module, x: Tensor) -> Tensor:
        return module.conv(x) * torch.tensor([1.0, 2.0]).view(1, 2, 1, 1) + torch.arange(2.0).view(2, 1, 1)

    model = Written(function).eval()
    before = Snapshot(model)
    for flow in (trace(model), trace_locally(model, "", trace(model))):
        assert sorted(flow.constants) == ["_tensor_constant0", "_tensor_constant1"]
        before.check()
        assert not [name for name in dir(model) if name.startswith("_tensor_constant")]
    x = torch.randn(1, 2, 3, 3)
    expected = model(x)
    with canonize(model):
        assert torch.equal(model(x), expected)
    before.check()


def test_parameters_and_buffers_are_no_constants() -> None:
    flow = trace(Written(lambda module, x: module.conv(x) * module.conv.weight.sum() + module.steps))
    assert flow.constants == {}
    assert [n.target for n in flow.graph.nodes if n.op == "get_attr"] == ["conv.weight", "steps"]


SIDE_EFFECTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "an attribute": lambda module, x: setattr(module, "last", y := module.conv(x)) or F.relu(y),
    "a list": lambda module, x: module.seen.append(y := module.conv(x)) or F.relu(y),
    "a buffer in place": lambda module, x: module.steps.add_(1) * module.conv(x),
    "a counter": lambda module, x: setattr(module, "calls", vars(module).get("calls", 0) + 1) or module.conv(x),
}


@pytest.mark.parametrize("effect", SIDE_EFFECTS)
def test_what_forward_writes_on_the_model_is_not_written_by_tracing(effect: str) -> None:
    model = Written(SIDE_EFFECTS[effect]).eval()
    model.seen = ["before"]
    before = Snapshot(model)
    plan(model)
    before.check()
    assert model.seen == ["before"]


def test_the_error_names_the_module_deep_inside_and_says_what_may_help() -> None:
    model = Gated(Gate())
    before = Snapshot(model)
    for attempt in (trace, plan, canonize):
        with pytest.raises(TracingError) as caught:
            attempt(model)
        message = str(caught.value)
        assert "blocks.1.gate (Gate)" in message
        assert "example_inputs" in message
        assert "control flow" in message
        assert caught.value.__cause__ is not None
        before.check()


def test_the_error_names_the_root_by_its_class_and_a_container_by_its_path() -> None:
    with pytest.raises(TracingError, match=r"the model \(Gate\)"):
        trace(Gate())
    with pytest.raises(TracingError, match=r"blocks\.1\.gate \(Gate\)"):
        trace_locally(Gate(), "blocks.1.gate", trace(nn.Sequential()))


def test_another_module_is_not_blamed_for_one_that_was_traced_before() -> None:
    # The frames of containers that ended well are gone: the root itself fails here.
    model = Written(lambda module, x: x if module.block(x).sum() > 0 else -x)
    model.block = Block()
    with pytest.raises(TracingError, match=r"the model \(Written\)"):
        trace(model)


def test_exceptions_that_are_no_errors_pass_through() -> None:
    def interrupted(module: nn.Module, x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model = Written(interrupted)
    before = Snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        trace(model)
    before.check()
    assert trace(nn.Sequential(nn.ReLU())).sites  # torch's own look-ups are in order again


def test_a_forward_on_the_instance_is_the_one_that_is_traced() -> None:
    model = nn.Sequential(nn.ReLU())
    model.forward = lambda x: x
    with pytest.raises(TracingError, match="not a bound method"):
        trace(model)
    model.forward = (lambda self, x: torch.tanh(self[0](x))).__get__(model)
    assert [str(n.target) for n in trace(model).graph.nodes if n.op == "call_module"] == ["0"]
    assert any(n.target is torch.tanh for n in trace(model).graph.nodes)
