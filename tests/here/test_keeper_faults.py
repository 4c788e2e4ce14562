"""What a fault of the keeper's own costs: nobody waits for ever, and no word that was typed."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.login.keeper import keeper_server, shared_login
from remoter_kernel.local.login.keeper.keeper_server import KeeperServer
from remoter_kernel.local.login.keeper.shared_login import SharedLogin


class Visitor:
    """A proxy that wants a login."""

    def __init__(self) -> None:
        self.is_gone = self.may_ask = False
        self.place = ""
        self.on_answer = self.on_end = lambda *_words: None

    def say(self, words: dict[str, Any]) -> None:
        pass

    def tell_step(self, step: str) -> None:
        pass


def test_whoever_waits_for_a_login_hears_of_a_fault_after_it(monkeypatch):
    """It was made, and was to be given up at once, as somebody had ended it."""
    shared = SharedLogin()

    def fail() -> None:
        raise OSError(5, "the disk is broken")

    def log_in(*_words: object, **_options: object) -> object:
        shared.is_over = True
        monkeypatch.setattr(shared, "_drop_login", fail)
        return SimpleNamespace(seconds={}, transport="paramiko")

    monkeypatch.setattr(shared_login, "log_in_to", log_in)
    words = {"may_ask": False, "place": "", "is_stale": False, "in_doubt": False}
    heard: list[OSError] = []
    visitor: Any = Visitor()
    destination: Any = None

    def wait() -> None:
        try:
            shared.log_in(visitor, Remote("box", "box"), destination, {**words, "is_remembered": 0})
        except OSError as error:
            heard.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(5)
    try:
        assert [error.errno for error in heard] == [5]
    finally:
        visitor.is_gone = True
        visitor.on_end()
        thread.join(5)


@pytest.mark.parametrize("is_asked", [True, False])
def test_the_words_of_a_fault_are_printed_nowhere(monkeypatch, capfd, caplog, is_asked):
    """They may hold what somebody typed; where it was is logged."""

    def fail(*_words: object) -> None:
        raise ValueError("hunter2 is no number")

    with caplog.at_level(logging.INFO, "remoter_kernel"):
        if is_asked:
            keeper = KeeperServer()
            monkeypatch.setattr(keeper, "_dispatch", fail)
            visitor: Any = Visitor()
            words, _ = keeper._handle(visitor, {"do": "run"}, [])
            assert "ValueError" in words["what"]
            assert "hunter2" not in words["what"]
        else:
            keeper_server._logging_errors(fail)
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert "hunter2" not in "".join(capfd.readouterr())
