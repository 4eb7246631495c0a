"""A release of a tiny random model: it loads, renders the trained prompt, generates, and its cards
say what was measured.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter
from openbezoar.models.references import Checkpoint, write_checkpoint
from openbezoar.progress import PlainProgress
from openbezoar.publishing.checksums import checked
from openbezoar.publishing.licences import Source, derive, for_use, normal, of_data_file
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.file import parse
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.tell_steps import Release
from openbezoar.rows.forms import to_example
from openbezoar.rows.records import Turn
from openbezoar.store.digests import file_digest
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.release import work as stage

TALKS = (
    (Turn("user", "Say hello."),),
    (Turn("system", "Be brief; don't \\ ramble."), Turn("user", "Say hello.\n\nTwice.")),
    (Turn("user", "One"), Turn("assistant", "Two"), Turn("user", "Three")),
)
LORA = {"r": 4, "alpha": 4, "dropout": 0.0, "targets": ["q_proj"]}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama and a byte-level tokenizer whose own answer has a key that generate() does not take."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Say hello. ### Instruction: ### Response: Below is an instruction"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def manifest(run: Path, name: str, verb: str, settings: dict[str, Any], inputs: list[str], **more: Any) -> None:
    folder = run / name
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "settings": {verb: None, **settings},
        "inputs": dict.fromkeys(inputs, "k"),
        "seed": 7,
        "models": more.pop("models", {}),
        "files": more.pop("data_files", {}),
    }
    whole = {
        "step": name,
        "verb": verb,
        "key": f"key-{name}",
        "parts": parts,
        "seconds": 1.0,
        "finished": "2026-01-02T03:04:05Z",
        "counts": {},
        "numbers": {},
        **more,
    }
    (folder / "manifest.json").write_text(json.dumps(whole))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


class Finished:
    """A run with everything up to the merge, its recipe, and a way to run the release step."""

    def __init__(self, root: Path, tiny: Path, prompt: PromptSpec, licence: str = "Apache-2.0") -> None:
        self.root, self.run, self.prompt = root, root / "runs" / "demo", prompt
        base = root / "base"
        base.mkdir()
        for file in tiny.iterdir():
            (base / file.name).write_bytes(file.read_bytes())
        (base / "source.json").write_text(json.dumps({"reference": "pypi:tiny", "licence": licence, "files": []}))
        (base / "LICENSE").write_text("terms of the base")
        (root / "seeds.jsonl").write_text('{"instruction": "x"}\n')
        (root / "README.md").write_text("## Licence\n\nApache License, Version 2.0\n")
        model = self.run / "DPO" / "model"
        model.mkdir(parents=True)
        for file in tiny.iterdir():
            (model / file.name).write_bytes(file.read_bytes())
        write_checkpoint(
            self.run / "DPO",
            Checkpoint("DPO", str(model), (), "none", "float32", prompt, None),
            self.run,
            published=self.run / "DPO",
        )
        self._manifests()
        self.recipe: Recipe = parse(
            {
                "name": "demo",
                "models": {
                    "base": "base",
                    "teacher": {"server": "http://x/v1", "model": "big-teacher", "licence": "mit"},
                },
                "steps": {"release": {"release": ["DPO"]}},
            },
            "here",
        )

    def _manifests(self) -> None:
        models = {"base": {"model": "org/tiny@v1"}, "teacher": {"model": "big-teacher", "server": "http://x/v1"}}
        row = {"id": "lamini-1", "scheme": "lamini", "instruction": "a", "response": "b", "finish": "stop"}
        jsonl(self.run / "lamini/rows.jsonl", [row, {**row, "id": "lamini-2"}, {**row, "id": "lamini-3"}])
        jsonl(self.run / "rules/rows.jsonl", [{**row, "status": "accept", "rating": None, "reason": "rules"}])
        jsonl(
            self.run / "rules/rejected.jsonl",
            [{**row, "id": "lamini-2", "rule": "echo"}, {**row, "id": "lamini-3", "rule": "echo"}],
        )
        jsonl(self.run / "kept/rows.jsonl", [{**row, "status": "accept", "rating": 8, "reason": "fine"}])
        files = {"seeds.jsonl": "aa"}
        manifest(
            self.run,
            "lamini",
            "generate",
            {"generate": "lamini", "teacher": "teacher", "rows": 3, "seeds": "seeds.jsonl"},
            [],
            models=models,
            data_files=files,
        )
        manifest(self.run, "rules", "filter", {"filter": "lamini"}, ["lamini"], counts={"echo": 2})
        manifest(self.run, "kept", "filter", {"filter": "rules", "judge": "teacher"}, ["rules"], models=models)
        numbers = {
            "rows": 9,
            "steps": 2,
            "heldout_rows": 3,
            "heldout_loss_before": 2.5,
            "heldout_loss_after": 1.25,
            "beta": 0.1,
            "first_loss": 0.6931,
        }
        settings = {"model": "base", "lora": LORA, "quantize": "nf4", "learning_rate": 1e-5}
        manifest(
            self.run,
            "dpo",
            "dpo",
            {**settings, "dpo": [{"data": "hub:org/pairs[train]"}], "heldout": "kept"},
            ["kept"],
            numbers=numbers,
            models=models,
        )
        manifest(
            self.run,
            "DPO",
            "merge",
            {"merge": "dpo"},
            ["dpo"],
            numbers={"onto": "dequantized", "kl": 1e-4, "rows": 3, "tokens": 50},
        )
        task = {
            "task": "boolq",
            "fewshot": 0,
            "n": 48,
            "metrics": {"acc": {"value": 0.5, "low": 0.4, "high": 0.6}},
            "main": "acc",
        }
        checkpoints = {name: {"tasks": {"passages": task}} for name in ("base", "DPO")}
        worse = {
            "a": "base",
            "b": "DPO",
            "task": "passages",
            "metric": "acc",
            "n": 48,
            "difference": -0.2,
            "low": -0.3,
            "high": -0.1,
        }
        manifest(self.run, "scores", "evaluate", {"evaluate": ["base", "DPO"]}, ["DPO"])
        (self.run / "scores/scores.json").write_text(json.dumps({"checkpoints": checkpoints, "differences": [worse]}))

    def release(self, **settings: Any) -> tuple[dict[str, Any], Path]:
        out = self.run / ".work" / "release"
        out.mkdir(parents=True, exist_ok=True)
        context = StepContext("release", self.recipe, self.root, RunFolder(self.run), out, 1, PlainProgress(quiet=True))
        return stage.run(Release(release=["DPO"], **settings), context), out


@pytest.fixture
def finished(tmp_path: Path, tiny: Path) -> Finished:
    return Finished(tmp_path, tiny, PromptSpec())


def load_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows as the hub's library reads them."""
    from datasets import load_dataset

    found = load_dataset(
        "parquet", data_files=str(folder / "train.parquet"), split="train", cache_dir=str(folder.parent / ".cache")
    )
    return [dict(row) for row in found]


