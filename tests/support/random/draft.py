"""The drawing of a directed acyclic CNN, step by step.

While a network is drawn, every step is carried out on a tensor; a step that does not fit is left out.
"""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.support.random import options, pools
from tests.support.random.modules import OneInput, call, is_fine, register
from tests.support.random.steps import Network, Step, without_dead_ends


class Draft:
    """A network that grows: its steps, the values that they give, and who reads them.

    Parameters
    ----------
    draw : callable
        Hypothesis's.
    inputs : list of Tensor
        What goes in.
    plain : bool
        Only what LRP-0 has an exact rule for, and nothing that autograd refuses.
    depth : int
        How many blocks may lie inside each other.
    names : list of str
        All names so far, so that every module of the whole network has its own.
    """

    def __init__(self, draw: Any, inputs: list[Tensor], plain: bool, depth: int, names: list[str]) -> None:
        self.draw, self.plain, self.depth, self.names = draw, plain, depth, names
        self.arity = len(inputs)
        self.values = list(inputs)
        self.steps: list[Step] = []
        self.owner = OneInput(Network([], ())).eval()
        self.read: set[int] = set()
        self.fresh: set[int] = set()  # what autograd lets us overwrite
        self.taken: dict[str, tuple[Step, Tensor]] = {}

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def maybe(self, percent: int) -> bool:
        return self.draw(st.integers(0, 99)) >= 100 - percent

    def name(self, letter: str) -> str:
        self.names.append(f"{letter}{len(self.names)}")
        return self.names[-1]

    def attempt(self, step: Step) -> list[int]:
        """Add a step if it can be carried out on the values; return the numbers of its results, or nothing."""
        children, buffers, parameters = (
            dict(getattr(self.owner, f"_{t}")) for t in ("modules", "buffers", "parameters")
        )
        try:
            register(self.owner, step)
            with torch.no_grad():
                results = call(self.owner, step, *(self.values[index] for index in step.inputs))
        except (RuntimeError, ValueError, AssertionError, IndexError, TypeError):
            results = ()
        if not results or not all(is_fine(result) for result in results):
            self.owner._modules, self.owner._buffers, self.owner._parameters = children, buffers, parameters
            return []
        first = len(self.values)
        self.values.extend(results)
        self.steps.append(step)
        self.read.update(step.inputs)
        numbers = list(range(first, len(self.values)))
        if step.kind.startswith(("Conv", "Linear", "BatchNorm", "torch.cat")) or step.kind == "+":
            self.fresh.update(numbers)
        if step.name:
            self.taken.setdefault(step.name, (step, self.values[step.inputs[0]]))
        return numbers

    def pick(self, among: list[int] | None = None) -> int:
        """Choose a value, most often the last one."""
        numbers = (list(range(len(self.values))) if among is None else among)[::-1]
        return numbers[0] if self.maybe(70) else self.one_of(*numbers)

    def step(self, index: int, makers: Any) -> int:
        """Add one step on a value by one of the makers of options; return its result, or the value if there is none."""
        made = self.one_of(*makers)(self, self.values[index])
        if made is None:
            return index
        kind, chosen = made
        overwrites = kind.endswith("_") or chosen.get("inplace")
        if self.plain and overwrites and (index not in self.fresh or index in self.read):
            return index
        name = self.name("m") if Step(kind).is_call or kind in ("F.batch_norm", "F.prelu", "read norm") else ""
        return (self.attempt(Step(kind, index, name=name, **chosen)) or [index])[0]

    def usual(self) -> None:
        """Layer, BatchNorm, activation, or in the order of pre-activation, perhaps with pooling in between."""
        index, first = self.pick(), len(self.values)
        for letter in self.one_of("lna", "nal", "nl", "naol", "napl", "nml", "lpna", "nlna", "namal", "onal"):
            index = self.step(index, self._makers(letter))
        if self.maybe(20) and len(self.values) > first:  # another reader on the way
            self.step(self.one_of(*range(first, len(self.values))), (options.linear, options.same_shape))

    def single(self) -> None:
        self.step(self.pick(), self._makers(self.one_of(*"lnapoo")))

    def _makers(self, letter: str) -> Any:
        return pools.OTHERS if letter == "o" and not self.plain else pools.USUAL[letter]

    def chain(self, index: int) -> int:
        """Add one to four steps that keep the shape."""
        for _ in range(self.draw(st.integers(1, 4))):
            index = self.step(index, (options.same_shape, options.norm, options.activation))
        return index

    def residual(self) -> None:
        start = self.pick()
        shortcut = self.step(start, (options.same_shape, options.norm)) if self.maybe(25) else start
        self._join(self.chain(start), shortcut)

    def join(self) -> None:
        first = self.pick()
        broadcasts = self.maybe(15)  # if it can
        self._join(first, self.pick(self._like(first, broadcasts)))

    def _like(self, index: int, only_rank: bool = False) -> list[int]:
        """Return the values of the same shape, or of the same number of dimensions."""
        shape = self.values[index].shape
        same = [len(v.shape) == len(shape) if only_rank else v.shape == shape for v in self.values]
        return [number for number, is_same in enumerate(same) if is_same]

    def _join(self, a: int, b: int) -> None:
        values = (a, b)
        kind, chosen = self.one_of(*(options.PLAIN_SUMS if self.plain else options.SUMS))
        if kind in ("sum", "stack sum") and self.maybe(40):
            values = (a, b, self.pick(self._like(a)))
        if self.plain and kind in ("+=", ".add_") and (a not in self.fresh or a in self.read or a == b):
            kind, chosen = "+", {}
        self.attempt(Step(kind, *values, **chosen))

    def cat(self) -> None:
        first = self.pick()
        shape = self.values[first].shape
        fitting = [n for n, v in enumerate(self.values) if v.dim() == len(shape) and v.shape[2:] == shape[2:]]
        others = range(self.draw(st.integers(1, 3)))
        values = [first, *(self.chain(first) if self.maybe(50) else self.pick(fitting) for _ in others)]
        values = values[::-1] if self.maybe(50) else values
        dims = {"dim": 1 if self.maybe(80) else 1 - len(shape)}
        self.attempt(Step(self.one_of("torch.cat", "torch.concat"), *values, **dims))

    def parts(self) -> None:
        index = self.pick()
        channels = self.values[index].shape[1]
        count = self.one_of(2, 3)
        size = -(-channels // count)
        count = -(-channels // size)
        chosen = {"how": self.one_of("chunk", "torch.chunk", "split", "torch.split"), "size": size, "count": count}
        found = self.attempt(Step("parts", index, **chosen)) if channels > 1 else []
        if found and self.maybe(70):
            kinds = self.one_of((options.same_shape,), (options.same_shape, options.activation))
            ends = [self.step(number, kinds) for number in found]
            if self.maybe(60):
                self.attempt(Step("torch.cat", *ends[::-1], dim=1))

    def gate(self) -> None:
        """Squeeze-and-excitation, written out or within one step."""
        index = self.pick()
        value = self.values[index]
        if value.dim() < 3 or self.plain:
            return
        if self.maybe(40):
            self.attempt(Step("gate", index, rank=value.dim()))
            return
        squeezed = self.attempt(Step(f"AdaptiveAvgPool{value.dim() - 2}d", index, name=self.name("m"), output_size=1))
        if squeezed:
            last = self.step(self.chain(squeezed[0]), (options.gate_end,))
            self.attempt(Step(self.one_of("*", "torch.mul", ".mul"), index, last))

    def resize_like(self) -> None:
        index = self.pick()
        fitting = [n for n, v in enumerate(self.values) if v.dim() == self.values[index].dim() > 2]
        if fitting and not self.plain:
            self.attempt(Step("resize like", index, self.pick(fitting)))

    def reuse(self) -> None:
        """Call a module, or a whole block, again."""
        fitting = [
            (step, number)
            for step, value in self.taken.values()
            if len(step.inputs) == 1 and not (self.plain and (step.options.get("inplace") or step.kind == "block"))
            for number in range(len(self.values))
            if self.values[number].dim() == value.dim() and self.values[number].shape[1] == value.shape[1]
        ]
        if fitting:
            step, number = self.one_of(*fitting[::-1])
            self.attempt(Step(step.kind, number, name=step.name, **step.options))

    def block(self) -> None:
        """A container with a forward of its own, or an ``nn.Sequential``."""
        if self.depth == 0:
            return
        inputs = [self.pick()]
        sequential = self.maybe(40)
        if not sequential and self.maybe(20):
            inputs.append(self.pick())
        inner = Draft(self.draw, [self.values[n].clone() for n in inputs], self.plain, self.depth - 1, self.names)
        if sequential:
            for _ in range(self.draw(st.integers(1, 4))):
                inner.step(len(inner.values) - 1, pools.PLAIN_MODULES if self.plain else pools.MODULES)
        else:
            inner.moves(BLOCK_MOVES, 1, 4)
        if not inner.steps or (sequential and not all(step.is_call for step in inner.steps)):
            return
        network = inner.finish(sequential)
        self.attempt(Step("block", *inputs, name=self.name("b"), network=network))

    def moves(self, kinds: Any, least: int, most: int) -> None:
        """Carry out moves, each of them a strategy of its own, so that Hypothesis can leave out any."""
        for count in range(most):
            if count < least or self.maybe(75):
                self.draw(_move(self, kinds))

    def finish(self, sequential: bool = False, **root: Any) -> Network:
        """Return the network that puts out the last value, perhaps another one, too, without what nobody needs."""
        outputs = [len(self.values) - 1]
        if not sequential and not self.plain and len(self.values) > self.arity + 1 and self.maybe(8):
            outputs.append(self.pick(list(range(self.arity, len(self.values)))))
        keep_all = sequential or self.maybe(10)
        steps, outputs = (self.steps, outputs) if keep_all else without_dead_ends(self.steps, self.arity, outputs)
        return Network(steps, tuple(outputs), self.arity, sequential, **root)


@st.composite
def _move(draw: Any, draft: Draft, kinds: Any) -> None:
    getattr(draft, draw(st.sampled_from(kinds)))()


MOVES = (
    *("usual",) * 7,
    *("single",) * 6,
    *("residual", "cat", "reuse", "reuse", "block", "join", "parts", "gate", "resize_like"),
)
BLOCK_MOVES = ("usual", "usual", "usual", "single", "single", "single", "residual", "cat", "reuse", "block", "join")
