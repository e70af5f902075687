"""What one step of a random network may be: functions from a draft and a value to a kind of step and its options.

Where nothing fits the value, the result is None. The first choice of each list is the simplest.
"""

from typing import Any

from torch import Tensor

from tests.support.random.modules import SCALES

Made = tuple[str, dict[str, Any]] | None

WRAPS = ("weight_norm", "spectral_norm", "parametrizations.weight_norm", "parametrizations.spectral_norm", "prune")
PADDING_MODES = ("reflect", "replicate", "circular")
SUMS = (
    *(("+", {}), ("+=", {}), ("torch.add", {}), (".add", {}), (".add_", {}), ("sum", {}), ("stack sum", {})),
    *(("torch.add", {"alpha": 0.5}), ("-", {}), ("*", {}), ("torch.mul", {}), ("torch.maximum", {})),
)
PLAIN_SUMS = (("+", {}), ("+=", {}), ("torch.add", {}), (".add", {}), (".add_", {}), ("sum", {}))


def each(draft: Any, spatial: int, *choices: int) -> Any:
    """Draw a number for all axes, or one for each of them."""
    if draft.maybe(60):
        return draft.one_of(*choices)
    return tuple(draft.one_of(*choices) for _ in range(spatial))


def linear(draft: Any, value: Tensor) -> Made:
    """Draw a linear layer of any kind."""
    channels, rank = value.shape[1], value.dim()
    out = draft.one_of(2, 3, 1, 4, 5, 6)
    if rank == 2 or (rank > 2 and not draft.plain and draft.maybe(8)):
        bias, width = draft.maybe(70), value.shape[-1]
        return "Linear", _wrap(draft, {"in_features": width, "out_features": out, "bias": bias})
    spatial = rank - 2
    transposed = draft.maybe(20)
    groups = draft.one_of(*(g for g in range(1, channels + 1) if channels % g == 0)) if draft.maybe(30) else 1
    chosen: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": groups * max(1, out // groups),
        "kernel_size": each(draft, spatial, 1, 2, 3),
    }
    if groups > 1:
        chosen["groups"] = groups
    if draft.maybe(30):
        chosen["bias"] = False
    if draft.maybe(25):
        chosen["dilation"] = each(draft, spatial, 1, 2)
    if draft.maybe(30):
        chosen["stride"] = each(draft, spatial, 1, 2)
    if transposed:
        if draft.maybe(50):
            chosen["padding"] = each(draft, spatial, 0, 1)
        if draft.maybe(30) and ("stride" in chosen or "dilation" in chosen):
            chosen["output_padding"] = each(draft, spatial, 0, 1)
        return f"ConvTranspose{spatial}d", _wrap(draft, chosen)
    if draft.maybe(65):
        chosen["padding"] = each(draft, spatial, 0, 1, 2) if draft.maybe(65) else draft.one_of("same", "valid")
        if chosen["padding"] == "same":
            chosen.pop("stride", None)
        if draft.maybe(40):
            chosen["padding_mode"] = draft.one_of(*PADDING_MODES)
    return f"Conv{spatial}d", _wrap(draft, chosen)


