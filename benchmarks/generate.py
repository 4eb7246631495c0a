"""Local generation: this package against transformers' ``generate``, one prompt at a time and as
one padded batch, ``transformers serve``, and vLLM and llama.cpp as a recipe's engines, where they are installed.

Reads a model and a file of instructions, of which LaMini prompts of three examples each are
made. Every side draws the same number of new tokens (none may end earlier) with the same
temperature and top-p, and is timed without loading. Prompts are the same token ids; the
servers are given the same over HTTP, all at once; each engine in its fastest setting (``benchmarks/engines.py``).
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import common, engines, searches
from openbezoar import prompts as texts
from openbezoar.cli import process
from openbezoar.errors import DataError
from openbezoar.llm import Sampling
from openbezoar.models.load import DTYPES, device, load_tokenizer
from openbezoar.models.references import open_checkpoint
from openbezoar.rows.instructions import instruction_text
from openbezoar.rows.records import Turn, read_jsonl

SIDES = ("ours", "batch", "single", "serve", *engines.ENGINE_SIDES)
EXAMPLES = 3
LONGEST = 160  # characters of an instruction that serves as an example
TEMPERATURE, TOP_P = 0.8, 0.95
CHECK_PROMPTS, CHECK_TOKENS = 6, 24
PILOT_TOKENS = 32  # of each answer while an engine's best setting is searched
PARTS = 4  # batches that the prompts are cut into, to see which answers another batch size changes


@dataclass(frozen=True)
class Job:
    """What one worker is to do. what: 'time'; 'check', which is greedy and answers with token ids;
    or 'batches', which asks ours at two batch sizes. setting: an engine's.
    """

    what: str
    side: str
    model: str
    data: str
    n: int
    tokens: int
    dtype: str
    setting: dict[str, Any] = field(default_factory=dict)


def conversations(job: Job) -> list[list[Turn]]:
    """LaMini prompts from the file's short instructions. Raises DataError if there are too few."""
    shown = []
    for row in read_jsonl(Path(job.data)):
        if (
            not row.get("context")
            and isinstance(row.get("instruction"), str)
            and len(text := instruction_text(row)) <= LONGEST
        ):
            shown.append(text)
    if len(shown) < EXAMPLES:
        raise DataError(
            f"{job.data}: {len(shown)} instructions of at most {LONGEST} characters without context, expected at least"
            f" {EXAMPLES}"
        )
    template, made = texts.load("lamini_examples", {}), []
    for number in range(job.n):
        examples = "\n".join(f"<example>{text}</example>" for text in random.Random(number).sample(shown, EXAMPLES))
        made.append([Turn("user", texts.fill(template, shown=str(EXAMPLES), wanted="20", examples=examples))])
    return made


# ----------------------------------------------------------------------------------- sides


def ours(job: Job) -> dict[str, Any]:
    """The package's local model, all prompts in one call."""
    from openbezoar.llm.local import LocalLLM

    process.own()
    llm = LocalLLM(replace(open_checkpoint(job.model), dtype=job.dtype))  # type: ignore[arg-type]
    ids = [llm.formatter.prompt_ids(conversation) for conversation in conversations(job)]
    greedy = job.what == "check"
    sampling = Sampling(job.tokens, 0.0 if greedy else TEMPERATURE, 1.0 if greedy else TOP_P, min_new_tokens=job.tokens)
    llm.sample(ids[:1], replace(sampling, max_new_tokens=2, min_new_tokens=2), [0])
    with common.Stopwatch() as watch:
        rows = llm.sample(ids, sampling, list(range(len(ids))))
    return measured(watch.seconds, [len(row.ids) for row in rows], ids, [row.ids for row in rows] if greedy else None)


