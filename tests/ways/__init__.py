"""Ways of running: what PyTorch does with models, done with canonical ones."""
