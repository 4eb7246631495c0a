"""Tiny released models of every architecture that has a GGUF form, with tokenizers of both kinds,
and texts that break tokenizers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import TEXT

from openbezoar.dialogue.prompt import Formatter
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.verbs.release.work import write_tokenizer

HOSTILE = (
    " ",
    "  two before, two after  ",
    "a  b   c    d     e\t\tf\n\n\ng \n h\r\n",
    "naïve café Ünïcødé 你好 世界 ไทย हिन्दी",
    "👩‍👩‍👧 🏳️‍🌈 end🙂",
    "0 12 345 6789 3.14159 1,000,000 ٣",
    "don't we'll I'VE ####\u00a0nbsp\u2003em\u200bzero",
    "### Instruction:\nSay <b>x</b> and [INST]\n",
    "a\u0301 combining, \ufeff mark, \u0000 nothing",
)
KINDS = ("llama", "llama-sentencepiece", "qwen2", "qwen3", "gemma2", "gemma3")


ROPES = {
    "llama-llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "llama-linear": {"rope_type": "linear", "factor": 4.0},
    "qwen2-yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "gemma3-linear": {"rope_type": "linear", "factor": 8.0},
}
"""Kinds with a scaled rotary embedding, which transformers does not read from a GGUF; lengths are
short, so that the scaling shows at once.
"""


def sentencepiece_bpe(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a SentencePiece BPE model with byte fallback, as OpenLLaMA's is."""
    import sentencepiece
    from transformers.tokenization_utils_base import generate_merges

    (folder / "text.txt").write_text("\n".join(line for text in TEXT for line in text.splitlines() if line) + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "spm"),
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    return vocab, [(a, b) for a, b in generate_merges(vocab, {piece: model.get_score(i) for piece, i in vocab.items()})]


def tokenizer_of(kind: str, folder: Path) -> Any:
    """A trained tokenizer of the sort that models of a kind have."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast
    from transformers.models.gemma.tokenization_gemma import GemmaTokenizer

    from openbezoar.gguf.vocabulary import QWEN2

    if kind == "llama-sentencepiece" or kind.startswith("gemma"):
        vocab, merges = sentencepiece_bpe(folder)
        class_ = GemmaTokenizer if kind.startswith("gemma") else LlamaTokenizer
        return class_(
            vocab=vocab,
            merges=merges,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            pad_token="</s>",
            mask_token=None,
            add_bos_token=True,
        )
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind.startswith("qwen"):
        parts = [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        raw.pre_tokenizer = pre_tokenizers.Sequence(parts)
    raw.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    raw.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def config_of(kind: str, tokenizer: Any) -> Any:
    """A two-layer model's config; gemma3 has seven layers, so that one of them attends to all."""
    from transformers import AutoConfig

    shape = {
        "vocab_size": len(tokenizer) + 8,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 7 if kind.startswith("gemma3") else 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    more: dict[str, dict[str, Any]] = {
        "qwen3": {"head_dim": 128},  # as every released Qwen 3 has; transformers reads no other from a GGUF
        "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 16},
        "gemma3": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 16},
    }
    rope = ROPES.get(kind)
    kind = kind if rope is None else kind.partition("-")[0]
    type_ = {"gemma3": "gemma3_text", "llama-sentencepiece": "llama"}.get(kind, kind)
    config = AutoConfig.for_model(
        type_, **shape, **more.get(kind, {}), tie_word_embeddings=kind.startswith("gemma") or kind == "qwen3"
    )
    if rope is not None:
        stated = config.rope_parameters
        inner = stated.get("full_attention", stated)
        inner.update(rope)
        config = type(config).from_dict(config.to_dict())
    return config


def released(kind: str, folder: Path, prompt: PromptSpec | None = None) -> Formatter:
    """A random model of a kind, saved and with its tokenizer as a release has it. Norms and biases are random too."""
    import torch
    from transformers import AutoModelForCausalLM

    base = folder / "base"
    base.mkdir(parents=True)
    tokenizer = tokenizer_of(kind, base)
    tokenizer.save_pretrained(base)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config_of(kind, tokenizer), dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(
                torch.randn_like(weight) * (0.2 if weight.ndim > 1 else 0.1)
                + (1.0 if "norm" in name and not kind.startswith("gemma") else 0.0)
            )
    model.to(torch.bfloat16).save_pretrained(base)
    model.to(torch.bfloat16).save_pretrained(folder)
    return write_tokenizer(Checkpoint(kind, str(base), (), "none", "bfloat16", prompt or PromptSpec()), folder)
