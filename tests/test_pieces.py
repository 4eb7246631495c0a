"""Ids of a text piece by piece: those that the tokenizer gives the whole text, whatever its kind."""

from __future__ import annotations

import pickle
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbezoar.dialogue.pieces import HELD, LONGEST, PieceEncoder

TEXT = ["the sea is\n\n  blue and wide", "a river runs to the sea", "<|im_start|>user the", "Héllo  wörld \n x"]


@cache
def tokenizer_of(kind: str, **flags: bool) -> Any:
    """A tokenizer with the control tokens of ChatML, beginning and end, and one that has another in it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=kind != "bytes", unk_token=None if kind == "bytes" else "<unk>"))
    alphabet = sorted({*"".join(TEXT), "▁", *"abcdefghijklmnopqrstuvwxyz<>|_/"})
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "legacy":  # as Llama 2's: a blank put before every piece
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True, **flags) for text in ("<|im_start|>", "<|im_end|>", "</s>!")]
    )
    tokenizer.add_tokens([AddedToken("sea", normalized=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


PARTS = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "</s>!", "<|im_", "start|>", "user\n", " the", "sea", " ", "\n\n"]
)
TEXTS = st.lists(PARTS | st.text("ab séx\n<|>", max_size=4), max_size=12).map("".join)


@pytest.mark.parametrize("kind", ["bytes", "legacy", "first", "always", "never"])
@given(texts=st.lists(TEXTS, max_size=3))
def test_ids_piece_by_piece_are_those_of_the_whole_text(kind: str, texts: list[str]) -> None:
    tokenizer = tokenizer_of(kind)
    pieces = PieceEncoder(tokenizer)
    for text in [*texts, "".join(texts), *texts]:
        assert pieces.ids(text) == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
@given(text=TEXTS)
def test_tokens_that_look_at_what_is_beside_them_are_right_too(flag: str, text: str) -> None:
    tokenizer = tokenizer_of("bytes", **{flag: True})
    assert PieceEncoder(tokenizer).ids(text) == tokenizer(text, add_special_tokens=False).input_ids


def test_a_piece_that_was_met_is_not_encoded_again_but_a_very_long_one_is_not_held() -> None:
    asked: list[str] = []

    class Listening:
        is_fast, added_tokens_decoder = True, tokenizer_of("bytes").added_tokens_decoder

        def __call__(self, text: str, **kwargs: Any) -> Any:
            asked.append(text)
            return tokenizer_of("bytes")(text, **kwargs)

    pieces = PieceEncoder(Listening())
    pieces.ids("<s>a</s>b")
    pieces.ids("<s>a</s>b</s>c")
    assert asked == ["<s>a", "</s>b", "</s>c"]
    long = "<s>" + "a " * LONGEST
    assert pieces.ids(long) == pieces.ids(long) and asked[3:] == [long, long]
    for i in range(HELD + 1):
        pieces.ids(f"<s>{i}")
    pieces.ids("<s>a")
    assert asked[-1] == "<s>a"


def test_a_tokenizer_goes_to_another_process_without_what_is_held() -> None:
    pieces = PieceEncoder(tokenizer_of("bytes"))
    ids = pieces.ids("<s>the sea</s>")
    assert pickle.loads(pickle.dumps(pieces)).ids("<s>the sea</s>") == ids
