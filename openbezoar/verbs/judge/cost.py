"""What answers and a judge's verdicts on them cost."""

from __future__ import annotations

from openbezoar.judging.rewards import is_reward_model
from openbezoar.recipe.measure_steps import Agreement, MtBench
from openbezoar.rows.lengths import CHARACTERS_A_TOKEN
from openbezoar.verbs.book import Book, Estimate, JudgeCalls
from openbezoar.verbs.judge.protocols import calls

QUESTION = 150  # tokens of a question with what was said before
PROMPT = 400  # tokens that a judge is sent beside the answers
PAIR = 250  # tokens beside a pair's texts
LENGTH = 0.6  # of the limit, that an answer has


def mt_bench(step: MtBench, book: Book) -> Estimate:
    """Two turns of every question: answers of the models, and verdicts on all that are graded."""
    questions = max(1, book.rows(step.questions)[0])
    rows, answer = questions * 2 * len(step.mt_bench), step.max_new_tokens * LENGTH
    turn = calls(step.grading, len(step.mt_bench) + _others(step, book), step.against)
    verdicts = JudgeCalls(
        calls=questions * 2 * turn.calls,
        tokens_in=questions * 2 * (answer * turn.answers + PROMPT * turn.calls),
        most=step.judge_max_new_tokens,
    )
    return book.judged(
        "mt_bench",
        step.judge,
        verdicts,
        rows=rows,
        mode=step.mode,
        answering=next(iter(step.mt_bench), ""),
        answers=(rows * QUESTION, rows * answer),
    )


def _others(step: MtBench, book: Book) -> int:
    """Models whose published answers stand beside ours; a file may hold answers to questions that are not asked."""
    rows = book.rows_here(step.answers) if step.answers is not None else []
    return len({str(row.get("model_id", row.get("model"))) for row in rows})


def agreement(step: Agreement, book: Book) -> Estimate:
    """Each pair in both orders, twice where it is asked again; a reward model reads each answer once."""
    rows, characters = book.rows(step.pairs)
    if is_reward_model(book.recipe, step.agreement):
        tokens = rows * characters / CHARACTERS_A_TOKEN
        estimate = Estimate(rows, int(tokens), 0, None, book.resident(step.agreement))
        return book.timed(estimate, "agreement", step.agreement, tokens)
    asked = 2 * rows * (1 + step.retest)
    calls = JudgeCalls(asked, asked * (characters / CHARACTERS_A_TOKEN + PAIR), step.judge_max_new_tokens)
    return book.judged("agreement", step.agreement, calls, rows=rows, mode=step.mode)
