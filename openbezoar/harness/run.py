"""Scores benchmarks with one model and says how sure they are. Reads and writes nothing itself.

A result is lm-eval's own (evaluator.evaluate, its metrics under its names); intervals come
from the answers to the single questions: Wilson's for shares, a bootstrap over questions
for other means.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openbezoar.harness.tasks import Benchmark, open_benchmarks
from openbezoar.machine import extras
from openbezoar.models import needs
from openbezoar.progress import PlainProgress, Progress
from openbezoar.recipe.measure_steps import TaskSpec
from openbezoar.stats.intervals import mean_interval, proportion_interval
from openbezoar.store.digests import digest

FEWSHOT_SEED = 1234  # lm-eval's default; with it the examples drawn are the ones that everyone has
MAIN = ("acc_norm", "acc", "exact_match")  # the metric that comparisons use: the first that a task has
Result = dict[str, Any]


def score(
    model: Any,
    tokenizer: Any,
    benchmarks: Sequence[Benchmark],
    seed: int = 0,
    progress: Progress | None = None,
    tokens: int = 2048,
) -> dict[str, Result]:
    """Results by reported name.

    Each is {task, fewshot, n, version, metrics: {name: {value, low, high}}, main: a metric's name,
    higher_is_better: of it, items: its value at each question, truncated: requests cut to the
    window, prompt_hash, and where the tokenizer would put one after every text end_left_out: the
    token that was not; thoughts_left_out: answers that had some}. Metrics are named as in lm-eval
    ('acc'; with a filter 'exact_match,strict-match'). MMLU's subjects are pooled, which weights
    them by their questions, and listed under
    ``subjects``. seed: of the bootstrap. tokens: budget of one forward pass.
    """
    from openbezoar.harness.forest_lm import ForestLM

    results = {}
    for benchmark in benchmarks:
        lm = ForestLM(model, tokenizer, tokens, progress or PlainProgress(quiet=True), benchmark.name)
        results[benchmark.name] = _score_one(lm, benchmark, seed)
    return results


def score_reference(
    reference: str,
    tasks: Sequence[str | TaskSpec],
    data: Path | None = None,
    *,
    fewshot: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    tokens: int = 2048,
) -> dict[str, Any]:
    """{model, tasks: the results of ``score``} for a model reference as typed on the command line.

    Raises UserErrors for what is wrong with the model, a task's name or its rows; the rows
    are checked before the model is loaded.
    """
    extras.require(*needs.MODEL, *needs.TASKS)  # before those that are there are imported, which takes seconds
    from openbezoar.models.load import load_for_inference
    from openbezoar.models.references import open_checkpoint

    with quiet():
        benchmarks = open_benchmarks(tasks, data, fewshot=fewshot, limit=limit)
    model, tokenizer = load_for_inference(open_checkpoint(reference))
    return {"model": reference, "tasks": score(model, tokenizer, benchmarks, seed, progress, tokens)}


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval, datasets and transformers say nothing below an error, and draw no bars."""
    import datasets
    import lm_eval.api.task
    from transformers.utils import logging as hf_logging

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers")]
    levels = [logger.level for logger in loggers]
    bars, hf_bars = datasets.are_progress_bars_disabled(), hf_logging.is_progress_bar_enabled()
    tqdm = lm_eval.api.task.tqdm
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    hf_logging.disable_progress_bar()
    lm_eval.api.task.tqdm = lambda items, **_: items  # it has no switch for the bar over a task's questions
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        lm_eval.api.task.tqdm = tqdm
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
        if hf_bars:
            hf_logging.enable_progress_bar()


def _score_one(lm: Any, benchmark: Benchmark, seed: int) -> Result:
    from lm_eval.evaluator import evaluate

    for task in benchmark.parts.values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    with quiet():
        evaluation = evaluate(
            lm, {"tasks": dict(benchmark.parts)}, limit=benchmark.limit, bootstrap_iters=0, log_samples=True
        )
    assert evaluation is not None  # only processes other than the first get none
    names = list(benchmark.parts)
    answers = {name: _by_metric(evaluation["samples"][name]) for name in names}
    pooled = {metric: [value for name in names for value in answers[name][metric]] for metric in answers[names[0]]}
    first = benchmark.parts[names[0]]
    metrics = {
        metric: _estimate(first, metric, values, seed, evaluation["results"][names[0]] if len(names) == 1 else None)
        for metric, values in pooled.items()
    }
    main = min(metrics, key=_preference)
    items = pooled[main]
    result = {
        "task": benchmark.task,
        "fewshot": first.config.num_fewshot,
        "n": len(items),
        "version": evaluation["versions"][names[0]],
        "metrics": metrics,
        "main": main,
        "higher_is_better": bool(first.higher_is_better().get(main.partition(",")[0], True)),
        "items": items if _numbers(items) else [],
        "truncated": lm.truncated,
        "prompt_hash": digest([sample["arguments"] for name in names for sample in evaluation["samples"][name]]),
    }
    if lm.thought:
        result["thoughts_left_out"] = lm.thought
    if lm.frame.after:
        result["end_left_out"] = lm.tokenizer.decode(lm.frame.after)
    if len(names) > 1:
        result["subjects"] = {name: {"n": len(answers[name][main]), main: _mean(answers[name][main])} for name in names}
    return result


def _by_metric(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Values at each question, by metric; lm-eval logs a question once for each of a task's filters."""
    values: dict[str, list[Any]] = {}
    for sample in sorted(samples, key=lambda s: int(s["doc_id"])):
        for metric in sample["metrics"]:
            name = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
            values.setdefault(name, []).append(_plain(sample[metric]))
    return values


def _plain(value: Any) -> Any:
    """A number as Python's own: 0 or 1 whole, others as they are."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if number in (0.0, 1.0) else number


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _preference(metric: str) -> int:
    """A metric's place in ``MAIN``; behind all of it for one that is not there."""
    name = metric.partition(",")[0]
    return MAIN.index(name) if name in MAIN else len(MAIN)


def _estimate(
    task: Any, metric: str, values: list[Any], seed: int, own: dict[str, Any] | None
) -> dict[str, float | None]:
    """Value with interval; without one where a metric is not a mean over questions.

    own: lm-eval's results of a task that is not pooled.
    """
    name, _, filter_name = metric.partition(",")
    aggregation = getattr(task.aggregation().get(name), "__name__", "mean")
    if own is None:
        value = _mean(values)
    else:
        value = float(own[f"{name},{filter_name or 'none'}"])
    if aggregation == "perplexity" and _numbers(values):  # exp(-mean log-probability)
        _, low, high = mean_interval(values, seed)
        return {"value": value, "low": math.exp(-high), "high": math.exp(-low)}
    if aggregation not in ("mean", "nanmean") or not _numbers(values):
        return {"value": value, "low": None, "high": None}
    if set(values) <= {0, 1}:
        low, high = proportion_interval(sum(values), len(values))
    else:
        _, low, high = mean_interval(values, seed)
    return {"value": value, "low": low, "high": high}
