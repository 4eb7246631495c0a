"""Rows in a stream: the same trees, order and counts as from lists, mistakes named, nothing held."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from converters import dying

from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import DataError, RowError
from openbezoar.forest import TokenPath
from openbezoar.inspection import steps
from openbezoar.progress import PlainProgress
from openbezoar.recipe.blocks import DataSpec, PromptSpec
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.train_steps import Training
from openbezoar.rows.forms import to_example, to_pair
from openbezoar.rows.records import Counts, JsonLines, Row, read_jsonl
from openbezoar.rows.sources import select
from openbezoar.stats.seeds import step_seed
from openbezoar.store.runs import RunFolder
from openbezoar.training import encode
from openbezoar.training.data import Renderer, split_heldout
from openbezoar.training.encoded import of_answers, pack
from openbezoar.training.loop import batch_of
from openbezoar.training.trees import TreeStore
from openbezoar.verbs.train.data import training_trees

ODD = ["why", "naïve", "你好", "the", "sea", "\u2028"]


def hh_like(n: int) -> list[Row]:
    """Preference pairs with all that the real ones have: several turns, odd characters, twins,
    empty answers, broken and long dialogues.
    """
    draw = random.Random(7)
    rows = []
    for i in range(n):
        talk = ""
        for turn in range(draw.randrange(3)):
            talk += f"\n\nHuman: {' '.join(draw.choices(ODD, k=5))} {i}\n\nAssistant: yes {turn}"
        talk += f"\n\nHuman: Say {i}." + "\n" * draw.randrange(2) + "\n\nAssistant:"
        row = {
            "id": f"p{i}",
            "subset": draw.choice(["helpful", "harmless"]),
            "chosen": f"{talk} It is {i}.",
            "rejected": f"{talk} No.",
        }
        if i % 11 == 3:
            row["rejected"] = row["chosen"]
        if i % 13 == 5:
            row["chosen"] = f"{talk} "
        if i % 17 == 6:
            row["rejected"] = f"\n\nHuman: another\n\nAssistant: {i}"
        if i % 19 == 7:
            row["chosen"] = "no dialogue"
        if i % 23 == 8:
            row["chosen"] += " word" * 150
        rows.append(row)
    return rows


def dolly_like(n: int) -> list[Row]:
    draw = random.Random(8)
    return [
        {
            "id": i,
            "category": f"c{i % 3}",
            "instruction": f"Name {i}.",
            "context": "x " * draw.choice([0, 3, 150]),
            "response": draw.choice(["Blue.", " ", "A\nB"]),
        }
        for i in range(n)
    ]


def write(path: Path, rows: list[Row], end: str = "\n") -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    (tmp_path / "out").mkdir()
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "seed": 5,
            "models": {"base": {"model": "m"}},
            "steps": {"train": {"sft": "rows.jsonl", "model": "base"}},
        }
    )
    return StepContext(
        "train", recipe, tmp_path, RunFolder(tmp_path / "run"), tmp_path / "out", 1, PlainProgress(quiet=True)
    )


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    from openbezoar.models.load import load_tokenizer

    return load_tokenizer(tiny)


def settings(**own: Any) -> Training:
    return Training(model="base", max_length=300, heldout_every=6, heldout_rows=7, **own)


def from_lists(
    path: Path, spec: DataSpec, convert: Callable[..., Any], step: Training, tokenizer: Any, seed: int
) -> tuple[Any, ...]:
    """The plain way, everything in lists: (trees, held-out trees, counts, boundary shifts)."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in text.decode().replace("\r", "\n").split("\n") if line.strip()]
    if spec.shuffle:
        random.Random(seed).shuffle(rows)
    for field, wanted in spec.where.items():
        rows = [row for row in rows if row.get(field) == wanted]
    rows = rows[spec.offset : None if spec.limit is None else spec.offset + spec.limit]
    counts, made = Counts(), []
    for number, row in enumerate(rows, 1):
        try:
            made.append(convert(row, f"{path}: row {row.get('id', number)}"))
        except RowError as error:
            counts.add(error.reason)
    renderer = Renderer(Formatter(tokenizer, PromptSpec(system="")), step.max_length, step.too_long, counts)
    train, held = split_heldout(made, step.heldout_every, step.heldout_rows)
    trees = renderer.trees(train), renderer.trees(held)
    return *trees, list(counts.by_reason.items()), renderer.formatter.boundary_shifts


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize(
    ("make", "convert", "take"),
    [
        (hh_like, to_pair, {}),
        (hh_like, to_pair, {"shuffle": True, "where": {"subset": "helpful"}, "offset": 3, "limit": 90}),
        (hh_like, to_example, {"shuffle": True}),
        (dolly_like, to_example, {"where": {"category": "c1"}, "offset": 2}),
        (dolly_like, to_example, {"limit": 100}),
    ],
)
def test_a_stream_gives_the_trees_the_order_and_the_counts_that_lists_give(
    context: StepContext,
    tokenizer: Any,
    name: str,
    make: Callable[[int], list[Row]],
    convert: Callable[..., Any],
    take: dict[str, Any],
) -> None:
    path = write(context.recipe_folder / name, make(300))
    spec, step = DataSpec(data=name, **take), settings(too_long="truncate" if take.get("shuffle") else "drop")
    trees, held, counts, shifts = from_lists(path, spec, convert, step, tokenizer, context.recipe.seed)
    renderer = Renderer(Formatter(tokenizer, PromptSpec(system="")), step.max_length, step.too_long, context.counts)
    streamed, streamed_held = training_trees(step, spec, convert, context, renderer, "row")
    assert list(streamed) == trees and list(streamed_held) == held
    assert len(trees) > 15 and held
    assert list(context.counts.by_reason.items()) == counts and counts
    assert renderer.formatter.boundary_shifts == shifts
    assert [file.name for file in context.out.iterdir()] == ["data.json"]


