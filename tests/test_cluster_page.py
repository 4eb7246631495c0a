"""The files of docs/how-to/cluster.md, run by bash with stand-ins for the schedulers' commands.

What Slurm and SkyPilot do with their own lines is not tested, only that those name what there is: options of sbatch(1)
and srun(1) of Slurm 22.05.8, fields of sky/utils/schemas.py of SkyPilot 0.14.1.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_docs import ROOT, blocks, parsed

from openbezoar.cli.arguments import seconds
from openbezoar.machine import stops
from openbezoar.recipe.file import load

PAGE = ROOT / "docs/how-to/cluster.md"
TEXTS = [text for language, text in blocks(PAGE) if language == "text"]
TREES: list[dict[str, Any]] = [yaml.safe_load(text) for language, text in blocks(PAGE) if language == "yaml"]
(GO_ON,) = (text for text in TEXTS if "# bash go-on.sh" in text)
MY, ROWS = ((text for text in TEXTS if f"--job-name={name} " in text).__next__() for name in ("my", "rows"))
TASKS = [tree for tree in TREES if "run" in tree]

SBATCH = {
    *("job-name", "output", "open-mode", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "mem", "gpus-per-node"),
    *("time", "requeue", "signal"),
}
SRUN = {"cpus-per-task", "relative", "nodes", "ntasks", "kill-on-bad-exit"}
TASK = {"name", "workdir", "resources", "volumes", "file_mounts", "envs", "secrets", "setup", "run", "service"}
RESOURCES = {"infra", "accelerators", "use_spot", "ports", "job_recovery"}

# Each notes its words and its key in a line of $TOLD. $ENDS: exit codes of the runs, the last one for all that follow.
COMMANDS = {
    "openbezoar": (
        'set -- "$@"; case $1 in\n'
        'run) read -r code rest < "$ENDS"; [ -z "$rest" ] || echo "$rest" > "$ENDS"; exit "$code" ;;\n'
        'pack) echo packed > "$4" ;;\n'
        'unpack) echo "openbezoar run $2/recipe.yaml --runs $2/runs" ;; esac'
    ),
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": '[ "$1" != show ] || printf "n1\\nn2\\nn3\\n"',
    "vllm": '[ "$VLLM" = up ] || exit 1; exec tail -f /dev/null',
    "curl": '[ "$VLLM" = up ]',
    "openssl": "echo 0123456789abcdef",
    "sleep": "exit 0",
}


class Node:
    """A machine whose scheduler is made of stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told, self.ends = folder, folder / "told", folder / "ends"
        (folder / "bin").mkdir()
        for name, does in COMMANDS.items():
            note = f'printf \'%s %s\\n\' "$VLLM_API_KEY" "$(printf \'%q \' {name} "$@")" >> "$TOLD"\n'
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{note}{does}\n")
            (folder / "bin" / name).chmod(0o755)
        (folder / "go-on.sh").write_text(GO_ON)

    def run(self, text: str, *words: str, ends: str = "0", **environment: str) -> int:
        """The exit code of a script; nothing that it started is left."""
        self.told.unlink(missing_ok=True)
        self.ends.write_text(f"{ends}\n")
        known = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "TMPDIR": str(self.folder),
            "TOLD": str(self.told),
            "ENDS": str(self.ends),
            "VLLM": "up",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-3]",
            **environment,
        }
        job = subprocess.Popen(
            ["bash", "-c", text, "script", *words],
            cwd=self.folder,
            env=known,
            start_new_session=True,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            return job.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)

    def words(self, name: str) -> list[list[str]]:
        """What a command was given, call by call."""
        lines = [line.partition(" ")[2] for line in self.told.read_text().splitlines()]
        return [words[1:] for line in lines if (words := shlex.split(line))[0] == name]

    def key(self, name: str) -> str:
        """The key that a command had."""
        lines = [line.split(" ") for line in self.told.read_text().splitlines()]
        return next(line[0] for line in lines if line[1] == name)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_files_are_short_and_name_what_schedulers_know() -> None:
    assert all(len(text.splitlines()) <= 16 for language, text in blocks(PAGE) if language in ("text", "yaml"))
    for script in (MY, ROWS):
        directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
        assert set(re.findall(r"--([a-z-]+)", " ".join(directives))) <= SBATCH
        steps = re.findall(r"^srun (--.*?) (?=[^-])", script, re.M)
        assert steps and set(re.findall(r"--([a-z-]+)", " ".join(steps))) <= SRUN
    assert len(TASKS) == 3
    for task in TASKS:
        assert set(task) <= TASK and set(task["resources"]) <= RESOURCES


