"""What a console of Windows gives, key by key, becomes a line."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest

from remoter_kernel.cli import terminal

UP, F1, F12, GRAVE = "\xe0H", "\x00;", "\xe0\x86", "\xe0"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (f"hun{UP}ter{F1}2{F12}\r", "hunter2"),
        (f"{UP}{UP}\bab\b\r", "a"),
        (f"citt{GRAVE}\r", "città"),
        (f"{GRAVE}{GRAVE}\bb{GRAVE}s\r", "àbàs"),
    ],
)
def test_keys_without_a_sign_are_no_part_of_a_line_in_a_console_of_windows(monkeypatch, keys, line):
    left = list(keys)
    console = SimpleNamespace(kbhit=lambda: bool(left), getwch=lambda: left.pop(0))
    monkeypatch.setitem(sys.modules, "msvcrt", console)
    assert terminal._read_keys(threading.Event(), is_shown=False) == line
    assert not left
