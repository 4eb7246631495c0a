"""docs/benchmarks.md from the benchmarks' JSON: ``python -m benchmarks.page --results FOLDER --out FILE``.

Reads sft.json, dpo.json, score.json, generate.json, data.json, data_pairs.json, data_messages.json
and full_size.json, whichever are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.searches import finished

Result = Mapping[str, Any]
GIB = 2**30

HEAD = """# Benchmarks

Written by `python -m benchmarks.page` from the JSON files in `{results}`; `make bench` measures
and writes both again.

Both sides get the same token ids, the same adapter (r=16 on q, k, v), the same rows in each
optimiser step and the same precision. Each measurement is a process of its own; the sides take
turns within one run; times are medians (least to greatest) without loading, memory is the
high-water mark of the whole process (of the GPU's allocations where there is one). The peer runs
with the settings that were fastest in a search on the same machine, over its micro-batches, its ways
of packing, its precisions and threads; a ratio is given only where that search came to its end and no
other work took more than a twentieth of the cores. "Same result" means that in fp32, dropout off,
both sides' loss and gradient norm of the first step agree to 1e-3, and the log-probability of every
answer to 5e-5 a token. The share of the matmul rate, which needs no peer, is the yardstick: it counts
only the work that is needed (no token twice, no padding, the vocabulary head at scored positions only)
over what this machine reaches in a square matrix product. What a process does once (our self-check,
the kernels' set-up, a trainer's) is over before the clock starts, on every side. torch.compile was not
tried, for either side.
"""

NO_GPU = """\
Nothing was timed on a GPU. What runs there only (FlexAttention, float16 with loss scaling, NF4 on CUDA) has
tests, which skip without one. `python -m benchmarks.gpu --minutes 9 --json OUT` finds out in the first minutes
on one: what is right there and how fast it is, a part after another, each part's line as it ends. With
`--device cpu --tiny` the same parts run on very small models, to test the program.
"""


def page(results: Mapping[str, Result], folder: str) -> str:
    """The page's text. results: by file name without its ending."""
    parts = [HEAD.format(results=folder)]
    if not results:
        parts.append("Nothing has been measured yet.\n")
    described = {name: r["machine"] for name, r in results.items() if isinstance(r.get("machine"), Mapping)}
    parts += [f"Machine of {', '.join(names)}: {text}.\n" for text, names in _machines(described).items()]
    if all(machine["device"] == "cpu" for machine in described.values()):
        parts.append(NO_GPU)
    for name, title in (("sft", "Supervised fine-tuning"), ("dpo", "Direct preference optimisation")):
        if name in results:
            parts.append(f"## {title}\n\n{_training(results[name])}")
    if "score" in results:
        parts.append(f"## Scoring benchmarks\n\n{_score(results['score'])}")
    if "generate" in results:
        parts.append(f"## Local generation\n\n{_generate(results['generate'])}")
    sizes = [results[name] for name in ("data", "data_pairs", "data_messages") if name in results]
    if sizes:
        parts.append(f"## Rows into batches\n\n{_data(sizes)}")
    if "full_size" in results:
        parts.append(f"## The paper's size on this CPU\n\n{_full_size(results['full_size'])}")
    return "\n".join(parts)


def _machines(described: Mapping[str, Result]) -> dict[str, list[str]]:
    """Machines in words, each with the benchmarks that ran on it and the load before them."""
    found: dict[str, list[str]] = {}
    for name, about in described.items():
        versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items() if version)
        device = "" if about["device"] == "cpu" else f", {about['device']}"
        text = f"{about['processor']}{device}, {about['threads']} threads of {about['cores']} cores; {versions}"
        found.setdefault(text, []).append(f"`{name}` (load {about['load_before']} before it)")
    return found


