"""How many questions an evaluation asks, and the tokens of it all."""

from __future__ import annotations

from collections import Counter

from openbezoar.errors import UserError
from openbezoar.harness.tasks import MMLU, find_local, task_file
from openbezoar.recipe.measure_steps import Evaluate, TaskSpec
from openbezoar.rows.lengths import path_tokens
from openbezoar.rows.records import read_jsonl
from openbezoar.verbs.book import Book, Estimate

UNKNOWN = 1000  # questions of a task whose rows are not here


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
    return book.timed(estimate, "evaluate", first, tokens)


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
