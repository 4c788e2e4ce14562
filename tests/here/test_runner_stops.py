"""Whoever stops a run at a question of its login reads nothing more at the terminal."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from remoter_kernel.errors import Unreachable
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.run import runner as running
from remoter_kernel.local.run.runner import Runner
from remoter_kernel.local.session.dialer import SessionDialer

WITHIN = 20.0  # seconds


class Asking(SessionDialer):
    """Asks somebody for a password until it is cut."""

    def __init__(self) -> None:
        person = SimpleNamespace(is_asking=True)
        super().__init__(lambda: Remote("box", "gpu.invalid"), person)
        self.has_begun, self.is_cut = threading.Event(), threading.Event()

    def dial(self):
        self.has_begun.set()
        self.is_cut.wait(WITHIN)
        raise Unreachable("the login was cut.", remote="box")

    def abort(self) -> None:
        self.is_cut.set()


def test_a_run_that_is_stopped_at_a_question_takes_it_back_at_once(tmp_path, monkeypatch):
    """What is typed for the shell after Ctrl-C would go to the host as a password."""
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path))
    monkeypatch.setattr(running, "ACKNOWLEDGED_WITHIN", WITHIN / 4)
    runner = Runner(dialer := Asking())
    runner.link.connect()
    try:
        assert dialer.has_begun.wait(WITHIN)
        runner.stop()
        assert dialer.is_cut.is_set()
    finally:
        dialer.is_cut.set()


def test_a_start_that_asks_nothing_is_waited_for(tmp_path, monkeypatch):
    """It may have begun a session by then, which is to be ended."""
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path))
    monkeypatch.setattr(running, "ACKNOWLEDGED_WITHIN", 0.1)
    runner = Runner(dialer := Asking())
    dialer.prompter.is_asking = False
    runner.link.connect()
    try:
        assert dialer.has_begun.wait(WITHIN)
        runner.stop()
        assert not dialer.is_cut.is_set()
    finally:
        dialer.is_cut.set()
