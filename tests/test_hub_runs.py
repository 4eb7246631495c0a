"""Runs on models and data sets of a hub on this machine, through the command line: what is refused, which commit is
read, what becomes of a download or an upload that breaks off.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, recipe_in, save_tiny_model
from hub_server import Hub
from warm import Commands, Done, killing

pytest.importorskip("datasets")
pytestmark = pytest.mark.slow

TOKEN = "hf_" + "Xy7" * 11
SFT = {"sft": "hub:org/rows", "model": "base", **FAST, "max_steps": 3, "heldout_every": 6, "quantize": "none"}


def rows(word: str) -> bytes:
    made = [
        {"id": f"r{i}", "instruction": f"Say the number {i}.", "response": f"The {word} is {i}, as you asked."}
        for i in range(18)
    ]
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """The files of two models of one shape."""
    return [files_of(save_tiny_model(tmp_path_factory.mktemp("weights"), seed=seed)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


@pytest.fixture(scope="module")
def warm(server: Hub) -> Iterator[Commands]:
    """Commands of a process that was told of the hub before it imported the hub's clients, as a user's is."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HOME"):
            patch.delenv(name, raising=False)
        for name, value in {
            "HF_ENDPOINT": server.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }.items():
            patch.setenv(name, value)
        made = Commands()
    yield made
    made.close()


HOME = """
import datasets.config, huggingface_hub.constants as hub
from pathlib import Path
hub.HF_HOME, hub.HF_HUB_CACHE, hub.HF_TOKEN_PATH = {home!r}, {home!r} + "/hub", {home!r} + "/token"
datasets.config.HF_DATASETS_CACHE = Path({home!r}, "datasets")
datasets.config.HF_CACHE_HOME = {home!r}
hub.DOWNLOAD_CHUNK_SIZE = 50_000  # 10 MB, more than these models have
"""


class Desk:
    """A folder to work in, with a cache of its own of what comes from the hub."""

    def __init__(self, folder: Path, hub: Hub, commands: Commands, tiny: Path) -> None:
        self.folder, self.hub, self.commands, self.tiny = folder, hub, commands, tiny
        self.home, self.runs = folder / "home", folder / "runs"

    def recipe(self, steps: dict[str, Any], model: str = "org/tiny") -> None:
        recipe_in(self.folder, self.tiny, steps, models={"base": {"model": model, "dtype": "float32"}})

    def start(self, *words: str, token: str = "", runs: str = "runs", first: str = "") -> Any:
        if words[0] in ("plan", "run"):
            words = (*words, str(self.folder / "recipe.yaml"), "--runs", str(self.folder / runs))
        env = {"HF_HOME": str(self.home), "OPENBEZOAR_CACHE": str(self.folder / "cache")}
        return self.commands.start(
            *words,
            first=HOME.format(home=str(self.home)) + first,
            cwd=self.folder,
            env={**env, **({"HF_TOKEN": token} if token else {})},
        )

    def __call__(self, *words: str, **more: str) -> Done:
        done = self.start(*words, **more).wait()
        assert TOKEN not in done.out + done.err
        return done

    def killed(self, *words: str, **more: str) -> None:
        """A command that is killed when the hub has stalled."""
        running = self.start(*words, **more)
        assert self.hub.stalled.wait(60)
        os.killpg(running.pid, signal.SIGKILL)
        assert running.wait().code == -signal.SIGKILL
        self.hub.well()


@pytest.fixture
def desk(tmp_path: Path, server: Hub, warm: Commands, tiny: Path, weights: list[dict[str, bytes]]) -> Desk:
    server.well()
    server.repositories.clear()
    server.objects.clear()
    server.tokens = {TOKEN: "write"}
    server.add("org/tiny", weights[0])
    server.add("org/rows", {"train.jsonl": rows("number")}, "datasets")
    return Desk(tmp_path, server, warm, tiny)


def line(done: Done) -> str:
    """The last thing said, which stands on one line."""
    assert done.code == 2, done.err
    return done.err.strip().splitlines()[-1]


