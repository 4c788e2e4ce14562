"""The table says what was measured, and whether it is what it should be."""

from __future__ import annotations

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
