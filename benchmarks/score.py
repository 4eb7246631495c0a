"""Benchmark questions: this package's model class against lm-eval's own HFLM, task by task.

Reads a model and a folder of task files (docs/data.md). Both sides are given the same lm-eval
task objects, with the official prompts and the official draws of examples, through lm-eval's
own ``evaluate``, which is what is timed; loading is outside. MMLU's subjects are taken whole.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import common, searches
from openbezoar.cli import process
from openbezoar.errors import DataError
from openbezoar.forest import Tree
from openbezoar.forest.layout import in_order
from openbezoar.harness.run import FEWSHOT_SEED, quiet
from openbezoar.harness.tasks import Benchmark, open_benchmarks
from openbezoar.models.load import device, load_for_inference, load_tokenizer
from openbezoar.models.references import open_checkpoint
from openbezoar.recipe.measure_steps import TaskSpec

# Task, examples in the prompt. Those of the Open LLM Leaderboard's first version, and common 0-shot ones.
SUITE = {
    "piqa 0": ("piqa", 0),
    "openbookqa 0": ("openbookqa", 0),
    "boolq 0": ("boolq", 0),
    "truthfulqa_mc1 0": ("truthfulqa_mc1", 0),
    "truthfulqa_mc2 0": ("truthfulqa_mc2", 0),
    "hellaswag 0": ("hellaswag", 0),
    "winogrande 5": ("winogrande", 5),
    "mmlu 5": ("mmlu", 5),
    "hellaswag 10": ("hellaswag", 10),
    "arc_easy 25": ("arc_easy", 25),
    "arc_challenge 25": ("arc_challenge", 25),
}
ARMS = {"bf16": "bfloat16", "fp32": "float32"}
EXACT = 2  # questions of a task that are asked in fp64 too
PILOT = 4  # questions of a task while HFLM's best batch size is searched; a batch of 16 is then full at four choices


@dataclass(frozen=True)
class Job:
    """What one worker is to do. what: 'time' or 'work'. batch_sizes: HFLM's, by task."""

    what: str
    side: str
    model: str
    data: str
    n: int
    dtype: str
    tasks: list[str]
    batch_sizes: dict[str, int]


def open_tasks(job: Job) -> list[Benchmark]:
    """The job's tasks, fresh objects; of MMLU as many whole subjects as hold ``n`` questions."""
    opened = []
    for name in job.tasks:
        task, shots = SUITE[name]
        with quiet():
            (benchmark,) = open_benchmarks([TaskSpec(task=task, name=name, fewshot=shots)], Path(job.data), limit=job.n)
        for part in benchmark.parts.values():
            part.set_fewshot_seed(seed=FEWSHOT_SEED)
        opened.append(whole_subjects(benchmark, job.n) if task == "mmlu" else benchmark)
    return opened


def whole_subjects(benchmark: Benchmark, n: int) -> Benchmark:
    """The first subjects that together hold ``n`` questions, none of them cut."""
    kept: dict[str, Any] = {}
    for subject, task in benchmark.parts.items():
        if sum(len(t.eval_docs) for t in kept.values()) >= n:
            break
        kept[subject] = task
    return replace(benchmark, parts=kept, limit=None)


def present(data: Path) -> list[str]:
    """The suite's tasks whose file is in the folder. Raises DataError if none is, or if a file
    cannot be read as its task.
    """
    found = [name for name in SUITE if file_of(data, name).is_file()]
    if not found:
        raise DataError(
            f"{data}: no task file there; expected a folder with arc_easy.jsonl.gz and the like (docs/data.md)"
        )
    return found


def file_of(data: Path, name: str) -> Path:
    """The task's file in the folder, whether it is there or not."""
    task, _ = SUITE[name]
    plain = data / f"{'truthfulqa_mc' if task.startswith('truthfulqa') else task}.jsonl"
    return plain if plain.is_file() else plain.with_name(f"{plain.name}.gz")


# ----------------------------------------------------------------------------------- sides


def ours(job: Job) -> dict[str, Any]:
    """ForestLM with its usual settings."""
    from openbezoar.harness.forest_lm import ForestLM

    process.own()
    model, tokenizer = load_for_inference(replace(open_checkpoint(job.model), dtype=job.dtype))  # type: ignore[arg-type]
    lm = ForestLM(model, tokenizer)
    return evaluated(job, lambda name: lm)


