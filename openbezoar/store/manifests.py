"""What a finished step says about itself, read with distrust: a manifest may be damaged, made by
hand, or from another version.

A manifest carries the version of its schema and a digest of all else that it says. Older ones
have neither; of them only the types of what they say are checked.

Schema 1, which is not written down in it: ``weights`` has the marks of safetensors files.
Schema 2: ``files`` has the marks of all files, ``used`` the results of its inputs; ``hub``, which may be missing,
the commits of the models and data sets of the hub that it read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openbezoar.errors import RunError
from openbezoar.machine.foreign import foreign_file
from openbezoar.store.digests import digest

SCHEMA = 2
Manifest = dict[str, Any]

_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("step", "verb", "key", "finished", "summary", "digest"), str),
    **dict.fromkeys(
        ("parts", "counts", "numbers", "files", "weights", "used", "used_weights", "environment", "hub"), dict
    ),
    "seconds": (int, float),
    "schema": int,
    "place": int,
}
_PARTS = ("settings", "inputs", "files", "models", "prompt", "texts", "benchmarks")


def sealed(content: Mapping[str, Any]) -> Manifest:
    """A manifest, or other words of a step, with the schema's version and the digest of what it says."""
    facts = json.loads(json.dumps({**content, "schema": SCHEMA}, default=str))  # as it will be read
    facts.pop("digest", None)
    return {**facts, "digest": digest(facts)}


def read_object(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """A JSON object in a file of a run. Raises RunError for anything else, FileNotFoundError for no file."""
    with foreign_file(path, what, remedy, kind=RunError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise RunError(f"{path}: {what} expected, which is a JSON object; {remedy}")
    return content


def read_sealed(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """What was ``sealed``. Raises RunError if it is not as it was written."""
    content = read_object(path, what, remedy)
    if content.get("digest") != digest({key: value for key, value in content.items() if key != "digest"}):
        raise RunError(f"{path}: changed since it was written (its digest is another); {remedy}")
    return content


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a file, None without one. Raises RunError for one that is damaged, or of a newer schema."""
    remedy = "delete the folder and run again"
    try:
        content = read_object(path, "a manifest", remedy)
    except (FileNotFoundError, NotADirectoryError):
        return None
    schema = content.get("schema", 1)
    if type(schema) is int and schema > SCHEMA:
        raise RunError(
            f"{path}: written by a newer openbezoar (schema {schema}, this one reads up to {SCHEMA}); update"
            " openbezoar, or name another --runs"
        )
    if wrong := _mistyped(content):
        raise RunError(f"{path}: no manifest of a step, '{wrong}' has another type; {remedy}")
    new = schema > 1 or "digest" in content or "files" in content  # whichever of these words was spoilt
    if new and content.get("digest") != digest({key: value for key, value in content.items() if key != "digest"}):
        raise RunError(f"{path}: changed since it was written (its digest is another); {remedy}")
    return content


def _mistyped(content: Mapping[str, Any]) -> str | None:
    """The first thing that a manifest says in another type than it should."""
    for key, types in _TYPES.items():
        if key in content and (not isinstance(content[key], types) or isinstance(content[key], bool)):
            return key
    parts = content.get("parts", {})
    for key in _PARTS:
        if not isinstance(parts.get(key, {}), dict):
            return f"parts.{key}"
    for group in ("files", "weights"):
        for mark in content.get(group, {}).values():
            if not (isinstance(mark, list) and len(mark) == 3 and list(map(type, mark)) == [int, int, str]):
                return group
    if any(type(n) is not int for n in content.get("counts", {}).values()):
        return "counts"
    return None
