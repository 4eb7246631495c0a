"""Evol-Instruct: the teacher makes seed instructions harder (in depth) or rarer (in breadth), then answers them.

After WizardLM (arXiv 2304.12244) and a co-author's public rewrite for OpenBezoar. Seeds:
rows with ``instruction``, optional ``context`` and ``category``; their answers are not
used. Evolutions that fail a rule of ``schemes/elimination.py`` leave their original in the
pool for the next round.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from openbezoar.llm import Sampling, recorded
from openbezoar.recipe.blocks import Strict
from openbezoar.recipe.refs import Ref
from openbezoar.rows.instructions import instruction_text
from openbezoar.rows.lengths import CHARACTERS_A_TOKEN
from openbezoar.rows.records import Row, Turn
from openbezoar.schemes import elimination as rules
from openbezoar.schemes.expected import Calls, Expected, Known, mean_characters, up_to
from openbezoar.schemes.work import Work, row_id, unquoted

OPERATIONS = ("add-constraints", "deepening", "concretizing", "increase-reasoning-steps")
COMPLICATE = "complicate-input"
DEPTH, BREADTH = "in-depth", "in-breadth"
ASKS = 6  # of the equality judge, as in the co-author's rewrite
LONGER = 4000  # characters; the prompts allow 20 words, so this is a reply that ran away
PROMPTS = (
    "evol_in_depth",
    "evol_in_breadth",
    *(f"evol_{o.replace('-', '_')}" for o in (*OPERATIONS, COMPLICATE)),
    "evol_equality",
    "evol_equality_start",
)
SEED_FIELDS = ("instruction",)


class Options(Strict):
    """The scheme's own keys."""

    rounds: int = Field(1, ge=1, description="How often an instruction is evolved at most; WizardLM: 4.")
    draw: Literal["item", "epoch_category"] = Field(
        "item",
        description=(
            "'item': one of all prompts uniformly for every instruction [WizardLM's code]; 'epoch_category': depth or"
            " breadth, then the operation, once a round and category [a co-author's rewrite]."
        ),
    )
    complicate_input: bool = Field(False, description="Add the operation of WizardLM's paper that its code leaves out.")
    equality_judge: Annotated[str | None, Ref("model", role="judge")] = Field(
        None,
        description=(
            "Model, not the teacher, that is asked whether an evolution is equal to its source; none: rule 1 is"
            " skipped."
        ),
    )
    seed_tokens: int = Field(
        1024, ge=16, description="Seeds are cut to this many teacher tokens [a co-author's rewrite]."
    )
    evolved_tokens: int = Field(512, ge=16, description="Most tokens of an evolved instruction. This project's.")
    retry_rounds: int = Field(
        3, ge=0, description="Further rounds over seeds not yet evolved, when too few rows were kept. This project's."
    )


TRIES = 1.9  # evolutions for one that passes the rules
EVOLUTION = 55  # tokens of one, were there no limit


def expected(options: Options, known: Known) -> Expected:
    """One operation in five is in breadth; with an equality judge each kept evolution is asked about."""
    evolved = up_to(EVOLUTION, options.evolved_tokens)
    seed = min(mean_characters(known.seeds, "instruction", "context"), options.seed_tokens * CHARACTERS_A_TOKEN)
    depth, breadth = (
        len(known.text("evol_in_depth")) + len(known.text("evol_deepening")),
        len(known.text("evol_in_breadth")),
    )
    before = [Calls("evolutions", TRIES * known.rows, 0.8 * depth + 0.2 * breadth + seed, evolved)]
    if options.equality_judge is not None:
        characters = len(known.text("evol_equality")) + seed + evolved * CHARACTERS_A_TOKEN
        before.append(Calls("equality", 1.5 * known.rows, characters, 15))
    return Expected(
        before=tuple(before),
        prompt=evolved * CHARACTERS_A_TOKEN,
        instruction=EVOLUTION * CHARACTERS_A_TOKEN,
        answer=180,
    )


# A co-author's rewrite ends its prompts so that the teacher's reply begins after these.
REWRITTEN, CREATED = "#Rewritten Prompt#:", "#Created Prompt#:"


@dataclass
class _Item:
    """An instruction in the pool. ``row`` is the id of the row it came to be in, the seed's own at first."""

    number: int
    seed_id: str
    category: str
    text: str
    row: str
    depth: int = 0


