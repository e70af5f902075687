"""The ``nn.Module`` that a description of a random network stands for; see ``random_steps``."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torchvision.ops import FrozenBatchNorm2d

from tests.support.random.steps import Network, Step

EPS = 0.1
LARGEST = 512  # numbers for each example in one value
# What one letter of ``scales`` makes of a BatchNorm's weight; the letters are repeated over the channels.
SCALES = {"+": 1.0, "-": -1.0, "0": 0.0, "t": 1e-20, "e": 1e-13, "E": -1e-13, "s": 1e-4, "S": -1e-4}


def build(network: Network) -> nn.Module:
    """Return the network that is described, in float64 and evaluation mode; the same at every call."""
    torch.manual_seed(network.seed)
    return make_container(network).eval()


class Container(nn.Module):
    """Runs its steps one after the other."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        for step in network.steps:
            register(self, step)

    def run(self, *inputs: Any) -> Any:
        values = list(inputs)
        for step in self.network.steps:
            values.extend(call(self, step, *(values[index] for index in step.inputs)))
        outputs = tuple(values[index] for index in self.network.outputs)
        return outputs if len(outputs) > 1 else outputs[0]


class OneInput(Container):
    def forward(self, x):
        return self.run(x)


class TwoInputs(Container):
    def forward(self, x, y):
        return self.run(x, y)


def make_container(network: Network) -> nn.Module:
    if not network.sequential:
        return (OneInput if network.arity == 1 else TwoInputs)(network)
    children: dict[str, nn.Module] = {}
    for step in network.steps:
        if step.name not in children:
            children[step.name] = make(step)
    return nn.Sequential(*(children[step.name] for step in network.steps))


def register(owner: nn.Module, step: Step) -> None:
    """Give the owner what the step calls or reads, unless an earlier step of the same name did."""
    if step.name in owner._modules or f"{step.name}_mean" in owner._buffers:
        return
    if step.is_call:
        owner.add_module(step.name, make(step))
    elif step.kind == "read norm":
        owner.add_module(step.name, make(Step(f"BatchNorm{step.options['dims']}d", **step.options)))
    elif step.kind == "F.batch_norm":
        norm = make(Step("BatchNorm1d", **step.options))
        owner.register_buffer(f"{step.name}_mean", norm.running_mean)
        owner.register_buffer(f"{step.name}_var", norm.running_var)
        owner.register_parameter(f"{step.name}_weight", norm.weight)
        owner.register_parameter(f"{step.name}_bias", norm.bias)
    elif step.kind == "F.prelu":
        owner.register_parameter(f"{step.name}_slope", nn.Parameter(torch.rand(step.options["width"]).double()))


def make(step: Step) -> nn.Module:
    """Return the module that a step calls, with random parameters, in float64 and evaluation mode."""
    if step.kind == "block":
        return make_container(step.options["network"])
    options = {key: value for key, value in step.options.items() if key not in ("wrap", "scales", "dims")}
    if "BatchNorm" in step.kind:
        return _norm(step.kind, step.options.get("scales", "+"), options)
    module = getattr(nn, step.kind)(**options).double().eval()
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            # Outputs of about the size of the inputs, so that deep networks still depend on them.
            tensor.normal_(0, 0.3 if name == "bias" or tensor.dim() < 2 else 1.3 / max(1, tensor[0].numel()) ** 0.5)
    return _wrapped(module, step.options.get("wrap", "")).eval()


def _norm(kind: str, scales: str, options: dict[str, Any]) -> nn.Module:
    norm = (FrozenBatchNorm2d if kind == "FrozenBatchNorm2d" else getattr(nn, kind))(**options).double().eval()
    width = options["num_features"]
    norm.eps = EPS
    with torch.no_grad():
        norm.running_mean.normal_(0, 0.5)
        norm.running_var.uniform_(0.5, 1.5)
        if norm.weight is not None:
            factors = torch.tensor([SCALES[scales[index % len(scales)]] for index in range(width)], dtype=torch.float64)
            norm.weight.copy_(factors * (torch.rand(width) * 0.5 + 0.75))
            norm.bias.normal_(0, 0.3)
    return norm


