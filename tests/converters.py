"""Converters of rows that end or hold up the process they run in. Spawned processes import this
module, and so it imports little.
"""

from __future__ import annotations

import os
import time

from openbezoar.rows.forms import to_example
from openbezoar.rows.records import Example, Row


def dying(row: Row, where: str) -> Example:
    """Ends its process at row 200."""
    if row["id"] == 200:
        os._exit(3)
    return to_example(row, where)


def resting(row: Row, where: str) -> Example:
    """Takes a minute a row."""
    time.sleep(60)
    return to_example(row, where)
