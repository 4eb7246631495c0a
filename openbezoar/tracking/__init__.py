"""Trackers of experiments: what a run's logs have is written for TensorBoard, Trackio, W&B or MLflow too.

Each step's curve is written by a process of its own (``writers.py``), which a thread feeds: a tracker that is slow,
hangs, raises or changes its process's environment touches no run. Its files lie in ``RUN/track``. The logs are the
truth: a step's curve is begun anew with every try, from the lines that the try goes on from, so that it has each
point once; and a finished step that a tracker has not seen is told from its folder.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openbezoar.errors import brief
from openbezoar.store.files import write_json
from openbezoar.store.live import lines_of

FOLDER = "track"
WRITERS = Path(__file__).with_name("writers.py")
LOGS = {"metrics": "train", "heldout": "heldout"}
"""A training's logs, in the order of their lines of one step, and what their numbers are called before a slash."""
RESULT = "result"
PATIENCE = 60.0  # seconds that a tracker has for its end
# What a tracker does by itself and is asked not to, where the user's own environment says nothing of it.
QUIET = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class Tracks:
    """The trackers of a run. warn: is told once of each that fails, which then hears no more."""

    def __init__(self, run: Path, trackers: Sequence[str], warn: Callable[[str], None]) -> None:
        self.run, self.trackers, self.warn = run, list(dict.fromkeys(trackers)), warn

    @contextmanager
    def step(self, name: str) -> Iterator[StepTrack]:
        """A step at work. Its trackers are closed at the end, whatever that is."""
        track = StepTrack(self, name, self.trackers)
        try:
            yield track
        finally:
            track.close()

    def catch_up(self, name: str, mark: str, folder: Path, scores: Mapping[str, float]) -> None:
        """Tell of a finished step to those that have not seen it. mark: of the result, another for another one."""
        seen = self._seen().get(name, {})
        if not (unseen := [tracker for tracker in self.trackers if seen.get(tracker) != mark]):
            return
        track = StepTrack(self, name, unseen)
        for log, line in in_order({log: lines_of(folder / f"{log}.jsonl") for log in LOGS}):
            track.tell(log, line)
        track.ended(mark, scores)
        track.close()

    def drop(self, tracker: str, why: str) -> None:
        """Go on without a tracker."""
        if tracker in self.trackers:
            self.trackers.remove(tracker)
            self.warn(f"warning: track: {tracker}: {why}; the run goes on without it")

    def saw(self, name: str, trackers: Sequence[str], mark: str) -> None:
        """Note that trackers have a step's whole result."""
        seen = self._seen()
        seen[name] = {**seen.get(name, {}), **dict.fromkeys(trackers, mark)}
        write_json(self.run / FOLDER / "seen.json", seen)

    def _seen(self) -> dict[str, dict[str, str]]:
        try:
            seen = json.loads((self.run / FOLDER / "seen.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {k: v for k, v in seen.items() if isinstance(v, dict)} if isinstance(seen, dict) else {}


class StepTrack:
    """One step in each tracker; a tracker is started by the first number that there is for it."""

    def __init__(self, tracks: Tracks, name: str, trackers: Sequence[str]) -> None:
        self.tracks, self.name, self.trackers = tracks, name, trackers
        self.feeds: dict[str, _Feed] = {}
        self.last, self.mark = 0, ""

    def tell(self, log: str, line: Mapping[str, Any]) -> None:
        """A line of a log."""
        step = line.get("step")
        self.last = max(self.last, step) if isinstance(step, int) else self.last
        if log in LOGS:
            self._send(self.last, {f"{LOGS[log]}/{k}": v for k, v in line.items() if k != "step" and _number(v)})

    def ended(self, mark: str, scores: Mapping[str, float]) -> None:
        """The step is done, with these numbers."""
        self._send(self.last, {f"{RESULT}/{name}": value for name, value in scores.items()})
        self.mark = mark

    def close(self) -> None:
        """Wait for the trackers, not for long."""
        for tracker, feed in self.feeds.items():
            if why := feed.end():
                self.tracks.drop(tracker, why)
        whole = [tracker for tracker in self.feeds if tracker in self.tracks.trackers]
        if self.mark and whole:
            self.tracks.saw(self.name, whole, self.mark)

    def _send(self, step: int, values: Mapping[str, Any]) -> None:
        for tracker in self.trackers if values else ():
            if tracker not in self.tracks.trackers:
                continue
            if tracker not in self.feeds:
                self.feeds[tracker] = _Feed(tracker, self.tracks.run, self.name)
            feed = self.feeds[tracker]
            if feed.failed:
                self.tracks.drop(tracker, feed.end() or "ended")
            else:
                feed.lines.put(json.dumps({"step": step, "values": values}) + "\n")


class _Feed(threading.Thread):
    """Takes lines to a tracker's process."""

    def __init__(self, tracker: str, run: Path, step: str) -> None:
        super().__init__(daemon=True, name=f"track {tracker}")
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.failed = False
        self.errors = run / FOLDER / f".{tracker}.log"
        self.command = [sys.executable, "-P", str(WRITERS), tracker, str(run / FOLDER), run.name, step]
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def run(self) -> None:
        try:
            self.errors.parent.mkdir(parents=True, exist_ok=True)
            with self.errors.open("w", encoding="utf-8") as errors:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    text=True,
                    encoding="utf-8",
                    env={**QUIET, **os.environ},
                    start_new_session=True,  # Ctrl-C is the run's
                )
            assert self.process.stdin is not None
            with self.process.stdin as stdin:
                while (line := self.lines.get()) is not None:
                    stdin.write(line)
                    stdin.flush()
            self.failed = self.process.wait() != 0
        except (OSError, ValueError):
            self.failed = True

    def end(self) -> str:
        """Wait for the process; gives what went wrong, "" for nothing."""
        self.lines.put(None)
        self.join(PATIENCE)
        if self.is_alive() and self.process is not None:
            self.process.kill()
            self.join(PATIENCE)
            return f"had not ended after {PATIENCE:.0f} s"
        if not self.failed:
            self.errors.unlink(missing_ok=True)
            return ""
        try:
            said = self.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            said = []
        return brief(RuntimeError(said[-1])) if said else "its process ended"


def in_order(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Lines of several logs as they were written: by step, those of one step in the order of the logs."""
    lines = [(line["step"], place, log, line) for place, (log, of) in enumerate(logs.items()) for line in of]
    yield from ((log, line) for _, _, log, line in sorted(lines, key=lambda one: one[:2]))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
