"""Wrong variants of the mathematics: what each gets wrong, and the machinery that has the tests meet them."""