@pytest.mark.slow
def test_several_processes_give_what_one_gives(
    context: StepContext, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "FEW", 50)
    monkeypatch.setattr(encode, "CHUNK", 16)
    path = write(context.recipe_folder / "rows.jsonl", hh_like(400))
    spec, step = DataSpec(data="rows.jsonl", shuffle=True), settings(too_long="truncate")
    trees, held, counts, shifts = from_lists(path, spec, to_pair, step, tokenizer, context.recipe.seed)
    renderer = Renderer(Formatter(tokenizer, PromptSpec(system="")), step.max_length, step.too_long, context.counts)
    streamed, streamed_held = training_trees(step, spec, to_pair, context, renderer, "pair", processes=2)
    assert list(streamed) == trees and list(streamed_held) == held
    assert list(context.counts.by_reason.items()) == counts and len(counts) >= 4
    assert renderer.formatter.boundary_shifts == shifts


def test_held_out_rows_of_their_own_are_counted_whole_and_taken_from_the_front(
    context: StepContext, tokenizer: Any
) -> None:
    write(context.recipe_folder / "rows.jsonl", hh_like(60))
    write(context.recipe_folder / "held.jsonl", hh_like(90)[60:])
    step = settings(heldout="held.jsonl")
    renderer = Renderer(Formatter(tokenizer, PromptSpec(system="")), step.max_length, step.too_long, context.counts)
    trees, held = training_trees(step, "rows.jsonl", to_pair, context, renderer, "pair")
    other = replace(context, counts=Counts())
    rows, given = other.pairs("rows.jsonl"), other.pairs("held.jsonl")[:7]
    plain = Renderer(Formatter(tokenizer, PromptSpec(system="")), step.max_length, step.too_long, other.counts)
    assert (list(trees), list(held)) == (plain.pairs(rows), plain.pairs(given))
    assert list(context.counts.by_reason.items()) == list(other.counts.by_reason.items())


@pytest.mark.slow
def test_a_process_that_dies_is_one_line_and_no_hang(
    context: StepContext, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "FEW", 50)
    write(context.recipe_folder / "rows.jsonl", dolly_like(400))
    renderer = Renderer(Formatter(tokenizer, PromptSpec(system="")), 300, "drop", context.counts)
    with pytest.raises(DataError, match="one of 2 processes that encode rows was killed") as caught:
        training_trees(settings(), "rows.jsonl", dying, context, renderer, "row", processes=2)
    assert "\n" not in str(caught.value)


