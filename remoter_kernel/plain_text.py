"""Text of others as a terminal, a table or a cell may have it; and which word names a session.

What a remote, a server or a kernel sends may hold characters that a terminal acts on (its title,
its clipboard, colours) or that change the order of other characters. Such text is cleaned where it
comes in, and once more where it is shown. This file is shipped, so it stays within Python 3.9.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

# Colours and the like go whole: without its ESC, the rest of such a sequence would be shown.
_STYLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_JOINERS = "\u200c\u200d"  # within words of Persian or Hindi, and within emoji: they move nothing
_NO_TEXT = "\ufffd"
_SESSION_ID = re.compile(r"[0-9a-z]{4,32}")


def plain_text(
    text: object, *, keeps_lines: bool = False, escapes: bool = False, most: int = 0
) -> str:
    """Return text without anything that a terminal acts on.

    Line ends become spaces; with `keeps_lines` they stay. What is left out is shown as Python
    would write it if `escapes` (for names: two of them never look the same), else it is gone.
    `most`: so many characters at most, if not 0.
    """
    shown = str(text)
    if most and len(shown) > most:
        shown = f"{shown[:most]}…"
    if shown.isprintable():
        return shown
    if escapes:
        return "".join(sign if _is_harmless(sign) else _as_escape(sign) for sign in shown)
    signs = _STYLE.sub("", shown).replace("\r\n", "\n")
    if not keeps_lines:
        return "".join(_replaced(sign) for sign in signs)
    return "\n".join("".join(map(_replaced, line)) for line in signs.split("\n"))


def plain_words(words: Any) -> Any:
    """Return what was read from JSON with each text in it made plain; line ends stay."""
    if isinstance(words, str):
        return plain_text(words, keeps_lines=True)
    if isinstance(words, list):
        return [plain_words(each) for each in words]
    if isinstance(words, dict):
        return {plain_text(key): plain_words(value) for key, value in words.items()}
    return words


def count_of(number: int, noun: str) -> str:
    """Write a number of things: "1 file", "2 files"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def is_session_id(word: object) -> bool:
    """Can this be the id of a session? It goes into paths, and into commands that people paste."""
    return isinstance(word, str) and _SESSION_ID.fullmatch(word) is not None


def _is_harmless(sign: str) -> bool:
    # A space of another width is a space to a terminal, too; and what this Python does not know
    # (a newer emoji), or only one font knows, moves nothing either.
    return (
        sign.isprintable() or sign in _JOINERS or unicodedata.category(sign) in {"Zs", "Cn", "Co"}
    )


def _replaced(sign: str) -> str:
    if _is_harmless(sign):
        return sign
    if sign.isspace():
        return " "
    return _NO_TEXT if "\ud800" <= sign <= "\udfff" else ""


def _as_escape(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode()
