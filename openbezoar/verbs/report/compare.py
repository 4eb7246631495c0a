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

from openbezoar.judging.failures import MEASURES
from openbezoar.judging.scores import question_of, turn_ratings
from openbezoar.reporting.facts import RunFacts, StepFacts
from openbezoar.reporting.scores import SCORES, Difference, Score, mapping, measured, published, score_of, stopped
from openbezoar.rows.records import Row
from openbezoar.stats.comparisons import correct, every_pair
from openbezoar.store.digests import digest

Items = Mapping[Any, float]


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
    found = []
    if first.seed != other.seed:
        found.append(Setting("recipe", "seed", str(first.seed), str(other.seed)))
    for name in dict.fromkeys([*first.steps, *other.steps]):
        a, b = first.steps.get(name), other.steps.get(name)
        if a is None or b is None:
            found.append(Setting(name, "step", a.verb if a else None, b.verb if b else None))
            continue
        left, right = _told(a), _told(b)
        for key in dict.fromkeys([*left, *right]):
            # told by the setting that names it
            gone = key.startswith(("SHA-256 of", "compared with")) and (key not in left or key not in right)
            if left.get(key) != right.get(key) and not gone:
                found.append(Setting(name, key, left.get(key), right.get(key)))
    return found


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


@dataclass(frozen=True)
class _Measure:
    """A score with its values by item and a digest of what the items are; None where that is not known."""

    title: str
    kind: str
    digits: int
    score: Score
    items: Items | None
    same: str | None
    what: str = ""  # of a failure its own name, which says whether fewer are better
    lower: bool = False  # a task of which lower values are better


def compare_scores(first: RunFacts, other: RunFacts) -> list[Compared]:
    """Every score of every checkpoint that either run has. Checkpoints of the same name are paired,
    and the last of both runs where neither name is in the other.
    """
    left, right = _measures(first), _measures(other)
    others = published(first) | published(other)
    last = [[name for name in dict.fromkeys(key[0] for key in found) if name not in others] for found in (left, right)]
    if last[0] and last[1] and last[0][-1] not in last[1] and last[1][-1] not in last[0]:
        name = f"{last[0][-1]} / {last[1][-1]}"
        left, right = (
            {((name if key[0] == own[-1] else key[0]), key[1]): value for key, value in found.items()}
            for found, own in ((left, last[0]), (right, last[1]))
        )
    keys = dict.fromkeys([*left, *right])
    rows: list[tuple[tuple[str, str], Row | None, str]] = []
    for key in keys:
        row, why = _pair(left.get(key), right.get(key), key)
        rows.append((key, row, why))
    correct([row for _, row, _ in rows if row is not None])
    found = []
    for key, row, why in rows:
        a, b = left.get(key), right.get(key)
        known = a or b
        assert known is not None
        d = (
            None
            if row is None
            else Difference(
                "",
                "",
                known.what or known.title,
                row["difference"],
                row["low"],
                row["high"],
                row["n"],
                known.kind,
                row["p_holm"],
                lower=known.lower,
            )
        )
        found.append(
            Compared(key[0], known.title, known.digits, a.score if a else None, b.score if b else None, d, why)
        )
    return found


def _pair(a: _Measure | None, b: _Measure | None, key: tuple[str, str]) -> tuple[Row | None, str]:
    """The paired difference of two measures, or why there is none."""
    if a is None or b is None:
        return None, "in one run only"
    if a.same is None or b.same is None or a.items is None or b.items is None:
        return None, "not known to be the same items"
    if a.same != b.same:
        return None, "other items, judge or settings"
    rows = every_pair({"first": a.items, "other": b.items}, int(digest([*key])[:8], 16), {"what": a.title}, _unit)
    return (rows[0], "") if rows else (None, "no item in common")


def _unit(item: Any) -> Any:
    """What is independent: the question of a turn, else the item itself."""
    return question_of(item) if isinstance(item, tuple) else item


def _measures(facts: RunFacts) -> dict[tuple[str, str], _Measure]:
    """{(checkpoint, measure): measure} of all scoring steps; the step's name goes into the
    measure's where two steps have the same.
    """
    found: dict[tuple[str, str], _Measure] = {}
    for step in facts.of("evaluate", "mt_bench"):
        scores = step.read_json(SCORES)
        for m in measured(step):
            items, same = (_evaluated if step.verb == "evaluate" else _graded)(
                step, scores, m.checkpoint, m.kind, m.name
            )
            title = m.title if (m.checkpoint, m.title) not in found else f"{m.title}, {step.name}"
            found[m.checkpoint, title] = _Measure(
                title, m.kind, m.digits, m.score, items, same, lower=m.kind == "task" and m.lower
            )
    for step in facts.of("failures"):
        for checkpoint, measure in _failures(step):
            title = measure.title if (checkpoint, measure.title) not in found else f"{measure.title}, {step.name}"
            found[checkpoint, title] = replace(measure, title=title)
    return found


