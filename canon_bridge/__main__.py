"""``python -m canon_bridge``: the command line."""

from canon_bridge.cli import main

if __name__ == "__main__":
    main()