def same_shape(draft: Any, value: Tensor) -> Made:
    """Draw a linear layer that keeps the shape."""
    channels, spatial = value.shape[1], value.dim() - 2
    if spatial == 0:
        return "Linear", {"in_features": channels, "out_features": channels, "bias": draft.maybe(70)}
    kernel = draft.one_of(1, 3)
    chosen = {"kernel_size": kernel, "padding": kernel // 2 if draft.maybe(60) else "same", "bias": draft.maybe(60)}
    if draft.maybe(25):
        chosen["groups"] = channels
    return f"Conv{spatial}d", {"in_channels": channels, "out_channels": channels, **chosen}


def head(draft: Any, value: Tensor) -> Made:
    """Draw the last layer."""
    if value.dim() != 2:
        return None
    return "Linear", {"in_features": value.shape[1], "out_features": 5, "bias": draft.maybe(70)}


def _wrap(draft: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    return {**chosen, "wrap": draft.one_of(*WRAPS)} if not draft.plain and draft.maybe(12) else chosen


def norm(draft: Any, value: Tensor) -> Made:
    """Draw a BatchNorm in one of its forms."""
    rank = value.dim()
    dims = max(1, rank - 2)
    chosen: dict[str, Any] = {"num_features": value.shape[1]}
    kind = f"BatchNorm{dims}d"
    if not draft.plain and draft.maybe(20):
        others = ("SyncBatchNorm", "F.batch_norm", "read norm", *("FrozenBatchNorm2d",) * (rank == 4))
        kind = draft.one_of(*others)
        if kind == "read norm":
            chosen["dims"] = dims
    if kind != "FrozenBatchNorm2d" and draft.maybe(10):
        return kind, {**chosen, "affine": False}
    letters = SCALES if draft.maybe(50) else "+-"
    scales = [draft.one_of(*letters) for _ in range(min(3, value.shape[1]))]
    return kind, {**chosen, "scales": "".join(scales)}


ACTIVATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("ReLU", {}), ("F.relu", {}), (".relu", {}), ("torch.relu", {}), (".clamp", {"min": 0}), ("F.threshold", {})),
    *(("LeakyReLU", {}), ("LeakyReLU", {"negative_slope": 0.3}), ("F.leaky_relu", {"negative_slope": 0.2})),
    *(("PReLU", {}), ("F.prelu", {})),
    *(("ELU", {}), ("ELU", {"alpha": 0.5}), ("F.elu", {"alpha": 1.5}), ("SELU", {}), ("F.selu", {}), ("CELU", {})),
    *(("SiLU", {}), ("F.silu", {}), ("GELU", {}), ("GELU", {"approximate": "tanh"}), ("F.gelu", {})),
    *(("F.gelu", {"approximate": "tanh"}), ("ReLU6", {}), ("F.relu6", {}), ("Hardswish", {}), ("F.hardswish", {})),
    *(("Hardsigmoid", {}), ("F.hardsigmoid", {}), ("Hardtanh", {}), ("F.hardtanh", {"min_val": -0.5, "max_val": 0.7})),
    *(("Sigmoid", {}), (".sigmoid", {}), ("torch.sigmoid", {}), ("Tanh", {}), (".tanh", {}), ("torch.tanh", {})),
    *(
        ("Softplus", {}),
        ("Softplus", {"beta": 2.0, "threshold": 1.0}),
        ("F.softplus", {}),
        ("Mish", {}),
        ("F.mish", {}),
    ),
    *(("LogSigmoid", {}), ("Softsign", {}), ("Tanhshrink", {}), ("Softshrink", {}), ("Hardshrink", {})),
    *(("Softmax", {"dim": 1}), ("F.softmax", {"dim": 1})),
)
# Those that can overwrite, as modules and functions, and the functions and methods that do so by their name.
WITH_INPLACE = (
    "ReLU",
    "F.relu",
    "LeakyReLU",
    "F.leaky_relu",
    "ELU",
    "SiLU",
    "F.silu",
    "ReLU6",
    "Hardswish",
    "Hardtanh",
)
OVERWRITING = ("F.relu_", ".relu_", "torch.relu_", "F.leaky_relu_", "F.elu_", ".sigmoid_", ".tanh_")
PIECEWISE_LINEAR = ("ReLU", "F.relu", ".relu", "torch.relu", "LeakyReLU", "PReLU")
PLAIN_OVERWRITING = ("F.relu_", ".relu_", "torch.relu_")


def activation(draft: Any, value: Tensor) -> Made:
    """Draw an activation: half of them ReLUs."""
    allowed = [entry for entry in ACTIVATIONS if not draft.plain or entry[0] in PIECEWISE_LINEAR]
    relus = [entry for entry in allowed if "relu" in entry[0] and "_" not in entry[0]] + [("ReLU", {})]
    kind, chosen = draft.one_of(*(relus if draft.maybe(50) else allowed))
    if draft.maybe(15):
        return draft.one_of(*(PLAIN_OVERWRITING if draft.plain else OVERWRITING)), {}
    if kind in WITH_INPLACE and draft.maybe(30):
        return kind, {**chosen, "inplace": True}
    if kind == "F.threshold":
        return kind, {"threshold": 0.1, "value": 0.3}
    if kind == "PReLU":
        return kind, {"num_parameters": value.shape[1] if draft.maybe(50) else 1}
    if kind == "F.prelu":
        return kind, {"width": value.shape[1] if draft.maybe(50) else 1}
    return kind, chosen


def gate_end(draft: Any, value: Tensor) -> Made:
    """Draw what maps a gate to between 0 and 1."""
    return draft.one_of("Sigmoid", "torch.sigmoid", "Hardsigmoid", "F.hardsigmoid"), {}
