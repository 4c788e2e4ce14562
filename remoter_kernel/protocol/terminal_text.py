r"""What a terminal would have overwritten is left out; what is seen at the end stays (pure).

House rules of this file:

- `\r` goes back to the line's first column, `\b` back by one, and what is written there covers
  what was there. Terminals and notebooks agree on no more than that, so no more is used.
- A line is a row of strokes with `\r` between them. A stroke that a later one covers leaves no
  trace, so it goes. Nothing is ever rewritten: whatever stays was printed just so.
- Where a text begins is not known: its first stroke stands in some column, and stays.
- Colours have a width for one and none for the other, so a stroke counts as covered only if
  both say so, and only if colours are off before and after it. Any other control character is
  a wall.
"""

from __future__ import annotations

import re
import unicodedata

_COLOUR = re.compile(r"\x1b\[([0-9;]*)m")
_RESET = frozenset({"", "0", "00"})
_BREAK = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BACK = re.compile(r"(\x08+)")


def has_overwritten(text: str) -> bool:
    r"""Is there anything in a text that goes back?"""
    return "\r" in text or "\b" in text


def collapse(text: str) -> str:
    """Leave out of a text what it covers itself; it ends on the screen as it would have."""
    if not has_overwritten(text):
        return text
    lines: list[str] = []
    is_plain = False
    for line in text.split("\n"):
        collapsed, is_plain = _collapse_line(line, is_first=not lines, is_plain=is_plain)
        lines.append(collapsed)
    return "\n".join(lines)


def _collapse_line(line: str, *, is_first: bool, is_plain: bool) -> tuple[str, bool]:
    """Collapse one line; `is_plain`: no colour is on where it begins, and then where it ends."""
    kept: list[tuple[str, int]] = []  # strokes that may still be covered, and their widths
    done: list[str] = []  # strokes that stay
    for number, said in enumerate(line.split("\r")):
        stroke = _apply_backspaces(said)
        width = _segment_width(stroke)
        while kept and width >= kept[-1][1] and len(stroke) >= len(kept[-1][0]):
            kept.pop()
        kept.append((stroke, width))
        was_plain, is_plain = is_plain, _is_plain_after(stroke, is_plain=is_plain)
        leaves_colour = "\x1b" in stroke and not (was_plain and is_plain)
        if width < 0 or leaves_colour or (number == 0 and is_first):
            done += [earlier for earlier, _ in kept]
            kept = []
    return "\r".join(done + [stroke for stroke, _ in kept]), is_plain


def _segment_width(stroke: str) -> int:
    """Count the columns of a stroke; -1 if it does more than fill columns."""
    if stroke.isascii() and stroke.isprintable():
        return len(stroke)
    bare = _COLOUR.sub("", stroke)
    if _BREAK.search(bare):
        return -1
    return sum(map(_columns, bare))


def _columns(sign: str) -> int:
    if unicodedata.combining(sign) or unicodedata.category(sign) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def _is_plain_after(stroke: str, *, is_plain: bool) -> bool:
    """Is no colour on after a stroke, as far as can be known?"""
    colours = _COLOUR.findall(stroke) if "\x1b" in stroke else ()
    return colours[-1] in _RESET if colours else is_plain


def _apply_backspaces(stroke: str) -> str:
    r"""Leave out what `\b` goes back to and the same stroke covers: `a\bb` is `b`."""
    if "\b" not in stroke:
        return stroke
    before, *rest = _BACK.split(stroke)
    for back, after in zip(rest[::2], rest[1::2]):
        size = len(back)
        left, right = before[-size:], after[:size]
        if (
            len(left) == size == len(right)
            and (left + right).isascii()
            and (left + right).isprintable()
        ):
            before = before[:-size] + after
        else:
            before += back + after
    return before
