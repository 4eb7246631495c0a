"""Every promise of the README has its row in docs/reliability.md, and every test that is named there exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")


def test_every_promise_of_the_readme_has_a_test() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## What you can rely on")[1].split("\n## ")[0]
    promises = re.findall(r"^- (?:\*\*(.+?)\*\*)?(.*)", section, re.MULTILINE)
    rows = [
        line.strip("| ").split("|")[0].strip()
        for line in PAGE.splitlines()
        if line.startswith("| ") and "tests/" in line
    ]
    assert len(promises) == len(rows) > 8
    for (bold, plain), row in zip(promises, rows, strict=True):
        assert (bold or plain.strip()).rstrip(".").startswith(row), (
            f"{row!r} is no promise of the README, or not in its place"
        )


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 20
    for file, function in named:
        assert (
            f"def {function}(" in (ROOT / file).read_text(encoding="utf-8") if function else (ROOT / file).is_file()
        ), (file, function)
