"""What a cell asks of both sides: read from its first line; positions are the whole cell's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.errors import Usage
from remoter_kernel.local.proxy.here.local_magics import (
    LocalCode,
    ObjectTransferSpec,
    completeness,
    local_code,
    parse_local_magic,
    shift_reply,
    shift_request,
)


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("%%local\nx = 1\ny", LocalCode("%%local", "x = 1\ny", 8)),
        ("%%local  \r\nx", LocalCode("%%local", "x", 11)),
        ("%%local", LocalCode("%%local", "", 7)),
        ("%local  x + 1 ", LocalCode("%local", "x + 1", 8)),
        ("%local", LocalCode("%local", "", 6)),
        ("%remoter push x", ObjectTransferSpec("push", ("x",), ("x",))),
        ("%remoter\tpull  x y\n\n", ObjectTransferSpec("pull", ("x", "y"), ("x", "y"))),
        ("%remoter pull df as d", ObjectTransferSpec("pull", ("df",), ("d",))),
        (
            "%remoter push --yes x --pickle",
            ObjectTransferSpec("push", ("x",), ("x",), is_pickled=True, is_large=True),
        ),
        *((code, None) for code in ("", "x", " %%local\nx", "%locals x", "%%localx", "x\n%%local")),
        *((code, None) for code in ("%remoter status", "%remoter pushes x", "%remoter put x y")),
    ],
)
def test_the_first_line_asks(code, wanted):
    """And nothing else does."""
    assert parse_local_magic(code) == wanted


@pytest.mark.parametrize(
    "code",
    ["%%local x\n1", "%local 1\n2", "%remoter push", "%remoter push x\ny", "%remoter pull x as",
     "%remoter push x y as z", "%remoter push x x", "%remoter push x --no", "%remoter pull as"],
)  # fmt: skip
def test_words_that_make_no_sense_are_refused(code):
    """Before anything runs."""
    with pytest.raises(Usage):
        parse_local_magic(code)


@given(st.text(max_size=30), st.integers(0, 60))
def test_a_position_inside_is_the_same_sign_outside(body, cursor):
    """What the kernel is asked about ends at the cursor, and its answer points back there."""
    code = f"%%local\n{body}"
    local = local_code(code)
    assert local
    inside = shift_request({"code": code, "cursor_pos": cursor}, local)
    if cursor < local.begin:
        assert inside is None
        return
    assert inside
    assert inside["code"][: inside["cursor_pos"]] == code[local.begin : cursor]
    types = {"_jupyter_types_experimental": [{"start": 0, "end": inside["cursor_pos"]}]}
    answer = {"cursor_start": 0, "cursor_end": inside["cursor_pos"], "metadata": types}
    outside = shift_reply(answer, local.begin)
    assert code[outside["cursor_start"] : outside["cursor_end"]] == code[local.begin : cursor]
    assert outside["metadata"]["_jupyter_types_experimental"] == [
        {"start": local.begin, "end": cursor}
    ]


@given(st.text())
def test_any_text_asks_or_does_not(code):
    """Whatever is typed, it is read, passed on, or refused in words."""
    try:
        wanted = parse_local_magic(code)
    except Usage:
        assert code.startswith(("%remoter", "%local", "%%local"))
    else:
        assert wanted is None or code.startswith("%")


@pytest.mark.parametrize(
    ("code", "status"),
    [("%%local", "incomplete"), ("%%local\nx", "incomplete"), ("%%local\nx\n", "complete"),
     ("%local x", "complete"), ("%remoter status", "complete")],
)  # fmt: skip
def test_a_console_hears_when_a_cell_is_complete(code, status):
    """A whole cell ends with an empty line."""
    assert completeness(code) in ({"status": status}, {"status": status, "indent": ""})
    assert completeness("x = 1") is None
