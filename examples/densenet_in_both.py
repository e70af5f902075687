"""Explain a DenseNet with zennit and with Captum, with and without canonization, and put it into one picture.

``python examples/densenet_in_both.py`` trains a small DenseNet on real digits in clutter (a minute or two,
kept for the next run), prints a table and writes ``densenet_in_both.png``. The options
``--weights imagenet --image PATH`` do the same for the pretrained densenet121 and a photograph of yours.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from attributions import Way, share_inside
from photographs import InputError, class_name, load_model, load_photograph, show
from pictures import Panel, Row, draw, save
from small_densenet import Recipe, accuracy, default_cache, draw_held_out, one_thread, trained_model
from tables import Findings, Subject, investigate, table
from torch import Tensor
from whole_numbers import whole_number

EXPLAINED = 64
"""How many held-out digits the table is about, at least."""


def digits_subject(recipe: Recipe, cache: Path, retrain: bool, count: int) -> Subject:
    """Train or load the small DenseNet, and take the first ``count`` held-out digits."""
    trained = trained_model(recipe, cache, retrain)
    held_out = draw_held_out(recipe)
    right = accuracy(trained.model, held_out)
    kept = ", weights from the cache" if trained.was_cached else ""
    headline = (
        f"A small DenseNet on digits in clutter: {right:.1%} of {len(held_out)} held-out digits right "
        f"({recipe.epochs} epochs in {trained.seconds:.0f} s{kept})"
    )
    chosen = held_out[:count]
    boxes = tuple((row, column, recipe.scene.digit) for row, column in chosen.corners.tolist())
    pictures = chosen.images[:, 0]
    kind = f"{len(chosen)} held-out digits"
    masks = chosen.box_masks()
    return Subject(headline, kind, trained.model, chosen.images, pictures, str, masks, boxes)


def photograph_subject(weights: str, image: Path) -> Subject:
    """Load densenet121 and one photograph."""
    inputs, model = load_photograph(image), load_model(weights)
    classes = model.classifier.out_features
    source = "ImageNet weights" if weights == "imagenet" else f"weights from {weights}"
    headline = f"densenet121 ({source}) on {image}"
    name = partial(class_name, classes=classes)
    return Subject(headline, "the photograph", model, inputs, show(inputs), name)


def choose_rows(targets: Tensor, count: int) -> list[int]:
    """Choose inputs for the picture: the first of every class, then the second of every class, and so on."""
    seen: dict[int, int] = {}
    ranks: list[tuple[int, int]] = []
    for index, target in enumerate(targets.tolist()):
        ranks.append((seen.get(target, 0), index))
        seen[target] = seen.get(target, 0) + 1
    return [index for _, index in sorted(ranks)[:count]]


def picture_rows(subject: Subject, findings: Findings, count: int) -> list[Row]:
    """Gather the rows of the picture."""
    return [_picture_row(subject, findings, index) for index in choose_rows(findings.targets, count)]


def _picture_row(subject: Subject, findings: Findings, index: int) -> Row:
    """Gather one row of the picture."""
    panels: list[Panel] = []
    for way, maps in shown_maps(findings):
        relevance, note = maps[index], ""
        if subject.masks is not None:
            share = share_inside(relevance[None], subject.masks[index][None]).item()
            note = f"{share:.0%} of the red is in the box"
        # Biases keep more of the logit in one way than in another; shares of their own totals compare.
        share_of_total = relevance / relevance.abs().sum().clamp(min=torch.finfo(relevance.dtype).tiny)
        panels.append(Panel(share_of_total, way.framework, _state(way), note))
    box = subject.boxes[index] if subject.boxes else None
    name, logit = subject.name(int(findings.targets[index])), findings.logits[index].item()
    return Row(subject.pictures[index], name, f"logit {logit:.1f}", tuple(panels), box)


def _state(way: Way) -> str:
    return "canonized" if way.is_canonized else "un-canonized"


def shown_maps(findings: Findings) -> list[tuple[Way, Tensor]]:
    """Return what the picture shows, un-canonized zennit and both canonized ones, with the maps."""
    return [
        (outcome.way, outcome.relevance)
        for outcome in findings.single
        if outcome.relevance is not None and (outcome.way.is_canonized or outcome.way.framework == "zennit")
    ]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="densenet_in_both",
        description="Explain a DenseNet with zennit and with Captum, canonized and not.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("densenet_in_both.png"),
        metavar="PNG",
        help="the picture (%(default)s)",
    )
    digits = parser.add_argument_group("digits in clutter")
    rows = whole_number(1, EXPLAINED)
    digits.add_argument("--digits", type=rows, default=5, metavar="N", help="rows (%(default)s)")
    digits.add_argument("--seed", type=whole_number(0), default=0, help="of split, canvases and training")
    epochs = whole_number(0)
    digits.add_argument("--epochs", type=epochs, default=Recipe.epochs, help="of training (%(default)s)")
    digits.add_argument(
        "--cache", type=Path, default=default_cache(), metavar="DIR", help="of trained weights (%(default)s)"
    )
    digits.add_argument("--retrain", action="store_true", help="train even where the cache has the weights")
    photograph = parser.add_argument_group("a photograph instead")
    photograph.add_argument(
        "--weights",
        metavar="imagenet|PATH",
        help="of densenet121: torchvision's download, or a state-dict file",
    )
    photograph.add_argument("--image", type=Path, metavar="PATH", help="the photograph")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; ``argv`` is ``sys.argv[1:]`` by default. Returns the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = build_parser()
    options = parser.parse_args(argv)
    if (options.weights is None) != (options.image is None):
        given, missing = ("--weights", "--image") if options.image is None else ("--image", "--weights")
        parser.error(f"{given} needs {missing} too, for example: --weights imagenet --image photograph.jpg")
    if options.output.is_dir():
        parser.error(f"--output {options.output} is a folder; give the name of a file in it")
    try:
        if options.weights is None:
            recipe = Recipe(epochs=options.epochs, seed=options.seed)
            subject = digits_subject(recipe, options.cache, options.retrain, EXPLAINED)
        else:
            subject = photograph_subject(options.weights, options.image)
    except InputError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    with nullcontext() if options.weights else one_thread():
        findings = investigate(subject)
    print(subject.headline)
    print(f"EpsilonPlus, explaining the top class of {subject.kind}", end="\n\n")
    print(table(subject, findings), end="\n\n")
    save(draw(picture_rows(subject, findings, options.digits)), options.output)
    print(f"Picture: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
