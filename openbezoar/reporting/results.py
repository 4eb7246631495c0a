"""A finished step, and what it left for others to read as a typed result.

What a step writes is one class: the step's work writes it, everybody reads it by the same class,
and it says itself what came of it (``Result`` and what is made of it: ``Scores`` here,
``funnels.RowNumbers``, ``training.TrainingNumbers``). The report, the table of checkpoints, a
comparison of two runs and a release ask for these, and so know no verb.

A file has the ``version`` of its form; one without is of version 1. What a field is not there for,
in a file of an older version, is None; what a newer version says beyond the fields is kept and not
told; what cannot be read is empty. ``missing`` says so in a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from openbezoar.errors import RunError
from openbezoar.recipe.verbs import VERBS
from openbezoar.reporting.document import Block
from openbezoar.reporting.measured import Comparable, Difference, Grades, Measured, Score, score
from openbezoar.rows.records import Row, read_jsonl
from openbezoar.store.digests import MANIFEST
from openbezoar.store.files import write_json
from openbezoar.store.manifests import read_object

SCORES = "scores.json"
Number = int | float
"""A number as JSON has it; a whole one stays whole."""


@dataclass(frozen=True)
class StepFacts:
    """One finished step, as its manifest has it."""

    name: str
    verb: str
    folder: Path
    manifest: Mapping[str, Any]

    @cached_property
    def result(self) -> Result:
        """What the step left for others to read, typed; of a verb that is not known an empty one."""
        row = VERBS.get(self.verb)
        kind = (row and row.part("result")) or Result
        assert issubclass(kind, Result), f"{kind}: the result of a verb is a Result"
        return kind.of(self)

    @property
    def parts(self) -> Mapping[str, Any]:
        return _mapping(self.manifest.get("parts"))

    @property
    def settings(self) -> Mapping[str, Any]:
        return _mapping(self.parts.get("settings"))

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(_mapping(self.parts.get("inputs")))

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows dropped or changed, by reason."""
        return _mapping(self.manifest.get("counts"))

    @property
    def numbers(self) -> Mapping[str, Any]:
        return _mapping(self.manifest.get("numbers"))

    @property
    def environment(self) -> Mapping[str, Any]:
        return _mapping(self.manifest.get("environment"))

    @property
    def seconds(self) -> float:
        return float(self.manifest.get("seconds") or 0.0)

    @property
    def place(self) -> int:
        """Where the step stands in its recipe's order; -1 if its manifest does not say."""
        return int(self.manifest.get("place", -1))

    @property
    def finished(self) -> str:
        """Time of the end, UTC, as written."""
        return str(self.manifest.get("finished") or "")

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the step, {} if it has none. Raises RunError if it cannot be read."""
        path = self.folder / name
        return read_object(path, "JSON", "delete the step's folder and run again") if path.is_file() else {}

    def data(self, ref: Any) -> Any:
        """A data reference of the step's settings with the hash of its file (or the key of its step)
        in place of the name, and the seed where rows are shuffled; None if neither is known.
        """
        name = str(ref.get("data") if isinstance(ref, Mapping) else ref)
        known = _mapping(self.parts.get("files")).get(name) or _mapping(self.parts.get("inputs")).get(name)
        known = known or (name if name.startswith("hub:") else None)
        some = {k: v for k, v in ref.items() if k != "data"} if isinstance(ref, Mapping) else {}
        return [known, some, self.parts.get("seed") if some.get("shuffle") else None] if known else None

    def rows(self, name: str) -> Iterator[Row]:
        """Rows of a JSON lines file of the step, none if it has no such file."""
        path = self.folder / name
        return read_jsonl(path) if path.is_file() else iter(())

    def rows_in(self, name: str) -> int:
        """How many rows a JSON lines file of the step has."""
        path = self.folder / name
        if not path.is_file():
            return 0
        with path.open("rb") as lines:
            return sum(bool(line.strip()) for line in lines)


# -------------------------------------------------------------------------------- results


class Record(BaseModel):
    """What a step writes, or a part of it. Every field may be missing in a file of another version."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", populate_by_name=True)

    def written(self) -> dict[str, Any]:
        """As it is written: what was given, under the names of the file."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Result(Record):
    """What a step left for others to read."""

    FILE: ClassVar[str] = ""
    """In the step's folder; "" for the numbers of its manifest, whose schema has a version of its own."""
    VERSION: ClassVar[int] = 1
    """Of the file's form: one more where an older openbezoar would take it for something else."""
    SINCE: ClassVar[Mapping[str, str]] = {}
    """Fields that older versions did not write, with what is not known without them."""

    version: int = 1
    _step: StepFacts | None = PrivateAttr(None)
    _unread: str = PrivateAttr("")

    @classmethod
    def of(cls, step: StepFacts) -> Self:
        """The result of a finished step. Raises RunError for a file that is no JSON object."""
        content = step.read_json(cls.FILE) if cls.FILE else step.numbers
        unread = ""
        try:
            result = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            unread = f"{'.'.join(map(str, first['loc']))}: {first['msg'][0].lower()}{first['msg'][1:]}"
            version = content.get("version")
            result = cls(version=version) if type(version) is int else cls()
        result._step, result._unread = step, unread
        return result

    @classmethod
    def left_by(cls, name: str, folder: Path) -> Self:
        """The result in the folder of a finished step. Raises RunError for one that cannot be read."""
        file, remedy = cls.FILE or MANIFEST, "delete the folder and run again"
        content = read_object(folder / file, "a step's results", remedy)
        result = cls.of(StepFacts(name, "", folder, {} if cls.FILE else content))
        if result._unread:
            raise RunError(f"{folder / file}: {result._unread}; {remedy}")
        return result

    @property
    def step(self) -> StepFacts:
        """The finished step whose result it is."""
        assert self._step is not None, "a result that is being written has no finished step"
        return self._step

    def write(self, folder: Path) -> None:
        """Write the file into a step's folder, with its version first."""
        write_json(folder / self.FILE, {"version": self.VERSION, **self.written()})

    def outcome(self) -> str:
        """What came of the step in a few words; "" if nothing can be said."""
        return ""

    def speed(self) -> float | None:
        """Tokens a second that were trained or written."""
        return None

    def tokens_trained(self) -> int | None:
        """Tokens that the step trained on."""
        return None

    def trust(self) -> list[str]:
        """How far a judge can be trusted, in sentences."""
        return []

    def stands_for(self) -> list[str]:
        """Steps for which this one speaks, where sentences of ``trust`` are told."""
        return []

    def missing(self) -> list[str]:
        """What a file of another version does not tell, in a line each."""
        where = f"{self.FILE or 'the manifest'} of step {self.step.name}"
        if self.version > self.VERSION:
            newer = f"is of a newer openbezoar (version {self.version}, this one reads up to {self.VERSION})"
            return [f"what {where} says: it {newer}{', ' + self._unread if self._unread else ''}."]
        if self._unread:
            return [f"what {where} says: it cannot be read ({self._unread})."]
        lacking = [words for field, words in self.SINCE.items() if field not in self.model_fields_set]
        return [f"{', '.join(lacking)}: {where} is of a version that did not say."] if lacking else []


