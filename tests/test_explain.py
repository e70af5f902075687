"""Explainer: the maps of the frameworks themselves, the same in both, and the same after a trip through pickle."""

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from canon_bridge import TracingError
from canon_bridge.captum import LRP, presets
from canon_bridge.explain import Explainer
from tests.support.statistics import randomize


def make_model() -> nn.Module:
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    return randomize(nn.Sequential(*layers))


@pytest.fixture
def batch():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    return {"id": np.array(["a", "b", "c"]), "image": images, "label": np.array([4, 0, 2])}


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("target", [None, 3, "label"])
def test_maps_are_those_of_captum_in_both_frameworks(batch, prefer, target):
    model = make_model()
    x = torch.from_numpy(batch["image"]).movedim(-1, 1) / 255
    with torch.no_grad():
        scores = model(x)
    classes = {None: scores.argmax(1), 3: torch.full((3,), 3), "label": torch.tensor([4, 0, 2])}[target]
    expected = LRP(model, preset=presets.epsilon_plus(), prefer=prefer).attribute(x, target=classes).sum(1)
    for framework in ("captum", "zennit"):
        explainer = Explainer(make_model, framework=framework, prefer=prefer, target=target)
        for _ in range(2):  # the second batch finds the model as the first one did
            found = explainer(batch)
            assert set(found) == {"id", "label", "class", "score", "relevance"}
            assert found["class"].tolist() == classes.tolist()
            torch.testing.assert_close(torch.from_numpy(found["score"]), scores.gather(1, classes[:, None])[:, 0])
            torch.testing.assert_close(torch.from_numpy(found["relevance"]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("framework", ["captum", "zennit"])
def test_an_explainer_can_be_pickled(batch, framework):
    explainer = Explainer(make_model, framework=framework, prefer="right")
    again = pickle.loads(pickle.dumps(explainer))
    assert np.array_equal(again(batch)["relevance"], explainer(batch)["relevance"])
    assert again.identity() == explainer.identity()


def test_images_in_shades_of_grey_and_ones_own_transform(batch):
    explainer = Explainer(make_model, transform=lambda images: images.expand(-1, 3, -1, -1) / 255)
    grey = batch["image"][..., 0]
    colour = Explainer(make_model)({"image": np.repeat(grey[..., None], 3, -1)})
    assert np.array_equal(explainer({"image": grey})["relevance"], colour["relevance"])


def test_the_identity_tells_models_and_settings_apart():
    def other_model() -> nn.Module:
        model = make_model()
        with torch.no_grad():
            model[0].weight[0, 0, 0, 0] += 1e-3
        return model

    identity = Explainer(make_model).identity()
    assert identity == Explainer(make_model).identity()
    assert identity["model"] == "Sequential"
    others = (Explainer(other_model), Explainer(make_model, prefer="right"), Explainer(make_model, target=1))
    others += (Explainer(make_model, clipped="pass"), Explainer(make_model, example_input=torch.zeros(1, 3, 8, 8)))
    others += (Explainer(make_model, framework="zennit"), Explainer(make_model, preset="epsilon_plus_flat"))
    assert all(identity != other.identity() for other in others)


@pytest.mark.parametrize(
    ("make", "settings", "error", "says"),
    [
        (make_model(), {}, TypeError, "make_model is a Sequential; it must be a function"),
        (lambda: None, {}, TypeError, "make_model returned a NoneType"),
        (make_model, {"framework": "torch"}, ValueError, r"framework is 'torch' \(str\); .*'zennit'"),
        (make_model, {"preset": "plus"}, ValueError, "preset is 'plus' .*'epsilon_plus'"),
        (make_model, {"preset": presets.epsilon()}, ValueError, "preset is Preset.*'epsilon_plus'"),
        (make_model, {"target": 5}, ValueError, r"target is 5, for the classes \[5, 5, 5\]; .* from 0 to 4"),
        (make_model, {"target": "labels"}, ValueError, "no column labels; it has id, image, label"),
        (lambda: nn.Sequential(make_model(), nn.Unflatten(1, (5, 1))), {}, TypeError, r"returns a tensor \(3, 5, 1\)"),
    ],
)
def test_what_cannot_be_explained_is_told_so(batch, make, settings, error, says):
    with pytest.raises(error, match=says):
        Explainer(make, **settings)(batch)


class ByValues(nn.Module):
    """A course that depends on values: traced with an example alone."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_model()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) if x.sum() < 1e9 else self.network(-x)


def test_a_model_that_is_traced_with_values(batch):
    expected = Explainer(make_model)(batch)["relevance"]
    example = torch.zeros(1, 3, *batch["image"].shape[1:3])
    for framework in ("captum", "zennit"):
        found = Explainer(ByValues, framework=framework, example_input=example)(batch)["relevance"]
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    with pytest.raises(TracingError):
        Explainer(ByValues, framework="zennit")
