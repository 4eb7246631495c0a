"""``release``: merged weights, tokenizer with template, cards and the kept data, ready to publish.

Reads merge steps' ``model/`` and ``model.json``, and the manifests and scores of the run.
Writes NAME/ for each named merge step (safetensors, config, tokenizer, chat_template.jinja,
generation_config.json, the base's licence files, README.md) and data/ (SCHEME.jsonl,
README.md).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openbezoar.chat import Formatter
from openbezoar.context import StepContext
from openbezoar.errors import ModelError
from openbezoar.models import Checkpoint
from openbezoar.recipe import Release
from openbezoar.records import Turn, write_jsonl
from openbezoar.reporting.cards import DataFile, ModelFiles, check_card, data_card, model_card
from openbezoar.reporting.data_sections import scheme_of
from openbezoar.reporting.facts import RunFacts, StepFacts, read_facts
from openbezoar.reporting.licences import GEMMA_NOTICE, Source, derive, terms_in
from openbezoar.reporting.sources_of import sources_of
from openbezoar.runs import file_digest, write_text

DATA = "data"
INPUTS = ["input_ids", "attention_mask"]  # all that generate() takes from a tokenizer
PROBE = (Turn("user", "Name three uses of a brick."),)
PROBES = (
    PROBE,
    (Turn("system", "Answer in one word."), *PROBE),
    (*PROBE, Turn("assistant", "Building, paving, weighing down."), Turn("user", "And a fourth?")),
)


def run(step: Release, context: StepContext) -> dict[str, Any]:
    """Write a folder for each named merge step, and one for the data they were trained on."""
    facts = read_facts(context.run, context.steps or None)
    title = step.title or context.recipe.name
    models: dict[str, Any] = {}
    for name in step.release:
        models[name] = _release_model(name, title, facts, context)
    data = _release_data(step.release, title, facts, context)
    total = sum(m["bytes"] for m in models.values())
    rows = sum(d["rows"] for d in data.values())
    summary = f"{len(models)} model{'s' * (len(models) != 1)}, {total / 1e6:.0f} MB; {rows} rows of data"
    return {"models": models, "data": data, "summary": summary}


# -------------------------------------------------------------------------------- models


def _release_model(name: str, title: str, facts: RunFacts, context: StepContext) -> dict[str, Any]:
    out = _empty(context.out / name)
    checkpoint = context.checkpoint(name)
    formatter = write_tokenizer(checkpoint, out, context.recipe_folder)
    weights = _weights(checkpoint.folder(), out)
    _write_generation_config(checkpoint.folder(), out, formatter)
    sources = sources_of(facts, context, [name])
    licence = derive(sources)
    terms = _carry_terms(facts, name, out, context, sources)
    digests = {path.name: file_digest(path) for path in weights}
    size = sum(path.stat().st_size for path in weights)
    files = ModelFiles(name, digests, size, formatter.prompt_text(PROBE), formatter.stop, formatter.end_text, terms)
    card = model_card(facts, title, files, licence, sources)
    check_card(card, f"{name}/README.md", "model")
    write_text(out / "README.md", card)
    return {"path": f"{context.name}/{name}", "bytes": size, "sha256": digests, "licence": licence.id}


def _empty(folder: Path) -> Path:
    """A fresh folder; what a killed try left is taken away."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _weights(source: Path, out: Path) -> list[Path]:
    """Hard links to the weights where the file system allows, copies elsewhere; config and index as copies."""
    placed = []
    for file in sorted(source.glob("*.safetensors")):
        target = out / file.name
        try:
            os.link(file, target)
        except OSError:
            shutil.copyfile(file, target)
        placed.append(target)
    if not placed:
        raise ModelError(f"{source}: no *.safetensors to release; run the merge step again")
    for extra in ("config.json", "model.safetensors.index.json"):
        if (source / extra).is_file():
            shutil.copyfile(source / extra, out / extra)
    return placed


def write_tokenizer(checkpoint: Checkpoint, out: Path, recipe_folder: Path) -> Formatter:
    """Save the checkpoint's tokenizer with the trained prompt as its chat template, and hold the two against each other.

    Raises ModelError if what is saved does not render and tokenise as in training.
    """
    from transformers import AutoTokenizer

    from openbezoar.training.load import load_tokenizer

    formatter = Formatter(load_tokenizer(checkpoint.folder()), checkpoint.prompt, recipe_folder)
    saved = load_tokenizer(checkpoint.folder())
    saved.chat_template = _template(formatter)
    saved.model_input_names = list(INPUTS)
    saved.save_pretrained(str(out))
    if not (out / "chat_template.jinja").is_file():
        write_text(out / "chat_template.jinja", saved.chat_template)
    released = AutoTokenizer.from_pretrained(str(out))
    for turns in PROBES:
        messages = [turn.as_dict() for turn in turns]
        encoded = released.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        text = released.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if text != formatter.prompt_text(turns) or list(encoded["input_ids"]) != formatter.prompt_ids(turns) or set(encoded) != set(INPUTS):
            raise ModelError(f"{checkpoint.name}: the released tokenizer does not give the trained prompt; please report this with the base model's name")
    return formatter


