"""What this machine has for runs, and what is wrong with it: the findings of ``openbezoar doctor``.

A finding is ok, a note (something is slower, or missing for some uses) or bad (runs fail, or their
results cannot be trusted), and what is not ok has a remedy. Nothing is written or downloaded, no
secret is read, and torch is asked in a process of its own (``plan.probe``).
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from packaging.specifiers import SpecifierSet

from openbezoar import __version__
from openbezoar.llm.calls import FILE as CALLS
from openbezoar.machine import extras
from openbezoar.machine.devices import BFLOAT16_FROM, GPU, Device, device_named, this_device
from openbezoar.machine.packages import Installed, packages
from openbezoar.models.references import cache_folder
from openbezoar.publishing.serving import SERVERS

State = Literal["ok", "note", "bad"]
LITTLE, NEARLY_NONE = 20e9, 1e9  # bytes of disk: a model of 3B with its merges takes the first
CPU_TORCH = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cpu"
GPU_TORCH = "pip install --force-reinstall torch"  # for Linux PyPI has the build with CUDA
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
LONGEST = 300  # seconds that torch may take to be imported from a slow disk


@dataclass(frozen=True)
class Finding:
    """A line: what it is about, how it stands, what was found, and what to do where it is not ok."""

    about: str
    state: State
    found: str
    remedy: str | None = None


def findings(runs: Path) -> Iterator[Finding]:
    """All that can be found here, as it is found. runs: the folder of runs."""
    environment = os.environ
    yield from about_python(sys.version_info[:3])
    yield from about_packages(packages())
    probed = probe() if extras.installed("torch") else None
    yield from about_torch(probed, GPU.exists(), environment)
    yield from about_devices(probed, this_device())
    yield from about_arithmetic(probed, device_named("cpu"))
    yield from about_disk({"runs": runs, "models": cache_folder(), "hub": hub_cache(environment)})
    yield from about_caches(runs, cache_folder(), hub_cache(environment))
    yield from about_login(environment)
    yield from about_engines({name: server.find() for name, server in SERVERS.items()})
    yield from about_network(environment)


# ------------------------------------------------------------------------------ software


def about_python(running: Sequence[int]) -> Iterator[Finding]:
    """Python and this project. running: its version's three numbers."""
    said = ".".join(map(str, running))
    try:
        wanted = (metadata("openbezoar").get_all("Requires-Python") or [""])[0]
    except PackageNotFoundError:
        wanted = ""
    where = f"{platform.system()} {platform.machine()}"
    if SpecifierSet(wanted).contains(said):
        yield Finding("python", "ok", f"{said}, {where}")
    else:
        remedy = "uv venv --python 3.11, or another Python of your system's, and install there"
        yield Finding("python", "bad", f"{said}, {where}; {wanted} is needed", remedy)
    yield Finding("openbezoar", "ok", f"{__version__} in {sys.prefix}, installed by {extras.way()}")


def about_packages(installed: Sequence[Installed]) -> Iterator[Finding]:
    """A line for the base install and one an extra; a line more for each version that must not stay."""
    if not installed:
        yield Finding(
            "packages", "note", "not installed as a package, so no versions can be compared", "pip install -e ."
        )
    for extra in dict.fromkeys(one.extra for one in installed):
        own = [one for one in installed if one.extra == extra]
        name = extra or "base"
        lacking = [one.name for one in own if one.found is None]
        here = ", ".join(f"{one.name} {one.found}" for one in own if one.found is not None)
        if lacking:
            remedy = extras.install([extra] if extra else [], upgrade=not extra)
            missing = f"not installed: {', '.join(lacking)}{f'; there are {here}' if here else ''}"
            yield Finding(name, "note" if extra else "bad", missing, remedy)
        else:
            yield Finding(name, "ok", here)
        for one in own:
            if one.bad is not None:
                said = f"{one.name} {one.found}: {one.bad}"
                yield Finding(name, "bad", said, extras.install([extra] if extra else [], upgrade=True))


