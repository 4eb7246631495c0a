"""``release``: merged weights, tokenizer with template, GGUF, cards and the kept data, ready to publish.

Reads merge steps' ``model/`` and ``model.json``, and the manifests and scores of the run.
Writes NAME/ for each named merge step (safetensors, config, tokenizer, chat_template.jinja,
generation_config.json, the base's licence files, README.md, and in gguf/ the GGUF files with
Ollama's Modelfile) and data/SCHEME/ for each data set (train.parquet, perhaps messages.parquet,
README.md); each with a SHA256SUMS of its files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import ModelError
from openbezoar.gguf.file import SUFFIX, write_gguf
from openbezoar.models.files.generation import generation_settings
from openbezoar.models.references import Checkpoint
from openbezoar.publishing.checksums import File, write_sums
from openbezoar.publishing.data_sets import COLUMNS, FILE, write_parquet
from openbezoar.publishing.licences import GEMMA_NOTICE, Licence, Source, derive, terms_in
from openbezoar.publishing.ollama import modelfile, pieces_of
from openbezoar.recipe.tell_steps import DataForm, Release
from openbezoar.reporting.facts import RunFacts, read_facts
from openbezoar.reporting.funnels import RowNumbers
from openbezoar.reporting.results import Scores, StepFacts
from openbezoar.reporting.scores import differences
from openbezoar.reporting.scores_table import columns
from openbezoar.reporting.training import PreferenceNumbers
from openbezoar.rows.outgoing import MESSAGES, rewritten
from openbezoar.rows.records import Row, Turn
from openbezoar.store.digests import file_digest
from openbezoar.store.files import write_text
from openbezoar.verbs.release.cards import DataFile, ModelFiles, check_card, data_card, model_card
from openbezoar.verbs.release.released_rows import data_name, rows_of
from openbezoar.verbs.release.result import ReleasedData, ReleasedFile, ReleasedModel, ReleaseNumbers
from openbezoar.verbs.release.sources_of import sources_of

DATA = "data"
FILES: dict[DataForm, str] = {"plain": FILE, "messages": "messages.parquet"}
GGUF = "gguf"  # apart from the tokenizer files, which transformers would read along with a GGUF
INPUTS = ["input_ids", "attention_mask"]  # all that generate() takes from a tokenizer
PROBE = (Turn("user", "Name three uses of a brick."),)
PROBES = (
    PROBE,
    (Turn("system", "Answer in one word."), *PROBE),
    (*PROBE, Turn("assistant", "Building, paving, weighing down."), Turn("user", "And a fourth?")),
)


def run(step: Release, context: StepContext) -> dict[str, Any]:
    """Write a folder for each named merge step, and one for each data set that they were trained on."""
    facts = read_facts(context.run, context.steps or None)
    title = step.title or context.recipe.name
    models = {name: _release_model(name, title, step, facts, context) for name in step.release}
    data = _release_data(step, title, facts, context)
    total = sum(file.bytes for model in models.values() for file in model.files.values())
    rows = sum(one.rows for one in data.values())
    summary = f"{len(models)} model{'s' * (len(models) != 1)}, {total / 1e6:.0f} MB; {rows} rows of data"
    return ReleaseNumbers(models=models, data=data, measured=_measured(facts), summary=summary).written()


def _measured(facts: RunFacts) -> dict[str, Any]:
    """The numbers on the cards that other steps keep in files of theirs: scores, differences, row
    counts, rewards; and intervals.
    """
    rows, preference = facts.results(RowNumbers), facts.results(PreferenceNumbers)
    accuracies = {n.step.name: n.heldout_accuracy() for n in preference}
    graded = {result.step.name: grades for result in facts.results(Scores) if (grades := result.grades())}
    return {
        "scores": {
            column.title: {name: asdict(score) for name, score in column.scores.items()} for column in columns(facts)
        },
        "differences": [asdict(difference) for difference in differences(facts)],
        "rows": {n.step.name: n.row_counts().by_name() for n in rows},
        "answers": {name: [asdict(grades) for grades in of] for name, of in graded.items()},
        "rewards": {n.step.name: n.rewards() for n in preference},
        "heldout_accuracy": {name: None if score is None else astuple(score) for name, score in accuracies.items()},
    }


# -------------------------------------------------------------------------------- models


def _release_model(name: str, title: str, step: Release, facts: RunFacts, context: StepContext) -> ReleasedModel:
    out = _empty(context.out / name)
    checkpoint = context.checkpoint(name)
    formatter = write_tokenizer(checkpoint, out)
    weights = _weights(checkpoint.folder(), out)
    _write_generation_config(checkpoint.folder(), out, formatter)
    sources = sources_of(facts, context, [name])
    licence = derive(sources)
    terms = _carry_terms(facts, name, out, context, sources)
    gguf, refused = _write_ggufs(name, step, out, formatter, licence, context)
    digests = {path.name: file_digest(path) for path in weights}
    size = sum(path.stat().st_size for path in weights)
    prompt = formatter.prompt_text(PROBE)
    files = ModelFiles(name, digests, size, prompt, formatter.stop, formatter.end_text, terms, gguf, refused)
    card = model_card(facts, title, files, licence, sources)
    check_card(card, f"{name}/README.md", "model")
    write_text(out / "README.md", card)
    listed = _listed(write_sums(out))
    return ReleasedModel(
        path=f"{context.name}/{name}",
        bytes=size,
        sha256=digests,
        licence=licence.id,
        files=listed,
        gguf_refused=refused,
    )


def _listed(files: Sequence[File]) -> dict[str, ReleasedFile]:
    return {file.name: ReleasedFile(bytes=file.bytes, sha256=file.sha256) for file in files}


def _write_ggufs(
    name: str, step: Release, out: Path, formatter: Formatter, licence: Licence, context: StepContext
) -> tuple[tuple[File, ...], str]:
    """The GGUF files with a Modelfile, or none and the reason why; the rest of the release does not wait for them."""
    folder = _empty(out / GGUF)
    forms = []
    about = {"name": name, "license": licence.name or licence.id}
    try:
        for kind in step.gguf:
            file = folder / f"{name}-{SUFFIX[kind]}.gguf"
            write_gguf(out, formatter, kind, out=file, about=about)
            forms.append(File(f"{GGUF}/{file.name}", file.stat().st_size, file_digest(file)))
    except ModelError as error:
        context.progress.say(f"  {name}: {error}")
        shutil.rmtree(folder)
        return (), str(error)
    if not forms:
        folder.rmdir()
        return (), ""
    smallest = min(forms, key=lambda file: file.bytes)
    write_text(
        folder / "Modelfile",
        modelfile(Path(smallest.name).name, formatter, pieces_of(formatter), name=name, licence=about["license"]),
    )
    return tuple(forms), ""


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


def write_tokenizer(checkpoint: Checkpoint, out: Path) -> Formatter:
    """Save the checkpoint's tokenizer with the trained prompt as its chat template, and hold the
    two against each other.

    Raises ModelError if what is saved does not render and tokenise as in training.
    """
    from transformers import AutoTokenizer

    from openbezoar.models.load import load_tokenizer

    formatter = Formatter(load_tokenizer(checkpoint.folder()), checkpoint.prompt)
    saved = load_tokenizer(checkpoint.folder())
    saved.chat_template = formatter.jinja
    saved.model_input_names = list(INPUTS)
    saved.save_pretrained(str(out))
    if not (out / "chat_template.jinja").is_file():
        write_text(out / "chat_template.jinja", saved.chat_template)
    released = AutoTokenizer.from_pretrained(str(out))
    for turns in PROBES:
        # within bounds, as transformers' rendering is not
        messages, trained = [turn.as_dict() for turn in turns], formatter.prompt_text(turns)
        encoded = released.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        text = released.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if text != trained or list(encoded["input_ids"]) != formatter.prompt_ids(turns) or set(encoded) != set(INPUTS):
            raise ModelError(
                f"{checkpoint.name}: the released tokenizer does not give the trained prompt; please report this with"
                " the base model's name"
            )
    return formatter


def _write_generation_config(source: Path, out: Path, formatter: Formatter) -> None:
    """The base's generation settings with the tokens that end a trained answer."""
    settings, _ = generation_settings(source)  # a merge step has written them; told of there
    settings._from_model_config = False  # else transformers may take the base's end token back
    stops = list(formatter.stop_ids())
    settings.eos_token_id = stops[0] if len(stops) == 1 else stops
    tokenizer = formatter.tokenizer
    settings.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    settings.save_pretrained(str(out))


