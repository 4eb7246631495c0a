"""What of a release goes to which hub repository, and its going there.

Reads a release step's folder and manifest. ``planned`` touches no network; ``push`` uses
huggingface_hub, with the token that its own login or the environment has, which is neither
asked for nor shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from openbezoar.errors import RunError
from openbezoar.machine.foreign import foreign_file
from openbezoar.publishing.checksums import SUMS, File, checked, read_sums
from openbezoar.rows.hub import reason, status_of, unreachable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TARGET = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Upload:
    """One folder and the repository that it goes to."""

    name: str
    folder: Path
    repository: str
    kind: Literal["model", "dataset"]
    licence: str
    files: tuple[File, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def planned(folder: Path, manifest: Mapping[str, Any], target: str, *, only: Iterable[str] = ()) -> list[Upload]:
    """What goes where: one folder to ``target``, several to ``target-NAME`` each.

    folder: the release step's; only: names of models and data sets, default: all. Raises RunError for
    an unknown name, a target that is no ORG/NAME, or files that are not those that were released.
    """
    if not TARGET.fullmatch(target):
        raise RunError(f"--push {target}: expected ORG/NAME, the repository's name on the hub")
    numbers = manifest["numbers"]
    kinds: tuple[tuple[Literal["model", "dataset"], Mapping[str, Any]], ...] = (
        ("model", numbers["models"]),
        ("dataset", numbers["data"]),
    )
    there = {name: (kind, about) for kind, group in kinds for name, about in group.items()}
    chosen = list(dict.fromkeys(only)) or list(there)
    if unknown := [name for name in chosen if name not in there]:
        raise RunError(f"--only {unknown[0]}: not in this release; it has {', '.join(there)}")
    uploads = []
    for name in chosen:
        kind, about = there[name]
        place = folder / Path(about["path"]).relative_to(folder.name)
        repository = target if len(chosen) == 1 else f"{target}-{name}"
        uploads.append(Upload(name, place, repository, kind, about["licence"], tuple(checked(place))))
    return uploads


def push(uploads: Sequence[Upload], private: bool) -> Iterator[str]:
    """Have the hub check all cards, make each repository that is not there, upload the files, and take out what an
    older release brought and this one has not; yields each commit's address.

    Raises RunError where the hub cannot be reached or refuses, and where a repository that is there can be read by
    others than ``private`` says.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

    if get_token() is None:
        raise RunError(
            "--push: not logged in to the hub; run 'hf auth login', or put a token into the environment as HF_TOKEN"
        )
    api = HfApi()
    for upload in uploads:
        with _told(upload):
            # Cards have a method for it, which in the client's older versions asks another hub than this one.
            card = {"repoType": upload.kind, "content": (upload.folder / "README.md").read_text(encoding="utf-8")}
            hf_raise_for_status(get_session().post(f"{constants.ENDPOINT}/api/validate-yaml", json=card))
    for upload in uploads:
        with _told(upload):
            there = api.repo_exists(upload.repository, repo_type=upload.kind)
            if there and api.repo_info(upload.repository, repo_type=upload.kind).private != private:
                raise RunError(
                    f"{upload.repository}: it is there already, and is {'public' if private else 'private'}; nothing"
                    f" was sent. Call this {'with' if private else 'without'} --public, or change it on its page, or"
                    " name another"
                )
    for upload in uploads:
        with _told(upload):
            api.create_repo(upload.repository, private=private, repo_type=upload.kind, exist_ok=True)
            commit = api.upload_folder(
                repo_id=upload.repository,
                folder_path=upload.folder,
                repo_type=upload.kind,
                allow_patterns=[escape(file.name) for file in upload.files],
                delete_patterns=[escape(name) for name in _left_over(api, upload)] or None,
                commit_message=f"{upload.name}, made with OpenBezoar",
            )
        yield str(commit.commit_url)


def _left_over(api: HfApi, upload: Upload) -> set[str]:
    """The files of the release that is in the repository, by its SHA256SUMS, that are not in this one. What else is
    there is somebody's own.
    """
    if not api.file_exists(upload.repository, SUMS, repo_type=upload.kind):
        return set()
    with TemporaryDirectory() as scratch:
        sums = Path(api.hf_hub_download(upload.repository, SUMS, repo_type=upload.kind, local_dir=scratch))
        with foreign_file(sums, "a digest and a name a line", "take it out of the repository", kind=RunError):
            return set(read_sums(sums)) - {file.name for file in upload.files}


@contextmanager
def _told(upload: Upload) -> Iterator[None]:
    """What the hub's client raises within becomes one line with what to do."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:  # the client has many kinds, and its transport's too
        raise RunError(
            f"{upload.repository}: {_why(error)}; what was uploaded before stays, and is not sent again"
        ) from None


def _why(error: Exception) -> str:
    """What the hub did not take an upload for, and what to do."""
    status = status_of(error)
    if status == 401:
        return "the hub knows no such token (401 Unauthorized); run 'hf auth login', or put a valid one into HF_TOKEN"
    if status == 403:
        return "this login may not write there (403 Forbidden); take a token that may, or name an ORG/NAME of your own"
    if status == 429 or (status or 0) >= 500:
        return f"the hub answered {status} {reason(status or 0)}; run the same command again later"
    if status is None and unreachable(error):
        return "the hub cannot be reached, or broke the upload off; run the same command again"
    words = " ".join(str(error).split())[:300]
    return f"the hub did not take it ({type(error).__name__}: {words})"
