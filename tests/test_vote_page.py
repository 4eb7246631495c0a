"""The voting page in a real headless Chromium: keys, reloads, hostile answers, narrow windows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, console_errors, picture
from test_vote import MODELS, ballots, poll, rows, served

from openbezoar.rows.records import Row, read_jsonl

HOSTILE = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\"><b>bold</b> & **stars**\n\n"
    "    indented\n\nlast"
)
LONG = "An-unbroken-run-of-characters-" * 12 + "\n\n" + "Some words that fill a line and the next one too. " * 30
KEYS = "abtxabtxab"


def answers() -> list[Row]:
    some = rows(6)
    for row in some:
        row["turns"] = [f"{HOSTILE}\n{row['turns'][0]}", f"{LONG}\n{row['turns'][1]}"]
    some[0]["turns"][0] = ""
    some[1]["turns"][0] = "Before:\n```python\ndef f(x):\n    return '<b>'\n```\nafter, and\n```\nopen to the end"
    return some


def wait(page: Any, ready: Callable[[Any], Any]) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, 60, poll_frequency=0.02).until(ready)


def text(page: Any, id_: str) -> str:
    return str(page.execute_script("return document.getElementById(arguments[0]).textContent", id_))


def count(page: Any, wanted: str) -> None:
    wait(page, lambda p: text(p, "count") == wanted)


def press(page: Any, keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(keys).perform()


def overflow(page: Any) -> int:
    return int(page.execute_script("return document.documentElement.scrollWidth - window.innerWidth"))


def shot(page: Any, name: str) -> None:
    """A picture for people to look at, where SHOTS names a folder."""
    if folder := os.environ.get("SHOTS"):
        picture(page, Path(folder) / f"{name}.png")


def test_ten_pairs_are_voted_on_with_the_keyboard_with_a_reload_in_the_middle(tmp_path: Path) -> None:
    votes = tmp_path / "votes.jsonl"
    some = ballots(answers())
    with poll(votes, some) as asked, served(asked) as port, chromium(tmp_path / "profile") as page:
        page.get(f"http://127.0.0.1:{port}/")
        order = [b.id for b in asked.waiting]
        for done, key in enumerate(KEYS):
            count(page, f"{done} of 12")
            assert not any(model in page.page_source for model in MODELS)
            if done == 5:
                page.refresh()
                count(page, "5 of 12")
            press(page, key)
        count(page, "10 of 12")
        assert text(page, "news") == "Saved: B is better."
        press(page, "u")
        count(page, "9 of 12")
        press(page, "s")
        count(page, "9 of 12, 1 skipped")
        press(page, "b")
        count(page, "10 of 12, 1 skipped")
        assert console_errors(page) == []
    found = list(read_jsonl(votes))
    assert [r["winner"] for r in found[:9]] == [
        {"a": "model_a", "b": "model_b", "t": "tie", "x": "tie (bothbad)"}[k] for k in KEYS[:9]
    ]
    assert [r["id"].split("-")[0] for r in found] == [*order[:9], order[10]]


def test_hostile_answers_are_shown_as_text_and_nothing_of_them_runs(tmp_path: Path) -> None:
    some = ballots(answers(), turns=(1,))
    with poll(tmp_path / "votes.jsonl", some) as asked, served(asked) as port, chromium(tmp_path / "profile") as page:
        page.get(f"http://127.0.0.1:{port}/")
        for done in range(6):
            count(page, f"{done} of 6")
            ballot = some[done]
            for side, answer in (("a", ballot.a), ("b", ballot.b)):
                assert text(page, f"answer-{side}") == (answer.turns[0] or "(an empty answer)")
            assert page.execute_script("return document.querySelectorAll('main script, main img, main b').length") == 0
            if "```" in ballot.a.turns[0] + ballot.b.turns[0]:
                codes = page.execute_script(
                    "return [...document.querySelectorAll('main code')].map(c => c.textContent)"
                )
                assert codes == ["```python\ndef f(x):\n    return '<b>'\n```", "```\nopen to the end"]
                shot(page, "code")
            assert page.title == "Which answer is better?"
            press(page, "a")
        wait(page, lambda p: MODELS[0] in text(p, "result-tables"))
        assert console_errors(page) == []


def test_the_result_comes_after_the_last_vote_or_when_it_is_asked_for_twice(tmp_path: Path) -> None:
    with (
        poll(tmp_path / "votes.jsonl", ballots(answers(), turns=(1,))) as asked,
        served(asked) as port,
        chromium(tmp_path / "profile") as page,
    ):
        page.get(f"http://127.0.0.1:{port}/")
        count(page, "0 of 6")
        press(page, "a")
        count(page, "1 of 6")
        page.find_element("id", "ask-result").click()
        press(page, "b")
        assert not any(model in page.page_source for model in MODELS), "a question is asked first"
        shot(page, "sure")
        page.find_element("id", "show-result").click()
        wait(page, lambda p: MODELS[0] in text(p, "result-tables"))
        press(page, "b")
        page.find_element("id", "go-on").click()
        assert text(page, "count") == "1 of 6", "keys do not vote while something else is shown"
        for done in range(1, 6):
            count(page, f"{done} of 6")
            press(page, "b")
        wait(page, lambda p: "6 votes given: that was all" in text(p, "result-about"))
        shot(page, "result")
        press(page, "u")
        count(page, "5 of 6")
        wait(page, lambda p: p.find_element("id", "answer-a").is_displayed())
        assert console_errors(page) == []


def test_a_second_window_does_no_harm(tmp_path: Path) -> None:
    votes = tmp_path / "votes.jsonl"
    with poll(votes, ballots(answers())) as asked, served(asked) as port, chromium(tmp_path / "profile") as page:
        page.get(f"http://127.0.0.1:{port}/")
        count(page, "0 of 12")
        first = page.current_window_handle
        page.switch_to.new_window("tab")
        page.get(f"http://127.0.0.1:{port}/")
        count(page, "0 of 12")
        press(page, "a")
        count(page, "1 of 12")
        page.switch_to.window(first)
        press(page, "b")
        count(page, "1 of 12")
        wait(page, lambda p: "another window" in text(p, "news"))
    assert [r["winner"] for r in read_jsonl(votes)] == ["model_a"]


def test_a_vote_that_reaches_no_server_is_told_and_can_be_given_again(tmp_path: Path) -> None:
    votes = tmp_path / "votes.jsonl"
    with chromium(tmp_path / "profile") as page:
        with poll(votes, ballots(answers())) as asked, served(asked) as port:
            page.get(f"http://127.0.0.1:{port}/")
            count(page, "0 of 12")
        press(page, "a")
        wait(page, lambda p: "nothing was saved" in text(p, "news"))
        assert text(page, "count") == "0 of 12"
    assert votes.read_text() == ""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (360, 740)], ids=["desktop", "phone"])
def test_nothing_is_cut_off_at_any_width_and_all_keys_are_written_on_the_page(
    tmp_path: Path, width: int, height: int, dark: bool
) -> None:
    name = f"{'phone' if width < 600 else 'desktop'}-{'dark' if dark else 'light'}"
    with (
        poll(tmp_path / "votes.jsonl", ballots(answers())) as asked,
        served(asked) as port,
        chromium(tmp_path / "profile", width, height, dark) as page,
    ):
        page.get(f"http://127.0.0.1:{port}/")
        count(page, "0 of 12")
        for id_ in [b.id for b in asked.waiting[:2]]:
            shot(page, f"{name}-turn-{asked.waiting[0].turn}")
            assert overflow(page) <= 0
            if asked.waiting[0].turn == 2:
                press(page, "e")
                wait(page, lambda p: p.find_element("id", "first-a").is_displayed())
                assert overflow(page) <= 0
                shot(page, f"{name}-turn-2-open")
            for button in page.find_elements("css selector", "#choices button"):
                box = button.rect
                assert box["x"] >= 0 and box["x"] + box["width"] <= width
                assert page.execute_script(
                    "const r = arguments[0].getBoundingClientRect(); return r.bottom <= window.innerHeight && r.top"
                    " >= 0",
                    button,
                )
            press(page, "a")
            wait(page, lambda p, id_=id_: asked.waiting[0].id != id_)
        while asked.waiting:
            asked.cast(asked.waiting[0].id, "b")
        page.refresh()
        wait(page, lambda p: MODELS[0] in text(p, "result-tables"))
        shot(page, f"{name}-result")
        assert overflow(page) <= 0
        keys = [k.get_attribute("textContent") for k in page.find_elements("css selector", "#choices kbd")]
        assert keys == ["a", "t", "x", "b", "s", "u"]
        assert console_errors(page) == []
