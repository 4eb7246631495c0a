"""Reading, rendering, tokenising and packing of many rows: rows a second and peak memory as rows grow.

    python -m benchmarks.data --model M --data FILE --rows 1000,10000,100000 --json OUT

Reads a model (its tokenizer only) and a file of instruction rows or preference pairs,
whose rows are repeated with a number put into each prompt so that all differ. Each size runs
in a process of its own, through what ``sft`` and ``dpo`` do with their rows: a shuffled
reference, the split of held-out rows, trees on disk; then one epoch of batches in the loop's
order, laid out as the scorer does. ``--in-memory`` holds rows and trees in lists, for comparison.
``--messages`` makes conversations of the rows, as lists of messages in a Parquet file, all of
whose answers are learnt, under the model's own chat template.

Writes a JSON object: ``sizes``, a list of what ``measure`` returns, and ``flat``: cost of a
row and peak memory at the greatest size over those at the one before it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from openbezoar.rows.records import Row, read_jsonl, write_jsonl

BATCH = 16


def distinct(path: Path, n: int) -> Iterator[Row]:
    """``n`` rows: those of the file again and again, each with its number in the prompt."""
    for i, row in enumerate(islice(cycle(list(read_jsonl(path))), n)):
        made = {**row, "id": f"{row.get('id', 'row')}-{i}"}
        if "chosen" in row:
            fields = ("prompt",) if "prompt" in row else ("chosen", "rejected")
        else:
            fields = ("instruction" if "instruction" in row else "input",)
        for field in fields:
            # A dialogue's first turn begins with "\n\nHuman: "; both answers keep one prompt.
            made[field] = (
                row[field].replace("Human: ", f"Human: ({i}) ", 1)
                if field in ("chosen", "rejected")
                else f"({i}) {row[field]}"
            )
        yield made


def conversations(path: Path, n: int) -> Iterator[Row]:
    """``distinct`` rows as lists of messages: of a pair the chosen dialogue."""
    from openbezoar.errors import RowError
    from openbezoar.rows.forms import to_example

    for row in distinct(path, n):
        try:
            example = to_example(row, "row")
        except RowError:  # a dialogue that is none
            continue
        answer = {"role": "assistant", "content": example.answer}
        yield {"id": row["id"], "messages": [*(turn.as_dict() for turn in example.prompt), answer]}


def write_parquet(path: Path, rows: Iterator[Row]) -> None:
    """Write rows in row groups of 10,000, as the hub's client does for texts."""
    import pyarrow as pa
    from pyarrow import parquet

    first = pa.Table.from_pylist(list(islice(rows, 10_000)))
    with parquet.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        while more := list(islice(rows, 10_000)):
            writer.write_table(pa.Table.from_pylist(more, schema=first.schema))


def anonymous_memory(process: int) -> int:
    """Bytes of anonymous memory of a process (Linux); 0 once it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def children(process: int) -> list[int]:
    """Processes that this one began and that still live (Linux)."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


class Peak:
    """Watches the memory of this process and of all that it begins."""

    def __init__(self, every: float = 0.05) -> None:
        self.every, self.own, self.whole, self.others = every, 0, 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(self.every):
            self._look()

    def _look(self) -> None:
        own, others = anonymous_memory(os.getpid()), [anonymous_memory(child) for child in children(os.getpid())]
        self.own, self.whole, self.others = (
            max(self.own, own),
            max(self.whole, own + sum(others)),
            max(self.others, len(others)),
        )

    def __enter__(self) -> Peak:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()


