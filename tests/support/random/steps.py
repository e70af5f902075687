"""A network as a small description that prints as source.

A description is a list of calls on numbered values: the inputs first, then the results in the order of the steps.
The kind of a step says how it is written: ``"Conv2d"`` calls a child module (two steps with the same ``name`` share
it), ``"F.relu"`` and ``"torch.cat"`` call a function, ``".relu_"`` a method; the other kinds are in
``random_modules.SPECIAL``.
"""

from typing import Any


class Step:
    """One call: its kind, the numbers of the values that it takes, and its options."""

    def __init__(self, kind: str, *inputs: int, name: str = "", **options: Any) -> None:
        self.kind, self.inputs, self.name, self.options = kind, inputs, name, options

    @property
    def is_call(self) -> bool:
        """Whether the step is nothing but the call of a child module."""
        return self.kind == "block" or (self.kind[0].isupper() and self.kind[:2] != "F.")

    @property
    def count(self) -> int:
        """How many values come out."""
        return len(self.options["network"].outputs) if self.kind == "block" else self.options.get("count", 1)

    def __repr__(self) -> str:
        name = {"name": self.name} if self.name else {}
        options = [f"{key}={value!r}" for key, value in {**name, **self.options}.items()]
        return f"Step({', '.join([repr(self.kind), *map(str, self.inputs), *options])})"


class Network:
    """Steps in order, and the numbers of the values that come out; the root has the shape of its input and a seed.

    With ``sequential`` every step calls a module on the value before it, and the network is an ``nn.Sequential``.
    """

    def __init__(
        self,
        steps: list[Step],
        outputs: tuple[int, ...],
        arity: int = 1,
        sequential: bool = False,
        shape: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        self.steps, self.outputs, self.arity, self.sequential = steps, outputs, arity, sequential
        self.shape, self.seed = shape, seed

    def all_steps(self) -> list[Step]:
        """Return the steps of the network and of its blocks."""
        inner = [s for step in self.steps if "network" in step.options for s in step.options["network"].all_steps()]
        return [*self.steps, *inner]

    def shares_layers(self) -> bool:
        """Return whether a layer with parameters is called at two places."""
        steps = [step for step in self.all_steps() if step.name]
        names = [
            step.name
            for step in steps
            if step.kind in ("block", "PReLU") or "_features" in str(step) or "_channels" in str(step)
        ]
        return len(names) != len(set(names))

    def own_norms(self, prefix: str = "") -> set[str]:
        """Return where a BatchNorm is computed that is not a call of one of torch's modules."""
        names: set[str] = set()
        for step in self.steps:
            if step.kind in ("F.batch_norm", "read norm", "FrozenBatchNorm2d"):
                names.add(prefix + step.name)
            elif step.kind == "block":
                names |= step.options["network"].own_norms(f"{prefix}{step.name}.")
        return names

    def __repr__(self) -> str:
        lines = "".join(f"    {step!r},\n" for step in self.steps).replace("\n", "\n    ").rstrip(" ")
        rest = [f"arity={self.arity}"] * (self.arity != 1) + ["sequential=True"] * self.sequential
        rest += [f"shape={self.shape}, seed={self.seed}"] * bool(self.shape)
        return f"Network(\n    [\n    {lines}    ],\n    {', '.join([f'outputs={self.outputs}', *rest])},\n)"


def without_dead_ends(steps: list[Step], arity: int, outputs: list[int]) -> tuple[list[Step], list[int]]:
    """Leave out the steps that nothing depends on, and number the values anew."""
    starts = [arity]
    for step in steps:
        starts.append(starts[-1] + step.count)
    needed = set(outputs)
    kept: list[int] = []
    for index in reversed(range(len(steps))):
        if needed & set(range(starts[index], starts[index + 1])) or _overwrites(steps[index]):
            kept.append(index)
            needed.update(steps[index].inputs)
    numbers = {number: number for number in range(arity)}
    new: list[Step] = []
    for index in reversed(kept):
        step = steps[index]
        new.append(Step(step.kind, *(numbers[n] for n in step.inputs), name=step.name, **step.options))
        for number in range(starts[index], starts[index + 1]):
            numbers[number] = len(numbers)
    return new, [numbers[number] for number in outputs]


def _overwrites(step: Step) -> bool:
    inner = step.options["network"].all_steps() if step.kind == "block" else [step]
    return any(s.kind.endswith("_") or s.kind == "+=" or s.options.get("inplace") for s in inner)
