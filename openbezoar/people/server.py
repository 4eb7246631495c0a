"""The voting page on the loopback. Reads ``page/``; what it writes is a file of votes.

Only 127.0.0.1 is listened to, and only requests that call it by that name (or localhost) are
answered, so that a foreign site cannot reach it through a name of its own. What changes
something also needs a token that only a page of this origin can read. The page loads nothing
from anywhere else and may not: its Content-Security-Policy forbids it.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel

from openbezoar.errors import UserError
from openbezoar.people.outcome import numbers, tables, votes_on
from openbezoar.people.votes import BallotQueue, Choice

HOST = "127.0.0.1"
PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("vote.html", "text/html"),
    "/vote.css": ("vote.css", "text/css"),
    "/vote.js": ("vote.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Next = Callable[[Request], Awaitable[Response]]


class BallotRef(BaseModel):
    """The ballot that a request is about."""

    id: str


class BallotVote(BallotRef):
    """A vote on a ballot."""

    choice: Choice


def listen(port: int) -> socket.socket:
    """A socket on the loopback; port 0 takes a free one. Raises UserError if the port is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise UserError(f"--port {port}: {error.strerror}; choose another, or 0 for a free one") from None
    return listener


def make_server(queue: BallotQueue, port: int, seed: int) -> uvicorn.Server:
    """A server of the page that is not running yet; ``run(sockets=[…])`` runs it until it is interrupted."""
    return uvicorn.Server(
        uvicorn.Config(
            make_app(queue, port, seed), log_level="warning", server_header=False, timeout_graceful_shutdown=1
        )
    )


def make_app(queue: BallotQueue, port: int, seed: int) -> FastAPI:
    """The page and its five calls. Handlers are coroutines of one thread, so votes come one after another."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    token = secrets.token_urlsafe(24)
    _guard(app, {f"{HOST}:{port}", f"localhost:{port}"}, token)
    for path, (name, kind) in FILES.items():
        app.get(path)(_file(name, kind))

    def answer(do: Callable[[], bool]) -> JSONResponse:
        try:
            accepted = do()
        except OSError as error:
            return JSONResponse({"detail": f"{queue.votes.path}: {error.strerror}"}, 507)
        return JSONResponse({"token": token, **queue.state()}, 200 if accepted else 409)

    @app.get("/api/state")
    async def state() -> JSONResponse:
        return answer(lambda: True)

    @app.post("/api/vote")
    async def vote(body: BallotVote) -> JSONResponse:
        return answer(lambda: queue.cast(body.id, body.choice))

    @app.post("/api/skip")
    async def skip(body: BallotRef) -> JSONResponse:
        return answer(lambda: queue.skip(body.id))

    @app.post("/api/undo")
    async def undo(body: BallotRef) -> JSONResponse:
        return answer(lambda: queue.undo(body.id))

    @app.post("/api/result")
    async def result() -> JSONResponse:
        return JSONResponse(result_of(queue, seed))

    return app


def result_of(queue: BallotQueue, seed: int) -> dict[str, Any]:
    """This person's votes as tables of text: {votes, tables: [{headers, rows, note}], notes}."""
    voted = votes_on(queue.ballots, queue.own_votes)
    rendered, notes = tables(numbers(queue.models, voted, seed))
    return {
        "votes": len(voted),
        "tables": [{"headers": t.headers, "rows": t.rows, "note": t.note} for t in rendered],
        "notes": notes,
    }


def _file(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return FileResponse(PAGE / name, media_type=kind)

    return send


def _guard(app: FastAPI, hosts: set[str], token: str) -> None:
    """Refuse requests by another name, from another origin, or that would change something without
    the token; add ``HEADERS`` to every answer.
    """

    @app.middleware("http")
    async def guarded(request: Request, go_on: Next) -> Response:
        origin = request.headers.get("origin")
        answer: Response
        if request.headers.get("host") not in hosts:
            answer = JSONResponse({"detail": "unknown host"}, 403)
        elif origin is not None and origin not in {f"http://{host}" for host in hosts}:
            answer = JSONResponse({"detail": "another origin"}, 403)
        elif request.method not in ("GET", "HEAD") and not secrets.compare_digest(
            request.headers.get("x-vote-token", "").encode(), token.encode()
        ):
            answer = JSONResponse({"detail": "no token"}, 403)
        else:
            answer = await go_on(request)
        answer.headers.update(HEADERS)
        return answer
