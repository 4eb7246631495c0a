"""``python -m openbezoar``: the command line."""

from openbezoar.cli.app import main

if __name__ == "__main__":
    main()