ENDLESS = """
import sys
from openbezoar.dialogue.prompt import Formatter
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.records import Counts
from openbezoar.training import encode
from openbezoar.models.load import load_tokenizer
from pathlib import Path
from converters import resting
encode.FEW = 10
encoder = encode.Encoder(Formatter(load_tokenizer(Path(sys.argv[1])), PromptSpec()), 300, "drop", Counts())
rows = (("row", {"id": i, "instruction": "Name it.", "response": "Blue."}) for i in range(1000))
list(encode.encode_rows(encoder, resting, rows, processes=2, say=lambda text: print(text, flush=True)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's list of a process's children")
def test_no_process_outlives_a_killed_run(tiny: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tiny)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    ) as run:
        assert run.stdout is not None and b"2 processes" in run.stdout.readline()
        while (
            len(
                begun := [
                    int(c)
                    for task in Path(f"/proc/{run.pid}/task").iterdir()
                    for c in (task / "children").read_text().split()
                ]
            )
            < 3
        ):
            assert run.poll() is None
            time.sleep(0.05)
        run.kill()
    until = time.monotonic() + 120  # one that has only just begun ends when it has read what it is to do
    while time.monotonic() < until and any(alive(process) for process in begun):
        time.sleep(0.1)
    assert not any(alive(process) for process in begun)


def alive(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("processes", [1, 2])
def test_a_row_without_its_fields_is_named_wherever_it_is_found(
    context: StepContext, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(encode, "FEW", 50)
    rows = dolly_like(90)
    del rows[70]["response"]
    path = write(context.recipe_folder / "rows.jsonl", rows)
    renderer = Renderer(Formatter(tokenizer, PromptSpec(system="")), 300, "drop", context.counts)
    with pytest.raises(DataError) as caught:
        training_trees(settings(), "rows.jsonl", to_example, context, renderer, "row", processes=processes)
    assert (
        str(caught.value)
        == f"{path}: row 70: no field 'response' (or 'output'); it has id, category, instruction, context"
    )


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"id": 1, \n', r"line 2001 is not JSON \(Expecting property name"),
        (b"[1]\n", r"line 2001 is not a JSON object"),
        (b'{"id": ' + b"1" * 5000 + b"}\n", r"line 2001 is not JSON \(Exceeds the limit"),
        (b"[" * 200_000 + b"\n", r"line 2001 is not JSON \(maximum recursion depth"),
        (b'{"id": "\xff"}\n', r"line 2001 is not JSON \('utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_malformed_line_is_named_shuffled_or_not(
    tmp_path: Path, name: str, line: bytes, said: str, shuffle: bool
) -> None:
    text = b'{"id": 0}\n' * 2000 + line + b'{"id": 2}\n' * 1000
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(DataError, match=f"{name}: {said}"):
        list(select(JsonLines(path, tmp_path), DataSpec(data="x", shuffle=shuffle), 1))


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_gzip_file_that_was_cut_off_is_named(tmp_path: Path, shuffle: bool) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(os.urandom(100).hex().join(['{"a": "', '"}\n']).encode() * 500)[:-20])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: not a whole gzip file"):
        list(select(JsonLines(path), DataSpec(data="x", shuffle=shuffle), 1))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n \n"])
def test_a_shuffled_file_has_the_order_of_a_shuffled_list_whatever_ends_its_lines(tmp_path: Path, end: str) -> None:
    rows = hh_like(60)
    path = write(tmp_path / "rows.jsonl", rows, end)
    random.Random(9).shuffle(rows)
    assert list(JsonLines(path).shuffled(9)) == rows
    assert sorted(r["id"] for r in read_jsonl(path)) == sorted(r["id"] for r in rows)


def test_a_field_that_holds_a_list_is_compared_like_any_other(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl", [{"id": 1, "tags": ["a"]}, {"id": 2, "tags": "a"}, {"id": 3, "tags": {"a": 1}}]
    )
    for wanted in ("a", ["a", "b"]):
        assert [row["id"] for row in select(JsonLines(path), DataSpec(data="x", where={"tags": wanted}), 1)] == [2]


def test_rows_after_the_limit_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n' * 5 + "not JSON\n")
    assert len(list(select(JsonLines(path), DataSpec(data="x", offset=1, limit=4), 1))) == 4


def growth(work: Callable[[], object]) -> int:
    """Bytes that Python objects took at most while ``work`` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(
    context: StepContext, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "FEW", 50)
    monkeypatch.setattr(steps, "DRAWN", 20)  # rows that are held to be looked at, however many there are
    step, taken = settings(), []
    for n in (100, 1000):
        write(context.recipe_folder / f"{n}.jsonl", [r for r in hh_like(4 * n) if r["chosen"] != r["rejected"]][:n])
        renderer = Renderer(Formatter(tokenizer, PromptSpec(system="")), step.max_length, step.too_long, Counts())
        spec = DataSpec(data=f"{n}.jsonl", shuffle=True)
        # what is imported or cached at first use
        training_trees(step, spec, to_pair, context, renderer, "pair", processes=1)
        taken.append(
            growth(
                lambda spec=spec, renderer=renderer: training_trees(
                    step, spec, to_pair, context, renderer, "pair", processes=1
                )
            )
        )  # type: ignore[misc]
    # eight bytes a row for the shuffle, and a longest row; one row's ids in a list take more
    assert taken[1] - taken[0] < 900 * 100


