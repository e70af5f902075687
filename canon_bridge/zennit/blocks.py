"""The building blocks: canonizers for one kind of merge each, and a composite that undoes in reverse order."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Self

from torch import nn
from zennit.canonizers import Canonizer

from canon_bridge.core import (
    Canonization,
    Chain,
    Clipped,
    Edits,
    Options,
    Prefer,
    Scope,
    Step,
    check_norm,
    is_linear,
    is_norm,
    is_relu,
    merge,
    width,
)
from canon_bridge.zennit.model import BACKEND


@contextmanager
def undo_on_error(instances: Sequence[Canonizer]) -> Generator[None]:
    """Remove the instances, last first, if the block raises."""
    try:
        yield
    except BaseException:
        for instance in reversed(instances):
            instance.remove()
        raise


class _MergeBatchNorm(Canonizer):
    """One kind of merge, one instance for each BatchNorm; the pattern is found on the data flow, not by order.

    ``register`` of the classes below takes more than that of zennit's base class, as in zennit's own canonizers: the
    type checker is told to ignore it.
    """

    kind: str
    prefer: Prefer = "right"

    def __init__(self, clipped: Clipped = "absorb") -> None:
        super().__init__()
        self.options = Options(prefer=self.prefer, clipped=clipped)
        self._edits = Edits()

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Carry out all merges of this kind in the model and return a handle for each of them.

        Raises
        ------
        ValueError, TracingError
            As :func:`canon_bridge.canonize`; nothing has changed then.
        """
        scope = Scope(kinds=frozenset({self.kind}), explicit=False)
        plan = Canonization(root_module, self.options, BACKEND, scope).plan
        instances: list[Canonizer] = []
        with undo_on_error(instances):
            for merge in plan.merges:
                chain = merge.chain
                modules: list[Any] = [[root_module.get_submodule(path) for path in chain.targets]]
                modules.append(root_module.get_submodule(chain.norm))
                modules += [root_module.get_submodule(path) for path in chain.absorbers]
                if not all(map(is_relu, modules[2:])):
                    continue
                instance = self.copy()
                instances.append(instance)
                instance.register(*modules)
        return instances

    def remove(self) -> None:
        """Undo what this instance did, in any order among several; a second call does nothing."""
        self._edits.undo()

    def copy(self) -> Self:
        """Return an instance with the same keywords that is not applied to anything."""
        return type(self)(self.options.clipped)

    def _merge(
        self, direction: str, linears: Sequence[nn.Module], batch_norm: nn.Module, relu: nn.Module | None = None
    ) -> None:
        """Merge by the chain of these modules; where they are in a model does not matter."""
        self._check(linears, batch_norm, relu)
        modules = {str(number): linear for number, linear in enumerate(linears)} | {"norm": batch_norm}
        channels = tuple(range(width(batch_norm)))
        steps = [Step(name, channels) for name in modules if name != "norm"]
        if relu is not None:
            modules["relu"] = relu
            after = tuple(channel + len(channels) for channel in channels)
            steps = [Step("relu", channels, absorbs=True), *(Step(step.module, after) for step in steps)]
        chain = Chain("norm", len(channels), direction, tuple(steps), ())
        with undo_on_error([self]):
            merge(self._edits, modules.__getitem__, chain, self.options.clipped == "absorb")

    def _check(self, linears: Sequence[nn.Module], batch_norm: nn.Module, relu: nn.Module | None = None) -> None:
        if not is_norm(batch_norm):
            raise TypeError(f"batch_norm is a {type(batch_norm).__name__}; it must be a BatchNorm of torch.nn.")
        check_norm(batch_norm, "batch_norm")
        for linear in linears:
            if not is_linear(linear):
                raise TypeError(f"linears holds a {type(linear).__name__}; only linear layers of torch.nn can merge.")
        if relu is not None and not is_relu(relu):
            raise TypeError(f"relu is a {type(relu).__name__} (or thresholded already); it must be a torch.nn.ReLU.")


class SequentialMergeBatchNorm(_MergeBatchNorm):
    """Merge each BatchNorm that directly follows a linear layer into that layer."""

    kind, prefer = "left", "left"

    def register(self, linears: Sequence[nn.Module], batch_norm: nn.Module) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Merge ``batch_norm`` into the linear layers before it, in place."""
        self._merge("left", linears, batch_norm)


class MergeBatchNormtoRight(_MergeBatchNorm):
    """Merge each BatchNorm that directly precedes linear layers into those layers."""

    kind = "right"

    def register(self, linears: Sequence[nn.Module], batch_norm: nn.Module) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Merge ``batch_norm`` into the linear layers after it, in place."""
        self._merge("right", linears, batch_norm)


class ThreshReLUMergeBatchNorm(_MergeBatchNorm):
    """Merge each BatchNorm in BatchNorm-ReLU-linear into the linear layer, by the thresholded ReLU.

    Parameters
    ----------
    clipped : {"absorb", "pass"}, default "absorb"
        What happens to relevance at units that the thresholded ReLU clips.
    """

    kind = "activation"

    def register(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, linears: Sequence[nn.Module], batch_norm: nn.Module, relu: nn.Module
    ) -> None:
        """Merge ``batch_norm`` into the linear layers after ``relu``, which becomes thresholded, in place."""
        self._merge("right", linears, batch_norm, relu)


class CompositeCanonizer(Canonizer):
    """Apply several canonizers one after the other; the handles undo them in reverse order.

    Parameters
    ----------
    canonizers : iterable of Canonizer
        Canonizers of this module or of zennit.
    """

    def __init__(self, canonizers: Iterable[Canonizer]) -> None:
        super().__init__()
        self.canonizers = tuple(canonizers)

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Apply all canonizers; if one raises, undo those before it. The last handle applied comes first."""
        instances: list[Canonizer] = []
        with undo_on_error(instances):
            for canonizer in self.canonizers:
                instances.extend(canonizer.apply(root_module))
        return instances[::-1]

    def register(self) -> None:
        """Do nothing: the canonizers inside register themselves."""

    def remove(self) -> None:
        """Do nothing: the handles that ``apply`` returned remove themselves."""

    def copy(self) -> Self:
        """Return a composite of copies."""
        return type(self)(canonizer.copy() for canonizer in self.canonizers)