def _carry_terms(
    facts: RunFacts, name: str, out: Path, context: StepContext, sources: Sequence[Source]
) -> tuple[str, ...]:
    """Copy the licence and notice files of the base model; Gemma's terms ask for a notice where there is none."""
    carried = []
    root = facts.trained_on(name)
    if root in context.recipe.models:
        for file in terms_in(context.checkpoint(root).folder()):
            shutil.copyfile(file, out / file.name)
            carried.append(file.name)
    if any(s.what == "base model" and s.licence == "gemma" for s in sources) and not any(
        "notice" in n.lower() for n in carried
    ):
        write_text(out / "NOTICE", GEMMA_NOTICE)
        carried.append("NOTICE")
    return tuple(sorted(carried))


# ---------------------------------------------------------------------------------- data


def _release_data(release: Release, title: str, facts: RunFacts, context: StepContext) -> dict[str, ReleasedData]:
    """The rows that the last filter on each scheme kept (or that were generated, without one), with the verdicts.
    Of other rows, pairs say, the model's card tells that they are not released.
    """
    row_steps = [s for s in facts.lineage(release.release) if isinstance(s.result, RowNumbers)]
    filtered_on = {i for s in row_steps for i in s.inputs}
    released: dict[str, ReleasedData] = {}
    _empty(context.out / DATA)
    for step in row_steps:
        if step.name not in filtered_on:
            name = data_name(facts, step, released)
            released[name] = _release_data_set(name, step, title, release.forms, facts=facts, context=context)
    if not released:
        (context.out / DATA).rmdir()
    return released


