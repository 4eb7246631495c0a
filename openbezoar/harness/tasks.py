"""Benchmarks: lm-eval's own task definitions, their rows from local files or from the hub.

A local file is DATA/TASK.jsonl or DATA/TASK.jsonl.gz in the plain schema of docs/data.md,
or a file that the recipe names. Its ``eval`` rows stand where the task looks for the
questions and its ``fewshot`` rows where it looks for examples; nothing else of the
definition changes, so prompts, example draws and metrics are lm-eval's. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbezoar.errors import DataError, RecipeError, did_you_mean, named
from openbezoar.harness import columns as c
from openbezoar.machine.extras import require
from openbezoar.models.needs import IFEVAL
from openbezoar.recipe.measure_steps import TaskSpec
from openbezoar.rows.hub import cause, raise_if_of_the_machine
from openbezoar.rows.records import Row, read_jsonl


@dataclass(frozen=True)
class LocalTask:
    """How a task is fed from a local file."""

    folder: str  # of its definition, in lm_eval/tasks
    columns: c.Columns
    questions: str  # the split that the definition takes its questions from
    examples: str  # and the one for few-shot examples; "" where it has none of its own
    file: str = ""  # the file's name, if not the task's
    task: str = ""  # lm-eval's name, if not the key
    needs: Callable[[], None] = lambda: None  # raises a UserError if what its metric reads is not installed


NLTK_DATA = Path(__file__).parent / "nltk_data"
"""Of this project: abbreviations for NLTK's sentence splitter in the form of its data 'punkt_tab'."""


def _ifeval_metric() -> None:
    """Prepare what IFEval's checks of answers are made with: three packages, and NLTK's data 'punkt_tab', which
    lm-eval would otherwise try to download on import.

    Where that data is not installed, NLTK's splitter is given this project's list of abbreviations, after all
    folders of NLTK's own. langdetect draws at random; a fixed seed gives an answer one verdict.
    """
    require(*IFEVAL)
    import langdetect
    import nltk  # type: ignore[import-untyped]

    langdetect.DetectorFactory.seed = 0
    if str(NLTK_DATA) not in nltk.data.path:
        nltk.data.path.append(str(NLTK_DATA))


LOCAL: dict[str, LocalTask] = {
    "arc_easy": LocalTask("arc", c.arc, "test", "train"),
    "arc_challenge": LocalTask("arc", c.arc, "test", "train"),
    "boolq": LocalTask("super_glue/boolq", c.boolq, "validation", "train"),
    "copa": LocalTask("super_glue/copa", c.copa, "validation", "train"),
    "gsm8k": LocalTask("gsm8k", c.gsm8k, "test", "train"),
    "ifeval": LocalTask("ifeval", c.ifeval, "train", "", needs=_ifeval_metric),
    "hellaswag": LocalTask("hellaswag", c.hellaswag, "validation", "train"),
    "lambada_openai": LocalTask("lambada", c.lambada, "test", ""),
    "mmlu": LocalTask("mmlu/default", c.mmlu, "test", "dev"),
    "openbookqa": LocalTask("openbookqa", c.openbookqa, "test", "train"),
    "piqa": LocalTask("piqa", c.piqa, "validation", "train"),
    "rte": LocalTask("glue/rte", c.rte, "validation", "train"),
    "siqa": LocalTask("siqa", c.social_iqa, "validation", "train", file="social_iqa", task="social_iqa"),
    "social_iqa": LocalTask("siqa", c.social_iqa, "validation", "train"),
    "truthfulqa_mc1": LocalTask("truthfulqa", c.truthfulqa_mc1, "validation", "", file="truthfulqa_mc"),
    "truthfulqa_mc2": LocalTask("truthfulqa", c.truthfulqa_mc2, "validation", "", file="truthfulqa_mc"),
    "winogrande": LocalTask("winogrande", c.winogrande, "validation", "train"),
}
MMLU = "mmlu_"  # lm-eval has a task for each subject
SPLITS = ("fewshot", "eval")


@dataclass(frozen=True)
class Benchmark:
    """What is reported under one name: one lm-eval task, or MMLU's subjects pooled."""

    name: str
    task: str
    parts: dict[str, Any]  # lm-eval's task objects, by their names
    limit: int | None  # questions of each part


