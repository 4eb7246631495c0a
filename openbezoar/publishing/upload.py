"""What of a release goes to which hub repository, and its going there.

Reads a release step's folder and manifest. ``planned`` touches no network; ``push`` uses
huggingface_hub, with the token that its own login or the environment has, which is neither
asked for nor shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openbezoar.errors import RunError
from openbezoar.publishing.checksums import File, checked

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


def push(uploads: Iterable[Upload], private: bool) -> Iterator[str]:
    """Make each repository that is not there, have the hub check the card, upload the files; yields
    each commit's address.

    Raises RunError where the hub cannot be reached or refuses.
    """
    from huggingface_hub import DatasetCard, HfApi, ModelCard, get_token

    if get_token() is None:
        raise RunError(
            "--push: not logged in to the hub; run 'hf auth login', or put a token into the environment as HF_TOKEN"
        )
    api = HfApi()
    for upload in uploads:
        try:
            card = (ModelCard if upload.kind == "model" else DatasetCard).load(upload.folder / "README.md")  # type: ignore[no-untyped-call]
            card.validate(repo_type=upload.kind)
            api.create_repo(upload.repository, private=private, repo_type=upload.kind, exist_ok=True)
            commit = api.upload_folder(
                repo_id=upload.repository,
                folder_path=upload.folder,
                repo_type=upload.kind,
                allow_patterns=[file.name for file in upload.files],
                commit_message=f"{upload.name}, made with OpenBezoar",
            )
        except Exception as error:  # the hub's client has many kinds, and its transport's too
            words = " ".join(str(error).split())[:300]
            raise RunError(
                f"{upload.repository}: the hub did not take it ({type(error).__name__}: {words}); what was uploaded"
                " before stays, and is not sent again"
            ) from None
        yield str(commit.commit_url)
