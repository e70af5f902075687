"""What would be done to a model and what not, and why: chains, what becomes of each norm, and the plan in print."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar

from canon_bridge.core.options import Options
from canon_bridge.core.rewrite import Rewrite
from canon_bridge.core.tables import folded, format_table, html_table, shortened


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


def _listed_kinds(through: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(map(kind_of, through))) or "-"


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


ORDER = (
    "BatchNorms are resolved in the order of the data flow, each after those before it: the preferred direction, then "
    "the other one, then what `leftover` says."
)


@dataclass(frozen=True)
class Merge:
    """A BatchNorm that becomes the identity: its affine map goes into the linear layers of the chain."""

    chain: Chain

    @property
    def norm(self) -> str:
        """Path of the BatchNorm."""
        return self.chain.norm

    @property
    def targets(self) -> tuple[str, ...]:
        """The paths of the layers that take the map."""
        return self.chain.targets

    @property
    def group(self) -> tuple[str, ...]:
        """What happens, and through what, without the names of modules."""
        return f"merged {self.chain.direction}", _listed_kinds(self.chain.through)

    @property
    def row(self) -> tuple[str, ...]:
        """One line of the table of details."""
        return self.chain.norm, self.chain.direction, shortened(self.targets), shortened(self.chain.through, 3) or "-"


@dataclass(frozen=True)
class Untangled:
    """A BatchNorm that is merged to the left into copies of layers that others read, too: one copy for each reader.

    Attributes
    ----------
    norm : str
        Its path.
    copies : tuple of Step
        The layers that are copied for it; ``channels`` says which of its channels arrives where in the copy.
    index : tuple of int
        For each of its channels, the place in the input that holds all copies.
    rest : tuple of int
        Its channels that come from no such layer; they get an explicit per-channel linear layer.
    through : tuple of str
        What lies in between.
    ranks : tuple of int
        The numbers of dimensions of the input that this holds for.
    """

    norm: str
    copies: tuple[Step, ...]
    index: tuple[int, ...]
    rest: tuple[int, ...]
    through: tuple[str, ...]
    ranks: tuple[int, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """The paths of the layers that are copied."""
        return tuple(step.module for step in self.copies)

    @property
    def group(self) -> tuple[str, ...]:
        """What happens, and through what, without the names of modules."""
        rest = ", the rest made a per-channel linear layer" if self.rest else ""
        return f"merged left into copies{rest}", _listed_kinds(self.through)

    @property
    def row(self) -> tuple[str, ...]:
        """One line of the table of details."""
        rest = f" and a per-channel linear layer ({len(self.rest)} channels)" if self.rest else ""
        return self.norm, "copies", shortened(self.targets) + rest, shortened(self.through, 3) or "-"


@dataclass(frozen=True)
class _Unmerged:
    """A BatchNorm that is merged into nothing, and why."""

    happens: ClassVar[str]
    becomes: ClassVar[str]

    norm: str
    reason: str

    @property
    def group(self) -> tuple[str, ...]:
        """What happens, and why, without the names of modules."""
        return self.happens, kind_of(self.reason)

    @property
    def row(self) -> tuple[str, ...]:
        """One line of the table of details."""
        return self.norm, "-", self.becomes, self.reason


class Leftover(_Unmerged):
    """A BatchNorm that no linear layer can take, and that becomes an explicit per-channel linear layer.

    Attributes
    ----------
    norm : str
        Its path.
    reason : str
        What stood in the way, for each direction.
    """

    happens, becomes = "made a per-channel linear layer", "a per-channel linear layer"


class Refusal(_Unmerged):
    """A BatchNorm that is left as it is, and why.

    Attributes
    ----------
    norm : str
        Its path.
    reason : str
        Why it stays.
    """

    happens, becomes = "left as it is", "nothing"


_WAYS = ("count", "what happens", "through, or why", "first")
_DETAILS = ("order", "BatchNorm", "direction", "merged into", "through, or why")

Entry = Merge | Untangled | Leftover | Refusal


@dataclass(frozen=True)
class Uncovered:
    """An operation on the way from the input to the output that has no rule: its part of the map is a gradient.

    Attributes
    ----------
    path : str
        The module whose forward wrote it, or the module itself where it is one.
    what : str
        The operation.
    place : str
        File and line of the call, ``"file:line"``; empty where torch itself calls it, as ``nn.Sequential`` does.
    reason : str
        Why there is no rule, what it means for the map, and what to do.
    """

    path: str
    what: str
    place: str
    reason: str

    @property
    def where(self) -> str:
        """The operation and where it stands, in words."""
        place = f" ({self.place})" if self.place else ""
        return f"{self.what} in {self.path or 'the model itself'}{place}"

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Plan:
    """Every BatchNorm of a model, in the order in which they are resolved, and what becomes of it.

    Attributes
    ----------
    model : str
        Name of the model's class.
    options : Options
        The keywords that the plan was made with.
    entries : tuple of Merge, Untangled, Leftover or Refusal
        One for each BatchNorm, in the order of the data flow: conflicts are resolved in this order.
    rewrites : tuple of Rewrite
        The containers whose forward calls modules instead of functions, or one module for each call site.
    uncovered : tuple of Uncovered
        The operations that no rule covers.
    out_of_place : tuple of str
        Modules that work in place and are made not to.
    plain : tuple of str
        Linear layers whose weight is computed (a parametrization, a standardization) and becomes a parameter.
    expanded : tuple of str
        Modules of several operations in one, which become modules of their own.
    stand_ins : dict
        By the path of what stands in the canonical model for a further call of a module, the path of that module.
    """

    model: str
    options: Options
    entries: tuple[Entry, ...]
    rewrites: tuple[Rewrite, ...]
    uncovered: tuple[Uncovered, ...]
    out_of_place: tuple[str, ...]
    plain: tuple[str, ...] = ()
    expanded: tuple[str, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict[str, str])

    def calls(self, path: str) -> int:
        """Return how many times the module at a path of the model runs in one forward pass, if it runs at all."""
        return 1 + list(self.stand_ins.values()).count(path)

    @property
    def merges(self) -> tuple[Merge, ...]:
        """The BatchNorms that are merged, in order."""
        return tuple(entry for entry in self.entries if isinstance(entry, Merge))

    @property
    def untangled(self) -> tuple[Untangled, ...]:
        """The BatchNorms that are merged into copies of their own."""
        return tuple(entry for entry in self.entries if isinstance(entry, Untangled))

    @property
    def leftovers(self) -> tuple[Leftover, ...]:
        """The BatchNorms that become explicit per-channel linear layers."""
        return tuple(entry for entry in self.entries if isinstance(entry, Leftover))

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The BatchNorms that stay, with the reason."""
        return tuple(entry for entry in self.entries if isinstance(entry, Refusal))

    def ways(self) -> list[tuple[tuple[str, ...], list[Entry]]]:
        """Return the BatchNorms by what happens to them (``entry.group``), the most frequent first."""
        found: dict[tuple[str, ...], list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.group, []).append(entry)
        return sorted(found.items(), key=lambda way: -len(way[1]))

    def draw(self, only: str | None = None) -> Any:
        """Draw what becomes of the BatchNorms, as written on the left and canonical on the right; needs matplotlib.

        Parameters
        ----------
        only : str, optional
            The path of a module: each BatchNorm in it has a row, in the order of the data flow. By default each way
            that BatchNorms go has one, with its first example and how many there are.

        Returns
        -------
        matplotlib.figure.Figure
            Save it with ``.savefig(path)``.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If no BatchNorm is in that module.
        """
        from canon_bridge.drawing import draw

        return draw(self, only)

    def _repr_html_(self) -> str:
        """Return the plan for a notebook: totals, ways, and what has no rule; the rest on a click."""
        parts = [f"<p><b>{escape(next(self._lines()))}</b><br>{escape(self.total())}</p>"]
        if self.entries:
            parts.append(html_table(_WAYS, self._way_rows()))
            stays = [(entry.norm, entry.reason) for entry in self.refusals]
            if stays:
                parts.append(folded(f"{len(stays)} left as they are", html_table(("BatchNorm", "why"), stays), True))
            parts.append(
                folded(f"each of the {len(self.entries)}, in order", html_table(_DETAILS, self._detail_rows()))
            )
        if self.uncovered:
            rows = [
                (entry.what, entry.path or "the model itself", entry.place, entry.reason) for entry in self.uncovered
            ]
            table = html_table(("operation", "in", "place", "why, and what to do"), rows)
            parts.append(folded(f"{len(rows)} operations without a rule", table, True))
        return f'<div style="max-width:60em">{"".join(parts)}</div>'

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def total(self) -> str:
        """Return the totals in one line."""
        directions = Counter(merge.chain.direction for merge in self.merges)
        modules = sum(len(rewrite.children) for rewrite in self.rewrites)
        copies = f"{len(self.untangled)} merged left into copies, " if self.untangled else ""
        return (
            f"total: {len(self.entries)} BatchNorms: {directions['left']} merged left, {copies}{directions['right']} "
            f"merged right, {len(self.leftovers)} to explicit linear layers, {len(self.refusals)} left as they are; "
            f"{modules} operations made modules"
        )

    def _lines(self) -> Iterator[str]:
        options = self.options
        yield (
            f"plan for {self.model} (prefer={options.prefer!r}, clipped={options.clipped!r}, "
            f"leftover={options.leftover!r})"
        )
        yield self.total()
        if self.entries:
            yield from ("", *format_table(_WAYS, self._way_rows()))
            yield from ("", ORDER, "", *format_table(_DETAILS, self._detail_rows()))
        yield from self._explicit()

    def _way_rows(self) -> list[tuple[str, ...]]:
        return [(str(len(entries)), *group, entries[0].norm) for group, entries in self.ways()]

    def _detail_rows(self) -> list[tuple[str, ...]]:
        return [(str(number), *entry.row) for number, entry in enumerate(self.entries, 1)]

    def _explicit(self) -> Iterator[str]:
        """Yield what else is changed, and which functional operations stay."""
        made = [rewrite for rewrite in self.rewrites if rewrite.children]
        if made or self.plain:
            yield ""
        for rewrite in made:
            names = ", ".join(name for name, _ in rewrite.children)
            yield f"explicit modules in {rewrite.path or 'the model itself'}: {names}"
        if self.plain:
            yield f"computed weights made parameters: {', '.join(self.plain)}"
        if self.uncovered:
            yield from ("", "operations without a rule, in whose place the map has a gradient:")
            yield from (f"- {entry}" for entry in self.uncovered)
