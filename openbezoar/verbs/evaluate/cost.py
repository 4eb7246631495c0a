"""How many questions an evaluation asks, the tokens of it all, and what a judge of answers costs."""

from __future__ import annotations

from collections import Counter

from openbezoar.errors import UserError
from openbezoar.harness.tasks import MMLU, find_local, task_file
from openbezoar.judging.rewards import is_reward_model
from openbezoar.recipe.blocks import ServerModel
from openbezoar.recipe.measure_steps import Evaluate, TaskSpec, Wins
from openbezoar.rows.lengths import path_tokens
from openbezoar.rows.records import read_jsonl
from openbezoar.verbs.book import Book, Estimate

UNKNOWN = 1000  # questions of a task whose rows are not here
QUESTION = 150  # tokens of a prompt
PROMPT = 400  # tokens that a judge is sent beside the answers
LENGTH = 0.6  # of the limit, that an answer has


def cost(step: Evaluate, book: Book) -> Estimate:
    """Questions of tasks, and rows of losses and pairs, for each checkpoint."""
    checkpoints, first = len(step.evaluate), step.evaluate[0]
    specs = [task if isinstance(task, TaskSpec) else TaskSpec(task=task) for task in step.tasks]
    questions = sum(_questions(spec, step, book) for spec in specs)
    shots = [spec.fewshot if spec.fewshot is not None else step.fewshot or 0 for spec in specs]
    work = sum(n * 60 + 80 for n in shots) / max(1, len(shots))
    tokens = questions * 4 * work * checkpoints
    for ref in (*step.losses.values(), *step.pairs.values()):
        lengths = [(some.rows, sum(path_tokens(some, book.system(first)))) for some in book.texts(ref)]
        rows = sum(n for n, _ in lengths)
        tokens += min(rows, step.loss_rows) / max(1, rows) * sum(n * length for n, length in lengths) * checkpoints
    estimate = Estimate(questions * checkpoints, int(tokens), 0, None, book.resident(first))
    for wins in step.wins.values():
        tokens += _add_answers(wins, step, book, estimate)
    return book.timed(estimate, "evaluate", first, tokens)


def _add_answers(wins: Wins, step: Evaluate, book: Book, estimate: Estimate) -> float:
    """Count a set's answers, and what compares them, into the estimate; the tokens that local models pass through.

    A reward model reads every answer once, a judge every two in both orders. It is reckoned as large as
    the first checkpoint.
    """
    names = len(dict.fromkeys(step.evaluate))
    prompts, answer = min(wins.limit, book.rows(wins.prompts)[0]), wins.max_new_tokens * LENGTH
    read, written = names * prompts * QUESTION, names * prompts * answer
    opponents = len(wins.opponents)
    pairs = opponents * names - opponents * (opponents + 1) // 2
    if is_reward_model(book.recipe, wins.by):
        judged_in, judged_out = names * prompts * (QUESTION + answer), 0.0
    else:
        judged_in = 2.0 * pairs * prompts * (PROMPT + 2 * answer)
        judged_out = 2.0 * pairs * prompts * wins.judge_max_new_tokens * 0.5 if wins.mode == "text" else 0.0
    money = book.money(wins.by, judged_in, judged_out)
    estimate.rows = (estimate.rows or 0) + names * prompts
    estimate.tokens_in = (estimate.tokens_in or 0) + int(read + judged_in)
    estimate.tokens_out = (estimate.tokens_out or 0) + int(written + judged_out)
    estimate.money = (estimate.money or 0.0) + money if money is not None else estimate.money
    asked = isinstance(book.spec(wins.by), ServerModel)
    return read / 8 + written + (0.0 if asked else judged_in + judged_out)


def _questions(spec: TaskSpec, step: Evaluate, book: Book) -> int:
    """Questions of a task: its file's where that is here."""
    limit = spec.limit or step.limit
    folder = book.path(step.data) if step.data else None
    try:
        file = task_file(spec, find_local(spec.task), folder, resolve=book.path) if spec.file or folder else None
    except UserError:
        file = None
    if file is None or not file.is_file():
        return min(UNKNOWN, limit or UNKNOWN)
    rows = Counter(str(row.get("subject", "")) for row in read_jsonl(file) if row.get("split", "eval") == "eval")
    if spec.task != "mmlu":
        rows = Counter({"": rows[spec.task.removeprefix(MMLU)] if spec.task.startswith(MMLU) else rows.total()})
    return sum(min(n, limit or n) for n in rows.values())  # the limit is of each subject
