"""What the command line does to its own process and the library to nobody's: foreign loggers,
warnings, the heap.
"""

from __future__ import annotations

import logging
import warnings

from openbezoar.machine import heap


def own() -> None:
    """Set up a process that runs nothing but this project."""
    # bitsandbytes advises an optional kernel package on every CPU
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # PEFT calls a name that transformers renamed
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    heap.manage()
