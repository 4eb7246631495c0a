"""Keep the good rows: cheap rules first, then a judge.

Reads instruction rows (``instruction``, optional ``context``, ``response``). Writes
``rows.jsonl`` (kept, with status, rating and reason), ``rejected.jsonl`` (with the ``rule``
that dropped the row, or the judge's status, rating and reason) and ``unscored.jsonl`` (rows
on which the judge could not be understood: neither kept nor rejected; with why and its last
reply).

The rating scale and the three columns follow the released data sets (status, rating,
reason); thresholds and wording are this project's, the paper's are not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openbezoar.context import StepContext
from openbezoar.errors import DataError
from openbezoar.judging.on_demand import OnDemand
from openbezoar.judging.parsers import parse_filter_reply
from openbezoar.judging.prompting import RATING_CHOICES, RATING_PREFIX, UNSCORED, ask, expected_rating, judge_texts
from openbezoar.judging.quality import RULES, Candidate, screen
from openbezoar.llm import Sampling, open_llm
from openbezoar.recipe import Filter
from openbezoar.records import Row, Turn, instruction_text, write_jsonl
from openbezoar.runs import step_seed

PROMPTS = {"text": "judge_filter", "probability": "judge_filter_probability"}
PLACEHOLDERS = ("instruction", "response")
EXAMPLES = 3  # ids kept a rule
RETRY_TEMPERATURE = 0.7  # the first ask is greedy, and asking greedily again would give the same reply


@dataclass
class Sorted:
    """Where each row went."""

    kept: list[Row]
    by_rule: list[Row]
    by_judge: list[Row]
    unscored: list[Row]

    @property
    def rejected(self) -> list[Row]:
        return self.by_rule + self.by_judge


def run(step: Filter, context: StepContext) -> dict[str, Any]:
    """Filter; returns the numbers for the manifest. Raises DataError if no row is kept."""
    rows = context.rows(step.filter)
    candidates = [_candidate(row, number) for number, row in enumerate(rows, 1)]
    broken = screen(candidates, step.rules)
    passed = [i for i, rule in enumerate(broken) if rule is None]
    result = Sorted([], [{**rows[i], "rule": rule} for i, rule in enumerate(broken) if rule is not None], [], [])
    if step.judge is None:
        result.kept = [{**rows[i], "status": "accept", "rating": None, "reason": "rules"} for i in passed]
    else:
        verdicts = _judge(step, context, step.judge, [(i, _asked(rows[i]), candidates[i].response) for i in passed])
        for i, verdict in zip(passed, verdicts, strict=True):
            _sort(rows[i], verdict, step.min_rating, result)
    numbers = _numbers(step, len(rows), result, _examples(rows, broken))
    _count(context, result)
    write_jsonl(context.out / "rows.jsonl", result.kept)
    write_jsonl(context.out / "rejected.jsonl", result.rejected)
    write_jsonl(context.out / "unscored.jsonl", result.unscored)
    if not result.kept:
        raise DataError(_nothing_left(step, numbers))
    return numbers


def _candidate(row: Row, number: int) -> Candidate:
    response = row.get("response", row.get("output"))
    for name, value in (("instruction", row.get("instruction")), ("response", response)):
        if not isinstance(value, str):
            raise DataError(
                f"filter: row {row.get('id', number)} has no text in '{name}'; it has {', '.join(map(str, list(row)[:8]))}; name rows with instruction and response"
            )
    return Candidate(instruction_text(row), str(response), row.get("finish"))


# ----------------------------------------------------------------------------- the judge


def _asked(row: Row) -> str:
    """What the teacher was asked, for the judge to see: the row's own system message goes before its instruction."""
    system = row.get("system")
    return f"{system}\n\n{instruction_text(row)}" if system else instruction_text(row)


def _judge(step: Filter, context: StepContext, judge: str, items: list[tuple[int, str, str]]) -> list[Row]:
    """One verdict row an item (place, what was asked, response): status, rating, reason, or ``unscored`` with why and the last reply."""
    files = {name: context.path(text) for name, text in step.prompts.items()}
    name = PROMPTS[step.mode]
    template = judge_texts({name: PLACEHOLDERS}, files, tuple(PROMPTS.values()))[name]
    with OnDemand(lambda: open_llm(judge, context)) as llm:

        def make(_: int, batch: Sequence[tuple[int, str, str]]) -> list[Row]:
            conversations = [ask(template, instruction=asked, response=response) for _, asked, response in batch]
            if step.mode == "probability":
                return _by_probability(llm, conversations, step.min_rating)
            return _by_text(step, context.seed, llm, conversations, [i for i, _, _ in batch])

        return context.batched("judge", items, step.batch, make)


