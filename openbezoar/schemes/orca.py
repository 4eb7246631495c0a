"""Orca: the teacher answers FLAN queries under one of 16 system messages.

After Orca (arXiv 2306.02707). Seeds: FLAN rows with ``submix`` (cot, niv2, t0 or
flan2021), ``task``, ``input``, and optionally ``target``, ``multiple_choice`` and FLAN's
``template_type``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from pydantic import Field, field_validator

from openbezoar.errors import DataError, RecipeError
from openbezoar.recipe.blocks import Strict
from openbezoar.rows.lengths import CUT_CHARACTERS
from openbezoar.rows.records import Row, Turn
from openbezoar.schemes.expected import Expected, Known, mean_characters
from openbezoar.schemes.work import Work, answered, normal, row_id, shares

Submix = Literal["cot", "niv2", "t0", "flan2021"]
PROMPTS = ("orca_system_messages",)
SEED_FIELDS = ("submix", "task", "input")
BRINGS_SYSTEM = True

# Which messages go with which sub-collection, by their numbers in Orca's Table 2.
MESSAGES: dict[str, tuple[int, ...]] = {
    "cot": (6, 11, 16),
    "niv2": (1, 2, 5, 7, 9, 12, 13, 14, 15),
    "t0": (1, 2, 3, 5, 7),
    "flan2021": (3, 4, 7),
}
FOR_MULTIPLE_CHOICE: dict[str, tuple[int, ...]] = {"flan2021": (8, 10)}
# Where Orca draws a task first and then a query of it; of CoT and the capped NIV2 it takes (nearly) everything,
# of which a part is best drawn query by query.
BY_TASK = ("t0", "flan2021")


class Options(Strict):
    """The scheme's own keys."""

    submixes: dict[Submix, float] = Field(
        default={"cot": 0.15, "niv2": 0.44, "t0": 2.0, "flan2021": 2.5},
        description=(
            "Weights of the FLAN sub-collections. Default: millions of rows in Orca; a sub-collection that the seeds"
            " lack is left out."
        ),
    )
    niv2_per_task: int = Field(300, ge=1, description="Most queries of one NIV2 task. Orca: 300.")
    query_tokens: int = Field(
        1024, ge=16, description="Longer queries are not drawn, four characters counting as a token. This project's."
    )

    @field_validator("submixes")
    @classmethod
    def _weights(cls, value: dict[Submix, float]) -> dict[Submix, float]:
        if any(not 0 <= w < float("inf") for w in value.values()) or not sum(value.values()) > 0:
            raise ValueError("weights are numbers from 0 up, at least one above 0")
        return value


def expected(options: Options, known: Known) -> Expected:
    """Queries are the seeds' own, drawn by the weights of the sub-collections that the seeds have."""
    by_submix: dict[str, list[Row]] = {}
    for row in known.seeds:
        by_submix.setdefault(_submix(row), []).append(row)
    weights = {name: weight for name, weight in options.submixes.items() if name in by_submix and weight > 0}
    query = mean_characters(known.seeds, "input")
    if weights:
        drawn = sum(weight * mean_characters(by_submix[name], "input") for name, weight in weights.items())
        query = drawn / sum(weights.values())
    query += len(known.text("orca_system_messages")) / 16
    return Expected(before=(), prompt=query, instruction=query, answer=75)


def make(options: Options, work: Work) -> list[Row]:
    """Rows with ``system``, instruction and response, and the query's provenance.

    ``system`` is "" under the empty message. ``seed_target`` is FLAN's own answer, which
    the teacher does not see. Fewer rows than wanted if the seeds run out; counted.
    """
    messages = parse_messages(work.text("orca_system_messages"))
    chosen = _queries(options, work)
    if missing := work.rows - len(chosen):
        work.counts.add("short of the rows wanted", missing)
        work.say(
            f"the seeds hold {len(chosen)} queries of the weighted sub-collections, {missing} fewer than the rows"
            " wanted; add seeds"
        )
    rows = [_row(n, seed, messages, work) for n, seed in enumerate(chosen, 1)]
    conversations = [[Turn("system", row["system"]), Turn("user", row["instruction"])] for row in rows]
    replies = work.chat("answers", conversations, [work.seed("answer", 0, n) for n in range(len(rows))])
    return answered(work, rows, replies)


def _row(number: int, seed: Row, messages: Mapping[int, str], work: Work) -> Row:
    submix, choice = _submix(seed), is_multiple_choice(seed)
    allowed = MESSAGES[submix] + (FOR_MULTIPLE_CHOICE.get(submix, ()) if choice else ())
    message = random.Random(work.seed("message", 0, number)).choice(allowed)
    return {
        "id": row_id("orca", number),
        "scheme": "orca",
        "system": messages[message],
        "instruction": seed["input"],
        "response": "",
        "finish": "",
        "source": submix,
        "submix": submix,
        "task": seed["task"],
        "message": message,
        "multiple_choice": choice,
        "seed_id": seed.get("id"),
        "seed_target": seed.get("target"),
    }


