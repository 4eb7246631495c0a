"""The one rule about imports, and that generated pages are fresh."""

from __future__ import annotations

import ast
from pathlib import Path

import openbezoar
from openbezoar.reference import main

ROOT = Path(openbezoar.__file__).parent

# A module may import from its own rank (not for stages) and from lower ones.
RANKS = [
    {
        "errors",
        "foreign",
        "addresses",
        "extras",
        "machine",
        "streams",
        "textfiles",
        "digests",
        "disk",
        "manifests",
        "heap",
        "records",
        "forms",
        "runs",
        "recipe",
        "recipe_file",
        "progress",
        "__init__",
    },
    {"sources", "hub", "models", "lengths", "devices", "memory", "gguf_models", "gguf_header", "chat", "forest", "prompts"},
    {"policy", "needs", "context", "llm", "training", "judging", "schemes", "cleaning", "harness", "reporting", "voting", "serving", "publishing"},
    {"stages"},
    {"graph"},
    {"call_estimates", "shapes", "rates", "estimates", "concerns", "plan_table", "review", "verifying"},
    {path.stem for path in ROOT.glob("cli*.py")} | {"reference", "__main__"},
]
RANKS[1] |= {"answer_form", "template_heads", "templates", "thoughts", "tokens"}  # what conversations and texts are made of
RANKS[1] |= {"stored", "quantised", "towers", "tokenizer_facts", "model_checks", "plain_models", "rope_scaling"}  # what opens a model folder
RANK = {name: number for number, names in enumerate(RANKS) for name in names}
# The graph knows each scheme's options and each stage's module by name; estimates are of the graph.


def imports() -> list[tuple[str, str]]:
    """(importing part, imported part) at run time; what stands under TYPE_CHECKING does not count."""
    found = []
    for file in ROOT.rglob("*.py"):
        part = file.relative_to(ROOT).parts[0].removesuffix(".py")
        tree = ast.parse(file.read_text())
        ignored = {id(n) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) for n in ast.walk(node)}
        for node in ast.walk(tree):
            if id(node) in ignored:
                continue
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("openbezoar"):
                names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "openbezoar" else [node.module]
            for name in names:
                pieces = name.split(".")
                if pieces[0] == "openbezoar":
                    found.append((f"{part}:{file.stem}", pieces[1] if len(pieces) > 1 and pieces[1] in RANK else "__init__"))
    return found


def test_imports_go_one_way() -> None:
    wrong = [(a, b) for a, b in imports() if RANK[b] > RANK[a.split(":")[0]]]
    assert wrong == []
    assert len(imports()) > 100


def test_stages_never_import_one_another() -> None:
    crossing = []
    for file in (ROOT / "stages").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("openbezoar.stages"):
                crossing.append((file.name, node.module))
    assert crossing == []


def test_every_part_of_the_package_has_a_rank() -> None:
    parts = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in ROOT.rglob("*.py")}
    assert parts == set(RANK)


def test_generated_pages_are_fresh() -> None:
    assert main(["--check"]) == 0


def test_the_package_never_reads_pickles_or_runs_a_hub_s_code() -> None:
    for file in ROOT.rglob("*.py"):
        text = file.read_text()
        assert "import pickle" not in text
        assert "trust_remote_code=True" not in text
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node)


def test_the_code_that_the_how_to_pages_show_is_the_code() -> None:
    files = [*(ROOT / "schemes").glob("*.py"), ROOT / "training/losses.py", ROOT / "recipe.py"]
    code = {line.strip() for file in files for line in file.read_text().splitlines()}
    for page in ("add-a-scheme.md", "add-a-loss.md"):
        blocks = (ROOT.parent / "docs/how-to" / page).read_text().split("```python")[1:]
        shown = [line.strip() for block in blocks for line in block.split("```")[0].splitlines()]
        assert len(shown) > 5 and [line for line in shown if line not in code and line != "..."] == []
