"""Two runs held against one another, in numbers: settings that differ, and what both have scored,
paired where the items are the same.

Reads both run folders (manifests, ``scores.json``, ``answers.jsonl``, ``judgments.jsonl``); writes nothing.
A difference is the other run's value less the first run's. p values are corrected for all pairs that are made here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from openbezoar.judging.scores import question_of
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.measured import Comparable, Difference, Score
from openbezoar.reporting.results import Scores, StepFacts
from openbezoar.reporting.scores import published
from openbezoar.rows.records import Row
from openbezoar.stats.comparisons import correct, every_pair
from openbezoar.store.digests import digest


@dataclass(frozen=True)
class Setting:
    """One value that the two runs do not share; None where a run has none."""

    step: str
    key: str
    first: str | None
    other: str | None


@dataclass(frozen=True)
class Compared:
    """One score of one checkpoint in both runs; ``why`` says why it is not paired."""

    checkpoint: str
    title: str
    digits: int
    first: Score | None
    other: Score | None
    difference: Difference | None
    why: str = ""


# ------------------------------------------------------------------------------ settings


def settings_that_differ(first: RunFacts, other: RunFacts) -> list[Setting]:
    """Seeds, and for each step its settings, inputs, files, models, texts and stage version, where
    they are not the same.
    """
    changes = []
    if first.seed != other.seed:
        changes.append(Setting("recipe", "seed", str(first.seed), str(other.seed)))
    for name in dict.fromkeys([*first.steps, *other.steps]):
        a, b = first.steps.get(name), other.steps.get(name)
        if a is None or b is None:
            changes.append(Setting(name, "step", a.verb if a else None, b.verb if b else None))
            continue
        left, right = _told(a), _told(b)
        for key in dict.fromkeys([*left, *right]):
            # told by the setting that names it
            gone = key.startswith(("SHA-256 of", "compared with")) and (key not in left or key not in right)
            if left.get(key) != right.get(key) and not gone:
                changes.append(Setting(name, key, left.get(key), right.get(key)))
    return changes


def _told(step: StepFacts) -> dict[str, str]:
    """What a step depends on by dotted names, without what follows from its inputs."""
    words = {
        "files": "SHA-256 of",
        "models": "model",
        "prompt": "prompt",
        "texts": "text sent",
        "benchmarks": "compared with",
    }
    parts = {name: step.parts.get(key) for key, name in words.items() if step.parts.get(key)}
    parts |= {"stage's version": step.parts.get("version"), "reviews": step.parts.get("reviews")}
    return {
        key: _text(value)
        for key, value in (*_flat(step.settings, "", "."), *_flat(parts, "", " "), ("inputs", ", ".join(step.inputs)))
    }


def _flat(value: Any, path: str, joint: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and "data" not in value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}{joint}{key}" if path else str(key), joint)
    elif value is not None:
        yield path, value


def _text(value: Any) -> str:
    """A value in one line: a reference to data with what is set of it, hashes by their beginning."""
    if isinstance(value, Mapping):
        rest = [
            f"{k} {_text(v)}" for k, v in value.items() if k != "data" and (v or not isinstance(v, bool | dict | None))
        ]
        return ", ".join([str(value["data"]), *rest] if "data" in value else rest) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if value == "":
        return "''"
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32,64}", value) else str(value)


# -------------------------------------------------------------------------------- scores


def compare_scores(first: RunFacts, other: RunFacts) -> list[Compared]:
    """Every score of every checkpoint that either run has. Checkpoints of the same name are paired,
    and the last of both runs where neither name is in the other.
    """
    left, right = _comparable(first), _comparable(other)
    others = published(first) | published(other)
    last = [[name for name in dict.fromkeys(key[0] for key in found) if name not in others] for found in (left, right)]
    if last[0] and last[1] and last[0][-1] not in last[1] and last[1][-1] not in last[0]:
        name = f"{last[0][-1]} / {last[1][-1]}"
        left, right = (
            {((name if key[0] == own[-1] else key[0]), key[1]): value for key, value in found.items()}
            for found, own in ((left, last[0]), (right, last[1]))
        )
    paired = {key: _pair(left.get(key), right.get(key), key) for key in dict.fromkeys([*left, *right])}
    correct([row for row, _ in paired.values() if row is not None])
    return [_compared(key[0], left.get(key), right.get(key), row, why) for key, (row, why) in paired.items()]


def _compared(checkpoint: str, a: Comparable | None, b: Comparable | None, row: Row | None, why: str) -> Compared:
    known = a or b
    assert known is not None
    m = known.measured
    difference = None
    if row is not None:
        what = m.name if m.kind == "failures" else m.title  # whose own name says whether fewer are better
        numbers = (row["difference"], row["low"], row["high"], row["n"])
        difference = Difference("", "", what, *numbers, m.kind, row["p_holm"], lower=m.lower)
    first, other = (None if one is None else one.measured.score for one in (a, b))
    return Compared(checkpoint, m.title, m.digits, first, other, difference, why)


def _pair(a: Comparable | None, b: Comparable | None, key: tuple[str, str]) -> tuple[Row | None, str]:
    """The paired difference of two scores, or why there is none."""
    if a is None or b is None:
        return None, "in one run only"
    if a.same is None or b.same is None or a.items is None or b.items is None:
        return None, "not known to be the same items"
    if a.same != b.same:
        return None, "other items, judge or settings"
    items = {"first": a.items, "other": b.items}
    rows = every_pair(items, int(digest([*key])[:8], 16), {"what": a.measured.title}, unit=_unit)
    return (rows[0], "") if rows else (None, "no item in common")


def _unit(item: Any) -> Any:
    """What is independent: the question of a turn, else the item itself."""
    return question_of(item) if isinstance(item, tuple) else item


def _comparable(facts: RunFacts) -> dict[tuple[str, str], Comparable]:
    """{(checkpoint, measure): its values} of all steps that measure, those of the table first; the
    step's name goes into the measure's where two steps have the same.
    """
    by_title: dict[tuple[str, str], Comparable] = {}
    for result in sorted(facts.results(Scores), key=lambda result: not result.scores()):
        for one in result.comparable():
            m = one.measured
            title = m.title if (m.checkpoint, m.title) not in by_title else f"{m.title}, {result.step.name}"
            by_title[m.checkpoint, title] = replace(one, measured=replace(m, title=title))
    return by_title
