"""READ FIRST. A recipe's steps in order, their keys, what re-runs, and the running of it.

A step's key is a hash of its settings, its inputs' keys, the bytes of the data files it
reads, the models it uses and the version of its stage's code. Same key, nothing runs;
another key, it and what depends on it run again. Resume after a crash, "what would
change", and re-judging are all this one rule. Beyond it, a step counts as done only while
the files that it wrote, and those that it used, are still the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from openbezoar import prompts
from openbezoar.cleaning.reviews import Reviews
from openbezoar.engine.policy import check_open
from openbezoar.errors import DataError, ModelError, RecipeError
from openbezoar.judging.prompting import CHECKS, PAIR, SINGLE
from openbezoar.models.files import checks as model_checks
from openbezoar.models.references import digests, folder_here
from openbezoar.publishing.licences_of import stated_for_data
from openbezoar.recipe.blocks import TEMPLATES, LocalModel, PromptSpec, data_specs
from openbezoar.recipe.data_steps import Filter, Generate
from openbezoar.recipe.file import one_line
from openbezoar.recipe.measure_steps import Agreement, Evaluate, Failures, MtBench, TaskSpec
from openbezoar.recipe.schema import Recipe, Step, references, verb_of
from openbezoar.recipe.tell_steps import Release, Report
from openbezoar.recipe.train_steps import Dpo, Lora, Sft
from openbezoar.rows.hub import DataSetRef
from openbezoar.rows.sources import model_reference, resolve_path
from openbezoar.schemes import SCHEMES
from openbezoar.store.digests import differences, digest, file_digest, marks_in, result_digest
from openbezoar.store.runs import RunFolder
from openbezoar.verbs import STAGES
from openbezoar.verbs.filter.benchmarks import benchmark_digests

State = Literal["done", "stale", "missing"]


@dataclass(frozen=True)
class Node:
    """One step of the graph."""

    name: str
    verb: str
    step: Step
    inputs: tuple[str, ...]
    parts: dict[str, Any]  # what the key is made of, kept in the manifest so that 'why' can be said
    key: str
    state: State
    why: str


@dataclass(frozen=True)
class Graph:
    """All steps of a recipe, inputs before what needs them."""

    recipe: Recipe
    recipe_path: Path
    run: RunFolder
    nodes: dict[str, Node]

    def upto(self, name: str | None) -> list[Node]:
        """The steps that ``name`` needs, itself last; all steps for None."""
        if name is None:
            return list(self.nodes.values())
        if name not in self.nodes:
            raise RecipeError(f"{self.recipe_path}: no step '{name}'; it has {', '.join(self.nodes)}")
        wanted, todo = {name}, [name]
        while todo:
            for needed in self.nodes[todo.pop()].inputs:
                if needed not in wanted:
                    wanted.add(needed)
                    todo.append(needed)
        return [node for node in self.nodes.values() if node.name in wanted]


def build(recipe: Recipe, recipe_path: Path, runs: Path) -> Graph:
    """Check all references, order the steps and say of each whether it is done.

    Raises RecipeError for an unknown name or a cycle, DataError for a missing file.
    """
    run = RunFolder(runs / recipe.name)
    inputs = {name: _inputs(recipe, recipe_path, name) for name in recipe.steps}
    if recipe.policy == "open":
        check_open(recipe, recipe_path, {name: _generate_refs(recipe, recipe_path, name) for name in recipe.steps})
    nodes: dict[str, Node] = {}
    for name in _order(inputs, recipe_path):
        step = recipe.steps[name]
        if isinstance(step, Sft):
            _check_lora(recipe, recipe_path, name, step)
        parts = _parts(recipe, recipe_path, name, {i: nodes[i].key for i in inputs[name]})
        if isinstance(step, Release):
            stated = [
                *stated_for_data(recipe),
                *((model, spec.licence) for model, spec in recipe.models.items() if spec.licence),
            ]
            parts |= {"licences": digest(stated)} if stated else {}
        if isinstance(step, Filter):
            parts |= _filter_parts(recipe, recipe_path, run, name, step)
        key = digest(parts)
        state, why = _state(run, name, key, parts)
        nodes[name] = Node(name, verb_of(step), step, inputs[name], parts, key, state, why)
    for name in {model: None for node in nodes.values() if node.state != "done" for model in node.parts["models"]}:
        _check_model(recipe, recipe_path, name)
    return Graph(recipe, recipe_path, run, nodes)


def _inputs(recipe: Recipe, path: Path, name: str) -> tuple[str, ...]:
    """Names of the steps that a step reads."""
    step, found = recipe.steps[name], dict[str, None]()
    if isinstance(step, Report):
        chosen = (
            step.report
            if isinstance(step.report, list)
            else [n for n, s in recipe.steps.items() if not isinstance(s, (Report, Release))]
        )
        for other in chosen:
            if other not in recipe.steps:
                raise _unknown(recipe, path, name, "report", other)
            found[other] = None
    for key, kind, other in references(step):
        if other in recipe.steps:
            _check_verb(recipe, path, name, key, other)
            found[other] = None
        elif kind == "step" or (kind == "model" and (other not in recipe.models or key in ("merge", "release"))):
            raise _unknown(recipe, path, name, key, other)
        elif kind == "data":
            _data_file(recipe, path, name, key, other)
    for key, ref in _generate_refs(recipe, path, name):
        if ref in recipe.steps:
            found[ref] = None
        elif key == "model" and ref not in recipe.models:
            raise _unknown(recipe, path, name, key, ref)
        elif key == "data":
            _data_file(recipe, path, name, key, ref)
    if isinstance(step, Release):  # the cards quote every score of the run
        found.update({n: None for n, s in recipe.steps.items() if verb_of(s) in ("evaluate", "mt_bench")})
    return tuple(found)


PRODUCES = {"rows": ("generate", "filter"), "model": ("sft", "merge", "dpo")}


def _check_verb(recipe: Recipe, path: Path, name: str, key: str, other: str) -> None:
    kind = (
        "model"
        if key in ("model", "merge", "evaluate", "mt_bench", "failures", "release", "teacher", "judge", "agreement")
        else "rows"
    )
    verb = verb_of(recipe.steps[other])
    allowed = (
        ("merge",)
        if key == "release"
        else ("agreement",)
        if key == "judge_check"
        else ("sft", "dpo")
        if key == "merge"
        else PRODUCES[kind]
    )
    if verb not in allowed:
        raise RecipeError(
            f"{path}: steps.{name}.{key}: '{other}' is a {verb} step and has no {kind}; name one of the verbs"
            f" {', '.join(allowed)}"
        )


def _check_lora(recipe: Recipe, path: Path, name: str, step: Sft) -> None:
    """Refuse stated settings of an adapter where one that has others is continued: they would have no effect."""
    held = _lora_of(recipe, step.model) if step.adapter == "continue" else None
    if held is None or "lora" not in step.model_fields_set:
        return
    for field in Lora.model_fields:
        has, asked = getattr(held, field), getattr(step.lora, field)
        if has != asked and not (field == "targets" and sorted(has) == sorted(asked)):
            raise RecipeError(
                f"{path}: steps.{name}.lora.{field}: {asked}, but the adapter of '{step.model}', which is continued,"
                f" has {has}; give both the same, leave lora out, or set adapter: new"
            )


def _lora_of(recipe: Recipe, name: str) -> Lora | None:
    """The settings that the last adapter of a step's model has; None if it has no adapter."""
    step = recipe.steps.get(name)
    if isinstance(step, Sft) and step.adapter == "continue" and (before := _lora_of(recipe, step.model)) is not None:
        return before
    return step.lora if isinstance(step, (Sft, Dpo)) else None