def probe() -> dict[str, Any]:
    """What ``plan.probe`` prints, or ``{"error": …}`` where it does not come to that."""
    try:
        # -P: not a torch.py of the folder where a user happens to be
        done = subprocess.run(
            [sys.executable, "-P", "-m", "openbezoar.plan.probe"],
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    except subprocess.TimeoutExpired:
        return {"error": f"it was not imported within {LONGEST} s"}
    except (OSError, ValueError, IndexError):
        said = [line for line in done.stderr.splitlines() if line.strip()] if "done" in locals() else []
        return {"error": said[-1].strip() if said else f"importing it ended the process (exit code {done.returncode})"}


def about_torch(probed: Mapping[str, Any] | None, gpu: bool, environment: Mapping[str, str]) -> Iterator[Finding]:
    """torch's build against the machine, and whether NF4 works. probed: None where there is no torch.
    gpu: there is an NVIDIA driver.
    """
    if probed is None:
        hint = "" if gpu else f" (without a GPU first: {CPU_TORCH.replace(' --force-reinstall', '')})"
        yield Finding("torch", "note", "not installed; train, chat and judge need it", extras.install(["train"]) + hint)
        return
    if "error" in probed:
        yield Finding("torch", "bad", f"cannot be used: {probed['error']}", extras.install(["train"], upgrade=True))
        return
    build = f"CUDA {probed['cuda']}" if probed["cuda"] else f"ROCm {probed['hip']}" if probed["hip"] else "CPU"
    said = f"{probed['torch']}, {build} build"
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() in ("", "-1")
    if gpu and build == "CPU":
        yield Finding("torch", "bad", f"{said}, and this machine has a GPU, which it cannot use", GPU_TORCH)
    elif probed["cuda"] and not gpu:
        found = f"{said} without an NVIDIA driver: models are held by the CPU, and gigabytes are for nothing"
        yield Finding("torch", "note", found, CPU_TORCH)
    elif gpu and not probed["devices"] and hidden:
        yield Finding("torch", "note", f"{said}; CUDA_VISIBLE_DEVICES hides the GPU", "unset CUDA_VISIBLE_DEVICES")
    elif gpu and not probed["devices"]:
        found = f"{said} sees no GPU: {probed['no_gpu'] or 'it does not say why'}"
        yield Finding("torch", "bad", found, f"nvidia-smi must list the GPU; for an old driver: {OLD_DRIVER}")
    else:
        yield Finding("torch", "ok", said)
    if probed["nf4"] is None:
        yield Finding("bitsandbytes", "ok", "NF4 packs and unpacks")
    elif not extras.installed("bitsandbytes"):
        yield Finding("bitsandbytes", "note", "not installed; quantize: nf4 needs it", extras.install(["train"]))
    else:
        remedy = f"{extras.install(['train'], upgrade=True)}; or quantize: none in the recipe"
        yield Finding("bitsandbytes", "bad", f"cannot be used: {probed['nf4']}", remedy)


OLD_DRIVER = f"{GPU_TORCH} --index-url https://download.pytorch.org/whl/cu126"


# ------------------------------------------------------------------------------- devices


def about_devices(probed: Mapping[str, Any] | None, driver_s: Device) -> Iterator[Finding]:
    """A line a device. driver_s: what this machine computes on by the driver, for where torch is not there to say."""
    devices = (probed or {}).get("devices", [])
    for number, one in enumerate(devices):
        major, minor = one["capability"]
        said = f"{one['name']}, {_gb(one['bytes'])}, compute capability {major}.{minor}"
        if one["fault"]:
            remedy = f"{GPU_TORCH} (a build with kernels for it), or CUDA_VISIBLE_DEVICES='' to use the CPU"
            yield Finding(f"gpu {number}", "bad", f"{said}, does not compute: {one['fault']}", remedy)
        else:
            yield Finding(f"gpu {number}", "ok", said)
    if not devices and driver_s.kind == "cuda":
        size = "" if driver_s.bytes is None else f", {_gb(driver_s.bytes)}"
        yield Finding("gpu 0", "ok", f"{driver_s.name}{size}, by the driver")
    cpu = device_named("cpu")
    yield Finding("cpu", "ok", f"{cpu.name.removeprefix('CPU, ')}, {_gb(cpu.bytes or 0)} of memory free")


def about_arithmetic(probed: Mapping[str, Any] | None, cpu: Device) -> Iterator[Finding]:
    """What models would be multiplied in, and how the forest would attend."""
    if probed is None or "error" in probed:
        return
    if not probed["devices"]:
        if cpu.bfloat16:
            yield Finding("dtype", "ok", "bfloat16 on the CPU")
        else:
            found = "float32 on the CPU, which has no bfloat16 products: twice the memory, the same values"
            yield Finding("dtype", "ok", found)
        yield Finding("attention", "ok", "by segments: FlexAttention is for GPUs")
        return
    first = probed["devices"][0]
    capability = ".".join(map(str, first["capability"]))
    if float(capability) >= BFLOAT16_FROM:
        yield Finding("dtype", "ok", f"bfloat16 on {first['name']}")
    else:
        found = f"float16 on {first['name']}, which has no bfloat16 arithmetic; trainings take it by themselves"
        yield Finding("dtype", "ok", found)
    if first["flex"]:
        found = "FlexAttention, once a probe at a run's start agrees with attention by segments"
        yield Finding("attention", "ok", found)
    else:
        yield Finding(
            "attention", "ok", f"by segments: FlexAttention needs compute capability 8.0, this is {capability}"
        )


# --------------------------------------------------------------------------- disk, caches


def about_disk(folders: Mapping[str, Path]) -> Iterator[Finding]:
    """Room and rights where files will lie. folders: by what lies there: runs, models, hub."""
    remedies = {
        "runs": "openbezoar run RECIPE --runs DIR on another disk",
        "models": "export OPENBEZOAR_CACHE=DIR on another disk",
        "hub": "export HF_HOME=DIR on another disk",
    }
    for what, folder in folders.items():
        place = folder.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        free = shutil.disk_usage(place).free
        found, remedy = f"{_gb(free)} free for {what} in {folder}", f"make room, or {remedies[what]}"
        if not os.access(place, os.W_OK):
            yield Finding("disk", "bad", f"{folder} for {what}: nothing can be written to {place}", remedies[what])
        elif free < LITTLE:
            yield Finding("disk", "bad" if free < NEARLY_NONE else "note", found, remedy)
        else:
            yield Finding("disk", "ok", found)


def about_caches(runs: Path, models: Path, hub: Path) -> Iterator[Finding]:
    """What was kept from earlier runs, and how it is thrown away."""
    calls = runs / CALLS
    if calls.is_file():
        yield Finding("cache", "ok", f"{calls}: {_gb(calls.stat().st_size)} of answers; openbezoar cache --runs {runs}")
    for folder, what, away in (
        (models, "converted models", f"rm -r {models}"),
        (hub, "the hub's files", "hf cache ls"),
    ):
        size = size_of(folder)
        found = f"{folder}: {f'{_gb(size)} of {what}; {away}' if size else 'empty'}"
        yield Finding("cache", "ok", found)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder; links are not followed, what cannot be read counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place, name)
            try:
                total += file.lstat().st_size
            except OSError:
                continue
    return total


