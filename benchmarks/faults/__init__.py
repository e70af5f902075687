"""python -m benchmarks.faults prints how often each fault was survived, for docs/reliability.md."""
