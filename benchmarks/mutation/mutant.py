"""What a mutant is: a place in the package, and something wrong to write there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One wrong variant of the package.

    Attributes
    ----------
    file : str
        The file, from the folder of the package.
    right, wrong : str
        What stands there exactly once, and what is written instead.
    what : str
        What the variant gets wrong.
    tests : tuple of str
        The test files, from the folder of the tests, that are to notice; those that are quick to notice first.
    """

    file: str
    right: str
    wrong: str
    what: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file and what is wrong."""
        return f"{self.file}: {self.what}"

    def applied(self, source: str) -> str:
        """Return the source of the file with the wrong variant in it.

        Raises
        ------
        ValueError
            What is right stands there never or several times: the list is out of date.
        """
        times = source.count(self.right)
        if times != 1 or self.right == self.wrong:
            raise ValueError(
                f"{self.name}: {self.right!r} stands there {times} times; bring the list of mutants up to date"
            )
        return source.replace(self.right, self.wrong)


def mutants(file: str, tests: str, *rows: tuple[str, str, str]) -> list[Mutant]:
    """Return the mutants of one file: for each what it gets wrong, what stands there, and what is written instead.

    Parameters
    ----------
    file : str
        The file, from the folder of the package.
    tests : str
        Names of test files, separated by spaces.
    *rows : tuple of str
        ``(what, right, wrong)``.
    """
    return [Mutant(file, right, wrong, what, tuple(tests.split())) for what, right, wrong in rows]
