"""An activation that a user registers absorbs a map by the general form, for every framework."""

import pytest
import torch
from torch import Tensor, nn
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Pass

from canon_bridge import canonize, canonized_copy, plan, register_activation
from canon_bridge.captum import LRP, presets
from canon_bridge.core.activations import ACTIVATIONS
from canon_bridge.zennit import ModelCanonizer
from tests.support.errors import relative_error
from tests.support.pieces import conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


class Squareplus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + (x * x + 4).sqrt()) / 2


class Slope(nn.Module):
    """With a parameter for each channel, working in place."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.slopes.view(-1, *(1,) * (x.dim() - 2)) * x.sigmoid())


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ACTIVATIONS, "data", dict(ACTIVATIONS))
    register_activation(Squareplus)
    register_activation(f"{__name__}.Slope")


@pytest.mark.parametrize("kind", [Squareplus, Slope])
def test_a_norm_is_merged_through_it(kind: type[nn.Module]) -> None:
    model, x = randomize(nn.Sequential(nn.Softmax(1), norm(), kind(), conv()).double()), image()
    kept, expected = Snapshot(model), model(x.clone()).detach()
    (merge,) = plan(model).merges
    assert (merge.chain.absorbers, merge.chain.targets) == (("2",), ("3",))
    for _ in range(2):
        with canonize(model):
            assert relative_error(model(x.clone()), expected) < 1e-12
        kept.check()
    assert relative_error(canonized_copy(model)(x.clone()), expected) < 1e-12


def test_relevance_passes_in_both_frameworks() -> None:
    model, x = randomize(nn.Sequential(conv(), norm(), Squareplus(), conv()).double()), image()
    kept = Snapshot(model)
    ours = LRP(model, presets.epsilon(1e-9), prefer="right").attribute(x, target=(1, 2, 2))
    leaf = x.clone().requires_grad_()
    layers = [(Squareplus, Pass()), (nn.Conv2d, Epsilon(1e-9))]
    with LayerMapComposite(layers, canonizers=[ModelCanonizer(prefer="right")]).context(model) as modified:
        output = modified(leaf)
        start = torch.zeros_like(output)
        start[:, 1, 2, 2] = output[:, 1, 2, 2].detach()
        (theirs,) = torch.autograd.grad(output, leaf, start)
    assert relative_error(ours, theirs) < 1e-12
    kept.check()


def test_what_is_no_type_is_refused() -> None:
    before = dict(ACTIVATIONS)
    for wrong in ("Squareplus", torch.relu, nn.Module, nn.ReLU()):
        with pytest.raises(TypeError, match="is no type of module"):
            register_activation(wrong)
    assert dict(ACTIVATIONS) == before
