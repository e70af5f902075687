"""BatchNorms merged to the left: the layers that put out what they normalize, and what lies in between, end to end."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.core.test_search_right import SIZES, fc, wide, written
from tests.support.decisions import LINEAR, Case, check
from tests.support.pieces import Written, conv, image, norm

ALWAYS = {"norm": "left a"}


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def norm1() -> nn.Module:
    return nn.BatchNorm1d(4)


STRAIGHT: dict[str, Case] = {
    "convolution": Case(lambda: sequence(conv(), norm()), {"1": "left 0"}, SIZES),
    "without a bias": Case(lambda: sequence(conv(bias=False), norm()), {"1": "left 0"}, SIZES),
    "in groups": Case(lambda: sequence(conv(4, 6, groups=2), norm(6)), {"1": "left 0"}, SIZES),
    "transposed, in groups": Case(
        lambda: sequence(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), norm(6)), {"1": "left 0"}, SIZES
    ),
    "Linear": Case(lambda: sequence(nn.Linear(4, 5), nn.BatchNorm1d(5)), {"1": "left 0"}, ((3, 4), (1, 4))),
    "no shift and no scale": Case(lambda: sequence(conv(), nn.BatchNorm2d(4, affine=False)), {"1": "left 0"}, SIZES),
    "one dimension": Case(
        lambda: sequence(nn.Conv1d(4, 4, 3), norm1(), nn.Tanh()), {"1": "left 0"}, ((2, 4, 6), (1, 4, 3))
    ),
    "three dimensions": Case(
        lambda: sequence(nn.Conv3d(4, 4, 2), nn.BatchNorm3d(4), nn.Tanh()), {"1": "left 0"}, ((1, 4, 2, 3, 4),)
    ),
    "SyncBatchNorm": Case(lambda: sequence(conv(), nn.SyncBatchNorm(4), nn.Tanh()), {"1": "left 0"}, SIZES),
    "SyncBatchNorm of vectors": Case(
        lambda: sequence(nn.Linear(4, 4), nn.SyncBatchNorm(4), nn.Tanh()), {"1": "left 0"}, ((3, 4), (1, 4))
    ),
}
THROUGH: dict[str, Case] = {
    "pool, dropout, identity": Case(
        lambda: sequence(conv(), nn.AvgPool2d(2, 1), nn.Dropout2d(), nn.Identity(), norm()),
        *({"4": "left 0"}, ((2, 4, 6, 6), (1, 4, 2, 5))),
    ),
    "a pool that does not count its padding": Case(
        lambda: sequence(conv(), nn.AvgPool2d(3, 2, 1, count_include_pad=False), norm()), {"2": "left 0"}, SIZES
    ),
    "a pool that counts its padding": Case(
        lambda: sequence(conv(), nn.AvgPool2d(3, 2, 1), norm()), {"2": LINEAR}, SIZES
    ),
    "a pool that divides by another number": Case(
        written(lambda m, x: m.norm(F.avg_pool2d(m.a(x), 2, divisor_override=3)), a=conv), {"norm": LINEAR}
    ),
    "interpolation": Case(
        lambda: sequence(conv(), nn.Upsample(scale_factor=2, mode="bicubic"), norm()), {"2": "left 0"}, SIZES
    ),
    "padding that copies": Case(
        lambda: sequence(conv(), nn.ReflectionPad2d(1), norm()), {"2": "left 0"}, ((2, 4, 6, 6), (1, 4, 2, 5))
    ),
    "global pool and flatten": Case(
        lambda: sequence(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm1()), {"3": "left 0"}, SIZES
    ),
    "mean": Case(written(lambda m, x: m.norm(m.a(x).mean((-2, 3))), a=conv, norm=norm1), ALWAYS, SIZES),
    "mean that keeps the dimensions": Case(
        written(lambda m, x: m.norm(torch.mean(m.a(x), (2, 3), keepdim=True)), a=conv), ALWAYS, SIZES
    ),
    "flatten of the image": Case(written(lambda m, x: m.norm(m.a(x).flatten(2, 3)), a=conv, norm=norm1), ALWAYS, SIZES),
    "permute": Case(
        written(lambda m, x: m.norm(m.a(x).permute(0, 3, 1, 2)), a=lambda: nn.Linear(6, 4)),
        *(ALWAYS, ((2, 5, 3, 6), (1, 1, 1, 6))),
    ),
    "transpose": Case(
        written(lambda m, x: m.norm(m.a(x).transpose(-1, 1)), a=lambda: nn.Linear(6, 4), norm=norm1),
        *(ALWAYS, ((2, 5, 6), (1, 1, 6))),
    ),
    "slices and unsqueeze": Case(
        written(lambda m, x: m.norm(m.a(x)[:, :].unsqueeze(2).unsqueeze(-1)), a=lambda: nn.Linear(6, 4)),
        *(ALWAYS, ((2, 6), (1, 6))),
    ),
    "two unsqueezes": Case(
        written(lambda m, x: m.norm(m.a(x).unsqueeze(2).unsqueeze(dim=-1)), a=lambda: nn.Linear(6, 4)),
        *(ALWAYS, ((2, 6), (1, 6))),
    ),
    "contiguous": Case(written(lambda m, x: m.norm(m.a(x).contiguous().clone()), a=conv), ALWAYS, SIZES),
    "an activation": Case(written(lambda m, x: m.norm(F.relu(m.a(x))), a=conv), {"norm": LINEAR}, SIZES),
    "a max pool": Case(lambda: sequence(conv(), nn.MaxPool2d(2), norm()), {"2": LINEAR}),
    "a new dimension for the channels": Case(
        written(lambda m, x: m.norm(m.a(x).unsqueeze(1)), a=lambda: nn.Linear(4, 4), norm=lambda: nn.BatchNorm1d(1)),
        *({"norm": LINEAR}, ((3, 4),)),
    ),
}


@pytest.mark.parametrize("name", STRAIGHT)
def test_into_the_layer_before(name: str) -> None:
    check(STRAIGHT[name])


@pytest.mark.parametrize("name", THROUGH)
def test_through_what_lies_in_between(name: str) -> None:
    check(THROUGH[name])


def residual(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.norm(torch.cat([y, m.b(x)], 1)) + torch.cat([y, y], 1)[:, :1]


def same_layer(m: nn.Module, x: Tensor) -> Tensor:
    return m.norm(torch.cat([m.a(x), m.a(x * 2)], 1))


def wider() -> nn.Module:
    return norm(8)


JOINED: dict[str, Case] = {
    "two branches": Case(
        written(lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 1)), a=conv, b=conv, norm=wider),
        *({"norm": "left a, b"}, SIZES),
    ),
    "three, by name, through a pool": Case(
        written(
            lambda m, x: m.norm(torch.cat(tensors=(m.a(x), m.pool(m.b(x)), m.c(x)), dim=-3)),
            **{"norm": wider, "a": conv, "b": wide(4), "c": lambda: conv(4, 1)},
            pool=lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        ),
        *({"norm": "left a, b, c"}, SIZES),
    ),
    "nested, through a pool behind it": Case(
        written(
            lambda m, x: m.norm(F.avg_pool2d(torch.cat([torch.cat([m.a(x), m.b(x)], 1), m.c(x)], 1), 2)),
            **{"norm": lambda: norm(9), "a": conv, "b": wide(4), "c": lambda: conv(4, 2)},
        ),
        {"norm": "left a, b, c"},
    ),
    "of vectors": Case(
        written(lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], -1)), a=fc(), b=fc(), norm=lambda: nn.BatchNorm1d(6)),
        *({"norm": "left a, b"}, ((3, 4), (1, 4))),
    ),
    "a branch that another reads": Case(written(residual, a=conv, b=conv, norm=wider), {"norm": LINEAR}, SIZES),
    "a branch that is no layer": Case(
        written(lambda m, x: m.norm(torch.cat([m.a(x), x], 1)), a=conv, norm=wider), {"norm": LINEAR}, SIZES
    ),
    "a branch behind an activation": Case(
        written(lambda m, x: m.norm(torch.cat([m.a(x), F.relu(m.b(x))], 1)), a=conv, b=conv, norm=wider),
        *({"norm": LINEAR}, SIZES),
    ),
    "a branch twice": Case(
        written(lambda m, x: (y := m.a(x), m.norm(torch.cat([y, y], 1)))[1], a=conv, norm=wider),
        *({"norm": LINEAR}, SIZES),
    ),
    "one layer for both": Case(written(same_layer, a=conv, norm=wider), {"norm": "left a, a_2"}, SIZES),
    "along the image": Case(
        written(lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 3)), a=conv, b=conv), {"norm": LINEAR}, SIZES
    ),
    "along the batch": Case(
        written(lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)])), a=conv, b=conv), {"norm": LINEAR}, SIZES
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_through_a_concatenation_where_every_branch_is_private(name: str) -> None:
    check(JOINED[name])


def test_a_preference_decides_where_both_directions_are_open() -> None:
    build = lambda: Written(  # noqa: E731
        lambda m, x: m.b(F.gelu(m.norm(m.a(x)))), a=conv(), norm=norm(), b=conv()
    )
    check(Case(build, {"norm": ("left a", "right b")}, SIZES))


def test_what_is_overwritten_behind_the_norm_is_no_private_branch() -> None:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        y = m.a(x)
        z = m.norm(y)
        return z + y.mul_(2)

    check(Case(written(function, a=conv), {"norm": LINEAR}, (tuple(image().shape),)))
