"""A loopback proxy that spoils some of what passes through it, and knows what was answered."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Proxy:
    """Between a client and a server: by the number of the request answers 429 or 500, delays, or cuts the reply off.

    asked: how often each request body came. answered: how often each was answered whole.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.done: Counter[str] = Counter()  # by what was done to a request
        self.gate = threading.Event()  # cleared: requests wait before they are passed on
        self.gate.set()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with proxy.lock:
                    number = sum(proxy.asked.values())
                    key = json.dumps(json.loads(body), sort_keys=True)
                    proxy.asked[key] += 1
                what = proxy.spoils(number)
                proxy.done[what] += 1
                if what in ("429", "500"):
                    return self._send(
                        int(what),
                        json.dumps({"error": {"message": "spoilt"}}).encode(),
                        {"Retry-After": "0"} if what == "429" else {},
                    )
                if what == "delay":
                    time.sleep(0.05)
                proxy.gate.wait(60)
                try:
                    status, data = proxy.forward(self.path, body)
                except OSError:
                    proxy.done["server gone"] += 1
                    self.close_connection = True
                    return self.connection.close()
                if what == "cut":
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    return None
                if self._send(status, data, {}) and status == 200:
                    with proxy.lock:
                        proxy.answered[key] += 1
                return None

            def _send(self, status: int, data: bytes, headers: dict[str, str]) -> bool:
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                    return True
                except OSError:
                    return False  # the client was killed

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads, self.http.block_on_close = True, False
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def spoils(self, number: int) -> str:
        """What happens to the n-th request."""
        return {3: "429", 5: "500", 7: "delay", 11: "cut"}.get(number % 13, "pass")

    def forward(self, path: str, body: bytes) -> tuple[int, bytes]:
        """The server's reply. Raises OSError if there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=600)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, reply.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from None
        finally:
            connection.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    @property
    def twice(self) -> dict[str, int]:
        """Requests that came again after they had been answered whole."""
        return {key: n for key, n in self.answered.items() if n > 1}

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class Upstream:
    """An OpenAI-compatible chat server on a port of its choice, whose replies are a function of the request."""

    def __init__(self, say: Any, port: int = 0) -> None:
        upstream = self
        self.served = 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                messages = request["messages"]
                system = next((m["content"] for m in messages if m["role"] == "system"), "")
                text = say(system, messages[-1]["content"], request.get("seed", 0))
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                usage = {
                    "prompt_tokens": len(messages[-1]["content"].split()),
                    "completion_tokens": len(text.split()),
                    "total_tokens": 0,
                }
                body = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": [choice],
                    "usage": usage,
                }
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                upstream.served += 1

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads, self.http.block_on_close = True, False
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
