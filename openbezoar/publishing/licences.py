"""Licences of a release: what the sources state, and what follows from it by a fixed rule.

Reads a model folder's ``source.json`` and licence files, and the README beside a data file.
What no source states is 'unknown' and is said so; nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openbezoar.models.references import cache_folder

UNKNOWN = "unknown"

# Terms of data sets and models that recipes name, as their publishers state them.
KNOWN = {
    "databricks/databricks-dolly-15k": "cc-by-sa-3.0",
    "anthropic/hh-rlhf": "mit",
    "openlm-research/open_llama_3b_v2": "apache-2.0",
    "h2oai/h2ogpt-gm-oasst1-en-2048-falcon-40b-v2": "apache-2.0",
}
GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"
TERMS = re.compile(r"(licen[cs]e|notice|terms|copying|use_policy)", re.IGNORECASE)

_FAMILIES = (
    (r"\bcc[ -]?by[ -]nc[ -]sa", "cc-by-nc-sa"),
    (r"\bcc[ -]?by[ -]nc[ -]nd", "cc-by-nc-nd"),
    (r"\bcc[ -]?by[ -]nc", "cc-by-nc"),
    (r"\bcc[ -]?by[ -]sa", "cc-by-sa"),
    (r"\bcc[ -]?by\b", "cc-by"),
)
_OTHERS = (
    (r"\bcc0|public domain", "cc0-1.0"),
    (r"\bapache\b", "apache-2.0"),
    (r"\bgemma\b", "gemma"),
    (r"\bllama[ -]?2\b", "llama2"),
    (r"\bllama[ -]?3\b", "llama3"),
    (r"\bmit\b", "mit"),
    (r"\bbsd[ -]?3", "bsd-3-clause"),
    (r"\bbsd[ -]?2", "bsd-2-clause"),
    (r"\bafl\b", "afl-3.0"),
    (r"\bodc[ -]?by\b", "odc-by"),
    (r"non[ -]?commercial", "non-commercial"),
)


@dataclass(frozen=True)
class Source:
    """Something a release was made from, and its licence as stated."""

    what: str  # "base model", "teacher", "training data"
    name: str
    stated: str | None

    @property
    def licence(self) -> str:
        return normal(self.stated)


@dataclass(frozen=True)
class Licence:
    """A release's licence: an id the hub knows, a name where the id is 'other', and why."""

    id: str
    name: str | None
    reason: str


def normal(text: str | None) -> str:
    """The hub's id for a licence written in words; the words in lower case if none is recognised.

    The strictest term named decides: "Apache 2.0; parts CC BY-NC 4.0" is non-commercial.
    """
    if not text:
        return UNKNOWN
    low = " ".join(text.lower().split())
    names = [name for pattern, name in _FAMILIES for name in _versions(pattern, name, low)]
    names += [name for pattern, name in _OTHERS if re.search(pattern, low)]
    return max(names, key=_strictness, default=low)


def _versions(pattern: str, name: str, text: str) -> list[str]:
    matches = re.finditer(pattern + r"(?![ -](?:nc|sa|nd)\b)(?:[ -]*(?:international)?[ -]*v?(\d\.\d))?", text)
    return [f"{name}-{m[1]}" if m[1] else name for m in matches]


def non_commercial(licence: str) -> bool:
    return "-nc" in licence or "non-commercial" in licence


def is_open(licence: str) -> bool:
    """Whether a licence, as ``normal`` writes it, is a known open one, share-alike included."""
    return _strictness(licence) <= 2


def strictest(*stated: str | None) -> str | None:
    """Of several statements about one thing the strictest that is recognised; the first one if none
    is; None if there is none.
    """
    recognised = [text for text in stated if text and _strictness(normal(text)) != 4]
    return max(
        recognised, key=lambda text: _strictness(normal(text)), default=next((text for text in stated if text), None)
    )


PERMISSIVE = ("apache-2.0", "mit", "bsd-", "cc0-", "afl-3.0", "cc-by", "odc-by")


def _strictness(licence: str) -> int:
    """Rank of a licence: the stricter, the higher; one that is not recognised counts as strict."""
    if non_commercial(licence):
        return 5
    if licence.startswith(("gemma", "llama")):
        return 3
    if licence.startswith("cc-by-sa"):
        return 2
    if licence.startswith(PERMISSIVE):
        return 1 if licence.startswith(("cc-by", "odc-by")) else 0
    return 4


