"""That the benchmarks measure what they say, on small settings."""
