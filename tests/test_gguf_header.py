"""GGUF files from elsewhere: whole ones read as the gguf package reads them, damaged ones one line, at once."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import pytest

from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import ModelError
from openbezoar.gguf.file import write_gguf
from openbezoar.models.files import gguf as gguf_models
from openbezoar.models.files.gguf_header import read_header
from openbezoar.models.load import load_tokenizer
from openbezoar.models.references import fetch
from openbezoar.publishing.serving import open_served
from openbezoar.recipe.blocks import PromptSpec


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of the tiny model."""
    folder = tmp_path_factory.mktemp("gguf")
    shutil.copytree(tiny, folder / "model")
    write_gguf(
        folder / "model",
        Formatter(load_tokenizer(tiny), PromptSpec(template="own")),
        "f16",
        out=folder / "tiny.gguf",
        about={"name": "t", "license": "mit"},
    )
    return folder / "tiny.gguf"


def test_a_header_is_read_as_the_gguf_package_reads_it(whole: Path) -> None:
    from gguf import GGUFReader

    header, reader = read_header(whole), GGUFReader(whole)
    assert {name: list(info.shape) for name, info in header.tensors.items()} == {
        t.name: t.shape.tolist() for t in reader.tensors
    }
    assert {name: header.data + info.offset for name, info in header.tensors.items()} == {
        t.name: t.data_offset for t in reader.tensors
    }
    assert header.fields == {
        name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")
    }


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


def text(value: bytes) -> bytes:
    return number(len(value)) + value


def header(pairs: bytes = b"", n_pairs: int = 0, tensors: bytes = b"", n_tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + number(version, 4) + number(n_tensors) + number(n_pairs) + pairs + tensors


HUGE = 1 << 60
NESTED = number(9, 4) + (number(9, 4) + number(1)) * 100_000
DAMAGED = {
    "no magic": (b"GGML" + bytes(60), "not a GGUF file"),
    "empty": (b"", "not a GGUF file"),
    "ends at once": (b"GGUF\x03", "ends within its header"),
    "version 1": (header(version=1), "version 1"),
    "other byte order": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "other byte order"),
    "2^60 tensors": (header(n_tensors=HUGE) + bytes(99), "more than its"),
    "2^60 fields": (header(n_pairs=HUGE) + bytes(99), "more than its"),
    "a key of 2^60 bytes": (header(number(HUGE) + bytes(99), 1), "states 1,152,921,504,606,846,976 bytes"),
    "a list of 2^60 numbers": (header(text(b"k") + number(9, 4) + number(4, 4) + number(HUGE), 1), "a list of 1,152"),
    "a list of 2^60 texts": (header(text(b"k") + number(9, 4) + number(8, 4) + number(HUGE), 1), "a list of 1,152"),
    "nested lists": (header(text(b"k") + NESTED, 1), "arrays within arrays"),
    "an unknown type": (header(text(b"k") + number(77, 4) + bytes(40), 1), "unknown type 77"),
    "one key twice": (header((text(b"k") + number(0, 4) + b"\x01") * 2, 2), "twice"),
    "2^31 dimensions": (header(tensors=text(b"t") + number(1 << 31, 4) + bytes(99), n_tensors=1), "dimensions"),
    "no alignment": (header(text(b"general.alignment") + number(4, 4) + number(0, 4), 1), "no power of two"),
    "data beyond the end": (
        header(tensors=text(b"t") + number(1, 4) + number(4) + number(0, 4) + number(HUGE), n_tensors=1),
        "before its last tensor",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_header_is_one_line_before_anything_is_made_of_it(kind: str, tmp_path: Path) -> None:
    content, said = DAMAGED[kind]
    (tmp_path / "x.gguf").write_bytes(content)
    for read in (read_header, open_served, fetch):
        with pytest.raises(ModelError, match=said) as caught:
            read(tmp_path / "x.gguf" if read is read_header else str(tmp_path / "x.gguf"))  # type: ignore[operator]
        assert "\n" not in str(caught.value)


def patched(whole: Path, out: Path, key: bytes, value: bytes) -> Path:
    """A copy of which a field's value (of a fixed width, behind its key and type) is another."""
    content = bytearray(whole.read_bytes())
    place = content.index(text(key)) + 8 + len(key) + 4
    content[place : place + len(value)] = value
    out.write_bytes(content)
    return out


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (b"llama.block_count", 10**9, "states 1000000000 blocks and holds 2"),
        (b"llama.block_count", 0, "states 0 blocks"),
        (b"llama.feed_forward_length", 1 << 31, "describes a model of"),
        (b"llama.attention.head_count", 0, "it cannot be read|describes"),
        (b"llama.embedding_length", 1 << 20, "it cannot be read|describes"),
    ],
)
def test_sizes_that_the_tensors_do_not_have_are_refused(
    key: bytes, value: int, said: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBEZOAR_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match=said):
        fetch(str(patched(whole, tmp_path / "x.gguf", key, number(value, 4))))
    assert not list((tmp_path / "cache").glob("*/source.json"))


def test_a_cut_file_is_told_by_the_tensor_in_which_it_ends(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBEZOAR_CACHE", str(tmp_path / "cache"))
    content = whole.read_bytes()
    (tmp_path / "x.gguf").write_bytes(content[: len(content) - 100])
    with pytest.raises(ModelError, match="ends within tensor"):
        fetch(str(tmp_path / "x.gguf"))


def test_any_damage_is_a_model_or_one_line(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte changed anywhere in the header, 300 times."""
    content, file = whole.read_bytes(), tmp_path / "x.gguf"
    draw, end = random.Random(0), read_header(whole).data
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[draw.randrange(end)] = draw.randrange(256)
        file.write_bytes(damaged)
        try:
            gguf_models._check_sizes(file, read_header(file))
        except ModelError:
            refused += 1
    assert 0 < refused < 300
