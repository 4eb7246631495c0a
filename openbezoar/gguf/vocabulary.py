"""A tokenizer as a GGUF holds it, read from ``tokenizer.json``.

A GGUF has no normaliser or pre-tokenizer of its own, only the names of some that its readers
know. So the parts of ``tokenizer.json`` are compared with those; a tokenizer made of other
parts is refused with one line, because the file would give other ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import ModelError
from openbezoar.rows.records import Turn

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of the GGUF specification
SPACE = "\u2581"  # how SentencePiece writes a space

# What the named pre-tokenizers split by: https://github.com/ggml-org/llama.cpp, src/llama-vocab.cpp.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {LLAMA3: "llama-bpe", QWEN2: "qwen2"}


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer's fields of a GGUF."""

    model: str  # "gpt2": byte-level BPE; "llama": SentencePiece's BPE
    pre: str | None
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float] | None
    add_space_prefix: bool | None
    add_bos: bool
    ids: Mapping[str, int | None]  # of bos, eos, eot, unk, pad
    template: str

    def write(self, writer: Any) -> None:
        """Put the fields into a ``gguf.GGUFWriter``."""
        writer.add_tokenizer_model(self.model)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        for name, number in self.ids.items():
            if number is not None:
                getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(False)
        writer.add_chat_template(self.template)


def begins_with_bos(formatter: Formatter) -> bool:
    """Whether a trained prompt begins with the token that the tokenizer puts before a text by itself.

    A server adds that token, so it is left out of the template's text there.
    """
    return formatter.adds_bos and formatter.prompt_text((Turn("user", "x"),)).startswith(formatter.tokenizer.bos_token)


def read_vocabulary(folder: Path, rows: int, formatter: Formatter) -> Vocabulary:
    """The tokenizer in a released folder, for a model with ``rows`` embeddings.

    Raises ModelError if a GGUF cannot hold it.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError("no GGUF for this tokenizer: it has no tokenizer.json")
    stored = json.loads(file.read_text(encoding="utf-8"))
    model = stored["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"no GGUF for a tokenizer of type {model.get('type')}: expected BPE")
    byte_level, pre = _byte_level(stored)
    prefix = None if byte_level else _space_prefix(stored, begins_with_bos(formatter))
    merges = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
    tokens, types = _tokens(stored, rows, byte_level)
    if any(" " in part for pair in merges for part in pair):
        raise ModelError("no GGUF for this tokenizer: a merge has a space in it")
    tokenizer = formatter.tokenizer
    ends = [number for number in formatter.stop_ids() if number != tokenizer.eos_token_id]
    return Vocabulary(
        model="gpt2" if byte_level else "llama",
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[f"{a} {b}" for a, b in merges],
        scores=None if byte_level else _scores(tokens, merges),
        add_space_prefix=prefix,
        add_bos=begins_with_bos(formatter),
        ids={
            "bos": tokenizer.bos_token_id,
            "eos": tokenizer.eos_token_id,
            "eot": ends[0] if ends else None,
            "unk": tokenizer.unk_token_id,
            "pad": tokenizer.pad_token_id,
        },
        template=(folder / "chat_template.jinja").read_text(encoding="utf-8"),
    )


def _parts(block: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """A normaliser or pre-tokenizer as a list of its parts."""
    if not block:
        return []
    return list(block[inner]) if block["type"] == "Sequence" else [block]


def _byte_level(stored: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether a tokenizer is byte-level BPE, and the name of its pre-tokenizer."""
    parts = _parts(stored.get("pre_tokenizer"), "pretokenizers")
    if not parts or parts[-1]["type"] != "ByteLevel":
        return False, None
    *before, last = parts
    # NFC (Qwen) has no place in a GGUF; text that is composed already, as nearly all is, needs none.
    name = None
    odd = [p["type"] for p in _parts(stored.get("normalizer"), "normalizers") if p["type"] != "NFC"]
    if not odd and not last["add_prefix_space"]:
        if last["use_regex"] and not before:
            name = "gpt-2"
        if last["use_regex"] and len(before) == 1 and before[0] == {"type": "Digits", "individual_digits": True}:
            name = "smollm"
        if (
            not last["use_regex"]
            and len(before) == 1
            and before[0]["type"] == "Split"
            and before[0]["behavior"] == "Isolated"
        ):
            name = _SPLITS.get(before[0]["pattern"].get("Regex", ""))
    if name is not None:
        return True, name
    raise ModelError("no GGUF for this byte-level tokenizer: it splits text in a way that the format has no name for")


def _space_prefix(stored: Mapping[str, Any], after_bos: bool) -> bool:
    """Whether a reader has to put a space before a text.

    Readers put it after every special token too. A tokenizer with 'first' puts it at the very
    beginning only, where a prompt that opens with BOS has none.
    """
    if not stored["model"].get("byte_fallback"):
        raise ModelError("no GGUF for this tokenizer: neither byte-level nor SentencePiece's BPE with byte fallback")
    parts = _parts(stored.get("normalizer"), "normalizers")
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    pre = [p for p in _parts(stored.get("pre_tokenizer"), "pretokenizers") if p.get("pattern") != {"String": " "}]
    if not pre and parts == [{"type": "Prepend", "prepend": SPACE}, replaced]:
        return True
    if not pre and parts == [replaced]:
        return False
    if not parts and len(pre) == 1 and pre[0]["type"] == "Metaspace" and not pre[0].get("split", True):
        scheme = pre[0]["prepend_scheme"]
        if scheme != "first" or after_bos:
            return bool(scheme == "always")
    raise ModelError("no GGUF for this SentencePiece tokenizer: its way with spaces has no name in the format")


def _tokens(stored: Mapping[str, Any], rows: int, byte_level: bool) -> tuple[list[str], list[int]]:
    """Texts and types of all tokens by id; ids that only the embeddings have are marked as unused."""
    by_id = {number: text for text, number in stored["model"]["vocab"].items()}
    added = {token["id"]: token for token in stored["added_tokens"]}
    if odd := [t["content"] for t in added.values() if t["lstrip"] or t["rstrip"] or t["single_word"]]:
        raise ModelError(f"no GGUF for this tokenizer: the added token {odd[0]!r} takes the spaces beside it")
    if (most := max((*by_id, *added))) >= rows:
        raise ModelError(f"no GGUF: the tokenizer has an id {most}, the model {rows} embeddings only")
    unknown = stored["model"].get("unk_token")
    tokens, types = [], []
    for number in range(rows):
        text = added[number]["content"] if number in added else by_id.get(number)
        tokens.append(f"[PAD{number}]" if text is None else text)
        if text is None:
            types.append(UNUSED)
        elif not byte_level and text == unknown:
            types.append(UNKNOWN)
        elif number in added:
            types.append(CONTROL if added[number]["special"] else USER_DEFINED)
        elif not byte_level and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types.append(BYTE)
        else:
            types.append(NORMAL)
    return tokens, types


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Scores by which a SentencePiece reader joins what the merges join, in their order.

    Such a reader joins the neighbours whose joint text scores highest; so a text's score is
    minus the rank of the first merge that gives it.
    """
    rank: dict[str, int] = {}
    for number, (a, b) in enumerate(merges):
        rank.setdefault(a + b, number)
    return [-float(rank.get(token, len(merges))) for token in tokens]
