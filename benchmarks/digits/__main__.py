"""Train a small DenseNet on digits in clutter, explain it with zennit and with Captum, and say which map is right.

``python -m benchmarks.digits`` trains (a minute or two, kept for the next run), prints a table and writes a picture,
``densenet_in_both.png``. With ``--seeds 5`` five networks are trained, and the table says how far they differ.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.digits.network import Recipe, default_cache, one_thread, trained_model
from benchmarks.digits.picture import Panel, Row, draw, save
from benchmarks.digits.table import Findings, investigate, table
from benchmarks.digits.ways import Outcome, share_inside

EXPLAINED = 64  # held-out digits, which the table is about


def rows(found: Findings, count: int) -> list[Row]:
    """Gather the rows of the picture: the first digit of every class, then the second, and so on."""
    seen: dict[int, int] = {}
    ranks: list[tuple[int, int]] = []
    for index, target in enumerate(found.targets.tolist()):
        seen[target] = seen.get(target, 0) + 1
        ranks.append((seen[target], index))
    return [_row(found, index) for _, index in sorted(ranks)[:count]]


def _row(found: Findings, index: int) -> Row:
    shown = [outcome for outcome in found.single if outcome.way.is_canonized or outcome.way.framework == "zennit"]
    panels = [_panel(found, outcome, index) for outcome in shown if outcome.relevance is not None]
    row, column = found.canvases.corners[index].tolist()
    box = (row, column, found.canvases.scene.digit)
    note = f"logit {found.logits[index].item():.1f}"
    return Row(found.canvases.images[index, 0], str(found.targets[index].item()), note, tuple(panels), box)


def _panel(found: Findings, outcome: Outcome, index: int) -> Panel:
    assert isinstance(outcome.relevance, Tensor)
    relevance = outcome.relevance[index]
    share = share_inside(relevance[None], found.canvases[index : index + 1].box_masks()).item()
    # Biases keep more of the logit in one way than in another; shares of their own totals compare.
    share_of_total = relevance / relevance.abs().sum().clamp(min=torch.finfo(relevance.dtype).tiny)
    state = "canonized" if outcome.way.is_canonized else "un-canonized"
    return Panel(share_of_total, outcome.way.framework, state, f"{share:.0%} of the red is in the box")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits",
        description="Explain a small DenseNet with zennit and with Captum, where the answer is known.",
    )
    picture = Path("densenet_in_both.png")
    parser.add_argument("--output", type=Path, default=picture, metavar="PNG", help="the picture (%(default)s)")
    parser.add_argument("--digits", type=int, default=5, metavar="N", help="rows of the picture (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="networks to train (%(default)s)")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs, help="of training (%(default)s)")
    cache = default_cache()
    parser.add_argument("--cache", type=Path, default=cache, metavar="DIR", help="of trained weights (%(default)s)")
    parser.add_argument("--retrain", action="store_true", help="train even where the cache has the weights")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; ``argv`` is ``sys.argv[1:]`` by default. Returns the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = build_parser()
    options = parser.parse_args(argv)
    if min(options.digits, options.seeds) < 1 or options.epochs < 0:
        parser.error("--digits and --seeds must be at least 1, --epochs at least 0")
    if options.output.is_dir():
        parser.error(f"--output {options.output} is a folder; give the name of a file in it")
    found: list[Findings] = []
    for seed in range(options.seeds):
        recipe = Recipe(epochs=options.epochs, seed=seed)
        trained = trained_model(recipe, options.cache, options.retrain)
        with one_thread():
            found.append(investigate(recipe, trained, EXPLAINED))
        kept = ", weights from the cache" if trained.was_cached else ""
        print(
            f"A small DenseNet on digits in clutter: {found[-1].accuracy:.1%} of the held-out digits right "
            f"({recipe.epochs} epochs in {trained.seconds:.0f} s{kept})"
        )
    networks = f" of each of {len(found)} networks: the median" if len(found) > 1 else ""
    print(f"EpsilonPlus, explaining the top class of {len(found[0].canvases)} held-out digits{networks}", end="\n\n")
    print(table(found), end="\n\n")
    save(draw(rows(found[0], options.digits)), options.output)
    print(f"Picture: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
