"""A release of a tiny random model: it loads, renders the trained prompt, generates, and its cards say what was measured."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from openbezoar.chat import Formatter
from openbezoar.context import StepContext
from openbezoar.models import Checkpoint, write_checkpoint
from openbezoar.progress import PlainProgress
from openbezoar.recipe import PromptSpec, Recipe, Release
from openbezoar.recipe_file import parse
from openbezoar.records import Turn, read_jsonl
from openbezoar.reporting.licences import Source, derive, normal, of_data_file
from openbezoar.runs import RunFolder, file_digest
from openbezoar.stages import release as stage

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
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["Say hello. ### Instruction: ### Response: Below is an instruction"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_input_names=["input_ids", "token_type_ids", "attention_mask"]
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=512, bos_token_id=0, eos_token_id=1
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
        write_checkpoint(self.run / "DPO", Checkpoint("DPO", str(model), (), "none", "float32", prompt, None), self.run, self.run / "DPO")
        self._manifests()
        self.recipe: Recipe = parse(
            {
                "name": "demo",
                "models": {"base": "base", "teacher": {"server": "http://x/v1", "model": "big-teacher", "licence": "mit"}},
                "steps": {"release": {"release": ["DPO"]}},
            },
            "here",
        )

    def _manifests(self) -> None:
        models = {"base": {"model": "org/tiny@v1"}, "teacher": {"model": "big-teacher", "server": "http://x/v1"}}
        row = {"id": "lamini-1", "instruction": "a", "response": "b", "finish": "stop"}
        jsonl(self.run / "lamini/rows.jsonl", [row, {**row, "id": "lamini-2"}, {**row, "id": "lamini-3"}])
        jsonl(self.run / "rules/rows.jsonl", [{**row, "status": "accept", "rating": None, "reason": "rules"}])
        jsonl(self.run / "rules/rejected.jsonl", [{**row, "id": "lamini-2", "rule": "echo"}, {**row, "id": "lamini-3", "rule": "echo"}])
        jsonl(self.run / "kept/rows.jsonl", [{**row, "status": "accept", "rating": 8, "reason": "fine"}])
        files = {"seeds.jsonl": "aa"}
        manifest(
            self.run, "lamini", "generate", {"generate": "lamini", "teacher": "teacher", "rows": 3, "seeds": "seeds.jsonl"}, [], models=models, data_files=files
        )
        manifest(self.run, "rules", "filter", {"filter": "lamini"}, ["lamini"], counts={"echo": 2})
        manifest(self.run, "kept", "filter", {"filter": "rules", "judge": "teacher"}, ["rules"], models=models)
        numbers = {"rows": 9, "steps": 2, "heldout_rows": 3, "heldout_loss_before": 2.5, "heldout_loss_after": 1.25, "beta": 0.1, "first_loss": 0.6931}
        settings = {"model": "base", "lora": LORA, "quantize": "nf4", "learning_rate": 1e-5}
        manifest(self.run, "dpo", "dpo", {**settings, "dpo": [{"data": "hub:org/pairs[train]"}], "heldout": "kept"}, ["kept"], numbers=numbers, models=models)
        manifest(self.run, "DPO", "merge", {"merge": "dpo"}, ["dpo"], numbers={"onto": "dequantized", "kl": 1e-4, "rows": 3, "tokens": 50})
        task = {"task": "boolq", "fewshot": 0, "n": 48, "metrics": {"acc": {"value": 0.5, "low": 0.4, "high": 0.6}}, "main": "acc"}
        checkpoints = {name: {"tasks": {"passages": task}} for name in ("base", "DPO")}
        worse = {"a": "base", "b": "DPO", "task": "passages", "metric": "acc", "n": 48, "difference": -0.2, "low": -0.3, "high": -0.1}
        manifest(self.run, "scores", "evaluate", {"evaluate": ["base", "DPO"]}, ["DPO"])
        (self.run / "scores/scores.json").write_text(json.dumps({"checkpoints": checkpoints, "differences": [worse]}))

    def release(self) -> tuple[dict[str, Any], Path]:
        out = self.run / ".work" / "release"
        out.mkdir(parents=True, exist_ok=True)
        context = StepContext("release", self.recipe, self.root, RunFolder(self.run), out, 1, PlainProgress(quiet=True))
        return stage.run(Release(release=["DPO"]), context), out


@pytest.fixture
def finished(tmp_path: Path, tiny: Path) -> Finished:
    return Finished(tmp_path, tiny, PromptSpec())


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
        assert released.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == trained.prompt_text(talk)
        assert released.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"] == trained.prompt_ids(talk)
    assert "Below is an instruction" in trained.prompt_text(TALKS[0]) and "Below is" not in trained.prompt_text(TALKS[1])


def test_what_the_tokenizer_returns_goes_into_generate_unchanged(finished: Finished) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, out = finished.release()
    tokenizer = AutoTokenizer.from_pretrained(out / "DPO")
    model = AutoModelForCausalLM.from_pretrained(out / "DPO")
    for inputs in (
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"),
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
    assert told["sha256"] == {"model.safetensors": file_digest(theirs)} and told["bytes"] == theirs.stat().st_size and told["path"] == "release/DPO"
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
    assert told["license"] == "other" and "org/pairs" in card, "a data set without a stated licence leaves the release's open"
    assert told["base_model"] == "org/tiny" and told["base_model_revision"] == "v1" and told["datasets"] == ["org/pairs"]
    assert told["library_name"] == "transformers" and {"openbezoar", "dpo", "qlora"} <= set(told["tags"])
    assert "| DPO | 0.500 [0.400, 0.600] |" in card and "(n=48)" in card
    assert "Worse than base, outside noise: base → DPO, passages: acc: -0.200 [-0.300, -0.100] n=48." in card
    assert "2.500 → 1.250" in card and "big-teacher" in card and "echo: 2" in card
    assert str(finished.root) not in card


def test_licence_files_of_the_base_are_carried_on(finished: Finished) -> None:
    _, out = finished.release()
    assert (out / "DPO/LICENSE").read_text() == "terms of the base"
    assert "[LICENSE](LICENSE)" in (out / "DPO/README.md").read_text()


def test_gemmas_terms_are_carried_on_with_a_notice(tmp_path: Path, tiny: Path) -> None:
    run = Finished(tmp_path, tiny, PromptSpec(), licence="gemma")
    (tmp_path / "base/LICENSE").rename(tmp_path / "base/TERMS_OF_USE.txt")
    manifest(run.run, "dpo", "dpo", {"model": "base", "dpo": "kept", "lora": LORA}, ["kept"], models={"base": {"model": "org/tiny"}})
    _, out = run.release()
    assert metadata((out / "DPO/README.md").read_text())["license"] == "gemma"
    assert "ai.google.dev/gemma/terms" in (out / "DPO/NOTICE").read_text() and (out / "DPO/TERMS_OF_USE.txt").is_file()


def test_kept_rows_carry_the_verdicts_of_every_filter(finished: Finished) -> None:
    numbers, out = finished.release()
    (row,) = read_jsonl(out / "data/lamini.jsonl")
    assert (row["rating"], row["reason"], row["rules_reason"], row["rules_status"]) == (8, "fine", "rules", "accept")
    card = (out / "data/README.md").read_text()
    assert metadata(card)["license"] == "mit" and "seeds.jsonl | apache-2.0" in card
    assert numbers["data"]["lamini.jsonl"]["rows"] == 1 and "| lamini | rules (filter) | 3 | 1 | 2 | 0 | echo: 2 |" in card


def test_the_data_card_tells_how_rows_were_cleaned_filtered_and_reviewed(finished: Finished) -> None:
    _, out = finished.release()
    card = (out / "data/README.md").read_text()
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
    manifest(finished.run, "kept", "filter", settings, ["rules"], numbers=numbers, models={"teacher": {"model": "big-teacher", "server": "http://x/v1"}})
    _, out = finished.release()
    card = (out / "data/README.md").read_text()
    assert "- kept, texts cleaned: markers: 2." in card and "- kept, rules: language en, drop_echoes yes, decontaminate_words 13." in card
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
    template.write_text("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}")
    system = "It's\nkind \\ {{ x }}"
    run = Finished(tmp_path, tiny, PromptSpec(template=str(template), system=system))
    _, out = run.release()
    rendered = AutoTokenizer.from_pretrained(out / "DPO").apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
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
    (tmp_path / "README.md").write_text("| file | rows | licence |\n| --- | --- | --- |\n| `a.jsonl` | 3 | CC BY-NC 4.0 |\n| `sub/b.jsonl` | 3 | MIT |\n")
    assert of_data_file(tmp_path / "a.jsonl") == "CC BY-NC 4.0"
    assert of_data_file(tmp_path / "sub" / "b.jsonl") == "MIT"
    assert of_data_file(tmp_path / "other.jsonl") is None
