"""Every measurement runs; its numbers are for `make bench`."""

import importlib
import os

import pytest

from bench.__main__ import NAMES
from bench.measure import Row, alternate, at_least, at_most, ratios, show


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_every_measurement_gives_its_rows(name):
    rows = importlib.import_module(f"bench.{name}").measure(True)
    assert rows
    for row in rows:
        assert row.verdict.startswith(("met", "missed by", "skipped: set MNIST"))
        assert row.verdict.startswith("skipped") or row.measured != "–"
    assert name != "mnist" or bool(os.environ.get("MNIST")) != rows[0].verdict.startswith("skip")


def test_a_missed_goal_says_by_how_much():
    row = at_most(5, "start", 3, [3.4, 3.5, 3.6], "s")
    assert row == Row(
        5, "start", "≤ 3.000 s", "3.500 s", "3.400 – 3.600, n = 3", "missed by 0.500 s"
    )
    assert at_least(3, "rate", 1.5, [1.6, 1.5, 1.4]).verdict == "met"
    assert "| 5 | start | ≤ 3.000 s | 3.500 s |" in show([row])


def test_repetitions_alternate_and_change_direction():
    calls = []
    found = alternate({n: lambda n=n: calls.append(n) or len(calls) for n in "ab"}, 3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert ratios(found["b"], found["a"]) == [2 / 1, 3 / 4, 6 / 5]
