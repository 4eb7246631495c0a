"""Files of rows of every kind: the same rows in, the same rows out, in their order, shuffled and sliced, at flat
memory; what is no file of rows is one line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from openbezoar.context import StepPlace
from openbezoar.engine import execution, graph
from openbezoar.engine.keys import parts_of
from openbezoar.errors import DataError, RowError
from openbezoar.progress import PlainProgress
from openbezoar.publishing.data_sets import write_parquet
from openbezoar.recipe.blocks import DataSpec
from openbezoar.recipe.file import parse
from openbezoar.rows.files import divided, locate
from openbezoar.rows.forms import to_example
from openbezoar.rows.plain import plain
from openbezoar.rows.records import Row, read_jsonl
from openbezoar.rows.sources import read, row_files, select
from openbezoar.rows.tables import FileRows, table_of
from openbezoar.store.runs import RunFolder


def rows(n: int = 700) -> list[Row]:
    """Rows of texts with all that tables of plain text find hard."""
    odd = [
        "",
        'a "quoted" word',
        "two\nlines, and a comma",
        "tab\there",
        "naïve 你好 \U0001f600",
        "[1]",
        "{}",
        "007",
        "null",
    ]
    return [
        {"instruction": f"Say {i}.", "context": odd[i % len(odd)], "response": f"{i}: {odd[i % 7]}."} for i in range(n)
    ]


def talks(n: int) -> list[Row]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"Say {i}."},
                {"role": "assistant", "content": f"It is {i}.", **({"weight": 1} if i % 2 else {})},
            ],
            "source": f"s{i % 3}",
            "score": i / 4,
        }
        for i in range(n)
    ]


def without_nulls(row: Row) -> Row:
    """A row without the fields of messages that Arrow adds, for other messages of its list have them."""
    messages = [{name: value for name, value in one.items() if value is not None} for one in row["messages"]]
    return {**row, "messages": messages}


def json_lines(given: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given).encode()


def table(given: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(given)


def arrow(given: list[Row], file: bool) -> bytes:
    sink = pa.BufferOutputStream()
    make = pa.ipc.new_file if file else pa.ipc.new_stream
    with make(sink, table(given).schema) as writer:
        writer.write_table(table(given), max_chunksize=100)
    return sink.getvalue().to_pybytes()


def as_parquet(given: list[Row]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(table(given), sink, row_group_size=90)
    return sink.getvalue().to_pybytes()


def separated(given: list[Row], separator: str, end: str = "\r\n") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(given[0]), delimiter=separator, lineterminator=end)
    writer.writeheader()
    writer.writerows(given)
    return out.getvalue().encode()


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


KINDS: dict[str, Callable[[list[Row]], bytes]] = {
    "rows.jsonl": json_lines,
    "rows.ndjson": json_lines,
    "rows.jsonl.gz": lambda given: gzip.compress(json_lines(given)),
    "rows.jsonl.zst": lambda given: zstd(json_lines(given)),
    "rows.json": lambda given: json.dumps(given, indent=2).encode(),
    "compact.json": lambda given: json.dumps(given, ensure_ascii=False).encode(),
    "lines.json": json_lines,
    "object.json": lambda given: json.dumps({"version": 1, "data": given}).encode(),
    "rows.json.gz": lambda given: gzip.compress(json.dumps(given).encode()),
    "rows.parquet": as_parquet,
    "rows.arrow": lambda given: arrow(given, True),
    "stream.arrow": lambda given: arrow(given, False),
    "rows.csv": lambda given: separated(given, ","),
    "marked.csv": lambda given: b"\xef\xbb\xbf" + separated(given, ",", "\n"),
    "rows.csv.gz": lambda given: gzip.compress(separated(given, ",")),
    "rows.tsv": lambda given: separated(given, "\t"),
    "rows.tsv.zst": lambda given: zstd(separated(given, "\t")),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_rows_that_were_written_in_order_shuffled_and_in_part(name: str, tmp_path: Path) -> None:
    given = rows()
    (tmp_path / name).write_bytes(KINDS[name](given))

    def taken(spec: DataSpec) -> list[Row]:
        return [row for _, row in read(spec, tmp_path, None, {}, 5, tmp_path)]

    assert taken(DataSpec(data=name)) == given
    shuffled = list(given)
    random.Random(5).shuffle(shuffled)
    assert taken(DataSpec(data=name, shuffle=True)) == shuffled
    assert taken(DataSpec(data=name, shuffle=True, offset=3, limit=20)) == shuffled[3:23]
    assert taken(DataSpec(data=name, where={"context": "007"})) == [row for row in given if row["context"] == "007"]
    for part, expected in {
        "[:40]": given[:40],
        "[650:]": given[650:],
        "[10%:20%]": given[70:140],
        "[-5:]": given[-5:],
        "[100:200]": given[100:200],
    }.items():
        assert taken(DataSpec(data=f"{name}{part}")) == expected
    assert taken(DataSpec(data=f"{name}[20:30]", shuffle=True)) == list(_shuffled(given[20:30], 5))
    assert not any(path.name != name for path in tmp_path.iterdir())


def _shuffled(given: list[Row], seed: int) -> list[Row]:
    given = list(given)
    random.Random(seed).shuffle(given)
    return given


@pytest.mark.parametrize("name", [name for name in KINDS if "csv" not in name and "tsv" not in name])
def test_conversations_come_back_as_they_were_and_what_a_message_lacks_is_null_at_most(
    name: str, tmp_path: Path
) -> None:
    given = talks(300)
    (tmp_path / name).write_bytes(KINDS[name](given))
    back = [row for _, row in read(name, tmp_path, None, {}, 1, tmp_path)]
    assert [without_nulls(row) for row in back] == given
    assert [to_example(row, "row") for row in back] == [to_example(row, "row") for row in given]


def test_a_label_of_a_plain_table_is_true_or_false(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion,label\nA?,B.,True\nC?,D.,0\n")
    assert [row["label"] for _, row in read("a.csv", tmp_path, None, {}, 1)] == [True, False]


def test_what_arrow_has_and_json_has_not_becomes_what_json_has(tmp_path: Path) -> None:
    day = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    values = {
        "when": day,
        "price": Decimal("1.50"),
        "whole": Decimal("3"),
        "bytes": "naïve".encode(),
        "image": {"bytes": b"\xff\xd8\x00", "path": None},
        "score": float("nan"),
        "none": None,
        "nested": [{"a": None, "b": [1, 2]}],
    }
    parquet.write_table(pa.Table.from_pylist([values]), tmp_path / "a.parquet")
    ((_, row),) = read("a.parquet", tmp_path, None, {}, 1)
    assert row == {
        "when": day.isoformat(),
        "price": 1.5,
        "whole": 3,
        "bytes": "naïve",
        "image": {"bytes": {"bytes": 3}, "path": None},
        "score": None,
        "none": None,
        "nested": [{"a": None, "b": [1, 2]}],
    }
    json.dumps(row, allow_nan=False)
    thing = object()
    assert plain([thing]) == [thing]
    coded = pa.table({"kind": pa.array(["x", "y", "x"]).dictionary_encode()})
    parquet.write_table(coded, tmp_path / "b.parquet")
    assert [row["kind"] for _, row in read("b.parquet", tmp_path, None, {}, 1)] == ["x", "y", "x"]


# ------------------------------------------------------------------- folders and patterns


def shards(folder: Path, names: list[str]) -> None:
    for place, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(KINDS[f"rows{file.suffix}"]([{"instruction": "Name it.", "response": f"{place}"}]))


def responses(text: str, folder: Path) -> list[str]:
    return [row["response"] for _, row in read(text, folder, None, {}, 1)]


def test_shards_come_in_the_natural_order_of_their_names_whatever_their_kinds(tmp_path: Path) -> None:
    shards(tmp_path / "all", ["part-2.jsonl", "part-10.parquet", "part-1.csv", "deep/part-3.json"])
    (tmp_path / "all" / "README.md").write_text("about")
    (tmp_path / "all" / ".hidden.jsonl").write_text("{}")
    assert responses("all", tmp_path) == ["3", "2", "0", "1"]
    assert responses("all/part-*", tmp_path) == ["2", "0", "1"]
    assert responses("all/*/part-*.json", tmp_path) == ["3"]
    assert responses("all[1:3]", tmp_path) == ["2", "0"]
    where = [where for where, _ in read("all", tmp_path, None, {}, 1)]
    assert where[0] == f"{tmp_path}/all/deep/part-3.json: row 1"


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
        ["train.jsonl", "train_2.jsonl", "test.jsonl"],
        ["train/a.jsonl", "train/b.jsonl", "dev/a.jsonl"],
    ],
)
def test_the_split_of_a_folder_is_train_or_the_one_that_is_named(names: list[str], tmp_path: Path) -> None:
    shards(tmp_path / "set", names)
    assert responses("set", tmp_path) == responses("set[train]", tmp_path) == ["0", "1"]
    other = "validation" if "dev/a.jsonl" in names else "test"
    assert responses(f"set[{other}]", tmp_path) == ["2"]
    assert responses("set[train[1:]]", tmp_path) == ["1"]
    with pytest.raises(
        DataError, match=rf"no split 'none'; it has (train, {other}|{other}, train): name one in brackets"
    ):
        responses("set[none]", tmp_path)


def test_several_splits_without_train_want_a_name(tmp_path: Path) -> None:
    shards(tmp_path / "set", ["train_sft-00000-of-00001.parquet", "test_sft-00000-of-00001.parquet"])
    with pytest.raises(DataError, match=r"several splits and no 'train'; it has test_sft, train_sft"):
        responses("set", tmp_path)
    assert responses("set[train_sft]", tmp_path) == ["0"]


def test_what_the_hub_s_client_saved_to_disk_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    whole = Dataset.from_list(talks(30))
    whole.save_to_disk(tmp_path / "one")
    DatasetDict({"train": whole.select(range(20)), "test": whole.select(range(20, 30))}).save_to_disk(tmp_path / "two")

    def back(text: str) -> list[Row]:
        return [row for _, row in read(text, tmp_path, None, {}, 1)]

    assert list(map(without_nulls, back("one"))) == talks(30)
    assert list(map(without_nulls, back("two"))) == talks(30)[:20]
    assert list(map(without_nulls, back("two[test]"))) == talks(30)[20:]


def test_a_null_text_of_a_message_is_dropped_and_counted_from_parquet_as_from_json_lines(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": None}]
    for name in ("rows.parquet", "rows.jsonl"):
        (tmp_path / name).write_bytes(KINDS[name]([{"messages": talk}, *talks(1)]))
        (where, row), (_, other) = read(name, tmp_path, None, {}, 1)
        with pytest.raises(RowError, match="its 'content' is null"):
            to_example(row, where)
        assert to_example(other, where).answer == "It is 0."


def test_a_step_s_folder_is_the_rows_that_it_hands_on(tmp_path: Path) -> None:
    shards(tmp_path / "kept", ["rows.jsonl", "rejected.jsonl"])
    (tmp_path / "kept" / "manifest.json").write_text("{}")
    assert responses("kept", tmp_path) == ["0"]


def test_a_folder_s_files_are_each_in_the_key_and_one_that_is_added_changes_it(tmp_path: Path) -> None:
    shards(tmp_path / "set", ["a.jsonl", "b.parquet"])
    shards(tmp_path, ["one.csv"])

    def files(text: str) -> dict[str, str]:
        recipe = parse(
            {"name": "r", "models": {"m": {"model": "org/m"}}, "steps": {"s": {"sft": text, "model": "m"}}}, "t"
        )
        return dict(parts_of(StepPlace(recipe, tmp_path / "r.yaml", RunFolder(tmp_path / "run"), "s"), {})["files"])

    assert list(files("set")) == ["set/a.jsonl", "set/b.parquet"] and list(files("one.csv")) == ["one.csv"]
    assert list(files("set/*.jsonl")) == ["set/*.jsonl/a.jsonl"]
    before = files("set")
    shards(tmp_path / "set", ["b.parquet"])
    assert files("set")["set/a.jsonl"] == before["set/a.jsonl"]
    assert files("set")["set/b.parquet"] != before["set/b.parquet"]
    shards(tmp_path / "set", ["c.jsonl"])
    assert list(files("set")) == ["set/a.jsonl", "set/b.parquet", "set/c.jsonl"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.jsonl", ("a.jsonl", "", None)),
        ("a.jsonl[:10]", ("a.jsonl", "", (None, "10"))),
        ("a[train]", ("a", "train", None)),
        ("a[train[5%:]]", ("a", "train", ("5%", None))),
        ("part-*[test]", ("part-*", "test", None)),
    ],
)
def test_brackets_say_a_split_or_a_slice(
    text: str, parts: tuple[str, str, tuple[str | None, str | None] | None]
) -> None:
    assert divided(text) == parts


def test_a_file_whose_own_name_has_brackets_is_that_file(tmp_path: Path) -> None:
    file = tmp_path / "a[1].jsonl"
    file.write_bytes(json_lines(rows(2)))
    assert row_files(str(file), tmp_path, None).files == (file,)


# ------------------------------------------------------------------------------ defects

CSV = b"instruction,response\n"
LIST = json.dumps(rows(3)).encode()
DEFECTS: dict[str, tuple[str, bytes, str]] = {
    "parquet cut off": ("a.parquet", as_parquet(rows(300))[:-50], "not a whole Parquet file"),
    "no parquet": ("a.parquet", b"{}\n" * 9, "not a whole Parquet file"),
    "arrow cut off": ("a.arrow", arrow(rows(300), False)[:-500], "not a whole Arrow file"),
    "gzip cut off": ("a.csv.gz", gzip.compress(separated(rows(300), ","))[:-30], "not a whole gzip file"),
    "zstd cut off": ("a.jsonl.zst", zstd(json_lines(rows(300)))[:-30], "not a whole zstd file"),
    "list cut off": ("a.json", LIST[:-40], "after element 2 of the list there is no JSON"),
    "two lists": ("a.json", LIST + LIST, "after element 3 of the list there is no JSON"),
    "list of numbers": ("a.json", b"[1, 2]", "element 1 of the list is not an object"),
    "no comma": ("a.json", b'[{"a": 1} {"a": 2}]', "after element 1 of the list there is no JSON"),
    "two lists in an object": ("a.json", b'{"a": [{"x": 1}],\n "b": [{"x": 1}]}', r"several lists \(a, b\)"),
    "an object of columns": ("a.json", b'{"a": {"0": 1},\n "b": {"0": 2}}', "an object with no list of objects"),
    "too few values": ("a.csv", CSV + b"A?,B.\nC?\n", "the row in line 3 has 1 values, but there are 2 columns"),
    "too many values": ("a.csv", CSV + b"A?,B, and C.\n", "the row in line 2 has 3 values, but there are 2 columns"),
    "no end of a quote": ("a.csv", CSV + b'A?,"B.\nC?,D.\n', "after line 1 the values cannot be told apart"),
    "two columns of one name": ("a.csv", b"text,text\nA,B\n", "two columns have the name 'text'"),
    "no UTF-8": ("a.csv", CSV + b"A?,\xff\n", "a text is not UTF-8"),
    "UTF-16": ("a.csv", "a,b\n1,2\n".encode("utf-16"), "it is UTF-16 text"),
    "header only": ("a.csv", CSV, "is empty; expected at least one row"),
    "empty list": ("a.json", b"[]", "is empty; expected at least one row"),
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_what_is_no_file_of_rows_is_one_line_with_the_file_and_the_place(
    defect: str, shuffle: bool, tmp_path: Path
) -> None:
    name, content, said = DEFECTS[defect]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        list(read(DataSpec(data=name, shuffle=shuffle), tmp_path, None, {}, 1, tmp_path))
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("none.parquet", "no file .*none.parquet"),
        ("nothing-*.csv", "no file of rows has such a name; expected .jsonl"),
        ("empty", "the folder has no file of rows; expected .jsonl"),
        ("rows.jsonl[test]", "a file has no split 'test'"),
        ("rows.jsonl[a:b]", "'a:b' is no slice; expected FROM:TO"),
        ("set[dev]", "no split 'dev'; its files' names tell no splits"),
    ],
)
def test_names_of_no_rows_are_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no rows")
    shards(tmp_path / "set", ["a.jsonl"])
    (tmp_path / "rows.jsonl").write_bytes(json_lines(rows(3)))
    with pytest.raises(DataError, match=said) as caught:
        list(read(text, tmp_path, None, {}, 1))
    assert "\n" not in str(caught.value)


def test_a_file_is_read_as_what_it_is_not_as_what_it_is_called(tmp_path: Path) -> None:
    given = rows(50)
    (tmp_path / "a.jsonl").write_bytes(as_parquet(given))
    (tmp_path / "b.parquet").write_bytes(arrow(given, True))
    for name in ("a.jsonl", "b.parquet"):
        assert [row for _, row in read(name, tmp_path, None, {}, 1)] == given


def test_shards_may_have_different_columns(tmp_path: Path) -> None:
    shards(tmp_path / "set", ["a.jsonl"])
    (tmp_path / "set" / "b.parquet").write_bytes(as_parquet([{"instruction": "A?", "response": "B.", "source": "web"}]))
    assert [row.get("source") for _, row in read("set", tmp_path, None, {}, 1)] == [None, "web"]


def test_columns_of_the_original_travel_through_a_filter_into_a_release_s_data_set(tmp_path: Path) -> None:
    given = [
        {**row, "source": f"s{i % 3}", "score_chosen": i / 2, "tags": ["a", "b"]} for i, row in enumerate(rows(40))
    ]
    (tmp_path / "a.parquet").write_bytes(as_parquet(given))
    steps = {"kept": {"filter": "a.parquet", "rules": {"drop_repetition": 1.0}}}
    recipe = parse({"name": "r", "models": {"m": {"model": "org/m"}}, "steps": steps}, "t")
    execution.execute(graph.build(recipe, tmp_path / "r.yaml", tmp_path / "runs"), PlainProgress(quiet=True))
    kept = list(read_jsonl(tmp_path / "runs/r/kept/rows.jsonl"))
    written = {row["instruction"]: row for row in given}
    assert len(kept) > 10
    for row in kept:
        assert {name: row[name] for name in ("source", "score_chosen", "tags")} == {
            name: written[row["instruction"]][name] for name in ("source", "score_chosen", "tags")
        }
    names = write_parquet(kept, tmp_path)
    assert {"source", "score_chosen", "tags"} <= set(names)
    assert parquet.read_table(tmp_path / "train.parquet").column("source").to_pylist() == [r["source"] for r in kept]


# --------------------------------------------------------------------------- flat memory


def growth(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - before


@pytest.mark.parametrize("name", ["rows.parquet", "stream.arrow", "rows.csv.gz", "rows.json"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_memory_does_not_grow_with_the_rows(name: str, shuffle: bool, tmp_path: Path) -> None:
    def passed(n: int) -> int:
        file = tmp_path / f"{n}-{name}"
        file.write_bytes(KINDS[name](rows(n)))
        spec = DataSpec(data=file.name, shuffle=shuffle)
        made = table_of(locate(file), tmp_path)

        def work() -> None:
            assert sum(1 for _ in _consumed(select(made, spec, 1))) == n

        work()
        return growth(work)

    # eight bytes a row for a shuffle, and the array's own growth; a row's texts take some 500
    assert passed(6000) - passed(1500) < 4500 * 60


def _consumed(given: Iterator[Row]) -> Iterator[None]:
    for _ in given:
        yield None


def test_rows_after_a_slice_are_not_read(tmp_path: Path) -> None:
    whole = json.dumps(rows(50)).encode()[:-1]
    (tmp_path / "a.json").write_bytes(whole + b", no JSON")
    assert [row for _, row in read("a.json[:40]", tmp_path, None, {}, 1)] == rows(50)[:40]
    files = locate(tmp_path / "a.json")
    with pytest.raises(DataError):
        list(FileRows(files))
