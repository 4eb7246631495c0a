"""The answers that pairs are made of: those that models give, and those that rows bring.

Asks the step's models behind the call cache; writes nothing. Each answer has a seed of its row and its number,
so that a rerun gives the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from openbezoar.context import StepContext
from openbezoar.llm import Completion, Sampling, open_llm, recorded, samples
from openbezoar.recipe.pair_steps import Pairs
from openbezoar.rows.forms import to_example, to_pair, to_prompt, to_unpaired
from openbezoar.rows.known import form_of
from openbezoar.rows.outgoing import columns_beside
from openbezoar.rows.records import Row, Turn
from openbezoar.schemes.work import clean
from openbezoar.stats.seeds import step_seed

ROW = "row"
"""Who wrote an answer that a row brings."""

CUT = "length"
"""How an answer ended that the token limit cut off."""
REFUSED, EMPTY = "refused by the server", "empty"
UNFINISHED, TWICE = "cut off by the token limit", "word for word an earlier one"
SCORES = ("chosen_by", "rejected_by", "chosen_score", "rejected_score", "margin", "rejected_finish")
"""What a pair is told with; in rows that are read it is of other answers, as are the columns of ``OF_ROWS``."""
OF_ROWS = ("label", "finish", "scores", "reward_score", *SCORES)


@dataclass
class OneAnswer:
    """An answer to a prompt. by: who wrote it; finish: None where that is not known; how: what else is told of how
    it came; dropped: why it takes no part; score: None where it has none, and level where it is the score itself:
    the score that pays nothing for length.
    """

    by: str
    sample: int
    text: str
    finish: str | None
    how: Row = field(default_factory=dict)
    dropped: str = ""
    score: float | None = None
    level: float | None = None

    @property
    def picked_by(self) -> float | None:
        """The score that counts where two answers are picked."""
        return self.score if self.level is None else self.level

    def as_row(self) -> Row:
        """As it is kept; what does not apply is left out."""
        row = {"by": self.by, "sample": self.sample, "text": self.text, "finish": self.finish, **self.how}
        scores = {"score": self.score, "level_score": self.level}
        scored = {name: score for name, score in scores.items() if score is not None}
        return {**row, **scored, **({"dropped": self.dropped} if self.dropped else {})}


@dataclass
class Prompt:
    """A prompt with its answers. place: of its row among those that can be used, from 0; beside: the row's other
    columns; foreign: whether foreign answers take part; dropped: why there is no pair.
    """

    id: str
    turns: tuple[Turn, ...]
    beside: Row
    answers: list[OneAnswer]
    place: int = 0
    foreign: bool = True
    dropped: str = ""

    @property
    def usable(self) -> list[OneAnswer]:
        return [answer for answer in self.answers if not answer.dropped]


def prompts_of(step: Pairs, context: StepContext) -> list[Prompt]:
    """The step's prompts, with the answers of their rows where those take part. Raises DataError for a row that
    has no prompt, or none of the answers that it is to bring.
    """

    def prompt(row: Row, where: str) -> Prompt:
        turns, answers = _brought(row, where) if step.row_answers else (to_prompt(row, where), [])
        beside = {name: value for name, value in columns_beside(row).items() if name not in OF_ROWS}
        return Prompt(str(row.get("id", where)), turns, beside, answers)

    prompts = context.converted(step.pairs, prompt)
    drawn = sorted(range(len(prompts)), key=lambda place: step_seed(context.seed, "foreign", place))
    foreign = set(drawn[: round(step.foreign * len(prompts))])
    for place, one in enumerate(prompts):
        one.place, one.foreign = place, place in foreign
        if not one.foreign:
            one.answers.clear()
    return prompts


def _brought(row: Row, where: str) -> tuple[tuple[Turn, ...], list[OneAnswer]]:
    """A row's prompt and the answers that it brings: of a pair both."""
    kind = form_of(row, where).kind
    if kind == "pair":
        pair = to_pair(row, where)
        ends = (None, CUT if pair.cut else None)
        texts = enumerate(zip((pair.chosen, pair.rejected), ends, strict=True))
        return pair.prompt, [OneAnswer(ROW, n, text, finish) for n, (text, finish) in texts]
    one = to_unpaired(row, where) if kind == "unpaired" else to_example(row, where)
    return one.prompt, [OneAnswer(ROW, 0, one.answer, row.get("finish"))]


def ask_models(step: Pairs, context: StepContext, prompts: Sequence[Prompt]) -> None:
    """Have each model answer the prompts in which its answers take part, one model after another."""
    for model in step.models:
        todo = [prompt for prompt in prompts if prompt.foreign or model == step.models[0]]
        for prompt, answers in zip(todo, _answers(step, context, model, todo), strict=True):
            prompt.answers += answers


def _answers(step: Pairs, context: StepContext, model: str, prompts: Sequence[Prompt]) -> list[list[OneAnswer]]:
    """A model's answers to each prompt."""
    sampling = Sampling(step.max_new_tokens, step.temperature, step.top_p)
    answers: list[list[OneAnswer]] = []
    with closing(open_llm(model, context)) as llm:
        # a server's calls are kept one by one, so nothing is gained by waiting for the slowest of a batch
        size = max(1, len(prompts) if getattr(llm, "unit", "") == "call" else step.batch // step.answers)
        with context.progress.bar(f"answers-{model}", len(prompts), "prompts") as bar:
            for first in range(0, len(prompts), size):
                some = prompts[first : first + size]
                seeds = [step_seed(context.seed, "answer", prompt.place) for prompt in some]
                drawn = samples(llm, [prompt.turns for prompt in some], sampling, seeds=seeds, n=step.answers)
                answers += [[_one(context, model, k, reply) for k, reply in enumerate(of)] for of in drawn]
                bar.advance(len(some))
    return answers


def _one(context: StepContext, model: str, sample: int, reply: Completion) -> OneAnswer:
    text, markers = clean(reply.text)
    if markers:
        context.counts.add("answers: special markers taken out")
    return OneAnswer(model, sample, text, reply.finish, recorded(reply))


def drop_answers(prompts: Sequence[Prompt], unfinished: bool) -> None:
    """Mark the answers that take no part: refused, empty, cut off (but for ``unfinished``), or the same as an
    earlier one.
    """
    for prompt in prompts:
        seen: set[str] = set()
        for answer in prompt.answers:
            text = answer.text.strip()
            if answer.finish == "error":
                answer.dropped = REFUSED
            elif not text:
                answer.dropped = EMPTY
            elif answer.finish == CUT and not unfinished:
                answer.dropped = UNFINISHED
            elif text in seen:
                answer.dropped = TWICE
            seen.add(text)
