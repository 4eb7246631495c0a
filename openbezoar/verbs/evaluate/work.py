"""``evaluate``: LM-Eval tasks, held-out losses, preference accuracies and win rates of several checkpoints.

Reads the checkpoints of other steps, task rows and data rows; writes ``scores.json``
(``result.EvaluateScores``).

``differences`` has an entry for every two checkpoints: ``difference`` is b's value less a's
(b stands later in the recipe's list), over the items that both were scored on, paired, and
``p_holm`` its p corrected for all differences of the step. What must hold (``gate``) is asked each
time the recipe runs, by ``gates``. ``rewards`` and ``kl`` are there with ``reference``:
implicit rewards on the pairs and the divergence from that checkpoint (``rewards``). What
``wins`` asks for is answered and compared in ``wins``. Each checkpoint's results are kept in
``.resume-NAME.json`` until the step is whole, so that a killed run goes on with the next checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import DataError, RecipeError
from openbezoar.harness.run import Result, quiet, score
from openbezoar.harness.tasks import Benchmark, open_benchmarks
from openbezoar.recipe.blocks import DataRef, ServerModel
from openbezoar.recipe.measure_steps import Evaluate
from openbezoar.rows.records import Example, Pair, Turn
from openbezoar.stats.comparisons import correct, every_pair
from openbezoar.stats.intervals import mean_interval, proportion_interval
from openbezoar.stats.seeds import step_seed
from openbezoar.store.files import write_json
from openbezoar.store.manifests import read_sealed, sealed
from openbezoar.verbs.evaluate.result import EvaluateScores
from openbezoar.verbs.evaluate.rewards import by_subset, divergence, implicit_rewards, share, share_numbers
from openbezoar.verbs.evaluate.wins import compare_answers

CHANCE = 0.5  # of a reward accuracy


def run(step: Evaluate, context: StepContext) -> dict[str, Any]:
    """Score every checkpoint and compare every two; the numbers are a compact table."""
    names = list(dict.fromkeys(step.evaluate))
    for name in names:
        if isinstance(context.model_spec(name), ServerModel):
            raise RecipeError(
                f"evaluate: '{name}' is behind a server, which gives no log-probabilities; name a local model"
            )
    examples, pairs = (
        _first(step.losses, context.examples, step.loss_rows),
        _first(step.pairs, context.pairs, step.loss_rows),
    )
    benchmarks = _benchmarks(step, context)
    checkpoints: dict[str, Any] = {}
    for name in names:
        kept = context.out / f".resume-{quote(name, safe='')}.json"
        if not kept.is_file():
            write_json(kept, sealed({"scores": _checkpoint(name, step, context, benchmarks, examples, pairs)}))
        checkpoints[name] = read_sealed(kept, "scores", "delete it and run again")["scores"]
    _count(checkpoints, context)
    if step.reference is not None:
        _against_reference(step.reference, step, context, checkpoints, pairs)
    won = compare_answers(step, context) if step.wins else None
    differences = _compare(checkpoints, step.reference, context.seed, [] if won is None else won.differences)
    content = {"checkpoints": checkpoints, "reference": step.reference, **differences}
    if won is not None:
        for name, by_set in won.checkpoints.items():
            checkpoints[name]["wins"] = by_set
        content |= {"wins": won.sets, "win_differences": won.differences}
    scores = EvaluateScores.model_validate(content)
    scores.write(context.out)
    return _numbers(scores)


def _first(refs: Mapping[str, DataRef], read: Callable[[DataRef, int], list[Any]], n: int) -> dict[str, list[Any]]:
    return {name: read(ref, n) for name, ref in refs.items()}


def _benchmarks(step: Evaluate, context: StepContext) -> list[Benchmark]:
    """All tasks, opened before the first model is loaded, so that a mistake shows at once."""
    if not step.tasks:
        return []
    data = context.path(step.data) if step.data is not None else None
    with quiet():
        return open_benchmarks(step.tasks, data, context.path, fewshot=step.fewshot, limit=step.limit)


def _checkpoint(
    name: str,
    step: Evaluate,
    context: StepContext,
    benchmarks: Sequence[Benchmark],
    examples: Mapping[str, Sequence[Example]],
    pairs: Mapping[str, Sequence[Pair]],
) -> dict[str, Any]:
    """Everything about one checkpoint; its memory is free again afterwards."""
    if not (benchmarks or examples or pairs):  # of an evaluation by answers alone no model is loaded here
        return {"tasks": {}, "losses": {}, "pairs": {}}
    from openbezoar.forest import Scorer
    from openbezoar.llm.local import LocalLLM
    from openbezoar.models.load import free, load_for_inference, window_of

    checkpoint = context.checkpoint(name)
    context.progress.say(f"  {name}: loading")
    model, tokenizer = load_for_inference(checkpoint)
    try:
        results: dict[str, Any] = {
            "tasks": score(
                model, tokenizer, benchmarks, step_seed(context.seed, "tasks"), context.progress, step.tokens
            )
        }
        answers: AnswerScorer | None = None
        if examples or pairs:
            formatter = Formatter(tokenizer, checkpoint.prompt)
            for note in formatter.notes:
                context.progress.say(f"  {name}: {note}")
            answers = AnswerScorer(formatter, Scorer(model, step.tokens), window_of(model, tokenizer), context)
        results["losses"] = {key: held_out_loss(answers, key, rows) for key, rows in examples.items() if answers}
        results["pairs"] = {key: preference(answers, key, rows) for key, rows in pairs.items() if answers}
        if step.reference not in (None, name) and step.kl_rows:
            results["samples"] = {
                key: sampled(answers, LocalLLM(checkpoint, (model, tokenizer)), rows, step, key)
                for key, rows in pairs.items()
                if answers
            }
    finally:
        del model
        answers = None
        free()
    return results


class AnswerScorer:
    """Log-probabilities of answers, each in the checkpoint's own prompt format."""

    def __init__(self, formatter: Formatter, scorer: Any, window: int, context: StepContext) -> None:
        self.formatter, self.scorer, self.window, self.context = formatter, scorer, window, context

    def logprobs(
        self, label: str, rows: Sequence[Sequence[tuple[Sequence[Turn], str]]]
    ) -> list[list[tuple[float, int]] | None]:
        """For each row of prompts with their answers the (sum, tokens) of each answer, end of turn included.

        None for a row that does not fit the model's window, or of which an answer has no token.
        """
        from openbezoar.forest import TokenPath
        from openbezoar.forest.trunk import no_numbers

        trees: dict[int, tuple[TokenPath, ...]] = {}
        for number, row in enumerate(rows):
            prompts = [self.formatter.prompt_ids(turns) for turns, _ in row]
            paths = tuple(
                TokenPath.of(prompt, self.formatter.answer_ids(turns, answer, prompt))
                for prompt, (turns, answer) in zip(prompts, row, strict=True)
            )
            if all(path.n_scored and len(path.ids) <= self.window for path in paths):
                trees[number] = paths
        with self.context.progress.bar(label, len(trees), "rows") as bar:
            scores = self.scorer.logprobs(list(trees.values()), done=bar.advance)
        sums: list[list[tuple[float, int]] | None] = [None] * len(rows)
        for number, tree in zip(trees, scores, strict=True):
            sums[number] = [(float(path.double().sum()), len(path)) for path in tree]
            if not all(math.isfinite(total) for total, _ in sums[number] or ()):
                raise no_numbers(f"{label}, row {number + 1}: ")
        return sums