# ------------------------------------------------------------------------- hub, network


def hub_home(environment: Mapping[str, str]) -> Path:
    """The hub client's own folder: $HF_HOME, or its place in the user's cache."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environment.get("HF_HOME") or Path(cache) / "huggingface").expanduser()


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Where the hub's client keeps what it fetched."""
    return Path(environment.get("HF_HUB_CACHE") or hub_home(environment) / "hub").expanduser()


def about_login(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the hub's client would have a token, and from where; the token is not read."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if environment.get(name, "").strip():
            yield Finding("hub login", "ok", f"a token from ${name}")
            return
    file = Path(environment.get("HF_TOKEN_PATH") or hub_home(environment) / "token").expanduser()
    try:
        about = file.stat()
    except OSError:
        about = None
    if about is None or about.st_size == 0:
        yield Finding("hub login", "note", "no token: gated models and uploads are refused", "hf auth login")
    elif about.st_mode & 0o077:
        yield Finding("hub login", "note", f"a token from {file}, which others can read", f"chmod 600 {file}")
    else:
        yield Finding("hub login", "ok", f"a token from {file}")


def about_engines(found: Mapping[str, str | None]) -> Iterator[Finding]:
    """Which servers could be handed a model. found: the program of each, None where it is not installed."""
    for name, program in found.items():
        if program:
            yield Finding("engine", "ok", f"{name}: {program}")
    if not any(found.values()):
        remedy = extras.install(["train", "web"])
        yield Finding("engine", "note", f"none of {', '.join(found)}; openbezoar serve needs one", remedy)


def about_network(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that send requests elsewhere, or nowhere."""
    for name in OFFLINE:
        if environment.get(name, "").strip().lower() in ("1", "true", "yes", "on"):
            found = f"{name} is set: what is not in the hub's cache cannot be had"
            yield Finding("network", "note", found, f"unset {name}")
    if endpoint := environment.get("HF_ENDPOINT", "").strip():
        yield Finding("network", "note", f"HF_ENDPOINT is set: the hub is {_host(endpoint)}", "unset HF_ENDPOINT")
    for name in PROXIES:
        if value := (environment.get(name) or environment.get(name.lower()) or "").strip():
            yield from _proxy(name, value, environment)
    for name in CERTIFICATES:
        if (value := environment.get(name, "").strip()) and not Path(value).exists():
            yield Finding("network", "bad", f"{name} names {value}, which is not there", f"unset {name}")


def _proxy(name: str, value: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    spared = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    if re.search(r"(^|,)\s*(localhost|127\.0\.0\.1|\*)\s*(,|$)", spared):
        yield Finding("network", "ok", f"{name} is set: {_host(value)}")
    else:
        found = f"{name} is set: {_host(value)}, for servers on this machine too"
        yield Finding("network", "note", found, "export NO_PROXY=localhost,127.0.0.1")


def _host(address: str) -> str:
    """An address without the user and the password that may stand in it."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    return f"{parts.hostname or 'unknown'}{'' if (port := _port(parts)) is None else f':{port}'}"


def _port(parts: Any) -> int | None:
    try:
        port: int | None = parts.port
    except ValueError:
        return None
    return port


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