def batches(job: Job) -> dict[str, Any]:
    """How many answers of ours differ between one batch of all prompts and ``PARTS`` smaller ones,
    sampled and greedy, seeds unchanged.
    """
    from openbezoar.llm.local import LocalLLM

    process.own()
    llm = LocalLLM(replace(open_checkpoint(job.model), dtype=job.dtype))  # type: ignore[arg-type]
    ids = [llm.formatter.prompt_ids(conversation) for conversation in conversations(job)]
    size = -(-len(ids) // PARTS)
    found: dict[str, Any] = {"sizes": [len(ids), size], "rows": len(ids), "tokens": job.tokens, "dtype": job.dtype}
    for name, sampling in (
        ("sampled", Sampling(job.tokens, TEMPERATURE, TOP_P)),
        ("greedy", Sampling(job.tokens, 0.0, 1.0)),
    ):
        whole = llm.sample(ids, sampling, list(range(len(ids))))
        cut = [
            row
            for at in range(0, len(ids), size)
            for row in llm.sample(ids[at : at + size], sampling, list(range(len(ids)))[at : at + size])
        ]
        found[name] = sum(a.ids != b.ids for a, b in zip(whole, cut, strict=True))
    return found


def generate(job: Job) -> dict[str, Any]:
    """transformers' ``generate``: side 'single' one prompt at a time, side 'batch' all prompts padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM

    from openbezoar.dialogue.prompt import Formatter

    checkpoint = open_checkpoint(job.model)
    tokenizer = load_tokenizer(checkpoint.folder())
    model: Any = (
        AutoModelForCausalLM.from_pretrained(
            str(checkpoint.folder()), dtype=DTYPES[job.dtype], attn_implementation="sdpa"
        )
        .to(device())
        .eval()
    )
    formatter = Formatter(tokenizer, checkpoint.prompt)
    ids = [list(formatter.prompt_ids(conversation)) for conversation in conversations(job)]
    # top_k 0: transformers would otherwise keep the 50 likeliest only.
    drawn = (
        {"do_sample": False}
        if job.what == "check"
        else {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0}
    )
    ends = list(formatter.stop_ids())
    made: list[list[int]] = []

    def run(part: Sequence[list[int]], tokens: int) -> None:
        width = max(map(len, part))
        padded = torch.tensor([[tokenizer.pad_token_id] * (width - len(x)) + x for x in part], device=device())
        mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in part], device=device())
        torch.manual_seed(0)
        with torch.no_grad():
            out = model.generate(
                input_ids=padded,
                attention_mask=mask,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
                **drawn,
            )
        made.extend(out[:, width:].tolist())

    run(ids[:1], 2)
    made.clear()
    with common.Stopwatch() as watch:
        for part in [ids] if job.side == "batch" else [[one] for one in ids]:
            run(part, job.tokens)
    return measured(watch.seconds, [len(x) for x in made], ids, made if job.what == "check" else None)


def serve(job: Job) -> dict[str, Any]:
    """``transformers serve`` in a process of its own, all conversations sent at once; its memory is the server's."""
    folder = open_checkpoint(job.model).folder()
    asked = [[turn.as_dict() for turn in conversation] for conversation in conversations(job)]
    settings = json.dumps({"min_new_tokens": job.tokens, "do_sample": True, "top_k": 0})
    with serving(folder, job.dtype) as (url, process):

        def one(messages: list[dict[str, str]], tokens: int = job.tokens) -> int:
            body = {
                "model": str(folder),
                "messages": messages,
                "max_tokens": tokens,
                "temperature": TEMPERATURE,
                "top_p": TOP_P,
                "stream": False,
                "generation_config": settings,
            }
            request = urllib.request.Request(
                f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=3600) as reply:
                return int(json.load(reply)["usage"]["completion_tokens"])

        one(asked[0])
        with ThreadPoolExecutor(len(asked)) as pool, common.Stopwatch() as watch:
            tokens = list(pool.map(one, asked))
        peak = common.resident_peak(process.pid)
    return {**measured(watch.seconds, tokens, [], None), "peak_memory": peak}


def engine(job: Job) -> dict[str, Any]:
    """vLLM or llama.cpp as a managed engine; its memory is its processes', ``made`` its texts."""
    greedy = job.what == "check"
    sampling = Sampling(job.tokens, 0.0 if greedy else TEMPERATURE, 1.0 if greedy else TOP_P, min_new_tokens=job.tokens)
    found = engines.ask(job.side, job.model, job.setting, conversations(job), sampling)
    made = measured(found["seconds"], found["tokens"], found["ids"], found["texts"] if greedy else None)
    return {**made, "peak_memory": found["peak_memory"], "version": found["version"]}


@contextmanager
def serving(folder: Path, dtype: str) -> Iterator[tuple[str, Any]]:
    """(base URL, process) of a server on a free port of the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        str(device()),
        "--dtype",
        dtype,
    ]
    code = "from transformers.cli.transformers import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                raise common.BenchmarkError(
                    f"transformers serve ended with code {process.returncode} before it answered"
                )
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield url, process
    finally:
        process.kill()
        process.wait()


def measured(
    seconds: float, tokens: Sequence[int], ids: Sequence[Sequence[int]], made: Sequence[Any] | None
) -> dict[str, Any]:
    """What a worker answers."""
    return {
        "seconds": seconds,
        "peak_memory": common.peak_memory(),
        "tokens": sum(tokens),
        "tokens_per_second": sum(tokens) / seconds,
        "prompt_tokens": sum(map(len, ids)) / max(1, len(ids)),
        "made": made,
    }


def work(spec: dict[str, Any]) -> dict[str, Any]:
    """One worker's job."""
    job = Job(**spec)
    if job.what == "batches":
        return batches(job)
    sides = {"ours": ours, "batch": generate, "single": generate, "serve": serve}
    return sides.get(job.side, engine)(job)


# ------------------------------------------------------------------------- the whole benchmark


def call(job: Job) -> dict[str, Any]:
    """Run one worker."""
    return common.run_worker("benchmarks.generate", vars(job))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The result's JSON. A side's rate is its tokens per second, so that fewer prompts for the slow
    ones compare fairly.
    """
    about = common.machine()
    base = Job(
        "time",
        "ours",
        str(open_checkpoint(options.model).folder()),
        str(options.data),
        options.n,
        options.tokens,
        "bfloat16",
    )
    check = replace(base, what="check", n=min(CHECK_PROMPTS, options.n), tokens=CHECK_TOKENS, dtype="float32")
    common.say("generate: checking that greedy answers are the same in fp32")
    ours_ids, their_ids = (call(replace(check, side=side))["made"] for side in ("ours", "single"))
    common.say(f"generate: looking which answers change in batches of a {PARTS}th")
    changed = call(replace(base, what="batches"))
    here = engines.installed()
    for side in here:
        common.say(f"generate: {side}'s greedy answers in fp32")
    equal = {side: equal_texts(base.model, ours_ids, call(in_fp32(check, side))["made"]) for side in here}
    kept = searches.Kept(options.json.with_name("searches.json"), about)
    found = {side: fastest(replace(base, side=side), options, len(here), kept) for side in here}
    web = all(find_spec(name) for name in ("fastapi", "uvicorn"))
    sides = [side for side in SIDES if (web if side == "serve" else side in here or side not in engines.ENGINE_SIDES)]
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number, side in common.alternate(sides, options.rounds):
        if side == "serve" and number:
            continue
        job = replace(base, side=side, n=min(options.n, options.single) if side == "single" else options.n)
        rounds[side].append(call(replace(job, setting=found[side]["best"]) if side in found else job))
        common.say(f"generate: round {number + 1} {side} {rounds[side][-1]['tokens_per_second']:.0f} tokens/s")
    rates = {side: common.spread([m["tokens_per_second"] for m in done]) for side, done in rounds.items()}
    shares = [m["foreign_share"] for done in rounds.values() for m in done if m.get("foreign_share") is not None]
    seconds = {side: options.n * options.tokens / rates[side]["median"] for side in rates}
    return {
        "benchmark": "generate",
        "ours": seconds["ours"],
        "peer": seconds["batch"],
        "ratio": seconds["batch"] / seconds["ours"],
        **{f"ratio_{side}": seconds[side] / seconds["ours"] for side in sides if side != "ours"},
        "memory_ratio": rounds["ours"][0]["peak_memory"] / rounds["batch"][0]["peak_memory"],
        "same": ours_ids == their_ids,
        "same_by_engine": equal,
        "search": found,
        "finished": all(searches.finished(one) for one in found.values()),
        "foreign_share": max(shares, default=None),
        "changed_by_batch_size": changed,
        "tokens_per_second": rates,
        "not_measured": [side for side in SIDES if side not in sides],
        "prompt_tokens": rounds["ours"][0]["prompt_tokens"],
        "model": options.model,
        "data": str(options.data.name),
        "n": options.n,
        "n_single": min(options.n, options.single),
        "new_tokens": options.tokens,
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
        "rounds": rounds,
        "machine": about,
    }


def in_fp32(check: Job, side: str) -> Job:
    """The check by an engine, as a recipe starts it."""
    return replace(check, side=side, setting=engines.settings_of(side, check.n, check.dtype)[0])


def equal_texts(model: str, ours: Sequence[list[int]], theirs: Sequence[str]) -> dict[str, int]:
    """How many greedy answers of an engine read as ours."""
    tokenizer = load_tokenizer(open_checkpoint(model).folder())
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in ours]
    return {"of": len(texts), "equal": sum(a == b.strip() for a, b in zip(texts, theirs, strict=True))}


def fastest(job: Job, options: argparse.Namespace, sides: int, kept: searches.Kept) -> dict[str, Any]:
    """An engine's fastest setting, by short answers to all prompts; ``sides`` engines share the time for it."""
    pilot = replace(job, tokens=min(PILOT_TOKENS, job.tokens))
    settings = engines.settings_of(job.side, job.n, job.dtype)
    common.say(f"generate: searching {job.side}'s best of {len(settings)} settings")
    about = {"benchmark": "generate", "side": job.side, "model": options.model, "n": job.n, "tokens": pilot.tokens}
    about |= {"data": searches.digest_of(options.data), "program": engines.program_of(job.side)}

    def once(setting: dict[str, Any], limit: float | None) -> dict[str, Any]:
        return call(replace(pilot, setting=setting))

    return searches.search(settings, once, options.minutes / sides, (kept, about))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = common.parser("generate", __doc__.splitlines()[0], 64, "prompts")
    made.add_argument("--tokens", type=int, default=128, help="new tokens of each answer (default 128)")
    made.add_argument(
        "--single",
        type=int,
        default=12,
        help="prompts of the one-at-a-time side, whose rate does not depend on their number (default 12)",
    )
    return made


if __name__ == "__main__":
    sys.exit(common.main(parser(), work, run))