def _by_probability(llm: OnDemand, conversations: Sequence[Sequence[Turn]], min_rating: float) -> list[Row]:
    verdicts: list[Row] = []
    for logprobs in llm().choice_logprobs(conversations, RATING_PREFIX, RATING_CHOICES):
        rating = expected_rating(logprobs)
        if rating is None:
            verdicts.append({"unscored": "no_probability", "reply": ""})
        else:
            verdicts.append({"status": "accept" if rating >= min_rating else "reject", "rating": round(rating, 4), "reason": "probability"})
    return verdicts


def _by_text(step: Filter, seed: int, llm: OnDemand, conversations: Sequence[Sequence[Turn]], places: Sequence[int]) -> list[Row]:
    """Ask all; ask again, with other seeds, those whose reply cannot be parsed."""
    verdicts: list[Row] = [{} for _ in conversations]
    open_ = list(range(len(conversations)))
    for attempt in range(1 + step.retries):
        sampling = Sampling(step.max_new_tokens, RETRY_TEMPERATURE if attempt else 0.0)
        replies = llm().chat([conversations[i] for i in open_], sampling, [step_seed(seed, "judge", places[i], attempt) for i in open_])
        for i, reply in zip(open_, replies, strict=True):
            parsed = None if reply.finish == "error" else parse_filter_reply(reply.text)
            if parsed is None:
                verdicts[i] = {"unscored": UNSCORED[reply.finish], "reply": reply.text}
            else:
                verdicts[i] = dict(zip(("status", "rating", "reason"), parsed, strict=True))
            verdicts[i]["asks"] = attempt + 1
        open_ = [i for i in open_ if "unscored" in verdicts[i]]
        if not open_:
            break
    return verdicts


def _sort(row: Row, verdict: Row, min_rating: float, result: Sorted) -> None:
    """Kept if the judge does not reject it and rates it ``min_rating`` or more."""
    if "unscored" in verdict:
        result.unscored.append({**row, "unscored": verdict["unscored"], "reply": verdict["reply"]})
        return
    row = {**row, "status": verdict["status"], "rating": verdict["rating"], "reason": verdict["reason"]}
    kept = verdict["status"] != "reject" and verdict["rating"] >= min_rating
    (result.kept if kept else result.by_judge).append(row)


# ------------------------------------------------------------------------------- numbers


def _examples(rows: Sequence[Row], broken: Sequence[str | None]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, (row, rule) in enumerate(zip(rows, broken, strict=True), 1):
        if rule is not None and len(ids := found.setdefault(rule, [])) < EXAMPLES:
            ids.append(str(row.get("id", f"row {number}")))
    return found


def _count(context: StepContext, result: Sorted) -> None:
    for row in result.by_rule:
        context.counts.add(row["rule"])
    for row in result.by_judge:
        context.counts.add("rejected_by_judge" if row["status"] == "reject" else "below_min_rating")
    for row in result.unscored:
        context.counts.add(f"unscored_{row['unscored']}")


def _numbers(step: Filter, rows_in: int, result: Sorted, examples: dict[str, list[str]]) -> dict[str, Any]:
    by_rule = Counter(row["rule"] for row in result.by_rule)
    ratings = [row["rating"] for row in result.kept + result.by_judge if row["rating"] is not None]
    histogram = Counter(int(rating + 0.5) for rating in ratings)
    funnel: list[list[Any]] = [["read", rows_in]]
    for name in RULES:
        if by_rule[name]:
            funnel.append([name, funnel[-1][1] - by_rule[name]])
    if step.judge is not None:
        funnel.append(["unscored", funnel[-1][1] - len(result.unscored)])
        funnel.append(["judge", len(result.kept)])
    return {
        "rows_in": rows_in,
        "kept": len(result.kept),
        "rejected_by_rule": {name: by_rule[name] for name in RULES if by_rule[name]},
        "rejected_by_judge": len(result.by_judge),
        "unscored": len(result.unscored),
        "rating_mean": sum(ratings) / len(ratings) if ratings else None,
        "rating_histogram": {str(n): histogram[n] for n in range(1, 11)} if ratings else {},
        "examples": examples,
        "funnel": funnel,
        "summary": f"{len(result.kept)} of {rows_in} kept, {len(result.by_rule)} rejected by rules, {len(result.by_judge)} by the judge, {len(result.unscored)} unscored",
    }


def _nothing_left(step: Filter, numbers: dict[str, Any]) -> str:
    funnel = " → ".join(f"{name} {remaining}" for name, remaining in numbers["funnel"])
    share = {"rules": sum(numbers["rejected_by_rule"].values()), "judge": numbers["rejected_by_judge"], "unscored": numbers["unscored"]}
    rule = max(numbers["rejected_by_rule"], key=lambda name: numbers["rejected_by_rule"][name], default="")
    remedy = {
        "rules": f"loosen 'rules' (most fell to {rule})",
        "judge": f"lower 'min_rating' (now {step.min_rating:g}) or name another judge",
        "unscored": "the judge's replies could not be read: name another judge, raise 'max_new_tokens', or use 'mode: probability'",
    }[max(share, key=lambda name: share[name])]
    return f"no row is kept ({funnel}); {remedy}"