@pytest.mark.parametrize("what", ["model", "data"])
def test_what_is_gated_private_or_missing_is_one_line_and_a_token_is_never_written(desk: Desk, what: str) -> None:
    kind, place = ("models", "org/tiny") if what == "model" else ("datasets", "org/rows")
    desk.recipe({"sft": SFT})
    planned = desk("plan", token=TOKEN)
    assert planned.code == 0 and not desk.hub.asked  # a plan asks nothing
    shown = ("" if what == "model" else "hub:") + place
    noun = "model" if what == "model" else "data set"
    repository = desk.hub.repositories[kind, place]
    for change, token, said in (
        ({"gated": True}, "", f"the {noun} is gated: ask for access on its page on the hub, then log in"),
        ({"gated": True}, TOKEN, f"the {noun} is gated: ask for access on its page on the hub, then log in"),
        ({"private": True}, "", f"the hub has no such {noun}, or it is private; check the name, or log in"),
        ({"private": True}, TOKEN + "x", "the hub knows no such token (401 Unauthorized); log in again"),
    ):
        repository.gated, repository.private = change.get("gated", False), change.get("private", False)
        assert f"step sft: {shown}: {said}" in line(desk("run", token=token))
    repository.gated = False
    assert desk("run", token=TOKEN).code == 0  # private still
    assert {one.token for one in desk.hub.requests("/objects/", "GET")} <= {None}  # another host gets no token
    assert not [name for name, content in files_of(desk.folder).items() if TOKEN.encode() in content]


def test_a_run_goes_on_with_the_commits_that_it_began_with(desk: Desk, weights: list[dict[str, bytes]]) -> None:
    model, data = desk.hub.repositories["models", "org/tiny"], desk.hub.repositories["datasets", "org/rows"]
    first = {"org/tiny": model.refs["main"], "hub:org/rows": data.refs["main"]}
    steps = {"sft": {**SFT, "save_every": 1}, "merged": {"merge": "sft"}}
    desk.recipe(steps)
    assert desk("run", runs="undisturbed").code == 0
    broken = desk.start("run", first=killing("openbezoar.training.loop", "_save", 2, "after")).wait()
    assert broken.code == -signal.SIGKILL and json.loads((desk.runs / "t/hub.json").read_text()) == first
    model.commit(weights[1])
    data.commit({"train.jsonl": rows("numeral")})
    assert desk("run").code == 0
    made = [files_of(desk.folder / runs / "t") for runs in ("runs", "undisturbed")]
    for name in ("sft/adapter/adapter_model.safetensors", "merged/model/model.safetensors"):
        assert made[0][name] == made[1][name], name
    manifest = json.loads(made[0]["sft/manifest.json"])
    assert manifest["hub"] == first
    assert json.loads(made[0]["sft/model.json"])["base"] == f"org/tiny@{first['org/tiny']}"
    # A run that begins now has what the hub has now.
    assert desk("run", runs="later").code == 0
    assert json.loads((desk.folder / "later/t/hub.json").read_text())["org/tiny"] == model.refs["main"]
    later = files_of(desk.folder / "later/t")["merged/model/model.safetensors"]
    assert later != made[0]["merged/model/model.safetensors"]
    # Nothing is asked of the hub for what a run holds on to and the cache has.
    desk.hub.well()
    desk.recipe({**steps, "again": {"sft": "rows.jsonl", "model": "base", **FAST, "max_steps": 1}})
    assert desk("run").code == 0 and not desk.hub.requests("/org/tiny")


@pytest.mark.parametrize("last", ["/config.json", "of=model.safetensors"])
def test_a_download_that_was_killed_is_begun_again(desk: Desk, weights: list[dict[str, bytes]], last: str) -> None:
    desk.recipe({"sft": SFT})
    desk.hub.fail("GET", last, "stall", after=100)
    desk.killed("run")
    planned = desk("plan")
    assert planned.code == 0 and not desk.hub.asked, planned.err
    desk.hub.fail("GET", "/org/tiny", "refuse", status=503)
    assert "org/tiny: the hub answered 503 Service Unavailable; try again later" in line(desk("run"))
    desk.hub.well()
    assert desk("run").code == 0
    (snapshot,) = (desk.home / "hub/models--org--tiny/snapshots").iterdir()
    assert files_of(snapshot) == weights[0]
    assert desk("plan").code == 0