def metadata(card: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return loaded


def test_the_release_renders_and_tokenises_exactly_the_trained_prompt(finished: Finished, tiny: Path) -> None:
    from transformers import AutoTokenizer

    _, out = finished.release()
    trained = Formatter(AutoTokenizer.from_pretrained(tiny), finished.prompt)
    released = AutoTokenizer.from_pretrained(out / "DPO")
    assert (out / "DPO/chat_template.jinja").read_text() == trained.jinja
    for talk in TALKS:
        messages = [turn.as_dict() for turn in talk]
        assert released.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        ) == trained.prompt_text(talk)
        assert released.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ] == trained.prompt_ids(talk)
    assert "Below is an instruction" in trained.prompt_text(TALKS[0]) and "Below is" not in trained.prompt_text(
        TALKS[1]
    )


def test_what_the_tokenizer_returns_goes_into_generate_unchanged(finished: Finished) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, out = finished.release()
    tokenizer = AutoTokenizer.from_pretrained(out / "DPO")
    model = AutoModelForCausalLM.from_pretrained(out / "DPO")
    for inputs in (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ),
        tokenizer("hi", return_tensors="pt"),
    ):
        assert set(inputs) == {"input_ids", "attention_mask"}
        assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    assert model.generation_config.eos_token_id in (tokenizer.eos_token_id, [tokenizer.eos_token_id])


