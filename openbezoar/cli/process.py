"""What the command line does to its own process and the library to nobody's: foreign loggers, the
heap; and by which words the program was called.
"""

from __future__ import annotations

import logging
import shutil
import sys

from openbezoar.machine import extras, heap


def own() -> None:
    """Set up a process that runs nothing but this project."""
    # bitsandbytes advises an optional kernel package on every CPU
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    heap.manage()


def program() -> str:
    """What to type to call this program again as it was called."""
    if extras.way() == "uvx":
        return extras.UVX
    if sys.argv[0].endswith("__main__.py"):
        return "python -m openbezoar"
    return "openbezoar" if shutil.which("openbezoar") == sys.argv[0] else sys.argv[0]