def open_benchmarks(
    specs: Sequence[str | TaskSpec],
    data: Path | None,
    resolve: Callable[[str], Path] = Path,
    *,
    fewshot: int | None = None,
    limit: int | None = None,
) -> list[Benchmark]:
    """The benchmarks of a list, read and checked.

    data: folder of task files, None for the hub. resolve: a TaskSpec's file on disk.
    fewshot: examples in the prompt; None means as many as the task's own definition says
    (gsm8k: 5, else 0). limit: questions of a task, of each subject for MMLU, as lm-eval does.
    Raises RecipeError for an unknown task or a name given twice, DataError for a missing
    file or a row without its fields.
    """
    benchmarks: dict[str, Benchmark] = {}
    for item in specs:
        spec = TaskSpec.model_validate({"task": item}) if isinstance(item, str) else item
        shots = fewshot if spec.fewshot is None else spec.fewshot
        most = limit if spec.limit is None else spec.limit
        if spec.file is not None or data is not None:
            opened = [_open_local(spec, data, resolve, shots, most)]
        else:
            opened = _open_hub(spec, shots, most)
        for benchmark in opened:
            if benchmark.name in benchmarks:
                raise RecipeError(f"tasks: '{benchmark.name}' is there twice; give one of them another 'name'")
            benchmarks[benchmark.name] = benchmark
    return list(benchmarks.values())


def find_local(task: str) -> LocalTask:
    """The entry of a task, or of MMLU for one of its subjects. Raises RecipeError listing the known tasks."""
    if task in LOCAL:
        return LOCAL[task]
    if task.startswith(MMLU):
        return LOCAL["mmlu"]
    hint = f" ({question})" if (question := did_you_mean(task, LOCAL)) else ""
    raise RecipeError(
        f"tasks: '{task}' cannot be fed from local rows{hint}; known tasks: {', '.join(LOCAL)}, mmlu_SUBJECT"
    )


def task_file(spec: TaskSpec, local: LocalTask, data: Path | None, *, resolve: Callable[[str], Path]) -> Path:
    """The file of a task's local rows: its own, or the task's in the folder ``data``. Raises
    DataError if that holds none.
    """
    if spec.file is not None:
        return resolve(spec.file)
    assert data is not None
    stem = local.file or ("mmlu" if spec.task.startswith(MMLU) else spec.task)
    for ending in (".jsonl", ".jsonl.gz"):
        if (path := data / f"{stem}{ending}").is_file():
            return path
    raise DataError(
        f"{data}: no file {stem}.jsonl or {stem}.jsonl.gz for the task '{spec.task}'; put it there ('openbezoar docs"
        " data' says what it holds) or leave the task out"
    )


def read_rows(path: Path, local: LocalTask) -> tuple[list[Row], list[Row]]:
    """(example rows, question rows) in the task's columns; MMLU's rows keep their ``subject``."""
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for number, row in enumerate(read_jsonl(path), 1):
        fields = c.Fields(row, f"{path}: row {named(row.get('id', number))}")
        if (split := row.get("split", "eval")) not in SPLITS:
            raise fields.wrong("split", "'eval' or 'fewshot'")
        columns = local.columns(fields)
        if local.columns is c.mmlu:
            columns["subject"] = fields.text("subject")
        rows[split].append(columns)
    if not rows["eval"]:
        raise DataError(f"{path}: no row with split 'eval'; expected the questions there")
    return rows["fewshot"], rows["eval"]


def _open_local(
    spec: TaskSpec, data: Path | None, resolve: Callable[[str], Path], fewshot: int | None, limit: int | None
) -> Benchmark:
    local = find_local(spec.task)
    path = task_file(spec, local, data, resolve=resolve)
    local.needs()
    examples, questions = read_rows(path, local)
    if local.columns is not c.mmlu:
        parts = {local.task or spec.task: (examples, questions)}
    else:
        subjects = dict.fromkeys(row["subject"] for row in questions)
        if spec.task != "mmlu":
            subjects = {s: None for s in subjects if MMLU + s == spec.task}
        if not subjects:
            raise DataError(f"{path}: no question has the subject of '{spec.task}'; look at the rows' 'subject'")
        parts = {
            MMLU + s: ([r for r in examples if r["subject"] == s], [r for r in questions if r["subject"] == s])
            for s in subjects
        }
    tasks = _build(local, parts, path)
    for name, task in tasks.items():
        set_fewshot(task, fewshot)
        _check_examples(task, len(parts[name][0]), f"{path} ({name})")
    return Benchmark(spec.name or spec.task, spec.task, tasks, limit)


