"""Runs commands as an installation without some packages would: ``python tests/without.py``, jobs
as JSON on stdin, what came of each on stdout.

Only what a base install has is imported here; each job is a fork of this process, with its packages
hidden from the import system.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from typing import Any


class Hidden:
    """A finder before all others that has none of these packages."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if any(name == package or name.startswith(f"{package}.") for package in self.packages):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def result(hidden: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """Exit code and output of a command; of ``import X`` the line that is told of what it raises."""
    from openbezoar.cli.app import main
    from openbezoar.machine import extras

    sys.meta_path.insert(0, Hidden(hidden))  # type: ignore[arg-type]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            if arguments[0] == "import":
                __import__(arguments[1])
            else:
                main(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
        except ImportError as error:
            code = 1 if (told := extras.failed_import(error)) is None else 2
            print(traceback.format_exc() if told is None else told, file=sys.stderr)
        except BaseException:
            code = 1
            traceback.print_exc()
    return {
        "code": code,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "loaded": [name for name in ("torch", "transformers") if name in sys.modules],
    }


def forked(hidden: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if not child:
            os.write(file.fileno(), json.dumps(result(hidden, arguments)).encode())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        file.seek(0)
        return (
            json.loads(file.read())
            if status == 0
            else {"code": 1, "out": "", "err": f"ended with status {status}", "loaded": []}
        )


if __name__ == "__main__":
    for shared in (
        "cli",
        "engine.execution",
        "plan.table",
        "verbs.filter.check",
        "stats.agreement",
        "harness.run",
        "people.ballots",
        "verbs.report.page",
    ):
        import_module(f"openbezoar.{shared}")  # once, and not in each fork
    jobs = json.load(sys.stdin)
    print(json.dumps([forked(hidden, arguments) for hidden, arguments in jobs]))
