"""A real engine, and what it was asked: run in the engine's place as ``recorded_engine.py ARGUMENTS``.

The program itself ($RECORDED_ENGINE_PROGRAM) is started with the same arguments on another port; everything passes
through. In the folder $RECORDED_ENGINE are written: ``answered.jsonl``, a line {"status", "body", "reply"} for each
completion that was answered whole; ``start-N``, with the program's process id; ``session-N``, with its session's. A
completion beyond the number in ``hold`` (a file of that folder) waits until the file is gone or says more, and ``held``
is written once none is under way.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(os.environ["RECORDED_ENGINE"])
LOCK = threading.Lock()
begun = ended = 0  # completions


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for_leave() -> None:
    """Until one more completion may begin."""
    global begun
    while True:
        with LOCK:
            try:
                most = int((FOLDER / "hold").read_text() or 0)
            except FileNotFoundError:
                most = sys.maxsize
            if begun < most:
                begun += 1
                return
            if begun == ended:
                (FOLDER / "held").touch()
        time.sleep(0.02)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.passed("GET", None)

    def do_POST(self) -> None:
        self.passed("POST", self.rfile.read(int(self.headers["Content-Length"])))

    def passed(self, method: str, body: bytes | None) -> None:
        global ended
        if body is None:
            return self.forwarded(method, body)
        wait_for_leave()
        try:
            return self.forwarded(method, body)
        finally:
            with LOCK:
                ended += 1

    def forwarded(self, method: str, body: bytes | None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", inner, timeout=1800)
        try:
            connection.request(method, self.path, body, {"Content-Type": "application/json"} if body else {})
            reply = connection.getresponse()
            status, data = reply.status, reply.read()
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            return self.connection.close()
        finally:
            connection.close()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            return None
        if body is not None:
            line = json.dumps({"status": status, "body": json.loads(body), "reply": json.loads(data)})
            with LOCK, (FOLDER / "answered.jsonl").open("a") as file:
                file.write(line + "\n")
        return None

    def log_message(self, *args: object) -> None:
        pass


arguments = list(sys.argv[1:])
place = arguments.index("--port") + 1
outer, inner = int(arguments[place]), free_port()
arguments[place] = str(inner)
process = subprocess.Popen([os.environ["RECORDED_ENGINE_PROGRAM"], *arguments])
number = len(list(FOLDER.glob("start-*"))) + 1
(FOLDER / f"session-{number}").write_text(str(os.getsid(0)))
(FOLDER / f"start-{number}").write_text(str(process.pid))
http_server = ThreadingHTTPServer(("127.0.0.1", outer), Handler)
http_server.daemon_threads = True
threading.Thread(target=http_server.serve_forever, daemon=True).start()
sys.exit(process.wait())
