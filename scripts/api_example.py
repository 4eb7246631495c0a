# A model so small that everything below takes seconds: two random layers, and a tokenizer of single bytes.
# Take any causal language model of transformers instead.

# %%
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
by_byte = Tokenizer(models.BPE({**letters, "<end>": len(letters)}, []))
by_byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
by_byte.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=by_byte, eos_token="<end>", pad_token="<end>")

torch.manual_seed(0)
size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **size))

# %% Fine-tune it
# Rows are mappings in any of the forms that a recipe's data has (docs/data.md); settings are the keys
# of a recipe's `sft` step. What comes back is PEFT's model, and the step's numbers.
import openbezoar as ob

rows = [{"instruction": f"Say the number {n}.", "response": f"The number is {n}."} for n in range(24)]
tuned = ob.sft(model, tokenizer, rows, epochs=2, batch=8, learning_rate=1e-2, lora={"r": 8}, out="adapter")
print(tuned.numbers["heldout_loss_before"], "->", tuned.numbers["heldout_loss_after"], tuned.counts)

# %% Prefer some answers to others
# The reference is the model as it is given, so the first adapter is merged before.
merged = tuned.model.merge_and_unload()
pairs = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "No."} for n in range(24)]
preferred = ob.dpo(merged, tokenizer, pairs, loss="sigmoid", beta=0.2, batch=8, learning_rate=1e-3)
print(preferred.numbers["heldout_accuracy_after"])

# %% Ask it
# `ob.load` gives the same for a step's folder, a release, `org/name` or a `.gguf` file.
chat = ob.ChatModel(preferred.model, tokenizer)
answers = chat.logprobs("Say 3.", ["It is 3.", "No."])
text = chat.chat([{"role": "user", "content": "Say 3."}], max_new_tokens=8, temperature=0)

# %% Plan and run a recipe
# A recipe is a file, or the name of a shipped one. A plan needs no torch and downloads nothing.
from pathlib import Path

demo = ob.plan("demo", set={"steps.dpo.beta": 0.2})
print(len(demo.todo), "steps,", demo.tokens, "tokens,", demo.memory_bytes, "bytes")

model = chat.model.merge_and_unload()
model.save_pretrained("model")
tokenizer.save_pretrained("model")
Path("rows.jsonl").write_text("\n".join(f'{{"instruction": "Say {n}.", "response": "{n}."}}' for n in range(24)))
Path("mine.yaml").write_text("""
name: mine
models: {base: {model: model, dtype: float32}}
steps:
  tuned: {sft: rows.jsonl, model: base, quantize: none, dtype: float32, max_steps: 2}
  scores: {evaluate: [base, tuned], tasks: [], losses: {rows: rows.jsonl}}
""")
run = ob.run("mine.yaml", quiet=True)
for row in run.scores():  # pandas.DataFrame(run.scores()) makes a table of them
    print(row.checkpoint, row.name, row.value, (row.low, row.high), row.n)

# %% Score trees of tokens, and train on them
# One pass over what answers share; the log-probabilities carry gradients (docs/how-to/forest-engine.md).
prompt, good, bad = (tokenizer(text).input_ids for text in ("Say 3.", "It is 3.", "No."))
scorer = ob.Scorer(model)
((chosen, rejected),) = scorer.score([(ob.TokenPath.of(prompt, good), ob.TokenPath.of(prompt, bad))])
scores = ob.losses.PairScores(
    chosen.sum()[None], rejected.sum()[None], torch.tensor([len(good)]), torch.tensor([len(bad)])
)
loss = ob.losses.simpo(scores, beta=2.0, simpo_gamma=1.0, label_smoothing=0.0)

# %% Say how sure a number is
before, after = [1, 0, 0, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 1, 0, 1]
difference, low, high = ob.stats.paired_difference(after, before, seed=0)
p = ob.stats.paired_p(after, before, seed=0)
