"""How synthetic instruction data is made: one module a scheme, all of them in ``SCHEMES``.

A new scheme is one file with ``Options`` and ``make``, and one line here. See
``schemes/work.py`` for what ``make`` is given and why a killed run goes on by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from openbezoar.records import Row
from openbezoar.schemes import evol_instruct, lamini, orca
from openbezoar.schemes.work import Work


@dataclass(frozen=True)
class Scheme:
    """A way to make rows.

    Options: the recipe's keys that are the scheme's own; a field that names data or a model
    is marked ``json_schema_extra={"refers_to": "data"}`` (or ``"model"``).
    make: the rows, from checked options and what the stage offers.
    prompts: names of the texts it sends, which a recipe may replace.
    seed_fields: what every seed row must hold as non-empty text.
    """

    Options: type[BaseModel]
    make: Callable[[Any, Work], list[Row]]
    prompts: tuple[str, ...]
    seed_fields: tuple[str, ...]


SCHEMES: dict[str, Scheme] = {
    "lamini": Scheme(lamini.Options, lamini.make, lamini.PROMPTS, ("instruction",)),
    "evol_instruct": Scheme(evol_instruct.Options, evol_instruct.make, evol_instruct.PROMPTS, ("instruction",)),
    "orca": Scheme(orca.Options, orca.make, orca.PROMPTS, ("submix", "task", "input")),
}
