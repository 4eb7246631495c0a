"""A hub on this machine for the hub's own clients (``HF_ENDPOINT``): repositories with commits, branches and tags,
private and gated ones, tokens that may read or write, large files stored apart from git, uploads in parts, and faults
on demand.

What it answers is what the hub's documented API and its clients' source say of it. Xet, the storage behind the hub's
newer repositories, is not among it: clients are told so by HF_HUB_DISABLE_XET, and take large files over HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".gguf", ".parquet")  # kept apart from git, whatever their size
ADDRESS = re.compile(
    r"/(?P<api>api/)?(?P<kind>models/|datasets/)?(?P<name>[\w.-]+/[\w.-]+?)(?P<git>\.git/info/lfs/objects/batch)?"
    r"(?:/(?P<what>revision|tree|paths-info|resolve|preupload|commit|refs)(?:/(?P<rest>.*))?)?$"
)


@dataclass
class Repository:
    """gated: its page is open, its files are not. commits: each one's files; refs: branches and tags."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main", without: Collection[str] = ()) -> str:
        """Add a commit that has these files, and the branch's others, or main's for a new one, but for those that it
        takes out. Gives its hash.
        """
        before = self.commits.get(self.refs.get(branch, self.refs.get("main", "")), {})
        whole = {**{name: content for name, content in before.items() if name not in without}, **files}
        parts = [
            *sorted((name, hashlib.sha1(content).hexdigest()) for name, content in whole.items()),
            len(self.commits),
        ]
        oid = hashlib.sha1(repr(parts).encode()).hexdigest()
        self.commits[oid] = whole
        self.refs[branch] = oid
        return oid


@dataclass
class Fault:
    """What befalls requests of a method whose address has a text in it: 'refuse' with a status; 'drop': no answer;
    'cut': the connection ends ``after`` so many bytes of the body; 'stall': so many bytes, then nothing more.
    """

    method: str
    text: str
    does: str
    after: int = 0
    status: int = 0
    times: int = 1 << 30


@dataclass(frozen=True)
class Asked:
    """One request. sent: bytes of a file that were sent; got: bytes of a body that came."""

    method: str
    path: str
    range: str | None
    token: str | None
    body: bytes = b""

    @property
    def whole(self) -> str:
        return f"{self.method} {self.path}"