def measure(model: Path, data: Path, rows: int, processes: int | None, in_memory: bool) -> dict[str, Any]:
    """Numbers of one size, in this process.

    rows, trees, tokens (of all paths); seconds of ``encode`` (reading to trees) and ``pack``
    (an epoch's batches), and of this process's CPU in the former, which is what more cores do
    not shorten; rows_per_second and seconds_per_row of both together; other_processes, most at
    a time (one keeps Python's books of the others); bytes of anonymous memory at ``start``, at
    the peak of this process and of it with all its children.
    """
    import torch

    from openbezoar.context import StepContext
    from openbezoar.dialogue.prompt import Formatter
    from openbezoar.forest.layout import in_order, lay_out
    from openbezoar.models.load import load_tokenizer
    from openbezoar.progress import PlainProgress
    from openbezoar.recipe.blocks import DataSpec, PromptSpec
    from openbezoar.recipe.schema import Recipe
    from openbezoar.recipe.train_steps import Training
    from openbezoar.rows.files import locate
    from openbezoar.rows.forms import to_example, to_pair
    from openbezoar.rows.records import Turn
    from openbezoar.rows.tables import table_of
    from openbezoar.store.runs import RunFolder
    from openbezoar.training.data import Renderer, split_heldout
    from openbezoar.training.loop import batch_of, plan_steps
    from openbezoar.verbs.train.data import training_trees

    first = next(iter(table_of(locate(data))))
    pairs, prompt = "chosen" in first, PromptSpec(template="own" if "messages" in first else "openbezoar")
    recipe = Recipe.model_validate(
        {
            "name": "rows",
            "models": {"base": {"model": str(model)}},
            "steps": {"train": {"dpo" if pairs else "sft": str(data), "model": "base"}},
        }
    )
    folder = data.parent
    context = StepContext("train", recipe, folder, RunFolder(folder / "run"), folder, 1, PlainProgress(quiet=True))
    step, spec = Training(model="base", batch=BATCH), DataSpec(data=str(data), shuffle=True)
    renderer = Renderer(Formatter(load_tokenizer(model), prompt), step.max_length, step.too_long, context.counts)
    renderer.formatter.answer_ids([Turn("user", "What is first used is imported.")], "Yes.")
    start = anonymous_memory(os.getpid())
    with Peak() as peak:
        begun, busy = time.perf_counter(), time.process_time()
        if in_memory:
            made = context.pairs(spec) if pairs else context.examples(spec)
            train, held_rows = split_heldout(made, step.heldout_every, step.heldout_rows)  # type: ignore[type-var]
            trees, held = renderer.trees(train), renderer.trees(held_rows)
        else:
            trees, held = training_trees(
                step, spec, to_pair if pairs else to_example, context, renderer, "row", processes
            )  # type: ignore[assignment]
        encoded, busy = time.perf_counter(), time.process_time() - busy
        tokens = 0
        for number in range(plan_steps(len(trees), step)):
            chosen = [trees[i] for i in batch_of(number, len(trees), step, seed=1)]
            order = in_order(chosen)
            lay_out([chosen[i] for i, _ in order], torch.device("cpu"))
            tokens += sum(len(path.ids) for tree in chosen for path in tree)
        packed = time.perf_counter()
    return {
        "rows": rows,
        "trees": len(trees),
        "heldout": len(held),
        "tokens": tokens,
        "counts": context.counts.by_reason,
        "other_processes": peak.others,
        "seconds": {"encode": encoded - begun, "pack": packed - encoded, "encode_cpu_here": busy},
        "rows_per_second": rows / (packed - begun),
        "seconds_per_row": (packed - begun) / rows,
        "memory": {"start": start, "peak_of_this_process": peak.own, "peak": peak.whole},
    }


def run(
    model: Path, data: Path, sizes: list[int], *, processes: int | None, in_memory: bool, messages: bool
) -> dict[str, Any]:
    """All sizes, each in a process of its own."""
    found: list[dict[str, Any]] = []
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="openbezoar-rows-") as folder:
            file = Path(folder) / ("rows.parquet" if messages else "rows.jsonl")
            if messages:
                write_parquet(file, conversations(data, rows))
            else:
                write_jsonl(file, distinct(data, rows))
            command = [
                sys.executable,
                "-m",
                "benchmarks.data",
                "--model",
                str(model),
                "--data",
                str(file),
                "--rows",
                str(rows),
                "--one",
            ]
            command += ["--processes", str(processes)] if processes is not None else []
            done = subprocess.run(
                [*command, *(["--in-memory"] if in_memory else [])], stdout=subprocess.PIPE, check=True, text=True
            )
        found.append(json.loads(done.stdout.splitlines()[-1]))
        memory = found[-1]["memory"]
        print(
            f"{rows} rows: {found[-1]['rows_per_second']:.0f} rows/s, {1e3 * found[-1]['seconds_per_row']:.2f} ms a"
            f" row, peak {memory['peak'] / 1e6:.0f} MB ({memory['peak_of_this_process'] / 1e6:.0f} MB in the training"
            " process)",
            file=sys.stderr,
        )
    report: dict[str, Any] = {"data": data.name, "in_memory": in_memory, "cores": os.cpu_count(), "sizes": found}
    if messages:
        report["messages"] = True
    if len(found) > 1:
        last, before = found[-1], found[-2]
        report["flat"] = {
            "seconds_per_row": last["seconds_per_row"] / before["seconds_per_row"],
            **{name: last["memory"][name] / before["memory"][name] for name in ("peak", "peak_of_this_process")},
        }
    return report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.data", description="Rows a second and peak memory of preparing rows for training."
    )
    parser.add_argument("--model", required=True, help="model reference or folder, for its tokenizer")
    parser.add_argument(
        "--data", type=Path, required=True, help=".jsonl or .jsonl.gz file of instruction rows or preference pairs"
    )
    parser.add_argument("--rows", default="1000,10000,100000", help="sizes, commas between")
    parser.add_argument("--processes", type=int, help="default: the cores that may be used")
    parser.add_argument("--in-memory", action="store_true", help="rows and trees in lists, in one process")
    parser.add_argument("--messages", action="store_true", help="conversations in a Parquet file (needs pyarrow)")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = [int(size) for size in given.rows.split(",")]
    if given.one:
        print(json.dumps(measure(Path(given.model), given.data, sizes[0], given.processes, given.in_memory)))
        return
    from openbezoar.models.references import open_checkpoint
    from openbezoar.recipe.blocks import PromptSpec

    report = run(
        open_checkpoint(given.model, PromptSpec()).folder(),
        given.data,
        sizes,
        processes=given.processes,
        in_memory=given.in_memory,
        messages=given.messages,
    )
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    else:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
