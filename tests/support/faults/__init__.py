"""Does a model come back to the bit, whatever goes wrong? Patterns times failure modes, with a fault at every step."""