def test_weights_are_the_merge_steps_bytes_with_their_hash(finished: Finished) -> None:
    numbers, out = finished.release()
    mine, theirs = out / "DPO/model.safetensors", finished.run / "DPO/model/model.safetensors"
    assert mine.read_bytes() == theirs.read_bytes() and mine.samefile(theirs)
    told = numbers["models"]["DPO"]
    assert (
        told["sha256"] == {"model.safetensors": file_digest(theirs)}
        and told["bytes"] == theirs.stat().st_size
        and told["path"] == "release/DPO"
    )
    assert file_digest(theirs) in (out / "DPO/README.md").read_text()


def test_weights_are_copied_where_links_cannot_be_made(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("other device")

    monkeypatch.setattr(os, "link", refuse)
    _, out = finished.release()
    assert not (out / "DPO/model.safetensors").samefile(finished.run / "DPO/model/model.safetensors")


def test_the_model_card_has_metadata_scores_and_measured_faults(finished: Finished) -> None:
    _, out = finished.release()
    card = (out / "DPO/README.md").read_text()
    told = metadata(card)
    assert told["license"] == "other" and "org/pairs" in card, (
        "a data set without a stated licence leaves the release's open"
    )
    assert (
        told["base_model"] == "org/tiny" and told["base_model_revision"] == "v1" and told["datasets"] == ["org/pairs"]
    )
    assert told["library_name"] == "transformers" and {"openbezoar", "dpo", "qlora"} <= set(told["tags"])
    assert "| DPO | 0.500 [0.400, 0.600] |" in card and "(n=48)" in card
    assert "Worse than base, outside noise: base → DPO, passages: acc: -0.200 [-0.300, -0.100] n=48." in card
    assert "2.500 → 1.250" in card and "big-teacher" in card and "echo: 2" in card
    assert str(finished.root) not in card


def test_pairs_that_a_model_was_trained_on_are_told_of_and_what_they_came_from_is_released(finished: Finished) -> None:
    plain, _ = finished.release()
    jsonl(finished.run / "own/rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    manifest(finished.run, "own", "pairs", {"pairs": "kept", "from": "base", "by": "base"}, ["kept"])
    dpo = json.loads((finished.run / "dpo/manifest.json").read_text())
    dpo["parts"]["inputs"] = {"own": "k"}
    (finished.run / "dpo/manifest.json").write_text(json.dumps(dpo))
    numbers, out = finished.release()
    assert numbers["data"].keys() == plain["data"].keys() and len(numbers["data"]) == 1
    card = (out / "DPO/README.md").read_text()
    assert "- Rows of step own are not released: " in card and "Rows of step kept" not in card


def test_a_card_tells_of_the_trainings_that_made_the_model_and_of_no_others(finished: Finished) -> None:
    """Of a sweep the one that was taken; a reward model that scored the pairs is named as a judge of data."""
    run, settings = finished.run, {"model": "base", "lora": LORA, "quantize": "none", "learning_rate": 1e-5}
    numbers = {"rows": 9, "steps": 2, "heldout_rows": 3, "heldout_loss_before": 2.5, "heldout_loss_after": 1.25}
    tried = ["tuned.r-4", "tuned.r-8"]
    for name in tried:
        manifest(run, name, "sft", {**settings, "sft": f"hub:org/{name}"}, [], numbers=numbers)
    chosen = {"chosen": tried[1], "by": "loss", "candidates": {name: {"after": 1.25} for name in tried}}
    manifest(run, "tuned", "choose", {"choose": tried}, tried, numbers=chosen)
    manifest(run, "rm", "reward", {**settings, "reward": "pairs.jsonl"}, [], numbers=numbers)
    manifest(run, "own", "pairs", {"pairs": "rows.jsonl", "from": "tuned", "by": "rm"}, ["tuned", "rm"])
    manifest(run, "dpo", "dpo", {**settings, "model": "tuned", "dpo": "own"}, ["tuned", "own"], numbers=numbers)
    _, out = finished.release()
    card = (out / "DPO/README.md").read_text()
    training = card.partition("## Training")[2].partition("## Merge")[0]
    assert "| tuned.r-8 (sft) |" in training and "| dpo (dpo) |" in training
    assert "tuned.r-4" not in card and "rm" not in training.replace("warm", "").replace("term", "")
    assert "| data | judge of own: rm |" in card and "| rm | reward | key-rm |" in card
    assert metadata(card)["datasets"] == ["org/tuned.r-8"] and "qlora" not in metadata(card)["tags"]


def test_licence_files_of_the_base_are_carried_on(finished: Finished) -> None:
    _, out = finished.release()
    assert (out / "DPO/LICENSE").read_text() == "terms of the base"
    assert "[LICENSE](LICENSE)" in (out / "DPO/README.md").read_text()


def test_gemmas_terms_are_carried_on_with_a_notice(tmp_path: Path, tiny: Path) -> None:
    run = Finished(tmp_path, tiny, PromptSpec(), licence="gemma")
    (tmp_path / "base/LICENSE").rename(tmp_path / "base/TERMS_OF_USE.txt")
    manifest(
        run.run,
        "dpo",
        "dpo",
        {"model": "base", "dpo": "kept", "lora": LORA},
        ["kept"],
        models={"base": {"model": "org/tiny"}},
    )
    _, out = run.release()
    assert metadata((out / "DPO/README.md").read_text())["license"] == "gemma"
    assert "ai.google.dev/gemma/terms" in (out / "DPO/NOTICE").read_text() and (out / "DPO/TERMS_OF_USE.txt").is_file()


def test_kept_rows_carry_the_verdicts_of_every_filter(finished: Finished) -> None:
    numbers, out = finished.release()
    (row,) = load_rows(out / "data/lamini")
    assert (row["rating"], row["reason"], row["rules_reason"], row["rules_status"]) == (8, "fine", "rules", "accept")
    assert (row["scheme"], row["teacher"], row["judge"]) == (
        "lamini",
        "big-teacher (behind a server)",
        "big-teacher (behind a server)",
    )
    assert (row["licence"], row["round"], row["parent"]) == ("mit", None, None)
    card = (out / "data/lamini/README.md").read_text()
    assert metadata(card)["license"] == "mit" and "seeds.jsonl | apache-2.0" in card
    assert numbers["data"]["lamini"]["rows"] == 1 and "| lamini | rules (filter) | 3 | 1 | 2 | 0 | echo: 2 |" in card


def test_the_data_card_tells_how_rows_were_cleaned_filtered_and_reviewed(finished: Finished) -> None:
    _, out = finished.release()
    card = (out / "data/lamini/README.md").read_text()
    assert "no person read them" in card and "kept: not compared with any benchmark." in card
    numbers = {
        "cleaned": {"markers": {"rows": 2, "examples": []}},
        "contamination": {"benchmark_rows": {"scores: arc": 9}, "not_compared": []},
        "rejected_by_rule": {"contaminated": 1},
        "reviewed": {"reject": 1},
    }
    settings = {
        "filter": "rules",
        "judge": "teacher",
        "mode": "text",
        "min_rating": 5.0,
        "rules": {"language": "en", "drop_echoes": True, "decontaminate_words": 13},
    }
    manifest(
        finished.run,
        "kept",
        "filter",
        settings,
        ["rules"],
        numbers=numbers,
        models={"teacher": {"model": "big-teacher", "server": "http://x/v1"}},
    )
    _, out = finished.release()
    card = (out / "data/lamini/README.md").read_text()
    assert (
        "- kept, texts cleaned: markers: 2." in card
        and "- kept, rules: language en, drop_echoes yes, decontaminate_words 13." in card
    )
    assert "- kept, judge: big-teacher (behind a server), by text; kept from a rating of 5.0 of 10." in card
    assert "- kept: compared with scores: arc: 9 rows by runs of 13 words; 1 row dropped." in card
    assert "- kept, decided by a person: reject: 1." in card and "a person read some of them" in card


def test_a_killed_release_can_be_made_again(finished: Finished) -> None:
    finished.release()
    numbers, out = finished.release()
    assert numbers["models"]["DPO"]["sha256"] == {"model.safetensors": file_digest(out / "DPO/model.safetensors")}


def test_a_model_that_never_learnt_to_stop_says_so(tmp_path: Path, tiny: Path) -> None:
    _, out = Finished(tmp_path, tiny, PromptSpec(append_eos=False)).release()
    card = (out / "DPO/README.md").read_text()
    assert "does not stop by itself" in card and "`### Instruction:`" in card


def test_a_system_message_added_to_a_models_own_template_is_released_with_it(tmp_path: Path, tiny: Path) -> None:
    from transformers import AutoTokenizer

    template = tmp_path / "plain.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt"
        " %}[assistant] {% endif %}"
    )
    system = "It's\nkind \\ {{ x }}"
    run = Finished(tmp_path, tiny, PromptSpec(template=str(template), system=system))
    _, out = run.release()
    rendered = AutoTokenizer.from_pretrained(out / "DPO").apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == f"[system] {system}\n[user] hi\n[assistant] "


@pytest.mark.parametrize(
    ("stated", "id_"),
    [
        ("CC BY-SA 3.0 (Databricks; parts from Wikipedia)", "cc-by-sa-3.0"),
        ("code Apache 2.0, data CC BY-NC 4.0", "cc-by-nc-4.0"),
        ("Apache License, Version 2.0", "apache-2.0"),
        ("MIT", "mit"),
        (None, "unknown"),
        ("see the website", "see the website"),
    ],
)
def test_a_licence_in_words_gets_the_hubs_id(stated: str | None, id_: str) -> None:
    assert normal(stated) == id_


@pytest.mark.parametrize(
    ("licences", "id_", "name"),
    [
        (["Apache-2.0", "Apache-2.0"], "apache-2.0", None),
        (["Apache-2.0", "CC BY-NC 4.0"], "cc-by-nc-4.0", None),
        (["Apache-2.0", None], "other", "unknown"),
        (["Apache-2.0", "see the website"], "other", "unknown"),
        (["gemma", "MIT"], "gemma", None),
        (["gemma", "CC BY-NC 4.0"], "other", "gemma-and-cc-by-nc-4.0"),
        (["MIT", "CC BY-SA 3.0"], "cc-by-sa-3.0", None),
        ([], "other", "unknown"),
    ],
)
def test_a_releases_licence_follows_from_its_sources(licences: list[str | None], id_: str, name: str | None) -> None:
    found = derive([Source("data", f"s{i}", licence) for i, licence in enumerate(licences)])
    assert (found.id, found.name) == (id_, name)


def test_the_readme_beside_a_data_file_states_its_licence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "| file | rows | licence |\n| --- | --- | --- |\n| `a.jsonl` | 3 | CC BY-NC 4.0 |\n| `sub/b.jsonl` | 3 |"
        " MIT |\n"
    )
    assert of_data_file(tmp_path / "a.jsonl") == "CC BY-NC 4.0"
    assert of_data_file(tmp_path / "sub" / "b.jsonl") == "MIT"
    assert of_data_file(tmp_path / "other.jsonl") is None


