"""What the keys of the shipped recipes are made of, against tests/keys.json: a change of keys runs
people's finished steps again, so it is always seen.

After a change that is meant: ``python tests/test_keys.py`` writes the file anew; look at its
difference, and say in CHANGELOG.md which steps run again. Nothing is fetched: a file that a recipe
finds in its data folder is stood in for by one that holds its own name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from openbezoar.engine import graph
from openbezoar.recipe.file import load
from openbezoar.recipe.measure_steps import Evaluate
from openbezoar.rows import sources
from openbezoar.store.digests import digest

ROOT = Path(__file__).parent.parent
KEYS = Path(__file__).with_name("keys.json")
RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))


@contextmanager
def stand_ins(tasks: list[str]) -> Iterator[None]:
    """Files of ``$data/``, and folders of benchmarks with these tasks, are made when a recipe's path is resolved."""
    original = sources.resolve_path

    def resolve(text: str, recipe_folder: Path, data_folder: str | None) -> Path:
        path = original(text, recipe_folder, data_folder)
        if text.startswith("$data/"):
            for file in [path] if path.suffix else [path / f"{task}.jsonl" for task in tasks]:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{text} {file.name}")
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openbezoar.context.resolve_path", resolve)
        patch.setattr("openbezoar.rows.sources.resolve_path", resolve)
        patch.setattr("openbezoar.verbs.evaluate.key.resolve_path", resolve)
        yield


def built(name: str, folder: Path) -> graph.Graph:
    path = ROOT / "recipes" / name
    recipe = load(path, [f"data={json.dumps(str(folder / 'data'))}"])
    tasks = [
        task
        for step in recipe.steps.values()
        if isinstance(step, Evaluate)
        for task in step.tasks
        if isinstance(task, str)
    ]
    with stand_ins(tasks):
        return graph.build(recipe, path, folder / "runs")


def parts(name: str, folder: Path) -> dict[str, Any]:
    """By step, what its key is made of; of its inputs, whose keys are made in their turn, the names."""
    made = {
        node.name: {**node.parts, "inputs": sorted(node.parts["inputs"])} for node in built(name, folder).nodes.values()
    }
    plain: dict[str, Any] = json.loads(json.dumps(made, default=str))
    return plain


def written(by_recipe: dict[str, Any]) -> str:
    """JSON with a line for each group of each step's parts, so that a difference can be read."""
    recipes = []
    for recipe, steps in by_recipe.items():
        lines = [
            f" {json.dumps(step)}: {{\n"
            + ",\n".join(
                f"  {json.dumps(group)}: {json.dumps(value, ensure_ascii=False, sort_keys=True)}"
                for group, value in sorted(made.items())
            )
            + "\n }"
            for step, made in steps.items()
        ]
        recipes.append(f"{json.dumps(recipe)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(recipes) + "\n}\n"


@pytest.mark.parametrize("recipe", RECIPES)
def test_keys_of_a_shipped_recipe_are_made_of_what_they_were_made_of(recipe: str, tmp_path: Path) -> None:
    before, now = json.loads(KEYS.read_text(encoding="utf-8"))[recipe], parts(recipe, tmp_path)
    changed = [
        f"{step}: {group}: {before.get(step, {}).get(group)} is now {now.get(step, {}).get(group)}"
        for step in {**before, **now}
        for group in {**before.get(step, {}), **now.get(step, {})}
        if before.get(step, {}).get(group) != now.get(step, {}).get(group)
    ]
    assert not changed, "\n".join([*changed, "if that is meant: python tests/test_keys.py, and a line in CHANGELOG.md"])


def test_ablations_go_on_from_the_recipe_for_small_models(tmp_path: Path) -> None:
    # A copy of its run folder keeps what both recipes have: models, reward models and pairs.
    small, ablations = (built(name, tmp_path).nodes for name in ("small.yaml", "ablations.yaml"))
    shared = ["sft", "chat", "rm", "judge-rm", "own"]
    assert [ablations[name].key for name in shared] == [small[name].key for name in shared]


def test_a_key_is_the_digest_of_its_parts_and_its_inputs_keys(tmp_path: Path) -> None:
    made = built("demo.yaml", tmp_path)
    for node in made.nodes.values():
        assert node.key == digest(node.parts) and node.parts["inputs"] == {
            name: made.nodes[name].key for name in node.inputs
        }


@pytest.mark.parametrize(
    ("step", "change", "same"),
    [
        ("sft-lamini", "steps.sft-lamini.save_every=1", True),
        ("dpo", "steps.dpo.save_every=1", True),
        ("dpo", "steps.dpo.checkpointing=true", True),
        ("dpo", "steps.dpo.beta=0.2", False),
        ("lamini", "steps.lamini.budget={tokens: 5}", True),
        ("lamini", "steps.lamini.rows=47", False),
    ],
)
def test_settings_that_change_no_bit_of_a_result_are_in_no_key(
    step: str, change: str, same: bool, tmp_path: Path
) -> None:
    path = ROOT / "recipes/demo.yaml"
    before, after = (graph.build(load(path, overrides), path, tmp_path).nodes[step].key for overrides in ([], [change]))
    assert (before == after) is same


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        KEYS.write_text(
            written({recipe: parts(recipe, Path(scratch) / recipe) for recipe in RECIPES}), encoding="utf-8"
        )
    print(KEYS, file=sys.stderr)
