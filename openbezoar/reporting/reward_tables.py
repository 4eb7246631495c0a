"""What a reward model is worth on pairs, as tables. Takes numbers, writes nothing."""

from __future__ import annotations

from openbezoar.reporting.document import Block, Fold, Grid
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import estimate
from openbezoar.stats.pair_accuracy import PairAccuracy


def accuracy_blocks(found: PairAccuracy) -> list[Block]:
    """Accuracy beside the length's, by subset, and how often it was right by how sure it was."""
    rows = [
        ("all pairs", found.accuracy.text()),
        ("by the length of the answers", found.length.text()),
        ("more than the length", estimate(*found.gain)),
        ("pairs of like length", found.matched.text()),
        *((f"subset {name}", part.text()) for name, part in found.subsets.items()),
    ]
    note = (
        "By the length: the longer answer is taken, or the shorter one where that is right more often. Like length: at"
        " most a tenth apart. In brackets: 95 % interval (Wilson; of the difference, and where several pairs have"
        " one prompt: bootstrap, over prompts)."
    )
    sure = Table(
        ("as sure as", "was right", "n"),
        tuple((f"{one.said:.3f}", one.right.text(), str(one.right.n)) for one in found.bins),
        f"Pairs in five parts, the least sure first. Off by {found.off:.3f} on the average of all pairs.",
    )
    table = Table(("of", "preferred answer has the higher reward"), tuple(rows), note)
    return [
        Grid(table, "A reward model on pairs", stack=True),
        Fold("Is it right as often as it says?", (Grid(sure, "Right by how sure it was"),)),
    ]
