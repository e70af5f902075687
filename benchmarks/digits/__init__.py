"""Is a canonized map better? Measured where the answer is known: digits in clutter, read by a small DenseNet."""