@dataclass
class _Try:
    """One evolution of one item in one round."""

    item: _Item
    operation: str | None  # None in breadth: no operation of an earlier round can stick to it
    text: str = ""
    answer: str = ""
    finish: str = ""
    how: Row = field(default_factory=dict)  # what its row says of how the answer came


def make(options: Options, work: Work) -> list[Row]:
    """Rows with instruction, response, ``source`` ('in-depth' or 'in-breadth') and their provenance.

    Stops when enough rows are kept, or when the rounds are over; a shortfall is counted.
    """
    if options.equality_judge is None:
        work.say("no equality_judge is named, so that rule 1 (information gained) is not applied")
    pool = [_item(n, seed, options, work) for n, seed in enumerate(work.seeds)]
    rows: list[Row] = []
    done = tried = 0
    begun = min(len(pool), math.ceil(work.rows / options.rounds))
    for number in range(1, options.rounds + options.retry_rounds + 1):
        if number <= options.rounds:
            ready = pool[:begun]
        else:  # seeds never tried first (the sort is stable), then failed ones
            ready = sorted(
                (item for item in pool if item.depth < options.rounds),
                key=lambda item: (item.number < begun, item.depth),
            )
        if not ready or len(rows) >= work.rows:
            break
        missing = work.rows - len(rows)
        # A retry evolves more than it needs, by what rounds so far kept, so that few small batches follow.
        tries = ready[
            : missing if number <= options.rounds else math.ceil(missing * min(4.0, tried / max(1, len(rows))))
        ]
        begun = max([begun, *(item.number + 1 for item in tries)])
        rows += _round(number, tries, missing, options, work, len(rows))
        done, tried = number, tried + len(tries)
    if missing := work.rows - len(rows):
        work.counts.add("short of the rows wanted", missing)
        work.say(
            f"{len(rows)} rows after {done} rounds, {missing} fewer than wanted; add seeds, or raise rounds or"
            " retry_rounds"
        )
    return rows


def _item(number: int, seed: Row, options: Options, work: Work) -> _Item:
    text = instruction_text(seed).strip()
    cut = work.cut(text, options.seed_tokens)
    if cut != text:
        work.counts.add(f"seeds cut to {options.seed_tokens} tokens")
    id_ = str(seed.get("id", number + 1))
    return _Item(number, id_, str(seed.get("category", "")), cut, id_)


def _round(number: int, items: Sequence[_Item], wanted: int, options: Options, work: Work, made: int) -> list[Row]:
    """One round over some items: evolve, the cheap rules, answer ``wanted`` at most, the answer's
    rules, and only then the judge.
    """
    tries = [_Try(item, _operation(number, item, options, work)) for item in items]
    _evolve(number, tries, options, work)
    tries = _without(tries, "refused by the server", lambda t: t.finish == "error", work)
    tries = _without(tries, "no text", lambda t: not any(c.isalnum() for c in t.text), work)
    tries = _without(tries, "not finished", lambda t: t.finish == "length", work)
    tries = _without(
        tries, f"more than {LONGER} characters added", lambda t: len(t.text) > len(t.item.text) + LONGER, work
    )
    tries = _without(tries, "same as the source", lambda t: rules.same_as_source(t.item.text, t.text), work)
    tries = _without(tries, "rule 4, leaks the prompt's words", lambda t: rules.leaks_prompt(t.text), work)
    if len(tries) > wanted:
        work.counts.add("evolutions not needed", len(tries) - wanted)
        tries = tries[:wanted]
    replies = work.chat(
        f"answers-{number}",
        [[Turn("user", t.text)] for t in tries],
        [work.seed("answer", number, t.item.number) for t in tries],
    )
    for attempt, reply in zip(tries, replies, strict=True):
        attempt.answer, attempt.finish, attempt.how = reply.text, reply.finish, recorded(reply)
    tries = _without(tries, "answer refused by the server", lambda t: t.finish == "error", work)
    tries = _without(tries, "rule 2, a short apology", lambda t: rules.apologises(t.answer), work)
    tries = _without(tries, "rule 3, the answer says nothing", lambda t: rules.says_nothing(t.answer), work)
    if options.equality_judge is not None:
        tries = _gaining(number, tries, options.equality_judge, work)
    return [_row(number, attempt, made + n) for n, attempt in enumerate(tries, 1)]


