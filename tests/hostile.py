"""A loopback server with every fault of a reply as a switch: what is no answer, what never ends,
what lies about its tokens.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Outcome = tuple[int, str, dict[str, Any]]
"""A run's exit code, what it said, and the step's manifest."""
GOOD = "Status: accept\nRating: 8\nReason: A clear answer to what was asked."
SURROGATE = "half \ud83d a pair"
BOMB = gzip.compress(b'{"choices": "' + b" " * 20_000_000, 1)
DRIP = 0.02  # seconds between two bytes


def reply(text: Any, **change: Any) -> Body:
    """A chat server's good reply; ``change`` is of its choice."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, **change}
    usage = {"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def changed(text: str, **top: Any) -> Body:
    return {**reply(text), **top}


def usage(text: str, read: Any, written: Any) -> Body:
    return changed(text, usage={"prompt_tokens": read, "completion_tokens": written})


def raw(text: str) -> Body:
    """A good reply to a request for raw completion."""
    return {"id": "1", "object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": "stop"}]}


def message(text: str, content: Any) -> Body:
    return reply(None, message={"role": "assistant", "content": content})


def logprobs(text: str, **token: Any) -> Body:
    found = {"token": "7", "logprob": -0.1, "top_logprobs": [{"token": "7", "logprob": -0.1}], **token}
    return reply("7", logprobs={"content": [found]})


# Bodies that are no answer: each is a function of the text that a good server would have written.
MALFORMED: dict[str, Callable[[str], Body | list[Any] | bytes]] = {
    "cut JSON": lambda text: json.dumps(reply(text)).encode()[:-30],
    "nothing": lambda text: b"",
    "white space": lambda text: b" \n\n ",
    "a page": lambda text: b"<!DOCTYPE html><html><body>Log in</body></html>",
    "bytes that are no UTF-8": lambda text: json.dumps(reply("x")).encode().replace(b'"x"', b'"\xff\xfe\x80"'),
    "deep nesting": lambda text: b"[" * 100_000 + b"]" * 100_000,
    "deep nesting inside": lambda text: b'{"choices": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
    "5,000 digits": lambda text: json.dumps(reply(text)).encode().replace(b"40", b"4" * 5000),
    "null": lambda text: b"null",
    "a text": lambda text: b'"' + text.encode() + b'"',
    "a list": lambda text: [reply(text)["choices"][0]],
    "no choices": lambda text: {"id": "1", "object": "chat.completion"},
    "choices null": lambda text: changed(text, choices=None),
    "choices a text": lambda text: changed(text, choices=text),
    "choices a number": lambda text: changed(text, choices=1),
    "choices an object": lambda text: changed(text, choices={"0": reply(text)["choices"][0]}),
    "choices empty": lambda text: changed(text, choices=[]),
    "choice null": lambda text: changed(text, choices=[None]),
    "choice a text": lambda text: changed(text, choices=[text]),
    "choice empty": lambda text: changed(text, choices=[{}]),
    "choice without a message": lambda text: changed(text, choices=[{"index": 0, "finish_reason": "stop"}]),
    "finish error": lambda text: reply("", finish_reason="error"),
    "finish a number": lambda text: reply(text, finish_reason=1),
    "message a text": lambda text: reply(None, message=text),
    "message null": lambda text: reply(None, message=None),
    "message empty": lambda text: reply(None, message={}),
    "message a list": lambda text: reply(None, message=[{"content": text}]),
    "content a number": lambda text: message(text, 7),
    "content true": lambda text: message(text, True),
    "content an object": lambda text: message(text, {"text": text}),
    "content texts": lambda text: message(text, [text]),
    "content no parts": lambda text: message(text, []),
    "content an image": lambda text: message(
        text, [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "x"}}]
    ),
    "content a part without text": lambda text: message(text, [{"type": "text"}]),
    "content a part of another type": lambda text: message(text, [{"type": "text", "text": {"value": text}}]),
    "no content and no end": lambda text: reply(None, finish_reason=None),
    "usage a text": lambda text: changed(text, usage="12"),
    "usage a list": lambda text: changed(text, usage=[40, 12]),
    "usage counts texts": lambda text: usage(text, "40", "12"),
    "usage counts true": lambda text: usage(text, True, True),
    "usage counts objects": lambda text: usage(text, {}, []),
    "packed and cut": lambda text: gzip.compress(json.dumps(reply(text)).encode())[:-12],
    "packed otherwise": lambda text: b"\x1b\x00\x00",
    "a bomb": lambda text: BOMB,
    "too much": lambda text: b" " * 3_000_000 + json.dumps(reply(text)).encode(),
}
ENCODED = {"packed and cut": "gzip", "packed otherwise": "br", "a bomb": "gzip"}

