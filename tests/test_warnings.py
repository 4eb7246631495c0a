"""What dependencies warn of is mended here, not seen by users: a run of every verb says only what this package says.

In the tests themselves such warnings of our calls are errors (``filterwarnings`` in pyproject.toml).
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from faults import every_verb
from warm import Commands

OWN = re.compile(
    r"\[\d+/\d+\] \S+  "  # a step begins or is done
    r"|  [\w-]+: (\d+/\d+ |loading$)"  # its progress
    r"|\d+ steps done in "
)


def strange(said: str) -> list[str]:
    """Lines of a run's stderr that its progress does not write."""
    return [line for line in said.splitlines() if not OWN.match(line)]


@pytest.mark.slow
def test_a_run_of_every_verb_says_nothing_of_a_dependency(tiny: Path, tmp_path: Path) -> None:
    recipe = every_verb.write(tmp_path, tiny)
    words = [sys.executable, "-m", "openbezoar", "run", str(recipe), "--runs", str(tmp_path / "runs")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert strange(done.stderr) == []


@pytest.mark.parametrize(
    "one",
    [
        "import warnings; warnings.warn('past_key_values is an old name', FutureWarning)",
        "import logging, transformers; logging.getLogger('transformers').warning('generation flags are not valid')",
        "from tqdm import tqdm; list(tqdm(range(3), desc='Loading weights'))",
    ],
    ids=["warning", "log", "bar"],
)
def test_what_a_dependency_says_would_be_noticed(commands: Commands, one: str) -> None:
    done = commands("docs", first=one)
    assert done.code == 0 and strange(done.err)


def test_warnings_of_our_calls_are_errors_in_tests() -> None:
    for module, category in (
        ("openbezoar.llm.local", FutureWarning),
        ("openbezoar.rows.files", DeprecationWarning),
        ("openbezoar.training.loop", UserWarning),
        ("torch.nn.modules.module", FutureWarning),  # a forward's argument
    ):
        with pytest.raises(category):
            warnings.warn_explicit("an old name", category, f"{module}.py", 1, module=module)
