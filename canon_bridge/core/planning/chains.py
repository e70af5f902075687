"""Where the affine map of a normalization layer goes: the linear layers that take it, and what it meets on the way.

Floor 0: imports nothing of the package.
"""

from dataclasses import dataclass


class Words(str):
    """Words that name modules.

    Attributes
    ----------
    kind : str
        The same without names: with the types of the modules, and letters for numbers. It is what cases that are
        alike have in common.
    """

    kind: str

    def __new__(cls, words: str, kind: str) -> "Words":
        """Make the words."""
        made = super().__new__(cls, words)
        made.kind = kind
        return made

    def __reduce__(self) -> tuple[type["Words"], tuple[str, str]]:
        """Return what copies and pickles are made from."""
        return Words, (str(self), self.kind)


def kind_of(words: str) -> str:
    """Return the words without the names in them."""
    return words.kind if isinstance(words, Words) else words


def words(template: str, *parts: str) -> Words:
    """Return a template with its braces filled in, once with the parts and once with their kinds."""
    return Words(template.format(*parts), template.format(*map(kind_of, parts)))


@dataclass(frozen=True)
class Obstacle:
    """Why a chain does not exist; ``reason`` may be :class:`Words`."""

    reason: str


@dataclass(frozen=True)
class Step:
    """One module that takes a map in, or that absorbs the map before it and hands another one on.

    Attributes
    ----------
    module : str
        Path of the module.
    channels : tuple of int
        Which channel of the maps arrives at each channel of the module, -1 for none. Numbers run through the
        channels of the normalization layer, then through those behind each absorbing module, in the order of steps.
    absorbs : bool
        Whether it is an activation or a pooling that the map passes; else it is a linear (or normalization) layer.
    """

    module: str
    channels: tuple[int, ...]
    absorbs: bool = False


@dataclass(frozen=True)
class Chain:
    """A normalization layer and all the modules that together can take its affine map.

    Attributes
    ----------
    norm : str
        Path of the normalization layer.
    width : int
        Its number of channels.
    direction : {"left", "right"}
        Whether the linear layers stand before it or behind it.
    steps : tuple of Step
        In the order of the data flow.
    through : tuple of str
        What lies in between, in order; :class:`Words` where it names a module.
    ranks : tuple of int
        The numbers of dimensions of the input that the merge holds for, where the layer's type accepts others, too;
        empty where it holds for all.
    """

    norm: str
    width: int
    direction: str
    steps: tuple[Step, ...]
    through: tuple[str, ...]
    ranks: tuple[int, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The paths of the layers that take the map."""
        return tuple(dict.fromkeys(step.module for step in self.steps if not step.absorbs))

    @property
    def absorbers(self) -> tuple[str, ...]:
        """The paths of the activations and pools on the way."""
        return tuple(dict.fromkeys(step.module for step in self.steps if step.absorbs))

    @property
    def kind(self) -> str:
        """``"left"``, ``"right"`` or ``"activation"`` (one on the way to all targets), ``"mixed"`` for all others."""
        own = tuple(range(self.width))
        if not all(step.channels == own for step in self.steps if step.absorbs):
            return "mixed"
        behind = tuple(range(self.width, 2 * self.width))
        wanted = behind if self.absorbers else own
        if len(self.absorbers) > 1 or not all(step.channels == wanted for step in self.steps if not step.absorbs):
            return "mixed"
        if self.direction == "left":
            return "left"
        return "activation" if self.absorbers else "right"