# ------------------------------------------------------------- numbers, use, checksums, GGUF

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def numbers_in(value: Any) -> Iterator[float]:
    """Every number in a manifest: values, and those inside its texts (keys, names and settings are text)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers_in(key)
            yield from numbers_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_in(inner)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int | float):
        yield float(value)
    else:
        yield from (float(text.replace(",", "")) for text in NUMBER.findall(str(value)))


def unexplained(card: str, manifests: Sequence[dict[str, Any]]) -> list[str]:
    """Numbers of a card that no manifest has, at the digits that the card shows.

    Structural and not looked up: the example's code and prompt, list and heading marks, digests and
    file names (no number stands by itself in them), '95 %', 'ln 2 = 0.6931' and 'are 0 by
    definition' in fixed sentences, '1 to 10' and 'of 10' of ratings and '0-shot' of columns, sizes
    in units (checked against bytes), shares of n as 'value * n' is a count.
    """
    body = re.sub(r"^---\n.*?\n---\n", "", card, flags=re.DOTALL)
    body = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    body = re.sub(r"\b[0-9a-f]{32,64}\b", "", body)
    for fixed in ("95 % interval", "ln 2 = 0.6931", "are 0 by definition", "1 to 10", "of 10.", "16-bit weights"):
        body = body.replace(fixed, "")
    body = re.sub(r"SHA-?256(SUMS)?|n-th", "", body)
    known = [n for m in manifests for n in numbers_in(m)]
    wrong = []
    for text in NUMBER.findall(body):
        digits = len(text.partition(".")[2]) if "e" not in text else 0
        value = float(text.replace(",", ""))
        units = (1.0, 1e3, 1e6, 1e9)  # bytes as kB, MB, GB
        if not any(
            f"{n / unit:.{digits}f}" == f"{value:.{digits}f}" or f"{n:.3g}" == text for unit in units for n in known
        ):
            wrong.append(text)
    return wrong


def manifests_of(run: Path, released: dict[str, Any]) -> list[dict[str, Any]]:
    return [*(json.loads(p.read_text()) for p in run.glob("*/manifest.json")), {"numbers": released}]


def test_every_number_on_a_card_is_in_a_manifest(finished: Finished) -> None:
    numbers, out = finished.release()
    manifests = manifests_of(finished.run, numbers)
    for card in out.rglob("README.md"):
        assert unexplained(card.read_text(), manifests) == [], card
    card = (out / "DPO/README.md").read_text()
    planted = card.replace("2.500 \u2192 1.250", "2.500 \u2192 1.249").replace("(n=48)", "(n=47)")
    assert unexplained(planted, manifests) == ["47", "1.249"]


def test_the_hubs_client_reads_the_scores_of_a_card(finished: Finished) -> None:
    from huggingface_hub import DatasetCard, ModelCard

    _, out = finished.release()
    data = ModelCard((out / "DPO/README.md").read_text(), ignore_metadata_errors=False).data
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value, result.metric_args) == (
        "passages",
        "acc",
        0.5,
        {"low": 0.4, "high": 0.6},
    )
    assert result.dataset_args == {"n": 48} and data.model_name == "DPO"
    rows = DatasetCard((out / "data/lamini/README.md").read_text(), ignore_metadata_errors=False).data
    assert (
        rows.size_categories == ["n<1K"]
        and rows.task_categories == ["text-generation"]
        and rows.pretty_name == "demo: lamini"
    )


def test_a_card_that_the_hubs_client_cannot_read_is_our_error_in_one_line() -> None:
    from openbezoar.errors import DataError
    from openbezoar.verbs.release.cards import check_card

    with pytest.raises(DataError, match="lacks license"):
        check_card("---\ntags: [x]\nlibrary_name: transformers\n---\n", "here", "model")
    with pytest.raises(DataError, match="cannot read"):
        check_card("---\nlicense: mit\nmodel-index: [{results: 3}]\n---\n", "here", "model")


def test_a_non_commercial_seed_makes_a_non_commercial_release_and_the_cards_say_so(tmp_path: Path, tiny: Path) -> None:
    run = Finished(tmp_path, tiny, PromptSpec())
    (tmp_path / "README.md").write_text("| file | licence |\n| --- | --- |\n| `seeds.jsonl` | CC BY-NC 4.0 |\n")
    manifest(
        run.run,
        "dpo",
        "dpo",
        {"model": "base", "dpo": "kept", "lora": LORA},
        ["kept"],
        models={"base": {"model": "org/tiny"}},
    )
    _, out = run.release()
    for card in ((out / "DPO/README.md").read_text(), (out / "data/lamini/README.md").read_text()):
        assert metadata(card)["license"] == "cc-by-nc-4.0"
        assert "- Not for commercial use: seeds.jsonl (cc-by-nc-4.0) forbids it" in card
    assert load_rows(out / "data/lamini")[0]["licence"] == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("licences", "said"),
    [
        (["MIT", "apache-2.0"], "also commercially"),
        (["MIT", "CC BY-SA 3.0"], "under the same licence"),
        (["gemma"], "The terms of s0 (gemma)"),
        (["MIT", None], "is open: no licence that is recognised is stated for s1"),
        ([], "is open"),
    ],
)
def test_what_licences_mean_for_use_is_said_in_words(licences: list[str | None], said: str) -> None:
    assert said in " ".join(for_use([Source("data", f"s{i}", licence) for i, licence in enumerate(licences)]))


def test_every_released_file_is_in_the_checksums_and_in_the_manifest(finished: Finished) -> None:
    numbers, out = finished.release()
    for about in (numbers["models"]["DPO"], numbers["data"]["lamini"]):
        folder = out / Path(about["path"]).relative_to("release")
        listed = {f.name: f.sha256 for f in checked(folder)}
        there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert set(listed) == there == {*about["files"], "SHA256SUMS"}
        assert all(
            about["files"][n] == {"bytes": (folder / n).stat().st_size, "sha256": d}
            for n, d in listed.items()
            if n in about["files"]
        )


def test_a_gguf_and_a_modelfile_with_the_trained_prompt_are_released(finished: Finished) -> None:
    numbers, out = finished.release()
    assert sorted(p.name for p in (out / "DPO/gguf").iterdir()) == ["DPO-Q8_0.gguf", "Modelfile"]
    text = (out / "DPO/gguf/Modelfile").read_text()
    assert "FROM ./DPO-Q8_0.gguf" in text and "### Instruction:" in text and 'PARAMETER stop "</s>"' in text
    card = (out / "DPO/README.md").read_text()
    assert (
        "`gguf/DPO-Q8_0.gguf`" in card
        and numbers["models"]["DPO"]["files"]["gguf/DPO-Q8_0.gguf"]["sha256"] in card
        and "gguf" in metadata(card)["tags"]
    )


def test_forms_of_gguf_are_chosen_in_the_recipe(finished: Finished) -> None:
    _, out = finished.release(gguf=["f16", "q8_0"])
    assert sorted(p.name for p in (out / "DPO/gguf").iterdir()) == ["DPO-F16.gguf", "DPO-Q8_0.gguf", "Modelfile"]
    assert "FROM ./DPO-Q8_0.gguf" in (out / "DPO/gguf/Modelfile").read_text()
    _, out = finished.release(gguf=[])
    assert not (out / "DPO/gguf").exists() and "llama.cpp" not in (out / "DPO/README.md").read_text()


def test_data_sets_are_written_as_messages_too_where_the_recipe_says_so(finished: Finished, tmp_path: Path) -> None:
    from datasets import load_dataset

    _, out = finished.release(gguf=[])
    plain = {path.name: path.read_bytes() for path in (out / "data/lamini").iterdir()}
    numbers, out = finished.release(gguf=[], forms=["plain", "messages"])
    folder = out / "data/lamini"
    assert (folder / "train.parquet").read_bytes() == plain["train.parquet"]
    card = (folder / "README.md").read_text()
    configs = {one["config_name"]: one["data_files"][0]["path"] for one in metadata(card)["configs"]}
    assert configs == {"default": "train.parquet", "messages": "messages.parquet"}
    assert 'load_dataset("ORG/NAME", "messages", split="train")' in card
    assert "messages.parquet" in numbers["data"]["lamini"]["files"]
    # as the hub's library finds it by the card
    read = list(load_dataset(str(folder), "messages", split="train", cache_dir=str(tmp_path / "cache")))
    rows = load_rows(folder)
    assert [to_example(row, "here") for row in read] == [to_example(row, "here") for row in rows]
    for row, kept in zip(read, rows, strict=True):
        assert row["id"] == kept["id"] and row["licence"] == kept["licence"] and row["teacher"] == kept["teacher"]
    _, out = finished.release(gguf=[], forms=["messages"])
    names = {path.name for path in (out / "data/lamini").iterdir()}
    assert names == {"messages.parquet", "README.md", "SHA256SUMS"}
    card = (out / "data/lamini/README.md").read_text()
    assert metadata(card)["configs"][0]["config_name"] == "default" and 'data_files="messages.parquet"' in card
    assert "`messages` (a system message" in card and "`instruction`" not in card.partition("## How many")[0]


def test_a_model_without_a_gguf_form_is_released_without_one_and_says_why(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finished.run / "DPO/model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_bias": True}))
    numbers, out = finished.release()
    assert "biases" in numbers["models"]["DPO"]["gguf_refused"] and not (out / "DPO/gguf").exists()
    assert (out / "DPO/model.safetensors").is_file() and "it has biases" in (out / "DPO/README.md").read_text()


def test_generation_stops_where_a_trained_answer_ends(tmp_path: Path, tiny: Path) -> None:
    template = tmp_path / "turns.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] + '<s>' }}\n{% endfor %}")
    _, out = Finished(tmp_path, tiny, PromptSpec(template=str(template))).release()
    assert json.loads((out / "DPO/generation_config.json").read_text())["eos_token_id"] == [0, 1]


def test_data_sets_of_all_schemes_share_their_columns_and_types(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    from openbezoar.publishing.data_sets import COLUMNS, write_parquet

    names = []
    for place, row in enumerate(
        (
            {"id": "a", "round": 2, "cleaned": ["markers"], "why": "\ud800"},
            {"id": "b", "rating": 7, "flag": True, "mixed": 1.5},
        )
    ):
        (tmp_path / str(place)).mkdir()
        write_parquet([row, {"id": "c"}], tmp_path / str(place))
        names.append(parquet.read_schema(tmp_path / str(place) / "train.parquet"))
    shared = [[(n, str(schema.field(n).type)) for n in COLUMNS] for schema in names]
    assert shared[0] == shared[1]
    first, second = (load_rows(tmp_path / str(place)) for place in range(2))
    assert (first[0]["round"], first[0]["cleaned"], first[0]["why"], first[1]["round"]) == (
        2,
        '["markers"]',
        "\\ud800",
        None,
    )
    assert (second[0]["rating"], second[0]["flag"], second[0]["mixed"]) == (7.0, True, 1.5)


def test_rows_may_bring_columns_of_our_names_with_other_things_in_them(tmp_path: Path) -> None:
    from openbezoar.publishing.data_sets import write_parquet

    write_parquet(
        [
            {"id": 1, "depth": "3 m", "rating": "good", "round": 1.5, "views": 2**70, "far": 2.0**80},
            {"id": 2, "depth": 3},
        ],
        tmp_path,
    )
    first, second = load_rows(tmp_path)
    assert [first[name] for name in ("id", "depth", "rating", "round", "views", "far")] == [
        "1",
        "3 m",
        "good",
        1.5,
        str(2**70),
        2.0**80,
    ]
    assert (second["depth"], second["rating"]) == ("3", None)
