"""A run while it is at work, and after: one frame for a terminal. Reads files of the run's folder only; writes nothing.

What models wrote is shown as plain text with control characters written out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openbezoar.errors import RunError
from openbezoar.llm.owners import Process
from openbezoar.progress import duration, visible
from openbezoar.reporting.samples import SampledAnswers, sampled_answers
from openbezoar.reporting.training import HELD_OUT, METRICS
from openbezoar.reporting.wording import size
from openbezoar.store.live import lines_of, read_live
from openbezoar.store.manifests import read_manifest
from openbezoar.store.runs import MANIFEST

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN = 8  # finished steps
WIDTH = 32  # of a curve
LONGEST = 300  # characters of an answer
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"


@dataclass(frozen=True)
class StepLogs:
    """A step's logs as far as they are written."""

    metrics: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    samples: list[SampledAnswers]

    @classmethod
    def of(cls, folder: Path) -> StepLogs:
        """In a step's folder, finished or in the making."""
        return cls(lines_of(folder / METRICS), lines_of(folder / HELD_OUT), sampled_answers(folder))


@dataclass(frozen=True)
class Watched:
    """What a run's folder says. live: of the step at work or stopped; state: of the process that works on it."""

    path: Path
    done: list[tuple[str, str, float, str]]  # name, verb, seconds, summary; in the order of their ends
    live: dict[str, Any]
    state: str
    name: str  # the step whose training is shown
    training: StepLogs


def look(path: Path) -> Watched:
    """Read a run's folder. Raises RunError if there is none."""
    if not path.is_dir():
        raise RunError(f"{path}: no such folder; expected a run such as runs/demo")
    manifests = [(file.parent.name, read_manifest(file) or {}) for file in path.glob(f"*/{MANIFEST}")]
    manifests.sort(key=lambda one: str(one[1].get("finished")))
    done = [
        (name, str(m.get("verb", "")), float(m.get("seconds") or 0.0), str(m.get("summary", "")))
        for name, m in manifests
    ]
    at_work = [(read_live(folder), folder) for folder in path.glob(".work/[!.]*") if folder.is_dir()]
    live, folder = max(at_work, key=lambda one: _float(one[0].get("at")), default=({}, None))
    if folder is None or not live:
        trained = [name for name, *_ in done if (path / name / METRICS).is_file()]
        name = trained[-1] if trained else ""
        return Watched(path, done, {}, "", name, StepLogs.of(path / name) if name else StepLogs([], [], []))
    owner = Process.of(str(live.get("owner", "")))
    return Watched(path, done, live, owner.state() if owner else "out of sight", folder.name, StepLogs.of(folder))


def frame(seen: Watched, *, unicode: bool = True) -> RenderableType:
    """The frame. unicode: whether the terminal has more than ASCII."""
    from rich.console import Group

    return Group(*_parts(seen, BARS if unicode else PLAIN_BARS))


def _parts(seen: Watched, bars: str) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    yield Text.assemble((str(seen.path), "bold"), f"  {len(seen.done)} step{'s' * (len(seen.done) != 1)} done")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, verb, seconds, summary in seen.done[-SHOWN:]:
        table.add_row(_plain(name), _plain(verb), duration(seconds) or "0.0 s", _plain(summary))
    if seen.done:
        yield table
    if seen.live:
        yield from _at_work(seen)
    elif seen.name:
        yield Text.assemble("no step is at work; the last training was ", (_text(seen.name), "bold"))
    else:
        yield Text("no step is at work")
    if seen.training.metrics or seen.training.heldout:
        yield _numbers(seen.training, bars)
    yield from _answers(seen.training.samples)
    for warning in _list(seen.live.get("warnings")):
        yield Text(_text(warning), style="yellow")


def _at_work(seen: Watched) -> Iterator[RenderableType]:
    from rich.text import Text

    live, now = seen.live, time.time()
    head = Text.assemble(
        f"[{_text(live.get('place', ''))}] ",
        (_text(seen.name), "bold"),
        f"  {_text(live.get('verb', ''))}  for {duration(now - _float(live.get('begun'))) or '0.0 s'}",
    )
    ago = max(now - _float(live.get("at")), 0.0)
    if seen.state == "gone":
        head.append("  stopped: its process is gone; 'openbezoar run' goes on from here", style="red")
    else:
        head.append(f"  (news {duration(ago) or '0.0 s'} ago)", style="dim")
    yield head
    bar = live.get("bar")
    if isinstance(bar, dict):
        yield Text(_progress(bar))
    memory = live.get("memory")
    if isinstance(memory, dict) and memory:
        yield Text("memory  " + "  ".join(f"{_text(kind)} {size(_float(n))}" for kind, n in memory.items()))


def _progress(bar: dict[str, Any]) -> str:
    done, total, seconds = (_float(bar.get(key)) for key in ("done", "total", "seconds"))
    rate = (done - _float(bar.get("before"))) / seconds if seconds else 0.0
    unit = _text(bar.get("unit", ""))
    words = f"{_text(bar.get('label', ''))}  {done:.0f}/{total:.0f} {unit}"
    if rate > 0:
        left = duration((total - done) / rate)
        words += f"  {rate:.3g} {unit}/s" + (f"  {left} left" if left else "")
    numbers = bar.get("numbers")
    for name, value in numbers.items() if isinstance(numbers, dict) else ():
        words += f"  {_text(name)} {_float(value):.4g}"
    return words


def _numbers(training: StepLogs, bars: str) -> RenderableType:
    """Curves of the log, and the last held-out values."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    names = dict.fromkeys(name for line in training.metrics for name in line if name not in ("step", "skipped"))
    for name in names:
        values = [_float(line[name]) for line in training.metrics if name in line]
        table.add_row(_plain(name), f"{values[-1]:.4g}", sparkline(values, bars), f"first {values[0]:.4g}")
    lines = training.heldout
    keys = [key for key, value in (lines[-1] if lines else {}).items() if key != "step" and _is_number(value)]
    for key in keys:
        values = [_float(line[key]) for line in lines if _is_number(line.get(key))]
        table.add_row(
            _plain(f"held out {key}"),
            f"{values[-1]:.4g}",
            sparkline(values, bars),
            f"first {values[0]:.4g}, last after step {lines[-1]['step']}",
        )
    return table


def _answers(samples: Sequence[SampledAnswers]) -> Iterator[RenderableType]:
    from rich.text import Text

    if samples:
        last = samples[-1]
        yield Text(f"asked after step {last.step}:", style="dim")
        for one in last.answers:
            yield Text.assemble(("  " + _text(one.prompt), "dim"), "\n    " + _text(one.text(), LONGEST))


def sparkline(values: Sequence[float], bars: str = BARS, width: int = WIDTH) -> str:
    """A curve in one line of text: means of as many points as a character stands for; '!' where one is not finite."""
    if not values:
        return ""
    n = min(width, len(values))
    cells = [values[i * len(values) // n : (i + 1) * len(values) // n] for i in range(n)]
    means = [sum(cell) / len(cell) for cell in cells]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)
    top = len(bars) - 1
    return "".join(
        "!" if not math.isfinite(m) else bars[round(top * (m - low) / span)] if span else bars[top // 2] for m in means
    )


def _plain(text: str) -> RenderableType:
    from rich.text import Text

    return Text(_text(text))


def _text(value: object, most: int = 200) -> str:
    """Foreign text in one line, harmless to a terminal."""
    words = visible(" ".join(str(value).split()))
    return words if len(words) <= most else words[: most - 1] + "…"


def _float(value: object) -> float:
    return float(value) if _is_number(value) and isinstance(value, int | float) else 0.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
