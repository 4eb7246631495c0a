"""A model folder whose tokenizer is a bare SentencePiece model, as OpenLLaMA's is: the same ids as
SentencePiece, or an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
sentencepiece = pytest.importorskip("sentencepiece")
pytest.importorskip("google.protobuf")

from openbezoar.errors import ModelError
from openbezoar.models.load import (
    PROBE,
    load_tokenizer,
)

TEXT = [
    f"{word} {n} times is {n}{n}, said the {word} café \ufb01rst of all."
    for word in ("river", "stone", "bread", "tip", "response")
    for n in range(40)
]


def bare(folder: Path, **settings: Any) -> Any:
    """Write a folder with nothing but tokenizer.model and configs; the SentencePiece processor."""
    folder.mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        minloglevel=3,
        **settings,
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("squeezed", [False, True])
def test_a_bare_sentencepiece_model_gives_its_own_ids(rule: str, squeezed: bool, tmp_path: Path) -> None:
    own = bare(tmp_path, normalization_rule_name=rule, remove_extra_whitespaces=squeezed)
    tokenizer = load_tokenizer(tmp_path)
    for text in (
        PROBE,
        "\ufb01rst   river",
        "### Instruction:\nbread\tand stone\n\n### Response:\n",
        "\u2460 times 22",
    ):
        assert tokenizer(text, add_special_tokens=False).input_ids == own.encode(text), text
    assert tokenizer.pad_token is not None


def test_a_saved_copy_keeps_the_normalisation(tmp_path: Path) -> None:
    own = bare(tmp_path / "base", normalization_rule_name="nmt_nfkc")
    load_tokenizer(tmp_path / "base").save_pretrained(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy")(PROBE, add_special_tokens=False).input_ids == own.encode(PROBE)


def test_a_tokenizer_that_gives_other_ids_is_refused_with_its_remedy(tmp_path: Path) -> None:
    bare(tmp_path / "one")
    load_tokenizer(tmp_path / "one").save_pretrained(tmp_path / "two")
    bare(tmp_path / "two", normalization_rule_name="identity", character_coverage=0.98, add_dummy_prefix=False)
    with pytest.raises(ModelError, match=r"disagree from token \d+ .*remove tokenizer.json"):
        load_tokenizer(tmp_path / "two")
