"""Preference training against TRL's own trainer on the same pairs: loss, rewards and the adapter's
gradients in fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from real import adapted, gradients, pairs, pairs_job, relative

from benchmarks import dpo, training
from benchmarks.training import Job
from openbezoar.forest import Scorer, Tree
from openbezoar.recipe.losses import LOSSES
from openbezoar.recipe.train_steps import Dpo
from openbezoar.training.objectives import preference_objective, same_pass_reference

pytestmark = pytest.mark.parity
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


def theirs(job: Job, trees: list[Tree], settings: Dpo, folder: Path) -> tuple[float, dict[str, float], dict[str, Any]]:
    """Loss, metrics and gradients of TRL's trainer before its first step."""
    trainer = dpo.trainer_of(job, trees, settings, str(folder))
    training.fill_adapter(trainer.model)
    trainer.model.train()
    batch = {
        name: value.to(trainer.model.device)
        for name, value in trainer.data_collator([dpo.row(tree) for tree in trees]).items()
    }
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    trainer.log({})
    return float(loss.detach()), trainer.state.log_history[-1], gradients(trainer.model)


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "ipo", "hinge"])
def test_loss_rewards_and_gradients_are_trl_s(loss: str, tmp_path: Path) -> None:
    job, trees, model = pairs_job(), pairs(), adapted()
    settings = job.settings(Dpo, dpo="pairs", loss=loss)
    peer_loss, peer_metrics, peer_gradients = theirs(job, trees, settings, tmp_path)
    scorer = Scorer(model.train())
    objective = preference_objective(
        LOSSES[loss], settings.constants, scorer=scorer, heldout=[], reference=same_pass_reference(scorer)
    )
    value, metrics = objective.loss(trees, float(len(trees)))
    value.backward()
    whole, worst = relative(gradients(model), peer_gradients)
    far = {name: abs(metrics[name] - peer_metrics[name]) for name in REWARDS}
    gaps = f"rewards differ by {max(far.values()):.1e} at most, the gradient by {whole:.1e}, in a tensor by {worst:.1e}"
    print(f"\n{loss}: loss {float(value.detach()):.6f} and TRL's {peer_loss:.6f}, {gaps}")
    assert float(value.detach()) == pytest.approx(peer_loss, abs=1e-4)
    assert max(far.values()) <= 1e-4 * max(1.0, settings.beta)  # beta times a sum's fp32 rounding
    assert whole <= 1e-4 and worst <= 1e-3  # fp32 leaves 8e-5 in a tensor whose gradient is small
    for name in ("logps/chosen", "logps/rejected"):
        assert metrics[name] == pytest.approx(peer_metrics[name], rel=1e-5)
