"""The public functions of the core."""

import copy

import torch
from torch import nn

from canon_bridge.core.canonization import Canonization, check_module
from canon_bridge.core.layers.linear import computes_weight, make_plain, why_not_foldable
from canon_bridge.core.merge import replace_child
from canon_bridge.core.explicit import OfRank
from canon_bridge.core.layers.linear import computes_weight, make_plain, why_not_foldable
from canon_bridge.core.planning.options import Clipped, ExampleInputs, Leftover, Options, Prefer
from canon_bridge.core.planning.plan import Plan
from canon_bridge.core.undo.edits import TRANSIENT, Edits


def canonize(
    model: nn.Module,
    *,
    prefer: Prefer = "left",
    clipped: Clipped = "absorb",
    leftover: Leftover = "linear",
    example_inputs: ExampleInputs | None = None,
) -> Canonization:
    r"""Make a model canonical for the length of a ``with`` block: same function, no BatchNorm, explicit modules.

    Each BatchNorm in evaluation mode is the per-channel affine map :math:`y = s x + b`,
    :math:`s = \gamma / \sqrt{\sigma^2 + \epsilon}`, :math:`b = \beta - s \mu`. It is merged into the linear layer
    before it or into the linear layers after it, where a ReLU in between becomes the thresholded ReLU; the
    BatchNorm then computes the exact identity.

    Parameters
    ----------
    model : nn.Module
        Any model in evaluation mode, float16 to float64, on any device. It is changed in place and restored.
    prefer : {"left", "right"}, default "left"
        Which merge to try first: into the linear layer before the BatchNorm, or into those after it.
    clipped : {"absorb", "pass"}, default "absorb"
        What happens to relevance at units that a thresholded ReLU clips, whose value does not depend on the input:
        it is absorbed (as by a bias), or passes to the input all the same.
    leftover : {"linear", "keep"}, default "linear"
        What becomes of a BatchNorm that nothing can take: an explicit per-channel linear layer, or nothing.
    example_inputs : Tensor or tuple, optional
        Positional arguments of the model. On entry the function is compared before and after on them
        (``Canonization.function_error``), with a warning where float32 loses precision.

    Returns
    -------
    Canonization
        A context manager; ``with canonize(model) as canonical`` gives the model itself.

    Raises
    ------
    TypeError
        If ``model`` is not an ``nn.Module`` or ``example_inputs`` neither a tensor nor a tuple.
    ValueError
        If a BatchNorm is in training mode or has no running statistics, or a keyword has an unknown value.
    TracingError
        If the data flow of the model cannot be found (a ``RuntimeError``).

    Warns
    -----
    PrecisionWarning
        On entry, if a merge loses precision; it names the BatchNorms and says what to do.
    LostChangeWarning
        When the block ends, if something was changed inside that is not kept.

    Notes
    -----
    Module objects, names and types stay. Inside the block ``state_dict`` holds the merged values, and merged layers
    without bias have one. Parameters of merged layers are new objects; a change to them is lost on exit, with a
    ``LostChangeWarning`` that names them. Gradients are those of the function, whatever hooks look on; ``clipped``
    holds for what a rule hands down, that is, puts in the place of an activation's gradient. The model is canonical
    for all threads, and another thread cannot enter a block on it meanwhile.

    References
    ----------
    Guillemot et al. 2020, "Breaking Batch Normalization for better explainability of Deep Neural Networks through
    Layer-wise Relevance Propagation"; Hui & Binder 2019, "BatchNorm Decomposition for Deep Neural Network
    Interpretation"; Pahde et al. 2023, "Optimizing Explanations by Network Canonization and Hyperparameter Search".

    Examples
    --------
    >>> with canonize(model):
    ...     relevance = explain(model, x)
    """
    return Canonization(model, Options(prefer, clipped, leftover, example_inputs))


def plan(
    model: nn.Module,
    *,
    prefer: Prefer = "left",
    clipped: Clipped = "absorb",
    leftover: Leftover = "linear",
    example_inputs: ExampleInputs | None = None,
) -> Plan:
    """Return what :func:`canonize` would do with the same arguments, as a table for ``print``; change nothing."""
    return Canonization(model, Options(prefer, clipped, leftover, example_inputs)).plan


def canonized_copy(
    model: nn.Module,
    *,
    prefer: Prefer = "left",
    clipped: Clipped = "absorb",
    leftover: Leftover = "linear",
    example_inputs: ExampleInputs | None = None,
) -> nn.Module:
    """Return a permanent, independent, canonical copy of a model, in which merged BatchNorms are ``nn.Identity``.

    Parameters and errors are those of :func:`canonize`; ``model`` is not changed. Linear layers that compute their
    weight (a parametrization, weight_norm) have it as a parameter in the copy. Its ``state_dict`` holds all that it
    computes with, thresholds of activations and signs of pools, too; it can be loaded into the copy of a model of the
    same class.
    """
    check_module(model)
    twin = _copy(model)
    transient = {module: vars(module)[TRANSIENT] for module in twin.modules()}
    canonization = Canonization(twin, Options(prefer, clipped, leftover, example_inputs))
    canonization.apply()
    edits = Edits()
    for merge in canonization.plan.merges:
        norm, ranks = twin.get_submodule(merge.norm), merge.chain.ranks
        if not isinstance(norm, nn.Sequential):  # what a norm calls after itself stays
            replace_child(edits, twin, norm, OfRank(ranks) if ranks else nn.Identity())
    for module in twin.modules():  # thresholds and signs belong to its state
        edits.set(module, "__dict__", TRANSIENT, transient.get(module, set()))
    canonization.keep()
    edits.keep()
    return twin


def _copy(model: nn.Module) -> nn.Module:
    # Tensors that hooks have computed (weight_norm) cannot be copied: they are parameters meanwhile.
    edits = Edits()
    try:
        for module in model.modules():
            if computes_weight(module) and why_not_foldable(module) is None:
                make_plain(edits, module)
        with torch.inference_mode(False):  # a copy that is made in there may be trained outside
            return copy.deepcopy(model)
    finally:
        edits.undo()
