"""Runs that are ended at random moments, by kills, power cuts and SIGTERM, end as one that was never ended.
``make test-kill`` does the same over all verbs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "moments.py"


@pytest.mark.slow
def test_forty_moments_of_kill_power_cut_and_damage_end_with_the_same_bytes() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--rows-only", "--moments", "40", "--damage", "0.2"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    assert said["wrong"] == [] and said["moments"] == 40 and done.returncode == 0
    kinds = {"power cut", "kill", "kill at any time", "stop", "stop at any time", "damage"}
    assert {kind.partition(" in ")[0] for kind in said["of"]} == kinds


@pytest.mark.slow
def test_sigterm_at_a_moment_of_each_step_of_rows_ends_with_the_same_bytes() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--rows-only", "--stops", "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    assert said["wrong"] == [] and said["moments"] == 5 and done.returncode == 0
