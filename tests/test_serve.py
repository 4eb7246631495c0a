"""``openbezoar serve``: which server is chosen, what it is told, and what is refused before it starts."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openbezoar.cli.app import main
from openbezoar.errors import ModelError, UserError
from openbezoar.publishing import serving
from openbezoar.publishing.serving import open_served

RECORD = """#!{python}
import json, os, sys
open({out!r}, "w").write(json.dumps({{"argv": sys.argv, "host": os.environ.get("OLLAMA_HOST")}}))
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts servers on an otherwise empty PATH that only write down how they were called;
    ``install()`` gives what was written.
    """
    folder, out = tmp_path / "bin", tmp_path / "called.json"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere" / "python"))
    monkeypatch.delenv("OLLAMA_HOST", raising=False)

    def do(*names: str) -> Any:
        for name in names:
            (folder / name).write_text(RECORD.format(python=PYTHON, out=str(out)))
            (folder / name).chmod(0o755)
        return json.loads(out.read_text()) if out.is_file() else None

    return do


PYTHON = sys.executable


@pytest.fixture
def release(tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "my model"
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").write_text("### Instruction:\n{{ messages[0]['content'] }}\n\n### Response:\n")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    return folder


def gguf(path: Path, template: str | None = None) -> Path:
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    if template:
        writer.add_chat_template(template)
    writer.add_token_list(["<s>", "</s>"])
    writer.add_eos_token_id(1)
    writer.add_tensor("t", np.zeros(4, dtype=np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["serve", *arguments])
    return int(end.value.code or 0)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which the server may replace; servers are looked for on the PATH only."""
    code = (
        "import sys; from openbezoar.publishing import serving; from openbezoar.cli import app as cli; serving.sys ="
        " type('S', (), {'executable': '/nowhere/python'}); cli.main(sys.argv[1:])"
    )
    return subprocess.run(
        [PYTHON, "-c", code, "serve", *arguments], capture_output=True, text=True, timeout=300, check=False
    )


def test_a_release_is_handed_to_vllm_and_the_command_is_printed_first(release: Path, install: Any) -> None:
    install("vllm", "transformers")
    done = run(str(release), "--port", "8765", "--", "--max-model-len", "512")
    wanted = [
        "serve",
        str(release),
        "--served-model-name",
        "my-model",
        "--host",
        "127.0.0.1",
        "--port",
        "8765",
        "--max-model-len",
        "512",
    ]
    assert done.returncode == 0 and install()["argv"][1:] == wanted
    import shlex

    assert shlex.split(done.stdout)[1:] == wanted
    assert "http://127.0.0.1:8765/v1" in done.stderr and "chat_template.jinja" in done.stderr
    assert "ends at:   </s>, <pad>" in done.stderr and '["### Instruction:", "### Response:"]' in done.stderr


