"""Writes to a model that can be taken back, in any order, to the bit."""