def hflm(job: Job) -> dict[str, Any]:
    """lm-eval's model class around the same weights, with the batch size that was fastest for each task."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    folder = open_checkpoint(job.model).folder()
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=getattr(torch, job.dtype), attn_implementation="sdpa"
    ).to(device())
    tokenizer = load_tokenizer(folder)
    made: dict[int, Any] = {}

    def lm_for(name: str) -> Any:
        size = job.batch_sizes[name]
        if size not in made:
            made[size] = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, device=str(device()))
        return made[size]

    return evaluated(job, lm_for)


def evaluated(job: Job, lm_for: Any) -> dict[str, Any]:
    """Seconds and answers of every task; loading and the first use of each model object are not counted."""
    from lm_eval.evaluator import evaluate

    benchmarks = open_tasks(job)
    loaded = common.resident_peak()
    tasks: dict[str, Any] = {}
    with common.Stopwatch() as warm_up:
        for lm in {id(lm): lm for lm in (lm_for(benchmark.name) for benchmark in benchmarks)}.values():
            first_use(lm)
    for benchmark in benchmarks:
        lm = lm_for(benchmark.name)
        with quiet(), common.Stopwatch() as watch:
            found = evaluate(
                lm, {"tasks": dict(benchmark.parts)}, limit=benchmark.limit, bootstrap_iters=0, log_samples=True
            )
        tasks[benchmark.name] = {
            "seconds": watch.seconds,
            "cpu_seconds": watch.cpu,
            "answers": answers(found["samples"]),
            "lengths": lengths(found["samples"], lm.tokenizer),
        }
    seconds = sum(task["seconds"] for task in tasks.values())
    return {
        "seconds": seconds,
        "cpu_seconds": sum(task["cpu_seconds"] for task in tasks.values()),
        "peak_memory": common.peak_memory(),
        "loaded_memory": loaded,
        "warm_up_seconds": warm_up.seconds,
        "tasks": tasks,
    }


def first_use(lm: Any) -> None:
    """One short question to either side: what a process does once (our self-check, the kernels'
    set-up) belongs to loading, not to a task.
    """
    from lm_eval.api.instance import Instance

    asked = Instance(
        request_type="loglikelihood",
        doc={},
        arguments=("What is the capital of France?", " The capital of France is Paris."),
        idx=0,
    )
    with quiet():
        lm.loglikelihood([asked])


def answers(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Log-probability of each choice, by question, from lm-eval's log."""
    return {
        f"{part} {sample['doc_id']}": [float(_first(response)) for response in sample["filtered_resps"]]
        for part, logged in samples.items()
        for sample in logged
    }


def lengths(samples: Mapping[str, Sequence[Mapping[str, Any]]], tokenizer: Any) -> dict[str, list[int]]:
    """Tokens of each choice that is scored, by question; at least one. What a token's tolerance is multiplied with."""
    return {
        f"{part} {sample['doc_id']}": [
            max(1, len(tokenizer.encode(text, add_special_tokens=False))) for text in scored_texts(sample["arguments"])
        ]
        for part, logged in samples.items()
        for sample in logged
    }


def scored_texts(arguments: Any) -> list[str]:
    """The continuation of each request of a logged sample, whichever way this lm-eval writes requests."""
    if isinstance(arguments, Mapping):  # {'gen_args_0': {'arg_0': context, 'arg_1': continuation}, ...}
        return [str(request["arg_1"]) for request in arguments.values()]
    return [str(request[1]) for request in arguments]


def _first(value: Any) -> Any:
    while isinstance(value, list | tuple):
        value = value[0]
    return value


def asked(job: Job, model: Any, tokenizer: Any) -> dict[str, list[Tree]]:
    """By task, the trees that this package's model class makes of the requests; none is computed."""
    from lm_eval.evaluator import evaluate

    from openbezoar.harness.forest_lm import ForestLM

    lm, seen = ForestLM(model, tokenizer), []

    def instead(trees: Any, done: Any = None, greedy: Any = None) -> Any:
        import torch

        seen.extend(trees)
        greedy.extend([True] * len(tree) for tree in trees)
        return [[torch.zeros(1) for _ in tree] for tree in trees]

    lm.scorer.logprobs = instead  # type: ignore[method-assign]
    found = {}
    for benchmark in open_tasks(job):
        seen.clear()
        with quiet():
            evaluate(lm, {"tasks": dict(benchmark.parts)}, limit=benchmark.limit, bootstrap_iters=0, log_samples=False)
        found[benchmark.name] = list(seen)
    return found


