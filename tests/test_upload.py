"""What of a release goes to the hub: listed without a network, sent exactly as released, held
against its checksums first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

from openbezoar.cli import release as cli_release
from openbezoar.errors import RunError
from openbezoar.publishing.checksums import SUMS, checked, write_sums
from openbezoar.publishing.upload import planned, push

TOKEN, READER = "hf_secretsecret", "hf_readsecret"


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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, to which TOKEN may write."""
    from huggingface_hub import constants

    made = Hub()
    made.tokens |= {TOKEN: "write", READER: "read"}
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    files = f"{made.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield made
    made.close()


def released(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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
    release: tuple[Path, dict[str, Any]], hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    cli_release._push(*release, "org/demo", ["DPO", "lamini"], True, True)
    assert set(hub.repositories) == {("models", "org/demo-DPO"), ("datasets", "org/demo-lamini")}
    assert all(made.private for made in hub.repositories.values())
    for inside, name, kind in (("DPO", "org/demo-DPO", "models"), ("data/lamini", "org/demo-lamini", "datasets")):
        assert hub.files(name, kind) == released(release[0] / inside) and len(hub.files(name, kind)) == 4
    assert [one.path for one in hub.asked][:2] == ["/api/validate-yaml"] * 2
    said = capsys.readouterr()
    assert said.out.count("/commit/") == 2 and TOKEN not in said.out + said.err


def test_one_folder_goes_to_the_very_name_and_may_be_public(release: tuple[Path, dict[str, Any]], hub: Hub) -> None:
    list(push(planned(*release, "org/demo", only=["SFT"]), private=False))
    assert [(name, made.private) for (_, name), made in hub.repositories.items()] == [("org/demo", False)]


def test_large_files_go_in_parts_and_what_the_hub_has_is_not_sent_again(
    release: tuple[Path, dict[str, Any]], hub: Hub
) -> None:
    hub.part_bytes = 60
    uploads = planned(*release, "org/demo", only=["SFT"])
    list(push(uploads, private=True))
    assert len(hub.requests("?part=")) == 3 and hub.files("org/demo") == released(release[0] / "SFT")
    hub.well()
    list(push(uploads, private=True))
    assert not hub.requests("/objects/", "PUT") and not hub.requests("/commit/")


def test_a_later_release_takes_out_what_the_older_one_brought_and_leaves_what_others_put_there(
    release: tuple[Path, dict[str, Any]], hub: Hub
) -> None:
    folder = release[0] / "SFT"
    (folder / "shard-[1].safetensors").write_bytes(b"old")
    write_sums(folder)
    list(push(planned(*release, "org/demo", only=["SFT"]), private=True))
    assert hub.files("org/demo") == released(folder) and "shard-[1].safetensors" in released(folder)
    hub.repositories["models", "org/demo"].commit({"shard-1.safetensors": b"mine", "notes.md": b"mine"})
    (folder / "shard-[1].safetensors").unlink()
    write_sums(folder)
    list(push(planned(*release, "org/demo", only=["SFT"]), private=True))
    assert hub.files("org/demo") == {**released(folder), "shard-1.safetensors": b"mine", "notes.md": b"mine"}


def test_a_push_that_breaks_off_says_so_and_sends_only_the_rest_again(
    release: tuple[Path, dict[str, Any]], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its tries
    weights, gguf = (hashlib.sha256(content).hexdigest() for content in (b"SFT" * 50, b"GGUF"))
    hub.fail("PUT", weights, "drop")
    uploads = planned(*release, "org/demo", only=["SFT"])
    with pytest.raises(RunError, match=r"^org/demo: the hub cannot be reached, or broke the upload off; run the same"):
        list(push(uploads, private=True))
    assert gguf in hub.objects and weights not in hub.objects and not hub.repositories["models", "org/demo"].commits
    hub.well()
    list(push(uploads, private=True))
    assert [one.path for one in hub.requests("/objects/", "PUT")] == [f"/objects/{weights}"]
    assert hub.files("org/demo") == released(release[0] / "SFT")


def test_a_repository_that_others_can_read_gets_nothing_that_was_to_be_private(
    release: tuple[Path, dict[str, Any]], hub: Hub
) -> None:
    hub.add("org/demo-DPO", {"README.md": b"mine"})
    for private, said in ((True, "is public; nothing was sent. Call this with --public"), (False, "is private")):
        hub.repositories["models", "org/demo-DPO"].private = not private
        with pytest.raises(RunError, match=said):
            list(push(planned(*release, "org/demo"), private=private))
        assert list(hub.repositories) == [("models", "org/demo-DPO")] and not hub.objects
    assert hub.files("org/demo-DPO") == {"README.md": b"mine"}


@pytest.mark.parametrize(
    ("token", "status", "said"),
    [
        (READER, 0, "this login may not write there (403 Forbidden); take a token that may"),
        (f"{TOKEN}x", 0, "the hub knows no such token (401 Unauthorized); run 'hf auth login'"),
        (TOKEN, 507, "the hub answered 507 Insufficient Storage; run the same command again later"),
        (TOKEN, 413, "the hub did not take it ("),
    ],
)
def test_a_refused_push_is_one_line_with_the_remedy_and_without_the_token(
    release: tuple[Path, dict[str, Any]],
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    status: int,
    said: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    if status:
        hub.fail("POST", "/commit/", "refuse", status=status)
    with pytest.raises(RunError) as told:
        list(push(planned(*release, "org/demo", only=["SFT"]), private=True))
    line = str(told.value)
    assert line.startswith(f"org/demo: {said}") and line.endswith("and is not sent again") and "\n" not in line
    assert TOKEN not in line and READER not in line


def test_a_card_that_the_hub_refuses_stops_before_a_repository_is_made(
    release: tuple[Path, dict[str, Any]], hub: Hub
) -> None:
    card = release[0] / "DPO/README.md"
    card.write_text("---\nlicense: wrong\n---\n")
    write_sums(card.parent)
    with pytest.raises(RunError, match=r"org/demo-DPO: .*license must be one of"):
        list(push(planned(*release, "org/demo"), private=True))
    assert not hub.repositories


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
