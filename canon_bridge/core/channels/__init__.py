"""Where the channels of a tensor lie, and which operations keep them together."""
