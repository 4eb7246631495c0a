"""How likely a model finds the answers of rows, given what stands before them and by themselves.

A row is one tree of the forest scorer: for each learnt answer a path of prompt and answer, and a
path of the answer alone, so a conversation's turns are computed once. The prompt is the model's own
(``Formatter``), as it is sent at inference; the words of the answer are scored, not the end-of-turn
tokens. Alone, an answer stands after the beginning that the tokenizer puts before every text, where
it does; else its first token has nothing before it and is not scored there (GPT-2 in the paper's
code). The paper's prompt is the instruction as plain text; a template file that says so gives that.
Of a conversation all learnt answers count, each token once.

Reads rows; writes ``likelihood.jsonl``, a line a row in the rows' order. Rows are scored in chunks,
each under a digest of the model and its rows: what a killed try or the step's last result has of
them is taken from there, the same to the last bit, since a chunk is scored by itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openbezoar.cleaning.likelihood import Scored
from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter
from openbezoar.dialogue.tokens import Frame
from openbezoar.recipe.data_steps import Likelihood
from openbezoar.rows.records import Example, Turn, write_jsonl
from openbezoar.store.digests import digest

FILE, PART = "likelihood.jsonl", "likelihood.part.jsonl"
CHUNK = 256  # rows that are scored and kept together


class Span(NamedTuple):
    """Token ids of an answer with those of what stands before it; ``cut`` if it goes on."""

    before: list[int]
    answer: list[int]
    cut: bool


def spans(example: Example, formatter: Formatter, max_length: int) -> list[Span]:
    """The learnt answers of an example, the earlier ones first, each as far as it fits."""
    learnt = []
    for prompt, words in example.learnt():
        before, answer = _ids(formatter, prompt, words)
        room = max(0, max_length - len(before))
        learnt.append(Span(before, answer[:room], len(answer) > room))
    return learnt


def _ids(formatter: Formatter, prompt: Sequence[Turn], answer: str) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the answer's words: what the template puts between the two is the prompt's."""

    def ids(text: str) -> list[int]:
        return list(formatter.tokenizer(text, add_special_tokens=False).input_ids)

    words = formatter.form.written(answer)
    lead = formatter.lead if words.startswith(formatter.lead) else ""
    start, words = formatter.prompt_text(prompt) + lead, words[len(lead) :]
    before, whole = ids(start), ids(start + words)
    return before, whole[len(before) :] if whole[: len(before)] == before else ids(words)


class AnswerLikelihood:
    """Scores examples with one model. window: most tokens of prompt and answer."""

    def __init__(self, formatter: Formatter, scorer: Any, window: int) -> None:
        self.formatter, self.scorer, self.window = formatter, scorer, window
        self.beginning = Frame.of(formatter.tokenizer).before

    def score(self, examples: Sequence[Example]) -> list[Scored]:
        """One of each, computed together. Raises ModelError for log-probabilities that are not numbers."""
        from openbezoar.forest.trunk import no_numbers

        learnt = [spans(example, self.formatter, self.window) for example in examples]
        trees = [self._tree(of_row) for of_row in learnt]
        values = iter(self.scorer.logprobs([given + alone for given, alone in trees if given]))
        scored = []
        for example, of_row, (given, _) in zip(examples, learnt, trees, strict=True):
            paths = [path.double() for path in next(values)] if given else []
            means = _mean(paths[: len(given)]), _mean(paths[len(given) :])
            if any(mean is not None and not math.isfinite(mean) for mean in means):
                raise no_numbers(f"{example.id}: ")
            tokens = sum(len(span.answer) for span in of_row)
            scored.append(Scored(*means, tokens, any(span.cut for span in of_row)))
        return scored

    def _tree(self, learnt: Sequence[Span]) -> tuple[Any, Any]:
        """Paths of the answers after what stands before them, and of those that can be scored alone."""
        from openbezoar.forest import TokenPath

        answers = [span for span in learnt if span.answer]
        before = [self.beginning or span.answer[:1] for span in answers]
        rest = [span.answer if self.beginning else span.answer[1:] for span in answers]
        alone = (TokenPath.of(b, a) for b, a in zip(before, rest, strict=True) if a)
        return tuple(TokenPath.of(span.before, span.answer) for span in answers), tuple(alone)


