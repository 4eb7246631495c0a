"""A model folder of which a file is damaged: an answer as from the whole one, or one line; never a
traceback, an endless wait or all of the memory.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_looking import KINDS, told
from warm import Commands

from openbezoar.errors import ModelError
from openbezoar.models.files import stored

DAMAGES = int(os.environ.get("OPENBEZOAR_FAULTS", "1"))
# of address space; a whole model takes less
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))"
SECONDS = 60


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "model")
    return tmp_path / "model"


def opened(commands: Commands, model: Path, what: str) -> int:
    """The exit code of a command that reads the whole folder."""
    done = commands(
        "chat", str(model), "--prompt", "Hi", "--max-new-tokens", "3", "--seed", "1", first=LIMITED, seconds=SECONDS
    )
    told(done, what)
    return done.code


def header(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        stated, data = header(content)
        text = json.dumps(change(stated) or stated).encode()
        return struct.pack("<Q", len(text)) + text + data

    return damage


def first(stated: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = stated[next(name for name in stated if name != "__metadata__")]
    return found


def overlapping(stated: dict[str, Any]) -> None:
    one, other = [stated[name] for name in stated if "gate_proj" in name][:2]
    other["data_offsets"] = one["data_offsets"]


WEIGHTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "seven bytes": lambda content: content[:7],
    "a download that broke off in the header": lambda content: content[:200],
    "a download that broke off in the data": lambda content: content[: len(content) * 2 // 3],
    "bytes after the last tensor": lambda content: content + bytes(64),
    "a header of 2^60 bytes": lambda content: struct.pack("<Q", 1 << 60) + content[8:],
    "a header of 0 bytes": lambda content: struct.pack("<Q", 0) + content[8:],
    "a header that is no JSON": lambda content: content[:8] + b"x" + content[9:],
    "a header that is a list": lambda content: struct.pack("<Q", 2) + b"[]" + content[8:],
    "a header of 100,000 brackets": lambda content: struct.pack("<Q", 100_000) + b"[" * 100_000 + content[8:],
    "offsets beyond the end": with_header(lambda stated: first(stated).update(data_offsets=[1 << 40, 1 << 41])),
    "offsets backwards": with_header(lambda stated: first(stated).update(data_offsets=[64, 0])),
    "negative offsets": with_header(lambda stated: first(stated).update(data_offsets=[-64, 0])),
    "offsets that overlap": with_header(overlapping),
    "a shape that the bytes do not have": with_header(lambda stated: first(stated).update(shape=[3, 3])),
    "a shape of 2^62": with_header(lambda stated: first(stated).update(shape=[1 << 31, 1 << 31])),
    "a negative shape": with_header(lambda stated: first(stated).update(shape=[-1, 5])),
    "a shape of texts": with_header(lambda stated: first(stated).update(shape=["a"])),
    "an unknown dtype": with_header(lambda stated: first(stated).update(dtype="F99")),
    "no dtype": with_header(lambda stated: first(stated).pop("dtype") and None),
    "a pickle": lambda content: b"\x80\x04\x95" + content[3:],
    "a page of HTML": lambda content: b"<!DOCTYPE html><html>not found</html>",
    "a pointer of Git LFS": lambda content: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
    ),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_damaged_weights_are_one_line(kind: str, commands: Commands, model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(WEIGHTS[kind](file.read_bytes()))
    with pytest.raises(ModelError):  # as plan reads it, before anything is loaded
        stored.header(file)
    assert opened(commands, model, kind) == 2


NO_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "head_dim",
)
CONFIGS: dict[str, dict[str, Any]] = {
    **{f"{name} {value}": {name: value} for name in NO_SIZES for value in (0, -2, 1 << 40, 1.5, "8", [8])},
    "an unknown activation": {"hidden_act": "swoosh"},
    "an activation that is a number": {"hidden_act": 7},
    "a norm of text": {"rms_norm_eps": "small"},
    "positions 0": {"max_position_embeddings": 0},
    "positions of text": {"max_position_embeddings": "many"},
    "no architecture": {"architectures": 7},
    "an unknown kind": {"model_type": "nonesuch"},
    "a kind that is a list": {"model_type": ["llama"]},
    "code from the hub": {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "model_type": "evil"},
    "a rotary base 0": {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
    "a rotary base of text": {"rope_parameters": {"rope_type": "default", "rope_theta": "x"}},
    "an unknown dtype": {"dtype": "float7"},
}
CODES = {"positions 0", "no architecture", "a rotary base 0"}  # may be read all the same


@pytest.mark.faults
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_of_nonsense_is_one_line(kind: str, commands: Commands, model: Path) -> None:
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **CONFIGS[kind]}))
    code = opened(commands, model, kind)
    assert code == 2 or kind in CODES or CONFIGS[kind].get("head_dim") is not None


DEEP = "[" * 50_000 + "]" * 50_000
TEXTS = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "a text": '"x"',
    "null": "null",
    "deep": DEEP,
    "deep inside": json.dumps({"version": "1.0", "model": None}).replace("null", DEEP),
    "a number of 5,000 digits": '{"vocab_size": ' + "9" * 5000 + "}",
    "a lone surrogate": '{"model_max_length": "\\ud83d"}',
}


@pytest.mark.faults
@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_json_file_of_nonsense_is_one_line_or_does_not_matter(
    name: str, kind: str, commands: Commands, model: Path
) -> None:
    (model / name).write_text(TEXTS[kind])
    opened(commands, model, f"{name}: {kind}")


@pytest.mark.parametrize("number", range(DAMAGES))
def test_a_model_damaged_at_random_is_read_or_refused(number: int, commands: Commands, model: Path) -> None:
    draw = random.Random(number)
    target = draw.choice(sorted(file for file in model.rglob("*") if file.is_file()))
    kind = draw.choice(KINDS)
    target.write_bytes(kind(target.read_bytes(), draw))
    opened(commands, model, f"{getattr(kind, '__name__', kind)} of {target.name}")
