"""The verb ``reward``: what it trains, what it writes, what it says its model is worth, and where it stops."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import recipe_in

from openbezoar.errors import RunError
from openbezoar.forest import TokenPath, Tree
from openbezoar.judging.rewards import LocalRewards, is_reward_model
from openbezoar.models.references import Checkpoint, checkpoint_of_step
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.file import load
from openbezoar.recipe.measure_steps import Agreement
from openbezoar.recipe.train_steps import Reward
from openbezoar.rows.records import Turn
from openbezoar.stats.intervals import mean_interval, proportion_interval
from openbezoar.stats.pair_accuracy import pair_accuracy
from openbezoar.verbs.train.gate import gate
from openbezoar.verbs.train.reward import by_prompt

DOCS = Path(__file__).parent.parent / "docs" / "how-to"
SETTINGS: dict[str, Any] = {
    "reward": "pairs.jsonl",
    "model": "base",
    "epochs": 4,
    "batch": 4,
    "learning_rate": 5e-3,
    "heldout_every": 5,
    "quantize": "none",
    "dtype": "float32",
    "lora": {"r": 4, "alpha": 8, "dropout": 0},
}


def write_pairs(folder: Path) -> None:
    """Pairs of which the friendly answer is preferred, which is the longer one as often as not."""
    lines = []
    for i in range(40):
        more = [" I say so again.", ""] if i // 5 % 2 else ["", " I say so again."]
        answers = [f"Gladly, it is {i}.{more[0]}", f"Alas, it is {i}.{more[1]}"]
        lines.append({"prompt": f"Say {i % 6}.", "chosen": answers[0], "rejected": answers[1]})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Path, commands: Any) -> Path:
    """The run folder of a recipe whose reward model learns to tell friendly from unfriendly answers."""
    folder = tmp_path_factory.mktemp("reward")
    recipe = recipe_in(folder, tiny, {"rm": SETTINGS})
    write_pairs(folder)
    done = commands("run", str(recipe), "--runs", str(folder / "runs"))
    assert done.code == 0, done.err
    return folder / "runs" / "t"


def numbers(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "rm" / "manifest.json").read_text())["numbers"]
    return found


def test_it_learns_and_says_what_its_model_is_worth(trained: Path) -> None:
    n = numbers(trained)
    assert n["heldout_loss_after"] < n["heldout_loss_before"]
    assert (n["rows"], n["heldout_rows"]) == (32, 8)
    saved = n["saved"]
    assert saved["accuracy"]["value"] == 1.0 and saved["accuracy"]["n"] == 8
    assert saved["gain"][0] == pytest.approx(1.0 - saved["length"]["value"])
    assert saved["accuracy"]["low"] < proportion_interval(8, 8)[0]  # since some of the eight have one prompt
    assert n["drift"] < 1e-4  # merged and read again it is the model that was trained
    assert not (trained / "rm" / "adapter").exists()


def test_transformers_alone_gives_the_same_rewards(trained: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = trained / "rm" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    asked = [[{"role": "user", "content": f"Say {i}."}] for i in (3, 7)]
    answers = ["Gladly, it is 3.", "Alas, it is 3."]
    texts = [
        tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": a}], tokenize=False)
        for turns in asked
        for a in answers
    ]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0]
    rewards = LocalRewards("rm", checkpoint_of_step("rm", trained))
    ours = rewards.scores([(tuple(Turn("user", t["content"]) for t in turns), answers) for turns in asked])
    assert [r for pair in ours for r in pair] == pytest.approx(expected.tolist(), abs=1e-4)
    assert ours[0][0] > ours[0][1]
    rewards.close()


def test_a_conversation_longer_than_the_window_is_cut_at_its_beginning_and_counted(trained: Path) -> None:
    counted: dict[str, int] = {}
    rewards = LocalRewards("rm", checkpoint_of_step("rm", trained), count=lambda why, n: counted.update({why: n}))
    opened = rewards._open()
    ask, window = (Turn("user", "Two?"),), opened.window
    old = (Turn("user", "word " * window), Turn("assistant", "Well."))
    assert list(rewards._fitting(opened, (*old, *ask), "Gladly.")) == opened.formatter.finished_ids(ask, "Gladly.")
    ids = rewards._fitting(opened, (Turn("user", "word " * 3 * window),), "Gladly.")
    whole = opened.formatter.finished_ids((Turn("user", "word " * 3 * window),), "Gladly.")
    assert len(ids) == window and list(ids) == [whole[0], *whole[1 - window :]]  # the first token stays
    assert counted == {"conversations cut to the reward model's window": 1}
    short = rewards._fitting(opened, ask, "Gladly.")
    assert list(short) == opened.formatter.finished_ids(ask, "Gladly.")


def test_a_classifier_that_is_no_decoder_reads_its_tokenizer_s_frame(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *"#:.?", *["say", "two", "gladly", "alas", "response", "instruction"]]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=40)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(words), **shape, num_labels=1, max_position_embeddings=48)
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint("rm", str(tmp_path), (), "none", "float32", PromptSpec(template="openbezoar", system=""))
    rewards = LocalRewards("rm", checkpoint, tokens=30)  # a pass for each answer
    (found,) = rewards.scores([((Turn("user", "say two ."),), ("gladly .", "alas alas ."))])
    texts = [f"### Instruction:\nsay two .\n\n### Response:\n{answer}" for answer in ("gladly .", "alas alas .")]
    with torch.no_grad():
        expected = [float(model(**tokenizer(text, return_tensors="pt")).logits[0, 0]) for text in texts]
    assert abs(expected[0] - expected[1]) > 1e-3
    assert found == pytest.approx(expected, abs=1e-4)
    opened = rewards._open()
    assert opened.window == 40 and len(rewards._fitting(opened, (Turn("user", "say " * 60),), "two")) == 40


def test_a_model_that_is_no_better_than_the_length_stops_the_run(trained: Path, tmp_path: Path) -> None:
    step = Reward.model_validate(SETTINGS)
    manifest = json.loads((trained / "rm" / "manifest.json").read_text())

    def left(gain: list[float]) -> Path:
        manifest["numbers"]["saved"]["gain"] = gain
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        return tmp_path

    assert list(gate("rm", step, left([0.5, 0.1, 0.9]), 0)) == []
    (warning,) = gate("rm", step, left([0.25, -0.1, 0.6]), 0)
    assert warning.startswith("  rm: 8 pairs are too few to tell it from the length: right about 1.000")
    with pytest.raises(RunError, match="no better than taking answers by their length"):
        list(gate("rm", step, left([0.0, -0.1, 0.1]), 0))
    assert list(gate("rm", step.model_copy(update={"beats": "nothing"}), left([0.0, -0.1, 0.1]), 0))


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ({"a": {"sft": "rows.jsonl", "model": "rm"}}, "'rm' is a reward step and has no model"),
        (
            {"a": {"sft": "rows.jsonl", "model": "judge"}},
            "'judge' is a reward model, expected a model; it gives numbers",
        ),
    ],
)
def test_names_of_another_kind_are_told(
    tmp_path: Path, tiny: Path, commands: Any, steps: dict[str, Any], said: str
) -> None:
    models = {"base": {"model": str(tiny), "dtype": "float32"}, "judge": {"reward": str(tiny)}}
    recipe = recipe_in(tmp_path, tiny, {"rm": SETTINGS, **steps}, models=models)
    done = commands("run", str(recipe), "--runs", str(tmp_path / "runs"))
    assert done.code == 2 and said in done.err, done.err


def test_what_is_no_reward_model_is_told(tmp_path: Path, tiny: Path) -> None:
    from openbezoar.errors import ModelError
    from openbezoar.models.files.reward_files import check_reward_folder

    with pytest.raises(ModelError, match="is no reward model; expected a sequence classifier with one output"):
        check_reward_folder(tiny)
    config = json.loads((tiny / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="a classifier with 3 outputs; a reward model has one"):
        check_reward_folder(tmp_path)


def test_accuracy_is_told_beside_the_length_by_subset_and_by_how_sure_it_was() -> None:
    rewards = [(2.0, 0.0), (1.0, 0.0), (0.0, 3.0), (0.5, 0.5)]
    lengths = [(10, 5), (10, 10), (5, 10), (20, 19)]
    found = pair_accuracy(rewards, lengths, 0, ["a", "a", "b", ""])
    assert (found.accuracy.value, found.accuracy.n) == (0.5, 4)  # equal rewards are not right
    assert found.length.value == pytest.approx(2.5 / 4)
    assert found.gain[0] == pytest.approx(0.5 - 0.625)
    assert found.matched.n == 2 and found.matched.value == 0.5
    assert {name: part.value for name, part in found.subsets.items()} == {"a": 1.0, "b": 0.0}
    assert [one.right.n for one in found.bins] == [1, 1, 1, 1]
    assert found.bins[-1].said == pytest.approx(0.9526, abs=1e-4) and found.bins[-1].right.value == 0.0
    shorter = pair_accuracy([(1.0, 0.0)] * 4, [(1, 5)] * 4, 0)
    assert shorter.length.value == 1.0 and shorter.gain[0] == 0.0  # the rule takes the shorter one then


def test_pairs_of_one_prompt_are_no_more_evidence_than_the_prompt() -> None:
    """Ten prompts, each with ten pairs that go the same way: about the interval of ten, not of a hundred."""
    right = [group < 6 for group in range(10) for _ in range(10)]
    rewards = [(1.0, 0.0) if hit else (0.0, 1.0) for hit in right]
    lengths = [(5, 4) if group % 2 else (4, 5) for group in range(10) for _ in range(10)]
    names = ["a" if group < 5 else "b" for group in range(10) for _ in range(10)]
    groups = [f"prompt {place // 10}" for place in range(100)]
    found = pair_accuracy(rewards, lengths, 0, names, groups)
    alone = pair_accuracy(rewards, lengths, 0, names)
    assert (found.accuracy.value, found.accuracy.n) == (alone.accuracy.value, alone.accuracy.n) == (0.6, 100)
    _, low, high = mean_interval([float(group < 6) for group in range(10)], 0)
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((low, high), abs=0.11)
    assert found.gain[0] == pytest.approx(alone.gain[0])
    for wide, narrow in (
        (found.accuracy, alone.accuracy),
        (found.length, alone.length),
        (found.subsets["b"], alone.subsets["b"]),
        (found.bins[2].right, alone.bins[2].right),
    ):
        assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert found.gain[2] - found.gain[1] > 1.5 * (alone.gain[2] - alone.gain[1])
    assert found.subsets["a"].value == 1.0 and found.subsets["a"].low == pytest.approx(proportion_interval(5, 5)[0])


def test_pairs_are_of_one_prompt_where_what_their_answers_share_is() -> None:
    def pair(shared: tuple[int, ...], a: int, b: int) -> Tree:
        return tuple(TokenPath((*shared, own), (False,) * (len(shared) + 1)) for own in (a, b))

    first, again, other, alike = pair((1, 2), 5, 6), pair((1, 2), 7, 8), pair((1, 3), 5, 6), pair((1, 2, 9), 5, 6)
    found = by_prompt([alike, first, other, again])
    assert found[0] == found[1] == found[3] != found[2]


def test_the_page_s_diff_gives_own_data_s_recipe_a_reward_model_that_is_held_against_people(tmp_path: Path) -> None:
    """As ``git apply`` puts it into that page's first recipe."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```", (DOCS / "reward-model.md").read_text(), re.M | re.S)
    (recipe, *_) = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "own-data.md").read_text(), re.M | re.S)
    (tmp_path / "mine.yaml").write_text(recipe)
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=tmp_path, check=True)
    steps = load(tmp_path / "mine.yaml").steps
    assert isinstance(steps["rm"], Reward)
    assert isinstance(steps["said"], Agreement) and steps["said"].agreement == "rm"


def test_a_recipe_says_which_names_are_reward_models(trained: Path) -> None:
    recipe = load(trained.parent.parent / "recipe.yaml")
    assert is_reward_model(recipe, "rm") and not is_reward_model(recipe, "base")
