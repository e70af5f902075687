"""What canonization costs in time and memory; the command is ``python -m benchmarks.speed``."""
