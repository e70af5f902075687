"""Networks whose containers are called, or write, in ways of their own; each takes ``(N, 3, 6, 6)``."""

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.nn import quantized

from tests.operations.stages import CLASSES

Pair = namedtuple("Pair", ["low", "high"])


def block(inputs: int = 3, outputs: int = 4, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class Network(nn.Module):
    """Two branches ``a`` and ``b``, a container that joins them, and a head with a BatchNorm before it."""

    def __init__(self, join: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.join = block(), block(), join
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(144, CLASSES)

    def joined(self, a, b):
        raise NotImplementedError

    def forward(self, x):
        return self.head(self.norm(self.joined(self.a(x), self.b(x))).relu().flatten(1))


class FromDict(nn.Module):
    def forward(self, features):
        return features["low"] + features["high"]


class FromValues(nn.Module):
    def forward(self, features):
        low, high = features.values()
        return low + high


class FromSequence(nn.Module):
    def forward(self, features):
        return features[0] + features[1]


class FromUnpacked(nn.Module):
    def forward(self, features):
        low, high = features
        return low + high


class FromFields(nn.Module):
    def forward(self, features):
        return features.low + features.high


class FromKeywords(nn.Module):
    def forward(self, low=None, *, high):
        return low + high if low is not None else high


class FromStar(nn.Module):
    def forward(self, *features, **options):
        return sum(features) + options.get("more", 0)


class HandedOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = FromKeywords()

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Nested(nn.Module):
    def forward(self, features):
        (low, rest), scale = features
        return low + scale * rest[0]["high"]


class ToDict(nn.Module):
    def forward(self, low, high):
        return OrderedDict(sum=low + high, low=low)


class CalledWithDict(Network):
    def joined(self, a, b):
        return self.join({"low": a, "high": b})


class CalledWithOrderedDict(Network):
    def joined(self, a, b):
        features = OrderedDict()
        features["low"] = a
        features["high"] = b
        return self.join(features)


class CalledWithOrderedPairs(Network):
    def joined(self, a, b):
        return self.join(OrderedDict([("low", a), ("high", b)]))


class CalledWithList(Network):
    def joined(self, a, b):
        return self.join([a, b])


class CalledWithTuple(Network):
    def joined(self, a, b):
        return self.join((a, b))


class CalledWithNamedtuple(Network):
    def joined(self, a, b):
        return self.join(Pair(low=a, high=b))


class CalledWithKeywords(Network):
    def joined(self, a, b):
        return self.join(high=b, low=a)


class CalledWithStar(Network):
    def joined(self, a, b):
        return self.join(*[a, b], more=a)


class CalledWithDoubleStar(Network):
    def joined(self, a, b):
        return self.join(**{"low": a, "high": b})


class CalledWithNest(Network):
    def joined(self, a, b):
        return self.join(((a, [{"high": b}]), 0.5))


class ReturnsDict(Network):
    def joined(self, a, b):
        return self.join(a, b)["sum"]


@dataclass
class Features:
    low: Tensor
    high: Tensor

    def joined(self) -> Tensor:
        return self.low - 0.5 * self.high


class ToDataclass(nn.Module):
    def forward(self, low, high):
        return Features(low, high=high)


@dataclass
class Output(OrderedDict):
    """Fields that are items, too, by name and by number, as the outputs of language and vision models often are."""

    low: Tensor | None = None
    high: Tensor | None = None
    further: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high", "further"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


class ToOutput(nn.Module):
    def forward(self, low, high):
        return Output(low, high=high, further=(low * 2, high))


class ReturnsOutput(Network):
    def joined(self, a, b):
        output = self.join(a, b)
        assert isinstance(output, Output)
        return output.low + 2 * output[1] - output["further"][0] - 0.5 * output.further[1]


class ToList(nn.Module):
    def forward(self, low, high):
        return [low, high]


class ReturnsDataclass(Network):
    def joined(self, a, b):
        features = self.join(a, b)
        return features.joined() + features.high


class ReturnsListThatIsEmptied(Network):
    def joined(self, a, b):
        features = self.join(a, b)
        return features.pop() - 0.5 * features.pop()


class FromStarAndNames(nn.Module):
    def forward(self, *features, scale=1.0, names=("low", "high"), skip=None):
        taken = {name: feature * scale for name, feature in zip(names, features, strict=True)}
        return F.relu(taken["low"] - 0.5 * taken["high"]) if skip is None else skip


class CalledWithStarAndNames(Network):
    def joined(self, a, b):
        return self.join(a, b, scale=0.3) + self.join(b, a, names=["high", "low"])


class WritesOnItself(Network):
    """Keeps what it has computed as attributes, and reads them again."""

    def joined(self, a, b):
        self.features = a + b
        self.low = a
        return self.features + self.low


class InnerWritesOnItself(nn.Module):
    def forward(self, low, high):
        self.features = low + high
        return self.features


class WritesToList(Network):
    def joined(self, a, b):
        self.outputs = []
        self.outputs.append(a)
        self.outputs.append(b)
        return self.outputs[0] + self.outputs[-1]


class WritesToDict(Network):
    def joined(self, a, b):
        self.outputs = {}
        self.outputs["a"] = a
        self.outputs["b"] = b
        return self.outputs["a"] + self.outputs["b"]


class Appends(nn.Module):
    """Writes its result into the list that it is called with, and returns that list or nothing."""

    def __init__(self, returns: bool) -> None:
        super().__init__()
        self.conv, self.returns = nn.Conv2d(4, 4, 1), returns

    def forward(self, features):
        features.append(F.relu(self.conv(features[-1])) + features[0])
        return features if self.returns else None


class ReadsWhatIsAppended(Network):
    def joined(self, a, b):
        features = [a, b]
        self.join(features)
        self.join(features=features)
        return features[1] - 0.5 * features[2] + features[3]


class ReadsBothNamesOfAList(Network):
    def joined(self, a, b):
        features = [a]
        others = self.join(features)
        others.append(b)
        return features[-1] + 2 * features[1] + len(features) * others[0]


class AppendsToBoth(nn.Module):
    def forward(self, kept, features):
        kept.append(F.relu(features[0]))
        return features[-1] - 0.5 * features[0]


class PassesAListTwice(Network):
    def joined(self, a, b):
        features = [a]
        return self.join(features, features) + 2 * features[-1] - b


class Branches(nn.Module):
    """Overwrites the parts of the list that it is called with, as networks of several resolutions do."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(2)])

    def forward(self, features):
        for index, branch in enumerate(self.branches):
            features[index] = branch(features[index])
        return [features[0] + features[1], features[0] - 0.5 * features[1]]


class ReadsOverwrittenParts(Network):
    def joined(self, a, b):
        features = [a, b]
        low, high = self.join(features)
        return low + 0.3 * high + 2 * features[0] + features[1]


class FillsDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, found, key="low"):
        found[key] = self.conv(found["high"]) + found["high"]
        found["high"] = F.relu(found[key])


class ReadsFilledDict(Network):
    def joined(self, a, b):
        found = OrderedDict(high=a)
        self.join(found)
        self.join(found, key="lower")
        return found["low"] + 0.5 * found["lower"] - found["high"] + b


class Around(nn.Conv2d):
    """A layer whose class does something before and after the call."""

    def __call__(self, x):
        return super().__call__(x + 1) * 3


class BlockAround(nn.Sequential):
    def __call__(self, low, high):
        return F.relu(super().__call__(low)) - high


class CallsAround(Network):
    def __init__(self) -> None:
        super().__init__(BlockAround(Around(4, 4, 1), nn.BatchNorm2d(4)))

    def joined(self, a, b):
        return self.join(a, b)


class Counts(Network):
    """Writes a number on itself at each call."""

    calls = 0

    def joined(self, a, b):
        self.calls = self.calls + 1
        return a + b


class Parts(Network):
    def joined(self, a, b):
        return torch.cat([self.mixed(*a.chunk(2, 1)), self.mixed(*b.split(2, dim=1))], 1)

    def mixed(self, one, other):
        return one + 0.5 * other if one.shape[1] == 2 else one

    def forward(self, x):
        return self.head(F.pad(self.joined(self.a(x), self.b(x)), (0, 0, 0, 0)).flatten(1))


class StarOfChunks(Network):
    def joined(self, a, b):
        return torch.cat([self.join(*a.chunk(2, 1)), self.join(*b.chunk(2, 1))], 1)


class ByRank(Network):
    """Asks a dictionary by the number of dimensions."""

    def joined(self, a, b):
        pool = {3: F.avg_pool1d, 4: F.avg_pool2d}[a.ndim]
        return pool(a, 3, 1, 1) + b


class ByRankAsFlag(Network):
    def joined(self, a, b):
        return a + b if a.dim() == 4 else a - b


class OnesExpanded(Network):
    def joined(self, a, b):
        return a + b * torch.ones(1, 4, 1, 1).expand(a.shape[0], -1, -1, -1)


class OnesOfShape(Network):
    def joined(self, a, b):
        return a * torch.ones(a.shape[0], 1, 6, 6) + torch.zeros(b.size()) + b


class ByIndexVariable(Network):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor([3, 1, 0, 2]))

    def joined(self, a, b):
        index = torch.autograd.Variable(self.index)
        return torch.index_select(a, 1, index) + b


class ByModuleList(Network):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)])

    def joined(self, a, b):
        return sum(branch(h) for branch, h in zip(self.branches, (a, b), strict=True))


class ByModuleDict(Network):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"a": nn.Conv2d(4, 4, 1), "b": block(4)})

    def joined(self, a, b):
        inputs = {"a": a, "b": b}
        return sum(self.branches[name](inputs[name]) for name in self.branches)


class Residual(Network):
    def joined(self, a, b):
        out = self.norm(a)
        out += b
        return out


class Lambda(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Overrides(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, x):
        for module in self:
            x = module(x) + x
        return x


class InOverrides(Network):
    def __init__(self) -> None:
        super().__init__(Overrides(block(4), nn.Conv2d(4, 4, 1)))

    def joined(self, a, b):
        return self.join(a) + b


class PadAndNorm(nn.Module):
    """A BatchNorm beside channels of zeros, flat in front of a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Linear(9 * 36, CLASSES)

    def forward(self, x):
        padded = F.pad(self.conv(x), (0, 0, 0, 0, 0, 3))
        return self.head(torch.cat([padded, self.norm(x)], 1).flatten(1))


class ChannelFactor(nn.Module):
    """A factor that makes four channels of one, in front of a BatchNorm and behind one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm0 = nn.Conv2d(3, 1, 3, padding=1), nn.BatchNorm2d(1)
        self.factor = nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 0.3]).view(1, 4, 1, 1))
        self.norm1, self.head = nn.BatchNorm2d(4), nn.Linear(144, CLASSES)

    def forward(self, x):
        return self.head(F.relu(self.norm1(self.norm0(self.conv(x)) * self.factor)).flatten(1))


class ViewWritten(nn.Module):
    """A ReLU on a part of what a BatchNorm has returned."""

    def __init__(self, part: Callable) -> None:
        super().__init__()
        self.conv, self.norm, self.part = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), part
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        y = self.norm(self.conv(x))
        F.relu_(self.part(y))
        return self.head(y.flatten(1))


class ReadyToBeQuantized(Network):
    """A float model with the modules that quantization puts others in the place of."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.functions, self.conv = quantized.FloatFunctional(), nn.Conv2d(8, 4, 1)

    def joined(self, a, b):
        f, c = self.functions, self.conv(self.functions.cat([self.quant(a), b], 1))
        y = f.add(f.add_relu(a, c), f.mul_scalar(f.add_scalar(b, 0.5), -2.0))
        return self.dequant(f.matmul(y, torch.eye(6, dtype=y.dtype).flip(0)))


def _with_join(network: type[Network], join: type[nn.Module]) -> Callable[[], nn.Module]:
    return lambda: network(join())


CONTAINERS: dict[str, Callable[[], nn.Module]] = {
    "dict": _with_join(CalledWithDict, FromDict),
    "dict, values": _with_join(CalledWithDict, FromValues),
    "OrderedDict": _with_join(CalledWithOrderedDict, FromDict),
    "OrderedDict, values": _with_join(CalledWithOrderedDict, FromValues),
    "OrderedDict of pairs": _with_join(CalledWithOrderedPairs, FromDict),
    "list": _with_join(CalledWithList, FromSequence),
    "list, unpacked": _with_join(CalledWithList, FromUnpacked),
    "tuple": _with_join(CalledWithTuple, FromSequence),
    "tuple, unpacked": _with_join(CalledWithTuple, FromUnpacked),
    "namedtuple": _with_join(CalledWithNamedtuple, FromFields),
    "namedtuple, unpacked": _with_join(CalledWithNamedtuple, FromUnpacked),
    "keywords": _with_join(CalledWithKeywords, FromKeywords),
    "keywords, handed on": _with_join(CalledWithKeywords, HandedOn),
    "star": _with_join(CalledWithStar, FromStar),
    "double star": _with_join(CalledWithDoubleStar, FromKeywords),
    "double star, handed on": _with_join(CalledWithDoubleStar, HandedOn),
    "nest": _with_join(CalledWithNest, Nested),
    "returns a dict": _with_join(ReturnsDict, ToDict),
    "returns a dataclass": _with_join(ReturnsDataclass, ToDataclass),
    "returns a dataclass with items": _with_join(ReturnsOutput, ToOutput),
    "returns a list that is emptied": _with_join(ReturnsListThatIsEmptied, ToList),
    "star and names": _with_join(CalledWithStarAndNames, FromStarAndNames),
    "writes on itself": WritesOnItself,
    "inner writes on itself": lambda: CalledWithTupleStar(InnerWritesOnItself()),
    "writes to a list": WritesToList,
    "writes to a dict": WritesToDict,
    "appends to a list": _with_join(ReadsWhatIsAppended, lambda: Appends(False)),
    "appends to a list and returns it": _with_join(ReadsBothNamesOfAList, lambda: Appends(True)),
    "appends to a list of two names": _with_join(PassesAListTwice, AppendsToBoth),
    "overwrites parts of a list": _with_join(ReadsOverwrittenParts, Branches),
    "fills a dict": _with_join(ReadsFilledDict, FillsDict),
    "classes with a call of their own": CallsAround,
    "counts": Counts,
    "ready to be quantized": ReadyToBeQuantized,
    "method with parts": Parts,
    "star of chunks": _with_join(StarOfChunks, lambda: Lambda(lambda one, other: one - other)),
    "dictionary by rank": ByRank,
    "condition on rank": ByRankAsFlag,
    "ones, expanded": OnesExpanded,
    "ones of a shape": OnesOfShape,
    "index as Variable": ByIndexVariable,
    "ModuleList": ByModuleList,
    "ModuleDict": ByModuleDict,
    "residual": Residual,
    "Sequential with a forward": InOverrides,
    "padded channels beside a norm": PadAndNorm,
    "factor makes channels": ChannelFactor,
    "relu_ of tensor_split of norm": lambda: ViewWritten(lambda y: y.tensor_split(2, 1)[0]),
    "relu_ of narrow of norm": lambda: ViewWritten(lambda y: y.narrow(1, 2, 2)),
    "relu_ of view of norm": lambda: ViewWritten(lambda y: y.view(-1)),
    "relu_ of part of view of norm": lambda: ViewWritten(lambda y: y.permute(0, 2, 3, 1)[..., 1]),
}


class CalledWithTupleStar(Network):
    def joined(self, a, b):
        return self.join(*(a, b))


# What the plan can only know with a value at hand; ``LRP.attribute`` has one.
BY_VALUE = frozenset({"dictionary by rank", "condition on rank"})
# Their own forward changes them, canonical or not.
CHANGE_THEMSELVES = frozenset(
    {"writes on itself", "inner writes on itself", "writes to a list", "writes to a dict", "counts"}
)
