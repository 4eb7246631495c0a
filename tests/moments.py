"""A tiny run ended at random moments, by a kill, a power cut or SIGTERM, or damaged, and gone on with:
does it end as one that was never ended?

``python tests/moments.py --moments 500`` prints a line of JSON with what was done and what
differed. Runs of all verbs are made in forks of this process. A moment is a call of fsync, rename,
replace, unlink, rmdir or mkdir, or a commit of the call cache, before or after it; kills and SIGTERM also come
at any time in between. ``--stops 40`` is SIGTERM alone, 40 times in each step.

The power cut is simulated by what may be lost: bytes of a file that were not synced since they were written (all, or
all but a beginning), and names in a folder that was not synced since they changed (all of them, or, as on file systems
that keep the order of such changes, none). The call cache is taken as of its last commit, since SQLite syncs by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

FAST: dict[str, Any] = {
    "dtype": "float32",
    "batch": 4,
    "lora": {"r": 4, "alpha": 4},
    "learning_rate": 1e-3,
    "save_every": 2,
}
RULES: dict[str, Any] = {
    "min_response_words": 0,
    "drop_unfinished": False,
    "drop_repetition": 1.0,
    "drop_echoes": False,
    "near_duplicates": None,
}
ORCA: dict[str, Any] = {
    "generate": "orca",
    "teacher": "far",
    "seeds": "flan.jsonl",
    "batch": 4,
    "max_new_tokens": 12,
    "submixes": {"cot": 1},
}
ROWS: dict[str, Any] = {
    "made": {**ORCA, "rows": 12},
    "kept": {"filter": "made", "judge": "far", "min_rating": 1, "batch": 4, "rules": RULES},
    "again": {"filter": "kept", "rules": RULES},
    "best": {**ORCA, "rows": 5, "samples": 2, "by": "far"},
    "paired": {"pairs": "rows.jsonl", "from": "far", "samples": 3, "by": "far", "batch": 4},
}
MODELS: dict[str, Any] = {
    "sft": {"sft": ["rows.jsonl", "kept"], "model": "base", "epochs": 1, "evaluate_every": 3, **FAST},
    "SFT": {"merge": "sft"},
    "own": {
        "pairs": {"data": "rows.jsonl", "limit": 6},
        "from": ["SFT", "base"],
        "samples": 2,
        "foreign": 0.5,
        "by": "far",
        "max_new_tokens": 8,
        "unfinished": "keep",
    },
    "dpo": {"dpo": ["pairs.jsonl", "own"], "model": "SFT", "reference": "cached", "epochs": 1, **FAST},
    "DPO": {"merge": "dpo"},
    "whole": {"sft": "rows.jsonl", "model": "base", "quantize": "none", **FAST, "lora": "none"},
    "rm": {"reward": "pairs.jsonl", "model": "base", "beats": "nothing", "sweep": {"epochs": [1, 2]}, **FAST},
    "scores": {
        "evaluate": ["base", "SFT", "DPO"],
        "losses": {"mine": "rows.jsonl"},
        "pairs": {"pairs": "pairs.jsonl"},
        "loss_rows": 6,
        "wins": {
            "chat": {
                "prompts": "rows.jsonl",
                "limit": 4,
                "by": "far",
                "against": "base",
                "max_new_tokens": 8,
                "batch": 2,
            }
        },
    },
    "judged": {"agreement": "far", "pairs": "human.jsonl"},
    "answers": {"mt_bench": ["base", "DPO"], "questions": "questions.jsonl", "judge": "far", "max_new_tokens": 8},
    "wrong": {"failures": ["base", "DPO"], "instructions": {"data": "rows.jsonl", "limit": 4}, "max_new_tokens": 8},
    "release": {"release": ["DPO"], "gguf": ["f16"]},
}
# these tell how long something took
WITH_TIMES = ("metrics.jsonl", "README.md", "SHA256SUMS", "report.html", "report.md")


class Teacher:
    """A server's client that plays every part; each call that reaches it is noted in a file beside
    the run, as on a bill.
    """

    width = 3
    bill = Path()

    def __init__(self, name: str, spec: Any, *_: Any, **__: Any) -> None:
        self.name = name

    def answer(self, call: Any, *_: Any, **__: Any) -> Any:
        from openbezoar.llm import Completion

        text = call.prompt if isinstance(call.prompt, str) else "\n".join(turn.content for turn in call.prompt)
        mark = hashlib.sha256(f"{text}/{call.seed}".encode()).hexdigest()[:12]
        with self.bill.open("a") as bill:
            bill.write(mark + "\n")
        time.sleep(0.001)
        for asked, reply in (
            ("[[A]]", "I prefer [[A]]"),
            ("[[yes]]", "Verdict: [[no]]"),
            ("[[", f"Rating: [[{int(mark, 16) % 10 + 1}]]"),
        ):
            if asked in text:
                return Completion(reply, "stop", 9, 5)
        if "ating" in text:
            return Completion(f"Status: accept\nRating: {int(mark, 16) % 10 + 1}\nReason: Fair, {mark}.", "stop", 9, 5)
        return Completion(f"The answer is known and has the number {mark}, as asked.", "stop", 9, 5)

    def close(self) -> None:
        pass


# ------------------------------------------------------------------------------- what a power cut leaves


class Watched:
    """What of a folder is on the disk, by inode: files as of their last sync, names as of their folder's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self.held: list[int] = []  # open, so that no number is given to another file
        for folder, _, files in os.walk(root):
            self.synced(Path(folder))
            for file in files:
                self.synced(Path(folder) / file)

    def synced(self, path: Path) -> None:
        self.held.append(os.open(path, os.O_RDONLY))
        number = os.fstat(self.held[-1]).st_ino
        if path.is_dir():
            self.names[number] = self.now(path)
        else:
            self.files[number] = path.read_bytes()

    def now(self, folder: Path) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(folder)}

    def image(self, target: Path, rng: random.Random) -> None:
        """Write what a power cut at this moment would leave."""
        ordered, there = rng.random() < 0.5, {}
        for folder, _, files in os.walk(self.root):
            there[Path(folder).stat().st_ino] = Path(folder)
            there |= {(Path(folder) / file).stat().st_ino: Path(folder) / file for file in files}

        def write(number: int, out: Path) -> None:
            path = there.get(number)
            if number in self.names or (path is not None and path.is_dir()):
                out.mkdir()
                names = self.now(path) if ordered and path is not None else self.names.get(number, {})
                for name, inner in names.items():
                    if not name.startswith(".calls.sqlite"):
                        write(inner, out / name)
                return
            content = self.files.get(number, b"")
            # some of what was not synced is there all the same
            if path is not None and path.is_file() and rng.random() < 0.5:
                content = (
                    path.read_bytes()[: rng.randrange(path.stat().st_size + 1)] if number not in self.files else content
                )
            out.write_bytes(content)

        write(self.root.stat().st_ino, target)
        if (cache := self.root / ".calls.sqlite").exists():
            with sqlite3.connect(cache) as committed, sqlite3.connect(target / cache.name) as copy:
                committed.backup(copy)
            copy.close()


