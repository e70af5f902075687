"""README, examples, layout of the code and what may come from elsewhere."""