def _training(result: Result) -> str:
    unit = result["unit"]
    lines = []
    for arm, found in result["arms"].items():
        sides = [
            ("OpenBezoar", found["ours"], "", 1.0),
            (result["peer_name"], found["peer"], _setting(found["search"]["trl"]), found["ratio"]),
            (
                result["second_peer_name"],
                found["second_peer"],
                _setting(found["search"]["plain"]),
                found["second_ratio"],
            ),
        ]
        for name, side, setting, ratio in sides:
            lines.append(
                [
                    arm,
                    name,
                    setting,
                    f"{100 * side['matmul_share']:.0f} %",
                    _seconds(side["seconds"]),
                    _cpu(side),
                    f"{side[f'{unit}_per_second']:.2f}",
                    _ratio(ratio, found),
                    f"{peak(side):.1f}",
                ]
            )
    head = [
        "base",
        "tool",
        "its best setting",
        "of the matmul rate",
        "seconds",
        "CPU-seconds",
        f"{unit}/s",
        "our speed over it",
        "peak GiB",
    ]
    text = (
        f"{result['rows']} {unit} of `{result['data']}` ({result['tokens']:,} tokens written out,"
        f" {result['distinct_tokens']:,} distinct), model `{result['model']}`, {result['batch']} {unit} an optimiser"
        f" step, {result['rounds']} rounds.\n\n{_table(head, lines)}\n\n{_verdict(result)}"
    )
    return text + "".join(f"\n{line}" for arm, found in result["arms"].items() for line in _notes(arm, found)) + "\n"


def _setting(found: Result) -> str:
    return _words(found["best"])


def _words(setting: Result) -> str:
    return ", ".join(
        str(v) if isinstance(v, str) else k if v is True else f"{k} {v}" for k, v in setting.items() if v is not False
    )


def _ratio(ratio: float, found: Result) -> str:
    """A ratio of times, where the arm's searches are finished and nothing ran beside it."""
    return "—" if _doubts(found) else f"{ratio:.1f}"


def _doubts(found: Result) -> str:
    """Of a result, or of an arm, whose searches older results tell of by what they list as untried."""
    searched = found.get("search", {})
    ended = all(finished(one) for one in (searched.values() if "best" not in searched else [searched]))
    return common.doubts_of({"finished": found.get("finished", ended), "foreign_share": found.get("foreign_share")})


def _cpu(side: Result) -> str:
    """CPU-seconds of all threads; older results lack them."""
    return f"{side['cpu_seconds']['median']:.0f}" if "cpu_seconds" in side else "—"


def _notes(arm: str, found: Result) -> list[str]:
    notes = []
    if found.get("foreign_share") is None:
        notes.append(
            f"- {arm}: measured before other work was sampled, and with what a process does once inside the clock."
        )
    for side, check in found["checks"].items():
        if exact := check.get("logprobs", {}).get("fp64"):
            notes.append(f"- {arm}: ours and {side}. {_exact(exact)}")
        if not check["same"]:
            notes.append(
                f"- {arm}: {side} did not compute the same and was left out:"
                f" {json.dumps({k: v for k, v in check.items() if k != 'same'})}"
            )
    for side, search in found["search"].items():
        if search["untried"]:
            tried, untried = (
                "; ".join(_words(s) for s in some)
                for some in ([t["setting"] for t in search["tried"]], search["untried"])
            )
            notes.append(
                f"- {arm}: of {side} only these settings were tried in the time given: {tried}. Not tried: {untried}."
            )
        notes += [
            f"- {arm}: {side} failed with {json.dumps(t['setting'])}: {t['error'][:200]}"
            for t in search["tried"]
            if t.get("error")
        ]
    return notes