def _unknown(recipe: Recipe, path: Path, name: str, key: str, other: str) -> RecipeError:
    import difflib

    close = difflib.get_close_matches(other, [*recipe.steps, *recipe.models], n=1)
    if other in recipe.models:
        return RecipeError(f"{path}: steps.{name}.{key}: '{other}' is a model as it came; name a step that trained one")
    hint = (
        f"did you mean '{close[0]}'?"
        if close
        else f"models: {', '.join(recipe.models)}; steps: {', '.join(recipe.steps)}"
    )
    return RecipeError(f"{path}: steps.{name}.{key}: no step or model '{other}'; {hint}")


def _generate_refs(recipe: Recipe, path: Path, name: str) -> list[tuple[str, str]]:
    """References inside a scheme's own options: ('data' or 'model', name)."""
    step = recipe.steps[name]
    if not isinstance(step, Generate):
        return []
    options = scheme_options(step, f"{path}: steps.{name}")
    refs = []
    for key, field in type(options).model_fields.items():
        value = getattr(options, key)
        kind = (field.json_schema_extra or {}).get("refers_to") if isinstance(field.json_schema_extra, dict) else None
        if kind and value is not None:
            refs += [(str(kind), spec.data) for spec in data_specs(value)]
    return refs


def scheme_options(step: Generate, where: str) -> BaseModel:
    """The checked options of a generate step's scheme."""
    if step.generate not in SCHEMES:
        raise RecipeError(f"{where}: generate: no scheme '{step.generate}'; there are {', '.join(SCHEMES)}")
    options = SCHEMES[step.generate].Options
    if step.seeds is None and (fields := SCHEMES[step.generate].seed_fields):
        raise RecipeError(
            f"{where}: seeds: missing; {step.generate} needs rows with {', '.join(fields)}: name a file or a step"
        )
    try:
        return options.model_validate(step.options)
    except ValidationError as error:
        raise RecipeError(one_line(error, where, options)) from None


