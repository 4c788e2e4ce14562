"""A host that is slow to start anything is waited for, and one hears of it."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from remoter_kernel.errors import RemoteLacks
from remoter_kernel.local.launch import launcher
from remoter_kernel.local.launch.launcher import notify_if_slow
from remoter_kernel.local.run import runner as runner_module
from remoter_kernel.local.run.runner import Runner
from remoter_kernel.local.session.dialer import SessionDialer


def test_a_long_wait_is_told_once(monkeypatch):
    """What is quick is done without a word."""
    told = []
    with notify_if_slow("box", told.append):
        pass
    assert told == []
    monkeypatch.setattr(launcher, "NOTIFY_AFTER", 0.0)
    is_told = threading.Event()

    def tell(sentence: str) -> None:
        told.append(sentence)
        is_told.set()

    with notify_if_slow("box", tell):
        assert is_told.wait(10)
    assert told == ["waiting for box to start a command (its login shell may take long)"]


def test_a_kernel_has_its_time_from_when_its_session_is_reached(monkeypatch):
    """The way there has limits of its own."""
    monkeypatch.setattr(runner_module, "READY_WITHIN", 0.05)
    has_waited = threading.Event()

    def dial_for_long() -> None:
        has_waited.wait(0.5)
        raise RemoteLacks("the way there was long.")

    dialer = SessionDialer(lambda: None)
    dialer.dial = dial_for_long  # type: ignore[method-assign,assignment]
    dialer.stop_orphan = SimpleNamespace  # type: ignore[method-assign,assignment]
    runner = Runner(dialer)
    try:
        with pytest.raises(RemoteLacks, match="the way there was long"):
            runner.start()
    finally:
        runner.close()
