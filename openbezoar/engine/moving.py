"""A run taken elsewhere: what is needed to go on, in one file, and the folder that comes of it.

In the file: ``run/`` (the run folder, with steps in the making), ``recipe/`` (the recipe and the files that it names
by relative paths, as they lie to one another), ``data/`` (those in the recipe's data folder, where that is another
place), ``calls.jsonl`` (answers of the models that unfinished steps ask) and ``spent.json`` (the run's account). Models
and rows that are fetched are named only, as are files at absolute paths, which must lie there on the other machine too.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openbezoar import __version__
from openbezoar.engine.graph import Graph, Node, build
from openbezoar.engine.names import data_files, named_by, other_files
from openbezoar.errors import RunError
from openbezoar.llm.calls import FILE, CallStore
from openbezoar.llm.engines.kept import FOLDER as ENGINES
from openbezoar.machine.foreign import foreign_file
from openbezoar.models.files.stored import READ, TERMS, files
from openbezoar.recipe.blocks import TEMPLATES, LocalModel, ServerModel
from openbezoar.recipe.file import load
from openbezoar.rows.files import divided
from openbezoar.store import archives
from openbezoar.store.digests import MANIFEST, file_digest
from openbezoar.store.files import environment, write_json
from openbezoar.store.live import LIVE
from openbezoar.store.places import PLACES, places_of
from openbezoar.store.runs import RECIPE, RunFolder

CALLS, SPENT = "calls.jsonl", "spent.json"
NOTES = ("dataset_dict.json", "dataset_info.json", "state.json", MANIFEST)  # beside rows, which tell how they are read
SHORTEST = 8  # characters of a secret that is searched for


@dataclass
class Moved:
    """What was packed or unpacked. command: goes on with the run; fetched: models and rows by their names; missing:
    files that must be brought, with their hashes; keys: environment variables that its servers need.
    """

    run: str
    files: int
    bytes: int
    calls: int
    fetched: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    command: str = ""


@dataclass(frozen=True)
class _Local:
    """A file that the recipe names. whole: the recipe itself or a template, which every run needs."""

    path: Path
    by: str  # the recipe's text
    whole: bool = False


def pack(run_path: Path, target: Path, *, data: bool = True) -> Moved:
    """Write a run and what it needs to go on into one file. data: with the files of rows and the folders of models
    that the recipe names; without, only their hashes.

    Raises RunError for a run that is at work, has no note of its recipe, or whose files are not what was made.
    """
    run = RunFolder(run_path)
    if not run.path.is_dir():
        raise RunError(f"{run_path}: no such folder; expected a run such as runs/demo")
    recipe_path, overrides = run.maker()
    recipe = load(recipe_path, overrides)
    if run.name != recipe.name:  # a copy, or a folder that was given another name
        overrides.append(f"name={json.dumps(run.name)}")
        recipe = load(recipe_path, overrides)
    with run.lock():
        run.recover()
        graph = build(recipe, recipe_path, run.path.parent)
        for node in graph.nodes.values():
            if node.state == "done":
                run.checked(node.name)
        packed: dict[str, Path | bytes] = {f"run/{name}": file for name, file in _files_of_run(run.path)}
        local = list(_named(graph))
        tree, folder = _tree(graph, [one.path for one in local if _travels(one.by, recipe.data)])
        missing: dict[str, str] = {}
        for one in local:
            inside = _inside(one, tree, folder)
            if inside is None or not (data or one.whole):
                missing[inside or str(one.path)] = file_digest(one.path)
            else:
                packed[inside] = one.path
        calls = _calls(graph, packed)
        about: dict[str, Any] = {
            "openbezoar": __version__,
            "environment": environment(),
            "run": run.name,
            "recipe": _inside(_Local(recipe_path, recipe_path.name, True), tree, folder),
            "overrides": [o for o in overrides if not (folder and o.startswith("data="))],
            "data": bool(folder),
            "places": _places(graph, tree, folder),
            "missing": missing,
            "fetched": _fetched(graph),
            "keys": sorted(_keys(graph)),
            "calls": calls,
        }
        contents = archives.write(target, packed, about, secrets=_secrets(graph))
    marks = contents["files"].values()
    return Moved(
        run.name,
        len(contents["files"]),
        sum(mark.get("bytes", 0) for mark in marks),
        calls,
        about["fetched"],
        missing,
        about["keys"],
    )


def _files_of_run(run: Path) -> Iterator[tuple[str, Path]]:
    """The run's files, those of steps in the making too, by their paths in it; not what is of this machine alone.

    Of engines nothing goes along: their logs and notes tell of processes, ports and paths here, and what was written
    for one is written again.
    """
    for file in sorted(run.rglob("*")):
        name = file.relative_to(run).as_posix()
        temporary = (file.name.startswith(".") and file.name.endswith(".tmp")) or name.startswith(f"{ENGINES}/")
        if file.is_file() and name not in (".lock", RECIPE, PLACES) and file.name != LIVE and not temporary:
            yield name, file


def _named(graph: Graph) -> Iterator[_Local]:
    """The files on disk that the recipe names, itself first."""
    recipe, path = graph.recipe, graph.recipe_path
    yield _Local(path, path.name, True)
    templates = [recipe.prompt, *(s.prompt for s in recipe.models.values() if isinstance(s, LocalModel) and s.prompt)]
    for prompt in templates:
        if prompt.template not in TEMPLATES:
            yield _Local(graph.place(next(iter(graph.nodes))).path(prompt.template), prompt.template, True)
    for node in graph.nodes.values():
        place = graph.place(node.name)
        for reference in named_by(place):
            kind, text = reference.ref.kind, reference.name
            if kind == "data" and text not in graph.nodes:
                found = list(data_files(place, reference).values())
                named_path = divided(text)[0]
                yield from (_Local(file, named_path) for file in found)
                folders = {parent for file in found for parent in (file.parent, *_of_pattern(place.path(named_path)))}
                yield from (_Local(f / n, named_path) for f in folders for n in NOTES if found and (f / n).is_file())
            elif kind in ("file", "folder"):
                yield from (_Local(file, text) for file in other_files(place, reference).values())
    for spec in recipe.models.values():
        for file in _model_files(graph, spec):
            yield _Local(file, spec.model)


def _of_pattern(path: Path) -> list[Path]:
    return [path] if path.is_dir() else []


def _model_files(graph: Graph, spec: Any) -> list[Path]:
    """The files of a model that lies on this disk; none of one that is fetched."""
    if not isinstance(spec, LocalModel) or spec.model.startswith("pypi:"):
        return []
    path = graph.place(next(iter(graph.nodes))).path(spec.model)
    return [path] if path.is_file() else files(path, (*READ, *TERMS)) if path.is_dir() else []


def _travels(text: str, data: str | None) -> bool:
    """Whether what the recipe names so lies beside it, and can lie beside it elsewhere."""
    if text.startswith("$data"):
        return data is not None and _travels(data, None)
    return not Path(text).is_absolute() and not text.startswith("~")


def _absolute(path: Path) -> Path:
    """The path without '..'; links stay what they are called."""
    return Path(os.path.normpath(path.absolute()))


def _tree(graph: Graph, local: list[Path]) -> tuple[Path, Path | None]:
    """(the folder above the recipe and all that lies beside it, the data folder if that is elsewhere)."""
    tree = Path(os.path.commonpath([_absolute(path).parent for path in (graph.recipe_path, *local)]))
    data = graph.recipe.data
    folder = None if data is None or _travels(data, None) else _absolute(Path(data).expanduser())
    return tree, folder


def _inside(one: _Local, tree: Path, folder: Path | None) -> str | None:
    """Where a file lies in the archive; None for one at an absolute path."""
    path = _absolute(one.path)
    if one.by.startswith("$data") and folder is not None and path.is_relative_to(folder):
        return f"data/{path.relative_to(folder).as_posix()}"
    if path.is_relative_to(tree) and not Path(one.by).is_absolute() and not one.by.startswith("~"):
        return f"recipe/{path.relative_to(tree).as_posix()}"
    return None


def _places(graph: Graph, tree: Path, folder: Path | None) -> dict[str, str]:
    """Where models that lay on this disk, by what finished steps call them, lie in the archive."""
    places: dict[str, str] = {}
    known = places_of(graph.run.path)
    for spec in graph.recipe.models.values():
        if not _model_files(graph, spec):
            continue
        path = graph.place(next(iter(graph.nodes))).path(spec.model)
        inside = _inside(_Local(path, spec.model), tree, folder)
        if inside is not None:
            places[str(path.resolve())] = inside
            places |= {old: inside for old, now in known.items() if now == path.resolve()}
    # what was moved before is called what it was called first
    return {old: inside for old, inside in places.items() if Path(old) not in known.values()}


def _fetched(graph: Graph) -> list[str]:
    """Models, and rows of the hub, that the run gets by their names."""
    models = [
        spec.model
        for spec in graph.recipe.models.values()
        if isinstance(spec, LocalModel) and not _model_files(graph, spec)
    ]
    rows = [
        reference.name
        for node in graph.nodes.values()
        for reference in named_by(graph.place(node.name))
        if reference.ref.kind == "data" and reference.name.startswith("hub:")
    ]
    return list(dict.fromkeys([*models, *rows]))


def _keys(graph: Graph) -> set[str]:
    return {spec.key for spec in graph.recipe.models.values() if isinstance(spec, ServerModel) and spec.key}


def _secrets(graph: Graph) -> dict[str, str]:
    """Values that no file may hold, by the names of their environment variables."""
    names = {*_keys(graph), "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}
    return {name: value for name in sorted(names) if len(value := os.environ.get(name, "")) >= SHORTEST}


def _asks(graph: Graph, node: Node) -> set[str]:
    """The models that a step may ask, by the names under which their answers are kept."""
    return {r.name for r in named_by(graph.place(node.name)) if r.ref.kind == "model"}


def _calls(graph: Graph, packed: dict[str, Path | bytes]) -> int:
    """Put what was answered for steps that are not done, and the run's account, among the files; how many answers."""
    runs = graph.run.path.parent
    if not (runs / FILE).is_file():
        return 0
    models = {name for node in graph.nodes.values() if node.state != "done" for name in _asks(graph, node)}
    store = CallStore(runs)
    try:
        lines = [json.dumps(call) for call in store.answers(sorted(models))]
        spent = store.account(graph.run.name)
    finally:
        store.close()
    packed[CALLS] = "".join(line + "\n" for line in lines).encode()
    packed[SPENT] = json.dumps(spent).encode()
    return len(lines)


