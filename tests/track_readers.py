"""What a tracker wrote, read with the tracker's own code: ``python track_readers.py TRACKER FOLDER RUN STEP`` prints
{name: [[step, value], ...]} as JSON. A program, since some trackers take their folder from the environment.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Curves = dict[str, list[tuple[int, float]]]


def tensorboard(folder: Path, run: str, step: str) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / step), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def mlflow(folder: Path, run: str, step: str) -> Curves:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=folder.resolve().as_uri())
    experiment = client.get_experiment_by_name(run)
    assert experiment is not None
    (one,) = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == step]
    assert one.info.status == "FINISHED"
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(one.info.run_id, name)] for name in one.data.metrics
    }


def trackio(folder: Path, run: str, step: str) -> Curves:
    os.environ["TRACKIO_DIR"] = str(folder)
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    assert [one.name for one in Api().runs(run)].count(step) == 1
    curves: Curves = {}
    for line in SQLiteStorage.get_logs(run, step):
        for name, value in line.items():
            if name not in ("step", "timestamp"):
                curves.setdefault(name, []).append((line["step"], value))
    return curves


def wandb(folder: Path, run: str, step: str) -> Curves:
    """The file's records are W&B's own messages; their frames are those of LevelDB's log, which no package opens."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (folder / step).rglob("*.wandb")
    curves: Curves = {}
    for content in _records(file.read_bytes()):
        record: Any = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") != "history":
            continue
        values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for name, value in values.items():
            if not name.startswith("_"):
                curves.setdefault(name, []).append((record.history.step.num or values.get("_step", 0), value))
    return curves


def _records(data: bytes) -> Iterator[bytes]:
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


if __name__ == "__main__":
    reader, folder, run, step = sys.argv[1:]
    json.dump(globals()[reader](Path(folder), run, step), sys.stdout)