def _data_file(recipe: Recipe, path: Path, name: str, key: str, text: str) -> Path | None:
    if text.startswith("hub:"):
        try:
            DataSetRef.of(text)
        except DataError as error:
            raise DataError(f"{path}: steps.{name}.{key}: {error}") from None
        return None
    file = resolve_path(text, path.parent, recipe.data)
    if not file.is_file():
        hint = "" if "/" in text or "." in text else f" and no step '{text}'"
        raise DataError(
            f"{path}: steps.{name}.{key}: no file {file}{hint}; paths are relative to the recipe's own file"
        )
    if file.stat().st_size == 0:
        raise DataError(f"{path}: steps.{name}.{key}: {file} is empty; expected JSON lines")
    return file


def _order(inputs: dict[str, tuple[str, ...]], path: Path) -> list[str]:
    """Steps with inputs first, otherwise as written. Raises RecipeError naming a cycle."""
    ordered: list[str] = []
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in done:
            return
        if name in trail:
            cycle = " → ".join((*trail[trail.index(name) :], name))
            raise RecipeError(f"{path}: steps go in a circle: {cycle}; take one of these inputs away")
        for needed in inputs[name]:
            visit(needed, (*trail, name))
        done.add(name)
        ordered.append(name)

    for name in inputs:
        visit(name, ())
    return ordered


NO_BIT = (
    "checkpointing",  # changes memory and time
    "save_every",  # where a killed training goes on from, which leaves no trace
    "budget",  # where a step stops
    "max_refused",  # the same
    "gate",  # what is done about the result, as the next one
    "min_agreement",
    "max_drift",
)
"""Settings that change no bit of a step's result."""


LATER = {"judge_temperature": 0.0, "judge_top_p": 1.0}
"""Settings that came after steps were made without them, with what those steps had: at that they
are left out of keys, so that none runs again.
"""