def _wrapped(module: nn.Module, wrap: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*weight_norm.*is deprecated")
        if wrap == "weight_norm":
            weight_norm(module)
        elif wrap == "spectral_norm":
            spectral_norm(module)
        elif wrap == "parametrizations.weight_norm":
            parametrizations.weight_norm(module)
        elif wrap == "parametrizations.spectral_norm":
            parametrizations.spectral_norm(module)
        elif wrap == "prune":
            prune.l1_unstructured(module, "weight", 0.3)
    return module


def call(owner: nn.Module, step: Step, *values: Any) -> tuple[Any, ...]:
    """Carry out a step; works on proxies as on tensors."""
    if step.kind in SPECIAL:
        result = SPECIAL[step.kind](owner, step, *values)
    elif step.is_call:
        result = getattr(owner, step.name)(*values)
        if step.kind == "block":
            count = len(step.options["network"].outputs)
            return tuple(result[index] for index in range(count)) if count > 1 else (result,)
    else:
        options = dict(step.options)
        args = (*values, *options.pop("args", ()))
        where, _, name = step.kind.partition(".")
        if where:
            result = getattr({"F": F, "torch": torch}[where], name)(*args, **options)
        else:
            result = getattr(args[0], name)(*args[1:], **options)
    return result if isinstance(result, tuple) else (result,)


def _add_in_place(owner, step, a, b):
    a += b
    return a


def _batch_norm(owner, step, x):
    tensors = (getattr(owner, f"{step.name}_{part}") for part in ("mean", "var", "weight", "bias"))
    return F.batch_norm(x, *tensors, training=False, eps=EPS)


def _read_norm(owner, step, x):
    norm = getattr(owner, step.name)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


def _gate(owner, step, x):
    weight = torch.sigmoid(x.mean(tuple(range(2, step.options["rank"])), keepdim=True))
    return x * weight


def _parts(owner, step, x):
    how, size, count = step.options["how"], step.options["size"], step.options["count"]
    parts = {
        "chunk": lambda: x.chunk(count, 1),
        "torch.chunk": lambda: torch.chunk(x, count, dim=1),
        "split": lambda: x.split(size, dim=1),
        "torch.split": lambda: torch.split(x, size, 1),
    }[how]()
    return tuple(parts[index] for index in range(count))


def _shuffle(owner, step, x):
    groups = step.options["groups"]
    rest = tuple(x.shape[index] for index in range(2, step.options["rank"]))
    mixed = x.view(x.size(0), groups, x.size(1) // groups, *rest).transpose(1, 2).contiguous()
    return mixed.view(x.size(0), -1, *rest)


SPECIAL = {
    "+": lambda owner, step, a, b: a + b,
    "+=": _add_in_place,
    "-": lambda owner, step, a, b: a - b,
    "*": lambda owner, step, a, b: a * b,
    "+ number": lambda owner, step, x: x + step.options["number"],
    "* number": lambda owner, step, x: x * step.options["number"],
    "sum": lambda owner, step, *values: sum(values),
    "stack sum": lambda owner, step, *values: torch.stack(values).sum(0),
    "torch.cat": lambda owner, step, *values: torch.cat(values, **step.options),
    "torch.concat": lambda owner, step, *values: torch.concat(list(values), **step.options),
    "view": lambda owner, step, x: x.view(x.size(0), -1),
    "reshape": lambda owner, step, x: x.reshape(x.shape[0], -1),
    "gate": _gate,
    "parts": _parts,
    "slice": lambda owner, step, x: x[:, step.options["start"] : step.options["stop"]],
    "shuffle": _shuffle,
    "resize like": lambda owner, step, x, y: F.interpolate(x, size=y.shape[2:]),
    "F.dropout": lambda owner, step, x: F.dropout(x, 0.5, owner.training),
    "F.prelu": lambda owner, step, x: F.prelu(x, getattr(owner, f"{step.name}_slope")),
    "F.batch_norm": _batch_norm,
    "read norm": _read_norm,
}


def tensors_of(outputs: Any) -> tuple[Tensor, ...]:
    """Return the outputs of a network as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def is_fine(value: Tensor) -> bool:
    # Values that are too large cost time, and where they are infinite nothing can be compared.
    return value.dim() >= 2 and value[0].numel() <= LARGEST and bool((value.abs() < 1e4).all())
