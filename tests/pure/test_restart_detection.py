"""A proxy that is ended and one that is started at once after it, by the same program."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from remoter_kernel.local.session import machine
from remoter_kernel.local.session.machine import ProxyExitRecord, previous_exit, record_exit

if TYPE_CHECKING:
    from pathlib import Path

GONE = ProxyExitRecord("0123", "7f3a9c")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this side keeps what it has seen."""
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path))
    return tmp_path / "left"


def test_it_is_found_once_by_whoever_comes_soon() -> None:
    record_exit("box", "/a.ipynb", GONE)
    assert previous_exit("box", "/b.ipynb", time.time()) is None
    assert previous_exit("other", "/a.ipynb", time.time()) is None
    assert previous_exit("box", "/a.ipynb", time.time()) == GONE
    assert previous_exit("box", "/a.ipynb", time.time()) is None


@pytest.mark.parametrize("after", [machine.RESTART_WITHIN + 0.5, -10.0])
def test_who_comes_later_opens_it_again(after: float) -> None:
    record_exit("box", "/a.ipynb", GONE)
    assert previous_exit("box", "/a.ipynb", time.time() + after) is None


def test_another_program_has_nothing_to_do_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    record_exit("box", "/a.ipynb", GONE)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert previous_exit("box", "/a.ipynb", time.time()) is None


def test_a_damaged_sign_is_none_and_old_ones_go(state: Path) -> None:
    record_exit("box", "/a.ipynb", GONE)
    (sign,) = state.iterdir()
    sign.write_text("[")
    assert previous_exit("box", "/a.ipynb", time.time()) is None
    sign.write_text("{}")
    os.utime(sign, (0, 0))
    record_exit("box", "/b.ipynb", GONE)
    assert len(list(state.iterdir())) == 1