def _score(result: Result) -> str:
    parts = [
        f"{result['n']} questions a task (MMLU: whole subjects) of `{result['data']}`, model `{result['model']}`,"
        f" {result['rounds']} rounds."
    ]
    for arm, found in result["arms"].items():
        lines = [
            [
                name,
                str(t["questions"]),
                _seconds(t["ours"]),
                _seconds(t["peer"]),
                str(t["batch_size"]),
                _ratio(t["ratio"], found),
            ]
            for name, t in found["tasks"].items()
        ]
        questions = sum(t["questions"] for t in found["tasks"].values())
        whole = [_seconds(found[side]["seconds"]) for side in ("ours", "peer")]
        lines.append(["**all**", str(questions), *whole, "", f"**{_ratio(found['ratio'], found)}**"])
        head = [
            "task, examples",
            "questions",
            "OpenBezoar, s",
            f"{result['peer_name']}, s",
            "its batch size",
            "our speed over it",
        ]
        ours, peer = (found[side] for side in ("ours", "peer"))
        memory = (
            f"Peak memory {peak(ours):.1f} GiB against {peak(peer):.1f} GiB; "
            f"{100 * ours['matmul_share']:.0f} % and {100 * peer['matmul_share']:.0f} % of the matmul rate."
        )
        parts.append(f"### {arm}\n\n{_table(head, lines)}\n\n{memory}")
    check = result["check"]
    if "largest_difference_a_token" in check:
        largest = f"{check['largest_difference_a_token']:.1e} nats a token"
    else:  # of results before the tolerance was a token's
        largest = f"{check['largest_difference']:.1e}"
    parts.append(
        f"Check in fp32: {check['questions']} questions, largest difference {largest},"
        f" {len(check['differences'])} differ." + (f" {_exact(check['fp64'])}" if "fp64" in check else "")
    )
    return "\n\n".join([*parts, _verdict(result)]) + "\n"


def _exact(found: Result) -> str:
    """How far both sides are from fp64."""
    return (
        f"From the same {found['items']} numbers in fp64 ours are {found['ours']:.1e} nats a token away (root mean"
        f" square), the peer's {found['peer']:.1e}."
    )


SIDES = {
    "ours": "OpenBezoar",
    "batch": "transformers, one padded batch",
    "single": "transformers, one at a time",
    "serve": "transformers serve, all at once over HTTP",
    "vllm": "vLLM",
    "llama.cpp": "llama.cpp",
}


def _generate(result: Result) -> str:
    lines = []
    for side, rate in result["tokens_per_second"].items():
        ratio = 1.0 if side == "ours" else result[f"ratio_{side}"]
        done = result["rounds"][side]
        held = [m["peak_memory"] for m in done if m["peak_memory"] is not None]
        lines.append(
            [
                SIDES[side] + (_engine(result, side) if side in result.get("search", {}) else ""),
                f"{rate['median']:.0f} ({rate['min']:.0f} to {rate['max']:.0f})",
                _ratio(ratio, result),
                f"{max(held) / GIB:.1f}" if held else "",
            ]
        )
    engines = "".join(
        f" {SIDES[side]}: {same['equal']} of {same['of']} answers equal ours."
        for side, same in result.get("same_by_engine", {}).items()
    )
    doubts = f"No ratio is given: {doubts}.\n" if (doubts := _doubts(result)) else ""
    same = "yes" if result["same"] else "**no**"
    return (
        f"{result['n']} LaMini prompts of {result['prompt_tokens']:.0f} tokens on average ({result['n_single']} one at"
        f" a time), {result['new_tokens']} new tokens each, temperature {result['temperature']}, top-p"
        f" {result['top_p']}, bf16, model"
        f" `{result['model']}`.\n\n{_table(['tool', 'new tokens/s', 'our speed over it', 'peak GiB'], lines)}\n\nGreedy"
        f" answers in fp32 equal `generate`'s token for token: {same}.{engines}\n{doubts}"
        f"{_batch_sizes(result['changed_by_batch_size'])}"
    )


def _engine(result: Result, side: str) -> str:
    """An engine's version and fastest setting."""
    version = next((m["version"] for m in result["rounds"][side] if m.get("version")), None)
    best = result["search"][side]["best"]
    return f"{f' {version}' if version else ''} ({' '.join([best['dtype'], *best['args']])})"


