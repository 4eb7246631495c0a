"""What of a release goes to the hub: listed without a network, sent exactly as released, held
against its checksums first.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from openbezoar.cli import release as cli_release
from openbezoar.errors import RunError
from openbezoar.publishing.checksums import SUMS, checked, write_sums
from openbezoar.publishing.upload import planned, push

TOKEN = "hf_secretsecret"


@pytest.fixture
def release(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A release's folder with two models and a data set, and its manifest."""
    folder = tmp_path / "release"
    groups: dict[str, dict[str, Any]] = {"models": {}, "data": {}}
    for group, name, inside in (("models", "SFT", ""), ("models", "DPO", ""), ("data", "lamini", "data/")):
        place = folder / f"{inside}{name}"
        (place / "gguf").mkdir(parents=True)
        (place / "README.md").write_text("---\nlicense: mit\n---\n\n# Card\n")
        (place / "weights.safetensors").write_bytes(name.encode() * 50)
        (place / "gguf/a.gguf").write_bytes(b"GGUF")
        write_sums(place)
        groups[group][name] = {"path": f"release/{inside}{name}", "licence": "mit"}
    return folder, {"numbers": groups}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    asked: list[tuple[str, Any, str | None]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        rows = [json.loads(line) for line in body.splitlines()]
        self.asked.append((self.path, rows, self.headers.get("Authorization")))
        answer: Any = {}
        if self.path.endswith("/create"):
            answer = {"url": f"http://{self.headers['Host']}/{rows[0].get('organization') or 'me'}/{rows[0]['name']}"}
        elif "/preupload/" in self.path:
            answer = {
                "files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in rows[0]["files"]]
            }
        elif "/commit/" in self.path:
            answer = {
                "commitUrl": f"http://{self.headers['Host']}/org/name/commit/abc",
                "commitOid": "abc",
                "success": True,
            }
        if self.path == "/api/validate-yaml" and "license: wrong" in rows[0]["content"]:
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b"license must be one of")
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def do_GET(self) -> None:
        self.asked.append((self.path, [], self.headers.get("Authorization")))
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any, str | None]]]:
    """A hub on this machine; what it was asked."""
    from huggingface_hub import constants

    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield Hub.asked
    server.shutdown()
    server.server_close()


def test_a_dry_run_lists_every_file_and_asks_nothing_of_a_network(
    release: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    cli_release._push(*release, "org/demo", [], True, False)
    said = capsys.readouterr()
    assert (
        "model org/demo-SFT: " in said.out
        and "dataset org/demo-lamini: " in said.out
        and "private, licence mit" in said.out
    )
    assert said.out.count("gguf/a.gguf") == 3 and said.out.count(SUMS) == 3
    assert "Nothing was uploaded" in said.err and TOKEN not in said.out + said.err


def test_a_push_makes_each_repository_and_sends_exactly_the_released_files(
    release: tuple[Path, dict[str, Any]], hub: list[tuple[str, Any, str | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    cli_release._push(*release, "org/demo", ["DPO", "lamini"], True, True)
    paths = [path for path, _, _ in hub]
    assert paths[0] == "/api/validate-yaml" and paths.count("/api/repos/create") == 2
    made = [rows[0] for path, rows, _ in hub if path == "/api/repos/create"]
    assert [(m["organization"], m["name"], m.get("type", "model")) for m in made] == [
        ("org", "demo-DPO", "model"),
        ("org", "demo-lamini", "dataset"),
    ]
    assert all(m.get("private") or m.get("visibility") == "private" for m in made)
    for name, commit in (
        ("DPO", "/api/models/org/demo-DPO/commit/main"),
        ("data/lamini", "/api/datasets/org/demo-lamini/commit/main"),
    ):
        (rows,) = [rows for path, rows, _ in hub if path == commit]
        sent = {row["value"]["path"]: base64.b64decode(row["value"]["content"]) for row in rows if row["key"] == "file"}
        there = {
            p.relative_to(release[0] / name).as_posix(): p.read_bytes()
            for p in (release[0] / name).rglob("*")
            if p.is_file()
        }
        assert sent == there and len(sent) == 4
    said = capsys.readouterr()
    assert said.out.count("/commit/abc") == 2 and TOKEN not in said.out + said.err


def test_one_folder_goes_to_the_very_name_and_may_be_public(
    release: tuple[Path, dict[str, Any]], hub: list[tuple[str, Any, str | None]]
) -> None:
    list(push(planned(*release, "org/demo", only=["SFT"]), private=False))
    (made,) = [rows[0] for path, rows, _ in hub if path == "/api/repos/create"]
    assert made["name"] == "demo" and not made.get("private") and made.get("visibility") in (None, "public")


def test_a_card_that_the_hub_refuses_stops_before_a_repository_is_made(
    release: tuple[Path, dict[str, Any]], hub: list[tuple[str, Any, str | None]]
) -> None:
    card = release[0] / "SFT/README.md"
    card.write_text("---\nlicense: wrong\n---\n")
    write_sums(card.parent)
    with pytest.raises(RunError, match="license must be one of"):
        list(push(planned(*release, "org/demo", only=["SFT"]), private=True))
    assert "/api/repos/create" not in [path for path, _, _ in hub]


def test_without_a_login_nothing_is_tried(
    release: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(RunError, match="hf auth login"):
        list(push(planned(*release, "org/demo"), private=True))


@pytest.mark.parametrize(
    ("target", "only", "said"),
    [("demo", [], "expected ORG/NAME"), ("a/b/c", [], "ORG/NAME"), ("a/b", ["X"], "it has SFT, DPO, lamini")],
)
def test_a_mistyped_target_or_name_is_refused(
    release: tuple[Path, dict[str, Any]], target: str, only: list[str], said: str
) -> None:
    with pytest.raises(RunError, match=said):
        planned(*release, target, only=only)


@pytest.mark.parametrize("change", ["changed", "missing", "added"])
def test_files_that_are_not_the_released_ones_are_not_sent(release: tuple[Path, dict[str, Any]], change: str) -> None:
    place = release[0] / "DPO"
    assert [f.name for f in checked(place)][-1] == SUMS
    if change == "changed":
        (place / "weights.safetensors").write_bytes(b"other")
    elif change == "missing":
        (place / "gguf/a.gguf").unlink()
    else:
        (place / "notes.txt").write_text("x")
    with pytest.raises(RunError, match="make the release again"):
        planned(*release, "org/demo", only=["DPO"])
