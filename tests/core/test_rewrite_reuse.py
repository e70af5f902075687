"""Layers that are called more than once, each call of which has a stand-in, and BatchNorms that feed BatchNorms."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.core.test_search_right import SIZES, wide, written
from tests.support.decisions import LINEAR, STAYS, Case, check
from tests.support.pieces import Written, conv, norm

EACH = {"norm": "right a", "norm_2": "right a_2"}
PRELU = lambda: nn.PReLU(4)  # noqa: E731


def double_branch(m: nn.Module, x: Tensor) -> Tensor:
    return m.trunk(x) - m.trunk(x * 2)


REUSED: dict[str, Case] = {
    "convolution and norm twice": Case(
        written(lambda m, x: m.norm(m.a(x)) + m.norm(m.a(x * 2)), a=conv),
        {"norm": "left a", "norm_2": "left a_2"},
        SIZES,
    ),
    "one convolution, two norms": Case(
        written(lambda m, x: m.norm(m.a(x)) + m.other(m.a(x * 2)), a=conv, other=norm),
        *({"norm": "left a", "other": "left a_2"}, SIZES),
    ),
    "one convolution, a norm behind one call only": Case(
        written(lambda m, x: m.norm(m.a(x)) + m.a(x * 2), a=conv), {"norm": "left a"}, SIZES
    ),
    "one norm, two convolutions": Case(
        written(lambda m, x: m.norm(m.a(x)) + m.norm(m.b(x * 2)), a=conv, b=conv),
        {"norm": "left a", "norm_2": "left b"},
        SIZES,
    ),
    "one norm, a convolution before one call only": Case(
        written(lambda m, x: m.norm(m.a(x)) + m.norm(x * 2), a=conv), {"norm": "left a", "norm_2": LINEAR}, SIZES
    ),
    "one norm, another convolution behind each call": Case(
        written(lambda m, x: m.a(m.norm(x)) + m.b(m.norm(x * 2)), a=conv, b=conv),
        {"norm": "right a", "norm_2": "right b"},
        SIZES,
    ),
    "one norm, one call goes to the output": Case(
        written(lambda m, x: m.a(m.norm(x)) + m.norm(x * 2), a=conv), {"norm": "right a", "norm_2": LINEAR}, SIZES
    ),
    "norm and convolution twice": Case(
        written(lambda m, x: m.a(m.norm(x)) + m.a(m.norm(x * 2)), a=conv),
        EACH,
        SIZES,
    ),
    "a convolution that takes something else, too": Case(
        written(lambda m, x: m.a(m.norm(x)) + m.a(x * 2), a=conv), {"norm": "right a"}, SIZES
    ),
    "a convolution behind two norms": Case(
        written(lambda m, x: m.a(m.norm(x)) + m.a(m.other(x * 2)), a=conv, other=norm),
        *({"norm": "right a", "other": "right a_2"}, SIZES),
    ),
    "a convolution in a loop": Case(written(lambda m, x: m.a(m.a(m.norm(x))), a=conv), {"norm": "right a"}, SIZES),
    "a convolution in a loop, before": Case(
        written(lambda m, x: m.norm(m.a(m.a(x))), a=conv), {"norm": "left a_2"}, SIZES
    ),
    "block in a loop": Case(
        written(lambda m, x: m.norm(m.a(m.norm(m.a(x)))), a=conv),
        {"norm": ("left a", "right a_2"), "norm_2": "left a_2"},
        SIZES,
    ),
    "a siamese trunk": Case(
        lambda: Written(double_branch, trunk=nn.Sequential(conv(), norm(), nn.ReLU(), norm(), nn.GELU(), conv())),
        {
            **{"trunk.1": "left trunk.0", "trunk.3": "right trunk.5"},
            **{"trunk_2.1": "left trunk_2.0", "trunk_2.3": "right trunk_2.5"},
        },
        SIZES,
    ),
    "an activation with parameters behind one norm": Case(
        written(lambda m, x: m.a(m.act(m.norm(x))) + m.a(m.act(m.norm(x * 2))), a=conv, act=PRELU),
        *(EACH, SIZES),
    ),
    "an activation with parameters behind two norms": Case(
        written(lambda m, x: m.a(m.act(m.norm(x))) + m.b(m.act(m.other(x))), a=conv, b=conv, act=PRELU, other=norm),
        *({"norm": "right a", "other": "right b"}, SIZES),
    ),
    "an activation with parameters that is called elsewhere": Case(
        written(lambda m, x: m.a(m.act(m.norm(x))) + m.act(x), a=conv, act=PRELU), {"norm": "right a"}, SIZES
    ),
    "an activation without parameters behind two norms": Case(
        written(lambda m, x: m.a(m.act(m.norm(x))) + m.b(m.act(m.other(x))), a=conv, b=conv, act=nn.SiLU, other=norm),
        *({"norm": "right a", "other": "right b"}, SIZES),
    ),
    "a max pool without parameters behind two norms": Case(
        written(
            lambda m, x: m.a(m.pool(m.norm(x))) + m.b(m.pool(m.other(x))) + m.pool(x)[:, :3],
            **{"a": wide(4), "b": wide(4), "pool": lambda: nn.MaxPool2d(3, 1, 1), "other": norm},
        ),
        *({"norm": "right a", "other": "right b"}, SIZES),
    ),
    "a norm of vectors and of rows": Case(
        lambda: Written(
            lambda m, x: m.fc(m.norm(m.a(x.mean(2)))) + m.fc(m.norm(m.b(x))).mean(1),
            **{"a": nn.Linear(4, 4), "b": nn.Conv1d(4, 4, 1), "norm": nn.BatchNorm1d(4), "fc": nn.Linear(4, 3)},
        ),
        *({"norm": ("left a", "right fc"), "norm_2": "left b"}, ((2, 4, 4),)),
    ),
    "images of one size and of any": Case(
        written(lambda m, x: m.a(m.norm(x)) + m.a(m.norm(x).mean((2, 3), True)), a=conv),
        EACH,
        SIZES,
    ),
    "an activation without parameters at two places, in front of one convolution": Case(
        written(lambda m, x: m.a(F.relu(m.norm(x))) + m.a(F.relu(m.norm(x * 2))), a=conv),
        *(EACH, SIZES),
    ),
    "a norm of itself": Case(
        written(lambda m, x: m.a(m.norm(m.norm(x))), a=conv), {"norm": "right norm_2", "norm_2": "right a"}, SIZES
    ),
    "a norm around another": Case(
        written(lambda m, x: m.a(m.norm(m.other(m.norm(x)))), a=conv, other=norm),
        *({"norm": "right other", "other": "right norm_2", "norm_2": "right a"}, SIZES),
    ),
    "a Linear on vectors and on images": Case(
        written(
            lambda m, x: m.a(m.norm(x).permute(0, 2, 3, 1)).mean((1, 2)) + m.a(m.norm(x).mean((2, 3))),
            a=lambda: nn.Linear(4, 3),
        ),
        *(EACH, SIZES),
    ),
}


@pytest.mark.parametrize("name", REUSED)
def test_a_layer_that_is_called_again(name: str) -> None:
    check(REUSED[name])


def plain() -> nn.Module:
    return nn.BatchNorm2d(4, affine=False)


def sequence(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer() for layer in layers))


CHAINED: dict[str, Case] = {
    "two, then a convolution": Case(sequence(norm, norm, conv), {"0": "right 1", "1": "right 2"}, SIZES),
    "a convolution, then two": Case(sequence(conv, norm, norm), {"1": "left 0", "2": "left 0"}, SIZES),
    "without affine first": Case(sequence(plain, norm, conv), {"0": "right 1", "1": "right 2"}, SIZES),
    "without affine second": Case(sequence(norm, plain, conv), {"0": "right 1", "1": "right 2"}, SIZES),
    "a convolution, then two without affine": Case(sequence(conv, plain, plain), {"1": "left 0", "2": "left 0"}, SIZES),
    "nothing else": Case(sequence(norm, plain), {"0": "right 1", "1": LINEAR}, SIZES),
    "nothing else, kept": Case(sequence(norm, plain), {"0": "right 1", "1": STAYS}, SIZES, {"leftover": "keep"}),
    "through an activation": Case(
        sequence(norm, nn.GELU, plain, nn.Tanh, conv), {"0": "right 2", "2": "right 4"}, SIZES
    ),
    "through a flatten, into several features a channel": Case(
        sequence(norm, nn.Flatten, lambda: nn.BatchNorm1d(144), nn.ReLU), {"0": "right 2", "2": LINEAR}
    ),
    "three": Case(sequence(norm, norm, norm, nn.SiLU, conv), {"0": "right 1", "1": "right 2", "2": "right 4"}, SIZES),
    "of another layout": Case(
        lambda: nn.Sequential(norm(), nn.Flatten(2), nn.BatchNorm1d(4), nn.Conv1d(4, 3, 1)),
        *({"0": "right 2", "2": "right 3"}, SIZES),
    ),
}


@pytest.mark.parametrize("name", CHAINED)
def test_a_norm_that_feeds_a_norm(name: str) -> None:
    check(CHAINED[name])


class Identical(nn.Module):
    """A norm, a convolution and a norm that is the exact identity in evaluation mode, called in a given order."""

    def __init__(self, order: tuple[str, ...], by_name: bool) -> None:
        super().__init__()
        self.norm, self.ready, self.conv, self.order, self.by_name = norm(), norm(), conv(), order, by_name

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.ready(input=x) if name == "ready" and self.by_name else getattr(self, name)(x)
        return x

    def eval(self) -> "Identical":
        ready = self.ready
        ready.eps = 0
        with torch.no_grad():
            for tensor, value in ((ready.running_var, 1), (ready.running_mean, 0), (ready.weight, 1), (ready.bias, 0)):
                tensor.fill_(value)
        return super().eval()


IDENTITIES = {
    ("norm", "ready", "conv"): "right conv",
    ("ready", "norm", "conv"): "right conv",
    ("norm", "conv", "ready"): "right conv",
    ("conv", "ready", "norm"): "left conv",
    ("conv", "norm", "ready"): "left conv",
    ("ready", "norm"): LINEAR,
}


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("order", IDENTITIES, ids=" ".join)
def test_the_exact_identity_is_passed_and_stays(order: tuple[str, ...], by_name: bool) -> None:
    check(
        Case(
            lambda: Identical(order, by_name),
            {name: {"norm": IDENTITIES[order], "ready": STAYS}[name] for name in order if name != "conv"},
            SIZES,
        )
    )


class Rectified(nn.Module):
    """A container with a flag that a module in place has, too; its function is made a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inplace = True

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=self.inplace)


def test_a_container_that_works_in_place_and_is_called_twice() -> None:
    network = written(lambda m, x: m.act(m.norm(m.act(m.a(x)))), a=conv, act=Rectified)
    check(Case(network, {"norm": LINEAR}, SIZES))