def test_a_download_that_breaks_off_goes_on_where_it_was(desk: Desk, weights: list[dict[str, bytes]]) -> None:
    desk.recipe({"sft": {**SFT, "sft": "rows.jsonl"}})
    desk.hub.fail("GET", "of=model.safetensors", "cut", after=100_000, times=1)
    assert desk("run").code == 0
    asked = [one.range for one in desk.hub.requests("of=model.safetensors")]
    assert asked == [None, "bytes=100000-"]
    (snapshot,) = (desk.home / "hub/models--org--tiny/snapshots").iterdir()
    assert files_of(snapshot) == weights[0]


def test_rows_whose_download_was_killed_are_fetched_again(desk: Desk) -> None:
    desk.recipe({"sft": SFT})
    desk.hub.fail("GET", "/train.jsonl", "stall", after=700)
    desk.killed("run")
    assert desk("run").code == 0
    assert json.loads((desk.runs / "t/sft/manifest.json").read_text())["numbers"]["rows"] == 15


class Marked:
    """Unpickled, it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


def test_of_a_model_no_code_and_no_pickle_is_taken(desk: Desk, weights: list[dict[str, bytes]]) -> None:
    mark = desk.folder / "ran"
    hostile = pickle.dumps(Marked(mark))
    config = {**json.loads(weights[0]["config.json"]), "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}
    desk.hub.repositories["models", "org/tiny"].commit(
        {
            "config.json": json.dumps(config).encode(),
            "modeling.py": f"open({str(mark)!r}, 'w')\n".encode(),
            "pytorch_model.bin": hostile,
            "training_args.bin": hostile,
            "weights.pt": hostile,
            "data.pkl": hostile,
        }
    )
    desk.recipe({"sft": {**SFT, "sft": "rows.jsonl"}})
    assert desk("run").code == 0
    (snapshot,) = (desk.home / "hub/models--org--tiny/snapshots").iterdir()
    assert sorted(files_of(snapshot)) == sorted(weights[0])
    # Where there is nothing else, pickled weights are read by an interpreter that makes tensors alone.
    bare = {name: content for name, content in weights[0].items() if name != "model.safetensors"}
    desk.hub.add("org/pickled", {**bare, "pytorch_model.bin": hostile, "training_args.bin": hostile})
    desk.recipe({"sft": {**SFT, "sft": "rows.jsonl"}}, "org/pickled")
    assert "take a model whose weights are safetensors" in line(desk("run"))
    desk.hub.add("org/packed", {**bare, "tiny-Q8_0.gguf": b"GGUF"})
    desk.recipe({"sft": {**SFT, "sft": "rows.jsonl"}}, "org/packed")
    assert "hf download org/packed tiny-Q8_0.gguf --local-dir ." in line(desk("run"))
    desk.hub.add("org/none", bare)
    desk.recipe({"sft": {**SFT, "sft": "rows.jsonl"}}, "org/none")
    assert "no weights; expected *.safetensors" in line(desk("run"))
    assert not mark.exists()


def test_a_release_is_pushed_privately_through_a_kill_and_can_be_trained_on(desk: Desk) -> None:
    desk.recipe({"sft": SFT, "merged": {"merge": "sft"}, "release": {"release": ["merged"], "gguf": []}})
    assert desk("run").code == 0
    push = ("release", str(desk.runs / "t"), "--push", "org/mine", "--yes")
    assert "--push: not logged in to the hub; run 'hf auth login'" in line(desk(*push))
    desk.hub.well()
    desk.hub.fail("PUT", "/objects/", "stall")
    desk.killed(*push, token=TOKEN)
    assert not desk.hub.repositories["models", "org/mine"].commits
    pushed = desk(*push, token=TOKEN)
    assert pushed.code == 0 and f"{desk.hub.url}/org/mine/commit/" in pushed.out
    released = files_of(desk.runs / "t/release/merged")
    assert desk.hub.files("org/mine") == released and desk.hub.repositories["models", "org/mine"].private
    assert (
        f"base_model_revision: {desk.hub.repositories['models', 'org/tiny'].refs['main']}".encode()
        in released["README.md"]
    )
    desk.recipe({"sft": {**SFT, "sft": "rows.jsonl"}}, "org/mine")
    assert "the hub has no such model, or it is private" in line(desk("run", runs="mine"))
    assert desk("run", runs="mine", token=TOKEN).code == 0
