"""KTO: the loss by hand, z0 over the whole batch however it is cut, and the kto step from rows to a report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST
from torch import Tensor

from openbezoar.cli.app import main
from openbezoar.engine import execution, graph
from openbezoar.errors import DataError, ModelError, RecipeError, RowError
from openbezoar.forest import Scorer, TokenPath, Tree
from openbezoar.models.load import load_for_training
from openbezoar.models.references import Checkpoint
from openbezoar.progress import PlainProgress
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.file import load
from openbezoar.recipe.train_steps import Kto, Lora
from openbezoar.rows.forms import to_answers
from openbezoar.training.encoded import liked_in, of_answers, pack, unpack
from openbezoar.training.loop import numbers
from openbezoar.training.losses import UnpairedScores, kto, reference_point
from openbezoar.training.objectives import same_pass_reference
from openbezoar.training.trees import TreeStore, UnpairedTree, tree_of
from openbezoar.training.unpaired import mismatched, unpaired_objective
from openbezoar.verbs.train.kto import imbalance

EVEN = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
SKEWED = {"beta": 0.3, "desirable_weight": 1.25, "undesirable_weight": 0.5}


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ------------------------------------------------------------------------------ by hand


def scores(policy: list[float], reference: list[float], liked: list[bool]) -> UnpairedScores:
    return UnpairedScores(
        torch.tensor(policy, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64), torch.tensor(liked)
    )


def test_liked_and_other_answers_have_the_values_of_the_equation() -> None:
    given = scores([-10, -14, -9], [-12, -13, -9], [True, False, True])  # log-ratios 2, -1, 0
    values = kto(given, 0.5, beta=0.3, desirable_weight=1.25, undesirable_weight=0.5).tolist()
    expected = [1.25 * (1 - s(0.3 * (2 - 0.5))), 0.5 * (1 - s(0.3 * (0.5 + 1))), 1.25 * (1 - s(0.3 * -0.5))]
    assert values == pytest.approx(expected, rel=1e-12)


def test_the_reference_point_is_a_mean_that_is_held_at_zero_and_carries_no_gradient() -> None:
    policy = torch.tensor([-3.0, -5.0], requires_grad=True)
    assert reference_point(policy, torch.tensor([-4.0, -5.5])) == pytest.approx(0.75)
    assert reference_point(policy, torch.tensor([-1.0, -5.5])) == 0.0
    assert reference_point(torch.zeros(0), torch.zeros(0)) == 0.0


@pytest.mark.parametrize("liked", [True, False])
def test_where_policy_equals_reference_the_loss_is_half_its_weight(liked: bool) -> None:
    (value,) = kto(scores([-7], [-7], [liked]), 0.0, **SKEWED).tolist()
    assert value == (0.625 if liked else 0.25)


# -------------------------------------------------------------------------- trees and rows


def answer(prompt: list[int], ids: list[int], liked: bool = True) -> UnpairedTree:
    return UnpairedTree.of((TokenPath.of(prompt, ids),), liked)


def test_each_prompt_meets_the_answer_before_it_and_none_of_its_own() -> None:
    batch = [answer([1, 2], [10, 11]), answer([3], [12]), answer([4, 5, 6], [13, 14])]
    assert mismatched(batch, 100) == [
        (TokenPath.of([1, 2], [13, 14]),),
        (TokenPath.of([3], [10, 11]),),
        (TokenPath.of([4, 5, 6], [12]),),
    ]
    both = [answer([1, 2], [10]), answer([1, 2], [11]), answer([3], [12, 13])]  # the first two are one pair's
    assert [path.ids for (path,) in mismatched(both, 100)] == [(1, 2, 12, 13), (1, 2, 12, 13), (3, 11)]
    assert [path.ids for (path,) in mismatched(batch, 3)] == [(1, 2, 13), (3, 10, 11), (4, 5, 6)]
    assert mismatched(both[:2], 100) == mismatched(batch[:1], 100) == []


def test_a_tree_on_disk_keeps_whether_its_answer_was_liked(tmp_path: Path) -> None:
    encoded = of_answers([1, 2], [[3, 4]])
    assert [liked_in(pack(encoded, liked)) for liked in (None, True, False)] == [None, True, False]
    assert all(unpack(pack(encoded, liked)) == unpack(pack(encoded)) for liked in (True, False))
    store = TreeStore(tmp_path)
    for liked in (False, None, True):
        store.append(pack(encoded, liked))
    assert [getattr(tree, "liked", None) for tree in store] == [False, None, True]
    assert [type(tree) for tree in store] == [UnpairedTree, tuple, UnpairedTree] and store[0] == tree_of(encoded)


def test_unpaired_rows_and_pairs_become_answers() -> None:
    (one,) = to_answers({"prompt": "Name a sea.", "completion": "The Baltic.", "label": False}, "row")
    assert (one.prompt[-1].content, one.answer, one.liked) == ("Name a sea.", "The Baltic.", False)
    pair = {"prompt": "Name a sea.", "chosen": "The Baltic.", "rejected": "No."}
    assert [(a.answer, a.liked) for a in to_answers(pair, "row")] == [("The Baltic.", True), ("No.", False)]
    with pytest.raises(RowError) as same:
        to_answers({**pair, "rejected": "The Baltic."}, "row")
    assert same.value.reason == "chosen equals rejected"
    with pytest.raises(DataError, match="label"):
        to_answers({"prompt": "Name a sea.", "completion": "The Baltic."}, "row")


# --------------------------------------------------------------------------- the objective


@pytest.fixture
def model(tiny: Path) -> Any:
    """The tiny model with an adapter that is not zero."""
    checkpoint = Checkpoint("base", str(tiny), (), "none", "float32", PromptSpec())
    lora = Lora(r=4, alpha=4, dropout=0.0)
    made = load_for_training(checkpoint, lora, "none", dtype="float32", continues=False, seed=1)
    generator = torch.Generator().manual_seed(3)
    for _, parameter in sorted((name, p) for name, p in made.named_parameters() if p.requires_grad):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return made.train()


def some_answers(seed: int = 2) -> list[Tree]:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(3, 400, (n,), generator=generator).tolist()

    lengths = ((9, 4), (3, 17), (12, 6), (5, 5), (7, 11), (20, 3))
    return [answer(ids(asked), ids(said), liked=place % 3 != 1) for place, (asked, said) in enumerate(lengths)]


def objective_on(model: Any, tokens: int, heldout: list[Tree] | None = None, **constants: float) -> Any:
    scorer = Scorer(model, tokens)
    return scorer, unpaired_objective(
        {**EVEN, **constants},
        scorer=scorer,
        heldout=heldout or [],
        reference=same_pass_reference(scorer),
        max_length=64,
    )


def passed(model: Any, batch: list[Tree], tokens: int, **constants: float) -> tuple[float, dict[str, float], Any, int]:
    """(loss, metrics, gradients, passes) of a batch in passes of so many tokens."""
    scorer, objective = objective_on(model, tokens, **constants)
    loss_of, total, metrics = objective.begin(batch), 0.0, dict[str, float]()
    groups = scorer.batches(batch)
    for group in groups:
        loss, told = loss_of([batch[i] for i in group], float(len(batch)))
        loss.backward()
        total += float(loss.detach())
        metrics = {name: metrics.get(name, 0.0) + value for name, value in numbers(told).items()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return total, metrics, gradients, len(groups)


def plainly(model: Any, paths: list[TokenPath]) -> Tensor:
    """Summed log-probabilities of answers, one forward pass of transformers each."""
    sums = []
    for path in paths:
        logs = model(torch.tensor([path.ids])).logits[0].float().log_softmax(-1)
        sums.append(sum(logs[i - 1, path.ids[i]] for i, asked in enumerate(path.scored) if asked))
    return torch.stack(sums)


def relative(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    gap = sum(float((ours[name] - theirs[name]).square().sum()) for name in theirs)
    return math.sqrt(gap / sum(float(g.square().sum()) for g in theirs.values()))


def test_loss_metrics_and_gradient_are_those_of_plain_passes(model: Any) -> None:
    batch = some_answers()
    loss, metrics, gradients, _ = passed(model, batch, 10_000, **SKEWED)
    paths, others = [tree[0] for tree in batch], [tree[0] for tree in mismatched(batch, 64)]
    liked = torch.tensor([tree.liked for tree in batch])  # type: ignore[attr-defined]
    with torch.no_grad():
        with model.disable_adapter():
            before, before_others = plainly(model, paths), plainly(model, others)
        point = float((plainly(model, others) - before_others).mean().clamp(min=0))
    policy = plainly(model, paths)
    gain = SKEWED["beta"] * (policy - before - point)
    expected = torch.where(liked, 1.25 * (1 - torch.sigmoid(gain)), 0.5 * (1 - torch.sigmoid(-gain))).mean()
    expected.backward()
    expected = expected.detach()
    theirs = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    assert loss == pytest.approx(float(expected), rel=1e-4)
    assert metrics["kl"] == pytest.approx(point, rel=1e-4, abs=1e-5)
    rewards = (SKEWED["beta"] * (policy - before)).detach()
    assert metrics["rewards/chosen"] == pytest.approx(float(rewards[liked].mean()), rel=1e-4, abs=1e-5)
    assert metrics["rewards/rejected"] == pytest.approx(float(rewards[~liked].mean()), rel=1e-4, abs=1e-5)
    assert metrics["logps/chosen"] == pytest.approx(float(policy[liked].mean()), rel=1e-5)
    assert metrics["rewards/margins"] == pytest.approx(metrics["rewards/chosen"] - metrics["rewards/rejected"])
    assert relative(gradients, theirs) <= 1e-4


def test_a_batch_in_many_passes_is_the_batch_in_one(model: Any) -> None:
    batch = some_answers()
    loss, metrics, gradients, one = passed(model, batch, 10_000, **SKEWED)
    cut_loss, cut_metrics, cut_gradients, many = passed(model, batch, 24, **SKEWED)
    assert one == 1 < 3 <= many
    assert metrics["kl"] > 0.01  # z0 is of some weight here
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    assert cut_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
    assert relative(cut_gradients, gradients) <= 1e-4


@pytest.mark.parametrize("liked", [True, False])
def test_a_batch_of_answers_of_one_kind_is_learnt_from(model: Any, liked: bool) -> None:
    batch: list[Tree] = [UnpairedTree.of(tree, liked) for tree in some_answers()]
    loss, metrics, gradients, _ = passed(model, batch, 48)
    assert 0 < loss < 1 and max(float(g.abs().max()) for g in gradients.values()) > 0
    there, missing = ("chosen", "rejected") if liked else ("rejected", "chosen")
    assert f"rewards/{there}" in metrics and f"rewards/{missing}" not in metrics
    assert "rewards/margins" not in metrics and metrics["liked"] == float(liked)


def test_z0_leaves_dropout_and_its_draws_alone(model: Any) -> None:
    _, objective = objective_on(model, 48)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    objective.begin(some_answers())
    assert torch.equal(torch.random.get_rng_state(), state) and model.training


def test_held_out_numbers_say_how_well_rewards_tell_liked_answers(model: Any) -> None:
    held = some_answers(4)
    scorer, objective = objective_on(model, 48, held, beta=0.5)
    numbers = objective.heldout()
    ratios = [float(path[0].sum()) for path in scorer.logprobs(held)]
    with model.disable_adapter():
        ratios = [r - float(path[0].sum()) for r, path in zip(ratios, scorer.logprobs(held), strict=True)]
    good = [0.5 * r for r, tree in zip(ratios, held, strict=True) if tree.liked]  # type: ignore[attr-defined]
    bad = [0.5 * r for r, tree in zip(ratios, held, strict=True) if not tree.liked]  # type: ignore[attr-defined]
    assert numbers["reward_liked"] == pytest.approx(sum(good) / len(good), abs=1e-4)
    assert numbers["reward_disliked"] == pytest.approx(sum(bad) / len(bad), abs=1e-4)
    assert numbers["margin"] == pytest.approx(numbers["reward_liked"] - numbers["reward_disliked"])
    assert sum(numbers["rows"]["loss"]) / len(held) == pytest.approx(numbers["loss"], abs=1e-6)
    assert numbers["auc"] == pytest.approx(sum(g > b for g in good for b in bad) / (len(good) * len(bad)))
    _, unadapted = objective_on(model, 48, held)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    unmoved = unadapted.heldout()
    assert unmoved.pop("rows") == {"loss": [0.5] * len(held)}
    assert unmoved == {
        "loss": 0.5, "kl": 0.0, "reward_liked": 0.0, "reward_disliked": 0.0, "margin": 0.0, "auc": 0.5
    }  # fmt: skip
    _, of_one_kind = objective_on(model, 48, [tree for tree in held if tree.liked])  # type: ignore[attr-defined]
    assert set(of_one_kind.heldout()) == {"loss", "kl", "reward_liked", "rows"}


def test_a_first_loss_that_policy_equal_to_reference_cannot_have_is_refused(model: Any) -> None:
    _, objective = objective_on(model, 48, **SKEWED)
    objective.check_first({"loss": 0.5 * 0.25 + 0.5 * 0.625, "liked": 0.5})
    with pytest.raises(ModelError, match=r"it must be 0\.437500"):
        objective.check_first({"loss": 0.5, "liked": 0.5})


# ---------------------------------------------------------------------------------- the step


def test_of_labels_that_take_turns_both_are_held_out(tiny: Path, tmp_path: Path) -> None:
    from openbezoar.dialogue.prompt import Formatter
    from openbezoar.models.load import load_tokenizer
    from openbezoar.rows.records import Counts
    from openbezoar.training.data import Renderer, split_trees

    rows = [
        (f"row {i}", {"prompt": f"Say {i // 2}.", "completion": f"It is {i}.", "label": i % 2 == 0}) for i in range(80)
    ]
    renderer = Renderer(Formatter(load_tokenizer(tiny), PromptSpec(system="")), 200, "drop", Counts())
    step = Kto(kto="rows", model="base", heldout_every=10, heldout_rows=6)
    trained, held = split_trees(step, rows, to_answers, renderer, what="answer", folder=tmp_path)
    assert [tree.liked for tree in held].count(True) == 3 and len(held) == 6  # type: ignore[attr-defined]
    assert len(trained) == 74


STEP = {"model": "base", "quantize": "none", "heldout_every": 5, **FAST}


def labelled(folder: Path, liked: int = 17, disliked: int = 7) -> None:
    """Rows of which the liked ones all answer alike, and so the others."""
    rows = [
        {
            "prompt": f"Say {i}.",
            "completion": f"It is {i}, gladly." if i < liked else f"No way {i}.",
            "label": i < liked,
        }
        for i in range(liked + disliked)
    ]
    mixed = [row for i in range(7) for row in rows[i::7]]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))


def run(path: Path, runs: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    recipe = load(path, overrides)
    execution.execute(graph.build(recipe, path, runs), PlainProgress())
    return dict(json.loads((runs / "t" / "k" / "manifest.json").read_text())["numbers"])


def test_a_kto_step_learns_from_labels_and_from_pairs(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learn = {"epochs": 2, "learning_rate": 5e-3, "lora": {"r": 4, "alpha": 4, "dropout": 0.0}, "warmup": 0.0}
    for data, n, liked, held in (("labels.jsonl", 20, 14, (4, 3)), ("pairs.jsonl", 32, 16, (8, 4))):
        path = write_recipe({"k": {"kto": data, **STEP, **learn, "tokens": 96}})
        labelled(tmp_path)
        numbers = run(path, tmp_path / f"runs of {data}")
        step = tmp_path / f"runs of {data}/t/k"
        log = [json.loads(line) for line in (step / "metrics.jsonl").read_text().splitlines()]
        assert (numbers["rows"], numbers["liked"]) == (n, liked)
        assert (numbers["heldout_rows"], numbers["heldout_liked"]) == held
        assert log[0]["loss"] == pytest.approx(0.5, abs=1e-5) and log[0]["kl"] == 0.0
        assert numbers["heldout_loss_before"] == 0.5 > numbers["heldout_loss_after"]
        assert numbers["heldout_auc_before"] == 0.5 and numbers["heldout_auc_after"] > 0.9
        assert numbers["heldout_margin_before"] == 0.0 and numbers["heldout_margin_after"] > 0.02
        assert (step / "adapter/adapter_model.safetensors").is_file()
    said = capsys.readouterr().err
    assert "14 liked and 6 other answers, weighted 14 : 6; from 1:1 to 4:3 is advised" in said
    assert "16 liked" not in said


@pytest.mark.slow
def test_a_killed_kto_step_ends_as_one_that_was_not(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    path = write_recipe({"k": {"kto": "labels.jsonl", **STEP, "tokens": 96, "save_every": 1, "epochs": 2}})
    labelled(tmp_path)
    run(path, tmp_path / "whole")
    from openbezoar.training.resume import State

    original, saves = State.save, []

    def third(self: State, *arguments: Any) -> None:
        original(self, *arguments)
        saves.append(1)
        if len(saves) == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(State, "save", third)
        run(path, tmp_path / "killed")
    run(path, tmp_path / "killed")
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl", "heldout.jsonl"):
        assert (tmp_path / "whole/t/k" / name).read_bytes() == (tmp_path / "killed/t/k" / name).read_bytes(), name


def test_a_kto_step_is_planned_merged_scored_told_of_and_released(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(
        {
            "k": {"kto": "labels.jsonl", **STEP, "max_steps": 2, "desirable_weight": 0.5},
            "K": {"merge": "k", "drift_rows": 2},
            "scores": {"evaluate": ["base", "k"], "pairs": {"p": {"data": "pairs.jsonl", "limit": 4}}},
            "report": {"report": "all"},
            "release": {"release": ["K"], "gguf": []},
        }
    )
    labelled(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(path)])
    assert ended.value.code == 0
    planned = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("k "))
    assert planned.split()[1:4] == ["kto", "missing", "20"]
    numbers = run(path, tmp_path / "runs")
    folder = tmp_path / "runs/t"
    assert json.loads((folder / "K/manifest.json").read_text())["numbers"]["rows"] == 2
    assert json.loads((folder / "scores/scores.json").read_text())["checkpoints"]["k"]["pairs"]["p"]["n"] == 4
    page, card = (folder / "report/report.md").read_text(), next(folder.glob("release/*/README.md")).read_text()
    for text in (page, card):
        assert "AUC of rewards" in text and "| 14 : 6 | 0.5 : 1 | 0.100 |" in text
        assert f"{numbers['heldout_margin_before']:.3f} → {numbers['heldout_margin_after']:.3f}" in text
    assert "k: margin between liked and other" in (folder / "report/report.html").read_text()
    assert "- kto" in card


def test_a_merge_drifts_over_the_rows_that_were_held_out_where_labels_take_turns(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from openbezoar.context import StepContext
    from openbezoar.store.runs import RunFolder
    from openbezoar.training.data import HeldOut
    from openbezoar.verbs.merge.work import _drift_rows

    path = write_recipe({"k": {"kto": "turns.jsonl", **STEP}, "K": {"merge": "k", "drift_rows": 6}})
    labels = [i % 2 == 0 for i in range(40)]
    rows = [{"prompt": f"Say {i}.", "completion": f"It is {i}.", "label": liked} for i, liked in enumerate(labels)]
    (tmp_path / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load(path, [])
    context = StepContext("K", recipe, tmp_path, RunFolder(tmp_path / "run"), tmp_path, 1, PlainProgress(quiet=True))
    holds = HeldOut(STEP["heldout_every"], 64)
    held = [row["completion"] for row, liked in zip(rows, labels, strict=True) if holds.takes(liked)]
    assert [one.answer for one in _drift_rows(recipe.steps["K"], context)] == held[:6]  # type: ignore[arg-type]
    assert {int(answer.split()[-1][:-1]) % 2 for answer in held[:6]} == {0, 1}


@pytest.mark.parametrize(
    ("liked", "disliked", "weights", "message"),
    [
        (10, 10, {}, ""),
        (40, 30, {}, ""),
        (30, 10, {"undesirable_weight": 2.5}, ""),
        (
            30,
            10,
            {},
            "30 liked and 10 other answers, weighted 30 : 10; from 1:1 to 4:3 is advised: set desirable_weight from"
            " 0.333 to 0.444, or undesirable_weight from 2.25 to 3",
        ),
        (10, 30, {}, "set desirable_weight from 3 to 4, or undesirable_weight from 0.25 to 0.333"),
        (10, 0, {}, "all answers are of one kind; bring some of the other"),
        (0, 10, {}, "all answers are of one kind; bring some of the other"),
    ],
)
def test_answers_that_their_weights_do_not_balance_are_told_of(
    liked: int, disliked: int, weights: dict[str, float], message: str
) -> None:
    said = imbalance(Kto(kto="rows", model="base", **weights), liked, disliked)
    assert message in said and bool(said) == bool(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 1}, "batch"),
        ({"beta": 0}, "beta"),
        ({"desirable_weight": 0, "undesirable_weight": 0}, "are both 0, so nothing is learnt; raise one"),
        ({"loss": "sigmoid"}, "loss: unknown key"),
    ],
)
def test_settings_that_kto_has_not_are_refused_in_one_line(
    settings: dict[str, Any], message: str, write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe({"k": {"kto": "labels.jsonl", "model": "base", **settings}})
    with pytest.raises(RecipeError) as error:
        load(path)
    assert message in str(error.value) and "\n" not in str(error.value) and "steps.k" in str(error.value)