# ------------------------------------------------------------------------------ sampling


def _submix(seed: Row) -> str:
    return str(seed.get("submix", "")).strip().lower()


def _queries(options: Options, work: Work) -> list[Row]:
    """The queries to answer, mixed: by weight over sub-collections, and within T0 and Flan2021 by task."""
    positive: dict[str, float] = {name: weight for name, weight in options.submixes.items() if weight > 0}
    tasks: dict[str, dict[str, list[Row]]] = {}
    seen: set[str] = set()
    for seed in work.seeds:
        submix = _submix(seed)
        if reason := _unfit(seed, submix, positive, seen, options):
            work.counts.add(reason)
        else:
            seen.add(normal(seed["input"]))
            tasks.setdefault(submix, {}).setdefault(seed["task"], []).append(seed)
    weights = {
        name: weight for name, weight in positive.items() if name in tasks or "submixes" in options.model_fields_set
    }
    if absent := [name for name in weights if name not in tasks]:
        raise DataError(
            f"seeds: no row of submix '{absent[0]}', which submixes gives a weight; they have"
            f" {', '.join(tasks) or 'none of the four'}; add rows or drop the weight"
        )
    if not weights:
        raise DataError(f"seeds: no row whose submix is one of {', '.join(get_args(Submix))}; expected FLAN rows")
    for queries in tasks.get("niv2", {}).values():
        if (surplus := len(queries) - options.niv2_per_task) > 0:
            work.counts.add("queries beyond niv2_per_task", surplus)
            random.Random(work.seed("niv2", 0, queries[0]["task"])).shuffle(queries)
            del queries[options.niv2_per_task :]
    available = {name: sum(map(len, by_task.values())) for name, by_task in tasks.items()}
    chosen: list[Row] = []
    for name, wanted in shares(work.rows, weights, available).items():
        draw = random.Random(work.seed("queries", 0, name))
        if name in BY_TASK:
            chosen += draw_queries(tasks[name], wanted, draw)
        else:
            chosen += draw.sample([query for queries in tasks[name].values() for query in queries], wanted)
    random.Random(work.seed("order", 0, 0)).shuffle(chosen)
    return chosen


def _unfit(seed: Row, submix: str, weights: Mapping[str, float], seen: set[str], options: Options) -> str | None:
    """Why a seed is not drawn from, or None."""
    if submix not in weights:
        return f"seeds of a sub-collection without weight: {submix if submix in MESSAGES else 'unknown'}"
    # FLAN's own mark of a query with examples in it; Orca's queries are zero-shot. Rows without the
    # field are taken as such.
    if str(seed.get("template_type", "")).lower().startswith("fs"):
        return "seeds with few-shot examples"
    if len(seed["input"]) > options.query_tokens * CUT_CHARACTERS:
        return f"seeds longer than {options.query_tokens} tokens"
    return "seeds that repeat a query" if normal(seed["input"]) in seen else None


def draw_queries(tasks: Mapping[str, Sequence[Row]], wanted: int, draw: random.Random) -> list[Row]:
    """Again and again a task drawn uniformly, then one of its queries without replacement; a
    used-up task is dropped.
    """
    left = {task: draw.sample(queries, len(queries)) for task, queries in tasks.items()}
    names = list(left)
    chosen: list[Row] = []
    while len(chosen) < wanted and names:
        place = draw.randrange(len(names))
        chosen.append(left[names[place]].pop())
        if not left[names[place]]:
            names[place] = names[-1]
            names.pop()
    return chosen


_OPTIONS = re.compile(r"^[ \t]*(?:options|choices|answer choices)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_LETTERED = re.compile(r"^[ \t]*(?:\(([A-Fa-f])\)|([A-F])[.):])[ \t]*\S", re.MULTILINE)


def is_multiple_choice(seed: Row) -> bool:
    """What the row says of itself, else whether its input lists options: "OPTIONS:", or lines (A) and (B)."""
    stated = seed.get("multiple_choice")
    if isinstance(stated, bool):
        return stated
    letters = {(a or b).upper() for a, b in _LETTERED.findall(seed["input"])}
    return bool(_OPTIONS.search(seed["input"])) or {"A", "B"} <= letters


# ------------------------------------------------------------------------------ messages

_HEADING = re.compile(r"^\[(\d+)\][ \t]*$", re.MULTILINE)


def parse_messages(text: str) -> dict[int, str]:
    """System messages by number, from a text in which "[3]" on a line of its own begins message 3.

    Raises RecipeError if one that a sub-collection needs is missing.
    """
    parts = _HEADING.split(text)
    messages = {int(number): body.strip() for number, body in zip(parts[1::2], parts[2::2], strict=True)}
    needed = {n for allowed in (*MESSAGES.values(), *FOR_MULTIPLE_CHOICE.values()) for n in allowed}
    if absent := sorted(needed - set(messages)):
        raise RecipeError(
            f"prompts.orca_system_messages: no message {absent[0]}; expected 16, each under a line such as"
            f" '[{absent[0]}]'"
        )
    return messages
