"""Which steps would train on prompts that the recipe measures on. Reads local rows; writes nothing.

By the exact text of a prompt, system message aside, so it is cheap and finds only what is there word for word.
What shares a run of words with a benchmark a filter drops (``decontaminate``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from openbezoar.errors import DataError, RowError
from openbezoar.recipe.blocks import DataSpec
from openbezoar.recipe.refs import Reference, references
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.verbs import row_of
from openbezoar.rows.forms import to_prompt
from openbezoar.rows.records import Row
from openbezoar.rows.sources import read

MEASURED = ("benchmark", "measured")
"""Roles of rows that checkpoints or judges are measured on."""
MOST = 20_000  # rows looked at of one reference

Prompt = tuple[str, ...]


class PromptsSeen(NamedTuple):
    """How many of the prompts that are measured on a step trains on. by: who measures, and what it calls the set."""

    step: str
    by: str
    prompts: int
    of: int


def prompts_seen(recipe: Recipe, folder: Path, todo: Collection[str]) -> Iterator[PromptsSeen]:
    """Of every step that trains and every set of rows that is measured on, where one of the two is to be run.

    folder: the recipe's. Rows of the hub, and those that models are yet to write, are not known.
    """
    known: dict[str, set[Prompt]] = {}

    def prompts(spec: DataSpec, most: int) -> set[Prompt]:
        key = f"{spec.model_dump_json()} {most}"
        if key not in known:
            known[key] = set(_prompts(recipe, folder, spec, most))
        return known[key]

    sets = [(name, one) for name, step in recipe.steps.items() for one in _measured(step_refs(recipe, name))]
    for name, step in recipe.steps.items() if sets else ():
        if {"model", "reward model"}.isdisjoint(row_of(step).produces):
            continue
        files = list(_files(recipe, name))
        for measuring, one in sets if files else ():
            if one.rows is None or not {name, measuring} & set(todo) or not _is_file(recipe, one.rows):
                continue
            read_in = [own.rows for own in files if one.ref.role != "benchmark" or not own.compared]
            trained = set().union(*(prompts(spec, MOST) for spec in read_in))
            asked = prompts(one.rows, one.most or MOST)
            if both := len(asked & trained):
                called = one.key.partition(".")[2] or one.key
                yield PromptsSeen(name, f"{measuring}: {called}", both, len(asked))


def step_refs(recipe: Recipe, name: str) -> list[Reference]:
    """The rows that a step names."""
    return [one for one in references(recipe.steps[name]) if one.rows is not None]


def _measured(refs: list[Reference]) -> Iterator[Reference]:
    return (one for one in refs if one.ref.role in MEASURED)


def _is_file(recipe: Recipe, spec: DataSpec) -> bool:
    return spec.data not in recipe.steps and not spec.data.startswith("hub:")


class _RowsRead(NamedTuple):
    """Local rows. compared: whether a filter on their way drops what it finds in benchmarks."""

    rows: DataSpec
    compared: bool


def _files(recipe: Recipe, name: str, compared: bool = False) -> Iterator[_RowsRead]:
    """The local rows that a step reads, also through steps that keep some of them or answer their prompts."""
    compared |= bool(getattr(getattr(recipe.steps[name], "rules", None), "decontaminate", False))
    for one in step_refs(recipe, name):
        if one.ref.role != "rows" or one.rows is None:
            continue
        if one.rows.data in recipe.steps:
            yield from _files(recipe, one.rows.data, compared)
        elif _is_file(recipe, one.rows):
            yield _RowsRead(one.rows, compared)


def _prompts(recipe: Recipe, folder: Path, spec: DataSpec, most: int) -> Iterator[Prompt]:
    try:
        for where, row in islice(read(spec, folder, recipe.data, {}, recipe.seed), most):
            if prompt := _prompt(row, where):
                yield prompt
    except DataError:  # what is wrong with rows is said where they are used
        return


def _prompt(row: Row, where: str) -> Prompt:
    try:
        return tuple(turn.content.strip() for turn in to_prompt(row, where) if turn.role != "system")
    except (DataError, RowError):
        return ()
