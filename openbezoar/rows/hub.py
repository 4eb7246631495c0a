"""The hub's data sets by reference, the commits that a run holds on to, and what the clients' exceptions mean, in one
line each with the remedy.

``hub:org/name:config[split]@revision``, or ``/config``: the configuration may be left out where a
data set has one, the split is ``train``, perhaps with a slice (``[train[:1000]]``), the revision
the newest. Fetching keeps everything in the clients' own cache.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, NamedTuple

from openbezoar.errors import DataError, RunError, brief
from openbezoar.store.files import write_json
from openbezoar.store.manifests import read_object

FORM = "hub:org/name:config[split]@revision (config, split and revision may be left out)"
_REF = re.compile(
    r"hub:(?P<name>[\w.-]+/[\w.-]+)(?:[:/](?P<config>[^/:\[\]@]+))?"
    r"(?:\[(?P<split>\w+(?:[.-]\w+)*(?:\[(?:-?\d+%?)?:(?:-?\d+%?)?\])?)\])?(?:@(?P<revision>[\w./-]+))?"
)


class DataSetRef(NamedTuple):
    """A data set of the hub."""

    name: str
    config: str | None
    split: str
    revision: str | None

    @classmethod
    def of(cls, ref: str) -> DataSetRef:
        """Raises DataError for a text that is none."""
        match = _REF.fullmatch(ref)
        if not match:
            raise DataError(f"'{ref}': expected {FORM}")
        return cls(match["name"], match["config"], match["split"] or "train", match["revision"])


COMMITS = "hub.json"
COMMIT = re.compile(r"[0-9a-f]{40}")


class Commits:
    """Which commit each name on the hub stood for when a run first read it: ``hub.json`` in the run's folder.

    A branch may move while a run is under way; the run goes on with what it began with. used: the names that were asked
    for here, with their commits.
    """

    def __init__(self, run: Path) -> None:
        self.file = run / COMMITS
        self.used: dict[str, str] = {}

    def kept(self) -> dict[str, str]:
        """What is written down. Raises RunError for a file that was damaged."""
        remedy = "delete it, and names stand for what the hub has now"
        try:
            kept = read_object(self.file, "commits by the names that a recipe has on the hub", remedy)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        if wrong := [name for name, commit in kept.items() if not COMMIT.fullmatch(str(commit))]:
            raise RunError(f"{self.file}: '{wrong[0]}' has no commit; {remedy}")
        return kept

    def of(self, name: str, ask: Callable[[], str | None]) -> str | None:
        """The commit of a name; ``ask`` is called once in a run, and gives None where it cannot be known."""
        kept = self.kept()
        commit = kept.get(name) or ask()
        if commit is None:
            return None
        self.used[name] = commit
        if name not in kept:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, {**kept, name: commit})
        return commit


def commit_in_cache(kind: Literal["models", "datasets"], name: str, revision: str, cache: Path) -> str | None:
    """What a revision stands for by the client's own cache; None if it never met it."""
    named = cache / f"{kind}--{name.replace('/', '--')}" / "refs" / revision
    if named.is_file():
        return named.read_text(encoding="utf-8").strip()
    return revision if COMMIT.fullmatch(revision) else None


def load_rows(ref: str, commits: Commits | None = None) -> Any:
    """The data set of a reference, as the hub's client gives it; of the commit that ``commits`` has for its name.

    Raises DataError saying why it cannot be had, OSError for a disk that is full.
    """
    data_set = DataSetRef.of(ref)
    from datasets import load_dataset

    name = f"hub:{data_set.name}" + (f"@{data_set.revision}" if data_set.revision else "")
    commit = commits.of(name, lambda: _commit_now(data_set)) if commits else None
    try:
        rows = load_dataset(data_set.name, data_set.config, split=data_set.split, revision=commit or data_set.revision)
    except Exception as error:  # the clients raise some thirty kinds; each means the rows cannot be had
        raise_if_of_the_machine(error)
        raise DataError(f"{ref}: {cause(error, 'data set', data_set)}") from None
    if wrong := _another(rows, data_set, commit):
        raise DataError(f"{ref}: {wrong}")
    return rows


def _commit_now(data_set: DataSetRef) -> str | None:
    """The commit that the hub has for a reference; None where it does not say, and why is said by the load."""
    from huggingface_hub import HfApi

    if data_set.revision and COMMIT.fullmatch(data_set.revision):
        return data_set.revision
    with suppress(Exception):
        return HfApi().dataset_info(data_set.name, revision=data_set.revision).sha
    return None