def test_a_dry_run_prints_and_starts_nothing(release: Path, install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install("transformers")
    assert command(str(release), "--dry-run") == 0
    shown = capsys.readouterr()
    assert shown.out.rstrip().endswith(f"serve '{release}' --host 127.0.0.1 --port 8000") and shown.out.count("\n") == 1
    assert "greedy at any temperature" in shown.err and install() is None


def test_llama_cpp_takes_the_most_exact_gguf_and_brings_a_template_that_is_not_inside(
    release: Path, install: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    install("llama-server", "transformers")
    assert command(str(release), "--with", "llama.cpp") == 2
    assert "--with llama.cpp: it needs a .gguf file" in capsys.readouterr().err
    (release / "gguf").mkdir()
    for kind in ("Q8_0", "F16"):
        gguf(release / "gguf" / f"model-{kind}.gguf")
    assert command(str(release), "--dry-run") == 0
    out = capsys.readouterr().out
    assert "gguf/model-F16.gguf" in out and "--jinja --chat-template-file" in out
    gguf(release / "gguf" / "model-F16.gguf", "{{ inside }}")
    assert command(str(release), "--dry-run") == 0
    out = capsys.readouterr().out
    assert "--jinja" in out and "--chat-template-file" not in out
    assert command(str(release / "gguf" / "model-F16.gguf"), "--dry-run") == 0
    shown = capsys.readouterr()
    assert "--alias model-F16 " in shown.out and "ends at:   </s>" in shown.err


def test_ollama_makes_a_model_from_the_modelfile_where_its_server_answers(release: Path, install: Any) -> None:
    install("ollama")
    (release / "gguf").mkdir()
    (release / "gguf" / "Modelfile").write_text(f"FROM ./{gguf(release / 'gguf' / 'm-F16.gguf').name}\n")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        refused = run(str(release), "--port", str(port))
        assert (
            refused.returncode == 2
            and f"nothing answers at 127.0.0.1:{port}; start it with 'ollama serve'" in refused.stderr
            and install() is None
        )
        listening.listen()
        done = run(str(release), "--port", str(port))
    assert done.returncode == 0
    assert install() == {
        "argv": [
            str(Path(os.environ["PATH"]) / "ollama"),
            "create",
            "my-model",
            "-f",
            str(release / "gguf" / "Modelfile"),
        ],
        "host": f"127.0.0.1:{port}",
    }
    assert done.stdout.startswith(f"OLLAMA_HOST=127.0.0.1:{port} ") and f"http://127.0.0.1:{port}/v1" in done.stderr


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://0.0.0.0:11434"),
        ("box:9000", "http://box:9000"),
        ("http://box", "http://box:80"),
        ("https://box/", "https://box:443"),
        ("[::1]", "http://[::1]:11434"),
        (":9000", "http://127.0.0.1:9000"),
    ],
)
def test_ollamas_address_is_read_as_ollama_reads_it(
    host: str, url: str, release: Path, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    served = open_served(str(release))
    assert serving.launch("ollama", "ollama", served, port=None, extra=[]).url == f"{url}/v1"


@pytest.mark.parametrize("url", ["http://[::1]:1/v1", "http://no.such.host.invalid:11434/v1", "https://127.0.0.1:1/v1"])
def test_an_ollama_that_cannot_be_reached_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match="nothing answers at"):
        serving.check_port("ollama", url)


def test_a_port_that_is_taken_is_told_before_a_server_starts(release: Path, install: Any) -> None:
    install("vllm")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        done = run(str(release), "--port", str(listening.getsockname()[1]))
    assert done.returncode == 2 and "another program answers there" in done.stderr and install() is None


def test_without_a_server_one_line_says_what_to_install(
    release: Path, install: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(str(release)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and all(
        name in told for name in ("vllm", "llama.cpp", "ollama", "pip install 'openbezoar[train,web]'")
    )
    assert command(str(release), "--with", "vllm") == 2
    assert "--with vllm: not installed; get it by pip install vllm" in capsys.readouterr().err
    assert command(str(release), "--with", "tgi") == 2
    assert "expected one of vllm, llama.cpp, ollama, transformers" in capsys.readouterr().err
    assert command() == 2


def test_the_list_says_which_servers_are_there(install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install("llama-server")
    assert command("--list") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["vllm", "llama.cpp", "ollama", "transformers"]
    assert lines["llama.cpp"].endswith("bin/llama-server") and lines["vllm"].startswith(
        "not installed: pip install vllm"
    )


def test_what_has_no_template_inside_is_refused(tiny: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny, bare)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="no chat template inside"):
        open_served(str(bare))
    with pytest.raises(ModelError, match="no chat template inside"):
        open_served(str(gguf(tmp_path / "bare.gguf")))
    (tmp_path / "odd.gguf").write_bytes(b"no such thing")
    with pytest.raises(ModelError, match="not a GGUF file"):
        open_served(str(tmp_path / "odd.gguf"))


def test_a_step_s_folder_is_refused_and_its_release_named(tmp_path: Path) -> None:
    step = tmp_path / "run" / "sft"
    step.mkdir(parents=True)
    (step / "model.json").write_text("{}")
    with pytest.raises(ModelError, match=r"release it \(openbezoar release RUN\)"):
        open_served(str(step))
    (tmp_path / "run" / "release" / "sft").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"serve .*run/release/sft"):
        open_served(str(step))


def test_a_server_s_program_that_could_not_serve_counts_as_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "transformers").write_text("#!/bin/sh\n")
    (tmp_path / "transformers").chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    server = serving.SERVERS["transformers"]
    assert server.find() == str(tmp_path / "transformers")
    monkeypatch.setattr("openbezoar.llm.engines.programs.find_spec", lambda name: None)
    assert server.find() is None
    with pytest.raises(UserError, match="transformers: not installed"):
        served = serving.Served("m", tmp_path, None, None, "t", tmp_path, ())
        serving.choose(served, "transformers")