def held_out_loss(answers: AnswerScorer, label: str, rows: Sequence[Example]) -> Result:
    """Mean loss of an answer's token given its prompt, in nats: {value, low, high, n, tokens, unscored, items}.

    Every token counts alike, as in training. ``items`` has a number for each row, None for
    an unscored one; their mean is the value, and they spread as the value does from one
    sample of rows to another (the linearised ratio of summed losses to tokens), so that
    intervals and paired differences can be taken over rows. Of a conversation all answers that are
    to be learnt count, together one item.
    """
    logprobs = [_together(row) for row in answers.logprobs(label, [list(row.learnt()) for row in rows])]
    scored = [row for row in logprobs if row is not None]
    if not scored:
        raise DataError(
            f"losses.{label}: none of {len(rows)} rows fits the model's window of {answers.window} tokens; give shorter"
            " rows"
        )
    tokens = sum(n for _, n in scored)
    value = -sum(total for total, _ in scored) / tokens
    share = tokens / len(scored)
    items = [None if row is None else value + (-row[0] - value * row[1]) / share for row in logprobs]
    _, low, high = mean_interval(
        [item for item in items if item is not None], step_seed(answers.context.seed, "loss", label)
    )
    return {
        "value": value,
        "low": low,
        "high": high,
        "n": len(scored),
        "tokens": tokens,
        "unscored": len(rows) - len(scored),
        "items": items,
    }


def _together(row: Sequence[tuple[float, int]] | None) -> tuple[float, int] | None:
    """(sum, tokens) of all answers of a row."""
    return None if row is None else (sum(total for total, _ in row), sum(n for _, n in row))