# ------------------------------------------------------------------------------- elsewhere


def unpack(source: Path, target: Path | None = None) -> Moved:
    """Lay a packed run into a folder (new or empty; the run's name by default), whole or not at all.

    Raises RunError for what is not as it was packed, see ``store.archives``.
    """
    making: dict[str, Any] = {}  # what is known as it goes on

    def finish(folder: Path, contents: dict[str, Any]) -> None:
        about = _checked(contents, source)
        runs = folder / "runs"
        runs.mkdir(exist_ok=True)
        run = runs / about["run"]
        (folder / "run").rename(run)
        final = making["target"]
        recipe = final / about["recipe"]
        overrides = [*about["overrides"], *([f"data={json.dumps(str(final / 'data'))}"] if about["data"] else [])]
        write_json(run / RECIPE, {"recipe": str(recipe), "overrides": overrides})
        if about["places"]:
            write_json(run / PLACES, {old: os.path.relpath(folder / new, run) for old, new in about["places"].items()})
        making.update(about=about, recipe=recipe, overrides=overrides)
        _take_calls(folder, runs, about["run"], source)

    def place(contents: dict[str, Any]) -> Path:
        about = _checked(contents, source)
        making["target"] = found = (target or Path(about["run"])).resolve()
        return found

    contents = archives.extract(source, place, finish)
    about, final = making["about"], making["target"]
    words = ["openbezoar", "run", str(making["recipe"]), "--runs", str(final / "runs")]
    words += [word for override in making["overrides"] for word in ("--set", override)]
    marks = contents["files"].values()
    missing = {
        str(final / path if not Path(path).is_absolute() else path): sha for path, sha in about["missing"].items()
    }
    return Moved(
        about["run"],
        len(contents["files"]),
        sum(mark.get("bytes", 0) for mark in marks),
        about["calls"],
        about["fetched"],
        {path: sha for path, sha in missing.items() if not _is_here(Path(path), sha)},
        about["keys"],
        shlex.join(words),
    )