def _operation(number: int, item: _Item, options: Options, work: Work) -> str | None:
    """The in-depth operation drawn for an item, or None for in-breadth."""
    operations: tuple[str, ...] = (*OPERATIONS, COMPLICATE) if options.complicate_input else OPERATIONS
    if options.draw == "item":
        each: list[str | None] = [*operations, None]
        return random.Random(work.seed("draw", number, item.number)).choice(each)
    draw = random.Random(work.seed("draw", number, item.category))
    return draw.choice(operations) if draw.random() < 0.5 else None


def _evolve(number: int, tries: Sequence[_Try], options: Options, work: Work) -> None:
    prompts = []
    for attempt in tries:
        if attempt.operation is None:
            prompts.append(work.text("evol_in_breadth", prompt=attempt.item.text))
        else:
            operation = work.text(f"evol_{attempt.operation.replace('-', '_')}")
            prompts.append(work.text("evol_in_depth", prompt=attempt.item.text, operation=operation))
    seeds = [work.seed("evolve", number, t.item.number) for t in tries]
    sampling = Sampling(options.evolved_tokens, work.sampling.temperature, work.sampling.top_p)
    starts = [CREATED if t.operation is None else REWRITTEN for t in tries]
    replies = work.begun(f"evolutions-{number}", prompts, starts, seeds, sampling, work.teacher)
    for attempt, reply in zip(tries, replies, strict=True):
        attempt.text, attempt.finish = without_labels(reply.text), reply.finish


def without_labels(text: str) -> str:
    """An evolved instruction without the labels that a teacher repeats in front of it, and not in quotation marks."""
    for label in (REWRITTEN, CREATED):
        text = text.replace(label, "")
    return unquoted(text.strip())


def _without(tries: Sequence[_Try], reason: str, bad: Callable[[_Try], bool], work: Work) -> list[_Try]:
    """The tries that a rule lets pass; the others are counted under its name."""
    kept = [attempt for attempt in tries if not bad(attempt)]
    if len(kept) < len(tries):
        work.counts.add(f"evolution failed: {reason}", len(tries) - len(kept))
    return kept


def _gaining(number: int, tries: Sequence[_Try], judge: str, work: Work) -> list[_Try]:
    """The tries that a model calls not equal to their source, asked up to six times until it says either."""
    start = work.text("evol_equality_start")
    verdict: dict[int, bool | None] = {t.item.number: None for t in tries}
    refused: set[int] = set()
    for ask in range(ASKS):
        open_ = [t for t in tries if verdict[t.item.number] is None and t.item.number not in refused]
        if not open_:
            break
        # Greedy first; asking again greedily would bring the same reply.
        sampling = Sampling(30, 0.0 if ask == 0 else max(work.sampling.temperature, 0.7))
        questions = [work.text("evol_equality", first=t.item.text, second=t.text) for t in open_]
        seeds = [work.seed("equality", number, t.item.number, ask) for t in open_]
        for attempt, reply in zip(
            open_,
            work.begun(f"equality-{number}", questions, [start] * len(questions), seeds, sampling, judge),
            strict=True,
        ):
            verdict[attempt.item.number] = rules.gains_information(reply.text)
            if reply.refused:
                refused.add(attempt.item.number)
    tries = _without(tries, "rule 1, the question was refused by the server", lambda t: t.item.number in refused, work)
    tries = _without(tries, f"rule 1, undecided after {ASKS} asks", lambda t: verdict[t.item.number] is None, work)
    return _without(tries, "rule 1, no information gained", lambda t: verdict[t.item.number] is False, work)


def _row(number: int, attempt: _Try, count: int) -> Row:
    """A kept evolution as a row; it takes its source's place in the pool."""
    item = attempt.item
    row: Row = {
        "id": row_id("evol_instruct", count),
        "scheme": "evol_instruct",
        "system": None,
        "instruction": attempt.text,
        "response": attempt.answer,
        "finish": attempt.finish,
        "source": BREADTH if attempt.operation is None else DEPTH,
        "operation": attempt.operation,
        "round": number,
        "depth": item.depth + 1,
        "parent": item.row,
        "seed_id": item.seed_id,
        "category": item.category,
        **attempt.how,
    }
    item.text, item.row, item.depth = attempt.text, row["id"], item.depth + 1
    return row
