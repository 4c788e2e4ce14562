r"""Collapsed text ends on the screen as the whole text would have: in a terminal, in a notebook."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import example, given, settings
from hypothesis import strategies as some

from remoter_kernel.protocol.output_backlog import collapse

COLOUR = re.compile(r"\x1b\[([0-9;]*)m")


def terminal(text: str) -> list[list[tuple[str, str]]]:
    """Render in a tiny terminal: rows of cells, each a sign and its colours."""
    rows: list[list[tuple[str, str]]] = [[]]
    column, colours = 0, ""
    position = 0
    while position < len(text):
        if found := COLOUR.match(text, position):
            codes = found.group(1)
            colours = "" if codes in {"", "0"} else colours + ";" + codes
            position = found.end()
            continue
        sign = text[position]
        position += 1
        if sign == "\n":
            rows.append([])
            column = 0
        elif sign == "\r":
            column = 0
        elif sign == "\b":
            column = max(0, column - 1)
        else:
            wide = 2 if unicodedata.east_asian_width(sign) in "WF" else 1
            row = rows[-1]
            row += [(" ", "")] * (column + wide - len(row))
            row[column] = (sign, colours)
            for rest in range(1, wide):
                row[column + rest] = ("", colours)
            column += wide
    # Where the cursor is left, what comes next is written.
    rows[-1] += [(" ", "")] * (column + 1 - len(rows[-1]))
    rows[-1][column] = ("cursor", colours)
    return rows


def notebook(text: str) -> str:
    """Render as JupyterLab does: a sign is a sign, and going back takes one away."""
    while (shorter := re.sub(r"[^\n]\x08", "", text)) != text:
        text = shorter
    lines = []
    for line in re.sub(r"\r+\n", "\n", text).split("\n"):
        shown = ""
        for stroke in line.split("\r"):
            shown = stroke + shown[len(stroke) :]
        lines.append(shown)
    return "\n".join(lines)


plain = some.text(some.sampled_from("ab \n\r\r\r\b"), max_size=30)
colourful = some.lists(
    some.sampled_from(
        ["a", "bc", " ", "\n", "\r", "\r", "世", "é", "\x1b[31m", "\x1b[0m", "\x1b[1m"]
    ),
    max_size=24,
).map("".join)


@settings(max_examples=1000)
@given(plain, plain)
@example("ab", "\rc\rd")
@example("a\b", "\bb")
def test_what_is_seen_at_the_end_is_the_same(before, text):
    """Whatever stands there already, the collapsed text ends as the whole one would."""
    assert terminal(before + collapse(text)) == terminal(before + text)


@settings(max_examples=1000)
@given(colourful, colourful)
@example("\x1b[31m", "\ra\x1b[0m\rbcbcbcbc")
def test_colours_and_wide_signs_are_the_same_too(before, text):
    """The last colour and its reach, and signs that are two columns wide."""
    assert terminal(before + collapse(text)) == terminal(before + text)


@settings(max_examples=1000)
@given(some.text(some.sampled_from("ab \n\r\r"), max_size=30), colourful)
def test_a_notebook_shows_the_same(before, text):
    """The browser counts colour codes as signs; it shows the same all the same."""
    assert notebook(before + collapse(text)) == notebook(before + text)


@given(some.lists(plain, max_size=5))
def test_collapsing_as_it_comes_is_collapsing_at_the_end(texts):
    """What was collapsed may be continued and collapsed again."""
    whole = "".join(texts)
    so_far = ""
    for text in texts:
        so_far = collapse(so_far + text)
    assert terminal(so_far) == terminal(whole)


def test_a_bar_of_many_updates_is_its_last():
    """Twenty thousand updates of a progress bar are one or two."""
    bar = "".join(f"\r{n / 200:3.0f}%|{'█' * (n // 1000):20}| {n:5}/20000" for n in range(20_001))
    short = collapse(bar)
    assert short.endswith("| 20000/20000")
    assert len(short) < 100


def test_a_coloured_bar_collapses_too():
    """Colours that are on only inside of each update do not keep them all alive."""
    bar = "".join(f"\r\x1b[32m{n:5}\x1b[0m of 20000" for n in range(1000))
    assert len(collapse(bar)) < 100


def test_a_spinner_collapses():
    r"""A spinner that goes back by one each time is its last sign."""
    assert collapse("work " + "|\b/\b-\b\\\b" * 1000 + "ok") == "work ok"
