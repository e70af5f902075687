"""The audit of one attribution: attach the rules, run forward and backward once, add up."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor, nn

from canon_bridge.auditing.causes import CAUSES, RuleSet, cause_of, shares
from canon_bridge.auditing.flows import Visit, recorded, total
from canon_bridge.auditing.report import Audit, Entry
from canon_bridge.auditing.target import Target, as_tuple, select
from canon_bridge.core import check_module

ADAPTERS: Final = {
    "zennit.core.Composite": ("canon_bridge.zennit.auditing", "CompositeRules"),
    "canon_bridge.captum.maps.Preset": ("canon_bridge.captum.auditing", "PresetRules"),
    "canon_bridge.captum.canonical.OnCanonicalModel": ("canon_bridge.captum.auditing", "PresetRules"),
}
"""From the type of the rules to the class that knows them, by its module and name."""


def audit(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    target: Target = None,
    rules: Any = None,
    additional_forward_args: Any = None,
) -> Audit:
    r"""Follow the relevance of one attribution through the model, and say where all of it went.

    .. math:: f(x) = \sum_i R_i + \text{absorbed by biases, stabilisers and clipped constants}
              + \text{lost at gates and elsewhere}

    for each module and in total. What biases and stabilisers absorb is computed from the module, its rule and the
    relevance at its output, not from what the rule handed down; what the shift of a BatchNorm has in its output counts
    as absorbed by a bias. What does not add up, at a module or in the operations that its own forward writes, is
    *lost*: it is rounding where the rules fit the model.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; as it stands, so inside ``with canonize(model):`` the canonical one.
    inputs : Tensor or tuple of Tensor
        Batch first, ``(N, ...)``. Sums are over the batch.
    target : int, tuple, list or Tensor, optional
        The output to explain: an index, a tuple of indices, or a list or tensor with one for each example.
    rules : zennit Composite, Preset, LRP or LayerLRP
        A composite (its canonizers run), a preset of :mod:`canon_bridge.captum.presets` (for the model as it stands),
        or an :class:`canon_bridge.captum.LRP` of this model (which canonizes it).
    additional_forward_args : any, optional
        Further positional arguments of the model, a tuple or one.

    Returns
    -------
    Audit
        For ``print``, with ``.defect``, ``.entries`` and ``.bars()``.

    Raises
    ------
    TypeError
        For rules of another kind, for inputs that are no tensors, and if the model does not return a tensor.
    ValueError
        If the target does not select one value for each example; and as :func:`canon_bridge.canonize`.

    Notes
    -----
    Relevance starts as :math:`f(x)`. Only the sums of a rule are checked: one that hands relevance to the wrong inputs
    keeps them. What such a rule often does is to let relevance grow; the largest flow shows that.

    References
    ----------
    Bach et al. 2015, "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
    Propagation", section "Layer-wise relevance propagation" (conservation).

    Examples
    --------
    >>> print(audit(model, x, target=3, rules=EpsilonPlus(canonizers=[ModelCanonizer()])))
    """
    check_module(model)
    rule_set = _rule_set(model, rules)
    leaves = tuple(value.detach().requires_grad_(value.is_floating_point()) for value in as_tuple(inputs))
    extra = () if additional_forward_args is None else additional_forward_args
    extra = extra if isinstance(extra, tuple) else (extra,)
    with rule_set.attached((*leaves, *extra)), _frozen(model), torch.inference_mode(False), torch.enable_grad():
        names = {path: rule_set.rule_of(module) for path, module in model.named_modules()}
        with recorded(model, partial(shares, rule_set)) as root:
            score = select(model(*leaves, *extra), target)
            explained = [leaf for leaf in leaves if leaf.requires_grad]
            gradients: Any = torch.autograd.grad(score, explained, score.detach(), allow_unused=True)
    return Audit(
        model=type(model).__name__,
        rules=rule_set.name,
        score=total(score),
        scale=total(score.abs()),
        relevance=sum(total(gradient) for gradient in gradients if gradient is not None),
        entries=tuple(_entries(rule_set, root, names)),
        eps=torch.finfo(score.dtype).eps,
    )


def _rule_set(model: nn.Module, rules: Any) -> RuleSet:
    for base in type(rules).__mro__:
        adapter = ADAPTERS.get(f"{base.__module__}.{base.__qualname__}")
        if adapter is not None:
            module, name = adapter
            return getattr(import_module(module), name)(model, rules)
    raise TypeError(
        f"rules is a {type(rules).__name__}; it must be a zennit composite, a preset of canon_bridge.captum, or a "
        "canon_bridge.captum.LRP."
    )


@contextmanager
def _frozen(model: nn.Module) -> Generator[None]:
    """Let only the inputs carry gradients; parameters are themselves again afterwards, also if a rule replaced them."""
    slots: list[tuple[dict[str, Any], dict[str, Any]]] = []
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for module in model.modules():
        parameters: dict[str, Any] = vars(module)["_parameters"]
        slots.append((parameters, dict(parameters)))
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for parameters, former in slots:
            parameters.update(former)


def _entries(rule_set: RuleSet, root: Visit, names: dict[str, str]) -> Iterator[Entry]:
    """Yield the entry of each module that was called, in the order of the first call."""
    calls: dict[str, list[Visit]] = {}
    for visit in _walk(root):
        calls.setdefault(visit.path, []).append(visit)
    for path, visits in calls.items():
        taken = dict.fromkeys(CAUSES, 0.0)
        for visit in visits:
            for cause, share in visit.shares.items():
                taken[cause] += share
            taken[cause_of(rule_set, visit)] += visit.own - sum(visit.shares.values())
        yield Entry(
            path=path or "(model)",
            kind=type(visits[0].module).__name__,
            rule=names[path],
            is_container=bool(visits[0].inside),
            calls=len(visits),
            arrived=sum(visit.output.net for visit in visits),
            handed_down=sum(visit.input.net for visit in visits),
            flow=max(max(visit.output.gross, visit.input.gross) for visit in visits),
            taken=taken,
        )


def _walk(visit: Visit) -> Iterator[Visit]:
    for call in visit.inside:
        yield call
        yield from _walk(call)
