"""pairs: preference pairs of answers to prompts.

Reads rows with prompts (and their answers, where those take part). Writes ``rows.jsonl``, pairs as lists of
messages (prompt, chosen, rejected) with the row's other columns, ``chosen_by``, ``rejected_by``, and where answers
are scored ``chosen_score``, ``rejected_score`` and ``margin``, and ``rejected_finish`` of a rejected answer that is
learnt without an end; and ``candidates.jsonl``, a line a prompt with all
its answers: who wrote each, how it ended, its score (and ``level_score``, without what it pays for length, where
that is removed), and why it takes no part (``dropped``), or why there is no pair.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from statistics import fmean
from typing import Any, NamedTuple

from openbezoar.cleaning.units import words
from openbezoar.context import StepContext
from openbezoar.errors import DataError
from openbezoar.judging.answer_scores import AnswerScores
from openbezoar.recipe.pair_steps import Pairs
from openbezoar.rows.files import ROWS
from openbezoar.rows.outgoing import as_preference
from openbezoar.rows.records import Pair, Row, write_jsonl
from openbezoar.stats.intervals import share_of
from openbezoar.verbs.pairs.answers import CUT, UNFINISHED, OneAnswer, Prompt, ask_models, drop_answers, prompts_of
from openbezoar.verbs.pairs.picking import pick, without_length
from openbezoar.verbs.pairs.result import CANDIDATES, PairsNumbers

ONE_ANSWER = "fewer than two different answers"
UNSCORED = "fewer than two scored answers"
EQUAL, CLOSE = "all answers score the same", "margin below min_margin"
UNLIKE = "no two answers alike in length"
UNENDED = "no answer that ended is above another"


class MadePair(NamedTuple):
    """A prompt with its chosen and its rejected answer. margin: of the scores they were picked by; None where nobody
    scored them. cut: the rejected answer is to be learnt without an end.
    """

    prompt: Prompt
    chosen: OneAnswer
    rejected: OneAnswer
    margin: float | None
    cut: bool

    def as_row(self) -> Row:
        """The pair as lists of messages, who wrote which answer, and their scores."""
        pair = Pair(self.prompt.id, self.prompt.turns, self.chosen.text, self.rejected.text)
        scores = {"chosen_score": self.chosen.score, "rejected_score": self.rejected.score, "margin": self.margin}
        return {
            "id": self.prompt.id,
            **self.prompt.beside,
            **as_preference(pair),
            "chosen_by": self.chosen.by,
            "rejected_by": self.rejected.by,
            **(scores if self.margin is not None else {}),
            **({"rejected_finish": "length"} if self.cut else {}),
        }


def run(step: Pairs, context: StepContext) -> dict[str, Any]:
    """Make the pairs and return the numbers for the manifest. Raises DataError if there is not one."""
    prompts = prompts_of(step, context)
    ask_models(step, context, prompts)
    drop_answers(prompts, step.unfinished != "drop")
    if step.by is not None:
        _score(step, step.by, context, prompts)
    pays = _level(prompts) if step.length_bias == "remove" else None
    made = [pair for prompt in prompts if (pair := _pair(step, prompt)) is not None]
    numbers = _numbers(step, prompts, made, pays)
    for reason, n in numbers.dropped().items():
        context.counts.add(reason, n)
    write_jsonl(context.out / ROWS, [pair.as_row() for pair in made])
    write_jsonl(context.out / CANDIDATES, map(_candidates, prompts))
    if not made:
        raise DataError(_none_made(step, numbers))
    return numbers.written()


def _score(step: Pairs, by: str, context: StepContext, prompts: Sequence[Prompt]) -> None:
    """Score the answers of the prompts that have several."""
    asked = [prompt for prompt in prompts if len(prompt.usable) > 1]
    files = {name: context.path(text) for name, text in step.prompts.items()}
    with closing(AnswerScores(by, context, step.rating, files, step.batch)) as scores:
        found = scores([(prompt.turns, [answer.text for answer in prompt.usable]) for prompt in asked])
    for prompt, of_prompt in zip(asked, found, strict=True):
        for answer, score in zip(prompt.usable, of_prompt, strict=True):
            answer.score = score


def _level(prompts: Sequence[Prompt]) -> float:
    """Take what is paid for length off the scores; returns it, for twice the length."""
    scored = [[answer for answer in prompt.usable if answer.score is not None] for prompt in prompts]
    scores = [[answer.score or 0.0 for answer in answers] for answers in scored]
    level, slope = without_length(scores, [[len(answer.text) for answer in answers] for answers in scored])
    for answers, of_prompt in zip(scored, level, strict=True):
        for answer, score in zip(answers, of_prompt, strict=True):
            answer.level = score
    return slope * math.log(2)


def _pair(step: Pairs, prompt: Prompt) -> MadePair | None:
    """The pair of a prompt; None, with the reason written down, if it has none."""
    usable = prompt.usable
    scores = {place: score for place, answer in enumerate(usable) if (score := answer.picked_by) is not None}
    rejects = step.unfinished == "reject"
    if len(usable) < 2:
        prompt.dropped = ONE_ANSWER
    elif step.pick == "delta":
        strong, weak = usable
        if not (rejects and strong.finish == CUT):
            return MadePair(prompt, strong, weak, None, rejects and weak.finish == CUT)
        prompt.dropped = UNENDED
    elif len(scores) < 2:
        prompt.dropped = UNSCORED
    else:
        places = list(scores)
        lengths = [len(usable[place].text) for place in places]
        ended = [usable[place].finish != CUT for place in places] if rejects else []
        found = pick(list(scores.values()), step.pick, lengths, step.max_length_ratio or math.inf, ended)
        if found is None:
            prompt.dropped = UNLIKE if not rejects or (any(ended) and step.max_length_ratio) else UNENDED
            return None
        if found.margin > 0 and found.margin >= step.min_margin:
            chosen, rejected = usable[places[found.chosen]], usable[places[found.rejected]]
            return MadePair(prompt, chosen, rejected, found.margin, rejects and rejected.finish == CUT)
        prompt.dropped = CLOSE if found.margin > 0 else EQUAL
    return None


def _candidates(prompt: Prompt) -> Row:
    """A prompt with all its answers, as it is kept."""
    return {
        "id": prompt.id,
        "prompt": [turn.as_dict() for turn in prompt.turns],
        "answers": [answer.as_row() for answer in prompt.answers],
        **({"dropped": prompt.dropped} if prompt.dropped else {}),
    }


def _numbers(step: Pairs, prompts: Sequence[Prompt], made: Sequence[MadePair], pays: float | None) -> PairsNumbers:
    answers = [answer for prompt in prompts for answer in prompt.answers]
    margins = [pair.margin for pair in made if pair.margin is not None]
    lengths = [(len(pair.chosen.text), len(pair.rejected.text)) for pair in made]  # as a look at rows compares them
    longer = share_of([chosen > rejected for chosen, rejected in lengths if chosen != rejected])
    return PairsNumbers.model_validate(
        {
            "rows": len(prompts),
            "answers": len(answers),
            "pairs": len(made),
            "margin": round(fmean(margins), 4) if margins else None,
            "chosen_words": round(fmean(words(pair.chosen.text) for pair in made), 1) if made else None,
            "rejected_words": round(fmean(words(pair.rejected.text) for pair in made), 1) if made else None,
            "longer_chosen": longer._asdict(),
            "length_pays": None if pays is None else round(pays, 4),
            "rejected_cut": sum(pair.cut for pair in made) if step.unfinished == "reject" else None,
            "chosen_by": dict(Counter(pair.chosen.by for pair in made).most_common()),
            "rejected_by": dict(Counter(pair.rejected.by for pair in made).most_common()),
            "answers_dropped": dict(Counter(answer.dropped for answer in answers if answer.dropped)),
            "prompts_dropped": dict(Counter(prompt.dropped for prompt in prompts if prompt.dropped)),
            "summary": f"{len(made)} pairs of {len(answers)} answers to {len(prompts)} prompts",
        }
    )


def _none_made(step: Pairs, numbers: PairsNumbers) -> str:
    """Why there is not one pair, and what to do."""
    reasons = ", ".join(f"{reason}: {n}" for reason, n in numbers.dropped().items())
    cut = numbers.answers_dropped.get(UNFINISHED, 0) > (numbers.answers or 0) / 2
    remedy = {
        ONE_ANSWER: (
            "raise 'max_new_tokens', or set 'unfinished: keep'"
            if cut
            else "raise 'samples' or 'temperature', or name more models"
        ),
        UNSCORED: f"'{step.by}' cannot be understood: name another, or set rating: {{mode: probability}}",
        EQUAL: f"'{step.by}' tells no answers apart: name another",
        UNENDED: "raise 'max_new_tokens' or 'samples'",
        UNLIKE: f"raise 'max_length_ratio' (now {step.max_length_ratio}) or 'samples'",
        CLOSE: f"lower 'min_margin' (now {step.min_margin:g})",
    }[max(numbers.prompts_dropped, key=lambda reason: numbers.prompts_dropped[reason])]
    return f"not one pair of {numbers.answers} answers to {numbers.rows} prompts ({reasons}); {remedy}"
