"""``openbezoar doctor``: each finding by what leads to it; nothing secret is told; a base install can ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openbezoar.cli.app import main
from openbezoar.cli.doctor import WIDTH
from openbezoar.machine import extras
from openbezoar.machine import packages as of_packages
from openbezoar.machine.devices import Device
from openbezoar.machine.packages import Installed, asked, why_bad
from openbezoar.plan import doctor
from openbezoar.plan.doctor import Finding

CPU = Device("cpu", "CPU, 2 cores", 10**10, here=True)
T4 = {"name": "Tesla T4", "bytes": 15 * 10**9, "capability": [7, 5], "flex": False, "fault": None}
H100 = {"name": "H100", "bytes": 80 * 10**9, "capability": [9, 0], "flex": True, "fault": None}


def probed(cuda: str | None = "12.6", devices: list[Any] | None = None, **others: Any) -> dict[str, Any]:
    found = {"torch": "2.13.0", "cuda": cuda, "hip": None, "no_gpu": None, "devices": devices or [], "nf4": None}
    return {**found, **others}


def states(found: Any) -> list[tuple[str, str]]:
    return [(one.about, one.state) for one in found]


@pytest.fixture(autouse=True)
def by_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "way", lambda: "pip")


# ------------------------------------------------------------------------------ software


def test_a_python_that_is_too_old_is_bad() -> None:
    assert states(doctor.about_python((3, 11, 2)))[0] == ("python", "ok")
    first = next(doctor.about_python((3, 10, 9)))
    assert first.state == "bad" and "3.10.9" in first.found and ">=3.11" in first.found and first.remedy


def test_versions_are_held_against_those_allowed_and_those_known_to_be_bad() -> None:
    assert why_bad("torch", "2.13.0+cpu", ">=2.6,<3") is None
    assert "CVE-2025-32434" in str(why_bad("torch", "2.5.1", ">=2.5,<3"))
    assert why_bad("rich", "99.0", ">=13,<16") == "it is not among those allowed (>=13,<16)"
    assert why_bad("rich", "of-my-own", ">=13") is None


def test_packages_are_asked_for_by_extra() -> None:
    requirements = [
        "pytest>=1",
        'rich>=9999; extra == "web"',
        'no-such-package; extra == "web"',
        'openbezoar[web]; extra == "all"',
        'colorama; sys_platform == "none"',
    ]
    found = asked(requirements, ["", "web", "ifeval"])
    assert [(one.name, one.extra, one.found is None, one.bad is None) for one in found[:3]] == [
        ("pytest", "", False, True),
        ("rich", "web", False, False),
        ("no-such-package", "web", True, True),
    ]
    assert [one.name for one in found[3:]] == ["nltk", "langdetect", "immutabledict"]


def test_an_extra_is_a_line_and_each_bad_version_one_more() -> None:
    found = list(
        doctor.about_packages(
            [
                Installed("rich", "", ">=13", "14.0", None),
                Installed("torch", "train", ">=2.6", "2.5.0", "it is broken"),
                Installed("peft", "train", ">=0.18", "0.19", None),
                Installed("fastapi", "web", "", None, None),
            ]
        )
    )
    assert found == [
        Finding("base", "ok", "rich 14.0"),
        Finding("train", "ok", "torch 2.5.0, peft 0.19"),
        Finding("train", "bad", "torch 2.5.0: it is broken", "pip install --upgrade 'openbezoar[train]'"),
        Finding("web", "note", "not installed: fastapi", "pip install 'openbezoar[web]'"),
    ]
    assert states(doctor.about_packages([Installed("rich", "", ">=13", None, None)])) == [("base", "bad")]
    assert states(doctor.about_packages([])) == [("packages", "note")]


def test_this_project_s_packages_are_found_with_all_extras_of_pyproject() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    every = set(project["optional-dependencies"]) - set(of_packages.NOT_A_USERS)
    found = of_packages.packages()
    assert {one.extra for one in found} == every | {""}
    assert all(len(one.extra) <= WIDTH for one in found)


@pytest.mark.parametrize(
    ("found", "gpu", "environment", "state", "words"),
    [
        (probed(None), False, {}, "ok", "CPU build"),
        (probed(None), True, {}, "bad", "has a GPU, which it cannot use"),
        (probed(), False, {}, "note", "without an NVIDIA driver"),
        (probed(devices=[T4]), True, {}, "ok", "CUDA 12.6 build"),
        (probed(), True, {"CUDA_VISIBLE_DEVICES": ""}, "note", "hides the GPU"),
        (probed(no_gpu="RuntimeError: driver too old"), True, {}, "bad", "sees no GPU: RuntimeError: driver too old"),
        (probed(None, hip="6.4"), False, {}, "ok", "ROCm 6.4 build"),
        ({"error": "ImportError: libcudart.so.12"}, False, {}, "bad", "libcudart.so.12"),
        (None, False, {}, "note", "not installed"),
    ],
)
def test_torch_s_build_against_the_machine(
    found: Any, gpu: bool, environment: dict[str, str], state: str, words: str
) -> None:
    first = next(doctor.about_torch(found, gpu, environment))
    assert (first.about, first.state) == ("torch", state) and words in first.found
    assert (first.remedy is None) == (state == "ok")


def test_without_a_gpu_torch_s_own_index_of_cpu_builds_is_named() -> None:
    assert "download.pytorch.org/whl/cpu" in str(next(doctor.about_torch(None, False, {})).remedy)
    assert "download" not in str(next(doctor.about_torch(None, True, {})).remedy)


def test_nf4_that_does_not_work_is_bad() -> None:
    assert states(doctor.about_torch(probed(None), False, {}))[1] == ("bitsandbytes", "ok")
    last = list(doctor.about_torch(probed(None, nf4="OSError: no library"), False, {}))[-1]
    assert last.state == "bad" and "no library" in last.found and "quantize: none" in str(last.remedy)


def test_a_probe_that_ends_the_process_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dies = tmp_path / "python"
    dies.write_text("#!/bin/sh\nkill -ILL $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    assert "exit code -4" in doctor.probe()["error"]
    dies.write_text("#!/bin/sh\necho 'ImportError: no symbol' >&2\nexit 1\n")
    assert doctor.probe()["error"] == "ImportError: no symbol"


@pytest.mark.slow
def test_torch_is_asked_in_a_process_of_its_own() -> None:
    found = doctor.probe()
    assert found["torch"] and found["nf4"] is None
    assert all(one["bytes"] > 0 for one in found["devices"])


# ------------------------------------------------------------------------------- devices


def test_devices_have_memory_and_capability_and_compute() -> None:
    broken = {**T4, "fault": "RuntimeError: no kernel image is available"}
    found = list(doctor.about_devices(probed(devices=[H100, broken]), CPU))
    assert states(found) == [("gpu 0", "ok"), ("gpu 1", "bad"), ("cpu", "ok")]
    assert found[0].found == "H100, 80.0 GB, compute capability 9.0" and "no kernel image" in found[1].found
    by_driver = next(doctor.about_devices(None, Device("cuda", "T4", 15 * 10**9)))
    assert by_driver.found == "T4, 15.0 GB, by the driver"


@pytest.mark.parametrize(
    ("found", "cpu", "dtype", "state", "attention"),
    [
        (probed(devices=[H100]), CPU, "bfloat16 on H100", "ok", "FlexAttention, once"),
        (probed(devices=[T4]), CPU, "float16 on Tesla T4", "ok", "by segments"),
        (probed(None), CPU, "bfloat16 on the CPU", "ok", "by segments"),
        (probed(None), Device("cpu", "old", 1, bfloat16=False), "float32 on the CPU", "ok", "by segments"),
    ],
)
def test_what_a_run_would_multiply_in_and_how_it_would_attend(
    found: Any, cpu: Device, dtype: str, state: str, attention: str
) -> None:
    first, second = doctor.about_arithmetic(found, cpu)
    assert dtype in first.found and first.state == state and attention in second.found
    assert (first.remedy is None) == (state == "ok")
    assert list(doctor.about_arithmetic(None, cpu)) == []


# ------------------------------------------------------------------ disk, caches, network


def test_little_room_is_noted_and_none_is_bad(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for free, state in ((100e9, "ok"), (5e9, "note"), (5e8, "bad")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        (found,) = doctor.about_disk({"runs": tmp_path / "not/yet"})
        assert found.state == state and (state == "ok") == (found.remedy is None)
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    (found,) = doctor.about_disk({"models": tmp_path})
    assert found.state == "bad" and "OPENBEZOAR_CACHE" in str(found.remedy)


def test_caches_are_told_with_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "models/a").mkdir(parents=True)
    (tmp_path / "models/a/weights").write_bytes(b"0" * 2_000_000_00)
    (tmp_path / "models/link").symlink_to(tmp_path / "models/a/weights")
    found = [one.found for one in doctor.about_caches(tmp_path / "runs", tmp_path / "models", tmp_path / "hub")]
    assert "0.2 GB of converted models" in found[0] and found[1].endswith("hub: empty")


def test_a_login_is_told_by_where_it_comes_from_and_never_by_what_it_is(tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path)}
    assert states(doctor.about_login(home)) == [("hub login", "note")]
    (tmp_path / "token").write_text("hf_secret")
    (tmp_path / "token").chmod(0o644)
    (shared,) = doctor.about_login(home)
    assert shared.state == "note" and shared.remedy == f"chmod 600 {tmp_path / 'token'}"
    (tmp_path / "token").chmod(0o600)
    (kept,) = doctor.about_login(home)
    (given,) = doctor.about_login({**home, "HF_TOKEN": "hf_other"})
    assert kept.found == f"a token from {tmp_path / 'token'}" and given.found == "a token from $HF_TOKEN"
    assert kept.state == given.state == "ok"


def test_engines_that_are_there_are_told() -> None:
    assert states(doctor.about_engines({"vllm": None, "ollama": "/bin/ollama"})) == [("engine", "ok")]
    assert states(doctor.about_engines({"vllm": None})) == [("engine", "note")]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, []),
        ({"HF_HUB_OFFLINE": "0"}, []),
        ({"HF_HUB_OFFLINE": "1"}, ["note"]),
        ({"HF_ENDPOINT": "http://localhost:9"}, ["note"]),
        ({"https_proxy": "http://proxy:3128"}, ["note"]),
        ({"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "example.org,localhost"}, ["ok"]),
        ({"SSL_CERT_FILE": "/no/such/file"}, ["bad"]),
    ],
)
def test_variables_that_send_requests_elsewhere(environment: dict[str, str], expected: list[str]) -> None:
    found = list(doctor.about_network(environment))
    assert [one.state for one in found] == expected
    assert all(one.remedy for one in found if one.state != "ok")


def test_a_proxy_s_password_is_not_told() -> None:
    (found,) = doctor.about_network({"HTTP_PROXY": "http://me:secret@proxy.example:3128"})
    assert "proxy.example:3128" in found.found and "secret" not in found.found


# ------------------------------------------------------------------------------- command


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("note", 0), ("bad", 2)])
def test_the_command_exits_with_2_if_anything_is_bad(
    state: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding("python", "ok", "3.11"), Finding("disk", state, "so it is", None if state == "ok" else "do this")]
    monkeypatch.setattr(doctor, "findings", lambda runs: iter(found))
    for arguments in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *arguments])
        assert ended.value.code == code
        out = capsys.readouterr().out
        if arguments:
            assert json.loads(out)["findings"][1] == {
                "about": "disk",
                "state": state,
                "found": "so it is",
                "remedy": found[1].remedy,
            }
        else:
            assert out.splitlines()[1].split()[:2] == [state, "disk"]
            assert ("remedy: do this" in out) == (state != "ok")


def test_a_base_install_can_ask(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "hidden = ('torch', 'transformers', 'peft', 'huggingface_hub', 'fastapi')\n"
        "class Without:\n"
        "    def __init__(self, finder): self.finder = finder\n"
        "    def find_spec(self, name, *more):\n"
        "        return None if name.split('.')[0] in hidden else self.finder.find_spec(name, *more)\n"
        "sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]\n"
        "from openbezoar.cli.app import main\n"
        "main(['doctor', '--json'])\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OPENBEZOAR_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.stderr == "" and done.returncode in (0, 2)
    found = {one["about"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["torch"]["state"] == "note" and found["torch"]["found"].startswith("not installed")
    assert list(tmp_path.iterdir()) == []
