"""Reference log-probabilities computed once, before training, and kept.

Writes ``reference.safetensors`` into the step's folder: for each pair, by a digest of its
token ids, the two summed log-probabilities, under a key of all that they depend on. A killed
run takes up what is there; a later run of the same step with other settings of the loss takes
the finished step's file. A file under another key is never used.

A pair is computed in the pass in which training first meets it, so that in a run's first epoch
the numbers are those of a reference in the same pass, bit for bit (a matrix product's rounding
may depend on the other rows of its pass, so in later epochs, where a pair meets others, the two
may differ in the last bits). A pair that occurs twice is computed once.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import RunError
from openbezoar.forest import Scorer, Tree
from openbezoar.forest.layout import weight
from openbezoar.machine import distributed, shares
from openbezoar.models.load import DTYPES, arithmetic
from openbezoar.models.references import Checkpoint
from openbezoar.progress import Progress
from openbezoar.recipe.train_steps import Training
from openbezoar.store.digests import digest, file_digest
from openbezoar.store.files import environment
from openbezoar.training.loop import batch_of, plan_steps
from openbezoar.training.resume import read_sealed, save_sealed

REFERENCE = "reference.safetensors"
DIGEST_BYTES = 16


def tree_digest(tree: Tree) -> bytes:
    """16 bytes that stand for a tree's token ids and which of them are scored."""
    sha256 = hashlib.sha256()
    for path in tree:
        sha256.update(array("q", (len(path.ids), *path.ids)).tobytes() + bytes(path.scored))
    return sha256.digest()[:DIGEST_BYTES]


def reference_key(
    checkpoint: Checkpoint,
    formatter: Formatter,
    step: Training,
    *,
    device: torch.device,
    seed: int,
    trees: Sequence[Tree],
    heldout: Sequence[Tree],
) -> dict[str, str]:
    """What reference log-probabilities depend on, by name; each value is a digest.

    Order of rows, batch, token budget, seed and number of processes decide which pairs share
    a pass, and with it the last bits.
    """
    folder = checkpoint.folder()
    files = {
        f.name: file_digest(f)
        for f in sorted(folder.iterdir())
        if f.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt")
    }
    weights = {
        name: value
        for name, value in files.items()
        if name.endswith(".safetensors") or name in ("config.json", "generation_config.json")
    }
    adapters = [
        {f.name: file_digest(f) for f in sorted(a.iterdir()) if f.suffix in (".safetensors", ".json")}
        for a in checkpoint.adapters
    ]
    rows = hashlib.sha256()
    for tree in (*trees, *heldout):
        rows.update(tree_digest(tree))
    dtype = DTYPES[step.dtype]
    parts: dict[str, Any] = {
        "weights": [weights, adapters, step.quantize],
        "tokenizer": {name: value for name, value in files.items() if name not in weights},
        "template": [formatter.jinja, formatter.end_ids],
        "max_length": [step.max_length, step.too_long],
        "dtype": [step.dtype, device.type, *(["in fp32"] if arithmetic(dtype) != dtype else [])],
        "pairs": [rows.hexdigest(), len(trees)],
        "passes": [step.batch, step.tokens, seed, *([distributed.world()] if distributed.world() > 1 else [])],
        "packages": environment()["packages"],
    }
    return {name: digest(value) for name, value in parts.items()}


