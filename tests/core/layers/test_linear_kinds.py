"""What counts as a linear layer, and which ones cannot take in a map."""

import copy

import pytest
import torch
from torch import Tensor, nn

from canon_bridge.core.layers.linear import (
    LINEAR,
    fold_before,
    in_channels,
    is_linear,
    linear_type,
    out_channels,
    why_not_foldable,
)
from canon_bridge.core.restore import Edits
from tests.core.layers.test_linear import IN, LINEAR_TYPES, OUT, make, norms, read


@LINEAR_TYPES
def test_what_is_linear(kind: type[nn.Module]) -> None:
    layer = make(kind)
    assert is_linear(layer)
    assert linear_type(layer) is LINEAR[kind]
    assert (in_channels(layer), out_channels(layer)) == (IN, OUT)
    fold_before(Edits(), layer, read(norms(kind)[0]))
    assert is_linear(layer), "a folded layer can take in another map"
    assert is_linear(copy.deepcopy(layer))
    shallow = copy.copy(layer)
    assert is_linear(shallow) is ("forward" not in vars(layer)), "it computes with the slots of the other layer"
    layer.forward = lambda x: x
    assert not is_linear(layer)


@LINEAR_TYPES
@pytest.mark.parametrize("name", ["forward", "_conv_forward", "_call_impl", "_output_padding"])
def test_a_method_on_the_instance_is_not_known(kind: type[nn.Module], name: str) -> None:
    layer = make(kind)
    setattr(layer, name, lambda *arguments: arguments[0])
    assert not is_linear(layer)


def subclass(kind: type[nn.Module], **members: object) -> nn.Module:
    return type("Sub", (kind,), members)(*(IN, OUT, 3)[: 2 + bool(LINEAR[kind].spatial)])


@LINEAR_TYPES
def test_only_a_subclass_that_overrides_nothing_is_linear(kind: type[nn.Module]) -> None:
    assert is_linear(subclass(kind))
    assert linear_type(subclass(kind)) is LINEAR[kind]
    for name in ("forward", "_conv_forward", "__call__", "__getattr__"):
        if hasattr(kind, name):
            other = subclass(kind, **{name: getattr(kind, name)})
            assert not is_linear(other)
            with pytest.raises(KeyError, match="Sub is no linear layer of known meaning"):
                linear_type(other)


def test_what_torch_derives_is_linear_only_where_it_computes_the_same() -> None:
    from torch.ao.nn import intrinsic, qat
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

    assert is_linear(NonDynamicallyQuantizableLinear(2, 2))
    config = torch.ao.quantization.get_default_qat_qconfig()
    others = [
        qat.Linear(2, 2, qconfig=config),
        qat.Conv2d(2, 2, 1, qconfig=config),
        intrinsic.qat.ConvBn2d(2, 2, 1, qconfig=config),
        nn.LazyLinear(2),
        nn.LazyConv2d(2, 1),
        nn.Bilinear(2, 2, 2),
    ]
    assert not any(is_linear(layer) for layer in others)


@LINEAR_TYPES
def test_an_unknown_way_to_compute_a_tensor_is_refused(kind: type[nn.Module]) -> None:
    assert why_not_foldable(make(kind)) is None
    for name in ("weight", "bias"):
        attribute, buffer, hidden = make(kind), make(kind), make(kind)
        for layer in (attribute, buffer):
            value = getattr(layer, name).detach()
            delattr(layer, name)
            setattr(layer, name, value) if layer is attribute else layer.register_buffer(name, value)
        vars(hidden)[name] = getattr(hidden, name).detach()
        for layer in (attribute, buffer, hidden):
            assert f"its {name} is neither a Parameter nor computed" in str(why_not_foldable(layer))


class Borrowing(nn.Linear):
    """Has the bias of another layer, once it knows that layer."""

    @property
    def bias(self) -> Tensor:
        return vars(self)["lender"].bias if "lender" in vars(self) else self._parameters["bias"]


def test_a_tensor_that_a_class_computes_is_refused() -> None:
    layer = object.__new__(Borrowing)
    vars(layer).update(vars(nn.Linear(2, 2)), lender=nn.Linear(2, 2))
    assert layer(torch.zeros(1, 2)).equal(layer.lender.bias[None])
    assert not is_linear(layer) or "its bias" in str(why_not_foldable(layer))


@LINEAR_TYPES
def test_a_weight_of_another_shape_is_refused(kind: type[nn.Module]) -> None:
    layer = make(kind)
    layer.weight = nn.Parameter(layer.weight.detach()[:-1])
    assert "has not the shape" in str(why_not_foldable(layer))
    layer.weight = None
    assert "has not the shape" in str(why_not_foldable(layer))
