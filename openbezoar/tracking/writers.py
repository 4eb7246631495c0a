"""One step's numbers into one tracker: a program that is run by itself, with nothing of the project's.

``python writers.py TRACKER FOLDER RUN STEP`` reads JSON lines {"step": N, "values": {NAME: NUMBER}} until its input
ends. What an earlier try wrote of this step goes first. Files lie in FOLDER/TRACKER, where the user's environment
names no other place (MLFLOW_TRACKING_URI, TRACKIO_DIR, TRACKIO_SPACE_ID, WANDB_MODE=online). Names and numbers are
all that is written: no settings, no environment, no code, nothing of the machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Protocol


class Writer(Protocol):
    """A tracker with a step's curve open."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Numbers at an optimiser step."""

    def close(self) -> None:
        """All of it is written when this returns."""


class TensorBoard:
    """Event files in a folder a step."""

    def __init__(self, folder: Path, run: str, step: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        shutil.rmtree(folder / step, ignore_errors=True)
        self.event, self.summary = Event, Summary
        self.writer = EventFileWriter(str(folder / step))

    def log(self, values: dict[str, float], step: int) -> None:
        summary = self.summary(value=[self.summary.Value(tag=name, simple_value=v) for name, v in values.items()])
        self.writer.add_event(self.event(wall_time=time.time(), step=step, summary=summary))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run a step, in a project of the run's name; offline unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, run: str, step: str) -> None:
        import wandb

        place = folder / step
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        # one name for all tries: a server that has its first steps takes none of them twice
        name = hashlib.sha256(f"{folder.resolve()} {step}".encode()).hexdigest()[:12]
        online = os.environ.get("WANDB_MODE", "offline") == "online"
        self.run = wandb.init(
            project=run, name=step, id=name, dir=str(place), settings=settings, resume="allow" if online else None
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run a step, in an experiment of the run's name; a file store unless MLFLOW_TRACKING_URI says otherwise."""

    TAG = "openbezoar.step"

    def __init__(self, folder: Path, run: str, step: str) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self.metric = Metric
        elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
        self.client = MlflowClient(tracking_uri=elsewhere or folder.resolve().as_uri())
        experiment = self.client.get_experiment_by_name(run)
        number = experiment.experiment_id if experiment is not None else self.client.create_experiment(run)
        before = self.client.search_runs([number], filter_string=f"tags.`{self.TAG}` = '{step}'")
        for old in before:
            self.client.delete_run(old.info.run_id)
            if not elsewhere:  # where a deleted run would stay, hidden
                shutil.rmtree(folder / number / old.info.run_id, ignore_errors=True)
        self.run = self.client.create_run(number, run_name=step, tags={self.TAG: step}).info.run_id

    def log(self, values: dict[str, float], step: int) -> None:
        now = int(1000 * time.time())
        named = {re.sub(r"[^\w\-. /]", "_", name): value for name, value in values.items()}
        self.client.log_batch(self.run, metrics=[self.metric(name, v, now, step) for name, v in named.items()])

    def close(self) -> None:
        self.client.set_terminated(self.run)


class Trackio:
    """A run a step, in a project of the run's name: SQLite in the folder."""

    def __init__(self, folder: Path, run: str, step: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve()))  # read when it is imported
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        while SQLiteStorage.delete_run(run, step):
            pass
        self.run = trackio.init(project=run, name=step, embed=False, auto_log_gpu=False, auto_log_cpu=False)

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


WRITERS: dict[str, Any] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb, "mlflow": MLflow}


def main(tracker: str, folder: str, run: str, step: str) -> int:
    """Write until the input ends. An error is one line on stderr, and 1."""
    place = Path(folder) / tracker
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the process of a try that was killed may still be at its end
            writer: Writer = WRITERS[tracker](place, run, step)
            for line in sys.stdin:
                told = json.loads(line)
                writer.log(told["values"], told["step"])
            writer.close()
    except Exception as error:
        print(f"\n{type(error).__name__}: {' '.join(str(error).split())}"[:500], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
