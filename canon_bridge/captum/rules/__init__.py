"""Rules of layer-wise relevance propagation as Captum ``PropagationRule`` classes, right for inputs of either sign."""

from canon_bridge.captum.rules.base import Rule
from canon_bridge.captum.rules.first import Flat, WSquare, ZBox
from canon_bridge.captum.rules.linear import Epsilon, Norm
from canon_bridge.captum.rules.passing import Pass, SignalTakesAll, WinnerTakesAll
from canon_bridge.captum.rules.signed import AlphaBeta, Gamma, ZPlus

__all__ = [
    "AlphaBeta",
    "Epsilon",
    "Flat",
    "Gamma",
    "Norm",
    "Pass",
    "Rule",
    "SignalTakesAll",
    "WSquare",
    "WinnerTakesAll",
    "ZBox",
    "ZPlus",
]
