"""Figures to a table: medians side by side, with ratios and the goals they have to meet."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.measures import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Summary = Callable[[list[float]], float]


@dataclass(frozen=True)
class Row:
    """One line of the table: which samples, made one figure how, and what it should be."""

    label: str
    samples: str
    unit: str
    digits: int = 0
    summary: Summary = statistics.median
    at_most: dict[float, float] = field(default_factory=dict)  # RTT in s: times sshpyk's figure
    above_rtt: dict[float, float] = field(default_factory=dict)  # RTT in s: ms above the RTT
    limit: float | None = None  # at most this, whatever the RTT
    exactly: float | None = None


def _p99(samples: list[float]) -> float:
    return percentile(samples, 0.99)


EVERYWHERE = {0.0: 1.5, 0.05: 1.5, 0.2: 1.5}

ROWS = (
    Row("start to ready", "ready", "s", 2),
    Row("start to first result", "first result", "s", 2, at_most={0.05: 0.8, 0.2: 0.8}),
    Row("second kernel: start to ready", "second ready", "s", 2),
    Row("second kernel: to first result", "second result", "s", 2, at_most={0.05: 1.0, 0.2: 1.0}),
    Row("empty cell, p50", "empty cell", "ms", 1, at_most={0.0: 1.5}, above_rtt={0.05: 8.0}),
    Row("empty cell, p99", "empty cell", "ms", 1, summary=_p99),
    Row("wire per empty cell, up", "wire up", "B"),
    Row("wire per empty cell, down", "wire down", "B"),
    Row("20 MB of text", "text", "s", 2, at_most=EVERYWHERE),
    Row("2,000 displays", "displays", "s", 2, at_most=EVERYWHERE),
    Row("interrupt to idle", "interrupt", "ms", 1),
    Row("memory here", "near memory", "MB"),
    Row("memory there", "far memory", "MB"),
    Row("idle CPU here", "near cpu", "%", 2),
    Row("idle CPU there", "far cpu", "%", 2),
    # Two seconds, and what 10 Mbit/s carry in them.
    Row("flood: interrupt to idle", "flood idle", "s", 1, limit=2.0),
    Row("flood: text after the interrupt", "flood text", "MB", 1, limit=2.5),
    Row("flood: memory here grows by", "flood memory", "MB", 1, limit=50.0),
    Row("3 resets: lines of 300", "resets lines", "", exactly=300),
    Row("3 resets: lines twice or out of order", "resets wrong", "", exactly=0),
    Row("3 resets: last line to idle", "resets idle", "s", 1, limit=5.0),
    Row("black hole: lines of 300", "hole lines", "", exactly=300),
    Row("black hole: lines twice or out of order", "hole wrong", "", exactly=0),
    Row("black hole: its end to idle", "hole idle", "s", 1, limit=5.0),
    Row("outage: lines of 300", "outage lines", "", exactly=300),
    Row("outage: lines twice or out of order", "outage wrong", "", exactly=0),
    Row("outage: its end to idle", "outage idle", "s", 1, limit=5.0),
)


class Results:
    """Samples by round trip (seconds), peer and row."""

    def __init__(self) -> None:
        self.samples: dict[tuple[float, str, str], list[float]] = {}

    def add(self, rtt: float, peer: str, figures: dict[str, list[float]]) -> None:
        """Add what one visit measured."""
        for name, values in figures.items():
            self.samples.setdefault((rtt, peer, name), []).extend(values)

    def figure(self, rtt: float, peer: str, row: Row) -> float | None:
        """Give the figure of one cell of the table; None if it was not measured."""
        samples = self.samples.get((rtt, peer, row.samples))
        return row.summary(samples) if samples else None

    def as_json(self, rtts: Sequence[float], peers: Sequence[str]) -> list[dict[str, object]]:
        """Give every row with figures and samples, as plain values."""
        return [
            {
                "rtt_ms": round(rtt * 1000),
                "row": row.label,
                "unit": row.unit,
                "goal": self.goal(rtt, row, peers),
                "figures": {peer: _plain(self.figure(rtt, peer, row)) for peer in peers},
                "samples": {
                    peer: list(map(_plain, self.samples.get((rtt, peer, row.samples), [])))
                    for peer in peers
                },
            }
            for rtt in rtts
            for row in ROWS
            if self._is_measured(rtt, row, peers)
        ]

    def round_trips(self, rtts: Sequence[float], peers: Sequence[str]) -> list[str]:
        """Say how many round trips a start takes: what it takes longer on the longest path."""
        near, far = min(rtts), max(rtts)
        lines = []
        for row in (each for each in ROWS if each.samples in {"first result", "second result"}):
            counted = []
            for peer in peers:
                ends = [self.figure(rtt, peer, row) for rtt in (near, far)]
                if far > near and None not in ends:
                    trips = (ends[1] - ends[0]) / (far - near)  # type: ignore[operator]
                    counted.append(f"{peer} {trips:.1f}")
            if counted:
                lines.append(f"Round trips, {row.label}: {', '.join(counted)}")
        return lines

    def table(self, rtts: Sequence[float], peers: Sequence[str]) -> str:
        """Give the whole table as Markdown."""
        lines = []
        head = ["", *peers, *_ratio_names(peers), "goal"]
        for rtt in rtts:
            rows = [
                [
                    f"{row.label} ({row.unit})" if row.unit else row.label,
                    *(self._shown(rtt, peer, row) for peer in peers),
                    *self._ratios(rtt, row, peers),
                    self.goal(rtt, row, peers),
                ]
                for row in ROWS
                if self._is_measured(rtt, row, peers)
            ]
            if rows:
                head[0] = f"RTT {rtt * 1000:.0f} ms"
                lines += [*aligned([head, *rows]), ""]
        return "\n".join(lines)

    def goal(self, rtt: float, row: Row, peers: Sequence[str]) -> str:
        """Say what the figure should be, and whether it is."""
        ours = self.figure(rtt, "remoter", row) if "remoter" in peers else None
        limit = None
        if row.exactly is not None:
            words = f"= {row.exactly:.0f}"
        elif row.limit is not None:
            limit = row.limit
            words = f"≤ {limit:g} {row.unit}"
        elif rtt in row.above_rtt:
            limit = rtt * 1000 + row.above_rtt[rtt]
            words = f"≤ {limit:.0f} {row.unit}"
        elif rtt in row.at_most:
            theirs = self.figure(rtt, "sshpyk", row) if "sshpyk" in peers else None
            limit = row.at_most[rtt] * theirs if theirs else None
            words = f"≤ {row.at_most[rtt]} × sshpyk"
        else:
            return ""
        if ours is None or (limit is None and row.exactly is None):
            return words
        is_met = ours == row.exactly if limit is None else ours <= limit
        return f"{words}: {'met' if is_met else 'MISSED'}"

    def _is_measured(self, rtt: float, row: Row, peers: Sequence[str]) -> bool:
        return any(self.figure(rtt, peer, row) is not None for peer in peers)

    def _shown(self, rtt: float, peer: str, row: Row) -> str:
        figure = self.figure(rtt, peer, row)
        if figure is None:
            return "–"
        return "never" if figure == math.inf else f"{figure:,.{row.digits}f}"

    def _ratios(self, rtt: float, row: Row, peers: Sequence[str]) -> list[str]:
        ours = self.figure(rtt, "remoter", row)
        shown = []
        for peer in peers:
            if peer != "remoter" and "remoter" in peers:
                theirs = self.figure(rtt, peer, row)
                shown.append(_ratio(ours, theirs))
        return shown


def _ratio(ours: float | None, theirs: float | None) -> str:
    if ours is None or not theirs or not math.isfinite(ours + theirs):
        return "–"
    return f"{ours / theirs:.2f}"


def _plain(figure: float | None) -> float | str | None:
    """JSON has no infinity."""
    return "never" if figure == math.inf else figure


def _ratio_names(peers: Sequence[str]) -> list[str]:
    return [f"÷ {peer}" for peer in peers if peer != "remoter" and "remoter" in peers]


def aligned(rows: list[list[str]]) -> list[str]:
    """Give the lines of a table as Markdown."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(width) if column in {0, len(row) - 1} else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    last = len(widths) - 1
    rule = [
        "-" * (width + 1) + ("-" if column in {0, last} else ":")
        for column, width in enumerate(widths)
    ]
    return [line(rows[0]), f"|{'|'.join(rule)}|", *map(line, rows[1:])]
