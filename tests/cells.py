"""Notebooks without Jupyter: their code cells in order in one namespace.

Of IPython's own syntax a line may be ``!COMMAND``, at any depth of indentation: it goes to the shell with what is in
braces evaluated, what it prints goes on, and ``_exit_code`` is its exit code. Nothing else is read, magics neither.

    python tests/cells.py notebooks/forest-engine.ipynb PROMPTS=4 STEPS=2

gives parameters as JSON, or as text where that is none; without any the notebook runs at its own sizes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARAMETERS = "parameters"  # the tag of the cell whose names may be given, as papermill has it
_COMMAND = re.compile(r"^(\s*)!(.+)$", re.M)


def cells(notebook: Path, kind: str = "code") -> list[dict[str, Any]]:
    """The notebook's cells of a kind, in order."""
    book = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


def source(cell: Mapping[str, Any]) -> str:
    """A code cell as Python: each ``!COMMAND`` is a call of ``_shell``."""
    return _COMMAND.sub(lambda line: f"{line[1]}_shell({line[2]!r})", "".join(cell["source"]))


def parameters(notebook: Path) -> dict[str, Any]:
    """The notebook's parameters with their own values."""
    (cell,) = (cell for cell in cells(notebook) if PARAMETERS in cell["metadata"].get("tags", []))
    names: dict[str, Any] = {}
    exec("".join(cell["source"]), {}, names)
    return names


def execute(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Run all code cells in this process, the given names in the place of the parameters' own. Returns the namespace.

    Raises KeyError for a given name that is no parameter, and what a cell raises.
    """
    if unknown := set(given) - set(parameters(notebook)):
        raise KeyError(f"{notebook.name} has no parameter {', '.join(sorted(unknown))}")
    names: dict[str, Any] = {"__name__": "__main__"}

    def shell(command: str) -> None:
        typed = re.sub(r"\{([^{}]+)\}", lambda found: str(eval(found[1], names)), command)
        sys.stdout.flush()
        names["_exit_code"] = subprocess.run(["bash", "-c", typed], check=False).returncode

    names["_shell"] = shell
    for number, cell in enumerate(cells(notebook)):
        exec(compile(source(cell), f"{notebook.name}, code cell {number}", "exec"), names)
        if PARAMETERS in cell["metadata"].get("tags", []):
            names.update(given)
    return names


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    execute(Path(sys.argv[1]), {name: _value(text) for name, _, text in (word.partition("=") for word in sys.argv[2:])})
