"""The table of operations in the docs, made from the table in the code: ``python -m benchmarks.operations``."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.files import write_whole
from canon_bridge.core.activations import find_absorber
from canon_bridge.core.operations import (
    BY_ARGUMENT,
    OPERATIONS,
    Kind,
    Operation,
    operation_of_function,
    places_of,
)

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "operations.md"

INTRODUCTION = """# Operations

What canon_bridge knows of each operation, by the name that ATen gives it. Made by
`python -m benchmarks.operations --write`; a test compares this page with the table in
`canon_bridge/core/operations.py`.

All spellings lead to one entry: function, method, operator, in place, `out=`, by keyword, an operator of `torch.ops`.
The rule is the same in zennit and in Captum. Whether a per-channel map *passes* an operation that moves elements or is
linear is found by running it on tensors that hold the numbers of the channels: it passes where every output is a copy
or a mean of elements of one channel.

The signal of a product is the factor that carries data; of several, the one that is no gate, which is what a bounded
function puts out (a sigmoid, a softmax, a clamp: found by running it), at most moved, scaled or shifted since. Where
none or all of them are gates, it is the one with more elements, else each gets an equal share.
"""

RULES = {
    Kind.LINEAR_LAYER: "the rule of the preset for linear layers",
    Kind.NORM: "merged, then pass",
    Kind.ELEMENTWISE: "pass",
    Kind.MOVEMENT: "gradient: relevance goes where the element came from",
    Kind.SELECTION: "gradient: the winner takes all",
    Kind.LINEAR: "epsilon (Norm), R_in = x * vjp(R / y)",
    Kind.SUM: "epsilon (Norm) over both terms",
    Kind.PRODUCT: "the signal takes all",
    Kind.NORMALISER: "pass, as if the statistics were constants",
    Kind.SIZE: "no relevance",
    Kind.CREATION: "no relevance",
    Kind.RANDOM: "no relevance",
    Kind.NOT_DIFFERENTIABLE: "no relevance",
    Kind.WITHOUT_RULE: "none: named in Plan.uncovered",
}

PASSES = {
    Kind.LINEAR_LAYER: ("takes it", "takes it"),
    Kind.NORM: ("takes it", "takes it"),
    Kind.ELEMENTWISE: ("no", "no"),
    Kind.MOVEMENT: ("found by running it", "found by running it"),
    Kind.SELECTION: ("no", "no"),
    Kind.LINEAR: ("found by running it", "found by running it"),
}
ABSORBS = "absorbs it"


def release() -> str:
    """Return which torch this is, in its first two numbers."""
    return ".".join(torch.__version__.split(".")[:2])


def count_of_core() -> tuple[int, int]:
    """Return how many operators torch tags as core, by their base names, and how many of them have an entry."""
    packets: dict[str, bool] = {}
    for name in torch._C._dispatch_get_all_op_names():
        home, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        if home != "aten":
            continue
        operator = getattr(getattr(torch.ops.aten, base, None), overload or "default", None)
        if operator is not None and torch.Tag.core in operator.tags:
            packets[base] = operation_of_function(operator) is not None
    return len(packets), sum(packets.values())


def passes(entry: Operation) -> tuple[str, str]:
    """Return whether a map passes an operation to the left and to the right."""
    left, right = PASSES.get(entry.kind, ("no", "no"))
    try:
        module = entry.make() if entry.make is not None else None
    except (TypeError, ValueError):  # it wants arguments
        module = None
    wants_arguments = "max_pool" in entry.name or entry.name in ("prelu", "clamp", "clamp_min", "threshold")
    absorbs = entry.make is not None and (wants_arguments or (module is not None and find_absorber(module) is not None))
    return left, ABSORBS if absorbs else right


def arguments() -> Iterator[str]:
    """Yield which arguments get relevance, and what an operation is by its arguments."""
    yield "## Arguments\n"
    yield "Of these operations relevance goes to some arguments alone, to no weight, gate, index or condition.\n"
    yield "| operation | arguments |"
    yield "|---|---|"
    rows: dict[tuple[str, ...], list[str]] = {}
    for entry in OPERATIONS.values():
        if entry.data:
            given = {place: name for name, place in places_of(entry.name).items() if name != "input"}
            names = {0: "input", 2: "value"} | given
            chosen = tuple("input" if names[place] == "self" else names[place] for place in entry.data)
            rows.setdefault(chosen, []).append(f"`{entry.name}`")
    yield from (
        f"| {', '.join(names)} | {', '.join(f'`{name}`' for name in chosen)} |" for chosen, names in rows.items()
    )
    yield ""
    for name, (argument, kinds) in BY_ARGUMENT.items():
        for value, kind in kinds.items():
            yield f"`{name}` with `{argument}={value!r}` is {kind.value}.\n"


def lines() -> Iterator[str]:
    """Yield the lines of the page."""
    known, covered = count_of_core()
    by_kind = {kind: [entry for entry in OPERATIONS.values() if entry.kind is kind] for kind in Kind}
    yield INTRODUCTION
    yield f"{len(OPERATIONS)} entries. Of {known} operators that torch {release()} tags as core, {covered} have one;"
    yield "the others are backward operators and internals, listed with their reasons in"
    yield "`tests/core/test_operations.py`.\n"
    for kind, entries in by_kind.items():
        yield f"## {kind.value.capitalize()}\n"
        yield f"Rule: {RULES[kind]}.\n"
        if kind is Kind.WITHOUT_RULE:
            yield "| operation | why |"
            yield "|---|---|"
            yield from (f"| `{entry.name}` | {entry.note} |" for entry in entries)
        elif kind in PASSES:
            yield "| operation | passes to the left | to the right |"
            yield "|---|---|---|"
            rows: dict[tuple[str, str], list[str]] = {}
            for entry in entries:
                rows.setdefault(passes(entry), []).append(f"`{entry.name}`")
            yield from (f"| {', '.join(names)} | {left} | {right} |" for (left, right), names in rows.items())
        else:
            yield ", ".join(f"`{entry.name}`" for entry in entries) + ". A map passes none of them."
        yield ""
    yield from arguments()


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name} instead of printing it")
    page = "\n".join(lines()).rstrip() + "\n"
    if parser.parse_args().write:
        write_whole(DOCUMENT, page)
    else:
        print(page)


if __name__ == "__main__":
    main()