def _another(rows: Any, data_set: DataSetRef, commit: str | None) -> str | None:
    """What is wrong where the client gave rows of another commit than that which was asked for.

    Where it cannot reach the hub it takes whatever it has of a data set, and says so in a warning only.
    """
    if commit is None and data_set.revision is None:
        return None
    from huggingface_hub import HfApi, constants

    asked = commit or commit_in_cache(
        "datasets", data_set.name, str(data_set.revision), Path(constants.HF_HUB_CACHE).expanduser()
    )
    files = getattr(rows, "cache_files", None) or []
    found = Path(files[0]["filename"]).parent.name if files else ""
    if not COMMIT.fullmatch(found) or found == asked:
        return None
    why = f"the hub did not give the revision {data_set.revision or commit}; try again"
    try:
        HfApi().dataset_info(data_set.name, revision=commit or data_set.revision)
    except Exception as error:
        why = cause(error, "data set", data_set)
    return f"{why}; the cache on this machine has the commit {found[:12]} of it only"


# ------------------------------------------------------------------------------ causes


def raise_if_of_the_machine(error: Exception) -> None:
    """Raise what the machine refused, such as a full disk, as it is: its line is written where the command ends."""
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
        ):
            raise link


def cause(error: BaseException, what: str, ref: DataSetRef | None = None) -> str:
    """Why the hub did not give a ``what`` ('model', 'data set'), and what to do: the first in an
    exception's chain that is known.
    """
    for link in _chain(error):
        if known := _of_data_set(link, ref) if ref else None:
            return known
    kinds = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
    words = " ".join(str(link) for link in _chain(error))
    here = f"name a local {'.jsonl file' if ref else 'folder'} instead"
    if "GatedRepoError" in kinds or "is a gated" in words:
        return (
            f"the {what} is gated: ask for access on its page on the hub, then log in (hf auth login, or a token in"
            " HF_TOKEN)"
        )
    if "RevisionNotFoundError" in kinds or "Revision '" in words:
        return (
            f"the {what} has no such revision; name a branch, a tag or a commit of it after the '@', or none for the"
            " newest"
        )
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return (
            f"the hub has no such {what}, or it is private; check the name, or log in (hf auth login, or a token in"
            " HF_TOKEN)"
        )
    if "UnicodeEncodeError" in kinds:
        return "the token in HF_TOKEN (or of hf auth login) has characters that no token has; set it again"
    if kinds & {"OfflineModeIsEnabled"} or _offline():
        return (
            "it is not in the hub's cache on this machine, and the client is offline (HF_HUB_OFFLINE); go online once,"
            f" or {here}"
        )
    status = status_of(error)
    if status == 401:
        return (
            "the hub knows no such token (401 Unauthorized); log in again (hf auth login), or put a valid one into"
            " HF_TOKEN"
        )
    if status is not None:
        wait = "log in (hf auth login)"
        if status == 429:
            wait = f"it asks for a pause: wait, or {wait}"
        elif status >= 500:
            wait = "try again later"
        return f"the hub answered {status} {reason(status)}; {wait}, or {here}"
    if "IncompleteSnapshotError" in kinds:
        return "its download broke off, and the hub cannot be reached to go on with it; check the network"
    if unreachable(error):
        return f"the hub cannot be reached ({brief(_chain(error)[-1])}); check the network, or {here}"
    return f"the {what} cannot be had ({brief(error)}); {here}"


def status_of(error: BaseException) -> int | None:
    """The status that the hub answered with, where an exception or what it came from has an answer."""
    replies = (getattr(link, "response", None) for link in _chain(error))
    return next((reply.status_code for reply in replies if reply is not None), None)


def unreachable(error: BaseException) -> bool:
    """Whether the hub, or its store of files, gave no whole answer."""
    kinds = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
    return bool(
        kinds
        & {
            "ConnectionError",
            "ConnectError",
            "ConnectTimeout",
            "ReadTimeout",
            "TimeoutError",
            "TransportError",
            "LocalEntryNotFoundError",
        }
    )


def reason(status: int) -> str:
    """The words that go with a status."""
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else ""


def _of_data_set(error: BaseException, ref: DataSetRef | None) -> str | None:
    """What is wrong with a data set that is there, or None. Its client says so in words only."""
    assert ref is not None
    text = str(error)
    if "Config name is missing" in text:
        return f"the data set has several configurations: {_listed(text)}; name one: hub:{ref.name}:CONFIG[{ref.split}]"
    if text.startswith("BuilderConfig") and "not found" in text:
        return f"the data set has no configuration '{ref.config}'; it has {_listed(text)}"
    if "Unknown split" in text or "Bad split" in text:
        return (
            f"the data set has no split '{ref.split}'; it has {_listed(text)}: name one in brackets, as in"
            f" hub:{ref.name}[SPLIT]"
        )
    if "Dataset scripts are no longer supported" in text:
        return (
            "the data set is a script, and no code from the hub is run; try its converted files:"
            f" hub:{ref.name}[{ref.split}]@refs/convert/parquet"
        )
    if type(error).__name__ in ("EmptyDatasetError", "DataFilesNotFoundError"):
        return "the data set has no files of rows that its client can read; download one and name it as a .jsonl file"
    return None


def _listed(text: str) -> str:
    """The names in the first list of a message, some dozens at most."""
    names = re.findall(r"'([^']*)'", text[text.find("[") : text.find("]")])
    return ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "") if names else "none"


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
