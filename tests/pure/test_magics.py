"""What a cell asks of this side: read from its first line, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.errors import Usage
from remoter_kernel.local.history.status_report import LinkStatus, format_requests, format_status
from remoter_kernel.local.proxy.magics.cell_transfer import TransferRequest
from remoter_kernel.local.proxy.magics.help import HELP, inspect_text, summary_text, verb_text
from remoter_kernel.local.proxy.magics.magic import ParsedMagic, parse_magic


@pytest.mark.parametrize(
    ("code", "asked"),
    [
        ("%remoter status", ParsedMagic("status")),
        ("%remoter   status  \n\n", ParsedMagic("status")),
        ("%remoter status --requests", ParsedMagic("status", ("--requests",))),
        ("%remoter\tlog\r\n", ParsedMagic("log")),
        ("%remoter", ParsedMagic("help")),
        ("%remoter help stop", ParsedMagic("help", ("stop",))),
        (
            "%remoter put a 'b c' -- --dry-run d/",
            ParsedMagic(
                "put", transfer=TransferRequest(True, ("a", "b c", "--dry-run"), "d/", is_dry=False)
            ),
        ),
        (
            "%remoter get --dry-run runs/*.csv ./",
            ParsedMagic("get", transfer=TransferRequest(False, ("runs/*.csv",), "./", is_dry=True)),
        ),
    ],
)
def test_the_first_line_asks(code, asked):
    """A verb, its words, and nothing else in the cell."""
    assert parse_magic(code) == asked


@pytest.mark.parametrize(
    "code",
    [
        "",
        " %remoter status",
        "\n%remoter status",
        "x = 1\n%remoter status",
        "%remoters",
        "%local_x",
    ],
)
def test_everything_else_is_for_the_kernel(code):
    """Only the first line counts, from its first column, and only the whole word."""
    assert parse_magic(code) is None


@given(st.text())
def test_any_text_asks_or_does_not(code):
    """Whatever is typed, it is read, passed on, or refused in words."""
    try:
        asked = parse_magic(code)
    except Usage:
        assert code.startswith(("%remoter", "%local", "%%local"))
    else:
        assert asked is None or asked.verb in HELP


@pytest.mark.parametrize("verb", HELP)
def test_a_mistyped_verb_is_answered_with_the_nearest(verb):
    """`%remoter stauts`: did you mean status?"""
    with pytest.raises(Usage, match=f'did you mean "{verb}"'):
        parse_magic(f"%remoter {verb[0]}x{verb[1:]}")


def test_who_asks_about_a_line_of_ours_reads_its_help():
    """Shift-Tab at the first line tells its verb, or all verbs; elsewhere another is asked."""
    assert inspect_text("%remoter put data.csv ./", 12) == verb_text("put")
    assert inspect_text("%remoter pu", 11) == inspect_text("%remoter", None) == summary_text()
    assert "on this side" in inspect_text("%%local\nx = 1", 3)
    for code, cursor in (("%%local\nx = 1", 9), (" %remoter put", 5), ("%remotely", 4), ("", 0)):
        assert inspect_text(code, cursor) == ""


def test_a_line_that_would_be_lost_is_refused():
    """Code below a verb is not dropped in silence."""
    with pytest.raises(Usage, match="stands alone"):
        parse_magic("%remoter status\nx = 1")
    with pytest.raises(Usage, match="no further words"):
        parse_magic("%remoter status please")


def test_the_status_of_a_link_that_is_up_and_of_one_that_is_down():
    """Up: since when and over how many cuts. Down: for how long, and when it is tried again."""
    up = format_status(
        LinkStatus("up", 75.0, "box", losses=2, session="7f3a9c", host="n1", user="ada")
    )
    assert "up for 1 min 15 s, after 2 cuts" in up
    assert "7f3a9c on n1 as ada" in up
    assert "not confirmed" not in up
    down = format_status(
        LinkStatus("waiting", 3.0, "box", next_try=12.0, last_error="It was cut.", queue=2)
    )
    assert "down for 3.0 s; next try in 12.0 s" in down
    assert "It was cut." in down
    assert "2 not confirmed there yet" in down


def test_open_requests_are_told_in_one_line_each():
    """What comes from there may be anything; an older session tells of none."""
    row = {"id": "m", "type": "execute_request", "stage": "held", "why": "it waits", "seconds": 3.2}
    text = format_requests([row, "no row", {"id": "\x1b[2J", "seconds": "x"}], "Here")
    first, second, third = text.splitlines()
    assert first == "Here:"
    assert second.split() == ["m", "execute_request", "held", "for", "3.2", "s,", "it", "waits"]
    assert third.strip() == ""
    assert format_requests([], "Here") == "Here: no requests are open\n"
    for odd in (None, "no list", {}):
        assert "it does not say which requests are open" in format_requests(odd, "In session abcd")
