"""The data flow of a model: tracing, with values where need be, and what torch needs patched for the length of it."""
