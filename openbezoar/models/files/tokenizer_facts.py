"""What a tokenizer's files say of its tokens, read as JSON: texts, ids, special tokens, the chat
template's marks. No tokenizer is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from openbezoar.models.files.stored import optional_json

# A token's text as a config writes it: plain, or with its stripping rules.
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
_OTHERS = re.compile(r"(^|_)(image|img|audio|video|vision|boi|eoi|boa|eoa)(_|$)")  # as in image_token, boi_token
_MARK = re.compile(r"<\|[\w.-]+\|>|</?[a-z]+(?:_[a-z]+)+>")  # <|im_end|>, <end_of_turn>


@dataclass(frozen=True)
class TokenizerFacts:
    """words: all texts with their ids; added: those beside the vocabulary proper; settings:
    tokenizer_config.json; template: the chat template's text, if any.
    """

    words: Mapping[str, int]
    added: Mapping[str, int]
    settings: Mapping[str, Any]
    template: str

    @cached_property
    def placeholders(self) -> Mapping[str, int]:
        """Added tokens that the settings name as places for pictures or sound."""
        extra = self.settings.get("extra_special_tokens")
        named = {**(extra if isinstance(extra, dict) else {}), **self.settings}
        texts = {text for key, value in named.items() if _OTHERS.search(key) and (text := _text(value)) is not None}
        return {text: number for text, number in self.added.items() if text in texts}

    def placeholders_from(self, rows: int) -> list[str]:
        """Those placeholders that a model with so many embeddings has none for."""
        return [text for text, number in self.placeholders.items() if number >= rows]

    def most(self) -> int | None:
        """The highest id that the tokenizer can give, placeholders apart; None where its files do not tell.

        A special token that no vocabulary has gets the next free id when the tokenizer is loaded.
        """
        numbers = [number for text, number in self.words.items() if text not in self.placeholders]
        if not numbers:
            return None
        new = {text for key in _NAMED if (text := _text(self.settings.get(key))) is not None and text not in self.words}
        return max(numbers) if not new else max(max(numbers), max(self.words.values()) + len(new))

    def marks_of_template(self) -> list[str]:
        """Texts in the template that look like special tokens, each once."""
        return list(dict.fromkeys(_MARK.findall(self.template)))


def _text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def read_tokenizer(folder: Path) -> TokenizerFacts:
    """The facts in a model folder's tokenizer files; without words where they hold none that can be read as JSON."""
    settings = {**optional_json(folder / "special_tokens_map.json"), **optional_json(folder / "tokenizer_config.json")}
    stored = optional_json(folder / "tokenizer.json")
    added = _pairs(
        (one.get("content"), one.get("id")) for one in stored.get("added_tokens") or () if isinstance(one, dict)
    )
    decoder = settings.get("added_tokens_decoder")
    for number, one in (decoder if isinstance(decoder, dict) else {}).items():
        added |= _pairs([(_text(one), int(number) if str(number).isdigit() else None)])
    added |= _pairs(optional_json(folder / "added_tokens.json").items())
    words = (
        _words(stored.get("model"))
        or _pairs(optional_json(folder / "vocab.json").items())
        or _lines(folder / "vocab.txt")
        or _pieces(folder)
    )
    file, template = folder / "chat_template.jinja", settings.get("chat_template")
    if file.is_file():
        template = file.read_text(encoding="utf-8", errors="replace")
    elif not isinstance(template, str):
        template = ""
    return TokenizerFacts({**words, **added} if words else {}, added, settings, template)


def _pairs(items: Any) -> dict[str, int]:
    return {text: number for text, number in items if isinstance(text, str) and isinstance(number, int)}


def _words(model: Any) -> dict[str, int]:
    """The vocabulary in a tokenizer.json: a mapping, or Unigram's list of [text, score]."""
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return _pairs(vocabulary.items())
    if isinstance(vocabulary, list):
        return _pairs((one[0], number) for number, one in enumerate(vocabulary) if isinstance(one, list) and one)
    return {}


def _lines(file: Path) -> dict[str, int]:
    """WordPiece's vocab.txt: a token a line."""
    if not file.is_file():
        return {}
    return {line: number for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines())}


def _pieces(folder: Path) -> dict[str, int]:
    """A SentencePiece model's pieces, where its library is installed."""
    file = next(
        (
            folder / name
            for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
            if (folder / name).is_file()
        ),
        None,
    )
    if file is None:
        return {}
    try:
        from sentencepiece import SentencePieceProcessor

        model = SentencePieceProcessor(model_file=str(file))
    except (ImportError, OSError, RuntimeError):  # told where the tokenizer is loaded
        return {}
    return {model.id_to_piece(number): number for number in range(model.get_piece_size())}
