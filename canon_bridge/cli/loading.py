"""Models by name: ``torchvision:NAME``, ``timm:NAME`` or ``path/file.py:make_model``, ready to be explained."""

import difflib
import importlib.util
import inspect
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from torch import nn

from canon_bridge.cli.errors import CommandError, in_one_line, needed
from canon_bridge.cli.images import Transform, to_square
from canon_bridge.cli.weights import build_with_state, is_file, load_state, read_state
from canon_bridge.frameworks import to_evaluation

DEFAULT_SIZE = 224


@dataclass(frozen=True)
class Loaded:
    """A model with what belongs to it.

    Attributes
    ----------
    name : str
        As the user gave it.
    model : nn.Module
        In evaluation mode, float32, on the CPU.
    transform : callable
        From a PIL image to a tensor ``(C, H, W)``.
    classes : sequence of str or None
        The names of the classes, where they are known.
    weights : str or None
        Where the weights are from; None if they are random.
    """

    name: str
    model: nn.Module
    transform: Transform
    classes: Sequence[str] | None = None
    weights: str | None = None

    def class_name(self, index: int) -> str:
        """Return the name of a class with its number, or the number alone."""
        if self.classes is None or index >= len(self.classes):
            return str(index)
        return f"{self.classes[index]} ({index})"


def load(spec: str, weights: str | None = None, size: int | None = None) -> Loaded:
    """Load a model.

    Parameters
    ----------
    spec : str
        ``torchvision:NAME``, ``timm:NAME`` or ``path/file.py:FUNCTION``; the function has no arguments and returns the
        model. If the file has a function ``transform``, it makes a tensor ``(C, H, W)`` of a PIL image.
    weights : str, optional
        A file with a state dict, or a name that torchvision or timm knows (``"default"`` for the one that they
        recommend), which is downloaded. By default weights are random, but for a file, which brings its own.
    size : int, default 224
        Side of the square that images are resized to, for a file without a transform.

    Raises
    ------
    CommandError
        If there is no such model, or its weights cannot be had.
    """
    source, colon, name = spec.partition(":")
    if source in _HUBS and name:
        if size is not None:
            raise CommandError(f"--size is for models from a file; {source} states the size for {name}: leave it out")
        loaded = _HUBS[source](name, weights)
    else:
        source, colon, name = spec.rpartition(":")
        if not (colon and source.endswith(".py") and name):
            raise CommandError(
                f"{spec!r} names no model; give torchvision:NAME, timm:NAME or path/file.py:FUNCTION, for example "
                "torchvision:densenet121"
            )
        loaded = _from_file(Path(source), name, weights, size or DEFAULT_SIZE)
    to_evaluation(loaded.model).float().cpu()
    return loaded


def _from_torchvision(name: str, weights: str | None) -> Loaded:
    models = needed("torchvision.models", f"torchvision:{name} is one of its models")
    _check_name(name, models.list_models(), "torchvision")
    builder = models.get_model_builder(name)
    entries = models.get_model_weights(name)
    keywords: dict[str, Any] = {}
    if "weights_backbone" in inspect.signature(builder).parameters:
        keywords["weights_backbone"] = None  # else it is downloaded
    if name in {"googlenet", "inception_v3"}:
        keywords["init_weights"] = False  # takes a minute

    def build(classes: int | None) -> nn.Module:
        return builder(weights=None, **keywords, **({} if classes is None else {"num_classes": classes}))

    entry = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if weights is None:
            model = build(None)
        elif is_file(weights):
            model = build_with_state(build, Path(weights))
            # A file that torchvision offers for download is known by its name.
            entry = next((found for found in entries if found.url.endswith(f"/{Path(weights).name}")), None)
            if entry is not None and hasattr(model, "transform_input"):
                cast(Any, model).transform_input = True  # what its builder sets for weights of its own
        else:
            entry = _torchvision_weights(name, weights, entries)
            with _downloading(f"torchvision:{name}", entry.url):
                model = builder(weights=entry)
    stated = entry or getattr(entries, "DEFAULT", None)
    transform = to_square(DEFAULT_SIZE) if stated is None else stated.transforms()
    return Loaded(f"torchvision:{name}", model, transform, entry and entry.meta.get("categories"), weights)