def _is_here(path: Path, sha: str) -> bool:
    return path.is_file() and file_digest(path) == sha


def _checked(contents: dict[str, Any], source: Path) -> dict[str, Any]:
    """What goes with the files. Raises RunError for words that it cannot have."""
    about: dict[str, Any] = contents["about"]
    texts = ("overrides", "fetched", "keys")
    sound = (
        archives.safe(about.get("run"))
        and "/" not in about["run"]
        and not about["run"].startswith(".")
        and about.get("recipe") in contents["files"]
        and all(isinstance(about.get(k), list) and all(isinstance(t, str) for t in about[k]) for k in texts)
        and all(isinstance(about.get(k), dict) for k in ("places", "missing"))
        and all(archives.safe(new) for new in about["places"].values())
        and all(isinstance(sha, str) for sha in about["missing"].values())
        and type(about.get("calls")) is int
        and type(about.get("data")) is bool
        and all(path.split("/")[0] in ("run", "recipe", "data", CALLS, SPENT) for path in contents["files"])
        and any(path.startswith("run/") for path in contents["files"])
    )
    if not sound:
        raise RunError(f"{source}: it does not say what a packed run says; {archives.AGAIN}")
    return about


def _take_calls(folder: Path, runs: Path, run: str, source: Path) -> None:
    """Put the answers and the account into the call cache of the new folder of runs."""
    if not (folder / CALLS).is_file():
        return
    store = CallStore(runs)
    try:
        with (
            foreign_file(source, "a file of 'openbezoar pack'", archives.AGAIN, kind=RunError),
            (folder / CALLS).open(encoding="utf-8") as lines,
        ):
            account = json.loads((folder / SPENT).read_text(encoding="utf-8"))
            store.take((json.loads(line) for line in lines), run, account)
    finally:
        store.close()
    (folder / CALLS).unlink()
    (folder / SPENT).unlink()