class Estimated(Record):
    """A number with its 95 % interval; n where it is not written beside it."""

    value: Number | None = None
    low: Number | None = None
    high: Number | None = None
    n: int | None = None

    def score(self, n: int | None = None) -> Score | None:
        """As a score of ``n`` items; None if its number or its n is missing."""
        return score(self.value, self.low, self.high, self.n if n is None else n)


class PairedDifference(Record):
    """One of the paired differences that ``stats.comparisons.every_pair`` gives: b's value less a's."""

    a: str | None = None
    b: str | None = None
    task: str | None = None
    metric: str | None = None
    rows: str | None = Field(None, alias="set")
    what: str | None = None
    n: int | None = None
    difference: Number | None = None
    low: Number | None = None
    high: Number | None = None
    p: Number | None = None
    p_holm: Number | None = None

    def told(self, kind: str, name: str, what: str, *, lower: bool = False, chance: bool = False) -> Difference | None:
        """As the report tells of it; None without its numbers. kind, name: as of the ``Measured`` that it is of."""
        if self.difference is None or self.low is None or self.high is None:
            return None
        numbers = (self.difference, self.low, self.high, self.n)
        told = Difference(str(self.a), str(self.b), what, *numbers, kind, self.p_holm)
        return replace(told, lower=lower, name=name, chance=chance)


class Scores(Result):
    """A ``scores.json``: what was measured of checkpoints, or of a judge."""

    FILE: ClassVar[str] = SCORES

    def checkpoints(self) -> list[str]:
        """The checkpoints that were scored, in the order of the step's list."""
        return []

    def foreign(self) -> list[str]:
        """Those of ``checkpoints`` that are none of the recipe's, whose answers came from elsewhere."""
        return []

    def scores(self) -> list[Measured]:
        """What the table of checkpoints tells. A number without n is none and is left out."""
        return []

    def differences(self) -> list[Difference]:
        """Paired differences of ``scores`` between every two checkpoints, as the step has tested them."""
        return []

    def answer_differences(self) -> list[Difference]:
        """Paired differences in what answers are like: whether they stop, loop, refuse."""
        return []

    def comparable(self) -> Iterator[Comparable]:
        """Everything that can be held against another run."""
        yield from ()

    def grades(self) -> list[Grades]:
        """What was found out about each checkpoint's answers."""
        return []

    def seen_from(self) -> str | None:
        """The checkpoint that reward accuracies are seen from."""
        return None

    def beside(self) -> list[str]:
        """What must stand beside the scores in any table, in sentences: how far who gave them is to be believed."""
        return []

    def blocks(self) -> list[Block]:
        """What the report's section of scores tells beside the table."""
        return []

    def _listed(self, scored: Iterable[str]) -> list[str]:
        """Scored checkpoints in the order of the step's list, then those that are not in it."""
        listed, names = self.step.settings.get(self.step.verb), list(scored)
        ordered = [n for n in listed if n in names] if isinstance(listed, list) else []
        return [*ordered, *(n for n in names if n not in ordered)]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