_KINDS = {"task": "tasks", "loss": "losses", "rewards": "rewards", "pairs": "pairs"}


def _evaluated(
    step: StepFacts, scores: Mapping[str, Any], checkpoint: str, kind: str, name: str
) -> tuple[Items | None, str | None]:
    """Values by place, and what says that two lists of places are of the same items."""
    result = mapping(mapping(mapping(mapping(scores.get("checkpoints")).get(checkpoint)).get(_KINDS[kind])).get(name))
    values = result.get("items")
    items = {place: float(v) for place, v in enumerate(values) if v is not None} if isinstance(values, list) else None
    if kind == "rewards" and items is not None:  # margins, in nats
        items = {place: float(margin > 0) for place, margin in items.items()}
    if kind == "task":
        told = [
            result.get("prompt_hash"),
            result.get("task"),
            result.get("main"),
            result.get("fewshot"),
            len(values or ()),
        ]
        return items, digest(told) if told[0] else None
    # A loss a token is comparable only where the same text is as many tokens.
    ref = mapping(step.settings.get({"loss": "losses"}.get(kind, "pairs"))).get(name)
    told = [
        _data(step, ref),
        step.settings.get("loss_rows"),
        result.get("tokens"),
        len(values or ()),
        *([scores.get("reference")] if kind == "rewards" else []),
    ]
    return items, digest(told) if told[0] else None


def _data(step: StepFacts, ref: Any) -> Any:
    """A data reference with the hash of its file (or the key of its step) in place of the name, and
    the seed where rows are shuffled; None if neither is known.
    """
    name = ref.get("data") if isinstance(ref, Mapping) else ref
    known = mapping(step.parts.get("files")).get(str(name)) or mapping(step.parts.get("inputs")).get(str(name))
    known = known or (name if str(name).startswith("hub:") else None)
    some = {k: v for k, v in ref.items() if k != "data"} if isinstance(ref, Mapping) else {}
    return [known, some, step.parts.get("seed") if some.get("shuffle") else None] if known else None


def _graded(
    step: StepFacts, scores: Mapping[str, Any], checkpoint: str, kind: str, name: str
) -> tuple[Items | None, str | None]:
    """Ratings or answers that stop, by question and turn; the same if the questions' texts are, and
    who grades them how.
    """
    rows = [row for row in step.rows("answers.jsonl") if row.get("model") == checkpoint]
    asked = {str(row.get("question_id")): row.get("questions") for row in rows}
    if kind == "ended":
        items = {(str(q), turn): v for (q, turn), v in stopped(step).get(checkpoint, {}).items()}
        return items, digest([asked, step.settings.get("max_new_tokens")])
    judged = [row for row in step.rows("judgments.jsonl") if row.get("model") == checkpoint]
    judge = str(step.settings.get("judge"))
    who = mapping(step.parts.get("models")).get(judge) or mapping(step.parts.get("inputs")).get(judge)
    how = [
        who,
        step.settings.get("mode"),
        step.settings.get("judge_prompts"),
        step.parts.get("texts"),
        step.settings.get("prompts"),
    ]
    return {(str(q), turn): v for (q, turn), v in turn_ratings(judged).items()}, digest([asked, *how]) if who else None


def _failures(step: StepFacts) -> Iterator[tuple[str, _Measure]]:
    """Checkpoints with what goes wrong under the trained system message, by prompt."""
    told = [_data(step, step.settings.get("instructions")), *(step.settings.get(k) for k in ("rows", "max_new_tokens"))]
    same = digest(told) if told[0] else None
    rows = [
        r
        for r in step.rows("answers.jsonl")
        if r.get("set") == "instructions" and r.get("system") == "trained" and r.get("finish") != "error"
    ]
    for checkpoint, numbers in mapping(step.read_json(SCORES).get("checkpoints")).items():
        own = [r for r in rows if r.get("model") == checkpoint]
        for name, measure in MEASURES.items():
            if score := score_of(mapping(numbers.get("answers")).get(name)):
                yield (
                    checkpoint,
                    _Measure(name, "failures", 3, score, {r["id"]: float(measure(r)) for r in own}, same, name),
                )