def _template(formatter: Formatter) -> str:
    """The trained template; a system message that the recipe adds to a foreign template becomes its default."""
    system = formatter.spec.system
    if system is None or formatter.spec.template == "openbezoar":
        return formatter.jinja
    literal = "'" + system.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    head = (
        "{%- if not messages or messages[0]['role'] != 'system' -%}{%- set messages = [{'role': 'system', 'content': "
        + literal
        + "}] + messages -%}{%- endif -%}"
    )
    return head + formatter.jinja


def _write_generation_config(source: Path, out: Path, formatter: Formatter) -> None:
    """The base's generation settings with the tokens that end a trained answer."""
    from transformers import AutoConfig, GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(str(source))
    except OSError:  # the base has none
        settings = GenerationConfig.from_model_config(AutoConfig.from_pretrained(str(source)))
    settings._from_model_config = False  # else transformers may take the base's end token back
    stops = list(formatter.stop_ids())
    settings.eos_token_id = stops[0] if len(stops) == 1 else stops
    tokenizer = formatter.tokenizer
    settings.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    settings.save_pretrained(str(out))


def _carry_terms(facts: RunFacts, name: str, out: Path, context: StepContext, sources: Sequence[Source]) -> tuple[str, ...]:
    """Copy the licence and notice files of the base model; Gemma's terms ask for a notice where there is none."""
    carried = []
    root = facts.trained_on(name)
    if root in context.recipe.models:
        for file in terms_in(context.checkpoint(root).folder()):
            shutil.copyfile(file, out / file.name)
            carried.append(file.name)
    if any(s.what == "base model" and s.licence == "gemma" for s in sources) and not any("notice" in n.lower() for n in carried):
        write_text(out / "NOTICE", GEMMA_NOTICE)
        carried.append("NOTICE")
    return tuple(sorted(carried))


# ---------------------------------------------------------------------------------- data


def _release_data(names: Sequence[str], title: str, facts: RunFacts, context: StepContext) -> dict[str, Any]:
    """The rows that the last filter on each scheme kept (or that were generated, without one), with the verdicts."""
    lineage = facts.lineage(names)
    made = [s for s in lineage if s.verb in ("generate", "filter")]
    if not made:
        return {}
    out = _empty(context.out / DATA)
    filtered_on = {i for s in made for i in s.inputs}
    files: list[DataFile] = []
    for step in made:
        if step.name in filtered_on:
            continue
        name = f"{_data_name(facts, step, [f.name for f in files])}.jsonl"
        rows = list(_with_verdicts(facts, step))
        write_jsonl(out / name, rows)
        columns = tuple(dict.fromkeys(k for row in rows for k in row))
        files.append(DataFile(name, step.name, len(rows), file_digest(out / name), columns))
    sources = [s for s in sources_of(facts, context, [f.step for f in files]) if s.what != "base model"]
    licence = derive(sources)
    card = data_card(facts, title, files, licence, sources)
    check_card(card, f"{DATA}/README.md", "data")
    write_text(out / "README.md", card)
    return {f.name: {"step": f.step, "rows": f.rows, "sha256": f.sha256} for f in files}


def _data_name(facts: RunFacts, step: StepFacts, taken: Sequence[str]) -> str:
    """The scheme's name where a step stands for one scheme, else the step's."""
    schemes = {scheme_of(s) for s in facts.lineage([step.name]) if s.verb == "generate"}
    name = schemes.pop() if len(schemes) == 1 else step.name
    return step.name if f"{name}.jsonl" in taken else name


def _with_verdicts(facts: RunFacts, step: StepFacts) -> list[dict[str, Any]]:
    """A step's rows; verdicts of earlier filters on the way are kept as STEP_status and so on."""
    rows = [dict(row) for row in step.rows("rows.jsonl")]
    for earlier in (s for s in facts.lineage([step.name]) if s.verb == "filter" and s.name != step.name):
        verdicts = {row.get("id"): row for row in earlier.rows("rows.jsonl")}
        for row in rows:
            found = verdicts.get(row.get("id"), {})
            row |= {f"{earlier.name}_{k}": found[k] for k in ("status", "rating", "reason") if k in found}
    return rows
