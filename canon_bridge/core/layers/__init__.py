"""Linear layers: what they compute, how an affine map is folded into them, their border, weights and parameters."""