def _release_data_set(
    name: str, step: StepFacts, title: str, forms: Sequence[DataForm], *, facts: RunFacts, context: StepContext
) -> ReleasedData:
    out = _empty(context.out / DATA / name)
    sources = [s for s in sources_of(facts, context, [step.name]) if s.what != "base model"]
    licence = derive(sources)
    rows = rows_of(facts, step, licence)
    columns = {form: _write_form(form, rows, out) for form in forms}
    files = {form: FILES[form] for form in forms}
    data = DataFile(name, files, step.name, len(rows), file_digest(out / FILES[forms[0]]), columns[forms[0]])
    card = data_card(facts, title, data, licence, sources)
    check_card(card, f"{DATA}/{name}/README.md", "data")
    write_text(out / "README.md", card)
    listed = _listed(write_sums(out))
    return ReleasedData(
        path=f"{context.name}/{DATA}/{name}",
        step=step.name,
        rows=len(rows),
        sha256=data.sha256,
        licence=licence.id,
        files=listed,
    )


def _write_form(form: DataForm, rows: Sequence[Row], out: Path) -> tuple[str, ...]:
    """The rows in a form; returns the columns."""
    if form == "plain":
        return write_parquet(rows, out)
    as_messages = [one for row in rows for one in rewritten(row, form, f"row {row.get('id')}").rows]
    kept = {name: type_ for name, type_ in COLUMNS.items() if name not in ("instruction", "response", "system")}
    return write_parquet(as_messages, out, file=FILES[form], messages=MESSAGES[form], columns=kept)
