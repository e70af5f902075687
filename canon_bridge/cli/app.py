"""The commands: ``plan``, ``explain`` and ``audit``."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor, nn

import canon_bridge
from canon_bridge import heatmaps
from canon_bridge.cli.errors import CommandError, OneLineErrors, fail, in_one_line, reported
from canon_bridge.cli.images import as_seen, bounds, open_image, to_input
from canon_bridge.cli.loading import DEFAULT_SIZE, Loaded, load
from canon_bridge.cli.names import file_names
from canon_bridge.cli.records import audit_json, plan_json
from canon_bridge.cli.tables import audit_tables, new_table, plan_tables
from canon_bridge.core import Clipped, LeftoverOption, Prefer
from canon_bridge.frameworks import Attribute, Framework, PresetName, make_attribute, make_rules

app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Canonize networks for rule-based attribution: what becomes of each BatchNorm, maps of images, and where "
    "their relevance went.",
)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="torchvision:NAME, timm:NAME, or path/file.py:FUNCTION, which returns the model. A function "
        "transform(image) in that file makes a tensor (C, H, W) of a PIL image.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME",
        show_default=False,
        help="A state dict (.pth, .safetensors), or a name that torchvision or timm knows, which is downloaded: "
        "default, IMAGENET1K_V2, a1_in1k.",
    ),
]
PreferOption = Annotated[Prefer, typer.Option(help="Which merge to try first, or copies.")]
ClippedOption = Annotated[Clipped, typer.Option(help="Relevance at units that a thresholded ReLU clips.")]
PresetOption = Annotated[PresetName, typer.Option(help="The rules; in zennit the composite of the same name.")]
FrameworkOption = Annotated[Framework, typer.Option(help="Which one computes.")]
Target = Annotated[int | None, typer.Option(show_default="the top class", help="The number of the class to explain.")]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default=str(DEFAULT_SIZE),
        help="For path/file.py without a transform: images are resized to a square of this side.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, with everything that the tables leave out.")]


@app.command()
def plan(
    model: ModelArgument,
    weights: Weights = None,
    prefer: PreferOption = "left",
    clipped: ClippedOption = "absorb",
    leftover: Annotated[LeftoverOption, typer.Option(help="A BatchNorm that nothing can take.")] = "linear",
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="N,C,H,W",
            show_default=False,
            help="Trace with random inputs of this shape, for models with control flow on values: 1,3,224,224.",
        ),
    ] = None,
    as_json: Json = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit status 1 if a BatchNorm or an operation without a rule would stay."),
    ] = False,
    drawing: Annotated[
        Path | None,
        typer.Option("--draw", metavar="FILE", show_default=False, help="Draw it, too, as PNG, SVG or PDF."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", show_default=False, help="With --draw: draw each BatchNorm in this module: layer1."
        ),
    ] = None,
) -> None:
    """Show what becomes of each BatchNorm, and which operations have no rule. Weights may be random, as by default."""
    console, notes = Console(highlight=False), Console(stderr=True)
    if only is not None and drawing is None:
        raise CommandError(f"--only {only} says what to draw; give --draw FILE, too")
    inputs = None if input_shape is None else torch.randn(_shape(input_shape))
    loaded = load(model, weights)
    try:
        with reported(notes, f"no plan for {loaded.name}"):
            found = canon_bridge.plan(
                loaded.model, prefer=prefer, clipped=clipped, leftover=leftover, example_inputs=inputs
            )
    except CommandError as error:
        if inputs is None and isinstance(error.__cause__, canon_bridge.TracingError):
            raise CommandError(f"{error} On this command line: --input-shape 1,3,224,224") from error
        raise
    if drawing is not None:
        try:
            figure = found.draw(only)
        except ValueError as error:  # no such module
            raise CommandError(str(error)) from error
        _save(figure, drawing, dpi=150)
    if as_json:
        typer.echo(plan_json(found))
    else:
        _print(console, plan_tables(found))
    if strict and (found.refusals or found.uncovered):
        stays = f"BatchNorms that stay: {len(found.refusals)}, operations without a rule: {len(found.uncovered)}"
        raise typer.Exit(fail(f"{loaded.name}: {stays}", 1))


@app.command()
def explain(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", show_default=False, help="Files of images.")],
    weights: Weights = None,
    preset: PresetOption = "epsilon_plus",
    framework: FrameworkOption = "captum",
    prefer: PreferOption = "left",
    clipped: ClippedOption = "absorb",
    target: Target = None,
    size: Size = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results; made if it is missing.")] = Path(
        "maps"
    ),
) -> None:
    """Explain images: for each a heat map, an overlay (both PNG), and the relevance of each input value (.npy)."""
    console, notes = Console(highlight=False), Console(stderr=True)
    if out.exists() and not out.is_dir():
        raise CommandError(f"--out {out} is a file; give a folder")
    _check_framework(framework)
    loaded = load(model, weights, size)
    if loaded.weights is None:
        raise CommandError(
            f"{loaded.name} has random weights, whose maps mean nothing; give --weights default (a download) or "
            "--weights FILE"
        )
    pending = [_read(loaded, path) for path in images]  # all, before the first is computed
    rules = _Rules(loaded.model, preset, framework, prefer, clipped)
    table = new_table("image", "class", "score", "colours to ±", "files", right=("score", "colours to ±"))
    with _progress(notes) as progress:
        task = progress.add_task("explaining", total=len(images))
        for image, name in zip(pending, file_names(images), strict=True):
            with reported(progress.console, f"no map of {image.path}"):
                index, score = _choose(loaded, image.inputs, target)
                relevance = rules.attribute(image)(image.inputs, torch.tensor([index]))
            limit = _write(out, name, image, relevance[0])
            cells = str(image.path), loaded.class_name(index), f"{score:.4g}", f"{limit:.2g}", f"{name}*"
            table.add_row(*map(Text, cells))
            progress.advance(task)
    caption = (
        f"In {out}: .npy, _heatmap.png and _overlay.png of each. Colours end at the {heatmaps.PERCENTILE}th percentile "
        "of |relevance|."
    )
    _print(console, iter([table, Text(), Text(caption, style="dim", overflow="fold")]))


@app.command()
def audit(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", show_default=False, help="The file of an image.")],
    weights: Weights = None,
    preset: PresetOption = "epsilon_plus",
    framework: FrameworkOption = "captum",
    prefer: PreferOption = "left",
    clipped: ClippedOption = "absorb",
    target: Target = None,
    size: Size = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="PNG", show_default=False, help="Write the audit as bars, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show where the relevance of one map went: to the input, to biases, or lost, and at which modules."""
    console, notes = Console(highlight=False), Console(stderr=True)
    _check_framework(framework)
    loaded = load(model, weights, size)
    if loaded.weights is None:
        notes.print(f"note: {loaded.name} has random weights; --weights gives it others", soft_wrap=True)
    read = _read(loaded, image)
    with reported(notes, f"no audit of {image}"):
        index, score = _choose(loaded, read.inputs, target)
        rules = _Rules(loaded.model, preset, framework, prefer, clipped).make(read)
        report = canon_bridge.audit(loaded.model, read.inputs, target=index, rules=rules)
    if chart is not None:
        _save(report.bars(), chart)
    if as_json:
        typer.echo(audit_json(report))
    else:
        console.print(Text(f"{image}: class {loaded.class_name(index)}, score {score:.4g}"))
        _print(console, audit_tables(report))