# Replies whose text is there, with something wrong beside it.
PUT_RIGHT: dict[str, Callable[[str], Body | bytes]] = {
    "negative counts": lambda text: usage(text, -40, -12),
    "counts of zero": lambda text: usage(text, 0, 0),
    "enormous counts": lambda text: usage(text, 10**18, 10**30),
    "counts that are no numbers": lambda text: usage(text, float("nan"), float("nan")),
    "counts without end": lambda text: usage(text, float("inf"), float("-inf")),
    "counts of 4,000 digits": lambda text: usage(text, int("4" * 4000), 12),
    "half counts": lambda text: usage(text, 40.5, 0.5),
    "half a character": lambda text: reply(f"{text}\n{SURROGATE}"),
}
AS_GOOD: dict[str, Callable[[str], Body | bytes]] = {
    "counts null": lambda text: usage(text, None, None),
    "usage null": lambda text: changed(text, usage=None),
    "a mark of the byte order": lambda text: b"\xef\xbb\xbf" + json.dumps(reply(text)).encode(),
    "parts": lambda text: message(text, [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]),
    "a thinking part": lambda text: message(
        text,
        [{"type": "thinking", "thinking": [{"type": "text", "text": "Rating: 1?"}]}, {"type": "text", "text": text}],
    ),
    "a reasoning field": lambda text: reply(None, message={"content": text, "reasoning_content": "Rating: 1?"}),
}

# Replies that come as bytes over time, on the bare connection.
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
STREAMS: dict[str, Callable[[], Iterator[bytes]]] = {
    "a body that drips": lambda: _drip(HEAD + b"Content-Length: 1000\r\n\r\n", b" "),
    "headers that drip": lambda: _drip(HEAD, b"X"),
    "a status line that drips": lambda: _drip(b"", b"H"),
    "a body without end": lambda: _forever(HEAD + b"\r\n", b" " * 65_536),
    "headers without end": lambda: _forever(HEAD, b"X-A: " + b"b" * 1000 + b"\r\n"),
    "chunks without end": lambda: _forever(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b" " * 4096 + b"\r\n"
    ),
    "an error without end": lambda: _forever(b"HTTP/1.1 500 No\r\n\r\n", b"<script>" * 8192),
    "hints without end": lambda: _forever(b"", b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n"),
    "a cut body": lambda: iter([HEAD + b'Content-Length: 1000\r\n\r\n{"choices": [']),
    "no HTTP": lambda: iter([b"SSH-2.0-OpenSSH_9.6\r\n"]),
    "silence": lambda: iter([]),
}


def _drip(head: bytes, byte: bytes) -> Iterator[bytes]:
    yield head
    while True:
        time.sleep(DRIP)
        yield byte


def _forever(head: bytes, block: bytes) -> Iterator[bytes]:
    yield head
    while True:
        yield block


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        pass


class Hostile:
    """Answers ``say(prompt)``; a request for which ``strikes(number, prompt)`` holds meets the fault.

    fault: a body (an object, a list or bytes; with ``encoding`` as its Content-Encoding), a
    status with a body and headers, or a stream. refuses: a status and a body by the request.
    requests: what was asked; seen: its headers.
    """

    def __init__(self, say: Callable[[str], str]) -> None:
        self.say, self.requests, self.seen = say, list[Body](), list[dict[str, str]]()
        self.strikes: Callable[[int, str], bool] = lambda number, prompt: False
        self.body: Callable[[str], Any] | None = None
        self.status, self.headers, self.stream = 200, dict[str, str](), None  # type: ignore[var-annotated]
        self.refuses: Callable[[Body], tuple[int, Any] | None] = lambda request: None
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = request["messages"][-1]["content"] if "messages" in request else request["prompt"]
                with server.lock:
                    number = len(server.requests)
                    server.requests.append(request)
                    server.seen.append({name.lower(): value for name, value in self.headers.items()})
                try:
                    server.answer(self, number, prompt, request)
                except OSError:  # the client had enough
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self.http = _Quiet(("127.0.0.1", 0), Handler)
        self.http.daemon_threads, self.http.block_on_close = True, False
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, handler: BaseHTTPRequestHandler, number: int, prompt: str, request: Body) -> None:
        if (refusal := self.refuses(request)) is not None:
            return self._send(handler, *refusal, self.headers)
        if not self.strikes(number, prompt):
            text = self.say(prompt)
            return self._send(
                handler,
                200,
                usage(text, 8 + len(prompt) // 4, 1 + len(text) // 4) if "messages" in request else raw(text),
                {},
            )
        if self.stream is None:
            assert self.body is not None
            return self._send(handler, self.status, self.body(self.say(prompt)), self.headers)
        handler.close_connection = True
        for part in self.stream():
            handler.wfile.write(part)
            handler.wfile.flush()
        return None

    def _send(self, handler: BaseHTTPRequestHandler, status: int, body: Any, headers: dict[str, str]) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