def test_a_store_holds_no_tree(tmp_path: Path) -> None:
    def fill(n: int) -> TreeStore:
        store = TreeStore(tmp_path)
        for i in range(n):
            store.append(pack(of_answers([1] * (50 + i % 7), [[2] * 40])))
        assert len(store[n - 1][0].ids) == 90 + (n - 1) % 7
        return store

    fill(10)
    assert growth(lambda: fill(4000)) - growth(lambda: fill(1000)) < 20_000


def test_a_store_is_a_sequence_of_trees(tmp_path: Path) -> None:
    store = TreeStore(tmp_path)
    assert len(store) == 0 and not store
    ids = [[[1, 2], [3], [4, 5]], [[6], [70000], [8]], [[9, 9], [1], [2]]]
    for part in ids[:2]:
        store.append(pack(of_answers(part[0], part[1:])))
    assert store[1] == (TokenPath.of([6], [70000]), TokenPath.of([6], [8]))
    store.append(pack(of_answers(ids[2][0], ids[2][1:])))  # after a read too
    trees = [tuple(TokenPath.of(p[0], answer) for answer in p[1:]) for p in ids]
    assert list(store) == trees and store[-3:] == trees and store[::2] == trees[::2] and store[-1] == trees[2]
    for place in (3, -4):
        with pytest.raises(IndexError):
            store[place]
    assert not any(tmp_path.iterdir())


def test_the_order_of_an_epoch_is_a_shuffle_of_its_own(tmp_path: Path) -> None:
    step = Training(model="base", batch=7, epochs=3)
    for rows in (1, 7, 50):
        for number in range(3 * -(-rows // 7)):
            epoch, place = divmod(number, -(-rows // 7))
            order = list(range(rows))
            random.Random(step_seed(3, "order", epoch)).shuffle(order)
            assert batch_of(number, rows, step, seed=3) == order[place * 7 : place * 7 + 7]


@pytest.mark.slow
@pytest.mark.parametrize("messages", [False, True])
def test_the_benchmark_gives_each_size_and_says_how_flat_it_is(tmp_path: Path, tiny: Path, messages: bool) -> None:
    write(tmp_path / "rows.jsonl", [{**row, "context": ""} for row in dolly_like(7)])
    out = tmp_path / "out.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.data",
        "--model",
        str(tiny),
        "--data",
        str(tmp_path / "rows.jsonl"),
        "--rows",
        "20,40",
        "--json",
        str(out),
        *(["--messages"] if messages else []),
    ]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert [size["rows"] for size in report["sizes"]] == [20, 40]
    for size in report["sizes"]:
        assert size["trees"] + size["heldout"] + sum(size["counts"].values()) == size["rows"]
        assert size["rows_per_second"] > 0
    assert set(report["flat"]) == {"seconds_per_row", "peak", "peak_of_this_process"}