def _torchvision_weights(name: str, weights: str, entries: Any) -> Any:
    wanted = weights.rpartition(".")[2]
    by_name = dict(entries.__members__)
    if wanted.upper() not in by_name:
        known = ", ".join(by_name) or "none"
        raise CommandError(
            f"--weights {weights}: torchvision:{name} has no such weights, and there is no such file; give one of "
            f"{known}, or the path of a state dict"
        )
    return by_name[wanted.upper()]


def _from_timm(name: str, weights: str | None) -> Loaded:
    timm = needed("timm", f"timm:{name} is one of its models")
    data = needed("timm.data", f"timm:{name} is one of its models")
    if not name.startswith("hf-hub:"):
        _check_name(name.partition(".")[0], timm.list_models(), "timm")
    is_known = weights is not None and not is_file(weights)
    if weights is not None and is_known and weights.lower() != "default":
        name = _timm_weights(timm, name, weights)

    def build(classes: int | None) -> nn.Module:
        return timm.create_model(name, **({} if classes is None else {"num_classes": classes}))

    if is_known:
        with _downloading(f"timm:{name}", "its weights from the Hugging Face hub"):
            model = timm.create_model(name, pretrained=True)
    else:
        model = build(None) if weights is None else build_with_state(build, Path(weights))
    transform = data.create_transform(**data.resolve_model_data_config(model), is_training=False)
    classes = None
    if is_known and (subset := data.infer_imagenet_subset(model)):
        info = data.ImageNetInfo(subset)
        classes = [info.index_to_description(index) for index in range(info.num_classes())]
    return Loaded(f"timm:{name}", model, transform, classes, weights)


def _timm_weights(timm: Any, name: str, weights: str) -> str:
    tagged = f"{name.partition('.')[0]}.{weights.rpartition('.')[2]}"
    known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    if tagged not in known:
        tags = ", ".join(entry.partition(".")[2] for entry in known) or "none"
        raise CommandError(
            f"--weights {weights}: timm:{name} has no such weights, and there is no such file; give default, one of "
            f"{tags}, or the path of a state dict"
        )
    return tagged


def _from_file(path: Path, function: str, weights: str | None, size: int) -> Loaded:
    if weights is not None and not is_file(weights):
        raise CommandError(
            f"--weights {weights} is no file; {path} brings its own model: leave it out, or give a state dict"
        )
    module = _run(path)
    make = getattr(module, function, None)
    if not callable(make):
        own = [name for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"]
        raise CommandError(f"{path} has no function {function}; it has {', '.join(own) or 'none'}")
    with _own_code(path, f"{function}()"):
        model = make()
    if not isinstance(model, nn.Module):
        raise CommandError(f"{function}() in {path} returned {type(model).__name__}; it has to return an nn.Module")
    if weights is not None:
        load_state(model, read_state(Path(weights)), Path(weights))
    transform: Transform = getattr(module, "transform", None) or to_square(size)
    return Loaded(f"{path}:{function}", model, transform, None, weights or str(path))


def _run(path: Path) -> ModuleType:
    """Run a Python file as a module; it finds its neighbours as a script would."""
    if not path.is_file():
        raise CommandError(f"{path}: there is no such file; give path/file.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"model_file_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look for what an annotation means
    sys.path.insert(0, str(path.resolve().parent))
    with _own_code(path, "the file"):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _own_code(path: Path, what: str) -> Generator[None]:
    """Say in one line where the user's own code failed."""
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
        if isinstance(error, SyntaxError):
            lines = [error.lineno]
        place = f"{path}:{lines[-1]}" if lines else str(path)
        raise CommandError(f"{what} failed at {place}: {type(error).__name__}: {in_one_line(error)}") from error


@contextmanager
def _downloading(name: str, source: str) -> Generator[None]:
    try:
        yield
    except Exception as error:  # each hub has errors of its own
        raise CommandError(
            f"the weights of {name} could not be downloaded ({in_one_line(error)}): fetch {source} elsewhere and give "
            "the file: --weights PATH"
        ) from error


def _check_name(name: str, known: Iterable[str], source: str) -> None:
    known = list(known)
    if name not in known:
        close = difflib.get_close_matches(name, known, 3)
        hint = f"did you mean {', '.join(close)}?" if close else f"see {source}'s list_models()"
        raise CommandError(f"{source} has no model {name}; {hint}")


_HUBS: Final[dict[str, Callable[[str, str | None], Loaded]]] = {"torchvision": _from_torchvision, "timm": _from_timm}