def _parts(recipe: Recipe, path: Path, name: str, input_keys: dict[str, str]) -> dict[str, Any]:
    """Everything a step's result depends on."""
    step = recipe.steps[name]
    settings = step.model_dump(
        mode="json", exclude={*NO_BIT, *(name for name, before in LATER.items() if getattr(step, name, None) == before)}
    )
    files: dict[str, str] = {}
    models: dict[str, Any] = {}
    refs = [*references(step), *((k, k, r) for k, r in _generate_refs(recipe, path, name))]
    for key, kind, other in refs:
        if other in input_keys:
            continue
        if kind == "model":
            models[other] = _model_identity(recipe, path, other)
        elif kind == "data" and (file := _data_file(recipe, path, name, key, other)):
            files[other] = file_digest(file)
    for file_name in (getattr(step, "prompts", None) or {}).values():
        file = resolve_path(file_name, path.parent, recipe.data)
        if not file.is_file():
            raise DataError(
                f"{path}: steps.{name}.prompts: no file {file}; paths are relative to the recipe's own file"
            )
        files[file_name] = file_digest(file)
    if isinstance(step, Evaluate):
        files |= _task_files(recipe, path, name, step)
    prompt = recipe.prompt.model_dump(mode="json")
    if template := _template_file(recipe, path, recipe.prompt, "prompt"):
        files[recipe.prompt.template] = file_digest(template)
    return {
        "name": name,
        "settings": _without_licences(settings),
        "inputs": input_keys,
        "files": files,
        "models": models,
        "prompt": prompt,
        "seed": recipe.seed,
        "version": STAGES[verb_of(step)].version,
        "texts": _texts(step, f"{path}: steps.{name}"),
    }


def _template_file(recipe: Recipe, path: Path, prompt: PromptSpec, place: str) -> Path | None:
    """The file of a prompt's chat template; None for one that has a name."""
    if prompt.template in TEMPLATES:
        return None
    file = resolve_path(prompt.template, path.parent, recipe.data)
    if not file.is_file():
        raise RecipeError(
            f"{path}: {place}.template: '{prompt.template}' is none of {', '.join(TEMPLATES)}, and there is no file"
            f" {file}"
        )
    return file