def preference(answers: AnswerScorer, label: str, rows: Sequence[Pair]) -> Result:
    """Share of pairs whose chosen answer is the likelier one, by the sum and by the mean over its tokens.

    {accuracy: {value, low, high}, normalised: {value, low, high}, n, identical, unscored,
    items}; pairs of two identical answers prefer nothing and are left out. ``items`` is by
    the sum.
    """
    logprobs = answers.logprobs(label, [[(row.prompt, row.chosen), (row.prompt, row.rejected)] for row in rows])
    same = [row.chosen == row.rejected for row in rows]
    # A pair left out has None in its place, so that places stay the same for all checkpoints.
    used = [None if pair is None or twin else pair for pair, twin in zip(logprobs, same, strict=True)]
    by_sum = [None if pair is None else int(pair[0][0] > pair[1][0]) for pair in used]
    by_mean = [int(pair[0][0] / pair[0][1] > pair[1][0] / pair[1][1]) for pair in used if pair is not None]
    if not by_mean:
        raise DataError(
            f"pairs.{label}: none of {len(rows)} pairs can be scored ({sum(same)} have identical answers, the rest"
            f" exceed {answers.window} tokens); give other pairs"
        )
    sums = [item for item in by_sum if item is not None]
    unscored = sum(pair is None and not twin for pair, twin in zip(logprobs, same, strict=True))
    subsets = [row.subset for row in rows]
    return {
        "accuracy": share_numbers(sums),
        "n": len(sums),
        "normalised": share_numbers(by_mean),
        "identical": sum(same),
        "unscored": unscored,
        "subsets": {name: share(own) for name, own in by_subset(by_sum, subsets).items()},
        "items": by_sum,
        "sums": [None if pair is None else [total for total, _ in pair] for pair in used],
    }


def sampled(answers: AnswerScorer, local: Any, rows: Sequence[Pair], step: Evaluate, label: str) -> Result:
    """The checkpoint's own answers to the first prompts of a pair set that leave them room, drawn at temperature 1.

    {drawn: [{ids, start, logprob, tokens}], too_long: prompts without room}; answers begin at ``start``.
    """
    from openbezoar.llm import Sampling

    prompts = [list(answers.formatter.prompt_ids(row.prompt)) for row in rows]
    fitting = [ids for ids in prompts if len(ids) + step.kl_tokens <= answers.window]
    chosen = fitting[: step.kl_rows]
    seeds = [step_seed(answers.context.seed, "kl", label, i) for i in range(len(chosen))]
    drawn = local.sample(chosen, Sampling(step.kl_tokens, temperature=1.0, top_p=1.0), seeds)
    made = [
        {"ids": [*prompt, *row.ids], "start": len(prompt), "tokens": len(row.ids)}
        for prompt, row in zip(chosen, drawn, strict=True)
    ]
    scored = [{**one, "logprob": total} for one, total in zip(made, logprobs_of_ids(answers.scorer, made), strict=True)]
    return {"drawn": scored, "too_long": len(prompts) - len(fitting)}


def logprobs_of_ids(scorer: Any, samples: Sequence[Result]) -> list[float]:
    """Summed log-probability of each sample's answer."""
    from openbezoar.forest import TokenPath

    trees = [(TokenPath.of(s["ids"][: s["start"]], s["ids"][s["start"] :]),) for s in samples]
    return [float(path.double().sum()) for (path,) in scorer.logprobs(trees)]


def _against_reference(
    reference: str,
    step: Evaluate,
    context: StepContext,
    checkpoints: dict[str, Any],
    pairs: Mapping[str, Sequence[Pair]],
) -> None:
    """Give every other checkpoint its implicit rewards and its divergence from the reference, which
    is loaded once more for their answers.
    """
    from openbezoar.forest import Scorer
    from openbezoar.models.load import free, load_for_inference

    own = checkpoints[reference]
    others = {name: scores for name, scores in checkpoints.items() if name != reference}
    for name, scores in others.items():
        scores["rewards"] = {}
        for key, rows in pairs.items():
            sums = (scores["pairs"][key]["sums"], own["pairs"][key]["sums"])
            scores["rewards"][key] = implicit_rewards(
                *sums, [row.subset for row in rows], step_seed(context.seed, "rewards", name, key)
            )
    samples: dict[tuple[str, str], list[Result]] = {}
    for name, scores in others.items():
        for key, made in scores.pop("samples", {}).items():
            if made["too_long"]:
                context.counts.add(
                    f"{name}, pairs {key}: prompts too long to be answered for the KL divergence", made["too_long"]
                )
            if made["drawn"]:
                samples[name, key] = made["drawn"]
    if not samples:
        return
    model, _ = load_for_inference(context.checkpoint(reference))
    scorer = Scorer(model, step.tokens)
    try:
        vocabulary = int(model.config.get_text_config().vocab_size)
        for (name, key), drawn in samples.items():
            if max(i for s in drawn for i in s["ids"]) >= vocabulary:
                context.counts.add(
                    f"{name}, {key}: no KL divergence, its vocabulary is not the reference's", len(drawn)
                )
                continue
            moved = divergence(drawn, logprobs_of_ids(scorer, drawn), step_seed(context.seed, "kl", name, key))
            checkpoints[name].setdefault("kl", {})[key] = moved
    finally:
        del model, scorer
        free()


