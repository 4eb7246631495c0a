"""The commands that take a run to another machine: ``pack`` and ``unpack``. Results to stdout, chatter to stderr;
no torch at import.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openbezoar.cli.arguments import RunPath, named
from openbezoar.progress import visible

if TYPE_CHECKING:
    from openbezoar.engine.moving import Moved


def pack(
    run_path: RunPath,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to; default: NAME.openbezoar.zip here.")
    ] = None,
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Only the hashes of files of rows and of models on this disk.")
    ] = False,
) -> None:
    """Pack a run into one file, to go on with it elsewhere.

    In it: the run folder with unfinished training, the answers that its unfinished steps got, the
    recipe and the files that it names beside it, each with its hash. Models from a hub or pypi:
    are named only, and so are files at absolute paths. Never a key or a token.

    Example: openbezoar pack runs/demo -o demo.zip
    """
    from openbezoar.engine import moving

    folder = named(run_path)
    target = out or Path(f"{folder.name}.openbezoar.zip")
    packed = moving.pack(folder, target, data=not no_data)
    _tell("packed", packed)
    print(target)


def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What 'openbezoar pack' wrote.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="A new or empty one; default: the run's name.")
    ] = None,
) -> None:
    """Unpack a run, and print the command that goes on with it.

    Every file is held against its hash; a file that is damaged, or that would leave the folder,
    ends it with one line and nothing unpacked.

    Example: openbezoar unpack demo.zip elsewhere
    """
    from openbezoar.engine import moving

    unpacked = moving.unpack(file, folder)
    _tell("unpacked", unpacked)
    print(visible(unpacked.command))


def _tell(what: str, moved: Moved) -> None:
    from openbezoar.reporting.wording import size

    lines = [f"{what} {moved.run}: {moved.files} files, {size(moved.bytes)}, {moved.calls} answers of unfinished steps"]
    lines += [f"  fetched by its name: {name}" for name in moved.fetched]
    lines += [f"  not in it, must lie there: {path} (SHA-256 {sha})" for path, sha in sorted(moved.missing.items())]
    lines += [f"  needs the environment variable {name}" for name in moved.keys]
    for line in lines:
        print(visible(line), file=sys.stderr)
