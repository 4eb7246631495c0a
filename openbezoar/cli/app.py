"""The command line: which commands there are, and how errors become one line and an exit code.

Each command is a function in a ``cli_*`` module: arguments in, one call, words out. Results go
to stdout, chatter to stderr; no torch at import. Exit codes: 0 done, 1 a bug of ours, 2 the
user's mistake (one line), 130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP, 75 a time
limit's end.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from contextlib import nullcontext
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from openbezoar import __version__
from openbezoar.cli import process
from openbezoar.cli.chat import chat
from openbezoar.cli.convert import convert
from openbezoar.cli.data import data
from openbezoar.cli.docs import docs
from openbezoar.cli.doctor import doctor
from openbezoar.cli.engine import engine
from openbezoar.cli.init import init
from openbezoar.cli.judge import agreement, judging, score
from openbezoar.cli.pack import pack, unpack
from openbezoar.cli.release import release
from openbezoar.cli.report import report
from openbezoar.cli.run import plan, run, schema
from openbezoar.cli.runs import cache, review, show, verify
from openbezoar.cli.serve import serve
from openbezoar.cli.vote import vote
from openbezoar.cli.watch import watch
from openbezoar.errors import UserError
from openbezoar.machine import distributed, extras, limits, stops
from openbezoar.machine.shares import SaidByFirst
from openbezoar.machine.streams import lead_nowhere_if_broken, reader_is_gone, standing
from openbezoar.progress import visible


class _InOrder(TyperGroup):
    """Lists the commands as ``COMMANDS`` does; Typer would put those that have commands of their own last."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        names = [
            str(command.info.name) if isinstance(command, typer.Typer) else command.__name__ for command in COMMANDS
        ]
        self.commands = {name: self.commands[name] for name in names}


app = typer.Typer(
    cls=_InOrder,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""From an open base model to a preference-aligned chat model of your own.

    Example: openbezoar run demo

    'openbezoar COMMAND --help' tells about one command; 'openbezoar docs' has a tour, how-tos
    and every key of a recipe.
    """,
)

# As the help lists them: in the order in which they are met.
COMMANDS = (
    init,
    doctor,
    data,
    plan,
    run,
    watch,
    show,
    verify,
    review,
    report,
    chat,
    vote,
    serve,
    engine,
    score,
    judging,
    agreement,
    release,
    convert,
    pack,
    unpack,
    cache,
    schema,
    docs,
)
for command in COMMANDS:
    if isinstance(command, typer.Typer):
        app.add_typer(command)
    else:
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
    program = sys.argv[0]
    if distributed.world() > 1:
        program = "torchrun (as before) -m openbezoar"
        if (here := os.environ.get("LOCAL_WORLD_SIZE")) == os.environ["WORLD_SIZE"]:
            program = f"torchrun --nproc-per-node {here} -m openbezoar"
    elif program.endswith("__main__.py"):
        program = "python -m openbezoar"
    elif shutil.which("openbezoar") == program:
        program = "openbezoar"
    return f"; finished steps, answers and checkpoints are kept. To go on: {program} {shlex.join(arguments)}"


def _usage(error: BaseException) -> str:
    """A usage error of the command line: what is wrong with which argument, and whose help tells more."""
    context = getattr(error, "ctx", None)
    words = " ".join(str(getattr(error, "format_message", lambda: error)()).split()).rstrip(".")
    return f"openbezoar: {words}; see {context.command_path if context else 'openbezoar'} --help"


def _line(error: BaseException) -> str | None:
    """The one line of an error that is not a bug of ours; None for one that is."""
    if hasattr(error, "exit_code"):  # click's own usage errors carry one
        bare = type(error).__name__ == "NoArgsIsHelpError"  # its message is the whole help
        return str(getattr(error, "message", error)) if bare else _usage(error)
    refusal = error if isinstance(error, UserError) else limits.refusal(error) or extras.failed_import(error)
    return None if refusal is None else f"openbezoar{distributed.which()}: {visible(' '.join(str(refusal).split()))}"


def _ran(arguments: list[str] | None) -> int:
    """Run a command and tell what ended it; gives the exit code. What is no line of ours is raised."""
    stdout = sys.stdout
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="openbezoar", standalone_mode=False)
        stdout.flush()  # here, where what goes wrong can still be told
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (Exception, SystemExit) as ended:
        sys.stdout = stdout  # click has put another one there, and an exit with 1 in place of any pipe's end
        error = (
            ended.__context__
            if isinstance(ended, SystemExit) and isinstance(ended.__context__, BrokenPipeError)
            else ended
        )
        if reader_is_gone(error):
            return 0
        if stops.asked() and distributed.rank():  # the first process ended meanwhile, and has said why
            return INTERRUPTED
        if isinstance(error, SaidByFirst):
            return 2
        if (line := _line(error)) is None:
            raise
        print(line, file=sys.stderr)
        lead_nowhere_if_broken(sys.stdout)
        return 2
    return code if isinstance(code, int) else 0


def main(arguments: list[str] | None = None) -> None:
    """The program. Turns errors into one line and an exit code."""
    process.own()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with standing(), stops.listening() if words[:1] and words[0] in GOES_ON else nullcontext():
            code = _ran(arguments)
            if code == INTERRUPTED:  # typer may have caught the interrupt itself, and returned its code
                code = stops.code()
                if not distributed.rank():
                    print(f"\nopenbezoar: {stops.words()}{_how_to_go_on(words)}", file=sys.stderr)
            distributed.stop()
    except stops.Stop as ended:  # a signal between two instructions of the above, as listening begins or ends
        code = ended.code
        if not distributed.rank():
            print(f"\nopenbezoar: {ended.words}{_how_to_go_on(words)}", file=sys.stderr)
    sys.exit(code)
