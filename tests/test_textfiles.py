"""Text that a user brings: byte-order marks, other encodings, halves of characters, values too deep
or too large, damaged files.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openbezoar import prompts
from openbezoar.cleaning.reviews import Decision, Reviews
from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import DataError, RecipeError, RunError, UserError, fields_of, named, shown
from openbezoar.judging.votes import read_votes
from openbezoar.machine.textfiles import DEEPEST
from openbezoar.models.load import load_tokenizer
from openbezoar.people.votes import VoteFile
from openbezoar.recipe.blocks import DataSpec, PromptSpec
from openbezoar.recipe.file import load
from openbezoar.rows.records import HALVES, Counts, JsonLines, Row, Turn, read_jsonl
from openbezoar.rows.sources import read, select

ROW: Row = {"id": "a", "instruction": "Nenne ein Meer, groß.", "response": "Die Ostsee."}
VOTE: Row = {"id": "v", "question_id": 1, "turn": 1, "model_a": "x", "model_b": "y", "winner": "model_a", "judge": "me"}
RECIPE = "name: t\nmodels: {base: {model: m}}\nsteps: {a: {sft: rows.jsonl, model: base}}\n"


def lines(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


READERS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "rows": ("rows.jsonl", lines(ROW), lambda path: list(read_jsonl(path))),
    "rows, shuffled": ("rows.jsonl", lines(ROW), lambda path: list(JsonLines(path).shuffled(1))),
    "rows, compressed": ("rows.jsonl.gz", lines(ROW), lambda path: list(read_jsonl(path))),
    "rows, compressed and shuffled": ("rows.jsonl.gz", lines(ROW), lambda path: list(JsonLines(path).shuffled(1))),
    "recipe": ("recipe.yaml", RECIPE + "description: Größe\n", load),
    "prompt": ("prompt.txt", "Größe {prompt}\r\n", lambda path: prompts.load("evol_in_depth", {"evol_in_depth": path})),
    "reviews": (
        "reviews/kept.jsonl",
        lines({"row": "ab", "verdict": "reject", "id": "ö"}),
        lambda path: Reviews(path.parent.parent, "kept").in_force,
    ),
    "votes": ("votes.jsonl", lines({**VOTE, "judge": "Jörg"}), lambda path: VoteFile(path, read_only=True).rows),
    "votes to compare": ("votes.jsonl", lines({**VOTE, "judge": "Jörg"}), read_votes),
}


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("what", list(READERS))
def test_a_byte_order_mark_is_passed_over_and_another_encoding_is_one_line(what: str, tmp_path: Path) -> None:
    name, text, reader = READERS[what]
    plain = reader(put(tmp_path, name, text.encode()))
    assert reader(put(tmp_path, name, b"\xef\xbb\xbf" + text.encode())) == plain
    for encoding, said in (
        ("utf-16", "it is UTF-16 text, not UTF-8"),
        ("utf-16-le", "UTF-16 text"),
        ("utf-16-be", "UTF-16 text"),
        ("utf-32", "UTF-32 text"),
        ("latin-1", "line 1|line 4"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            reader(put(tmp_path, name, text.encode(encoding)))
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_template_s_byte_order_mark_is_passed_over(tmp_path: Path, tiny: Path) -> None:
    text = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}{% if add_generation_prompt"
        " %}{{ 'Größe: ' }}{% endif %}"
    )
    tokenizer, rendered = load_tokenizer(tiny), []
    for mark in (b"", b"\xef\xbb\xbf"):
        path = put(tmp_path, "chat.jinja", mark + text.encode())
        rendered.append(Formatter(tokenizer, PromptSpec(template=str(path))).prompt_text([Turn("user", "a")]))
    assert rendered == ["user: a</s>Größe: "] * 2
    with pytest.raises(UserError, match=r"chat\.jinja: it is UTF-16 text"):
        Formatter(tokenizer, PromptSpec(template=str(put(tmp_path, "chat.jinja", text.encode("utf-16")))))


def test_a_mark_inside_of_joined_files_is_passed_over_too(tmp_path: Path) -> None:
    path = put(tmp_path, "rows.jsonl", (b"\xef\xbb\xbf" + lines(ROW).encode()) * 3)
    assert list(read_jsonl(path)) == list(JsonLines(path).shuffled(3)) == [ROW] * 3


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"PAR1....", "a Parquet file"),
        (b"PK\x03\x04..", "a zip archive"),
        (b"\x1f\x8b\x08.", "compressed"),
        (b"\x28\xb5\x2f\xfd.", "zstd"),
        (b'[\n{"a": 1},\n', "jq"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_kind(head: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        list(read_jsonl(put(tmp_path, "rows.jsonl", head)))


# ------------------------------------------------------------------- halves of characters

HALF = (
    r'{"id": "a", "instruction": "Say \ud83d it.", "response": "\uDE00So.", "more": [{"k\ud83d": "\ud83d"}], "whole":'
    r' "\ud83d\ude00"}' + "\n"
)
WHOLE: Row = {"id": "a", "instruction": "Say  it.", "response": "So.", "more": [{"k": ""}], "whole": "😀"}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_half_a_character_is_taken_out_where_rows_are_read_and_counted(
    tmp_path: Path, name: str, shuffle: bool
) -> None:
    put(tmp_path, name, (lines(ROW) + HALF + lines({**ROW, "response": r"a \ud83d b"}) + HALF).encode())
    counts = Counts()
    rows = [row for _, row in read(DataSpec(data=name, shuffle=shuffle), tmp_path, None, {}, 1, None, counts.add)]
    assert [row for row in rows if "more" in row] == [WHOLE] * 2 and len(rows) == 4
    assert counts.by_reason == {HALVES: 2}


def test_reviews_and_votes_hold_whole_characters(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        "reviews/kept.jsonl",
        rb'{"row": "ab", "verdict": "edit", "texts": {"response": "So \ud83d."}}' + b"\n",
    )
    assert Reviews(tmp_path, "kept").in_force == {"ab": Decision("ab", "edit", "", {"response": "So ."})}
    path = put(tmp_path, "votes.jsonl", json.dumps({**VOTE, "judge": "\ud83d me"}).encode() + b"\n")
    assert VoteFile(path, read_only=True).rows[0]["judge"] == " me"


# -------------------------------------------------------------------------- damaged files

ROWS = "".join(lines({**ROW, "id": i}) for i in range(40)).encode()


def flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 0x55
    return bytes(changed)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("damage", ["last", "checksum", "middle", "first", "cut", "behind"])
def test_a_damaged_gzip_file_is_one_line(tmp_path: Path, damage: str, shuffle: bool) -> None:
    whole = gzip.compress(ROWS)
    data = {"behind": whole + b"more", "cut": whole[:-3]}.get(damage) or flipped(
        whole, {"last": -1, "checksum": -6, "middle": len(whole) // 2, "first": 0}[damage]
    )
    (tmp_path / "rows.jsonl.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: "):
        list(select(JsonLines(tmp_path / "rows.jsonl.gz"), DataSpec(data="x", shuffle=shuffle), 1))


def test_whichever_byte_of_a_gzip_file_is_damaged_it_is_one_line_or_the_same_rows(tmp_path: Path) -> None:
    whole, path = gzip.compress(ROWS), tmp_path / "rows.jsonl.gz"
    path.write_bytes(whole)
    rows, said = list(read_jsonl(path)), set()
    for place in range(len(whole)):
        path.write_bytes(flipped(whole, place))
        try:
            assert list(read_jsonl(path)) == rows  # of the header's time and system
        except DataError as error:
            said.add(str(error).partition(": ")[2].partition(" (")[0])
    assert said == {"not a whole gzip file"}


def test_a_file_that_was_unpacked_on_its_way_and_kept_its_name_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(ROWS)
    assert (
        len(list(read_jsonl(tmp_path / "rows.jsonl.gz")))
        == len(list(JsonLines(tmp_path / "rows.jsonl.gz").shuffled(1)))
        == 40
    )


@pytest.mark.parametrize(
    "line",
    [
        b"[1]",
        b"5",
        b'{"row": 1}',
        b'{"row": "a", "verdict": "maybe"}',
        b'{"row": "a", "verdict": "edit", "texts": 5}',
        b"[" * 100_000,
        b'{"row": "a", "verdict": "edit", "texts": {"response": [1]}}',
        b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}",
        b'{"row": "a", "verdict": {}}',
        b"\xff",
    ],
)
def test_a_review_that_is_none_is_one_line(tmp_path: Path, line: bytes) -> None:
    put(tmp_path, "reviews/kept.jsonl", b'{"row": "ab", "verdict": "reject"}\n' + line + b"\n")
    with pytest.raises(RunError, match=r"kept\.jsonl: line 2 is n") as caught:
        Reviews(tmp_path, "kept")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "line",
    [
        b"[1]",
        b"5",
        b'{"turn": 1}',
        b"[" * 100_000,
        b"\xff",
        json.dumps({**VOTE, "turn": [1] * 10_000}).encode(),
        json.dumps({**VOTE, "winner": "x" * 10_000}).encode(),
    ],
)
def test_a_vote_that_is_none_is_one_line(tmp_path: Path, line: bytes) -> None:
    path = put(tmp_path, "votes.jsonl", lines(VOTE).encode() + line + b"\n")
    for reader in (VoteFile, read_votes):
        with pytest.raises(DataError, match=r"votes\.jsonl: (line|row) 2") as caught:
            reader(path)
        assert len(str(caught.value)) < 500


def test_a_row_that_is_nested_too_deeply_is_named_and_one_of_many_brackets_is_not(tmp_path: Path) -> None:
    text = "[" * 100_000
    assert next(read_jsonl(put(tmp_path, "a.jsonl", json.dumps({"a": text, "b": [[]] * 100}).encode())))["a"] == text
    for depth, fits in ((DEEPEST - 1, True), (DEEPEST, False)):
        path = put(tmp_path, "b.jsonl", b'{"a": ' + b"[" * depth + b"]" * depth + b"}")
        if fits:
            assert list(read_jsonl(path))
        else:
            with pytest.raises(DataError, match=r"line 1 is not JSON \(nested more than 64 levels deep\)"):
                list(read_jsonl(path))


# ----------------------------------------------------------------- recipes and messages


def nines(inner: str) -> str:
    return f"x0: &a0 {inner}\n" + "".join(f"x{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 11))


def merges() -> str:
    return "x0: &a0 {a: 1}\n" + "".join(f"x{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 11))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (nines("[lol]") + "name: *a10\n", "line 6: aliases (*NAME) make over 100,000 values of it"),
        (merges(), "line 6: aliases"),
        ("name: &a [*a]\n", "an alias stands inside of what it stands for"),
        ('name: "\\ud83d"\n', "line 1: half a character"),
        ("seed: 0x" + "f" * 20_000 + "\n", "line 1: a whole number of hundreds of digits"),
        ("seed: " + "9" * 5_000 + "\n", "Exceeds the limit"),
        ("name: [" + "a," * 3_000 + "a]\n", "name: Input should be a valid string (it is ['a', 'a',"),
        ("name: " + "[" * 3_000 + "]" * 3_000 + "\n", "nested too deeply"),
        ("name: !!python/object/apply:os.system [ls]\n", "could not determine a constructor for the tag"),
        ("name: !" + "x" * 10_000 + " t\n", "could not determine a constructor for the tag"),
        ("!!set {name, steps}\n", "a recipe is a mapping"),
        ("- name\n", "a recipe is a mapping"),
        ("5\n", "a recipe is a mapping"),
    ],
)
def test_yaml_that_cannot_be_a_recipe_is_one_short_line(tmp_path: Path, text: str, said: str) -> None:
    if said.startswith(("name:", "nested")):
        text += RECIPE.removeprefix("name: t\n")
    begun = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        load(put(tmp_path, "recipe.yaml", text.encode()))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800 and time.monotonic() - begun < 20


def test_aliases_and_characters_written_as_json_does_are_read(tmp_path: Path) -> None:
    text = (
        RECIPE.replace("name: t", 'name: t\ndescription: "\\ud83d\\ude00"')
        .replace("rows.jsonl", "&rows rows.jsonl")
        .replace("base}}", "base}, b: {sft: *rows, model: a}}")
    )
    recipe = load(put(tmp_path, "recipe.yaml", text.encode()), ["steps.a.sft=x.jsonl"])
    assert recipe.description == "😀" and recipe.steps["b"].sft == "rows.jsonl"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RECIPE.replace("name:", "nmae:"), "nmae: unknown key (did you mean 'name'"),
        (RECIPE.replace("steps:", "stpes:"), "no steps (did you mean 'steps' for 'stpes'?)"),
        (RECIPE.replace("model: base}", "modle: base}"), "steps.a: modle: unknown key (did you mean 'model'"),
        (RECIPE.replace("{model: m}", "{modell: m}"), "models.base.modell: unknown key (did you mean 'model'"),
        (
            RECIPE.replace("{model: m}", "{server: 'http://x', modell: m}"),
            "models.base.modell: unknown key (did you mean 'model'",
        ),
        (RECIPE.replace("sft: rows.jsonl", "sft: {dta: rows.jsonl}"), "sft.dta: unknown key (did you mean 'data'"),
        (
            RECIPE.replace("{model: m}", "{model: m, shape: {hiden: 4, layers: 1, heads: 1, mlp: 4, vocabulary: 9}}"),
            "shape.hiden: unknown key (did you mean 'hidden'",
        ),
        (RECIPE.replace("name: t\n", "zzz: t\n"), "name: missing; add it"),
    ],
)
def test_a_key_that_is_missing_because_it_is_misspelt_is_told_as_that(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(put(tmp_path, "recipe.yaml", text.encode()))
    assert said in str(caught.value)


def test_values_in_messages_are_cut_before_they_are_written_out() -> None:
    bomb: Any = ["lol"]
    for _ in range(12):
        bomb = [bomb] * 9
    for value in (bomb, {"a": bomb}, "x" * 10**6, 2**200_000, list(range(10**5)), {i: i for i in range(10**5)}):
        assert len(shown(value)) < 400
    assert (shown("a"), shown(None), shown([1, "b"]), shown(5), shown(1.5)) == ("'a'", "None", "[1, 'b']", "5", "1.5")
    assert named("a") == "a" and named(7) == "7" and len(named("x" * 10**6)) < 100
    assert fields_of({}) == "none" and len(fields_of({"x" * 1000 + str(i): 0 for i in range(100)})) < 800
