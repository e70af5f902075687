"""What a module is to rules, which go by base classes; what is named is tested by operation in ``tests/operations``."""

import abc

import pytest
import torch
from torch import Tensor, nn

from canon_bridge.core.operations import Kind
from canon_bridge.core.uncovered import kind_for_rules


class Abstract(nn.Module, abc.ABC):
    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Compute something."""


class Own(Abstract):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


class OwnConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class OwnAbstractConv(OwnConv, abc.ABC):
    @abc.abstractmethod
    def more(self) -> None:
        """Do more."""


class Concrete(OwnAbstractConv):
    def more(self) -> None:
        """Do nothing."""


class OwnSoftmax(nn.Softmax):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Conv2d(1, 1, 1), Kind.LINEAR_LAYER),
        (OwnConv(1, 1, 1), Kind.LINEAR_LAYER),
        (Concrete(1, 1, 1), Kind.LINEAR_LAYER),
        (Own(), None),
        (nn.Softmax(1), Kind.NORMALISER),
        (OwnSoftmax(1), None),  # no rule of either framework is for subclasses of it
        (nn.Sequential(), None),
    ],
)
def test_the_kind_is_that_of_the_type_or_of_the_class_that_it_is_made_from(
    module: nn.Module, kind: Kind | None
) -> None:
    assert kind_for_rules(module) is kind
