"""Keep the good rows: texts are cleaned, rules drop, a judge rates, and a person has the last word.

Reads rows with one answer, of any form, or conversations (``rows.held``), the benchmarks'
rows if asked to decontaminate, and the run's ``reviews/STEP.jsonl``. Writes ``rows.jsonl``
(kept, with status, rating and reason), ``rejected.jsonl`` (with the ``rule`` that dropped the
row and ``why``, or the judge's status, rating and reason), ``unscored.jsonl`` (rows on
which the judge could not be understood: neither kept nor rejected; with why and its last
reply) and, where a model's likelihood is asked, ``likelihood.jsonl``. Rewards stand in the rows.
Every row has the ``hash`` that reviews know it by, and ``cleaned`` names what was changed in it.

The rating scale and the three columns follow the released data sets (status, rating,
reason); thresholds and wording are this project's, the paper's are not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from openbezoar.cleaning import funnel
from openbezoar.cleaning.contamination import Overlap
from openbezoar.cleaning.funnel import Outcome
from openbezoar.cleaning.likelihood import numbers as likelihood_numbers
from openbezoar.cleaning.likelihood import screen
from openbezoar.cleaning.reviews import Reviews, row_hash
from openbezoar.cleaning.rewards import COLUMN as REWARD
from openbezoar.cleaning.rewards import reward_numbers, screen_rewards
from openbezoar.cleaning.rules import BY_LIKELIHOOD, BY_REWARD, Candidate, Drop, RowFilter
from openbezoar.cleaning.text import clean_row
from openbezoar.context import StepContext
from openbezoar.errors import DataError, RowError, named
from openbezoar.judging.ratings import rate
from openbezoar.judging.rewards import open_rewards
from openbezoar.llm import open_llm
from openbezoar.llm.refusals import REASONS
from openbezoar.recipe.data_steps import Filter
from openbezoar.rows.fields import text_in
from openbezoar.rows.forms import to_example
from openbezoar.rows.held import exchange_in, held, is_talk, judged_in
from openbezoar.rows.instructions import check_instruction
from openbezoar.rows.known import INSTRUCTION, RESPONSE
from openbezoar.rows.records import Row, write_jsonl
from openbezoar.verbs.filter.benchmarks import read_benchmarks
from openbezoar.verbs.filter.likelihood import likelihoods
from openbezoar.verbs.filter.result import FilterNumbers


def run(step: Filter, context: StepContext) -> dict[str, Any]:
    """Filter; returns the numbers for the manifest. Raises DataError if no row is kept."""
    rows, changes = _cleaned(step, context)
    overlap, contamination = _benchmarks(step, context)
    rules = RowFilter(step.rules, overlap)
    candidates = [_candidate(row) for row in rows]
    drops = [rules(candidate) for candidate in candidates]
    likelihood = _likelihood(step, context, rows, drops)
    rewards = _rewards(step, context, rows, drops)
    passed = [i for i, drop in enumerate(drops) if drop is None]
    verdicts: list[Row] = [{"status": "accept", "rating": None, "reason": "rules"}] * len(passed)
    if step.judge is not None:
        verdicts = _judge(step, context, step.judge, [(i, *judged_in(rows[i])) for i in passed])
    by_place = dict(zip(passed, verdicts, strict=True))
    machine = [
        funnel.judged(row, by_place[i], step.min_rating) if drop is None else funnel.dropped(row, drop)
        for i, (row, drop) in enumerate(zip(rows, drops, strict=True))
    ]
    outcomes, unmatched = funnel.lay_over(machine, Reviews(context.run.path, context.name).in_force)
    numbers = {**funnel.numbers(machine, outcomes, step.judge is not None), "cleaned": changes}
    if overlap is not None:
        numbers["contamination"] = contamination
    if likelihood is not None:
        numbers["likelihood"] = likelihood
    if rewards is not None:
        numbers["rewards"] = rewards
    numbers["summary"] = funnel.summary(numbers)
    _count(context, numbers, outcomes, unmatched)
    _write(context, outcomes)
    if not numbers["kept"]:
        raise DataError(_nothing_left(step, numbers, outcomes))
    return FilterNumbers.model_validate(numbers).written()


def _cleaned(step: Filter, context: StepContext) -> tuple[list[Row], dict[str, Any]]:
    """The rows, named, hashed as they were read and then cleaned; and what the cleaners did."""
    rows, changed = [], []
    for number, read in enumerate(context.rows(step.filter), 1):
        # an earlier filter's columns; it keeps them in its own folder
        earlier = funnel.COLUMNS if "hash" in read and "status" in read else ()
        row = {name: value for name, value in read.items() if name not in earlier}
        where = f"filter: row {named(row.get('id', number))}"
        try:
            row, notes = held(row, where)
        except RowError as error:
            context.counts.add(error.reason)
            continue
        for note in notes:
            context.counts.add(note)
        _check(row, where)
        row.setdefault("id", f"row {number}")
        cleaned, changes = clean_row(row, step.clean)
        rows.append({**cleaned, "hash": row_hash(row)})
        changed.append((str(row["id"]), changes))
    if not rows:
        raise DataError(f"filter: no row can be used ({context.counts}); bring other rows")
    return rows, funnel.changes(changed)


def _check(row: Row, where: str) -> None:
    if is_talk(row):
        return
    text_in(row, RESPONSE, where)
    if text_in(row, INSTRUCTION, where).strip():  # without one a rule drops it
        check_instruction(row, where)


def _candidate(row: Row) -> Candidate:
    return Candidate(*exchange_in(row), row.get("finish"), str(row["id"]))


def _benchmarks(step: Filter, context: StepContext) -> tuple[Overlap | None, dict[str, Any]]:
    """The texts that no row may hold, and what is told about them; those that are not on this machine are named."""
    if not step.rules.decontaminate:
        return None, {}
    overlap, elsewhere = read_benchmarks(
        context.recipe, context.recipe_folder, step.rules.decontaminate_words, context.recipe.seed
    )
    if elsewhere:
        context.progress.say(
            f"{context.name}: not compared with {', '.join(elsewhere)}, whose rows are not local files"
        )
    return overlap, {"benchmark_rows": overlap.rows, "not_compared": elsewhere}


# ----------------------------------------------------------------------------- the models


def _likelihood(step: Filter, context: StepContext, rows: list[Row], drops: list[Drop | None]) -> dict[str, Any] | None:
    """Drop rows by how likely a model finds their answers: fills in ``drops`` and the rows' columns.
    Returns what is told of it; None where no model is asked.
    """
    if step.likelihood is None:
        return None
    places = [i for i, drop in enumerate(drops) if drop is None]
    scores = likelihoods(
        step.likelihood, context, [to_example(rows[i], f"filter: row {rows[i]['id']}") for i in places]
    )
    screened = screen(scores, step.likelihood)
    for i, score, drop in zip(places, scores, screened.drops, strict=True):
        rows[i] |= score.as_row()
        drops[i] = drop
    return {"model": step.likelihood.model, **likelihood_numbers(scores, screened.thresholds)}


def _rewards(step: Filter, context: StepContext, rows: list[Row], drops: list[Drop | None]) -> dict[str, Any] | None:
    """Drop rows by the reward of their answers: fills in ``drops`` and the rows' column. Returns what
    is told of it; None where no reward model is asked. Of a conversation its last answer counts.
    """
    if step.reward is None:
        return None
    places = [i for i, drop in enumerate(drops) if drop is None]
    examples = [to_example(rows[i], f"filter: row {rows[i]['id']}") for i in places]
    with (
        closing(open_rewards(context, step.reward.model)) as rewarder,
        context.progress.bar("reward", len(examples), "rows") as bar,
    ):
        scored = rewarder.scores([(one.prompt, (one.answer,)) for one in examples], bar.advance)
    rewards = [reward for (reward,) in scored]
    screened = screen_rewards(rewards, step.reward)
    for i, reward, drop in zip(places, rewards, screened.drops, strict=True):
        rows[i][REWARD] = float(f"{reward:.6g}")
        drops[i] = drop
    return {"model": step.reward.model, **reward_numbers(rewards, screened)}


def _judge(step: Filter, context: StepContext, judge: str, items: list[tuple[int, str, str]]) -> list[Row]:
    """One verdict row an item (place, what was asked, response)."""
    files = {name: context.path(text) for name, text in step.prompts.items()}
    with closing(open_llm(judge, context)) as llm:
        return rate(llm, step.rating, context, items, batch=step.batch, min_rating=step.min_rating, files=files)


# ----------------------------------------------------------------------------- the outcome


def _count(context: StepContext, numbers: dict[str, Any], outcomes: Sequence[Outcome], unmatched: int) -> None:
    for outcome in outcomes:
        if outcome.reason:
            context.counts.add(outcome.reason)
    for name, changed in numbers["cleaned"].items():
        context.counts.add(f"cleaned_{name}", changed["rows"])
    if unmatched:
        context.counts.add("reviews_of_other_rows", unmatched)


def _write(context: StepContext, outcomes: Sequence[Outcome]) -> None:
    for name, bucket in (("rows", "kept"), ("rejected", "rejected"), ("unscored", "unscored")):
        write_jsonl(context.out / f"{name}.jsonl", [o.row for o in outcomes if o.bucket == bucket])


def _nothing_left(step: Filter, numbers: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    funnel = " → ".join(f"{name} {remaining}" for name, remaining in numbers["funnel"])
    by_likelihood = sum(n for name, n in numbers["rejected_by_rule"].items() if name in BY_LIKELIHOOD)
    by_reward = sum(n for name, n in numbers["rejected_by_rule"].items() if name in BY_REWARD)
    share = {
        "rules": sum(numbers["rejected_by_rule"].values()) - by_likelihood - by_reward,
        "likelihood": by_likelihood,
        "reward": by_reward,
        "judge": numbers["rejected_by_judge"],
        "unscored": numbers["unscored"],
    }
    rule = max(numbers["rejected_by_rule"], key=lambda name: numbers["rejected_by_rule"][name], default="")
    remedy = {
        "rules": f"loosen 'rules' (most fell to {rule})",
        "likelihood": "widen 'likelihood' (its distribution is in likelihood.jsonl of the step's work folder)",
        "reward": "lower 'at_least' of 'reward'",
        "judge": f"lower 'min_rating' (now {step.min_rating:g}) or name another judge",
        "unscored": (
            "the judge's replies could not be read: name another judge, raise 'max_new_tokens', or use 'mode:"
            " probability'"
        ),
    }[max(share, key=lambda name: share[name])]
    refused = [REASONS.get(o.row["refused"], "") for o in outcomes if o.row.get("refused")]
    if len(refused) > numbers["unscored"] / 2 and share["unscored"] == max(share.values()):
        remedy = (
            f"the judge did not answer {len(refused)} of them, most because of {max(refused, key=refused.count)}: name"
            " another judge, or mend the cause"
        )
    return f"no row is kept ({funnel}); {remedy}"
