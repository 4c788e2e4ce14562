"""The table says what was measured, and whether it is what it should be."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace
from typing import Any

from bench import faults
from bench.faults import NEVER
from bench.measures import Effort
from bench.table import ROWS, Results

PEERS = ["plain", "sshpyk", "remoter"]
BY_LABEL = {row.label: row for row in ROWS}


def results(**figures):
    made = Results()
    for peer, values in figures.items():
        made.add(0.05, peer, {"first result": values, "empty cell": [55.0, 57.0, 90.0]})
    return made


def test_a_figure_is_the_median_of_all_rounds():
    made = results(sshpyk=[2.0])
    made.add(0.05, "sshpyk", {"first result": [1.0, 9.0]})
    assert made.figure(0.05, "sshpyk", BY_LABEL["start to first result"]) == 2.0


def test_a_goal_is_met_up_to_its_limit_and_missed_beyond():
    row = BY_LABEL["start to first result"]
    assert results(sshpyk=[2.0], remoter=[1.6]).goal(0.05, row, PEERS).endswith(": met")
    assert results(sshpyk=[2.0], remoter=[1.7]).goal(0.05, row, PEERS).endswith(": MISSED")


def test_a_goal_without_both_figures_is_neither_met_nor_missed():
    row = BY_LABEL["start to first result"]
    assert results(remoter=[1.6]).goal(0.05, row, PEERS) == "≤ 0.8 × sshpyk"
    assert results(sshpyk=[1.6]).goal(0.05, row, PEERS) == "≤ 0.8 × sshpyk"


def test_a_goal_above_the_round_trip_needs_no_peer():
    row = BY_LABEL["empty cell, p50"]
    assert results(remoter=[1.0]).goal(0.05, row, ["remoter"]) == "≤ 58 ms: met"


def test_a_row_that_nobody_measured_is_left_out_and_a_missing_figure_is_a_dash():
    table = results(sshpyk=[2.0], remoter=[1.0]).table([0.05], PEERS)
    assert "start to ready" not in table
    line = next(line for line in table.splitlines() if "first result" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "start to first result (s)",
        "–",
        "2.00",
        "1.00",
        "–",
        "0.50",
        "≤ 0.8 × sshpyk: met",
    ]


def test_a_limit_of_its_own_needs_no_peer():
    made = Results()
    made.add(0.05, "remoter", {"hole idle": [5.0], "flood text": [2.6]})
    assert made.goal(0.05, BY_LABEL["black hole: its end to idle"], PEERS) == "≤ 5 s: met"
    assert made.goal(0.05, BY_LABEL["flood: text after the interrupt"], PEERS) == "≤ 2.5 MB: MISSED"


def test_a_count_is_met_by_itself_alone():
    row = BY_LABEL["3 resets: lines of 300"]
    for lines, verdict in ((299, "MISSED"), (300, "met"), (301, "MISSED")):
        made = Results()
        made.add(0.05, "remoter", {"resets lines": [lines]})
        assert made.goal(0.05, row, PEERS) == f"= 300: {verdict}"
    made = Results()
    made.add(0.05, "remoter", {"resets wrong": [0]})
    row = BY_LABEL["3 resets: lines twice or out of order"]
    assert made.goal(0.05, row, PEERS) == "= 0: met"


def test_what_never_ends_says_so_misses_its_goal_and_has_no_ratio():
    made = Results()
    row = BY_LABEL["outage: its end to idle"]
    made.add(0.05, "sshpyk", {"outage idle": [NEVER]})
    made.add(0.05, "remoter", {"outage idle": [0.5]})
    line = next(line for line in made.table([0.05], PEERS).splitlines() if row.label in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == ["–", "never", "0.5", "–", "–", "≤ 5 s: met"]
    made.add(0.05, "remoter", {"outage idle": [NEVER, NEVER]})
    assert made.goal(0.05, row, PEERS) == "≤ 5 s: MISSED"


def test_json_holds_never_as_a_word():
    made = Results()
    made.add(0.05, "sshpyk", {"outage idle": [NEVER]})
    (row,) = json.loads(json.dumps(made.as_json([0.05], PEERS), allow_nan=False))
    assert row["figures"] == {"plain": None, "sshpyk": "never", "remoter": None}
    assert row["samples"]["sshpyk"] == ["never"]


class Kernel:
    """Says a cell's lines, and never that it is over."""

    watched = contextlib.nullcontext

    def __init__(self, *texts):
        self.texts = texts

    def send(self, code):
        return "its id"

    def wait_for_end(self, request, *, on_message, **_):
        for text in self.texts:
            content = {"name": "stdout", "text": text}
            on_message("iopub", {"msg_type": "stream", "content": content})
        raise TimeoutError


def test_lines_count_once_and_what_comes_again_or_late_is_wrong():
    effort = Effort(cells=0, interrupts=0, idle_seconds=0, printing=60, hole=60)
    kernel: Any = Kernel("0\n1\n", "3\n", "2", "\n2\n")
    proxy: Any = SimpleNamespace(cut=None)
    assert faults.resets(kernel, proxy, effort) == {
        "resets lines": [4],
        "resets wrong": [2],
        "resets idle": [NEVER],
    }
