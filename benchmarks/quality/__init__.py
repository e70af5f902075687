"""Are canonized maps better? Four architectures, trained where the answer is known, and what is asked of a map."""
