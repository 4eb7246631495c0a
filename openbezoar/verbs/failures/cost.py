"""What the answers that are looked at cost, and a judge's checks of them."""

from __future__ import annotations

from openbezoar.recipe.measure_steps import Failures
from openbezoar.verbs.book import Book, Estimate, JudgeCalls

QUESTION = 150  # tokens of a prompt
PROMPT = 400  # tokens that a judge is sent beside an answer
LENGTH = 0.6  # of the limit, that an answer has


def cost(step: Failures, book: Book) -> Estimate:
    """Answers under each system message, and to the sets that are checked."""
    checked = sum(min(step.rows, book.rows(ref)[0]) for ref in (step.harmless, step.grounded) if ref is not None)
    prompts = min(step.rows, book.rows(step.instructions)[0]) * (1 + len(step.systems)) + checked
    rows, calls, answer = prompts * len(step.failures), checked * len(step.failures), step.max_new_tokens * LENGTH
    return book.judged(
        "failures",
        step.judge or step.failures[0],
        JudgeCalls(calls, calls * (answer + PROMPT), step.judge_max_new_tokens),
        rows=rows,
        mode=step.mode,
        answering=step.failures[0],
        answers=(rows * QUESTION, rows * answer),
    )
