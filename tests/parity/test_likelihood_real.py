"""Perplexities and IFD of a real model, in fp32, against plain passes of transformers over the same texts, with
the loss that transformers itself computes, as the published code of arXiv 2402.00530 does.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from real import model

from openbezoar.dialogue.prompt import Formatter
from openbezoar.forest import Scorer
from openbezoar.models.load import load_for_inference
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.forms import to_example
from openbezoar.verbs.filter.likelihood import AnswerLikelihood

pytestmark = pytest.mark.parity

ROWS = [
    {"instruction": "Name three rivers of Europe.", "response": "The Danube, the Rhine and the Oder."},
    {"instruction": "What is 2 + 2?", "response": "4, of course; 2 and 2 are four."},
    {"instruction": "Write a line about the sea.", "input": "In Polish.", "output": "Morze szumi i nie pyta, dokąd."},
    {"instruction": "Name a colour.", "response": "The answer has nothing to do with what was asked, I fear."},
]
PLAIN = "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"


@pytest.mark.parametrize("plain", [False, True], ids=["own template", "the paper's plain prompt"])
def test_ifd_is_the_ratio_of_transformers_perplexities(plain: bool, tmp_path: Path) -> None:
    (tmp_path / "plain.jinja").write_text(PLAIN)
    spec = PromptSpec(template=str(tmp_path / "plain.jinja") if plain else "own")
    network, tokenizer = load_for_inference(Checkpoint("small", model(), (), "none", "float32", spec))
    formatter = Formatter(tokenizer, spec)

    def loss(text: str, unscored: int) -> float:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        labels = ids.clone()
        labels[0, :unscored] = -100
        with torch.no_grad():
            return float(network(input_ids=ids, labels=labels).loss)

    examples = [to_example(row, "row") for row in ROWS]
    expected = []
    for example in examples:  # before the scorer, which puts its own attention into the model
        prompt = formatter.prompt_text(example.prompt)
        begin = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        expected.append((loss(prompt + example.answer, begin), loss(example.answer, 0)))
    for scored, (given, alone) in zip(
        AnswerLikelihood(formatter, Scorer(network), 2048).score(examples), expected, strict=True
    ):
        assert scored.perplexity == pytest.approx(math.exp(given), rel=1e-4)
        assert scored.perplexity_alone == pytest.approx(math.exp(alone), rel=1e-4)
        assert scored.ifd == pytest.approx(math.exp(given) / math.exp(alone), rel=1e-4)
