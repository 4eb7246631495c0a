"""A look in words and lines, and rows as a model reads them. Takes numbers and trees, gives text that
is safe to show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from openbezoar.inspection.looking import Kept, answers_of
from openbezoar.inspection.numbers import Look, Portion, Spread, concerns, shown
from openbezoar.progress import visible
from openbezoar.rows.records import Pair

BLOCKS = " ▁▂▃▄▅▆▇█"
LONGEST = 1200  # characters of one run of a row that are shown
BRACKETS = ("⟦", "⟧")
COLOURS = ("\x1b[1;32m", "\x1b[0m")


def told(name: str, look: Look) -> Iterator[str]:
    """A look, a line each."""
    forms = ", ".join(f"{form} ({n:,})" if len(look.forms) > 1 else form for form, n in look.forms.items())
    yield f"{visible(name)}: {look.rows:,} rows, taken for: {forms or 'nothing'}"
    yield _line(
        "columns", ", ".join(f"{visible(c)}" + ("" if n == look.rows else f" ({n:,})") for c, n in look.columns.items())
    )
    yield _line("turns", ", ".join(f"{n:,} of {role}" for role, n in look.roles.items()))
    if look.answers is not None and look.pairs is None and look.answers.longest > 1:
        yield _line("answers", f"learnt a row: {look.answers.median} in the middle, {look.answers.longest} at most")
    if look.tokens is not None:
        yield _line(look.unit, f"a row: {_spread(look.tokens)}")
        yield _line("", f"{_bars(look.tokens)} 0 to {look.tokens.longest:,}")
    if look.learnt is not None and look.learnt_share is not None:
        yield _line("learnt", f"{look.learnt_share:.0%} of them; a row: {_spread(look.learnt)}")
    limit = f"at most {look.max_length:,} tokens: " if look.max_length is not None else ""
    yield _line("trained on", f"{limit}{look.kept:,} of {look.rows:,} rows")
    for reason, n in look.reasons.items():
        yield _line("", f"{n:,} {visible(reason)}")
    if look.twins is not None and look.asked_again is not None:
        yield _line(
            "repeated", f"{look.twins.k:,} rows word for word, {look.asked_again.k:,} prompts with another answer"
        )
    near = "not looked for without the extra clean" if look.near is None else shown(look.near)
    yield _line("nearly so", f"{near} of {look.drawn:,} rows drawn")
    if look.foreign is not None:
        yield _line("language", f"plainly not English: {shown(look.foreign)} of the rows drawn")
    yield from _pairs(look)
    if look.benchmarks is not None:
        hits = ", ".join(f"{n} of {visible(b)}" for b, n in look.benchmarks.items()) or "none"
        yield _line("benchmarks", f"of the rows drawn that hold their text: {hits}")
    for concern in concerns(look):
        yield _line("look at", visible(concern))


def _pairs(look: Look) -> Iterator[str]:
    pairs = look.pairs
    if pairs is None:
        return
    rows: tuple[tuple[str, Portion], ...] = (
        ("longer answer chosen", pairs.longer_chosen),
        ("chosen answers that decline", pairs.refusals_chosen),
        ("rejected answers that decline", pairs.refusals_rejected),
        ("nearly identical answers", pairs.near_identical),
    )
    for place, (what, share) in enumerate(rows):
        yield _line("" if place else "pairs", f"{what}: {shown(share)} of {share.n:,}")
    if look.contradicted is not None:
        by = look.contradicted
        yield _line(
            "", f"rejected answer likelier for the model: {shown(by.by_mean)} a token, {shown(by.by_sum)} in all"
        )
    if look.rewarded is not None:
        yield _line("", f"chosen answer first for the reward model: {look.rewarded.text()}")


def _line(name: str, text: str) -> str:
    return f"  {name:16} {text}"


def _spread(spread: Spread) -> str:
    return f"{spread.median:,} in the middle, 95 % have {spread.p95:,} at most, the longest {spread.longest:,}"


def _bars(spread: Spread) -> str:
    most = max(spread.bars)
    return "".join(BLOCKS[-(-n * (len(BLOCKS) - 1) // most)] for n in spread.bars)


# ------------------------------------------------------------------------- rendered rows


def rendered(kept: Kept, tokenizer: Any, marks: tuple[str, str]) -> Iterator[str]:
    """A drawn row as the model reads it, what is learnt between ``marks``. Without a tree, which a
    row that is dropped has not, its texts.
    """
    yield f"--- {visible(kept.where)}" + ("" if kept.tree is not None else " (not trained on as it stands)")
    if kept.tree is None or tokenizer is None:
        for turn in kept.item.prompt:
            yield f"{turn.role}: {_cut(turn.content)}"
        for answer in answers_of(kept.item)[-2 if isinstance(kept.item, Pair) else -1 :]:
            yield f"{marks[0]}{_cut(answer)}{marks[1]}"
        return
    for number, path in enumerate(kept.tree):
        before = f"… after the first {path.kept} tokens: " if path.kept else ""
        yield before + "".join(_run(run, place % 2 == 1, tokenizer, marks) for place, run in enumerate(path.runs))
        if number == 0 and isinstance(kept.item, Pair):
            yield "instead of that, rejected:"


def _run(run: Sequence[int], learnt: bool, tokenizer: Any, marks: tuple[str, str]) -> str:
    text = _cut(tokenizer.decode(list(run)))
    return f"{marks[0]}{text}{marks[1]}" if learnt else text


def _cut(text: str) -> str:
    """Safe to show, and not too long."""
    shown_text = visible(text)
    if len(shown_text) <= LONGEST:
        return shown_text
    half = LONGEST // 2
    return f"{shown_text[:half]} […{len(shown_text) - 2 * half:,} characters…] {shown_text[-half:]}"
