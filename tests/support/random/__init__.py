"""Networks drawn at random."""
