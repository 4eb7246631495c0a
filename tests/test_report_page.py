"""The report and the comparison in a real headless Chromium, opened from a file with no network."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, console_errors
from synthetic_run import EVIL, HOSTILE_NAME, make_run

from openbezoar.verbs.report.compare_page import write_comparison
from openbezoar.verbs.report.page import write_report


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of the two pages of one run with hostile texts."""
    folder = tmp_path_factory.mktemp("runs")
    run, other = make_run(folder / "demo"), make_run(folder / "other", 0.3)
    write_report(run, run.step("report"))
    return {
        "report": (run.step("report") / "report.html").as_uri(),
        "comparison": write_comparison(run, other, folder / "out").as_uri(),
    }


@pytest.fixture(scope="module")
def desktop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("light")) as page:
        yield page


@pytest.fixture(scope="module")
def dark_phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("dark"), width=390, height=844, dark=True) as page:
        yield page


WHICH = pytest.mark.parametrize("which", ["report", "comparison"])
OVERFLOWS = """
const scrolls = (e) => e && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
return [...document.querySelectorAll("main *")]
  .filter((e) => e.checkVisibility() && !e.closest("svg *"))
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement))
  .map((e) => e.outerHTML.slice(0, 120));
"""
CONTRAST = r"""
const channels = (c) => c.match(/[\d.]+/g).map(Number);
const light = (c) => channels(c).slice(0, 3).map((v) => v / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => {
  const c = getComputedStyle(e).backgroundColor;
  return (channels(c)[3] ?? 1) === 0 && e.parentElement ? behind(e.parentElement) : c;
};
const found = {};
for (const e of document.querySelectorAll("p, li, b, a, td, th, h1, h2, h3, summary, pre, label, output")) {
  const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
  found[e.tagName + "." + e.className] = (a + 0.05) / (b + 0.05);
}
return found;
"""


@WHICH
def test_a_page_opens_from_a_file_without_a_console_error_or_a_request(
    desktop: Any, reports: dict[str, str], which: str
) -> None:
    desktop.get(reports[which])
    assert console_errors(desktop) == []
    assert desktop.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert desktop.title and desktop.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_the_policy_refuses_a_script_that_is_not_the_pages_own(desktop: Any, reports: dict[str, str]) -> None:
    desktop.get(reports["report"])
    run = (
        "const s = document.createElement('script'); s.textContent = 'window.planted = 1'; document.body.append(s);"
        " return window.planted ?? null"
    )
    assert desktop.execute_script(run) is None
    assert any("Content Security Policy" in message for message in console_errors(desktop))


@WHICH
def test_hostile_markup_shows_as_text_wherever_it_stands(desktop: Any, reports: dict[str, str], which: str) -> None:
    desktop.get(reports[which])
    desktop.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    shown = desktop.execute_script("return document.body.innerText")
    assert HOSTILE_NAME in shown
    assert desktop.execute_script("return document.querySelectorAll('img, main script').length") == 0
    if which == "report":
        assert shown.count("<script>alert('x')</script>") >= 5, (
            "in answers, questions, examples by rule and a step's summary"
        )
        assert "\\x1b[2J" in shown and "\\u202e" in shown, "control and direction characters are shown as escapes"
    with pytest.raises(Exception, match="no such alert"):
        _ = desktop.switch_to.alert.text


def test_search_narrows_the_answers_and_gives_them_back(desktop: Any, reports: dict[str, str]) -> None:
    desktop.get(reports["report"])
    box = desktop.find_element("css selector", ".search input")
    folds = desktop.find_elements("css selector", ".searchable > details")
    assert len(folds) == 2 and all(fold.is_displayed() for fold in folds)
    box.send_keys("SECOND question")
    assert [fold.is_displayed() for fold in folds] == [False, True] and folds[1].get_attribute("open")
    assert desktop.find_element("css selector", ".search output").text == "1 of 2 questions and answers"
    box.clear()
    box.send_keys("nowhere to be found")
    assert not any(fold.is_displayed() for fold in folds)
    desktop.execute_script(
        "const i = document.querySelector('.search input'); i.value = ''; i.dispatchEvent(new Event('input'))"
    )
    assert all(fold.is_displayed() for fold in folds) and not folds[1].get_attribute("open")


def test_everything_that_opens_or_scrolls_is_reached_by_the_keyboard(desktop: Any, reports: dict[str, str]) -> None:
    desktop.get(reports["report"])
    unreachable = """return [...document.querySelectorAll('summary, a, input, .wide, .chart figure')]
    .filter((e) => e.checkVisibility() && e.tabIndex < 0).length"""
    assert desktop.execute_script(unreachable) == 0
    unnamed = "return [...document.querySelectorAll('svg, .wide')].filter((e) => !e.getAttribute('aria-label')).length"
    assert desktop.execute_script(unnamed) == 0
    summary = desktop.find_element("css selector", "details > summary")
    summary.send_keys(" ")
    assert desktop.find_element("css selector", "details").get_attribute("open")


@WHICH
def test_a_phone_shows_the_page_without_scrolling_sideways(
    dark_phone: Any, reports: dict[str, str], which: str
) -> None:
    dark_phone.get(reports[which])
    dark_phone.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert dark_phone.execute_script("return document.documentElement.scrollWidth") <= 390
    assert dark_phone.execute_script(OVERFLOWS) == []


@WHICH
@pytest.mark.parametrize("window", ["desktop", "dark_phone"])
def test_text_stands_out_in_light_and_dark(
    request: pytest.FixtureRequest, reports: dict[str, str], which: str, window: str
) -> None:
    page = request.getfixturevalue(window)
    page.get(reports[which])
    paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", paper)[:3])) < 80) == (window == "dark_phone")
    contrasts = page.execute_script(CONTRAST)
    assert len(contrasts) > 10 and min(contrasts.values()) >= 4.5, contrasts


def test_without_javascript_all_but_the_search_is_there(tmp_path: Path, reports: dict[str, str]) -> None:
    with chromium(tmp_path, javascript=False) as page:
        page.get(reports["report"])
        assert not page.find_element("css selector", ".search").is_displayed()
        summaries = page.find_elements("css selector", ".searchable > details > summary")
        summaries[1].click()
        shown = page.find_element("tag name", "body").text
        for text in (
            "In short",
            "base second answer",
            "All paired differences (6)",
            "Cost and time",
            EVIL.splitlines()[0],
        ):
            assert text in shown, text
        assert all(svg.is_displayed() for svg in page.find_elements("css selector", "main > section > .gallery svg"))
