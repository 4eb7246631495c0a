"""Reward models against TRL's own trainer, four families: loss, accuracy, margin, gradients, and the ids it reads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from families import CHATML
from real import relative
from test_reward_scorer import KINDS, PAD, classifier, path
from transformers import AutoTokenizer

from openbezoar.dialogue.prompt import Formatter
from openbezoar.forest import RewardScorer, Tree
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.forms import to_pair
from openbezoar.training.bradley_terry import reward_objective

pytestmark = pytest.mark.parity
PAIRS: list[Tree] = [
    (path(5, 6, 7, 8, 9, 10, 11), path(5, 6, 7, 8, 20)),
    (path(5, 6, 30, 31), path(5, 6, 30)),
    (path(40, 41, 42), path(43, 41, 42, 44)),
    (path(50, 51, 52), path(50, 51, 53, 54, 55)),
]


def trainer_of(model: Any, tokenizer: Any, rows: list[dict[str, Any]], folder: Path, center: float | None) -> Any:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(rows),
        center_rewards_coefficient=center,
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
    )
    return RewardTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    """The tiny model's, which pads with the models' padding token and renders conversations as ChatML."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD)
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize("center", [0.0, 0.01])
@pytest.mark.parametrize("family", KINDS)
def test_loss_and_gradients_are_trl_s(family: str, center: float, tokenizer: Any, tmp_path: Path) -> None:
    model = copy.deepcopy(classifier(family))
    rows = [{"chosen_ids": list(a.ids), "rejected_ids": list(b.ids)} for a, b in PAIRS]
    trainer = trainer_of(model, tokenizer, rows, tmp_path, center or None)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    told = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    peer = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    scorer = RewardScorer(trainer.model, trainer.model.score, tokens=16, pad=PAD)
    objective = reward_objective(scorer, PAIRS, margin=0.0, center=center)
    value, metrics = 0.0, dict[str, float]()
    groups = scorer.batches(PAIRS)
    assert len(groups) > 1
    for group in groups:
        part, numbers = objective.loss([PAIRS[i] for i in group], float(len(PAIRS)))
        part.backward()
        value += float(part.detach())
        metrics = {name: metrics.get(name, 0.0) + number for name, number in numbers.items()}
    ours = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    nothing = {name for name, gradient in peer.items() if float(gradient.norm()) < 1e-6}  # of NeoX a key's bias
    assert all(float(ours[name].norm()) < 1e-5 for name in nothing)
    whole, worst = relative(*({name: g for name, g in of.items() if name not in nothing} for of in (ours, peer)))
    print(f"{family}: loss {value - float(loss.detach()):.1e}, gradient {whole:.1e}, in a tensor {worst:.1e}")
    assert value == pytest.approx(float(loss.detach()), abs=1e-4)
    assert metrics["rewards/accuracies"] == pytest.approx(told["accuracy"])
    assert metrics["rewards/margins"] == pytest.approx(told["margin"], abs=1e-4)
    assert whole < 1e-4


def test_the_ids_that_are_read_are_trl_s(tokenizer: Any, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Say two."}, {"role": "assistant", "content": "Two."}]
    row = {
        "chosen": [*said, {"role": "user", "content": "And three?"}, {"role": "assistant", "content": "Three."}],
        "rejected": [*said, {"role": "user", "content": "And three?"}, {"role": "assistant", "content": "No."}],
    }
    trainer = trainer_of(copy.deepcopy(classifier("llama")), tokenizer, [row] * 2, tmp_path, None)
    theirs = trainer.train_dataset[0]
    pair = to_pair(row, "row")
    formatter = Formatter(tokenizer, PromptSpec(template="own"))
    assert formatter.finished_ids(pair.prompt, pair.chosen) == theirs["chosen_ids"]
    assert formatter.finished_ids(pair.prompt, pair.rejected) == theirs["rejected_ids"]
    assert torch.tensor(theirs["chosen_ids"]).numel() > 4