def _without_licences(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {key: _without_licences(value) for key, value in settings.items() if key != "licence"}
    return [_without_licences(value) for value in settings] if isinstance(settings, list) else settings


def _texts(step: Step, where: str) -> dict[str, str]:
    """Digests of the project's own texts that a step sends to a model. Raises RecipeError for an
    override of no such text.
    """
    if isinstance(step, Generate):
        used = SCHEMES[step.generate].prompts
    elif isinstance(step, (Filter, MtBench, Agreement, Failures)):
        used = {
            Filter: tuple(n for n in prompts.names() if n.startswith("judge_filter")),
            MtBench: (*SINGLE, *PAIR),
            Agreement: ("judge_pair",),
            Failures: tuple(CHECKS),
        }[type(step)]
    else:
        return {}
    for name in step.prompts:
        if name not in used:
            raise RecipeError(f"{where}.prompts: no text '{name}'; this step sends {', '.join(used)}")
    return {name: digest(prompts.load(name, {})) for name in used}


def _filter_parts(recipe: Recipe, path: Path, run: RunFolder, name: str, step: Filter) -> dict[str, Any]:
    """What a filter depends on besides its inputs: a person's reviews, and the benchmarks that it
    keeps out of the data.
    """
    reviews = Reviews(run.path, name).digest
    benchmarks = benchmark_digests(recipe, path.parent) if step.rules.decontaminate else {}
    return {group: value for group, value in (("reviews", reviews), ("benchmarks", benchmarks)) if value}


def _task_files(recipe: Recipe, path: Path, name: str, step: Evaluate) -> dict[str, str]:
    files: dict[str, str] = {}
    if step.data is not None:
        folder = resolve_path(step.data, path.parent, recipe.data)
        if not folder.is_dir():
            raise DataError(f"{path}: steps.{name}.data: no folder {folder}; expected one with TASK.jsonl.gz files")
        for file in sorted(folder.glob("*.jsonl*")):
            files[file.name] = file_digest(file)
    for task in step.tasks:
        if isinstance(task, TaskSpec) and task.file:
            file = resolve_path(task.file, path.parent, recipe.data)
            if not file.is_file():
                raise DataError(
                    f"{path}: steps.{name}.tasks: no file {file}; paths are relative to the recipe's own file"
                )
            files[task.file] = file_digest(file)
    return files


def _model_identity(recipe: Recipe, path: Path, name: str) -> Any:
    """What makes a model the same one: its reference, and for local files their bytes."""
    spec = recipe.models[name]
    kept = {} if spec.thoughts == "drop" else {"thoughts": spec.thoughts}
    if not isinstance(spec, LocalModel):
        return {**spec.identity(), **kept}
    identity: dict[str, Any] = {
        "model": spec.model,
        "dtype": spec.dtype,
        "prompt": spec.prompt.model_dump(mode="json") if spec.prompt else None,
        **kept,
    }
    if spec.prompt and (template := _template_file(recipe, path, spec.prompt, f"models.{name}.prompt")):
        identity["template"] = file_digest(template)
    if spec.model.startswith("pypi:"):
        return identity
    folder = resolve_path(spec.model, path.parent, recipe.data)
    if folder.is_file():
        identity["file"] = file_digest(folder)
    elif folder.is_dir():
        identity["files"] = digests(folder)
    elif spec.model.startswith(("/", ".", "~", "$data")) or spec.model.endswith(".gguf"):  # what is no name on the hub
        raise ModelError(
            f"{path}: models.{name}: no folder or file {folder}; expected a folder, org/name on the hub, pypi:NAME or a"
            " .gguf file"
        )
    return identity


def _check_model(recipe: Recipe, path: Path, name: str) -> None:
    """Hold a local model's parts against each other, where its files are here."""
    spec = recipe.models[name]
    folder = (
        folder_here(model_reference(spec.model, path.parent, recipe.data), path.parent)
        if isinstance(spec, LocalModel)
        else None
    )
    if folder is not None:
        try:
            model_checks.check(folder)
        except ModelError as error:
            raise ModelError(f"{path}: models.{name}: {error}") from None


def _state(run: RunFolder, name: str, key: str, parts: dict[str, Any]) -> tuple[State, str]:
    manifest = run.manifest(name)
    if manifest is None:
        return "missing", "not run yet"
    if manifest.get("key") != key:
        return "stale", _difference(manifest.get("parts", {}), parts)
    if changed := next(differences(run.step(name), marks_in(manifest)), None):
        return "stale", changed
    # A step made again under the same key may have another result: arithmetic on a GPU is not
    # always the same to the bit.
    for used, then in (manifest.get("used") or manifest.get("used_weights") or {}).items():
        if then != result_digest(run.manifest(used) or {}):
            return "stale", f"the files of {used} are not those it used"
    return "done", ""


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """In a few words, the first things in which two keys' parts differ."""
    words = []
    for group, what in (("settings", "{}: {} → {}"), ("prompt", "prompt.{}: {} → {}")):
        before, after = old.get(group, {}), new[group]
        words += [
            what.format(k, _short(before.get(k)), _short(after.get(k)))
            for k in {**before, **after}
            if before.get(k) != after.get(k)
        ]
    words += [f"file {f} changed" for f in new["files"] if old.get("files", {}).get(f) != new["files"][f]]
    words += [f"text {t} changed" for t in new["texts"] if old.get("texts", {}).get(t) != new["texts"][t]]
    words += [f"model {m} changed" for m in new["models"] if old.get("models", {}).get(m) != new["models"][m]]
    before, after = old.get("benchmarks", {}), new.get("benchmarks", {})
    words += [f"benchmark {b} changed" for b in {**before, **after} if before.get(b) != after.get(b)]
    words += [f"{group} changed" for group in ("reviews", "licences") if old.get(group) != new.get(group)]
    if old.get("seed") != new["seed"]:
        words.append("seed changed")
    if old.get("version") != new["version"]:
        words.append("the stage's code changed")
    if not words:
        changed = [i for i in new["inputs"] if old.get("inputs", {}).get(i) != new["inputs"][i]]
        more = f" and {len(changed) - 2} more" if len(changed) > 3 else ""
        words = (
            [f"its input{'s' * (len(changed) > 1)} {', '.join(changed[: 2 if more else 3])}{more} changed"]
            if changed
            else []
        )
    return "; ".join(words[:3]) or "its inputs changed"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