def derive(sources: Sequence[Source]) -> Licence:
    """The licence of something made from these sources.

    Non-commercial terms anywhere make it non-commercial; a base model's own terms (Gemma,
    Llama) are carried on; a source without a recognised licence leaves it open; else the
    strictest stated one holds, the first among equals.
    """
    listed = "; ".join(f"{s.what} {s.name}: {s.licence}" for s in sources)
    bound = sorted({s.licence for s in sources if _strictness(s.licence) == 3})
    restricted = sorted({s.licence for s in sources if non_commercial(s.licence)})
    if bound and restricted:
        return Licence(
            "other",
            "-and-".join([*bound, *restricted]),
            f"terms of the base are carried on and a source is non-commercial ({listed})",
        )
    if restricted:
        versioned = [r for r in restricted if re.search(r"\d$", r)]
        return Licence(
            versioned[0] if versioned else "cc-by-nc-4.0",
            None,
            f"a source is non-commercial, so the release is ({listed})",
        )
    if open_ := [s.name for s in sources if _strictness(s.licence) == 4] or (["any source"] if not sources else []):
        remedy = (
            "find it out before you publish, and state it in the recipe as 'licence' of the model or beside the 'data',"
            " or in a README.md beside the data file"
        )
        return Licence(
            "other", UNKNOWN, f"no licence that is recognised is stated for {', '.join(open_)}; {remedy} ({listed})"
        )
    if bound:
        name = None if len(bound) == 1 else "-and-".join(bound)
        return Licence("other" if name else bound[0], name, f"terms of the base are carried on ({listed})")
    strictest = max(sources, key=lambda s: _strictness(s.licence)).licence
    reason = f"the strictest of the sources' licences ({listed})"
    return (
        Licence(strictest, None, reason)
        if strictest not in ("cc-by", "cc-by-sa")
        else Licence("other", strictest, reason)
    )


def for_use(sources: Sequence[Source]) -> list[str]:
    """What the sources' licences mean for somebody who uses the release, a sentence each, the gravest first."""

    def named(rank: int) -> str:
        return ", ".join(f"{s.name} ({s.licence})" for s in sources if _strictness(s.licence) == rank)

    if not sources:
        return ["Whether it may be used or passed on is open: the run names no source of it."]
    sentences = []
    if names := named(5):
        sentences.append(f"Not for commercial use: {names} forbids it, and what is made from it follows.")
    if names := named(4):
        sentences.append(
            f"Whether it may be used or passed on is open: no licence that is recognised is stated for {names}."
        )
    if names := named(3):
        sentences.append(
            f"The terms of {names} hold for this too, with their restrictions of use; pass them on with it."
        )
    if names := named(2):
        sentences.append(f"What you make from it has to be passed on under the same licence: {names} asks for that.")
    return sentences or [
        "It may be used, changed and passed on, also commercially; keep the licence and the notices with it."
    ]


# ------------------------------------------------------------------- what sources state


def of_model_folder(folder: Path) -> str | None:
    """What ``source.json`` of a fetched model says, or a model card's front matter."""
    source = folder / "source.json"
    if source.is_file():
        stated = json.loads(source.read_text(encoding="utf-8")).get("licence")
        if stated:
            return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated)
    return _front_matter(folder / "README.md")


def cached_licence(reference: str) -> str | None:
    """What a fetched model or a model's folder says of itself, if it is on disk; fetches nothing."""
    folder = (
        cache_folder() / f"pypi-{reference.removeprefix('pypi:').replace('==', '-')}"
        if reference.startswith("pypi:")
        else Path(reference).expanduser()
    )
    try:
        return of_model_folder(folder) or of_reference(reference)
    except (OSError, json.JSONDecodeError):
        return of_reference(reference)


def of_reference(reference: str) -> str | None:
    """The licence of a hub id, where it is known."""
    return KNOWN.get("/".join(re.sub(r"^hub:|\[.*|@.*", "", reference).lower().split("/")[:2]))


def of_data_file(path: Path) -> str | None:
    """What the README beside a data file (or one folder up) states for it.

    A table row that names the file under a 'licence' column comes first, then the front
    matter, then a section headed 'Licence'.
    """
    for folder in (path.parent, path.parent.parent):
        readme = folder / "README.md"
        if readme.is_file():
            text = readme.read_text(encoding="utf-8-sig", errors="replace")
            return _table_row(text, path, folder) or _front_matter(readme) or _section(text)
    return None


def _table_row(text: str, path: Path, folder: Path) -> str | None:
    column: int | None = None
    name = path.relative_to(folder).as_posix()
    for line in text.splitlines():
        cells = (
            [c.strip().strip("`") for c in line.strip().strip("|").split("|")] if line.strip().startswith("|") else []
        )
        if not cells:
            column = None
        elif column is None:
            column = next((i for i, c in enumerate(cells) if re.fullmatch(r"licen[cs]e", c, re.IGNORECASE)), None)
        elif column < len(cells) and cells[0] == name:
            return cells[column] or None
    return None


def _front_matter(readme: Path) -> str | None:
    if not readme.is_file():
        return None
    text = readme.read_text(encoding="utf-8-sig", errors="replace")
    match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    licence = re.search(r"^licen[cs]e:[ \t]*+(\S.*|(?:\n[ \t]*+-.*)+)", match[1], re.MULTILINE) if match else None
    return _listed(licence[1]) if licence else None


def _listed(stated: str) -> str:
    """A licence, or several in either of YAML's lists, as one text."""
    parts = re.split(r"[\[\],\n]", stated) if stated.startswith(("[", "\n")) else [stated]
    return ", ".join(text for part in parts if (text := part.strip().removeprefix("- ").strip(" \"'")))


def _section(text: str) -> str | None:
    match = re.search(r"^#+ *Licen[cs]e\s*\n(.+?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    return " ".join(match[1].split()) if match else None


def terms_in(folder: Path) -> list[Path]:
    """Licence, terms and notice files in a model folder."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and TERMS.search(p.name) and p.suffix.lower() in ("", ".txt", ".md", ".pdf")
    )
