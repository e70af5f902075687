"""Train small networks, explain them in every order of canonization, and measure which maps are better.

``python -m benchmarks.quality`` writes ``docs/quality.md``, ``docs/quality.png`` and ``docs/quality.json``. A run that
was cut goes on where it was, one with more seeds or orders adds to what is there, and ``--page`` measures nothing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.digits.network import default_cache, one_thread, trained_model
from benchmarks.files import write_whole
from benchmarks.quality.examine import Extent, Subject, examine
from benchmarks.quality.networks import ARCHITECTURES, Small
from benchmarks.quality.page import markdown
from benchmarks.quality.plot import draw
from benchmarks.quality.results import Record, Results
from benchmarks.quality.ways import WAYS
from benchmarks.versions import commit, versions

QUICK = Extent(images=4, disturbed=2, noises=1, stages=2)
QUICK_EPOCHS = 1
PACKAGES = ("torch", "torchvision", "zennit", "scikit-learn")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description="Are canonized maps better?")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="networks of each (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one epoch and four images, to see that it runs")
    parser.add_argument("--page", action="store_true", help="measure nothing: the page and the plot of what is there")
    parser.add_argument("--output", type=Path, default=Path("docs/quality.md"), metavar="MD", help="(%(default)s)")
    cache = default_cache()
    parser.add_argument("--cache", type=Path, default=cache, metavar="DIR", help="of trained weights (%(default)s)")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    if options.page and not options.output.with_suffix(".json").is_file():
        parser.error(f"--page: there is no {options.output.with_suffix('.json')}; run without it first")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write page, plot and figures. Returns the exit status."""
    options = parse(arguments)
    path = options.output.with_suffix(".json")
    if options.page:
        results = Results.read(path)
    else:
        words = sys.argv[1:] if arguments is None else arguments
        results = _begin(options, path, shlex.join(["python", "-m", "benchmarks.quality", *words]))
        with warnings.catch_warnings(), one_thread():
            warnings.simplefilter("ignore")
            _measure(options, results, path)
    draw(results, options.output.with_suffix(".png"))
    write_whole(options.output, markdown(results, options.output.with_suffix(".png").name))
    print(options.output)
    return 0


def _begin(options: argparse.Namespace, path: Path, command: str) -> Results:
    """Return what is there, or an empty beginning."""
    settings = _settings(options)
    results = Results.read(path) if path.is_file() else Results(settings)
    if results.settings != settings:
        raise SystemExit(f"{path} has figures of other settings; move it away, or give another --output.")
    if any(results.missing(*network, WAYS) for network in _networks(options)):
        results.runs.append(f"`{command}`, {_versions()}")
    return results


def _networks(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Return architectures and seeds, seed by seed, so that a run that is cut has all architectures."""
    return [(name, seed) for seed in range(options.seeds) for name in options.architectures]


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    training = asdict(_training(options, "", 0))
    return {"extent": asdict(_extent(options)), "training": {k: training[k] for k in training if k != "seed"}}


def _extent(options: argparse.Namespace) -> Extent:
    return QUICK if options.quick else Extent()


def _training(options: argparse.Namespace, architecture: str, seed: int) -> Small:
    training = Small(architecture=architecture, seed=seed)
    return Small(architecture=architecture, seed=seed, epochs=QUICK_EPOCHS) if options.quick else training


def _versions() -> str:
    return f"commit {commit() or 'unknown'}, {versions(PACKAGES)}"


def _measure(options: argparse.Namespace, results: Results, path: Path) -> None:
    """Measure what is missing."""
    for architecture, seed in tqdm(_networks(options), unit="network", file=sys.stderr):
        ways = results.missing(architecture, seed, WAYS)
        if not ways:
            continue
        training = _training(options, architecture, seed)
        subject = Subject.of(training, trained_model(training, options.cache), _extent(options))
        results.accuracies.setdefault(architecture, {})[seed] = subject.accuracy
        for way, figures in tqdm(examine(subject, ways, seed), total=len(ways), unit="way", leave=False):
            results.records.append(Record(architecture, seed, way, figures))
            results.write(path)


if __name__ == "__main__":
    sys.exit(main())
