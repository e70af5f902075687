"""Time what canonization costs, in units of the model's own forward, and write the table and the plot of the docs.

python -m benchmarks.speed --json speed.json --plot docs/speed.png --markdown docs/speed.md

pytest-benchmark and asv time functions one after the other and report seconds; here each figure is a ratio to a forward
of the same round, which neither has, and what is left (medians and quartiles) is in the standard library.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.files import write_whole
from benchmarks.speed import alone, page, probes
from benchmarks.speed.figures import COPIES, RATIO, SIZE, Figure
from benchmarks.speed.models import MODELS, RESIDUAL, build, images
from benchmarks.speed.page import Document
from benchmarks.speed.parts import parts
from benchmarks.speed.plot import draw
from benchmarks.speed.timing import Clock, Rounds, interleave
from benchmarks.versions import commit, versions
from tests.support import zoo

_DESCRIPTION = "Time what canonization costs, in units of the model's own forward."
PACKAGES = ("torch", "torchvision", "zennit", "captum")


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes
    ----------
    models : tuple of str
        By default. The first is attributed with several images and other sizes, too.
    attributed, several, untangled : tuple of str
        Those that are attributed; those that run with several images; those that are untangled, too. Others are there
        for their depth.
    size, batch, sizes : int, int, tuple of int
        Height and width of the images; how many several are; the other sizes.
    entries, attributions : Rounds
        How often each group is repeated, and for how long.
    blocks : tuple of int
        Of the residual nets.
    imports : int
        How often to import.
    """

    models: tuple[str, ...]
    attributed: tuple[str, ...]
    several: tuple[str, ...]
    untangled: tuple[str, ...]
    size: int
    batch: int
    sizes: tuple[int, ...]
    entries: Rounds
    attributions: Rounds
    blocks: tuple[int, ...]
    imports: int


FULL = Extent(
    models=MODELS,
    attributed=("densenet121", "resnet50", "vgg16_bn", "efficientnet_b0"),
    several=("densenet121", "resnet50", "efficientnet_b0"),  # VGG takes minutes
    untangled=("densenet121",),  # in others few layers are read by several BatchNorms
    size=SIZE,
    batch=8,
    sizes=(64, 128, 512),
    entries=Rounds(11, 10),
    attributions=Rounds(5, 15),
    blocks=(25, 100, 400),
    imports=7,
)
QUICK = Extent(
    models=("densenet121", "resnet50"),
    attributed=("densenet121", "resnet50"),
    several=("densenet121",),
    untangled=(),
    size=64,
    batch=2,
    sizes=(32,),
    entries=Rounds(3, 0),
    attributions=Rounds(3, 0),
    blocks=(5, 20),
    imports=1,
)


def run(extent: Extent, models: Sequence[str], clock: Clock, norms: dict[str, int]) -> Iterator[list[Figure]]:
    """Yield the figures of each group, and note the number of BatchNorms of each model."""
    for name in tqdm(models, unit="model", file=sys.stderr):
        model = build(name).to(clock.device)
        norms[name] = sum(map(zoo.is_batch_norm, model.modules()))
        yield _entering(model, name, extent, clock)
        if name in extent.untangled:
            yield _with_copies(model, name, extent, clock)
        if name in extent.attributed or name not in MODELS:
            yield _attribution(model, name, extent, clock)
        if name in extent.several or name not in MODELS:
            yield _several_images(model, name, extent, clock)
    for blocks in extent.blocks:
        name = f"{RESIDUAL}{blocks}"
        model = build(name).to(clock.device)
        norms[name] = blocks + 1
        yield _planning(model, name, clock, extent)
    for name in models:
        for prefer in (*probes.PREFERS, COPIES) if name in extent.untangled else probes.PREFERS:
            yield alone.measure_memory(name, prefer, clock.device)
    yield alone.measure_import(extent.imports)
    yield from _first_model(models[0], extent, clock)


def _entering(model: nn.Module, name: str, extent: Extent, clock: Clock) -> list[Figure]:
    x = images(1, extent.size, clock.device)
    found = [probe for prefer in probes.PREFERS for probe in _around_the_block(model, x, prefer)]
    found.append(probes.forward_of_fused(model, x))
    forward = _forward(model, x)
    return interleave(clock, forward, found, extent.entries, model=name, batch=1, size=extent.size)


def _with_copies(model: nn.Module, name: str, extent: Extent, clock: Clock) -> list[Figure]:
    x = images(1, extent.size, clock.device)
    found = [*_around_the_block(model, x, COPIES), probes.by_captum(model, x, COPIES)]
    found.append(probes.by_zennit(model, x, "plain", "", ()))
    figures = interleave(clock, _forward(model, x), found, extent.attributions, model=name, batch=1, size=extent.size)
    return [figure for figure in figures if figure.prefer == COPIES]


def _around_the_block(model: nn.Module, x: torch.Tensor, prefer: probes.Prefer) -> list[probes.Probe]:
    return [
        probes.first_entry(model, prefer),
        probes.next_entry(model, prefer),
        probes.forward_inside(model, x, prefer),
        probes.forward_of_copy(model, x, prefer),
    ]


