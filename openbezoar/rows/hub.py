"""The hub's data sets by reference, and what its clients' exceptions mean, in one line each with the remedy.

``hub:org/name:config[split]@revision``, or ``/config``: the configuration may be left out where a
data set has one, the split is ``train``, perhaps with a slice (``[train[:1000]]``), the revision
the newest. Fetching keeps everything in the clients' own cache.
"""

from __future__ import annotations

import errno
import re
from http import HTTPStatus
from typing import Any, NamedTuple

from openbezoar.errors import DataError, brief

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


def load_rows(ref: str) -> Any:
    """The data set of a reference, as the hub's client gives it. Raises DataError saying why it
    cannot be had, OSError for a disk that is full.
    """
    data_set = DataSetRef.of(ref)
    from datasets import load_dataset

    try:
        return load_dataset(data_set.name, data_set.config, split=data_set.split, revision=data_set.revision)
    except Exception as error:  # the clients raise some thirty kinds; each means the rows cannot be had
        raise_if_of_the_machine(error)
        raise DataError(f"{ref}: {cause(error, 'data set', data_set)}") from None


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
    if kinds & {"OfflineModeIsEnabled"} or _offline():
        return (
            "it is not in the hub's cache on this machine, and the client is offline (HF_HUB_OFFLINE); go online once,"
            f" or {here}"
        )
    replies = (getattr(link, "response", None) for link in _chain(error))
    status = next((reply.status_code for reply in replies if reply is not None), None)
    if status is not None:
        wait = "log in (hf auth login)"
        if status == 429:
            wait = f"it asks for a pause: wait, or {wait}"
        elif status >= 500:
            wait = "try again later"
        return f"the hub answered {status} {_reason(status)}; {wait}, or {here}"
    if kinds & {
        "ConnectionError",
        "ConnectError",
        "ConnectTimeout",
        "ReadTimeout",
        "TimeoutError",
        "TransportError",
        "LocalEntryNotFoundError",
    }:
        return f"the hub cannot be reached ({brief(_chain(error)[-1])}); check the network, or {here}"
    return f"the {what} cannot be had ({brief(error)}); {here}"


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


def _reason(status: int) -> str:
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
