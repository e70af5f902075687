"""Where a tensor holds the channels of a normalization layer.

Floor 0: imports nothing of the package.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Layout:
    """On which axis of a tensor channels lie, and which one at which position.

    Attributes
    ----------
    channels : tuple of int
        For each position on the axis the number of the channel, -1 where it holds something else.
    axis : int
        The axis, counted from the front.
    rank : int
        Number of dimensions of the tensor.
    repeats : bool
        Whether each position stands for several neighbouring ones, how many is not known (after a flatten).
    point : bool
        Whether all other axes behind the batch are known to have length one.
    """

    channels: tuple[int, ...]
    axis: int
    rank: int
    repeats: bool = False
    point: bool = False

    @property
    def is_last(self) -> bool:
        """Whether the channels lie on the last axis."""
        return self.axis == self.rank - 1

    def moved(self, axis: int, rank: int | None = None) -> "Layout":
        """Return the same channels on another axis of a tensor with another number of dimensions."""
        return replace(self, axis=axis, rank=self.rank if rank is None else rank)

    def holding(self, channels: tuple[int, ...]) -> "Layout":
        """Return the layout with other channels at the positions."""
        return replace(self, channels=channels)


def position(dim: int, rank: int) -> int:
    """Return the axis from the front that ``dim`` (which may be negative) means in a tensor of this rank."""
    return dim + rank if dim < 0 else dim
