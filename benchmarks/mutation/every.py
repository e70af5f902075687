"""The list of all mutants."""

from benchmarks.mutation import activations, borders, channels, layers, norms

EVERY = (
    *norms.AFFINE,
    *norms.NORMS,
    *norms.MERGED,
    *norms.MERGE,
    *layers.LINEAR,
    *layers.FORWARD,
    *layers.WEIGHTS,
    *layers.FUNCTIONAL,
    *borders.BORDER,
    *activations.RELU,
    *activations.ABSORBED,
    *activations.REFERENCE,
    *activations.GENERAL,
    *activations.POOLING,
    *activations.ABSORB,
    *channels.OPERATIONS,
    *channels.FACTS,
    *channels.LABELS,
    *channels.SEARCH,
    *channels.UNTANGLE,
    *layers.COPIES,
)
