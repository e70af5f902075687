"""The adapter for zennit: canonizers for its composites, the model's and the building blocks.

May import the core's public names and zennit, never captum. Works with zennit 0.5 and 1.0. The building blocks have
the names and call signatures of zennit's pull request 171.
"""

from canon_bridge.zennit.blocks import (
    CompositeCanonizer,
    MergeBatchNormtoRight,
    SequentialMergeBatchNorm,
    ThreshReLUMergeBatchNorm,
)
from canon_bridge.zennit.model import (
    DenseNetAdaptiveAvgPoolCanonizer,
    DenseNetSeqThreshCanonizer,
    DenseNetThreshSeqCanonizer,
    ModelCanonizer,
)

__all__ = [
    "CompositeCanonizer",
    "DenseNetAdaptiveAvgPoolCanonizer",
    "DenseNetSeqThreshCanonizer",
    "DenseNetThreshSeqCanonizer",
    "MergeBatchNormtoRight",
    "ModelCanonizer",
    "SequentialMergeBatchNorm",
    "ThreshReLUMergeBatchNorm",
]
