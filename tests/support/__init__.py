"""What several tests and benchmarks share: models, random statistics, snapshots, faults."""
