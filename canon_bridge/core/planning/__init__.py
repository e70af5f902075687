"""Which BatchNorm is merged into what, and the plan in print."""