@pytest.mark.parametrize("script", [MY, ROWS], ids=["my", "rows"])
@pytest.mark.parametrize(("code", "again"), [(0, False), (stops.TIME_IS_UP, True), (143, True), (2, False), (1, False)])
def test_a_job_is_put_back_while_its_run_is_not_done_and_fails_with_it(
    script: str, code: int, again: bool, node: Node
) -> None:
    ended = node.run(script, ends=str(code))
    assert (["requeue", "Incomplete", "7"] in node.words("scontrol")) == again
    assert again or ended == code
    (words,) = node.words("openbezoar")
    parsed(words)
    given = re.search(r"--time=(\d+):00:00", script)
    assert given and 0 < int(given[1]) * 3600 - seconds(words[words.index("--time-limit") + 1]) < 3600


def test_teachers_on_other_nodes_are_waited_for_and_asked_with_the_job_s_key(node: Node, tmp_path: Path) -> None:
    assert node.run(ROWS) == 0
    assert [words[-1] for words in node.words("curl")] == [f"http://n{n}:8000/health" for n in (2, 3)]
    assert node.key("vllm") == node.key("openbezoar") == "0123456789abcdef"
    (words,) = node.words("openbezoar")
    teacher = next(tree for tree in TREES if "models" in tree)
    steps = {"s": {"filter": "rows.jsonl", "judge": "teacher"}}
    (tmp_path / "r.yaml").write_text(json.dumps({"name": "r", "seed": 1, **teacher, "steps": steps}))
    spec = load(tmp_path / "r.yaml", [words[words.index("--set") + 1]]).models["teacher"]
    assert spec.servers == ("http://n2:8000/v1", "http://n3:8000/v1")  # type: ignore[union-attr]
    assert spec.key == "VLLM_API_KEY" and node.words("vllm")[0][1] == spec.model  # type: ignore[union-attr]


def test_a_teacher_that_does_not_start_ends_the_job(node: Node) -> None:
    assert node.run(ROWS, VLLM="down") == 1
    assert node.words("openbezoar") == [] and all(words[0] == "show" for words in node.words("scontrol"))


def test_a_task_of_skypilot_is_a_run_that_is_started_again_by_its_exit_codes(node: Node) -> None:
    task = next(task for task in TASKS if "job_recovery" in task["resources"])
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [stops.TIME_IS_UP, 143]
    for code in (0, 2, stops.TIME_IS_UP):
        assert node.run(task["run"], ends=str(code), **task["envs"]) == code
    (words,) = node.words("openbezoar")
    parsed(words)
    assert words[words.index("--runs") + 1] in task["volumes"]
    assert words[words.index("--set") + 1] == f"models.teacher.server={task['envs']['TEACHER']}"


def test_a_task_with_a_bucket_packs_the_run_after_each_hour_and_begins_with_what_is_there(node: Node) -> None:
    (task,) = (task for task in TASKS if "file_mounts" in task)
    (kept,) = task["file_mounts"]
    place = node.folder / "kept"
    place.mkdir()
    text = task["run"].replace(kept, str(place))
    assert node.run(text, ends=f"{stops.TIME_IS_UP} {stops.TIME_IS_UP} 0") == 0
    made = [words[0] for words in node.words("openbezoar")]
    assert made == ["run", "pack", *(["unpack", "run", "pack"] * 2)]
    for words in node.words("openbezoar"):
        parsed(words)
    assert [p.name for p in place.iterdir()] == ["my.zip"]
    assert node.run(text, ends="2") == 2
    assert [words[0] for words in node.words("openbezoar")] == ["unpack", "run", "pack"]
    assert not list(node.folder.glob("tmp.*"))


@pytest.mark.slow
def test_a_run_that_travels_by_the_page_s_script_goes_on_with_what_it_had(node: Node, tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "instruction": f"Say the number {n}.", "response": f"It is {n}."} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = {"first": {"filter": "rows.jsonl"}, "second": {"filter": "first"}}
    (tmp_path / "my.yaml").write_text(json.dumps({"name": "my", "seed": 1, "models": {}, "steps": steps}))
    real = (
        f'PYTHONPATH={ROOT} {sys.executable} -m openbezoar "$@" ${{UNTIL:+--until $UNTIL}} || exit\n'
        f'[ -z "$UNTIL" ] || exit {stops.TIME_IS_UP}'
    )
    note = 'echo "x $*" >> "$TOLD"\n'
    (node.folder / "bin/openbezoar").write_text(
        f'#!/bin/bash\n{note}[ "$1" = run ] || unset UNTIL\n{real}\n', encoding="utf-8"
    )

    def first() -> bytes:
        with zipfile.ZipFile(tmp_path / "kept.zip") as kept:
            assert ("run/second/manifest.json" in kept.namelist()) == done
            return kept.read("run/first/manifest.json")

    done = False
    assert node.run("bash go-on.sh kept.zip 1h", UNTIL="first") == stops.TIME_IS_UP
    made = first()
    (tmp_path / "rows.jsonl").unlink()  # it travels
    assert node.run("bash go-on.sh kept.zip 1h", UNTIL="first") == stops.TIME_IS_UP
    assert first() == made
    assert node.run("bash go-on.sh kept.zip 1h") == 0
    done = True
    assert first() == made
