"""The command line: which commands there are, and how errors become one line and an exit code.

Each command is a function in a ``cli_*`` module: arguments in, one call, words out. Results go
to stdout, chatter to stderr; no torch at import. Exit codes: 0 done, 1 a bug of ours, 2 the
user's mistake (one line), 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import shutil
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from openbezoar import __version__, extras
from openbezoar.cli_chat import chat
from openbezoar.cli_judge import agreement, judging, score
from openbezoar.cli_release import release
from openbezoar.cli_report import report
from openbezoar.cli_run import plan, run, schema
from openbezoar.cli_runs import cache, review, show, verify
from openbezoar.cli_serve import serve
from openbezoar.cli_vote import vote
from openbezoar.errors import UserError
from openbezoar.progress import visible


class _InOrder(TyperGroup):
    """Lists the commands as ``COMMANDS`` does; Typer would put those that have commands of their own last."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        names = [str(command.info.name) if isinstance(command, typer.Typer) else command.__name__ for command in COMMANDS]
        self.commands = {name: self.commands[name] for name in names}


app = typer.Typer(
    cls=_InOrder,
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
    verify,
    review,
    report,
    chat,
    vote,
    serve,
    score,
    judging,
    agreement,
    release,
    cache,
    schema,
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
    program = "python -m openbezoar" if sys.argv[0].endswith("__main__.py") else "openbezoar" if shutil.which("openbezoar") == sys.argv[0] else sys.argv[0]
    return f"; finished steps, answers and checkpoints are kept. To go on: {program} {shlex.join(arguments)}"


# What the machine says no to, and what helps. An error that is none of these is a bug of ours, with its traceback.
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room and give the same command again; what was finished is kept"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "mend the permissions, or name another place"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG), "name another path"),
}


def _refusal(error: Exception) -> str | None:
    """What the machine refused, in one line; None for any other error."""
    if isinstance(error, OSError) and error.errno in REMEDIES:
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}; {REMEDIES[error.errno]}"
    if os.strerror(errno.ENOSPC) in str(error):  # torch and safetensors have errors of their own
        return f"{' '.join(str(error).split())}; {REMEDIES[errno.ENOSPC]}"
    if isinstance(error, RuntimeError) and str(error) == "Could not determine home directory.":  # pathlib's words for ~NOBODY
        return "a path begins with '~' and a name that is no user's; write the path out"
    return None


def _forgive_encodings() -> None:
    """Bytes that are no text, typed or piped in, and a terminal without some of our characters end no command."""
    for stream, forgiven in ((sys.stdin, True), (sys.stdout, False), (sys.stderr, False)):
        if isinstance(stream, io.TextIOWrapper) and (forgiven or stream.encoding.lower() not in ("utf-8", "utf8")):
            stream.reconfigure(errors="replace" if forgiven else "backslashreplace")


def _usage(error: Exception) -> str:
    """A usage error of the command line: what is wrong with which argument, and whose help tells more."""
    context = getattr(error, "ctx", None)
    words = " ".join(str(getattr(error, "format_message", lambda: error)()).split()).rstrip(".")
    return f"openbezoar: {words}; see {context.command_path if context else 'openbezoar'} --help"


def main(arguments: list[str] | None = None) -> None:
    """The program. Turns errors into one line and an exit code."""
    from openbezoar.training import distributed

    command = typer.main.get_command(app)
    _forgive_encodings()
    try:
        code = command.main(arguments, prog_name="openbezoar", standalone_mode=False)
    except UserError as error:
        print(f"openbezoar{distributed.which()}: {visible(' '.join(str(error).split()))}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if refusal := extras.told(error) or _refusal(error):
            print(f"openbezoar{distributed.which()}: {refusal}", file=sys.stderr)
        elif not hasattr(error, "exit_code"):  # click's own usage errors carry one
            raise
        else:
            bare = type(error).__name__ == "NoArgsIsHelpError"  # its message is the whole help
            print(getattr(error, "message", error) if bare else _usage(error), file=sys.stderr)
        code = 2
    if code == INTERRUPTED:  # typer may have caught the interrupt itself, and returned its code
        print(f"\nopenbezoar: interrupted{_how_to_go_on(sys.argv[1:] if arguments is None else arguments)}", file=sys.stderr)
    distributed.stop()
    sys.exit(code if isinstance(code, int) else 0)
