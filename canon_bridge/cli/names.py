"""Names of modules in little space: lists of them, and of the files that belong to images."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_NUMBER = re.compile(r"(\d+)")


@dataclass
class _Run:
    """Names that differ in one number at most."""

    parts: list[str]
    place: int | None
    numbers: list[int]

    def takes(self, parts: list[str]) -> bool:
        """Take one more name if it differs in the same number."""
        if len(parts) != len(self.parts):
            return False
        differing = [index for index, pair in enumerate(zip(self.parts, parts, strict=True)) if pair[0] != pair[1]]
        if len(differing) != 1 or differing[0] % 2 == 0 or self.place not in (None, differing[0]):
            return False
        if self.place is None:
            self.place = differing[0]
            self.numbers = [int(self.parts[self.place])]
        self.numbers.append(int(parts[self.place]))
        return True

    def __str__(self) -> str:
        if self.place is None:
            return "".join(self.parts)
        return "".join((*self.parts[: self.place], f"{{{_ranges(self.numbers)}}}", *self.parts[self.place + 1 :]))


def braced(names: Iterable[str]) -> list[str]:
    """Join neighbours that differ in one number: ``a.1.b``, ``a.2.b``, ``a.3.b`` are ``a.{1..3}.b``."""
    runs: list[_Run] = []
    for name in names:
        parts = _NUMBER.split(name)
        if not (runs and runs[-1].takes(parts)):
            runs.append(_Run(parts, None, []))
    return list(map(str, runs))


def _ranges(numbers: Sequence[int]) -> str:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ",".join(f"{span[0]}..{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)


def file_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for the files of each image, all different: its own, with its folders where two are alike.

    Parameters
    ----------
    paths : sequence of Path
        The images. Two may have one name in different folders, or differ in their suffix alone; case does not count,
        as some file systems have it.
    """
    absolute = [path.resolve() for path in paths]
    folders_of = [[*path.parts[len(path.anchor) > 0 : -1]] for path in absolute]  # not the root
    depth = max(map(len, folders_of))
    names = [path.stem for path in absolute]
    for number in range(1, depth + 1):
        names = [
            "_".join((*folders[-number:], path.stem)) if is_shared else name
            for path, folders, name, is_shared in zip(absolute, folders_of, names, _shared(names), strict=True)
        ]
    suffixes = [path.suffix.lstrip(".") for path in absolute]
    names = [
        f"{name}_{suffix}" if is_shared else name
        for name, suffix, is_shared in zip(names, suffixes, _shared(names), strict=True)
    ]
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 1
        while names[index].lower() in taken:
            number += 1
            names[index] = f"{name}_{number}"
        taken.add(names[index].lower())
    return names


def _shared(names: Sequence[str]) -> list[bool]:
    counts = Counter(name.lower() for name in names)
    return [counts[name.lower()] > 1 for name in names]