def needed(job: Job) -> dict[str, Any]:
    """The work that is needed: distinct tokens of each task and FLOPs of the linear layers, nothing
    twice and no position unasked.
    """
    model, tokenizer = load_for_inference(replace(open_checkpoint(job.model), dtype="bfloat16"))
    trunk, head = common.linear_parameters(model)
    work = {}
    for name, trees in asked(job, model, tokenizer).items():
        tokens, scored = sum(cost for _, cost in in_order(trees)), sum(path.n_scored for tree in trees for path in tree)
        written_out = sum(len(path.ids) for tree in trees for path in tree)
        work[name] = {
            "tokens": written_out,
            "distinct_tokens": tokens,
            "scored_tokens": scored,
            "flops": 2.0 * (tokens * trunk + scored * head),
        }
    return {"tasks": work, "rate": {arm: common.matmul_rate(dtype) for arm, dtype in ARMS.items()}}


def work(spec: dict[str, Any]) -> dict[str, Any]:
    """One worker's job."""
    job = Job(**spec)
    if job.what == "work":
        return needed(job)
    return {"ours": ours, "hflm": hflm}[job.side](job)


# ------------------------------------------------------------------------- the whole benchmark


def call(job: Job) -> dict[str, Any]:
    """Run one worker."""
    return common.run_worker("benchmarks.score", vars(job))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Both arms; the result's JSON."""
    common.require_peers("lm_eval")
    about = common.machine()
    kept = searches.Kept(options.json.with_name("searches.json"), about)
    base = Job(
        "time",
        "ours",
        str(open_checkpoint(options.model).folder()),
        str(options.data),
        options.n,
        "bfloat16",
        present(options.data),
        {},
    )
    if options.tasks:
        base = replace(
            base, tasks=[name for name in base.tasks if name.split()[0] in options.tasks or name in options.tasks]
        )
    if not base.tasks:
        raise common.BenchmarkError(f"--tasks: none of {options.tasks} is in {options.data}; known: {', '.join(SUITE)}")
    required = call(replace(base, what="work"))
    arms = {}
    for arm, dtype in ARMS.items():
        arms[arm] = _arm(replace(base, dtype=dtype), options, required, arm, kept)
    common.say("score: asking some questions in fp64 too")
    exact = replace(base, side="hflm", n=min(EXACT, base.n), dtype="float64", batch_sizes=dict.fromkeys(base.tasks, 1))
    same = agreement(arms["fp32"]["rounds"]["ours"][0], arms["fp32"]["rounds"]["hflm"][0], call(exact))
    for arm in arms.values():
        arm["same"] = same["same"]
        for measurements in arm["rounds"].values():
            for measurement in measurements:
                for task in measurement["tasks"].values():
                    del task["answers"], task["lengths"]
    return {
        **common.headline("score", arms),
        "peer_name": "lm-eval's HFLM",
        "model": options.model,
        "data": str(options.data.name),
        "n": options.n,
        "rounds": options.rounds,
        "needed": required,
        "check": same,
        "arms": arms,
        "machine": about,
    }


def _arm(
    job: Job, options: argparse.Namespace, required: Mapping[str, Any], arm: str, kept: searches.Kept
) -> dict[str, Any]:
    best, searched = search(job, options, kept)
    rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "hflm": []}
    for number, side in common.alternate(list(rounds), options.rounds):
        rounds[side].append(call(replace(job, side=side, batch_sizes=best if side == "hflm" else {})))
        common.say(f"score {arm}: round {number + 1} {side} {rounds[side][-1]['seconds']:.1f} s")
    made: dict[str, Any] = common.compare(rounds["ours"], rounds["hflm"])
    rate, flops = required["rate"][arm], sum(task["flops"] for task in required["tasks"].values())
    for side in ("ours", "peer"):
        made[side]["matmul_share"] = flops / made[side]["seconds"]["median"] / rate
    tasks = {}
    for name in job.tasks:
        times = {
            side: common.spread([m["tasks"][name]["seconds"] for m in measured]) for side, measured in rounds.items()
        }
        tasks[name] = {
            "questions": len(rounds["ours"][0]["tasks"][name]["answers"]),
            "ours": times["ours"],
            "peer": times["hflm"],
            "ratio": times["hflm"]["median"] / times["ours"]["median"],
            "batch_size": best[name],
        }
    return {**made, "finished": searched["finished"], "tasks": tasks, "search": searched, "rounds": rounds}


