"""Explain a data set on several processes, to the same bits as on one; start it again after a crash and it goes on.

``python examples/distributed_attribution.py`` explains digits in clutter (LRP with EpsilonPlus on the canonized small
DenseNet) on one process, ``torchrun --standalone --nproc-per-node 2 examples/distributed_attribution.py`` on two; with
``--epochs 0`` for a quick look, without training.
Each process has a model of its own and canonizes it; nothing is differentiated across processes, so that
DistributedDataParallel, which exists to average gradients of weights, has nothing to do here.

*The same bits.* Sums of floating-point numbers depend on how a batch is put together and on how many threads add up. So
the unit of work is a chunk of the data set whose size (``--chunk``) does not depend on the number of processes; one
process computes it whole, as one batch, on one thread, with deterministic kernels. Who computes it does not matter as
long as all have the same kind of device and the same versions, which is checked.

*Nothing lost, nothing twice.* A finished chunk is a file that appears as a whole, with a fingerprint of all that it
depends on. Whoever computes a chunk holds a lock on it that ends with the process. So no two processes compute the same
chunk; what a killed one had finished stays, and what it had begun is taken over, by another process or by the next run,
with however many processes that has. ``torchrun --max-restarts 3`` starts the next run by itself.

The locks need Linux or macOS, and a folder that all processes see. On a network file system whose directories lag
behind, two machines may now and then compute the same chunk; the result is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from chunks import Chunks, Division
from digits_in_clutter import Canvases, draw_canvases, split_glyphs
from identity import Identity, RunError, digest, reproducible, surroundings
from processes import Processes, join
from sharing import compute_missing
from small_densenet import Recipe, build_model, default_cache, trained_model
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record
from whole_numbers import whole_number

from canon_bridge.captum import LRP, presets


def draw_images(recipe: Recipe, count: int) -> Canvases:
    """Draw images of held-out digits, each digit on as many canvases as it takes."""
    _, held_out = split_glyphs(recipe.scene, seed=recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    rounds = [draw_canvases(held_out, recipe.scene, generator) for _ in range(-(-count // len(held_out)))]
    images, labels, corners = (
        torch.cat([getattr(canvases, name) for canvases in rounds]) for name in ("images", "labels", "corners")
    )
    return Canvases(images, labels, corners, recipe.scene)[:count]


def build_explained(recipe: Recipe, cache: Path, processes: Processes) -> nn.Module:
    """Train or load the model on process 0, and give its weights to all."""
    # A new model on every process, so that none differs in more than values: the one that trained would not be new.
    model = build_model(recipe).eval()
    if processes.is_first:
        model.load_state_dict(trained_model(recipe, cache).model.state_dict())
    model.to(processes.device)
    processes.share_weights(model)
    return model


def explainer(model: nn.Module, data: Canvases, device: torch.device) -> Callable[[slice], Tensor]:
    """Return what explains a range of the data set: relevance for the digit's class, shape ``(N, H, W)``."""
    lrp = LRP(model, preset=presets.epsilon_plus())

    def explain(part: slice) -> Tensor:
        # A copy, so that every batch lies in memory in the same way.
        images = data.images[part].to(device).clone(memory_format=torch.contiguous_format)
        return lrp.attribute(images, target=data.labels[part].to(device)).sum(1).cpu()

    return explain


def identify(model: nn.Module, data: Canvases, chunk: int, device: torch.device) -> Identity:
    """Return all that the bits of the result depend on."""
    return {
        "weights": digest(model.state_dict()),
        "architecture": hashlib.sha256(str(model).encode()).hexdigest(),
        "data": digest({"images": data.images, "labels": data.labels}),
        "chunk": str(chunk),
        "method": "LRP, epsilon_plus, prefer left, target label",
        **surroundings(device),
    }


@dataclass(frozen=True)
class Share:
    """What one process did: chunks that it computed, and seconds from the first to the last one of all."""

    computed: int
    seconds: float


def run(options: argparse.Namespace, processes: Processes) -> None:
    """Explain the data set, whatever of it is missing, and write the result."""
    recipe = Recipe(epochs=options.epochs, seed=options.seed)
    model = build_explained(recipe, options.cache, processes)
    data = draw_images(recipe, options.images)
    identity = identify(model, data, options.chunk, processes.device)
    processes.agree(identity)
    division = Division(len(data), options.chunk)
    with closing(Chunks(options.folder, identity, division, processes.rank)) as chunks:
        # One process looks, all get its answer: by the time that the others would look, there could be more.
        ready = processes.from_first(chunks.prepare)
        missing = sorted(set(range(len(division))) - ready)
        start = time.perf_counter()
        explain = explainer(model, data, processes.device)
        computed = compute_missing(chunks, missing, explain, processes.rank, processes.count, options.patience)
        shares = processes.gather(Share(computed, time.perf_counter() - start))
        if processes.is_first:
            checksum = chunks.merge()
            print(report(shares, len(ready), division, processes.device))
            print(f"Result: {chunks.result}, sha256 {checksum}")


def report(shares: Sequence[Share], ready: int, division: Division, device: torch.device) -> str:
    """Return who computed how much, as a table."""
    processes = f"{len(shares)} process{'es' if len(shares) > 1 else ''}"
    head = f"{division.images} images in {len(division)} chunks of {division.size}, {processes} on {device.type}"
    rows = [(f"process {rank}", share.computed, f"{share.seconds:.1f} s") for rank, share in enumerate(shares)]
    computed = sum(share.computed for share in shares)
    rows += [("ready before", ready, "")]
    if elsewhere := len(division) - ready - computed:
        rows += [("by another run", elsewhere, "")]
    rows += [("all", len(division), f"{max(share.seconds for share in shares):.1f} s")]
    lines = [f"{name:16}{chunks:>8}{seconds:>10}".rstrip() for name, chunks, seconds in rows]
    return "\n".join([head, "", f"{'':16}{'chunks':>8}{'time':>10}", "-" * 34, *lines, ""])


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="distributed_attribution",
        description="Explain digits in clutter on one process, or with torchrun on several, to the same bits.",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("relevance_of_digits"),
        metavar="DIR",
        help="of the result and of the finished chunks (%(default)s)",
    )
    count = whole_number(1)
    parser.add_argument("--images", type=count, default=1436, metavar="N", help="to explain (%(default)s)")
    parser.add_argument(
        "--chunk", type=count, default=16, metavar="N", help="images in a chunk, which is one batch (%(default)s)"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="GPUs, one a process, or the CPU (%(default)s)",
    )
    parser.add_argument(
        "--patience",
        type=count,
        default=1800,
        metavar="SECONDS",
        help="to wait for another process that does not get on; longer than training takes (%(default)s)",
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of split, images and training (%(default)s)")
    parser.add_argument(
        "--epochs", type=whole_number(0), default=Recipe.epochs, help="of training, 0 for a quick look (%(default)s)"
    )
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), metavar="DIR", help="of trained weights (%(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; ``argv`` is ``sys.argv[1:]`` by default. Returns the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        with reproducible(), join(options.device, options.patience) as processes:
            run(options, processes)
    except (RunError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the same command goes on where it stopped\n")
    return 0


if __name__ == "__main__":
    sys.exit(record(main)())  # torchrun then knows the traceback of the process that failed first
