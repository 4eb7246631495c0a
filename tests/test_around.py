"""What stands around the package: troubleshooting, the site, images, the page for coding agents, the citation."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_docs import COMMANDS, commands, parsed

import openbezoar

ROOT = Path(__file__).parent.parent
TROUBLE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
SYMPTOMS = re.split(r"^## ", TROUBLE, flags=re.M)[1:]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGES = ("Dockerfile", "Dockerfile.cuda")


def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda text: text.splitlines()[0])
def test_a_symptom_has_its_cause_a_command_a_remedy_and_a_test_that_exists(symptom: str) -> None:
    for part in ("Cause", "See it", "Remedy", "Test"):
        assert f"- **{part}**: " in symptom
    assert re.search(r"^```\nopenbezoar ", symptom, re.M)  # tests/test_docs.py runs it
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", symptom)
    assert named
    for file, test in named:
        assert test in functions_of(ROOT / file), f"{file}::{test}"


def test_the_symptoms_that_people_come_with_are_there() -> None:
    titles = " ".join(symptom.splitlines()[0].lower() for symptom in SYMPTOMS)
    for word in ("never stop", "gibberish", "not a number", "memory", "merging", "429", "slow", "judge", "noise"):
        assert word in titles


def instructions(name: str) -> list[str]:
    """An image's instructions, a continued one in one line."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.M).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_copies_and_installs_what_exists(name: str) -> None:
    lines = instructions(name)
    let_in = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M))
    copied = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    assert set(copied) == let_in and all((ROOT / source).exists() for source in copied)
    for link in (ROOT / "openbezoar").iterdir():  # what the package links to is there too
        if link.is_symlink():
            assert str(link.resolve().relative_to(ROOT)) in copied
    whole = " ".join(line for line in lines if line.startswith("RUN "))
    (extras,) = re.findall(r'"/src\[([\w,-]+)\]"', whole)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    (torch,) = re.findall(r"torch==([\d.]+)", whole)
    assert f"torch=={torch}" in (ROOT / "Makefile").read_text(encoding="utf-8")
    (entry,) = [json.loads(line.removeprefix("ENTRYPOINT ")) for line in lines if line.startswith("ENTRYPOINT ")]
    assert entry[0] in PROJECT["scripts"] and lines[-1] == 'CMD ["--help"]' and "USER 1000" in lines
    assert any(line == f"FROM python:{PROJECT['requires-python'].removeprefix('>=')}-slim" for line in lines)
    command = re.findall(r"openbezoar(?::cuda)? (run demo)$", (ROOT / name).read_text(encoding="utf-8"), re.M)
    for words in command:
        parsed(shlex.split(words))
    assert command


def test_the_page_for_coding_agents_is_one_page_of_commands_that_exist() -> None:
    page = ROOT / "SKILL.md"
    text = page.read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["name"] == "openbezoar" and 40 < len(about["description"]) < 1024
    assert len(body.splitlines()) <= 60
    for command in commands(page):
        words = shlex.split(command.partition(" > ")[0])
        assert words[0] == "openbezoar"
        parsed(words[1:])
    for name in re.findall(r"`openbezoar ([a-z]+)", body):
        assert name in COMMANDS
    for name in re.findall(r"`openbezoar docs ([\w/-]+)`", body):
        assert name == "NAME" or (ROOT / f"docs/{name}.md").is_file()


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(cited)
    assert cited["version"] == openbezoar.__version__ and cited["license"] == PROJECT["license"]
    assert "2404.12195" in cited["references"][0]["url"]


def test_templates_of_issues_are_forms() -> None:
    folder = ROOT / ".github/ISSUE_TEMPLATE"
    forms = [path for path in folder.glob("*.yml") if path.name != "config.yml"]
    assert len(forms) >= 2
    for path in forms:
        form: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        ids = [part["id"] for part in form["body"]]
        assert len(ids) == len(set(ids)) and any(part.get("validations", {}).get("required") for part in form["body"])
    assert not re.search(r"https?://", "".join(path.read_text(encoding="utf-8") for path in folder.glob("*")))


def test_the_development_container_makes_a_target_that_exists() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    target = container["postCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for schema in container["customizations"]["vscode"]["settings"]["yaml.schemas"]:
        assert (ROOT / schema).is_file()


def test_the_site_is_built_of_the_pages_with_a_search_and_without_broken_links(tmp_path: Path) -> None:
    build = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is not installed")
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path))
    assert config.strict
    build.build(config)
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert all((tmp_path / page).is_file() for page in pages - {Path("README.html")})
    index = json.loads((tmp_path / "search/search_index.json").read_text(encoding="utf-8"))
    assert any("sample_every" in entry["text"] for entry in index["docs"])
    for page in tmp_path.rglob("*.html"):  # nothing is loaded from elsewhere
        assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text(encoding="utf-8"))
