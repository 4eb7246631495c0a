"""A hub on this machine for the hub's own clients: a few repositories of models and data sets, and
every way in which one can be refused.

``python fake_hub.py`` answers on a free port, prints its address, and ends with its standard input.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

COMMIT = "a" * 40
CARD = b"""---
configs:
- config_name: en
  data_files: [{split: train, path: en.jsonl}, {split: test, path: en.jsonl}]
- config_name: de-DE
  data_files: de.jsonl
---
"""
ROW = b'{"instruction": "Name a sea.", "response": "The Baltic."}\n'
REPOSITORIES = {
    "org/one": {
        "train.jsonl": ROW,
        "config.json": b"{}",
        "model.safetensors": b"\x02" + bytes(7) + b"{}",
        "tokenizer.json": b"{}",
    },
    "org/many": {"README.md": CARD, "en.jsonl": ROW, "de.jsonl": ROW.replace(b"sea", b"Meer")},
    "org/script": {"script.py": b"", "rows.txt": b""},
    "org/empty": {"README.md": b"Nothing."},
}
REFUSALS = {
    "org/gated": (401, "GatedRepo"),
    "org/denied": (403, "GatedRepo"),
    "org/private": (401, "RepoNotFound"),
    "org/busy": (429, ""),
    "org/broken": (503, ""),
}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def reply(self, code: int, body: Any = b"", error: str = "", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {**headers, **({"X_Error_Code": error, "X_Error_Message": error} if error else {})}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        parts = [unquote(part) for part in self.path.split("?")[0].strip("/").split("/")]
        api = parts[0] == "api"
        parts = parts[2:] if api else parts[parts[0] == "datasets" :]
        name, rest = "/".join(parts[:2]), parts[2:]
        if name in REFUSALS:
            return self.reply(REFUSALS[name][0], b"no", REFUSALS[name][1])
        files = REPOSITORIES.get(name)
        if files is None:
            return self.reply(404, b"no", "RepoNotFound")
        if len(rest) > 1 and rest[1] not in ("main", COMMIT):
            return self.reply(404, b"no", "RevisionNotFound")
        entries = [
            {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for n, b in files.items()
        ]
        if not api:
            content = files.get("/".join(rest[2:]))
            if content is None:
                return self.reply(404, b"", "EntryNotFound", X_Repo_Commit=COMMIT)
            return self.reply(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)
        if rest[:1] == ["tree"]:
            return self.reply(404, b"", "EntryNotFound") if rest[2:] else self.reply(200, entries)
        if rest[:1] == ["paths-info"]:
            wanted = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked).get("paths", [])
            return self.reply(200, [entry for entry in entries if entry["path"] in wanted])
        when = "2024-01-01T00:00:00.000Z"
        siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in entries]
        return self.reply(
            200,
            {
                "id": name,
                "_id": "1",
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "siblings": siblings,
                "lastModified": when,
                "createdAt": when,
            },
        )

    do_HEAD = do_POST = do_GET


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()
