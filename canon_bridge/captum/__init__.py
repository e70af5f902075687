"""The adapter for Captum: LRP on the canonical model, rules, presets, and the pre-processing step.

May import the core's public names and Captum, never zennit.
"""

from canon_bridge.captum import presets, rules
from canon_bridge.captum.lrp import LRP, LayerLRP
from canon_bridge.captum.preprocess import canonize

__all__ = ["LRP", "LayerLRP", "canonize", "presets", "rules"]
