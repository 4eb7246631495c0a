"""KTO against TRL's own trainer on the same answers: loss, rewards, the estimate of the divergence and
the adapter's gradients in fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from real import adapted, gradients, pairs, pairs_job, relative

from benchmarks import training
from benchmarks.training import Job
from openbezoar.forest import Scorer, TokenPath
from openbezoar.recipe.train_steps import Kto
from openbezoar.training.objectives import same_pass_reference
from openbezoar.training.trees import UnpairedTree
from openbezoar.training.unpaired import unpaired_objective

pytestmark = pytest.mark.parity
METRICS = ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins")


def answers() -> list[UnpairedTree]:
    """The chosen answers of the pairs, then four of the rejected ones: no prompt stands beside itself."""
    chosen = [UnpairedTree.of((tree[0],), True) for tree in pairs()]
    return [*chosen, *(UnpairedTree.of((tree[1],), False) for tree in pairs()[:4])]


def parted(path: TokenPath) -> tuple[list[int], list[int]]:
    start = list(path.scored).index(True)
    return list(path.ids[:start]), list(path.ids[start:])


def theirs(
    job: Job, trees: list[UnpairedTree], settings: Kto, folder: Path
) -> tuple[float, dict[str, float], dict[str, Any]]:
    """Loss, metrics and gradients of TRL's trainer before its first step, of all trees in one batch."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    class Ready(KTOTrainer):  # type: ignore[misc]
        """The trainer, given rows that are tokenised already, which it has no option for."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    parts = [parted(tree[0]) for tree in trees]
    said = [answer for _, answer in parts]
    rows = [
        {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": other, "label": tree.liked}
        for (prompt, answer), other, tree in zip(parts, [said[-1], *said[:-1]], trees, strict=True)
    ]
    config = KTOConfig(
        **training.trainer_options(job, len(trees), autocast=False, folder=str(folder)),
        learning_rate=settings.learning_rate,
        max_grad_norm=settings.clip,
        max_length=settings.max_length,
        beta=settings.beta,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
        disable_dropout=True,
    )
    trainer = Ready(
        model=training.load_peer(job),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=training.load_tokenizer(training.checkpoint(job.model).folder()),
        peft_config=training.lora_config(job),
    )
    training.fill_adapter(trainer.model)
    trainer.model.train()
    batch = {name: value.to(trainer.model.device) for name, value in trainer.data_collator(rows).items()}
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    trainer.log({})
    return float(loss.detach()), trainer.state.log_history[-1], gradients(trainer.model)


@pytest.mark.parametrize(
    ("weights", "max_length", "moved"),
    [({}, 256, True), ({"beta": 0.3, "desirable_weight": 1.25, "undesirable_weight": 0.5}, 120, False)],
    ids=["defaults", "weighted, a mismatched answer cut, z0 held at zero"],
)
def test_loss_rewards_and_gradients_are_trl_s(
    weights: dict[str, float], max_length: int, moved: bool, tmp_path: Path
) -> None:
    job, model = pairs_job(), adapted()
    trees = [tree for tree in answers() if len(tree[0].ids) <= max_length]
    settings = Kto(kto="answers", model="base", max_length=max_length, **weights)
    peer_loss, peer_metrics, peer_gradients = theirs(job, trees, settings, tmp_path)
    scorer = Scorer(model.train(), tokens=128)
    objective = unpaired_objective(
        settings.constants, scorer=scorer, heldout=[], reference=same_pass_reference(scorer), max_length=max_length
    )
    assert objective.begin is not None
    loss_of, groups = objective.begin(trees), scorer.batches(trees)
    value, metrics = 0.0, dict[str, float]()
    for group in groups:
        loss, numbers = loss_of([trees[i] for i in group], float(len(trees)))
        loss.backward()
        value += float(loss.detach())
        metrics = {name: metrics.get(name, 0.0) + number for name, number in numbers.items()}
    whole, worst = relative(gradients(model), peer_gradients)
    far = {name: abs(metrics[name] - peer_metrics[name]) for name in METRICS}
    gaps = f"rewards differ by {max(far.values()):.1e} at most, the gradient by {whole:.1e}, in a tensor by {worst:.1e}"
    print(f"\n{len(trees)} answers, {len(groups)} passes: loss {value:.6f} and TRL's {peer_loss:.6f}, {gaps}")
    assert len(groups) > 1 and (peer_metrics["kl"] > 0) == moved
    assert value == pytest.approx(peer_loss, rel=1e-4)
    for name in (*METRICS, "logps/chosen", "logps/rejected"):
        assert metrics[name] == pytest.approx(peer_metrics[name], rel=1e-4, abs=1e-4), name
    assert whole <= 1e-4 and worst <= 1e-3  # fp32 leaves some 1e-4 in a tensor whose gradient is small
