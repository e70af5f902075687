"""What holds for whole networks: oracles, parity of the frameworks, undo after faults, random networks."""
