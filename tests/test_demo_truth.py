"""The demo that is not too kind, for minutes: does Leasehold say what its pods and its administrator really did?"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_demo import running

pytestmark = [pytest.mark.demo]

ENDS = {
    *("by body", "by body, never renewed", "by path", "by prefix", "forced", "by accessor", "by parent token"),
    *("by the pod itself", "expired"),
}


def looked_on(folder: Path, *, minutes: float, pace: float, thefts: int = 0) -> dict[str, Any]:
    """`demo check --json` after so many minutes; in the last of these credentials are stolen."""
    with running(folder, f"--pace={pace}") as (demo, _):
        demo.run("check", f"--minutes={minutes}", "--json")
        for _ in range(thefts):
            theft = demo.run("incident", "--seconds=8")
            after = re.search(r"found it after ([\d.]+) s", theft.stdout)
            assert after, theft.stdout + theft.stderr
            assert float(after[1]) < 10
        done = demo.run("check", "--json")
        assert done.stdout, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) == (report["problems"] == [])
    return report


def assert_all_true(report: dict[str, Any]) -> None:
    assert report["problems"] == []
    assert report["present"] == report["leases"] > 50
    assert (report["wrong"], report["unknown"], report["strangers"]) == (0, 0, [])
    # everything that makes it hard has happened
    assert report["ends"].keys() >= ENDS
    assert report["addresses_reused"].keys() == {"the same service account", "another service account"}
    assert {"demo-2: shop/storefront", "demo: partners/sync", "demo: monitoring/node-agent"} <= report["holders"].keys()
    assert min(report["exact_right"], report["inferred_right"], report["ambiguous_right"]) > 0
    assert_sessions_true(report["sessions"])


def assert_sessions_true(sessions: dict[str, int]) -> None:
    assert sessions["opened"] > 10
    assert {sessions[what] for what in ("seen", "tied", "logged")} == {sessions["opened"]}
    assert sessions["taken_for_theirs"] + sessions["not_judged"] == sessions["opened"]
    assert sessions["taken_for_theirs"] > 0.9 * sessions["opened"]
    # a false alarm is wrong
    assert (sessions["wrong"], sessions["stolen_found"]) == (0, sessions["stolen"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_for_three_fast_minutes_leasehold_says_what_really_happened_and_finds_what_was_stolen(run_folder: Path) -> None:
    report = looked_on(run_folder / "truth", minutes=3, pace=3, thefts=3)
    assert_all_true(report)
    assert report["sessions"]["stolen"] == 3


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_for_ten_minutes_and_until_vault_gives_a_revocation_up(run_folder: Path) -> None:
    report = looked_on(run_folder / "truth", minutes=13.5, pace=1)
    assert_all_true(report)
    assert report["ends"]["cannot be revoked"] == {"right": 1, "wrong": 0, "missing": 0}


@pytest.mark.soak
@pytest.mark.timeout(2700)
def test_for_half_an_hour_of_churn_no_session_is_a_false_alarm(run_folder: Path) -> None:
    sessions = looked_on(run_folder / "truth", minutes=30, pace=1)["sessions"]
    assert sessions["opened"] > 200
    assert_sessions_true(sessions)
