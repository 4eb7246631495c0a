"""``python -m openbezoar``: the command line."""

from openbezoar.cli import main

if __name__ == "__main__":
    main()