def _attribution(model: nn.Module, name: str, extent: Extent, clock: Clock) -> list[Figure]:
    x = images(1, extent.size, clock.device)
    found = [*probes.by_zennit_alone(model, x, name), probes.by_captum_alone(model, x)]
    for prefer in probes.PREFERS:
        found += [probes.by_model_canonizer(model, x, prefer), probes.by_captum(model, x, prefer)]
    figures = interleave(clock, _forward(model, x), found, extent.attributions, model=name, batch=1, size=extent.size)
    return [figure for figure in figures if figure.row != "own_forward"]  # which stands with what was timed first


def _several_images(model: nn.Module, name: str, extent: Extent, clock: Clock) -> list[Figure]:
    x = images(extent.batch, extent.size, clock.device)
    found = [probes.forward_of_fused(model, x)]
    for prefer in probes.PREFERS:
        found += [probes.forward_inside(model, x, prefer), probes.forward_of_copy(model, x, prefer)]
    forward = _forward(model, x)
    return interleave(clock, forward, found, extent.attributions, model=name, batch=extent.batch, size=extent.size)


def _first_model(name: str, extent: Extent, clock: Clock) -> Iterator[list[Figure]]:
    """Yield what takes too long for all models: other sizes, and several images that are attributed."""
    model = build(name).to(clock.device)
    for size in extent.sizes:
        yield _attributed_alike(model, name, 1, size, extent, clock)
    yield _attributed_alike(model, name, extent.batch, extent.size, extent, clock)


def _attributed_alike(model: nn.Module, name: str, batch: int, size: int, extent: Extent, clock: Clock) -> list[Figure]:
    x = images(batch, size, clock.device)
    found = [probes.by_zennit(model, x, "plain", "", ())]
    for prefer in probes.PREFERS:
        found += [probes.next_entry(model, prefer), probes.by_captum(model, x, prefer)]
    figures = interleave(clock, _forward(model, x), found, extent.attributions, model=name, batch=batch, size=size)
    return [figure for figure in figures if batch == 1 or figure.row != "own_forward"]  # it is there


def _planning(model: nn.Module, name: str, clock: Clock, extent: Extent) -> list[Figure]:
    x = images(1, 32, clock.device)
    found = [probes.first_entry(model, prefer) for prefer in probes.PREFERS]
    figures = interleave(clock, _forward(model, x), found, extent.attributions, model=name, batch=1, size=32)
    return [figure for figure in figures if figure.row in ("own_forward", "plan")]


def _forward(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    return lambda: probes.run_forward(model, x)


def growth(document: Document) -> list[Figure]:
    """Return the power of the number of BatchNorms by which planning grows, for each family of models."""
    found: list[Figure] = []
    for family in (RESIDUAL, "densenet"):
        for prefer in probes.PREFERS:
            points = sorted(
                (document.norms[figure.model], figure.milliseconds)
                for figure in document.named("plan")
                if figure.model.startswith(family) and figure.prefer == prefer and figure.milliseconds
            )
            if len(points) > 1 and points[0][0] < points[-1][0]:
                (few, short), (many, long) = points[0], points[-1]
                power = math.log(long / short) / math.log(many / few)
                found.append(Figure.of("growth", [power], model=f"{family}s", prefer=prefer, unit=RATIO))
    return found


def setting(clock: Clock) -> str:
    """Return what was measured and on what, in words."""
    threads = f"{clock.threads} thread" + "s" * (clock.threads > 1)
    device = platform.machine() if clock.device == "cpu" else torch.cuda.get_device_name()
    return f"commit {commit() or 'unknown'}, {versions(PACKAGES)}; {device}, {threads}, {clock.name}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=_DESCRIPTION)
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"any of torchvision, densenet264, {RESIDUAL}N")
    parser.add_argument("--quick", action="store_true", help="two models, small images, three rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1: what other processes do is not counted)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page for docs/speed.md")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the picture for docs/speed.png")
    parser.add_argument("--before", type=Path, metavar="FILE", help="JSON of an earlier run, to stand beside this one")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="again", help="measure nothing: take this JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    options = parse(arguments)
    if options.again:
        document = Document.read(json.loads(options.again.read_text()))
    else:
        words = sys.argv[1:] if arguments is None else arguments
        document = measure(options, shlex.join(["python", "-m", "benchmarks.speed", *words]))
    before = Document.read(json.loads(options.before.read_text())) if options.before else None
    if options.json:
        _write(document, options.json)
    if options.plot:
        draw(document, before, options.plot)
    if options.markdown:
        plot = relpath(options.plot, options.markdown.parent) if options.plot else None
        write_whole(options.markdown, page.markdown(document, before, plot))


def measure(options: argparse.Namespace, command: str) -> Document:
    """Return all that the options ask for, printed as it comes."""
    extent = QUICK if options.quick else FULL
    torch.set_num_threads(options.threads)
    clock = Clock(options.device, options.threads)
    document = Document(command, setting(clock))
    print(document.setting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for figures in run(extent, options.models or extent.models, clock, document.norms):
            _keep(document, figures)
            if options.json:
                _write(document, options.json)  # what there is, should the command be killed
        for name in (options.models or extent.attributed) if clock.device == "cpu" else ():
            document.parts += parts(build(name).to(clock.device), name, images(1, extent.size, clock.device))
    _keep(document, growth(document))
    return document


def _write(document: Document, path: Path) -> None:
    write_whole(path, json.dumps(document.as_dict(), indent=1))


def _keep(document: Document, figures: list[Figure]) -> None:
    document.figures += figures
    with tqdm.external_write_mode(file=sys.stdout):
        print(*map(page.text, figures), sep="\n", flush=True)


if __name__ == "__main__":
    main()
