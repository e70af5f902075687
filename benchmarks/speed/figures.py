"""What is measured: the rows of the table, what each should come to, and one figure in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Any, Self

# Row, then section and title. The unit is the model's own forward unless the figure says otherwise.
ROWS: dict[str, tuple[str, str]] = {
    "own_forward": ("Entering and leaving the block", "the model's own forward (the unit)"),
    "first": ("Entering and leaving the block", "first entry + exit of `canonize(model)`"),
    "plan": ("Entering and leaving the block", "... of which the plan"),
    "apply": ("Entering and leaving the block", "... of which apply"),
    "undo": ("Entering and leaving the block", "... of which undo"),
    "again": ("Entering and leaving the block", "entry + exit with the same plan"),
    "forward": ("Forward passes", "forward inside the block"),
    "copy": ("Forward passes", "forward of `canonized_copy(model)`"),
    "fuse": ("Forward passes", "forward after `torch.fx.experimental.optimization.fuse`"),
    "plain_open": ("zennit, EpsilonPlus", "un-canonized, in an open context"),
    "plain_more": ("zennit, EpsilonPlus", "un-canonized, context entered each time: what that adds"),
    "own_open": ("zennit, EpsilonPlus", "zennit's own canonizer, in an open context"),
    "own_more": ("zennit, EpsilonPlus", "zennit's own canonizer, context entered each time: what that adds"),
    "ours_open": ("zennit, EpsilonPlus", "`ModelCanonizer`, in an open context"),
    "ours_over_plain": ("zennit, EpsilonPlus", "... less un-canonized in an open context"),
    "ours_more": ("zennit, EpsilonPlus", "`ModelCanonizer`, context entered each time: what that adds"),
    "captum_own": ("Captum", "Captum's own `LRP`, un-canonized"),
    "lrp": ("Captum", "`canon_bridge.captum.LRP`, epsilon_plus, second call"),
    "lrp_over_zennit": ("Captum", "... over un-canonized zennit, EpsilonPlus, in an open context"),
    "memory": ("Memory", "resident memory that entry adds at its peak"),
    "merged": ("Memory", "... of which merged tensors"),
    "growth": ("Growth with depth", "power of the number of BatchNorms by which the plan's time grows"),
    "import": ("Import", "`import canon_bridge`, beyond `import torch`"),
    "first_use": ("Import", "first `canonize` of a process, less a later one, on a net of one block"),
}
FORWARDS, RATIO, MILLISECONDS, MIB = "forwards", "ratio", "ms", "MiB"
SLACK_MIB = 20.0
LINEAR = 1.15  # a power that measures as linear

COPIES = "untangled"

SIZE = 224  # of the images that the goals are for

# At most; for a model or a prefer where they differ.
_GOALS: dict[str, float | dict[str, float]] = {
    "first": 2.0,
    "again": {"densenet121": 0.4, "resnet50": 0.4, "vgg16_bn": 1.1},
    "ours_more": {"densenet121": 0.5, "resnet50": 0.5, "vgg16_bn": 1.2},
    "ours_over_plain": 0.5,
    "forward": {"left": 1.0, "right": 1.1},
    "copy": {"left": 0.95, "right": 1.05},
    "lrp_over_zennit": 0.65,
    "growth": LINEAR,
    "import": 50.0,
}


@dataclass(frozen=True)
class Figure:
    """One figure: a median, its quartiles, and how often it was measured.

    Attributes
    ----------
    row : str
        Key of ``ROWS``.
    model, prefer, batch, size : str, str, int, int
        Of what; empty and 0 where they do not apply.
    unit : str
        "forwards", "ratio", "ms" or "MiB".
    value, low, high : float or None
        Median, first and third quartile; None where it cannot be measured, and ``note`` says why.
    repetitions : int
        How often it was measured.
    milliseconds : float or None
        The median time itself, where the unit is the model's own forward.
    """

    row: str
    model: str = ""
    prefer: str = ""
    batch: int = 0
    size: int = 0
    unit: str = FORWARDS
    value: float | None = None
    low: float | None = None
    high: float | None = None
    repetitions: int = 0
    milliseconds: float | None = None
    note: str = ""

    @classmethod
    def of(cls, row: str, values: Sequence[float], **rest: Any) -> Self:
        """Return the figure for what was measured, in the order of repetition."""
        low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
        return cls(row, value=middle, low=low, high=high, repetitions=len(values), **rest)

    @property
    def key(self) -> tuple[object, ...]:
        """What it is a figure of, to find it in another run."""
        return self.row, self.model, self.prefer, self.batch, self.size

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def goal(figure: Figure, figures: Sequence[Figure]) -> float | None:
    """Return what a figure should come to at most, or None; those of memory depend on what is merged."""
    if figure.prefer == COPIES:  # which is for its maps, not for speed
        return None
    if figure.row == "memory":
        merged = [f.value for f in figures if f.row == "merged" and f.key[1:] == figure.key[1:]]
        return 1.2 * merged[0] + SLACK_MIB if merged and merged[0] is not None else None
    known = _GOALS.get(figure.row) if figure.size in (0, SIZE) else None
    if isinstance(known, dict):
        return known.get(figure.model, known.get(figure.prefer))
    return known
