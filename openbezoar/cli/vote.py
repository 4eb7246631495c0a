"""The command ``vote``. Arguments in, one call, words out; neither torch nor the server is imported
before they are needed.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openbezoar.cli.arguments import AsJson, print_json
from openbezoar.errors import UserError
from openbezoar.progress import visible

if TYPE_CHECKING:
    from openbezoar.people.ballots import Ballot
    from openbezoar.people.votes import BallotQueue


def vote(
    source: Annotated[
        list[Path], typer.Argument(metavar="SOURCE", help="A run with a mt_bench step, or answer files.")
    ],
    questions: Annotated[
        Path | None, typer.Option("--questions", metavar="FILE", help="The questions of answer files.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--models", metavar="NAME", help="Compare these, every two (default: first and last)."),
    ] = None,
    step: Annotated[
        str | None, typer.Option("--step", metavar="STEP", help="Which mt_bench step, if there are several.")
    ] = None,
    turns: Annotated[str, typer.Option("--turns", metavar="WHICH", help="1, 2 or both.")] = "both",
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most so many votes.")] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Draws order and sides.")] = 0,
    votes: Annotated[
        Path | None, typer.Option("--votes", metavar="FILE", help="Where votes are kept (RUN/votes/STEP.jsonl).")
    ] = None,
    voter: Annotated[str, typer.Option("--voter", metavar="NAME", help="Who votes; the file says expert_NAME.")] = "me",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0: a free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write preference pairs for dpo; no page.")
    ] = None,
    result: Annotated[bool, typer.Option("--result", help="Print who wins how often; no page.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints' answers blind, on a local page.

    Keys: a, b, t tie, x both bad, s skip, u undo. Every vote is on disk at
    once; the same command goes on later, and 'openbezoar agreement' reads it.

    Example: openbezoar vote runs/demo --models base --models OpenBezoar-SFT
    """
    from openbezoar.people.votes import BallotQueue, VoteFile
    from openbezoar.store.digests import MANIFEST

    if turns not in ("1", "2", "both"):
        raise UserError(f"--turns {turns}: expected 1, 2 or both")
    if not re.fullmatch(r"[\w.]+", voter):
        raise UserError(f"--voter {voter}: expected letters, digits, '_' and '.'")
    ballots, path = _ballots(source, questions, step, models or [], turns, limit, seed)
    path = votes or path
    if (export or result) and not path.is_file():
        raise UserError(f"{path}: no such file of votes; vote first, or name it with --votes")
    with closing(VoteFile(path, read_only=export is not None or result)) as file:
        queue = BallotQueue(ballots, file, f"expert_{voter}")
        _warn_of_others(queue)
        if export:
            if (
                export.resolve() in {p.resolve() for p in (path, *source, questions or path)}
                or (export.resolve().parent / MANIFEST).is_file()
            ):
                raise UserError(
                    f"--export {export}: it would take the place of what the pairs are made from; name another file"
                )
            _export(queue, export)
        elif result:
            _print_result(queue, seed, as_json)
        else:
            _page(queue, port, seed, not no_browser)


def _ballots(
    source: list[Path],
    questions: Path | None,
    step: str | None,
    named: list[str],
    turns: str,
    limit: int | None,
    seed: int,
) -> tuple[list[Ballot], Path]:
    """What is compared, and where its votes are kept unless another file is named."""
    from openbezoar.people.ballots import TURNS, answers_of_files, answers_of_run, chosen_models, make_ballots
    from openbezoar.rows.records import Counts
    from openbezoar.store.runs import open_run

    counts = Counts()
    if missing := [path for path in source if not path.exists()]:
        raise UserError(f"{missing[0]}: no such file or folder; expected a run such as runs/demo, or answer files")
    if len(source) == 1 and source[0].is_dir():
        if questions is not None:
            raise UserError(f"--questions: the answers in {source[0]} have their questions with them; leave it out")
        run = open_run(source[0])
        name, rows = answers_of_run(run, step)
        path = run.path / "votes" / f"{name}.jsonl"
    else:
        if questions is None:
            raise UserError("vote: answer files need their questions; add --questions FILE, or name one run folder")
        rows, path = answers_of_files(source, questions, counts), Path("votes.jsonl")
    models = chosen_models(rows, named)
    ballots = make_ballots(rows, models, seed, turns=[int(turns)] if turns != "both" else TURNS, counts=counts)
    for reason, n in counts.by_reason.items():
        print(visible(f"left out: {n} {reason}"), file=sys.stderr)
    return ballots[:limit], path


def _warn_of_others(queue: BallotQueue) -> None:
    from openbezoar.people.outcome import votes_on

    others = len(queue.votes.rows) - len(votes_on(queue.ballots, queue.votes.rows))
    if others:
        print(
            f"{queue.votes.path}: votes on other answers or models: {others}; they stay there and are not counted here",
            file=sys.stderr,
        )


def _page(queue: BallotQueue, port: int, seed: int, browser: bool) -> None:
    from openbezoar.people.server import HOST, listen, make_server

    with closing(listen(port)) as socket:
        port = socket.getsockname()[1]
        url = f"http://{HOST}:{port}/"
        print(url, flush=True)
        print(
            f"{len(queue.done)} of {len(queue.ballots)} votes given, in {queue.votes.path}; Ctrl-C ends the page, the"
            " same command goes on",
            file=sys.stderr,
        )
        if browser and (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            _open_later(url)
        with suppress(KeyboardInterrupt):
            make_server(queue, port, seed).run(sockets=[socket])
    print(f"\n{len(queue.done)} of {len(queue.ballots)} votes given, in {queue.votes.path}", file=sys.stderr)


def _open_later(url: str) -> None:
    """Open the browser when the server has had a moment to begin; without a screen a browser would
    take the terminal.
    """
    import webbrowser

    timer = threading.Timer(0.5, webbrowser.open, [url])
    timer.daemon = True
    timer.start()


def _export(queue: BallotQueue, path: Path) -> None:
    from openbezoar.people.outcome import preference_rows, votes_on
    from openbezoar.rows.records import Counts, write_jsonl

    counts = Counts()
    voted = votes_on(queue.ballots, queue.votes.rows)
    rows = preference_rows(voted, counts)
    for reason, n in counts.by_reason.items():
        print(visible(f"left out: {n} {reason}"), file=sys.stderr)
    if not rows:
        raise UserError(
            f"{path}: not written: of {len(voted)} votes none prefers one of two answers to the same prompt; vote on"
            " first turns (--turns 1)"
        )
    try:
        write_jsonl(path, rows)
    except OSError as error:
        raise UserError(f"--export {path}: {error.strerror}; name another file") from None
    print(f"{path}: {len(rows)} pairs")


def _print_result(queue: BallotQueue, seed: int, as_json: bool) -> None:
    from openbezoar.people.outcome import numbers, tables, votes_on

    totals = numbers(queue.models, votes_on(queue.ballots, queue.own_votes), seed)
    if as_json:
        print_json({"judge": queue.judge, "ballots": len(queue.ballots), **totals})
        return
    print(f"{totals['n']} of {len(queue.ballots)} votes given by {queue.judge}")
    rendered, notes = tables(totals)
    for table in rendered:
        print(visible(f"\n{table.text()}"))
    print("\n".join(("", *notes)))