def _mean(paths: Sequence[Any]) -> float | None:
    """Mean negative log-probability of all tokens of some paths, in nats; None of none."""
    tokens = sum(len(path) for path in paths)
    return -sum(float(path.sum()) for path in paths) / tokens if tokens else None


# ------------------------------------------------------------------------- all rows of a step


def likelihoods(settings: Likelihood, context: StepContext, examples: Sequence[Example]) -> list[Scored]:
    """One of each example; the model is opened if one is not known yet, and closed again."""
    checkpoint = context.checkpoint(settings.model)
    model = digest([checkpoint.identity(), settings.max_length, settings.tokens])
    chunks = [examples[first : first + CHUNK] for first in range(0, len(examples), CHUNK)]
    keys = [_key(model, chunk) for chunk in chunks]
    part = context.out / PART
    known = {**_read(context.folder(context.name) / FILE), **_read(part)}
    if any(key not in known for key in keys):
        todo = [(key, chunk) for key, chunk in zip(keys, chunks, strict=True) if key not in known]
        for key, chunk, scored in _computed(settings, context, todo):
            known[key] = scored
            with part.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(line) + "\n" for line in _lines(key, chunk, scored))
    write_jsonl(
        context.out / FILE,
        (line for key, chunk in zip(keys, chunks, strict=True) for line in _lines(key, chunk, known[key])),
    )
    part.unlink(missing_ok=True)
    return [score for key in keys for score in known[key]]


def _computed(
    settings: Likelihood, context: StepContext, todo: Sequence[tuple[str, Sequence[Example]]]
) -> Iterator[tuple[str, Sequence[Example], list[Scored]]]:
    """Chunks with their scores, as they come."""
    from openbezoar.forest import Scorer
    from openbezoar.models.load import free, load_for_inference, window_of

    checkpoint = context.checkpoint(settings.model)
    context.progress.say(f"  {settings.model}: loading")
    model, tokenizer = load_for_inference(checkpoint)
    try:
        formatter = Formatter(tokenizer, checkpoint.prompt)
        for note in formatter.notes:
            context.progress.say(f"  {settings.model}: {note}")
        window = min(window_of(model, tokenizer), settings.max_length or window_of(model, tokenizer))
        scorer = AnswerLikelihood(formatter, Scorer(model, settings.tokens), window)
        with context.progress.bar("likelihood", sum(len(chunk) for _, chunk in todo), "rows") as bar:
            for key, chunk in todo:
                yield key, chunk, scorer.score(chunk)
                bar.advance(len(chunk))
    finally:
        del model
        free()


def _key(model: str, chunk: Sequence[Example]) -> str:
    texts = [[[[turn.role, turn.content] for turn in one.prompt], one.answer, list(one.earlier)] for one in chunk]
    return digest([model, texts])[:16]


def _lines(key: str, chunk: Sequence[Example], scored: Sequence[Scored]) -> Iterator[dict[str, Any]]:
    for example, score in zip(chunk, scored, strict=True):
        yield {"id": example.id, **score._asdict(), "ifd": score.ifd, "chunk": key, "of": len(chunk)}


def _read(file: Path) -> dict[str, list[Scored]]:
    """The whole chunks of a file, by their keys; what a kill cut off is left out."""
    chunks: dict[str, list[Scored]] = {}
    sizes: dict[str, int] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            content = json.loads(line)
            score = Scored(*(content[name] for name in Scored._fields))
            sizes[content["chunk"]] = content["of"]
        except (ValueError, KeyError, TypeError):
            continue
        chunks.setdefault(content["chunk"], []).append(score)
    # equal chunks stand there more than once
    return {key: scored[: sizes[key]] for key, scored in chunks.items() if len(scored) >= sizes[key]}
