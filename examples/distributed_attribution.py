"""Explain a folder of images, in one process or with Ray on many; started again, it goes on where it stopped.

``python examples/distributed_attribution.py FOLDER`` explains with torchvision's pretrained densenet121 in a plain
loop, with ``--workers 2`` in two Ray workers, each with a model of its own that it plans once. For your own network
change ``make_model``, ``transform`` and ``load``, or hand yours to ``main``; nothing else knows about the network.

The output is a folder of Parquet files with the columns ``id`` (the image's path), ``class``, ``score`` and
``relevance``, and ``identity.json``, which says what they were computed with. A file appears as a whole, or not at all;
what is in one is not computed again. Workers that die are replaced by Ray, and the batch that they had goes to another.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from torchvision.models import DenseNet121_Weights, densenet121
from tqdm import tqdm

from canon_bridge.explain import Columns, Explainer

WEIGHTS = DenseNet121_Weights.IMAGENET1K_V1


def make_model() -> nn.Module:
    """Return the model to explain, with its weights; each worker calls it once."""
    return densenet121(weights=WEIGHTS)


def transform(images: Tensor) -> Tensor:
    """Return the model's input for bytes ``(N, C, H, W)``; what the weights were trained with."""
    return WEIGHTS.transforms()(images)


def load(row: dict[str, str]) -> dict[str, Any]:
    """Read one image, all of one size; for DICOM ``pydicom.dcmread(path).pixel_array``."""
    with Image.open(row["path"]) as image:
        return {"id": row["id"], "image": np.array(ImageOps.fit(image.convert("RGB"), (256, 256)))}


@dataclass(frozen=True)
class Job:
    """What differs from network to network: what makes it, its input, and an image."""

    make_model: Callable[[], nn.Module] = make_model
    transform: Callable[[Tensor], Tensor] = transform
    load: Callable[[dict[str, str]], dict[str, Any]] = load


def explain_in_loop(job: Job, rows: Sequence[dict[str, str]], explainer: Explainer, batch: int) -> Iterator[Columns]:
    """Explain images one batch after the other in this process."""

    def stack(images: Sequence[dict[str, Any]]) -> Columns:
        return {name: np.asarray(values) for name, values in default_collate(images).items()}

    dataset: Any = [*rows]
    batches = DataLoader(dataset, batch, collate_fn=lambda part: stack([job.load(row) for row in part]))
    for columns in tqdm(batches, desc="explaining", unit="batch"):
        yield explainer(columns)


def explain_in_ray(
    job: Job, rows: Sequence[dict[str, str]], settings: dict[str, Any], options: Any
) -> Iterator[Columns]:
    """Explain images on a Ray cluster; its progress bar is Ray's own."""
    import ray

    # Readers need processors, too: with as many as there are workers, these would wait for images for ever.
    cores = {"num_cpus": max(os.cpu_count() or 1, options.workers + 2)} if options.address is None else {}
    ray.init(address=options.address, ignore_reinit_error=True, **cores)
    blocks = -(-len(rows) // options.batch)  # of a batch each, so that little is lost with a worker
    dataset = ray.data.from_items([*rows], override_num_blocks=blocks).map(job.load)
    explained = dataset.map_batches(
        Explainer,
        fn_constructor_args=[job.make_model],
        fn_constructor_kwargs=settings,
        batch_size=options.batch,
        concurrency=options.workers,
        num_gpus=options.gpus,
    )
    yield from explained.iter_batches(batch_size=options.batch)


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the file and move into place, so that nobody ever finds half of it."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def check_identity(output: Path, identity: dict[str, str]) -> None:
    """Keep with what the maps are computed, or refuse to mix them with those of another model or other settings."""
    path = output / "identity.json"
    if not path.exists():
        write_whole(path, json.dumps(identity, indent=1).encode())
    elif differing := sorted(set((found := json.loads(path.read_text())).items()) ^ set(identity.items())):
        names = sorted({name for name, _ in differing})
        found, here = ([values.get(name) for name in names] for values in (found, identity))
        change = f"another {', '.join(names)} ({found}, here {here})"
        raise ValueError(f"{output} holds maps with {change}: take another --output")


def ids_in(output: Path) -> list[str]:
    """Return which images have been explained."""
    files = sorted(str(path) for path in output.glob("*.parquet"))
    return pyarrow.dataset.dataset(files).to_table(["id"])["id"].to_pylist() if files else []


def write_parts(output: Path, parts: Iterable[Columns]) -> None:
    """Write each part as a Parquet file."""
    for part in parts:
        arrays: dict[str, Any] = {name: pa.array(values) for name, values in part.items() if values.ndim == 1}
        arrays["relevance"] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(part["relevance"]))
        table = pa.table(arrays)
        path = output / f"{uuid.uuid4().hex}.parquet"
        file = io.BytesIO()
        pyarrow.parquet.write_table(table, file)
        write_whole(path, file.getvalue())


def run(job: Job, options: argparse.Namespace) -> None:
    """Explain what the output does not hold yet."""
    images = options.images
    if not images.is_dir():
        raise ValueError(f"{images} is no folder; give the one that holds the images")
    options.output.mkdir(parents=True, exist_ok=True)
    lock = (options.output / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
    except BlockingIOError:
        raise ValueError(f"another process writes to {options.output}: wait for it, or take another --output") from None
    settings = {"framework": options.framework, "preset": options.preset, "prefer": options.prefer}
    settings |= {"target": options.target, "transform": job.transform}
    explainer = Explainer(job.make_model, **settings)
    check_identity(options.output, explainer.identity())
    paths = {str(path.relative_to(images)): str(path) for path in sorted(images.rglob("*.*")) if path.is_file()}
    missing = sorted(set(paths) - set(ids_in(options.output)))
    print(f"{len(paths)} images, {len(paths) - len(missing)} explained before")
    rows = [{"id": name, "path": paths[name]} for name in missing]
    if rows and options.workers:
        write_parts(options.output, explain_in_ray(job, rows, settings, options))
    else:
        write_parts(options.output, explain_in_loop(job, rows, explainer, options.batch))
    print(f"Maps of {len(ids_in(options.output))} images in {options.output}")


def main(argv: Sequence[str] | None = None, job: Job = Job()) -> int:
    """Run the example; ``argv`` is ``sys.argv[1:]`` by default. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="distributed_attribution", description="Explain a folder of images.")
    parser.add_argument("images", type=Path, help="the folder")
    parser.add_argument("--output", type=Path, default=Path("relevance"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="of Ray; 0: this process (%(default)s)")
    parser.add_argument("--gpus", type=float, default=0, help="for each worker (%(default)s)")
    parser.add_argument("--address", help="of a Ray cluster that runs; by default one on this machine is started")
    parser.add_argument("--batch", type=int, default=16, help="images in a batch (%(default)s)")
    parser.add_argument("--framework", choices=("captum", "zennit"), default="captum", help="(%(default)s)")
    parser.add_argument("--preset", default="epsilon_plus", help="(%(default)s)")
    parser.add_argument("--prefer", choices=("left", "right"), default="left", help="(%(default)s)")
    parser.add_argument("--target", type=int, help="class to explain; by default the predicted one")
    options = parser.parse_args(argv)
    if options.workers < 0 or options.batch < 1:
        parser.error("--workers must be at least 0, --batch at least 1")
    try:
        run(job, options)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