def _count(checkpoints: Mapping[str, Any], context: StepContext) -> None:
    """What was cut or left out, by reason."""
    for name, found in checkpoints.items():
        for task, result in found["tasks"].items():
            if result["truncated"]:
                context.counts.add(f"{name}, {task}: prompts cut to the model's window", result["truncated"])
        for kind in ("losses", "pairs"):
            for key, result in found[kind].items():
                if result["unscored"]:
                    context.counts.add(
                        f"{name}, {kind} {key}: too long for the model's window, or empty", result["unscored"]
                    )
                if result.get("identical"):
                    context.counts.add(f"{name}, {kind} {key}: chosen and rejected are identical", result["identical"])


def _compare(
    checkpoints: Mapping[str, Any], reference: str | None, seed: int, further: Sequence[Result]
) -> dict[str, list[Result]]:
    """Paired differences between every two checkpoints, b less a; p values corrected for all of them, and
    for the ``further`` ones of the step.
    """
    kinds = (
        ("differences", "tasks", "task"),
        ("loss_differences", "losses", "set"),
        ("pair_differences", "pairs", "set"),
    )
    by_kind: dict[str, list[Result]] = {}
    first = next(iter(checkpoints.values()))
    for key, kind, word in kinds:
        by_kind[key] = []
        for name, result in first[kind].items():
            items = {c: checkpoints[c][kind][name]["items"] for c in checkpoints}
            values = {
                c: {place: value for place, value in enumerate(of) if value is not None} for c, of in items.items()
            }
            metric = {"metric": result["main"]} if kind == "tasks" else {}
            by_kind[key] += every_pair(values, step_seed(seed, kind), {word: name, **metric})
    by_kind["reward_differences"] = _reward_differences(checkpoints, reference, seed)
    correct([*(row for rows in by_kind.values() for row in rows), *further])
    return by_kind


def _reward_differences(checkpoints: Mapping[str, Any], reference: str | None, seed: int) -> list[Result]:
    """In the share of pairs whose margin is above zero, of every two checkpoints on the same pairs; the
    reference comes first, and chance stands for it.
    """
    rows = []
    for name in [] if reference is None else checkpoints[reference]["pairs"]:
        margins = {c: found["rewards"][name]["items"] for c, found in checkpoints.items() if c != reference}
        right = {
            c: {place: float(margin > 0) for place, margin in enumerate(of) if margin is not None}
            for c, of in margins.items()
        }
        even = dict.fromkeys((place for of in right.values() for place in of), CHANCE)
        of_set = every_pair({str(reference): even, **right}, step_seed(seed, "rewards"), {"set": name})
        rows += [_of_share(row, right[row["b"]].values()) if row["a"] == reference else row for row in of_set]
    return rows


def _of_share(row: Result, right: Collection[float]) -> Result:
    """A difference from chance with the interval of the share, which one of 0 or 1 has too (Wilson)."""
    low, high = proportion_interval(round(sum(right)), len(right))
    return {**row, "low": low - CHANCE, "high": high - CHANCE}


def _numbers(scores: EvaluateScores) -> dict[str, Any]:
    """{checkpoint: {task or set: main value}} and one line of words."""
    table = {name: found.main_values() for name, found in scores.by_checkpoint.items()}
    first, last = next(iter(table)), next(reversed(table))
    moves = [
        (
            f"{key} {table[first][key]:.3f} → {value:.3f}"
            if first != last and key in table[first]
            else f"{key} {value:.3f}"
        )
        for key, value in table[last].items()
    ]
    return {"table": table, "summary": f"{first} → {last}: " * (first != last) + ", ".join(moves)}
