"""What a random network contains, by name; and all that there must be among thousands of them."""

from tests.support.random import options as random_options
from tests.support.random.modules import SCALES, SPECIAL
from tests.support.random.steps import Network, Step

_FLAGS = (
    *("groups", "dilation", "stride", "output_padding", "padding", "inplace", "align_corners", "args", "alpha"),
    *("ceil_mode", "keepdim", "divisor_override", "scale_factor", "size"),
)
_VALUES = ("wrap", "padding_mode", "mode", "how", "bias", "affine", "count_include_pad", "approximate", "dim")


def ingredients(network: Network) -> set[str]:
    """Return the names of all that occurs in a network and its blocks."""
    steps = network.all_steps()
    found = {name for step in steps for name in _of_step(step)}
    found |= {f"rank {len(network.shape) - 1}"}
    if len(network.outputs) > 1:
        found.add("two outputs")
    named = [step for step in steps if step.name]
    for index, step in enumerate(named):
        if any(step.name == other.name and step.kind == other.kind for other in named[:index]):
            found.add(f"again: {step.kind}")
            if "MaxPool" in step.kind:  # each of them is rare
                found.add("again: a max pooling")
    return found | _neighbours(network.steps, network.arity)


def _of_step(step: Step) -> set[str]:
    found = {step.kind}
    found |= {flag for flag in _FLAGS if step.options.get(flag) is not None}
    found |= {f"{key}={step.options[key]}" for key in _VALUES if key in step.options}
    found |= {f"scale {letter}" for letter in step.options.get("scales", "")}
    if isinstance(step.options.get("padding"), str):
        found.add(f"padding={step.options['padding']}")
    if len(step.inputs) != len(set(step.inputs)):
        found.add(f"{step.kind} of the same value")
    if step.kind == "block":
        inner = step.options["network"]
        found.add("nn.Sequential" if inner.sequential else f"block of {inner.arity} with {len(inner.outputs)} outputs")
        if any(nested.kind == "block" for nested in inner.steps):
            found.add("block in a block")
    return found


def _neighbours(steps: list[Step], arity: int) -> set[str]:
    """Return what stands before and behind the BatchNorms."""
    found: set[str] = set()
    makers: list[str] = ["input"] * arity
    for step in steps:
        is_norm, before = "norm" in step.kind.lower(), [makers[index] for index in step.inputs]
        if is_norm:
            found |= {f"{_group(kind)} > norm" for kind in before}
        found |= {f"norm > {_group(step.kind)}" for kind in before if "norm" in kind.lower()}
        makers += [step.kind] * step.count
    return found


def _group(kind: str) -> str:
    groups = {
        "norm": "norm", "conv": "layer", "linear": "layer", "max": "max", "avg": "average", "mean": "average",
        "cat": "cat", "concat": "cat", "add": "sum", "sum": "sum", "+": "sum", "block": "block", "input": "input",
        "flatten": "flatten", "view": "flatten", "interpolate": "resize", "upsample": "resize", "parts": "parts",
    }  # fmt: skip
    lower = kind.lower()
    names = [group for name, group in groups.items() if name in lower]
    is_activation = any(kind == name for name, _ in random_options.ACTIVATIONS)
    return names[0] if names else "activation" if is_activation else "other"


_LAYERS = ("Conv{}d", "ConvTranspose{}d", "BatchNorm{}d", "AvgPool{}d", "MaxPool{}d", "AdaptiveAvgPool{}d")
_LAYERS += ("AdaptiveMaxPool{}d", "F.avg_pool{}d", "F.max_pool{}d", "F.adaptive_avg_pool{}d", "F.adaptive_max_pool{}d")
EVERY_INGREDIENT = frozenset(
    {
        *(kind.format(spatial) for kind in _LAYERS for spatial in (1, 2, 3)),
        *("Linear", "SyncBatchNorm", "FrozenBatchNorm2d", "Upsample", "F.interpolate", "F.pad", ".mean", "torch.mean"),
        *("Flatten", "torch.flatten", ".flatten", "Identity", "Dropout", ".contiguous", ".transpose", ".permute"),
        *(".squeeze", ".unsqueeze", ".narrow", ".amax", "torch.avg_pool1d", "torch.max_pool1d", "block", ".mul"),
        *(kind for kind, _ in (*random_options.ACTIVATIONS, *random_options.SUMS)),
        *random_options.OVERWRITING,
        *SPECIAL,
        *(f"wrap={wrap}" for wrap in random_options.WRAPS),
        *(f"padding_mode={mode}" for mode in random_options.PADDING_MODES),
        *(f"scale {letter}" for letter in SCALES),
        *(flag for flag in _FLAGS),
        *("padding=same", "padding=valid", "bias=False", "affine=False", "count_include_pad=False", "dim=1", "dim=-3"),
        *("mode=nearest", "mode=bilinear", "mode=linear", "mode=trilinear", "approximate=tanh"),
        *("how=chunk", "how=split", "how=torch.chunk", "how=torch.split"),
        *("rank 1", "rank 2", "rank 3", "two outputs", "+ of the same value", "torch.cat of the same value"),
        *("nn.Sequential", "block in a block", "block of 1 with 1 outputs", "block of 2 with 1 outputs"),
        *("block of 1 with 2 outputs", "again: block", "again: Conv2d", "again: BatchNorm2d", "again: ReLU"),
        *("again: a max pooling", "again: Linear"),
        *(f"{before} > norm" for before in ("layer", "norm", "activation", "max", "average", "cat", "sum", "input")),
        *("block > norm", "parts > norm", "flatten > norm", "resize > norm"),
        *(f"norm > {behind}" for behind in ("layer", "norm", "activation", "max", "average", "cat", "sum", "block")),
        *("norm > parts", "norm > flatten", "norm > resize"),
    }
)
