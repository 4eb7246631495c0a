"""The command line: which commands there are, and how errors become one line and an exit code.

Each command is a function in a ``cli_*`` module: arguments in, one call, words out. Results go
to stdout, chatter to stderr; no torch at import. Exit codes: 0 done, 1 a bug of ours, 2 the
user's mistake (one line), 130 interrupted.
"""

from __future__ import annotations

import shlex
import shutil
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
from openbezoar.cli_serve import serve
from openbezoar.cli_vote import vote
from openbezoar.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""From an open base model to a preference-aligned chat model of your own.

    Example: openbezoar run recipes/demo.yaml

    'openbezoar COMMAND --help' tells about one command; docs/ has a tour, how-tos and every key of a recipe.
    """,
)

# As the help lists them: in the order in which they are met.
COMMANDS = (
    plan,
    run,
    show,
    review,
    report,
    chat,
    vote,
    serve,
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


INTERRUPTED = 130
GOES_ON = ("run", "judge", "release")
"""Commands that keep finished steps, answers and checkpoints, and find them again."""


def _how_to_go_on(arguments: list[str]) -> str:
    if not arguments or arguments[0] not in GOES_ON:
        return ""
    program = "python -m openbezoar" if sys.argv[0].endswith("__main__.py") else "openbezoar" if shutil.which("openbezoar") == sys.argv[0] else sys.argv[0]
    return f"; finished steps, answers and checkpoints are kept. To go on: {program} {shlex.join(arguments)}"


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
        code = INTERRUPTED
    except Exception as error:
        if not hasattr(error, "exit_code"):  # click's own usage errors carry one
            raise
        print(f"openbezoar: {getattr(error, 'message', error)}; see openbezoar --help", file=sys.stderr)
        code = 2
    if code == INTERRUPTED:  # typer may have caught the interrupt itself, and returned its code
        print(f"\nopenbezoar: interrupted{_how_to_go_on(sys.argv[1:] if arguments is None else arguments)}", file=sys.stderr)
    distributed.stop()
    sys.exit(code if isinstance(code, int) else 0)