class Moments:
    """Calls what is to happen at the n-th moment; counts them until then."""

    def __init__(self, root: Path, at: int, happens: Callable[[Moments], None]) -> None:
        self.at, self.happens, self.count, self.root = at, happens, 0, root
        self.watched = Watched(root)
        self.lock = threading.RLock()
        self.before: list[tuple[Any, str, Any]] = []
        for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
            self.put(os, name, self.around(getattr(os, name)))
        fsync = os.fsync

        def synced(handle: int) -> None:
            fsync(handle)
            path = Path(f"/proc/self/fd/{handle}").readlink()
            if path.is_relative_to(root) and path.exists():
                self.watched.synced(path)

        self.put(os, "fsync", self.around(synced))
        from openbezoar.llm.calls import CallStore

        for name in ("keep", "claim", "find"):
            self.put(CallStore, name, self.around(getattr(CallStore, name)))

    def put(self, owner: Any, name: str, value: Any) -> None:
        self.before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def undo(self) -> None:
        for owner, name, value in self.before:
            setattr(owner, name, value)
        for handle in self.watched.held:
            os.close(handle)

    def around(self, original: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.lock:
                self.moment()
            made = original(*args, **kwargs)
            with self.lock:
                self.moment()
            return made

        return wrapped

    def moment(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.happens(self)


# ------------------------------------------------------------------------------- runs in forks


ENDS = 120.0  # seconds that a run which is told to stop has at most


def forked(work: Callable[[], None], seconds: float | None = None, number: int = signal.SIGKILL) -> int:
    """Do something in a fork; its exit code (2 for an error in one line, as the command line's for a signal that was
    heard), negative for a signal that ended it. seconds: it gets the signal ``number`` then.
    """
    from openbezoar.errors import UserError
    from openbezoar.machine import stops

    pid = os.fork()
    if not pid:
        code = 1
        try:
            with stops.listening():
                try:
                    work()
                    code = 0
                except stops.Stop:
                    code = stops.code()
        except UserError as error:
            code = 2 if "\n" not in str(error) else 1
        except stops.Stop:  # as listening began or ended
            code = stops.code()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    until = float("inf") if seconds is None else time.monotonic() + seconds
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        time.sleep(0.002)
        if time.monotonic() > until:
            os.kill(pid, number)
            until, number = time.monotonic() + ENDS, signal.SIGKILL
    return os.waitstatus_to_exitcode(ended[1])


STOPS = ("stop", "stop at any time")
KINDS = ("power cut", "kill", "kill at any time", *STOPS)


class Bench:
    """A recipe, one whole run of it, and what lay there when each of its steps began."""

    def __init__(self, folder: Path, steps: dict[str, Any]) -> None:
        from openbezoar.recipe.file import load

        self.folder = folder
        self.recipe = folder / "recipe.yaml"
        models = {
            "base": {"model": str(folder / "tiny"), "dtype": "float32"},
            "far": {"server": "http://localhost:1/v1", "model": "played"},
        }
        self.recipe.write_text(json.dumps({"name": "t", "seed": 1, "models": models, "steps": steps}))
        write_data(folder)
        self.steps = list(load(self.recipe).steps)  # those of a sweep too
        self.seconds: dict[str, float] = {}
        self.moments: dict[str, int] = {}
        for step in self.steps:
            begun = folder / "starts" / step
            if (folder / "whole").exists():
                shutil.copytree(folder / "whole", begun, symlinks=True)
            else:
                begun.mkdir(parents=True)
            (folder / "whole").mkdir(exist_ok=True)
            Teacher.bill = folder / "bill"
            start = time.monotonic()
            # Here and not in a fork, so that what a step imports is there for all forks.
            moments = Moments(folder / "whole", -1, lambda _: None)
            try:
                self.execute(folder / "whole", step)
            finally:
                moments.undo()
            self.seconds[step], self.moments[step] = time.monotonic() - start, moments.count

    def execute(self, runs: Path, to: str) -> None:
        from openbezoar.engine import execution, graph
        from openbezoar.progress import Silent
        from openbezoar.recipe.file import load

        execution.execute(graph.build(load(self.recipe), self.recipe, runs), Silent(), to)

    def needed(self, step: str) -> list[str]:
        """A step and those that it is made from."""
        from openbezoar.engine import graph
        from openbezoar.recipe.file import load

        return [node.name for node in graph.build(load(self.recipe), self.recipe, self.folder / "whole").upto(step)]

    def results(self, runs: Path, step: str) -> dict[str, str]:
        from openbezoar.store.runs import RunFolder

        manifest = RunFolder(runs / "t").checked(step, wholly=True) or {}
        return {name: mark[-1] for name, mark in manifest.get("files", {}).items() if Path(name).name not in WITH_TIMES}

    def end_and_go_on(
        self, number: int, rng: random.Random, step: str = "", kinds: tuple[str, ...] = KINDS
    ) -> tuple[str, str | None]:
        """End a step (any one) at some moment and go on: (what was done, what is wrong or None)."""
        step = step or rng.choice(self.steps)
        kind = rng.choice(kinds)
        at = rng.randrange(1, self.moments[step] + 1)
        runs, left = self.folder / f"runs{number}", self.folder / f"left{number}"
        shutil.copytree(self.folder / "starts" / step, runs, symlinks=True)
        Teacher.bill = self.folder / f"bill{number}"
        Teacher.bill.touch()

        def happens(moments: Moments) -> None:
            if kind == "power cut":
                moments.watched.image(left, rng)
                os._exit(42)
            os.kill(os.getpid(), signal.SIGTERM if kind == "stop" else signal.SIGKILL)

        def run() -> None:
            Moments(runs, at, happens)
            self.execute(runs, step)

        if kind.endswith("at any time"):
            begun, by = time.monotonic(), signal.SIGTERM if kind.startswith("stop") else signal.SIGKILL
            if not (code := forked(lambda: self.execute(runs, step), rng.random() * self.seconds[step], by)):
                # the first one had everything to import
                self.seconds[step] = min(self.seconds[step], time.monotonic() - begun)
        else:
            code = forked(run)
        if left.exists():
            shutil.rmtree(runs)
            left.rename(runs)
        what = f"{kind} in {step}, moment {at} of {self.moments[step]}"
        if kind.startswith("stop") and code not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):  # before it listened
            return what, f"it ended with {code}"
        wrong = self.vouched(runs) or self.differs(runs, step, forked(lambda: self.execute(runs, step)))
        if wrong is None:
            shutil.rmtree(runs)
        return what, wrong

    def damage_and_go_on(self, number: int, rng: random.Random) -> tuple[str, str | None]:
        """Damage a file of a run that is done, and run its last step again: the same files come out, or one line."""
        steps = self.steps
        place = rng.randrange(len(steps))
        runs = self.folder / f"runs{number}"
        shutil.copytree(
            self.folder / "starts" / steps[place + 1] if place + 1 < len(steps) else self.folder / "whole",
            runs,
            symlinks=True,
        )
        Teacher.bill = self.folder / f"bill{number}"
        file = rng.choice(
            [
                f
                for f in sorted(runs.rglob("*"))
                if f.is_file() and f.name not in (".lock", ".calls.sqlite-wal", ".calls.sqlite-shm")
            ]
        )
        how = rng.choice(("a bit", "a bit", "a page", "cut", "emptied", "gone", "of another type"))
        whole = file.read_bytes()
        at = rng.randrange(len(whole)) if whole else 0
        changed = {
            "a bit": whole[:at] + bytes([(whole[at] if whole else 0) ^ 1 << rng.randrange(8)]) + whole[at + 1 :],
            "a page": whole[:at] + rng.randbytes(4096) + whole[at + 4096 :],
            "cut": whole[:at],
            "emptied": b"",
            "of another type": rng.choice((b"[" * 100_000, b"[]", b"null", b"\xff\xfe\x00", b'{"key": [1]}')),
        }
        file.unlink() if how == "gone" else file.write_bytes(changed[how])
        what = f"damage in {steps[place]}, {how} of {file.relative_to(runs)}"
        code = forked(lambda: self.execute(runs, steps[place]))
        wrong = None if code == 2 else f"going on ended with {code}" if code else None
        for step in self.needed(steps[place]) if code == 0 else ():
            expected, found = self.results(self.folder / "whole", step), self.results(runs, step)
            if expected != found:
                wrong = (
                    f"{step}: other files:"
                    f" {sorted(n for n in {**expected, **found} if expected.get(n) != found.get(n))}"
                )
        if wrong is None:
            shutil.rmtree(runs)
        return what, wrong

    def vouched(self, runs: Path) -> str | None:
        """Whether a manifest lies there that vouches for files which do not."""
        from openbezoar.store.digests import MANIFEST, differences, marks_in
        from openbezoar.store.manifests import read_manifest

        for path in runs.glob(f"t/**/{MANIFEST}"):
            for difference in differences(path.parent, marks_in(read_manifest(path) or {}), wholly=True):
                return f"{path.relative_to(runs)} vouches for what is not on the disk: {difference}"
        return None

    def differs(self, runs: Path, step: str, code: int) -> str | None:
        from openbezoar.errors import RunError

        if code:
            return f"going on ended with {code}"
        try:
            expected, found = self.results(self.folder / "whole", step), self.results(runs, step)
        except RunError as error:
            return str(error)
        if expected != found:
            return f"other files: {sorted(n for n in {**expected, **found} if expected.get(n) != found.get(n))}"
        if left := sorted(p.name for p in (runs / "t/.work").iterdir()):
            return f"left behind: {left}"
        return self.unpaid(runs, step)

    def unpaid(self, runs: Path, step: str) -> str | None:
        """Whether a call was asked twice though it was answered, or is missing on the account."""
        from openbezoar.llm.calls import CallStore

        asked = Counter(Teacher.bill.read_text().split())
        store = CallStore(runs)
        spent = [cost for (_, name, model), cost in store.accounts().items() if (name, model) == (step, "far")]
        store.close()
        known, lost = sum(s.calls + s.unanswered for s in spent), sum(s.unanswered for s in spent)
        twice = asked.total() - len(asked)
        if twice > min(lost, Teacher.width):
            return f"{twice} calls were sent twice, {lost} were under way"
        return f"{asked.total()} calls were sent, the account knows of {known}" if asked.total() > known else None


def write_data(folder: Path) -> None:
    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(
        "rows.jsonl",
        [
            {"id": f"r{i}", "instruction": f"Say the number {i}.", "response": f"The number is {i}, as you asked."}
            for i in range(16)
        ],
    )
    talk = "\n\nHuman: Say {0}.\n\nAssistant: {1}"
    write(
        "pairs.jsonl",
        [
            {"id": f"p{i}", "chosen": talk.format(i, f"It is {i}, gladly."), "rejected": talk.format(i, "No way.")}
            for i in range(12)
        ],
    )
    write(
        "flan.jsonl",
        [
            {
                "id": f"f{i}",
                "submix": "cot",
                "task": f"t{i % 3}",
                "input": f"What comes after {i}?",
                "target": f"{i + 1}",
            }
            for i in range(20)
        ],
    )
    write(
        "human.jsonl",
        [
            {
                "id": f"h{i}",
                "instruction": f"I{i}",
                "input": "",
                "output_1": "one",
                "output_2": "two",
                "human_majority": 1 + i % 2,
            }
            for i in range(6)
        ],
    )
    write(
        "questions.jsonl",
        [{"question_id": i, "category": "writing", "turns": [f"Q{i} first", f"Q{i} second"]} for i in range(3)],
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--moments", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows-only", action="store_true", help="no step that needs a model here")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further moment after so long")
    parser.add_argument(
        "--damage", type=float, default=0.25, help="share of moments at which a file of the run is damaged instead"
    )
    parser.add_argument("--stops", type=int, help="SIGTERM alone, so many times in each step")
    options = parser.parse_args()
    import torch
    from conftest import save_tiny_model

    from openbezoar.llm import server
    from openbezoar.recipe.verbs import VERBS

    torch.set_num_threads(1)
    for row in VERBS.values():  # once, not in each fork
        if not options.rows_only or "rows" in row.produces:
            row.part("work")
    server.ServerLLM = Teacher  # type: ignore[misc, assignment]
    rng, done, wrong = random.Random(options.seed), Counter[str](), []
    with tempfile.TemporaryDirectory() as scratch:
        if not options.rows_only:
            assert forked(lambda: save_tiny_model(Path(scratch) / "tiny") and None) == 0
        bench = Bench(Path(scratch), ROWS if options.rows_only else {**ROWS, **MODELS})
        begun = time.monotonic()
        for number in range(options.moments if options.stops is None else options.stops * len(bench.steps)):
            if time.monotonic() - begun > options.seconds:
                break
            if options.stops is not None:
                step = bench.steps[number % len(bench.steps)]
                what, differs = bench.end_and_go_on(number, rng, step, STOPS)
            else:
                damages = rng.random() < options.damage
                what, differs = (bench.damage_and_go_on if damages else bench.end_and_go_on)(number, rng)
            done[what.split(",")[0]] += 1
            if differs is not None:
                wrong.append(f"{what}: {differs}")
                print(wrong[-1], file=sys.stderr)
    print(
        json.dumps(
            {
                "moments": done.total(),
                "of": done,
                "wrong": wrong,
                "seed": options.seed,
                "seconds": round(time.monotonic() - begun, 1),
            }
        )
    )
    return 1 if wrong or not done else 0


if __name__ == "__main__":
    sys.exit(main())
