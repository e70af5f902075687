"""What is found for one model: one row of the coverage table."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Row:
    """What was found for one model and one ``prefer``; numbers are None where they could not be measured.

    Attributes
    ----------
    model, prefer : str
        What was measured.
    shape : list of int
        Of the first input.
    parameters, batch_norms, uncalled : int
        Size of the model; its batch norms, and how many of them forward never calls.
    left, right, leftover : int
        From the plan: merged to the left, to the right, made an explicit per-channel linear layer.
    alive, functional, bypassed : int
        From outside: batch norms that still do something in the block; how many of them are functional, and how many
        are called no more, nor what stands in their place, so that others must compute what they computed.
    error : float
        Largest deviation of an output relative to its largest value; the maximum over all outputs.
    eps_error : float
        The same for the original model with every ``eps`` forgotten: what such a mistake would look like.
    input_change : float
        The same for the original model on other inputs.
    restored : bool
        Whether the model and its output were the same afterwards, to the bit; ``differences`` names what was not.
    entry : float
        Time to plan and apply, in forwards of the same model.
    traced : str
        "symbolically", or "with values" where only ``example_inputs`` helps; then ``without_values`` is the error
        that comes without them.
    status, reason : str
        "ok", or what is not, and why. ``reasons`` counts what the plan says about batch norms that it does not merge.
    """

    model: str
    prefer: str
    shape: list[int] = field(default_factory=list)
    parameters: int = 0
    batch_norms: int = 0
    uncalled: int = 0
    left: int | None = None
    right: int | None = None
    leftover: int | None = None
    alive: int | None = None
    functional: int | None = None
    bypassed: int | None = None
    error: float | None = None
    eps_error: float | None = None
    input_change: float | None = None
    restored: bool | None = None
    differences: list[str] = field(default_factory=list)
    entry: float | None = None
    traced: str = ""
    without_values: str = ""
    status: str = ""
    reason: str = ""
    alive_paths: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