def search(job: Job, options: argparse.Namespace, kept: searches.Kept) -> tuple[dict[str, int], dict[str, Any]]:
    """(HFLM's fastest batch size for each task, how it was found): short pilots of the whole suite,
    a batch size each.
    """
    pilot = replace(job, side="hflm", n=min(PILOT, job.n))

    def once(setting: dict[str, Any], limit: float | None) -> dict[str, Any]:
        found = call(replace(pilot, batch_sizes=dict.fromkeys(job.tasks, setting["batch_size"])))
        return {**found, "by_task": {name: task["seconds"] for name, task in found["tasks"].items()}}

    common.say(f"score {job.dtype}: searching HFLM's best of {len(options.micro)} batch sizes")
    files = {name: searches.digest_of(file_of(Path(job.data), name)) for name in job.tasks}
    about = {"benchmark": "score", "model": options.model, "n": pilot.n, "dtype": job.dtype, "tasks": files}
    settings = [{"batch_size": size} for size in options.micro]
    found = searches.search(settings, once, options.minutes / len(ARMS), (kept, about))
    times = {t["setting"]["batch_size"]: t["by_task"] for t in found["tried"] if "by_task" in t}
    best = {name: min(times, key=lambda size: times[size][name]) for name in job.tasks}
    return best, {**found, "by_task": {name: {str(size): times[size][name] for size in times} for name in job.tasks}}


def agreement(
    ours: Mapping[str, Any], peer: Mapping[str, Any], exact: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """In fp32: every choice's log-probability the same to a token's tolerance, and every question's likeliest choice
    the same unless its rivals are within it; differences are listed. exact: answers in fp64 to some of the questions.
    """
    largest, items, differences = 0.0, 0, []
    mine_all: list[float] = []
    theirs_all: list[float] = []
    exact_all: list[float] = []
    lengths_all: list[int] = []
    for name, task in ours["tasks"].items():
        theirs = peer["tasks"][name]["answers"]
        if task["answers"].keys() != theirs.keys():
            differences.append({"task": name, "question": "the two sides answered other questions"})
            continue
        known = exact["tasks"][name]["answers"] if exact else {}
        for question, mine in task["answers"].items():
            lengths = task["lengths"][question]
            compared = list(zip(mine, theirs[question], lengths, strict=True))
            largest, items = max(largest, *(abs(a - b) / n for a, b, n in compared)), items + 1
            if not all(common.close_sums(*one) for one in compared) or turned(mine, theirs[question], lengths):
                differences.append({"task": name, "question": question, "ours": mine, "peer": theirs[question]})
            if question in known:
                mine_all, theirs_all = mine_all + list(mine), theirs_all + list(theirs[question])
                exact_all, lengths_all = exact_all + list(known[question]), lengths_all + list(lengths)
    return {
        "same": not differences and items > 0,
        "questions": items,
        "largest_difference_a_token": largest,
        "differences": differences,
        **({"fp64": common.nearer(mine_all, theirs_all, exact_all, lengths_all)} if exact_all else {}),
    }


def turned(ours: Sequence[float], peer: Sequence[float], lengths: Sequence[int]) -> bool:
    """Whether the sides' likeliest choices differ by more than either's tolerance explains."""
    mine, theirs = ours.index(max(ours)), peer.index(max(peer))
    room = common.TOLERANCE_A_TOKEN * (lengths[mine] + lengths[theirs])
    return mine != theirs and max(ours[mine] - ours[theirs], peer[theirs] - peer[mine]) > room


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("score", __doc__.splitlines()[0], 8, "questions a task")
    made.add_argument(
        "--tasks", nargs="+", help="only these, such as: mmlu 'hellaswag 0' (default: all that the folder has)"
    )
    return made


if __name__ == "__main__":
    sys.exit(common.main(parser(), work, run))
