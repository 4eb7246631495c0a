"""The command ``init``: a shipped recipe with what it reads, copied to begin from. No torch at import."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from openbezoar.cli.process import program
from openbezoar.errors import UserError, did_you_mean
from openbezoar.recipe import shipped

TEMPLATES = {
    "demo": ("demo", "every step of the recipe on a 135M model: 15 minutes on two CPU cores"),
    "small": ("small", "what helps models of 0.1 to 1 billion parameters; your folder of public data"),
    "paper": ("openbezoar-3b", "the paper's recipe and sizes: a 24 GB GPU, a server for the teacher"),
    "pairs": ("pairs", "a model of your own preference pairs; begins on the demo's, minutes"),
    "judge": ("judge", "train a reward model, hold it and a judge against people; minutes"),
}
"""By the name of a template: its shipped recipe, and what it is for."""
BESIDE = re.compile(r"\bdemo/[\w-]+\.jsonl")  # what recipes name of the folder beside them


def init(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The recipe to write; my.yaml if none is named.")
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", metavar="NAME", help="demo, small, paper, pairs or judge.")
    ] = None,
) -> None:
    """Write a recipe of your own to begin from, with what it reads.

    Without --template: which there are. Files that exist are never overwritten.

    Example: openbezoar init my.yaml --template pairs
    """
    target = Path("my.yaml") if file is None else file
    typed = shlex.quote(str(target))
    if template is None:
        width = max(map(len, TEMPLATES))
        for name, (_, about) in TEMPLATES.items():
            print(f"{name:{width}}  {about}")
        print(f"\nTake one: {program()} init {typed} --template demo")
        return
    if template not in TEMPLATES:
        hint = f" ({question})" if (question := did_you_mean(template, TEMPLATES)) else ""
        raise UserError(f"init: no template '{template}'{hint}; there are {', '.join(TEMPLATES)}")
    recipe = shipped.FOLDER / f"{TEMPLATES[template][0]}.yaml"
    text = as_own(recipe.read_text(encoding="utf-8"), recipe.name, target)
    written = write({target: text.encode("utf-8"), **read_by(text, target.parent)})
    print("\n".join(f"wrote {path}" for path in written))
    if re.search(r"^data: ", text, re.M):
        print(
            f"Put the files that {target} names at its top into {target.parent / 'data'}, or name their folder there."
        )
    print(f"Next:\n  {program()} plan {typed}\n  {program()} run {typed}")


def as_own(text: str, shipped_as: str, target: Path) -> str:
    """A shipped recipe's text for a file of one's own: its commands name the file, its run is named after
    it, and its folder of data lies beside it. Raises UserError for a file that no run can be named after.
    """
    name = target.name.removesuffix(".yaml").removesuffix(".yml")
    if target.suffix not in (".yaml", ".yml") or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            f"init {target}: expected the name of a recipe's file, such as my.yaml; letters, digits, '-', '_' and '.'"
        )
    text = re.sub(r"\s+\(or: make \w+\)", "", text.replace(f"recipes/{shipped_as}", str(target)))
    text = re.sub(r" --set data=FOLDER$", "", text, count=1, flags=re.M)
    text = re.sub(r"^name: .*$", f"name: {name}", text, count=1, flags=re.M)
    return re.sub(r"^data: .*$", "data: data", text, count=1, flags=re.M)


def read_by(text: str, folder: Path) -> dict[Path, bytes]:
    """The shipped files that a recipe's text names, by the places where it will look for them."""
    names = sorted(set(BESIDE.findall(text)))
    if names:
        names.append("demo/README.md")  # their fields and their licence
    return {folder / name: (shipped.FOLDER / name).read_bytes() for name in names}


def write(contents: dict[Path, bytes]) -> list[Path]:
    """Write new files, or none: a file that has other content already is refused. Returns those written."""
    there = [path for path, content in contents.items() if path.exists() and not _same(path, content)]
    if there or next(iter(contents)).exists():
        path = there[0] if there else next(iter(contents))
        raise UserError(
            f"init: {path} is there already, and is not overwritten; name another file, such as"
            f" {path.with_name(f'new-{path.name}') if path == next(iter(contents)) else 'new/my.yaml'}, or move it away"
        )
    new = [path for path in contents if not path.exists()]
    for path in new:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[path])
    return new


def _same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