def _build(local: LocalTask, parts: dict[str, tuple[list[Row], list[Row]]], path: Path) -> dict[str, Any]:
    """lm-eval's task objects with local rows; no other folder of definitions is read."""
    lm_eval_tasks, folder = _definitions(local.folder)
    manager = lm_eval_tasks.TaskManager(include_defaults=False, include_path=[folder])
    members = []
    for name, (examples, questions) in parts.items():
        if name not in manager.all_subtasks:
            raise DataError(f"{path}: lm-eval has no task '{name}'; look at the rows' 'subject'")
        member: dict[str, Any] = {"task": name, "custom_dataset": _dataset(local, examples, questions)}
        if examples and not local.examples:
            member["fewshot_split"] = "fewshot"
        members.append(member)
    loaded = manager.load([{"group": "local", "task": members}])
    return dict(loaded["tasks"])


def _definitions(folder: str) -> tuple[Any, Path]:
    import lm_eval.tasks

    return lm_eval.tasks, Path(str(lm_eval.tasks.__file__)).parent / folder


def _dataset(local: LocalTask, examples: list[Row], questions: list[Row]) -> Callable[..., Any]:
    """What lm-eval calls in place of a download."""

    def load(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        question_set = Dataset.from_list(questions)
        empty = question_set.select([])  # splits that the definition names but nothing is taken from
        example_set = Dataset.from_list(examples) if examples else empty
        return DatasetDict(
            {"train": empty, "validation": empty, "test": empty}
            | {local.examples or "fewshot": example_set, local.questions: question_set}
        )

    return load


def set_fewshot(task: Any, fewshot: int | None) -> None:
    """As lm-eval's simple_evaluate: a task that fixes its number at 0 keeps it, None means its own or 0."""
    own = task.get_config("num_fewshot")
    if own != 0 and (fewshot is not None or own is None):
        task.set_config(key="num_fewshot", value=fewshot or 0)


def _check_examples(task: Any, have: int, where: str) -> None:
    shots = task.config.num_fewshot
    # lm-eval draws one more where the questions' own split might be drawn from.
    spare = task.fewshot_cfg.split == task.config.test_split and task.fewshot_cfg.sampler != "first_n"
    if shots and have < shots + spare:
        raise DataError(
            f"{where}: {have} rows with split 'fewshot'; {shots}-shot prompts need {shots + spare}; add rows or lower"
            " 'fewshot'"
        )


def _open_hub(spec: TaskSpec, fewshot: int | None, limit: int | None) -> list[Benchmark]:
    """Tasks with their own data sets; a group other than MMLU is reported part by part."""
    tasks, _ = _definitions("")
    manager = tasks.TaskManager()
    if spec.task not in manager.task_index:
        hint = did_you_mean(spec.task, [*LOCAL, *manager.all_tasks]) or f"such as {', '.join(LOCAL)}"
        raise RecipeError(f"tasks: lm-eval has no task '{spec.task}'; {hint}")
    if spec.task in LOCAL:
        LOCAL[spec.task].needs()
    try:
        parts = dict(manager.load([spec.task])["tasks"])
    except Exception as error:  # the hub's clients raise many kinds; each means the rows cannot be had
        raise_if_of_the_machine(error)
        why = cause(error, "data set")
        raise DataError(
            f"tasks: the rows of '{spec.task}': {why}; or give 'data', a folder with {spec.task}.jsonl"
            " ('openbezoar docs data')"
        ) from error
    for task in parts.values():
        set_fewshot(task, fewshot)
    if len(parts) == 1 or spec.task == "mmlu":
        return [Benchmark(spec.name or spec.task, spec.task, parts, limit)]
    return [
        Benchmark(f"{spec.name}/{name}" if spec.name else name, name, {name: task}, limit)
        for name, task in parts.items()
    ]
