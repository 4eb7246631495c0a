"""The report's section of two-turn answers: ratings, the state of the answers, and all answers side by side.

Reads an mt_bench step's ``scores.json`` and ``answers.jsonl``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from openbezoar.recipe.protocols import words
from openbezoar.reporting.document import (
    Block,
    Fold,
    Gallery,
    Grid,
    Paragraph,
    Part,
    Picture,
    Searchable,
    Section,
    Texts,
)
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.figures import bar_chart, radar_chart
from openbezoar.reporting.measured import Score
from openbezoar.reporting.results import StepFacts
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, number, shorten, slug
from openbezoar.rows.records import Row
from openbezoar.verbs.judge import protocols
from openbezoar.verbs.judge.result import ANSWERS, JUDGMENTS, MtBenchScores

LIMIT = 6000  # characters of an answer shown


def sections(facts: RunFacts) -> list[Section]:
    """One section a mt_bench step."""
    return [_section(result) for result in facts.results(MtBenchScores)]


def _section(result: MtBenchScores) -> Section:
    step = result.step
    judge = step.settings.get("judge", NOTHING)
    about = Paragraph(
        f"Two-turn questions, answered by every checkpoint and graded by '{judge}'"
        f" {words(step.settings.get('grading', 'single'))} ({step.settings.get('mode', 'text')} mode). A judge is"
        " worth what its agreement with people is; a small judge's ratings say little. Unscored answers are not"
        " counted as zero."
    )
    blocks: list[Block] = [about]
    if (health := health_table(result)).rows:
        blocks.append(Grid(health, "Ratings and state of the answers", stack=True))
    if pictures := tuple(_pictures(result)):
        blocks.append(Gallery(pictures))
    blocks += protocols.blocks(result)
    if folds := tuple(_side_by_side(result)):
        blocks.append(Part("All answers side by side", (Searchable("questions and answers", folds),)))
    return Section(f"Two-turn answers ({step.name})", tuple(blocks))


def rating_blocks(result: MtBenchScores) -> list[Block]:
    """What the judge rates itself, and ratings by turn and category."""
    blocks: list[Block] = []
    if (own := result.self_preference) is not None and (score := own.score()) is not None:
        verdict = (
            f"The judge is itself a contestant ({own.model}) and rates its own answers {score.text(2)} above the"
            " mean of the others' (n: questions)."
        )
        blocks.append(Paragraph(verdict))
    if (groups := group_table(result)).rows:
        blocks.append(Fold("Ratings by turn and category", (Grid(groups, "Ratings by turn and category"),)))
    return blocks


def _pictures(result: MtBenchScores) -> Iterator[Picture]:
    """Radars by category of ratings and of win rates, and how often each rating was given."""
    step, order = result.step, result.checkpoints()
    rated = {g.checkpoint: {c: s.value for c, s in g.by_category.items()} for g in result.grades()}
    wins = {} if result.pairwise is None else result.pairwise.models
    won = {m: {c: s.value for c, rate in w.by_category.items() if (s := rate.score())} for m, w in wins.items()}
    for values, low, high, kind, title in (
        (rated, 1, 10, "radar", "mean rating by category, from 1 to 10"),
        (won, 0, 1, "wins", "win rate by category"),
    ):
        axes = list(dict.fromkeys(c for by in values.values() for c in by))
        if svg := radar_chart(values, axes, low, high, title.capitalize()):
            yield Picture(svg, f"{slug(step.name)}-{kind}", f"{step.name}: {title}")
    counted = {m: [0] * 10 for m in order}
    for row in step.rows(JUDGMENTS):
        if isinstance(rating := row.get("rating"), int | float) and row.get("model") in counted:
            counted[str(row["model"])][min(9, max(0, int(rating + 0.5) - 1))] += 1
    if svg := bar_chart(counted, [str(n) for n in range(1, 11)], "How often each rating was given", "rating", "turns"):
        yield Picture(svg, f"{slug(step.name)}-ratings", f"{step.name}: how often each rating was given")


def health_table(result: MtBenchScores) -> Table:
    """Per checkpoint: graded and unscored turns, and how many answers stop, loop or are empty."""
    rows = tuple(
        (
            g.checkpoint,
            NOTHING if g.mean is None else g.mean.text(2),
            NOTHING if g.unscored is None or g.rated is None else f"{g.unscored} of {g.unscored + g.rated}",
            *(NOTHING if s is None else s.text() for s in (g.ended, g.degenerate, g.empty)),
            number(g.mean_tokens, 0),
            str(g.errors if g.errors is not None else NOTHING),
        )
        for g in result.grades()
    )
    headers = (
        "checkpoint",
        "mean rating (n: questions)",
        "unscored turns",
        "ended by the model (n: turns)",
        "degenerate",
        "empty",
        "mean tokens",
        "answers that never came",
    )
    return Table(
        headers,
        rows,
        "A degenerate answer repeats itself: more than half of its 4-grams occurred in it before. An answer that the"
        " model did not end was cut off at the token limit.",
    )


def group_table(result: MtBenchScores) -> Table:
    """Mean ratings by turn and category."""
    grades = result.grades()
    turns = list(dict.fromkeys(k for g in grades for k in g.by_turn))
    categories = list(dict.fromkeys(k for g in grades for k in g.by_category))
    rows = [(f"turn {k}", *(_cell(g.by_turn.get(k)) for g in grades)) for k in turns]
    rows += [(k, *(_cell(g.by_category.get(k)) for g in grades)) for k in categories]
    return Table(("mean rating", *(g.checkpoint for g in grades)), tuple(rows), "n counts questions.")


def _cell(score: Score | None) -> str:
    return NOTHING if score is None else score.text(2)


def _side_by_side(result: MtBenchScores) -> Iterator[Fold]:
    """Every question with the answers of all checkpoints, a turn after the other."""
    step = result.step
    questions: dict[Any, dict[str, Row]] = {}
    for row in step.rows(ANSWERS):
        questions.setdefault(row.get("question_id"), {})[str(row.get("model"))] = row
    judgments = _judgments(step)
    order = result.checkpoints()
    for place, (key, by_model) in enumerate(questions.items()):
        models = sorted(by_model, key=lambda m: order.index(m) if m in order else len(order))
        first = by_model[models[0]]
        asked = first.get("questions") or []
        blocks: list[Block] = []
        for turn in range(max(len(row["turns"]) for row in by_model.values())):
            if turn < len(asked):
                blocks.append(Texts(((f"Question, turn {turn + 1}", str(asked[turn])),)))
            answers = [(m, by_model[m]) for m in models if turn < len(by_model[m]["turns"])]
            blocks.append(
                Texts(
                    tuple(
                        (
                            _label(m, turn, row, judgments.get((m, key, turn + 1), {})),
                            shorten(str(row["turns"][turn]), LIMIT),
                        )
                        for m, row in answers
                    )
                )
            )
        category = first.get("category")
        begin = " ".join(str(asked[0]).split()) if asked else ""
        title = (
            f"Question {key}"
            + (f", {category}" if category else "")
            + (f": {shorten(begin, 90, False)}" if begin else "")
        )
        yield Fold(title, tuple(blocks), open=place == 0)


def _label(model: str, turn: int, row: Mapping[str, Any], judged: Mapping[str, Any]) -> str:
    """Model, turn, rating and whether the answer was cut off."""
    parts = [model, f"turn {turn + 1}"]
    rating = judged.get("rating")
    if rating is not None:
        parts.append(f"rated {rating:.3g}")
    elif judged:
        parts.append(f"unscored ({judged.get('unscored')})")
    finish = row.get("finish") or []
    if turn < len(finish) and finish[turn] == "length":
        parts.append("cut off at the token limit")
    return f"{parts[0]}, {parts[1]}" + (f": {', '.join(parts[2:])}" if parts[2:] else "")


def _judgments(step: StepFacts) -> dict[tuple[str, Any, int], Row]:
    return {(str(r.get("model")), r.get("question_id"), int(r.get("turn", 0))): r for r in step.rows(JUDGMENTS)}
