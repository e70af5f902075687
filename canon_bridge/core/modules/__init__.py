"""The modules of our own, for operations that a model writes as operators or functions."""
