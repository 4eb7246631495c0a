"""What works with each family of models: a tiny random model of its own class, with a chat template that behaves as
the family's, through opening, scoring, training, merging and GGUF.

``python tests/family_table.py [FAMILY ...]`` writes docs/families.json anew, then ``python -m scripts.pages`` its page.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from families import CHATML, DEEPSEEK_V3, GEMMA2, LLAMA3, MISTRAL, PHI3, QWEN3, SILENT
from released import tokenizer_of

FOUND = Path(__file__).parent.parent / "docs/families.json"
IM = ("<|im_start|>", "<|im_end|>")
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
GEMMA: dict[str, Any] = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 16}
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROWS = [{"instruction": f"Say the number {i}.", "response": f"The number is {i}, as you asked."} for i in range(24)]
YES = "yes"


@dataclass(frozen=True)
class Family:
    """type: transformers' word for it. tokenizer: of ``released``, as far as GGUF tells kinds apart. special: tokens of
    the template. end: closes an answer, and is the end of a text where the family's chat models have it so.
    """

    type: str
    template: str
    special: tuple[str, ...] = ()
    end: str = "</s>"
    tokenizer: str = "llama"
    more: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "Llama 3": Family("llama", LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "Qwen 2": Family("qwen2", CHATML, IM, IM[1], "qwen2"),
    "Qwen 2.5": Family("qwen2", CHATML, IM, IM[1], "qwen2", {"tie_word_embeddings": True}),
    "Qwen 3": Family("qwen3", QWEN3, IM, IM[1], "qwen3", {"head_dim": 128, "tie_word_embeddings": True}),
    "Gemma 2": Family("gemma2", GEMMA2, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "gemma2", GEMMA),
    "Gemma 3": Family(
        "gemma3_text",
        GEMMA2,
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        "gemma3",
        {**GEMMA, "num_hidden_layers": 7},
    ),
    "SmolLM 2": Family("llama", CHATML, IM, IM[1], more={"tie_word_embeddings": True}),
    "SmolLM 3": Family("smollm3", CHATML, IM, IM[1], more={"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
    "OLMo 2": Family("olmo2", SILENT),
    "Phi 3": Family(
        "phi3", PHI3, ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"), "<|endoftext|>"
    ),
    "Phi 4": Family("phi3", CHATML, IM, IM[1], more={"partial_rotary_factor": 0.75}),
    "Mistral": Family("mistral", MISTRAL, ("[INST]", "[/INST]"), more={"sliding_window": None}),
    "Granite": Family("granite", CHATML, IM, IM[1]),
    "LFM 2": Family("lfm2", CHATML, IM, IM[1], more={"layer_types": ["conv", "full_attention"]}),
    "GPT-NeoX": Family("gpt_neox", SILENT),
    "OPT": Family("opt", SILENT, more={"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "Mixtral (mixture of experts)": Family("mixtral", MISTRAL, ("[INST]", "[/INST]"), more=EXPERTS),
    "DeepSeek V3 (mixture of experts)": Family("deepseek_v3", DEEPSEEK_V3, ("<|User|>", "<|Assistant|>")),
    "Qwen 3 Next (hybrid)": Family(
        "qwen3_next", QWEN3, IM, IM[1], more={"layer_types": ["linear_attention", "full_attention"]}
    ),
}
SMALL: dict[str, dict[str, Any]] = {
    "qwen3_next": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "num_key_value_heads": 4,
    },
}
"""Sizes that only these have, which would be large by default."""


def save(family: Family, folder: Path) -> None:
    """A random model and a tokenizer in transformers' format."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    tokenizer = tokenizer_of(family.tokenizer, folder)
    if family.special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    tokenizer.eos_token = family.end
    tokenizer.chat_template = family.template
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["pad_token_id"] = tokenizer.pad_token_id
    sizes = {**SIZES, **SMALL.get(family.type, {}), **family.more}
    torch.manual_seed(5)
    config = AutoConfig.for_model(family.type, vocab_size=len(tokenizer) + 8, **ids, **sizes)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def found(family: Family, place: Path) -> dict[str, str]:
    """What became of it: 'yes' or the line that was said, for opening, passes (forest, plain), training, merging and
    GGUF; and what is learnt of the answer 'Yes.'.
    """
    import openbezoar as ob
    from openbezoar.errors import UserError
    from openbezoar.gguf.file import write_gguf

    save(family, place / "base")
    got: dict[str, str] = {}

    def line(error: Exception) -> str:
        text = str(error).replace(str(place), "").replace("/base", "MODEL").replace("\n", " ")
        return re.sub(r" \(\w+Error: [^()]*\)", "", text)  # what a library says differs between machines

    try:
        chat = ob.load(place / "base")
    except UserError as error:
        return {"loads": line(error)}
    got["loads"] = YES
    try:
        chat.logprobs("Is it?", ["Yes.", "Yes, it is.", "No."])  # the first call holds both ways against each other
        got["passes"] = "plain" if chat._local.scorer.plain else "forest"
    except UserError as error:
        return {**got, "passes": line(error)}
    formatter = chat._local.formatter
    from openbezoar.rows.records import Turn

    got["learnt"] = chat.tokenizer.decode(formatter.answer_ids([Turn("user", "Is it?")], "Yes."))
    chat.close()
    steps = {
        "tuned": {
            "sft": "rows.jsonl",
            "model": "base",
            "quantize": "none",
            "dtype": "float32",
            "batch": 4,
            "max_steps": 6,
            "learning_rate": 5e-3,
            "heldout_every": 6,
            "lora": {"r": 4, "alpha": 8, "targets": "all-linear"},
        },
        "merged": {"merge": "tuned", "onto": "original", "drift_rows": 2},
    }
    models = {"base": {"model": str(place / "base"), "dtype": "float32"}}
    recipe = {"name": "t", "seed": 1, "models": models, "prompt": {"template": "own"}, "steps": steps}
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (place / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    run = place / "runs/t"
    for name, step in (("trains", "tuned"), ("merges", "merged")):
        try:
            ob.run(place / "recipe.yaml", runs=place / "runs", to=step, quiet=True)
        except UserError as error:
            return {**got, name: line(error)}
        got[name] = YES
    numbers = ob.open_run(run).manifest("tuned")["numbers"]
    if not numbers["heldout_loss_after"] < numbers["heldout_loss_before"]:
        got["trains"] = "the held-out loss did not fall"
    scores = []
    for step in ("tuned", "merged"):
        chat = ob.load(run / step)
        scores.append(chat.logprobs("Say the number 3.", ["The number is 3.", "No."]))
        chat.close()
    if max(abs(a - b) for a, b in zip(*scores, strict=True)) > 0.05:
        got["merges"] = "the merged model answers otherwise"
    (place / "gguf").mkdir()
    try:
        about = {"name": "tiny", "license": "apache-2.0"}
        write_gguf(run / "merged/model", formatter, "f16", out=place / "gguf/f16.gguf", about=about)
        got["gguf"] = YES
    except UserError as error:
        got["gguf"] = line(error)
    return got


def table(names: tuple[str, ...] = tuple(FAMILIES)) -> dict[str, dict[str, str]]:
    """The results of these families."""
    made = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            made[name] = {"type": FAMILIES[name].type, **found(FAMILIES[name], Path(folder) / "x")}
    return made


if __name__ == "__main__":
    made = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.is_file() else {}
    made |= table(tuple(sys.argv[1:]) or tuple(FAMILIES))
    made = {name: made[name] for name in FAMILIES if name in made}
    FOUND.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
