"""What ``release`` leaves for others to read: the numbers of its manifest, beside the folders that it wrote."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from openbezoar.reporting.results import Record, Result


class ReleasedFile(Record):
    """A file by its size and SHA-256."""

    bytes: int
    sha256: str


class ReleasedModel(Record):
    """A model's folder."""

    path: str
    bytes: int  # of the weights
    sha256: dict[str, str]  # of the weights, by file
    licence: str
    files: dict[str, ReleasedFile]
    gguf_refused: str = ""  # why there is no GGUF


class ReleasedData(Record):
    """A data set's folder."""

    path: str
    step: str
    rows: int
    sha256: str
    licence: str
    files: dict[str, ReleasedFile]


class ReleaseNumbers(Result):
    """What was released, and the numbers on the cards that other steps keep in files of theirs."""

    models: dict[str, ReleasedModel] = Field(default_factory=dict)
    data: dict[str, ReleasedData] = Field(default_factory=dict)
    measured: dict[str, Any] = Field(default_factory=dict)
    summary: str | None = None

    def outcome(self) -> str:
        return f"{len(self.models)} models, {len(self.data)} data sets"