def _batch_sizes(found: Result) -> str:
    whole, part = found["sizes"]
    return (
        f"In {found['dtype']}, of {found['rows']} answers of at most {found['tokens']} tokens, batches of {part}"
        f" instead of {whole} change {found['sampled']} sampled ones and {found['greedy']} greedy ones; in fp32 a test"
        " holds that none changes. A recipe's batches are fixed by row number, so a rerun gives the same rows either"
        " way.\n"
    )


def _data(results: Sequence[Result]) -> str:
    lines = []
    for result in results:
        for size in result["sizes"]:
            memory = [f"{size['memory'][name] / 1e6:.0f}" for name in ("peak_of_this_process", "peak")]
            lines.append(
                [
                    f"`{result['data']}`{', as conversations in Parquet' if result.get('messages') else ''}",
                    f"{size['rows']:,}",
                    f"{size['rows_per_second']:,.0f}",
                    f"{1e3 * size['seconds_per_row']:.2f}",
                    *memory,
                ]
            )
    remarks = sorted({result["remark"] for result in results if "remark" in result})
    head = ["rows of", "rows", "rows/s", "ms a row", "peak MB of the process that trains", "with its helpers"]
    return (
        "Reading, rendering, tokenising and packing, as `sft` and `dpo` do it, on all cores. The files' rows are"
        " repeated with a number put into each prompt, so that all differ. Memory is anonymous memory, torch and"
        " transformers included.\n\n" + "".join(f"{remark}\n\n" for remark in remarks) + _table(head, lines) + "\n"
    )


def _full_size(result: Result) -> str:
    lines = []
    for name, stage in result["stages"].items():
        planned = f"{stage['planned'] / 1e9:.2f} ({stage['planned_over_peak']:.2f})" if "planned" in stage else ""
        limit = f"{stage['limit'] / 1e9:.0f}" if "limit" in stage else ""
        step = f"{stage['seconds_an_optimiser_step']:.0f}" if "seconds_an_optimiser_step" in stage else ""
        tokens = f"{stage['tokens_an_optimiser_step']:,}" if "tokens_an_optimiser_step" in stage else ""
        lines.append([name, f"{stage['seconds']:.0f}", step, tokens, f"{stage['peak'] / 1e9:.2f}", limit, planned])
    shape = result["shape"]
    head = [
        "stage",
        "seconds",
        "of them an optimiser step",
        "tokens of such a step",
        "peak GB",
        "limit GB",
        "`plan` said GB (over the peak)",
    ]
    return (
        f"A checkpoint of {shape['layers']} layers, hidden size {shape['hidden']:,}, vocabulary"
        f" {shape['vocabulary']:,}, with random weights: 3,426,473,600 parameters at 26 layers, OpenLLaMA 3B v2's. The"
        f" base in NF4, LoRA r=16 on q, k, v; dpo: steps of 8 pairs of `{result['pairs']}`. Peaks are the kernel's"
        f" high-water mark of a process of its own, loading included.\n\n{_table(head, lines)}\n"
    )


def peak(side: Result) -> float:
    """Median peak in GiB."""
    return float(side["peak_memory"]["median"]) / GIB


def _verdict(result: Result) -> str:
    same = (
        "Same result: yes."
        if result["same"]
        else "**Same result: no**; the ratios mean nothing until that is explained."
    )
    doubts = "; ".join(dict.fromkeys(filter(None, map(_doubts, [result, *result["arms"].values()]))))
    speed = f"no ratio is given: {doubts}" if doubts else f"{result['ratio']:.1f} times as fast"
    return f"Worse of the two ({result['worst_arm']}): {speed}, {result['memory_ratio']:.2f} of the peak memory. {same}"


def _seconds(found: Result) -> str:
    return f"{found['median']:.1f} ({found['min']:.1f} to {found['max']:.1f})"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines])


def main() -> int:
    """Write the page."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__.splitlines()[0])
    arguments.add_argument("--results", type=Path, default=Path("docs/benchmarks"))
    arguments.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"))
    options = arguments.parse_args()
    results = {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(options.results.glob("*.json"))
    }
    options.out.write_text(page(results, options.results.as_posix()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
