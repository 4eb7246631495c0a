"""How synthetic instruction data is made: one module a scheme, all of them in ``SCHEMES``.

A new scheme is one file and one line below (docs/how-to/add-a-scheme.md). Its module has
``Options``, ``make``, ``PROMPTS`` and ``SEED_FIELDS``, and may have ``expected`` and
``BRINGS_SYSTEM``; see ``schemes/work.py`` for what ``make`` is given and why a killed run goes
on by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import BaseModel

from openbezoar.rows.records import Row
from openbezoar.schemes.expected import Expected, Known, expected
from openbezoar.schemes.work import Work


@dataclass(frozen=True)
class Scheme:
    """A way to make rows, by the names that its module gives to the parts.

    Options: the recipe's keys that are the scheme's own; a field that names data or a model
    says so: ``Annotated[..., Ref("data")]`` (or ``"model"``).
    make: the rows, from checked options and what the stage offers.
    prompts (PROMPTS): names of the texts it sends, which a recipe may replace.
    seed_fields (SEED_FIELDS): what every seed row must hold as non-empty text; a scheme
    without any needs no seeds.
    expected: what it will ask of its models, for ``plan``; without one of its own a call for an
    instruction and one for its answer a row.
    brings_system (BRINGS_SYSTEM): whether its rows have system messages of their own.
    """

    Options: type[BaseModel]
    make: Callable[[Any, Work], list[Row]]
    prompts: tuple[str, ...]
    seed_fields: tuple[str, ...]
    expected: Callable[[Any, Known], Expected] = expected
    brings_system: bool = False


def _scheme(name: str) -> Scheme:
    module = import_module(f"{__name__}.{name}")
    return Scheme(
        module.Options,
        module.make,
        module.PROMPTS,
        module.SEED_FIELDS,
        getattr(module, "expected", expected),
        getattr(module, "BRINGS_SYSTEM", False),
    )


SCHEMES: dict[str, Scheme] = {
    "lamini": _scheme("lamini"),
    "evol_instruct": _scheme("evol_instruct"),
    "orca": _scheme("orca"),
    "magpie": _scheme("magpie"),
}
