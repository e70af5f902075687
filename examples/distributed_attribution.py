"""Explain a folder of images, in one process or with Ray on many; started again, it goes on where it stopped.

``python examples/distributed_attribution.py`` draws digits in clutter and explains them in a plain loop, with
``--workers 2`` in two Ray workers, each with a model of its own that it plans once; with ``--images FOLDER`` yours.
For your own model change ``make_model``, ``transform`` and ``load``; nothing else knows about digits.

The output is a folder of Parquet files with the columns ``id`` (the image's path), ``class``, ``score`` and
``relevance``, and ``identity.json``, which says what they were computed with. A file appears as a whole, or not at all;
what is in one is not computed again. Workers that die are replaced by Ray, and the batch that they had goes to another.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
from PIL import Image
from small_densenet import Recipe, default_cache, draw_held_out, trained_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm
from whole_files import write_whole
from whole_numbers import whole_number

from canon_bridge.explain import Columns, Explainer

FRAMEWORKS = ("captum", "zennit")


def make_model() -> nn.Module:
    """Return the model to explain; this one is trained when it is first asked for, and kept."""
    epochs = int(os.environ.get("DIGITS_EPOCHS", Recipe.epochs))
    return trained_model(Recipe(epochs=epochs), default_cache()).model


def transform(images: Tensor) -> Tensor:
    """Return the model's input for bytes ``(N, C, H, W)``; for torchvision's models ``weights.transforms()``."""
    return images / 255


def load(row: dict[str, str]) -> dict[str, Any]:
    """Read one image, all of one size; for DICOM ``pydicom.dcmread(path).pixel_array``."""
    with Image.open(row["path"]) as image:
        return {"id": row["id"], "image": np.array(image.convert("RGB"))}


def draw_digits(folder: Path) -> None:
    """Write the held-out digits as images."""
    for number, image in enumerate((draw_held_out(Recipe()).images * 255).round().byte()):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        write_whole(folder / f"{number:04}.png", lambda file, picture=picture: picture.save(file, "PNG"))


def explain_in_loop(rows: Sequence[dict[str, str]], explainer: Explainer, batch: int) -> Iterator[Columns]:
    """Explain images one batch after the other in this process."""

    def stack(images: Sequence[dict[str, Any]]) -> Columns:
        return {name: np.asarray(values) for name, values in default_collate(images).items()}

    dataset: Any = [*rows]
    batches = DataLoader(dataset, batch, collate_fn=lambda part: stack([load(row) for row in part]))
    for columns in tqdm(batches, desc="explaining", unit="batch"):
        yield explainer(columns)


def explain_in_ray(rows: Sequence[dict[str, str]], settings: dict[str, Any], options: Any) -> Iterator[Columns]:
    """Explain images on a Ray cluster; its progress bar is Ray's own."""
    import ray

    # Readers need processors, too: with as many as there are workers, these would wait for images for ever.
    cores = {"num_cpus": max(os.cpu_count() or 1, options.workers + 2)} if options.address is None else {}
    ray.init(address=options.address, ignore_reinit_error=True, **cores)
    blocks = -(-len(rows) // options.batch)  # of a batch each, so that little is lost with a worker
    dataset = ray.data.from_items([*rows], override_num_blocks=blocks).map(load)
    explained = dataset.map_batches(
        Explainer,
        fn_constructor_args=[make_model],
        fn_constructor_kwargs=settings,
        batch_size=options.batch,
        concurrency=options.workers,
        num_gpus=options.gpus,
    )
    yield from explained.iter_batches(batch_size=options.batch)


def check_identity(output: Path, identity: dict[str, str]) -> None:
    """Keep with what the maps are computed, or refuse to mix them with those of another model or other settings."""
    path = output / "identity.json"
    if not path.exists():
        text = json.dumps(identity, indent=1).encode()
        write_whole(path, lambda file: file.write(text))
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
        write_whole(path, lambda file, table=table: pyarrow.parquet.write_table(table, file))


def run(options: argparse.Namespace) -> None:
    """Explain what the output does not hold yet."""
    images = options.images or options.output / "images"
    options.output.mkdir(parents=True, exist_ok=True)
    lock = (options.output / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
    except BlockingIOError:
        raise ValueError(f"another process writes to {options.output}: wait for it, or take another --output") from None
    if options.images is None:
        draw_digits(images)
    settings = {"framework": options.framework, "preset": options.preset, "prefer": options.prefer}
    settings |= {"target": options.target, "transform": transform}
    explainer = Explainer(make_model, **settings)
    check_identity(options.output, explainer.identity())
    paths = {str(path.relative_to(images)): str(path) for path in sorted(images.rglob("*.*")) if path.is_file()}
    missing = sorted(set(paths) - set(ids_in(options.output)))
    print(f"{len(paths)} images, {len(paths) - len(missing)} explained before")
    rows = [{"id": name, "path": paths[name]} for name in missing]
    if rows and options.workers:
        write_parts(options.output, explain_in_ray(rows, settings, options))
    else:
        write_parts(options.output, explain_in_loop(rows, explainer, options.batch))
    print(f"Maps of {len(ids_in(options.output))} images in {options.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; ``argv`` is ``sys.argv[1:]`` by default. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="distributed_attribution", description="Explain a folder of images.")
    parser.add_argument("--images", type=Path, metavar="DIR", help="to explain; digits in clutter by default")
    parser.add_argument("--output", type=Path, default=Path("relevance_of_digits"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--workers", type=whole_number(0), default=0, help="of Ray; 0: this process (%(default)s)")
    parser.add_argument("--gpus", type=float, default=0, help="for each worker (%(default)s)")
    parser.add_argument("--address", help="of a Ray cluster that runs; by default one on this machine is started")
    parser.add_argument("--batch", type=whole_number(1), default=16, help="images in a batch (%(default)s)")
    parser.add_argument("--framework", choices=FRAMEWORKS, default="captum", help="(%(default)s)")
    parser.add_argument("--preset", default="epsilon_plus", help="(%(default)s)")
    parser.add_argument("--prefer", choices=("left", "right"), default="left", help="(%(default)s)")
    parser.add_argument("--target", type=whole_number(0), help="class to explain; by default the predicted one")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
