"""Which models the coverage benchmark measures, how each is built, and what input it takes.

A model is named by where it comes from: ``torchvision/resnet18``, ``torchvision/video/r3d_18``,
``torchvision/detection/retinanet_resnet50_fpn.backbone``, ``timm/densenet121``. Weights are random, never downloaded.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import detection, optical_flow, segmentation, video
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

Timm = Literal["none", "required", "families", "all"]

TIMM_REQUIRED = (
    "densenet121",
    "densenetblur121d",
    "resnetv2_50",
    "resnet26d",
    "seresnet50",
    "res2net50_26w_4s",
    "dpn68",
    "dla34",
    "hrnet_w18_small",
    "efficientnet_b0",
    "tf_efficientnet_b0",
    "mobilenetv3_small_100",
    "mixnet_s",
    "repvgg_a0",
    "levit_128s",
    "xception41",
    "convmixer_768_32",
    "regnety_002",
)

SIZES = (64, 96, 128, 160, 192, 224, 256, 299, 320, 384, 448, 512)
FRAMES = 4
MORE_FRAMES = {"torchvision/video/s3d": 16}
FIXED = {
    "torchvision/maxvit_t": 224,
    "torchvision/video/s3d": 224,  # its last pool is 2x7x7
    "torchvision/optical_flow/raft_large": 128,
    "torchvision/optical_flow/raft_small": 128,
}

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},  # the default takes minutes, and what it draws is replaced anyway
    "inception_v3": {"init_weights": False},
}


def _retinanet_backbone(**options: Any) -> nn.Module:
    """Return the backbone as the builders make it for pretrained weights (retinanet, fcos)."""
    pyramid = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    return resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5, **pyramid, **options)


# The builders freeze BatchNorm only where weights are given; these are the same backbones without downloads.
_BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "fasterrcnn_resnet50_fpn": lambda: resnet_fpn_backbone(  # maskrcnn and keypointrcnn have the same
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": lambda: mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=FrozenBatchNorm2d, trainable_layers=6
    ),
    "retinanet_resnet50_fpn": lambda: _retinanet_backbone(norm_layer=FrozenBatchNorm2d),  # fcos has the same
}
_BUILDERS = ("fasterrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2", "ssdlite320_mobilenet_v3_large")

Group = tuple[str, ...]  # alternatives: the first that has a BatchNorm and is small enough is measured


def names(timm: Timm = "required") -> list[Group]:
    """Return what to measure, each as a group of alternatives (mostly one name).

    Parameters
    ----------
    timm : {"none", "required", "families", "all"}
        Which models of timm: none; a fixed list of various architectures; besides, one model for each prefix of a
        name (``seresnet``, ``tf_efficientnet_b``) in each source file of timm; or all.

    Raises
    ------
    ImportError
        If models of timm are asked for and it is not installed.
    """
    found: list[Group] = []
    modules = {
        "torchvision": torchvision.models,
        "torchvision/segmentation": segmentation,
        "torchvision/video": video,
        "torchvision/optical_flow": optical_flow,
    }
    for prefix, module in modules.items():
        found += [(f"{prefix}/{name}",) for name in torchvision.models.list_models(module=module)]
    found += [(f"torchvision/detection/{name}.backbone",) for name in sorted((*_BACKBONES, *_BUILDERS))]
    if timm != "none":
        found += [(f"timm/{name}",) for name in TIMM_REQUIRED]
    if timm in ("families", "all"):
        found += _timm_groups(by_family=timm == "families")
    return found


def _timm_groups(by_family: bool) -> Iterator[Group]:
    import timm

    others = [name for name in timm.list_models() if name not in TIMM_REQUIRED]
    if not by_family:
        yield from ((f"timm/{name}",) for name in others)
        return
    groups: dict[tuple[str, str], list[str]] = {}
    for name in others:
        source = timm.model_entrypoint(name).__module__
        prefix = re.match(r"[a-z_]*", name)
        groups.setdefault((source, prefix[0] if prefix else ""), []).append(f"timm/{name}")
    yield from map(tuple, groups.values())


def build(name: str) -> nn.Module:
    """Build a model by its name, in float32, with random weights (under ``torch.device("meta")`` with none).

    Raises
    ------
    ValueError
        If there is no such model.
    """
    source, _, rest = name.partition("/")
    kind = rest.rpartition("/")[2].removesuffix(".backbone")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if source == "timm":
            import timm

            return timm.create_model(kind, pretrained=False).eval()
        if kind in _BACKBONES and name.endswith(".backbone"):
            return _BACKBONES[kind]().eval()
        arguments = dict(_ARGUMENTS.get(kind, {}))
        if kind in {*torchvision.models.list_models(module=segmentation), *_BUILDERS}:
            arguments["weights_backbone"] = None
        model = torchvision.models.get_model(kind, weights=None, **arguments).eval()
        return model.backbone if kind in torchvision.models.list_models(module=detection) else model


def describe(name: str) -> tuple[int, int]:
    """Return the number of BatchNorms and of parameters of a model without allocating it where that is possible."""
    try:
        with torch.device("meta"):
            model = build(name)
    except (RuntimeError, NotImplementedError):  # it computes with values while it is built
        model = build(name)
    return sum(map(is_batch_norm, model.modules())), sum(p.numel() for p in model.parameters())


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module is a batch norm of any kind, frozen ones and those with an activation included."""
    frozen = any(kind.__name__.startswith("FrozenBatchNorm") for kind in type(module).__mro__)
    return isinstance(module, _BatchNorm) or frozen


def inputs(name: str, model: nn.Module, size: int | None = None) -> tuple[Tensor, ...]:
    """Return random inputs of the smallest size that the model runs on, in the precision of the model.

    Parameters
    ----------
    name : str
        Of the model.
    model : nn.Module
        In evaluation mode.
    size : int, optional
        Height and width, for a model that does not prescribe them.

    Raises
    ------
    Exception
        What the model raised for the last size.
    """
    config: dict[str, Any] = getattr(model, "default_cfg", None) or {}
    channels, *_, default = config.get("input_size", (3, 0))
    if name in FIXED or config.get("fixed_input_size"):
        sizes = [FIXED.get(name, default)]
    elif size is not None:
        sizes = [size]
    else:
        sizes = sorted({*SIZES, default} - {0})
    dtype = next(model.parameters()).dtype
    for index, side in enumerate(sizes):
        frames = (MORE_FRAMES.get(name, FRAMES),) if "/video/" in name else ()
        shape = (1, channels, *frames, side, side)
        count = 2 if "/optical_flow/" in name else 1
        generator = torch.Generator().manual_seed(1)
        x = tuple(torch.randn(shape, dtype=dtype, generator=generator) for _ in range(count))
        try:
            with torch.no_grad():
                model(*x)
        except Exception:
            if index + 1 == len(sizes):
                raise
        else:
            return x
    raise AssertionError("there is always a size")