@dataclass(frozen=True)
class _Read:
    """An image as the model gets it."""

    path: Path
    inputs: Tensor
    low: Tensor
    high: Tensor


@dataclass
class _Rules:
    """The rules that were asked for; those with bounds are made when the first image says which."""

    model: nn.Module
    preset: PresetName
    framework: Framework
    prefer: Prefer
    clipped: Clipped
    _attribute: Attribute | None = None

    def make(self, image: _Read) -> Any:
        """Return the rules."""
        settings = {"low": image.low, "high": image.high} if self.preset == "epsilon_gamma_box" else {}
        # Captum's LRP traces a model with the image where it has to, by itself.
        example = image.inputs if self.framework == "zennit" else None
        keywords: Any = {
            "prefer": self.prefer,
            "clipped": self.clipped,
            "settings": settings,
            "example_inputs": example,
        }
        return make_rules(self.framework, self.model, self.preset, **keywords)

    def attribute(self, image: _Read) -> Attribute:
        """Return what makes maps, the same for all images."""
        if self._attribute is None:
            self._attribute = make_attribute(self.framework, self.model, self.make(image))
        return self._attribute


def _read(loaded: Loaded, path: Path) -> _Read:
    image = open_image(path)
    return _Read(path, to_input(loaded.transform, image), *bounds(loaded.transform, image))


def _choose(loaded: Loaded, inputs: Tensor, target: int | None) -> tuple[int, float]:
    """Return the class to explain and its score."""
    with torch.no_grad():
        scores = loaded.model(inputs)
    if not (isinstance(scores, Tensor) and scores.dim() == 2 and len(scores) == 1):
        what = f"a tensor {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise CommandError(
            f"{loaded.name} returns {what} for one image; maps are of models that return a score for each class, (1, "
            "classes): give path/file.py:FUNCTION with a model that does"
        )
    classes = scores.shape[1]
    if target is not None and not 0 <= target < classes:
        raise CommandError(
            f"--target {target}: {loaded.name} has {classes} classes; give a number from 0 to {classes - 1}"
        )
    index = int(scores.argmax()) if target is None else target
    return index, float(scores[0, index])


def _save(figure: Any, file: Path, **options: Any) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, **options)
    except ValueError as error:  # no such format
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {in_one_line(error)}") from error


def _write(out: Path, name: str, image: _Read, relevance: Tensor) -> float:
    """Write the files of one image, and return where the colours end."""
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / f"{name}.npy", relevance.cpu().numpy())
    shown = relevance.sum(0)
    limit = heatmaps.colour_limit(shown)
    heatmaps.heatmap(shown, limit).save(out / f"{name}_heatmap.png")
    heatmaps.overlay(as_seen(image.inputs, image.low, image.high), shown, limit).save(out / f"{name}_overlay.png")
    return limit


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _print(console: Console, parts: Iterator[Any]) -> None:
    for part in parts:
        console.print(part)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(map(int, text.replace("x", ",").split(",")))
        if min(shape) > 0:
            return shape
    except ValueError:
        pass
    raise CommandError(f"--input-shape {text}: give whole numbers from 1 on, with commas: 1,3,224,224")


def _check_framework(framework: Framework) -> None:
    if find_spec(framework) is None:
        raise CommandError(f"{framework} is not installed: pip install 'canon-bridge[{framework}]'")
