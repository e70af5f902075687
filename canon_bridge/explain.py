"""Relevance maps for batches of images, by one model that stays canonical: for a loop, or one in each Ray worker."""

import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from canon_bridge.core import Clipped, Prefer
from canon_bridge.frameworks import Framework, make_attribute, make_rules, to_evaluation

Columns = dict[str, np.ndarray[Any, Any]]


def unit_range(images: Tensor) -> Tensor:
    """Return bytes as numbers from 0 to 1."""
    return images / 255


class Explainer:
    """Explain the images of a batch; what ``ray.data.Dataset.map_batches`` and a plain loop call.

    Parameters
    ----------
    make_model : callable
        Without arguments; returns the model, weights loaded. It is what travels to other processes, not the model.
    preset : str, default "epsilon_plus"
        A preset of :mod:`canon_bridge.captum.presets` that has defaults for all settings; the composite of that name in
        zennit (``EpsilonPlus``).
    framework : {"captum", "zennit"}, default "captum"
        Which one computes the maps.
    prefer : {"left", "right", "untangled"}, default "left"
        See :func:`canon_bridge.canonize`.
    clipped : {"absorb", "pass"}, default "absorb"
        See :func:`canon_bridge.canonize`.
    example_input : Tensor, optional
        An input of the model, ``(N, C, H, W)``, for one that can be traced with values alone, which Captum takes from
        the first batch by itself; on entry the function is compared on it.
    target : int or str, optional
        The class to explain: a number, the column that holds it for each image, or by default the predicted one.
    transform : callable, default ``images / 255``
        From the column ``image`` as a tensor ``(N, C, H, W)`` to the model's input; ``weights.transforms()`` of
        torchvision is one.

    Notes
    -----
    The model is planned once, on a GPU if there is one, and belongs to the explainer. In zennit it is canonical from
    the first moment on, in Captum during each call.

    Examples
    --------
    >>> explainer = Explainer(make_model)
    >>> explainer({"id": names, "image": images})  # id, class, score, relevance
    >>> dataset.map_batches(Explainer, fn_constructor_args=[make_model], batch_size=16, concurrency=2)
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        *,
        preset: str = "epsilon_plus",
        framework: Framework = "captum",
        prefer: Prefer = "left",
        clipped: Clipped = "absorb",
        example_input: Tensor | None = None,
        target: int | str | None = None,
        transform: Callable[[Tensor], Tensor] = unit_range,
    ) -> None:
        self._arguments = {
            "preset": preset,
            "framework": framework,
            "prefer": prefer,
            "clipped": clipped,
            "example_input": example_input,
            "target": target,
            "transform": transform,
        }
        self._make_model, self._target, self._transform = make_model, target, transform
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        made: Any = make_model if isinstance(make_model, nn.Module) else make_model()
        if made is make_model or not isinstance(made, nn.Module):
            what = "is" if made is make_model else "returned"
            raise TypeError(
                f"make_model {what} a {type(made).__name__}; it must be a function without arguments that returns the "
                "model, which other processes call, too."
            )
        self.model = to_evaluation(made).to(self.device)
        self._identity = {"model": type(self.model).__name__, "weights": _digest(self.model)}
        example = None if example_input is None else example_input.to(self.device)
        rules = make_rules(framework, self.model, preset, prefer=prefer, clipped=clipped, example_inputs=example)
        self._attribute = make_attribute(framework, self.model, rules)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._make_model, self._arguments)

    def __call__(self, batch: Columns) -> Columns:
        """Return the columns of the batch but ``image``, and ``class``, ``score`` and ``relevance``.

        Parameters
        ----------
        batch : dict of str to ndarray
            ``image`` has the shape ``(N, H, W, C)`` or, in shades of grey, ``(N, H, W)``.

        Returns
        -------
        dict of str to ndarray
            ``class`` is the explained one, ``score`` the model's output for it, both ``(N,)``; ``relevance`` is the sum
            over the channels, ``(N, H, W)`` of the model's input, float32.

        Raises
        ------
        ValueError
            If the batch lacks a column, or a class is none of the model's.
        TypeError
            If the model does not return scores ``(N, classes)``.
        """
        needed = ("image", self._target) if isinstance(self._target, str) else ("image",)
        if missing := [name for name in needed if name not in batch]:
            raise ValueError(f"the batch has no column {' and no '.join(missing)}; it has {', '.join(batch)}.")
        images = torch.from_numpy(np.ascontiguousarray(batch["image"]))
        images = images[:, None] if images.dim() == 3 else images.movedim(-1, 1)
        inputs = self._transform(images.contiguous().to(self.device))
        with torch.no_grad():
            scores: Any = self.model(inputs)
        if not isinstance(scores, Tensor) or scores.dim() != 2:
            what = f"a tensor {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise TypeError(
                f"the model returns {what}; an Explainer needs a score for each class, (N, classes): have make_model "
                "wrap it in a module whose forward returns them."
            )
        classes = scores.argmax(1)
        if self._target is not None:
            chosen = batch[self._target] if isinstance(self._target, str) else self._target
            classes = torch.as_tensor(chosen, device=self.device).expand(len(images))
            if classes.is_floating_point() or not bool(((classes >= 0) & (classes < scores.shape[1])).all()):
                raise ValueError(
                    f"target is {self._target!r}, for the classes {classes.tolist()}; the model has whole numbers from "
                    f"0 to {scores.shape[1] - 1}."
                )
        explained = scores.gather(1, classes[:, None])[:, 0]
        relevance = self._attribute(inputs, classes).sum(1)
        found = {"class": classes, "score": explained, "relevance": relevance.float()}
        kept = {name: values for name, values in batch.items() if name != "image"}
        return kept | {name: values.cpu().numpy() for name, values in found.items()}

    def identity(self) -> dict[str, str]:
        """Return what maps depend on besides the images: model, weights, settings and versions."""
        settings = {name: _name(value) for name, value in self._arguments.items()}
        packages = "torch", "canon-bridge", str(self._arguments["framework"])
        return self._identity | settings | {name: version(name) for name in packages}


def _rebuild(make_model: Callable[[], nn.Module], arguments: Mapping[str, Any]) -> Explainer:
    return Explainer(make_model, **arguments)


def _name(setting: Any) -> str:
    if isinstance(setting, Tensor):
        return f"{setting.dtype} {tuple(setting.shape)}"
    return str(getattr(setting, "__name__", setting))


def _digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's structure and values."""
    total = hashlib.sha256(str(model).encode())
    for name, tensor in model.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()
