"""Models, weights and preprocessing by name and from files; nothing here asks the network."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import ResNet18_Weights

from canon_bridge.cli.errors import CommandError
from canon_bridge.cli.images import bounds, open_image
from canon_bridge.cli.loading import load


def saved(tmp_path, name="weights.pth", **keywords):
    torch.manual_seed(3)
    model = torchvision.models.resnet18(**keywords)
    torch.save(model.state_dict(), tmp_path / name)
    return model, tmp_path / name


def same(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


@pytest.fixture
def picture(folder):
    return open_image(folder / "y.jpg")


def test_torchvision_without_weights(picture):
    loaded = load("torchvision:resnet18")
    assert not loaded.model.training
    assert loaded.weights is loaded.classes is None
    assert torch.equal(loaded.transform(picture), ResNet18_Weights.DEFAULT.transforms()(picture))


@pytest.mark.parametrize("name", ["fcn_resnet50", "googlenet", "resnet18"])
def test_no_weights_means_no_download(monkeypatch, name):
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: 1 / 0)
    load(f"torchvision:{name}")


def test_a_state_dict_with_its_own_number_of_classes(tmp_path):
    model, path = saved(tmp_path, num_classes=7)
    loaded = load("torchvision:resnet18", str(path))
    assert same(loaded.model, model)
    assert loaded.classes is None
    assert loaded.weights == str(path)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_checkpoint_of_data_parallel(tmp_path, key):
    model, path = saved(tmp_path)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, key: state}, path)
    assert same(load("torchvision:resnet18", str(path)).model, model)


def test_the_old_names_of_densenets(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.densenet121(num_classes=3)
    old = {}
    for name, value in model.state_dict().items():
        for kind in ("norm", "conv"):
            for number in ("1", "2"):
                name = name.replace(f".{kind}{number}.", f".{kind}.{number}.") if "denselayer" in name else name
        old[name] = value
    assert any(".norm.1." in name for name in old)
    torch.save(old, tmp_path / "old.pth")
    assert same(load("torchvision:densenet121", str(tmp_path / "old.pth")).model, model)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, _ = saved(tmp_path)
    safetensors.save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert same(load("torchvision:resnet18", str(tmp_path / "w.safetensors")).model, model)


def test_a_file_that_torchvision_offers_is_known_by_its_name(tmp_path):
    name = ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    _, path = saved(tmp_path, name)
    assert load("torchvision:resnet18", str(path)).class_name(281) == "tabby (281)"
    other = tmp_path / "mine.pth"
    path.rename(other)
    assert load("torchvision:resnet18", str(other)).class_name(281) == "281"


@pytest.mark.parametrize("weights", ["default", "DEFAULT", "IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"])
def test_weights_of_torchvision_by_name(monkeypatch, weights):
    model = torchvision.models.resnet18()
    asked = []

    def download(url, *_, **__):
        asked.append(url)
        return model.state_dict()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
    loaded = load("torchvision:resnet18", weights)
    assert same(loaded.model, model)
    assert asked == [ResNet18_Weights.IMAGENET1K_V1.url]
    assert loaded.class_name(0) == "tench (0)"


def test_a_download_that_fails(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(CommandError, match=r"no network.*fetch https://.*--weights PATH"):
        load("torchvision:resnet18", "default")


def test_timm(monkeypatch, picture, tmp_path):
    timm = pytest.importorskip("timm")
    loaded = load("timm:resnetv2_50")
    assert loaded.transform(picture).shape == (3, 224, 224)
    low, high = bounds(loaded.transform, picture)
    assert low.flatten().tolist() == [-1, -1, -1]
    assert high.flatten().tolist() == [1, 1, 1]
    torch.save(timm.create_model("resnet18", num_classes=4).state_dict(), tmp_path / "four.pth")
    assert load("timm:resnet18", str(tmp_path / "four.pth")).model.fc.out_features == 4
    asked = []
    create = timm.create_model

    def download(name, pretrained):
        asked.append((name, pretrained))
        return create(name)

    monkeypatch.setattr(timm, "create_model", download)
    assert "tench" in load("timm:resnet18.tv_in1k", "default").class_name(0)
    load("timm:resnet18", "a2_in1k")
    assert asked == [("resnet18.tv_in1k", True), ("resnet18.a2_in1k", True)]
    with pytest.raises(CommandError, match="give default, one of a1_in1k"):
        load("timm:resnet18", "b7")
    with pytest.raises(CommandError, match="timm has no model resnet1; did you mean resnet"):
        load("timm:resnet1")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: 1 / 0)
    with pytest.raises(CommandError, match="could not be downloaded"):
        load("timm:resnet18", "default")


def test_a_function_in_a_file(folder, tmp_path, picture):
    loaded = load(f"{folder}/net.py:make_model", size=10)
    assert not loaded.model.training
    assert loaded.transform(picture).shape == (3, 10, 10)
    torch.save({name: value + 1 for name, value in loaded.model.state_dict().items()}, tmp_path / "w.pt")
    other = load(f"{folder}/net.py:make_model", str(tmp_path / "w.pt"))
    assert torch.equal(other.model[0].weight, loaded.model[0].weight + 1)


def test_a_file_finds_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_net.py").write_text("from torch import nn\n")
    (tmp_path / "near.py").write_text("from neighbour_of_net import nn\nmake = nn.ReLU\n")
    assert isinstance(load(f"{tmp_path}/near.py:make").model, nn.ReLU)


def test_a_file_may_have_dataclasses(tmp_path):
    (tmp_path / "data.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "@dataclass\nclass Width:\n    width: int = 3\ndef make():\n    return nn.Linear(Width().width, 1)\n"
    )
    assert load(f"{tmp_path}/data.py:make").model.in_features == 3
