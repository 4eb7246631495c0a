#!/usr/bin/env python
"""An engine that is none: OpenAI's protocol in some lines, and every way in which an engine can go wrong.

Run as ``fake_engine.py serve MODEL --served-model-name NAME --host H --port P ...``, as vLLM is. What goes wrong, and
when, stands in the JSON file that $FAKE_ENGINE names, read anew by each start; each start, and each call that was
answered, is a line of the file beside it, ``….seen``.

starts: of how many starts dies_at_start leaves alone; slow, slow_again: seconds before its first start answers, and a
later one; dies_at_start: exit code; dies_at: the call of the first start at which it is gone, all: of every start;
hangs_at: the same, it says no more; deaf: it does not hear TERM; child: it leaves one, in a session of its own, which
is deaf ("nameless": without the engine's mark, as one that has written a title over its environment); worker: it has a
child in its own group, which it ends by itself, and tells whether that was still there; deaf_to_one: it hears a TERM
only when its worker heard one; thief: it waits until its port is another's (the first start); counts: tokens more
than there are; takes: seconds a call; window: tokens.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PLAN = Path(os.environ["FAKE_ENGINE"])
SEEN = PLAN.with_suffix(".seen")
plan = json.loads(PLAN.read_text()) if PLAN.exists() else {}
arguments = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
port, name = int(arguments["--port"]), arguments.get("--served-model-name", arguments.get("--alias", ""))
calls, lock, replying, silent = 0, threading.Lock(), threading.Lock(), threading.Event()


def note(**what: object) -> None:
    with SEEN.open("a") as file:
        file.write(json.dumps(what) + "\n")


earlier = SEEN.read_text().count('"start"') if SEEN.exists() else 0
visible = os.environ.get("CUDA_VISIBLE_DEVICES")
note(start=os.getpid(), port=port, argv=sys.argv[1:], gpu=visible)
print("loading the weights", flush=True)
if plan.get("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if plan.get("child"):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    kept = {k: v for k, v in os.environ.items() if k != "OPENBEZOAR_ENGINE" or plan["child"] != "nameless"}
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, env=kept)
    note(child=child.pid)
if plan.get("worker"):
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def stop(*_: object) -> None:
        time.sleep(0.1)
        there = worker.poll() is None
        if there and plan.get("deaf_to_one"):
            return
        note(worker=worker.pid, there=there)
        worker.terminate()
        worker.wait()
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
if plan.get("thief") and not earlier:
    for _ in range(200):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.02)
time.sleep(plan.get("slow_again" if earlier else "slow", 0))
if plan.get("dies_at_start") and earlier >= plan.get("starts", 0):
    print("CUDA out of memory: tried to allocate 20 GiB", flush=True)
    sys.exit(plan["dies_at_start"])


def answer(prompt: object, most: int, seed: object, temperature: float) -> str:
    drawn = seed if temperature else None
    return " ".join(hashlib.sha256(f"{prompt}/{drawn}/{i}".encode()).hexdigest()[:3] for i in range(min(most, 6)))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def say(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if silent.is_set():
            time.sleep(600)
        if self.path == "/health":
            self.say(200, {})
        elif self.path == "/v1/models":
            self.say(200, {"data": [{"id": name, "max_model_len": plan.get("window", 1024)}]})
        else:
            self.say(404, {})

    def do_POST(self) -> None:
        global calls
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            calls += 1
            mine = calls
        first = not earlier or plan.get("all")
        if first and mine == plan.get("dies_at"):
            print("EngineCore died: illegal memory access", flush=True)
            with replying:  # what was written down as answered is on its way
                os._exit(3)
        if first and mine >= plan.get("hangs_at", 1 << 30):
            silent.set()
            time.sleep(600)
        prompt = body["prompt"]
        if len(body.get("stop") or []) > 4:  # as vLLM
            self.say(400, {"error": {"message": "stop: List should have at most 4 items", "code": 400}})
            return
        time.sleep(plan.get("takes", 0))
        text = answer(prompt, body["max_tokens"], body.get("seed"), body.get("temperature", 1))
        counted = len(prompt) + plan.get("counts", 0)
        with replying:
            note(call=prompt, body={k: v for k, v in body.items() if k != "prompt"})
            choice = {"text": text, "finish_reason": "stop", "index": 0}
            self.say(200, {"choices": [choice], "usage": {"prompt_tokens": counted, "completion_tokens": 6}})


ThreadingHTTPServer.allow_reuse_address = False
try:
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
except OSError as error:
    print(f"[Errno {error.errno}] address already in use", flush=True)
    sys.exit(1)
server.daemon_threads = True
server.serve_forever()
