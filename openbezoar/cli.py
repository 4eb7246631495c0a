"""The command line: which commands there are, and how errors become one line and an exit code.

Each command is a function in a ``cli_*`` module: arguments in, one call, words out. Results go
to stdout, chatter to stderr; no torch at import. Exit codes: 0 done, 1 a bug of ours, 2 the
user's mistake (one line), 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from openbezoar import __version__
from openbezoar.cli_chat import chat
from openbezoar.cli_judge import agreement, judge, score
from openbezoar.cli_release import release
from openbezoar.cli_report import report
from openbezoar.cli_run import plan, run, schema
from openbezoar.cli_runs import cache, review, show
from openbezoar.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From an open base model to a preference-aligned chat model of your own.",
)

# As the help lists them: in the order in which they are met.
COMMANDS = (
    plan,
    run,
    show,
    review,
    report,
    chat,
    score,
    judge,
    agreement,
    release,
    cache,
    schema,
)
for command in COMMANDS:
    app.command()(command)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """The program. Turns errors into one line and an exit code."""
    from openbezoar.training import distributed

    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="openbezoar", standalone_mode=False)
    except UserError as error:
        print(f"openbezoar{distributed.which()}: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        print("\nopenbezoar: interrupted; the same command goes on from here", file=sys.stderr)
        code = 130
    except Exception as error:
        if not hasattr(error, "exit_code"):  # click's own usage errors carry one
            raise
        print(f"openbezoar: {getattr(error, 'message', error)}; see openbezoar --help", file=sys.stderr)
        code = 2
    distributed.stop()
    sys.exit(code if isinstance(code, int) else 0)
