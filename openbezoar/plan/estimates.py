"""What a step will cost, before anything is spent or downloaded: rows, tokens, money, memory, time.

Rows and lengths come from the data where it is on disk, from the recipe's limits where it
is not. Times come from the rates of steps that ran on this machine; without one, from an
assumed share of a CPU's arithmetic, and are marked so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from openbezoar import prompts
from openbezoar.engine.graph import Graph, Node, scheme_options
from openbezoar.errors import UserError
from openbezoar.harness.tasks import MMLU, find_local, task_file
from openbezoar.machine.devices import Device, this_device
from openbezoar.models.memory import cache_bytes, merge_memory, parameters, process_bytes, step_memory
from openbezoar.plan.rates import learnt_rates, rate_name, ratio_name
from openbezoar.plan.shapes import model_of, shape_of_model
from openbezoar.recipe.blocks import DataRef, DataSpec, LocalModel, Price, ServerModel, Shape, data_specs
from openbezoar.recipe.data_steps import Filter, Generate
from openbezoar.recipe.losses import LOSSES
from openbezoar.recipe.measure_steps import Agreement, Evaluate, Failures, MtBench, TaskSpec
from openbezoar.recipe.schema import verb_of
from openbezoar.recipe.train_steps import Dpo, Merge, Sft
from openbezoar.rows.lengths import CHARACTERS_A_TOKEN, TextLengths, path_tokens, texts_of, trained
from openbezoar.rows.records import JsonLines, Row, read_jsonl
from openbezoar.rows.sources import ROWS, resolve_path, select
from openbezoar.verbs.generate.cost import PASSED, filter_tokens, generate_tokens, rows_made

ASSUMED_FLOPS = 1.0e11  # of a two-core CPU on such work, when nothing was measured yet


@dataclass
class Estimate:
    """Of one step; None where it cannot be known yet."""

    rows: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    money: float | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    assumed: bool = True  # the time is from no measurement
    flops: float | None = None  # of the work on a model in this process


def estimate(graph: Graph, device: Device | None = None) -> dict[str, Estimate]:
    """One estimate a step, in the graph's order; inputs' row counts are carried along. device: this
    machine's if none is given.
    """
    book = _Book(graph, device or this_device())
    for node in graph.nodes.values():
        book.estimates[node.name] = book.of(node)
    return book.estimates


class _Book:
    def __init__(self, graph: Graph, device: Device) -> None:
        self.graph, self.recipe, self.device = graph, graph.recipe, device
        self.folder = graph.recipe_path.parent
        self.estimates: dict[str, Estimate] = {}
        self.rates = learnt_rates()

    def of(self, node: Node) -> Estimate:
        step = node.step
        if isinstance(step, Generate):
            return self._generate(step)
        if isinstance(step, Filter):
            return self._filter(step)
        if isinstance(step, (Sft, Dpo)):
            return self._train(step)
        if isinstance(step, Merge):
            shape = self.shape(step.merge)
            return Estimate(rows=step.drift_rows, memory_bytes=merge_memory(shape, self.device) if shape else None)
        if isinstance(step, Evaluate):
            return self._evaluate(step)
        if isinstance(step, MtBench):
            return self._mt_bench(step)
        if isinstance(step, Failures):
            return self._failures(step)
        if isinstance(step, Agreement):
            return self._agreement(step)
        return Estimate()

    # ---- data

    def texts(self, ref: DataRef, rejected: bool = True) -> Iterator[TextLengths]:
        """Rows by length: each of a file; those of a step that has not run as so many of one
        length. ``rejected``: of a pair's both dialogues.
        """
        for spec in data_specs(ref):
            done = spec.data in self.graph.nodes and self.graph.nodes[spec.data].state == "done"
            if spec.data.startswith("hub:"):
                yield TextLengths(spec.limit or 10_000, (1000.0,))
            elif spec.data in self.graph.nodes and not (done and self.file_of(spec).is_file()):
                rows = max(self.kept(spec.data) - spec.offset, 0)
                yield TextLengths(
                    min(rows, spec.limit or rows), (self.made(spec.data)[1],), self.brings_system(spec.data)
                )
            else:
                yield from (texts_of(row, rejected) for row in self.rows_of(spec))

    def rows_of(self, spec: DataSpec) -> Iterator[Row]:
        """Rows on disk, one at a time."""
        return select(JsonLines(self.file_of(spec)), spec, self.recipe.seed)

    def file_of(self, spec: DataSpec) -> Path:
        """Where a step's rows lie or will lie, or a local file's."""
        return (
            self.graph.run.step(spec.data) / ROWS
            if spec.data in self.graph.nodes
            else resolve_path(spec.data, self.folder, self.recipe.data)
        )

    def rows(self, ref: DataRef) -> tuple[int, float]:
        """(number of rows, mean characters of a row's texts)."""
        total = characters = 0.0
        for some in self.texts(ref):
            total, characters = total + some.rows, characters + some.rows * some.characters
        return round(total), characters / max(1, total)

    def kept(self, name: str) -> float:
        """Rows that a step which has not run will hand on: of a filter those that are whole and pass most rules."""
        step, rows = self.graph.nodes[name].step, self.estimates[name].rows or 0
        return self.whole(step, rows) * PASSED if isinstance(step, Filter) else rows

    def whole(self, step: Filter, rows: float) -> float:
        """Of a filter's rows those whose answers are finished, where it drops the others."""
        names = [spec.data for spec in data_specs(step.filter) if spec.data in self.graph.nodes]
        return rows * fmean(self.made(name)[0] for name in names) if names and step.rules.drop_unfinished else rows

    def made(self, name: str) -> tuple[float, float]:
        """Of a step's rows the share that is finished, and the mean characters of those: as they
        are if it is done, else as estimated.
        """
        step = self.graph.nodes[name].step
        if self.graph.nodes[name].state == "done" and (rows := self.seed_rows(name)):
            whole = [row for row in rows if row.get("finish") != "length"] or rows
            return len(whole) / len(rows), fmean(texts_of(row, False).characters for row in whole)
        if isinstance(step, Generate):
            return rows_made(step, scheme_options(step, "plan"), self.seed_rows(step.seeds or []), self.text(step))
        inner = (
            [spec.data for spec in data_specs(step.filter) if spec.data in self.graph.nodes]
            if isinstance(step, Filter)
            else []
        )
        return 1.0, self.made(inner[0])[1] if inner else 900.0

    def brings_system(self, name: str) -> bool:
        """Whether a step's rows have system messages of their own."""
        step = self.graph.nodes[name].step
        if isinstance(step, Filter):
            inner = [spec.data for spec in data_specs(step.filter) if spec.data in self.graph.nodes]
            return bool(inner) and all(map(self.brings_system, inner))
        return isinstance(step, Generate) and step.generate == "orca"

    # ---- models

    def spec(self, name: str) -> LocalModel | ServerModel | None:
        return model_of(self.graph, name)

    def shape(self, name: str) -> Shape | None:
        return shape_of_model(self.graph, name)

    def system(self, name: str) -> str | None:
        """The system message that a model, or a step's model, is prompted with; None for the project's own."""
        spec = self.spec(name)
        prompt = spec.prompt if isinstance(spec, LocalModel) else None
        return (prompt or self.recipe.prompt).system

    def price(self, name: str | None) -> Price:
        spec = self.spec(name) if name else None
        return spec.price if isinstance(spec, ServerModel) else Price()

    def timed(self, made: Estimate, verb: str, name: str | None, work: float) -> Estimate:
        """The estimate with FLOPs and time for ``work`` tokens (forward passes' worth) on a model in this process."""
        shape = self.shape(name) if name is not None else None
        if shape is not None:
            made.flops = 2 * (parameters(shape)[0] + shape.vocabulary * shape.hidden * 0.5) * work
            made.assumed = rate_name(self.device, verb) not in self.rates
            # of another machine nothing is known
            if self.device.here and not (made.assumed and self.device.kind == "cuda"):
                made.seconds = made.flops / self.rates.get(rate_name(self.device, verb), ASSUMED_FLOPS)
        return made

    # ---- verbs

    def _generate(self, step: Generate) -> Estimate:
        options = scheme_options(step, "plan")
        seeds = self.seed_rows(step.seeds or [])
        tokens_in, tokens_out = generate_tokens(
            step, options, seeds, self.text(step), isinstance(self.spec(step.teacher), LocalModel)
        )
        ratio_in, ratio_out = (self.rates.get(f"{ratio_name(step, self.recipe)}.{side}", 1.0) for side in ("in", "out"))
        return self._asked(
            "generate", step.teacher, step.rows, step.batch, tokens_in * ratio_in, tokens_out * ratio_out
        )

    def _filter(self, step: Filter) -> Estimate:
        rows, mean = self.rows(step.filter)
        if step.judge is None:
            return Estimate(rows)
        template = self.text(step)("judge_filter" if step.mode == "text" else "judge_filter_probability")
        return self._asked(
            "filter", step.judge, rows, step.batch, *filter_tokens(step, self.whole(step, rows), mean, template)
        )

    def _asked(self, verb: str, model: str, rows: int, batch: int, tokens_in: float, tokens_out: float) -> Estimate:
        """Tokens as an estimate with money, memory and time. A model in this process reads faster than it writes."""
        price, shape = self.price(model), self.shape(model)
        money = (tokens_in * price.input + tokens_out * price.output) / 1e6
        made = Estimate(rows, int(tokens_in), int(tokens_out), money or None, self._resident(model))
        if shape is not None and made.memory_bytes is not None and verb == "generate":
            made.memory_bytes += cache_bytes(shape, batch * (tokens_in + tokens_out) / max(1, rows))
        return self.timed(
            made, verb, model, tokens_in / 8 + tokens_out if verb == "generate" else tokens_in + 4 * tokens_out
        )

    def text(self, step: Generate | Filter) -> Callable[[str], str]:
        """The texts that a step sends, by name: the project's, or the recipe's own."""
        own = {name: resolve_path(file, self.folder, self.recipe.data) for name, file in step.prompts.items()}
        return lambda name: prompts.load(name, own)

    def seed_rows(self, ref: DataRef) -> list[Row]:
        """Seeds that are on disk; none of a step that has not run, or of the hub."""
        found: list[Row] = []
        for spec in data_specs(ref):
            if not spec.data.startswith("hub:") and self.file_of(spec).is_file():
                found += self.rows_of(spec)
        return found

    def _train(self, step: Sft | Dpo) -> Estimate:
        texts = self.texts(step.sft, rejected=False) if isinstance(step, Sft) else self.texts(step.dpo)
        rows, length = trained(step, texts, self.system(step.model))
        steps = math.ceil(round(math.ceil(rows / step.batch) * step.epochs, 6))
        tokens = min(rows * step.epochs, (step.max_steps or steps) * step.batch) * length
        # backward with a frozen base costs about one more forward pass for the inputs' gradients;
        # DPO adds the reference's.
        shape = self.shape(step.model)
        made = Estimate(round(rows), int(tokens), 0, None, step_memory(shape, step, self.device) if shape else None)
        return self.timed(
            made,
            verb_of(step),
            step.model,
            tokens * (3 if isinstance(step, Dpo) and LOSSES[step.loss].needs_reference else 2),
        )

    def _evaluate(self, step: Evaluate) -> Estimate:
        questions = sum(self._questions(step, t) for t in step.tasks)
        shots = [
            t.fewshot if isinstance(t, TaskSpec) and t.fewshot is not None else step.fewshot or 0 for t in step.tasks
        ]
        work = sum(n * 60 + 80 for n in shots) / max(1, len(shots))
        tokens = questions * 4 * work * len(step.evaluate)
        for ref in (*step.losses.values(), *step.pairs.values()):
            asked = [(some.rows, sum(path_tokens(some, self.system(step.evaluate[0])))) for some in self.texts(ref)]
            rows = sum(n for n, _ in asked)
            tokens += (
                min(rows, step.loss_rows) / max(1, rows) * sum(n * length for n, length in asked) * len(step.evaluate)
            )
        made = Estimate(questions * len(step.evaluate), int(tokens), 0, None, self._resident(step.evaluate[0]))
        return self.timed(made, "evaluate", step.evaluate[0], tokens)

    def _questions(self, step: Evaluate, task: str | TaskSpec) -> int:
        """Questions of a task: its file's where that is here, 1,000 where it is the hub's."""
        spec = task if isinstance(task, TaskSpec) else TaskSpec(task=task)
        limit = spec.limit or step.limit
        folder = resolve_path(step.data, self.folder, self.recipe.data) if step.data else None
        try:
            file = (
                task_file(
                    spec, find_local(spec.task), folder, lambda name: resolve_path(name, self.folder, self.recipe.data)
                )
                if spec.file or folder
                else None
            )
        except UserError:
            file = None
        if file is None or not file.is_file():
            return min(1000, limit or 1000)
        rows = Counter(str(row.get("subject", "")) for row in read_jsonl(file) if row.get("split", "eval") == "eval")
        if spec.task != "mmlu":
            rows = Counter({"": rows[spec.task.removeprefix(MMLU)] if spec.task.startswith(MMLU) else rows.total()})
        return sum(min(n, limit or n) for n in rows.values())  # the limit is of each subject

    def _mt_bench(self, step: MtBench) -> Estimate:
        questions = max(1, self.rows(step.questions)[0])
        others = self._others(step.answers) if step.answers is not None else 0
        models = len(step.mt_bench) + others
        made, answer = questions * 2 * len(step.mt_bench), step.max_new_tokens * 0.6
        compared = (models - 1 if step.against else math.comb(models, 2)) if step.grading != "single" else 0
        judged = questions * 2 * ((models if step.grading != "pairwise" else 0) + 2 * compared)
        judged_in = questions * 2 * (answer + 400) * ((models if step.grading != "pairwise" else 0) + 4 * compared)
        return self._judged(
            step.judge,
            "mt_bench",
            made,
            step.mode,
            judged,
            judged_in,
            step.judge_max_new_tokens,
            made * 150,
            made * answer,
            *step.mt_bench[:1],
        )

    def _others(self, ref: DataRef) -> int:
        """Models whose published answers stand beside ours; a file may hold answers to questions that are not asked."""
        return len({str(row.get("model_id", row.get("model"))) for row in self.seed_rows(ref)})

    def _agreement(self, step: Agreement) -> Estimate:
        rows, mean = self.rows(step.pairs)
        asked = 2 * rows
        return self._judged(
            step.agreement,
            "agreement",
            rows,
            step.mode,
            asked,
            asked * (mean / CHARACTERS_A_TOKEN + 250),
            step.judge_max_new_tokens,
        )

    def _failures(self, step: Failures) -> Estimate:
        checked = sum(min(step.rows, self.rows(ref)[0]) for ref in (step.harmless, step.grounded) if ref is not None)
        made = (min(step.rows, self.rows(step.instructions)[0]) * (1 + len(step.systems)) + checked) * len(
            step.failures
        )
        asked, answer = checked * len(step.failures), step.max_new_tokens * 0.6
        judge = step.judge or step.failures[0]
        return self._judged(
            judge,
            "failures",
            made,
            step.mode,
            asked,
            asked * (answer + 400),
            step.judge_max_new_tokens,
            made * 150,
            made * answer,
            step.failures[0],
        )

    def _judged(
        self,
        judge: str,
        verb: str,
        rows: int,
        mode: str,
        asked: int,
        judged_in: float,
        most: int,
        answers_in: float = 0,
        answers_out: float = 0,
        answering: str | None = None,
    ) -> Estimate:
        """What ``asked`` questions to a judge cost, beside the answers that they are about."""
        judged_out = asked * most * 0.5 if mode == "text" else 0.0
        price = self.price(judge)
        money = (judged_in * price.input + judged_out * price.output) / 1e6
        timed = answering or judge  # of contestants the first stands for all
        made = Estimate(
            rows, int(answers_in + judged_in), int(answers_out + judged_out), money or None, self._resident(timed)
        )
        return self.timed(made, verb, timed, answers_out + judged_in)

    def _resident(self, name: str) -> int | None:
        """Bytes of a model that only answers."""
        shape, spec = self.shape(name), self.spec(name)
        width = 4 if isinstance(spec, LocalModel) and spec.dtype == "float32" else 2
        return process_bytes(self.device) + width * sum(parameters(shape)) if shape else None


def safe_estimate(graph: Graph, device: Device | None = None) -> dict[str, Estimate]:
    """``estimate``, with an empty one for each step if the data cannot be read."""
    try:
        return estimate(graph, device)
    except (UserError, OSError):
        return {name: Estimate() for name in graph.nodes}