class Hub:
    """The server and what it keeps. tokens: who a token stands for: 'read' or 'write' in the organisation 'org', with
    access to gated repositories where 'granted' is among the words.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.part_bytes = 1 << 30
        self.tokens: dict[str, str] = {}
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        self.stalled = threading.Event()
        self.over = threading.Event()
        hub = self

        class Bound(_Requests):
            pass

        Bound.hub = hub
        self.server = _Server(("127.0.0.1", 0), Bound)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, name: str, files: Mapping[str, bytes], kind: str = "models", **more: Any) -> str:
        """A new repository with one commit on main; gives its hash."""
        repository = self.repositories[kind, name] = Repository(**more)
        return repository.commit(files)

    def files(self, name: str, kind: str = "models", ref: str = "main") -> dict[str, bytes]:
        """What a repository has."""
        repository = self.repositories[kind, name]
        return repository.commits[repository.refs[ref]]

    def fail(self, method: str, text: str, does: str, **more: int) -> None:
        """See ``Fault``."""
        self.faults.append(Fault(method, text, does, **more))

    def well(self) -> None:
        """No faults from now on, nothing asked so far."""
        self.faults.clear()
        self.asked.clear()
        self.stalled.clear()

    def requests(self, text: str, method: str = "") -> list[Asked]:
        """What was asked that has a text in its address."""
        return [one for one in self.asked if text in one.path and one.method.startswith(method)]

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is none of the server's errors."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    # ------------------------------------------------------------------ answers

    def reply(self, code: int, body: Any = b"", error: str = "", message: str = "", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fault, self.fault = self.fault, None
        self.send_response(code)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given |= {"X-Error-Code": error} if error else {}
        given |= {"X-Error-Message": message or error} if message or error else {}
        for name, value in given.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is None:
            self.wfile.write(content)
            return
        self.wfile.write(content[: fault.after])
        self.wfile.flush()
        if fault.does == "stall":
            self.hub.stalled.set()
            self.hub.over.wait(60)
        self.close_connection = True

    def refused(self, repository: Repository | None, files: bool, write: bool) -> bool:
        """Whether a request is answered by a refusal: as the hub words it to those who may not know."""
        token = self.token
        may = self.hub.tokens.get(token, "").split() if token else []
        if token and not may:
            self.reply(401, {"error": "Invalid credentials"}, message="Invalid credentials in Authorization header")
        elif repository is None or (repository.private and not may):
            self.reply(404 if may else 401, {"error": "Repository not found"}, "RepoNotFound", "Repository not found")
        elif files and repository.gated and "granted" not in may:
            self.reply(403 if may else 401, {"error": "gated"}, "GatedRepo", "Access to this model is restricted")
        elif write and "write" not in may:
            words = "You don't have the rights to write here" if may else "Invalid username or password."
            self.reply(403 if may else 401, {"error": words}, message=words)
        else:
            return False
        return True

    # ----------------------------------------------------------------- requests

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = self.headers.get("Authorization")
        self.token = said.removeprefix("Bearer ") if said else None
        self.hub.asked.append(Asked(self.command, self.path, self.headers.get("Range"), self.token, body))
        self.fault: Fault | None = None
        for fault in self.hub.faults:
            if fault.method == self.command and fault.text in self.path and fault.times:
                fault.times -= 1
                if fault.does == "refuse":
                    return self.reply(fault.status, {"error": "as asked"}, message="as asked")
                if fault.does == "drop":
                    self.close_connection = True
                    return None
                self.fault = fault
                if self.command in ("PUT", "POST"):  # nothing of what came is kept
                    return self.reply(200, b" " * (fault.after + 1))
                break
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        if path == "/api/validate-yaml":
            asked = json.loads(body)
            if "license: wrong" in asked["content"]:
                return self.reply(400, {"error": "license must be one of"}, message="license must be one of")
            return self.reply(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.startswith("/objects/"):
            return self.stored(path.split("/")[2], query, body)
        match = ADDRESS.fullmatch(path)
        if match is None:
            return self.reply(404, {"error": "no such address"})
        kind = (match["kind"] or "models/").rstrip("/")
        repository = self.hub.repositories.get((kind, match["name"]))
        what = "batch" if match["git"] else match["what"] or "revision"
        if self.refused(repository, what == "resolve", what in ("batch", "preupload", "commit")):
            return None
        assert repository is not None
        return self.about(repository, match["name"], what, match["rest"] or "", query, body)

    do_HEAD = do_POST = do_PUT = do_GET

    def about(
        self, repository: Repository, name: str, what: str, rest: str, query: dict[str, list[str]], body: bytes
    ) -> None:
        if what == "batch":
            return self.batch(json.loads(body))
        refs = {**repository.refs, **{oid: oid for oid in repository.commits}, "": repository.refs.get("main", "")}
        ref = next((r for r in sorted(refs, key=len, reverse=True) if rest == r or rest.startswith(f"{r}/")), None)
        if what == "commit":
            return self.commit(repository, name, rest, body)
        if what == "preupload":
            return self.preupload(repository, json.loads(body))
        if ref is None:
            return self.reply(404, {"error": "no such revision"}, "RevisionNotFound", f"Invalid rev id: {rest}")
        oid = refs[ref]
        files = repository.commits.get(oid, {})
        path = rest[len(ref) :].strip("/")
        if what == "resolve":
            return self.file(files, path, oid)
        entries = [_entry(path, content) for path, content in sorted(files.items())]
        if what == "tree":
            within = [entry for entry in entries if not path or entry["path"].startswith(f"{path}/")]
            if path and not within:
                return self.reply(404, {"error": "no such folder"}, "EntryNotFound")
            return self.reply(200, within)
        if what == "paths-info":
            said = body.decode()
            wanted = json.loads(said)["paths"] if said.startswith("{") else parse_qs(said).get("paths", [])
            return self.reply(200, [entry for entry in entries if entry["path"] in wanted])
        when = "2024-01-01T00:00:00.000Z"
        info = {"id": name, "_id": "1", "sha": oid or None, "private": repository.private, "gated": False, "tags": []}
        siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in entries]
        return self.reply(200, {**info, "siblings": siblings, "lastModified": when, "createdAt": when})

    def file(self, files: Mapping[str, bytes], path: str, oid: str) -> None:
        content = files.get(path)
        if content is None:
            return self.reply(404, {"error": "no such file"}, "EntryNotFound", X_Repo_Commit=oid)
        if not path.endswith(LARGE):
            return self.content(content, hashlib.sha1(content).hexdigest(), X_Repo_Commit=oid)
        sha = hashlib.sha256(content).hexdigest()
        self.hub.objects[sha] = content
        linked = {"X_Linked_Etag": f'"{sha}"', "X_Linked_Size": str(len(content)), "X_Repo_Commit": oid}
        # As the hub does, from another place than its own: clients send no token there.
        elsewhere = f"http://localhost:{self.hub.server.server_port}/objects/{sha}?of={path}"
        return self.reply(302, b"", Location=elsewhere, **linked)

    def content(self, content: bytes, etag: str, **headers: str) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = int(wanted[1]) if wanted else 0
        if wanted:
            headers["Content_Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self.reply(206 if wanted else 200, content[first:], ETag=f'"{etag}"', Accept_Ranges="bytes", **headers)

    def stored(self, sha: str, query: dict[str, list[str]], body: bytes) -> None:
        """The store of large files, which trusts who knows an address."""
        if self.command == "PUT":
            number = int(query.get("part", ["0"])[0])
            if number:
                self.hub.parts.setdefault(sha, {})[number] = body
            elif hashlib.sha256(body).hexdigest() != sha:
                return self.reply(400, {"error": "another digest"})
            else:
                self.hub.objects[sha] = body
            return self.reply(200, b"", ETag=f'"{hashlib.md5(body).hexdigest()}"')
        if self.command == "POST":
            whole = b"".join(part for _, part in sorted(self.hub.parts.pop(sha, {}).items()))
            if hashlib.sha256(whole).hexdigest() != sha:
                return self.reply(400, {"error": "another digest"})
            self.hub.objects[sha] = whole
            return self.reply(200, {})
        if sha not in self.hub.objects:
            return self.reply(404, {"error": "no such object"})
        return self.content(self.hub.objects[sha], sha)

    # ------------------------------------------------------------------ uploads

    def create(self, asked: dict[str, Any]) -> None:
        name, kind = f"{asked.get('organization') or 'me'}/{asked['name']}", f"{asked.get('type') or 'model'}s"
        if self.refused(self.hub.repositories.get((kind, name), Repository()), False, True):
            return None
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.hub.repositories:
            return self.reply(409, {"error": "You already created this repo", "url": url})
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.hub.repositories[kind, name] = Repository(private)
        return self.reply(200, {"url": url, "name": name})

    def preupload(self, repository: Repository, asked: dict[str, Any]) -> None:
        there = repository.commits.get(repository.refs.get("main", ""), {})
        self.reply(
            200,
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        **({"oid": _oid(file["path"], there[file["path"]])} if file["path"] in there else {}),
                    }
                    for file in asked["files"]
                ]
            },
        )

    def batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.objects:
                place = f"{self.hub.url}/objects/{one['oid']}"
                header: dict[str, str] = {}
                if one["size"] > self.hub.part_bytes:
                    count = -(-one["size"] // self.hub.part_bytes)
                    header = {str(n): f"{place}?part={n}" for n in range(1, count + 1)}
                    header["chunk_size"] = str(self.hub.part_bytes)
                answer["actions"] = {"upload": {"href": place, **({"header": header} if header else {})}}
            objects.append(answer)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def commit(self, repository: Repository, name: str, branch: str, body: bytes) -> None:
        files: dict[str, bytes] = {}
        gone: list[str] = []
        for row in (json.loads(line) for line in body.splitlines()):
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self.reply(400, {"error": "no such object"}, message=f"{value['path']}: no such object")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif row["key"] == "deletedFile":
                gone.append(value["path"])
        oid = repository.commit(files, branch, gone)
        return self.reply(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})


def _oid(path: str, content: bytes) -> str:
    """The hub's name for a file's content: of a large one its sha256, of others git's own."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    oid = _oid(path, content)
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if path.endswith(LARGE):
        entry |= {
            "oid": hashlib.sha1(content).hexdigest(),
            "lfs": {"oid": oid, "size": len(content), "pointerSize": 130},
        }
    return entry