class ReferenceCache:
    """Summed reference log-probabilities of pairs, in memory and in a file."""

    def __init__(self, file: Path, key: dict[str, str], finished: Path | None = None) -> None:
        """``finished``: the file of the step's last result, used if its key is the same."""
        self.file, self.key = file, key
        self.values: dict[bytes, tuple[float, float]] = {}
        self.stale: list[str] = []  # names of the key's parts in which an unusable file differs
        for candidate in (file, finished):
            if candidate is not None and candidate.is_file() and not self.values:
                self._load(candidate)

    def _load(self, file: Path) -> None:
        try:
            tensors, metadata = read_sealed(file, "it is computed again")
            key, pairs, logps = json.loads(metadata["key"]), tensors["pairs"], tensors["logps"]
        except (RunError, KeyError, TypeError, ValueError):
            self.stale = ["file"]
            return
        self.stale = [name for name in {**key, **self.key} if key.get(name) != self.key.get(name)]
        if not self.stale:
            self.values = {
                bytes(pair): (chosen, rejected)
                for pair, (chosen, rejected) in zip(pairs.tolist(), logps.tolist(), strict=True)
            }

    def save(self) -> None:
        """Write the file, whole or not at all."""
        pairs = torch.tensor([list(pair) for pair in self.values], dtype=torch.uint8).reshape(-1, DIGEST_BYTES)
        logps = torch.tensor(list(self.values.values()), dtype=torch.float32).reshape(-1, 2)
        save_sealed(self.file, {"pairs": pairs, "logps": logps}, {"key": json.dumps(self.key)})

    def fill(
        self,
        passes: Sequence[Sequence[Tree]],
        compute: Callable[[Sequence[Tree]], Tensor],
        save_every: int,
        *,
        progress: Progress,
    ) -> int:
        """Compute the passes in which a pair is missing; returns how many pairs were computed. Each process does a
        share of them, and all have all; process 0 writes the file.
        """
        computed = 0
        self.values = distributed.from_first(lambda: self.values)
        first = not distributed.rank()
        at_once = save_every * distributed.world() if distributed.world() > 1 else 1
        with progress.bar("reference", len(passes), "passes") as bar:
            for number in range(0, len(passes), at_once):
                due = passes[number : number + at_once]
                found = shares.shared(due, lambda trees: self._unknown(trees, compute), _tokens)
                for pairs in found:
                    before = len(self.values)
                    for mark, sums in pairs.items():
                        self.values.setdefault(mark, sums)  # of two passes at once the first one's
                    computed += len(self.values) - before
                if any(found) and first and (at_once > 1 or (number + 1) % save_every == 0):
                    self.save()
                bar.advance(len(due))
        if first and (computed or not self.file.is_file()):
            self.save()
        return computed

    def _unknown(
        self, trees: Sequence[Tree], compute: Callable[[Sequence[Tree]], Tensor]
    ) -> dict[bytes, tuple[float, float]]:
        """Those of a pass's pairs that have no value yet, if need be computed with the whole pass."""
        marks = [tree_digest(tree) for tree in trees]
        unknown = {mark: i for i, mark in reversed(list(enumerate(marks))) if mark not in self.values}
        rows = compute(trees).float().cpu().tolist() if unknown else []
        return {mark: (rows[i][0], rows[i][1]) for mark, i in unknown.items()}

    def __call__(self, trees: Sequence[Tree], device: torch.device) -> Tensor:
        """Float32 [pairs, 2]: chosen, rejected."""
        return torch.tensor([self.values[tree_digest(tree)] for tree in trees], dtype=torch.float32, device=device)


def _tokens(trees: Sequence[Tree]) -> int:
    return sum(map(weight, trees))


def passes_of(
    trees: Sequence[Tree], heldout: Sequence[Tree], scorer: Scorer, *, step: Training, seed: int
) -> Iterator[list[Tree]]:
    """Every pass, of all processes, in which training first meets a pair, in order, then those of
    the held-out pairs.
    """
    met: set[int] = set()
    for number in range(plan_steps(len(trees), step)):
        rows = batch_of(number, len(trees), step, seed=seed)
        if not met.issuperset(rows):
            met.update(rows)
            chosen = [trees[i] for i in rows]
            for rank in range(distributed.world()):
                own = [chosen[i] for i in shares.share(chosen, weight, rank, distributed.world())]
                for group in scorer.batches(own):
                    yield [own[i] for i in group]
    for group in scorer.batches(heldout):
        yield [heldout[i] for i in group]
