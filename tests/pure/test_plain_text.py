"""Text of others: nothing that a terminal acts on is left of it, and what is only text stays."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.login.prompts import strip_controls
from remoter_kernel.plain_text import is_session_id, plain_text, plain_words

ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # categories of signs
anything = st.text(st.characters(), max_size=40)


def acts(text):
    return [
        sign for sign in text if unicodedata.category(sign) in ACTING and sign not in "\u200c\u200d"
    ]


@given(anything)
def test_nothing_is_left_that_a_terminal_acts_on(text):
    assert acts(plain_text(text)) == []
    assert acts(plain_text(text, escapes=True)) == []
    assert acts(plain_text(text, keeps_lines=True).replace("\n", "")) == []
    assert acts(str(RemoterError(text, text)).replace("\n", "")) == []
    assert acts(strip_controls(text).replace("\n", "")) == []
    assert plain_text(plain_text(text)) == plain_text(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "M", "Zs"]), max_size=40))
def test_what_is_only_text_stays(text):
    """In any script, with spaces of any width."""
    assert plain_text(text) == plain_text(text, escapes=True) == text
    assert plain_words({text: [text, 1, None, {"x": text}]}) == {text: [text, 1, None, {"x": text}]}


@pytest.mark.parametrize(
    ("text", "line", "lines", "escaped"),
    [
        ("a\r\nb\n", "a b ", "a\nb\n", "a\\r\\nb\\n"),
        ("\x1b[1;31mred\x1b[0m", "red", "red", "\\x1b[1;31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "]0;title", "]0;title", "\\x1b]0;title\\x07"),
        ("\x9b31mred\x7f", "31mred", "31mred", "\\x9b31mred\\x7f"),
        ("gpj.\u202eexe", "gpj.exe", "gpj.exe", "gpj.\\u202eexe"),
        ("caf\udce9", "caf\ufffd", "caf\ufffd", "caf\\udce9"),
        ("tab\there\u2028", "tab here ", "tab here ", "tab\\there\\u2028"),
        ("\U0001f469\u200d\U0001f52c", *["\U0001f469\u200d\U0001f52c"] * 3),
    ],
)
def test_what_becomes_of_signs(text, line, lines, escaped):
    assert plain_text(text) == line
    assert plain_text(text, keeps_lines=True) == lines
    assert plain_text(text, escapes=True) == escaped


def test_what_is_long_is_cut():
    assert plain_text("a" * 5, most=3) == "aaa…"
    assert plain_text("a" * 3, most=3) == "aaa"


@pytest.mark.parametrize("word", ["7f3a", "7f3a9c", "a" * 32])
def test_ids_of_sessions(word):
    assert is_session_id(word)


@pytest.mark.parametrize(
    "word",
    ["", "abc", "a" * 33, "7f3a9c;touch", "7F3A9C", "7f3a\n", "../7f3a", "7f3a/", "٣٣٣٣", None, 7],
)
def test_what_is_no_id_of_a_session(word):
    assert not is_session_id(word)
