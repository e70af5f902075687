"""A program that ``torch.export`` wrote is canonized as the model that it came from, decomposed or not."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from canon_bridge import TracingError, canonize, plan
from canon_bridge.captum import LRP, presets
from canon_bridge.explain import Explainer
from canon_bridge.zennit import ModelCanonizer
from tests.support.errors import relative_error
from tests.support.in_zennit import attribute, epsilon_composite
from tests.support.models import gradient_times_input
from tests.support.pieces import BOTH, Preactivation, conv, norm
from tests.support.statistics import randomize

EPS = torch.finfo(torch.float64).eps
STABILIZER = 1e-12

FORMS: dict[str, Callable[[ExportedProgram], ExportedProgram]] = {
    "exported": lambda program: program,
    "decomposed": lambda program: program.run_decompositions(),
}
FORM = pytest.mark.parametrize("form", FORMS)
PREFER = pytest.mark.parametrize("prefer", BOTH)

pytestmark = pytest.mark.filterwarnings(
    "ignore:Attempted to insert a get_attr Node with no underlying reference:UserWarning"  # torch 2.6
)


def model() -> nn.Module:
    """Convolutions of both kinds, BatchNorms on both sides of them, with and without parameters."""
    layers = (
        conv(),
        norm(),
        nn.ReLU(),
        Preactivation(),
        nn.BatchNorm2d(4, affine=False),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1),
        norm(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    return randomize(nn.Sequential(*layers).double())


def written(form: str) -> tuple[nn.Module, nn.Module, Tensor]:
    original, x = model(), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    return original, FORMS[form](torch.export.export(original, (x,))).module(), x


@PREFER
@FORM
def test_it_computes_the_same_without_its_batch_norms(form: str, prefer: str) -> None:
    original, program, x = written(form)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in original.modules())
    made = plan(program, prefer=prefer)
    assert len(made.merges) == norms
    assert not made.uncovered
    expected = program(x)
    with canonize(program, prefer=prefer):
        assert relative_error(program(x), expected) < 64 * EPS
    assert torch.equal(program(x), expected)


@PREFER
@FORM
def test_its_map_is_that_of_the_model_in_both_frameworks(form: str, prefer: str) -> None:
    original, program, x = written(form)
    in_captum = LRP(program, presets.epsilon(STABILIZER), prefer=prefer).attribute(x, target=3)
    in_zennit = attribute(program, x, epsilon_composite(STABILIZER, [ModelCanonizer(prefer)]))
    expected = gradient_times_input(original, x)
    assert relative_error(in_captum, expected) < 1e-7
    assert relative_error(in_zennit, in_captum) < 64 * EPS


@PREFER
@FORM
def test_a_program_for_every_size_is_canonical_for_every_size(form: str, prefer: str) -> None:
    original, x = model(), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(original, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    program = FORMS[form](exported).module()
    with canonize(program, prefer=prefer):
        for value in (x, x[:1], torch.randn(3, 4, 10, 12, dtype=torch.float64)):
            assert relative_error(program(value), original(value)) < 64 * EPS


def test_a_program_is_explained_in_columns() -> None:
    original, program, _ = written("exported")
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 4))
    columns = {"id": np.arange(2), "image": images}
    found, expected = (
        Explainer(lambda of=of: of, preset="epsilon", transform=lambda x: x.double())(columns)
        for of in (program, original)
    )
    np.testing.assert_allclose(found["relevance"], expected["relevance"], rtol=1e-6)


class Statistics(nn.Module):
    """Compute a norm by an operator that puts out its statistics, too."""

    def __init__(self, output: int) -> None:
        super().__init__()
        self.output, self.conv = output, conv()
        self.norm, self.layer, self.group = norm(), nn.LayerNorm(6), nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, layer, group = self.norm, self.layer, self.group
        found = torch.native_batch_norm(
            self.conv(x), n.weight, n.bias, n.running_mean, n.running_var, False, 0.1, n.eps
        )
        x = torch.native_layer_norm(found[0].relu(), (6,), layer.weight, layer.bias, layer.eps)[self.output]
        aten = torch.ops.aten.native_group_norm
        return aten(x, group.weight, group.bias, x.shape[0], 4, x.shape[2] * x.shape[3], 2, group.eps)[0]


def test_norms_that_put_out_statistics_have_their_rules() -> None:
    network, x = randomize(Statistics(0).double()), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expected = network(x)
    made = plan(network)
    assert [merge.chain.direction for merge in made.merges] == ["left"]
    assert not made.uncovered
    with canonize(network, example_inputs=x):
        assert relative_error(network(x), expected) < 64 * EPS
        assert {"Normaliser"} == {type(m).__name__ for m in network.children()} - {
            *("Conv2d", "BatchNorm2d", "BatchNorm", "ReLU", "LayerNorm", "GroupNorm"),
        }


def test_an_operator_that_is_called_by_name_has_its_arguments_in_their_places() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(), norm()

        def forward(self, x: Tensor) -> Tensor:
            n, operator = self.norm, torch.ops.aten.batch_norm.default
            statistics = {"running_mean": n.running_mean, "running_var": n.running_var}
            tensors = {"input": self.conv(x), "weight": n.weight, "bias": n.bias, **statistics}
            return operator(**tensors, training=False, momentum=0.1, eps=n.eps, cudnn_enabled=False)

    network, x = randomize(ByName().double()), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expected = network(x)
    assert [merge.chain.direction for merge in plan(network).merges] == ["left"]
    with canonize(network):
        assert relative_error(network(x), expected) < 64 * EPS


def test_a_forward_that_reads_the_statistics_is_refused() -> None:
    with pytest.raises(TracingError, match="it reads the statistics that a norm puts out beside its result"):
        plan(Statistics(1).double().eval())
