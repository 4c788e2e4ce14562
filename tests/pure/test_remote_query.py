"""Remotes are asked all at once; whoever waits no longer has nothing asked behind their back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.errors import Unreachable
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.history import remote_query
from remoter_kernel.local.history.remote_query import RemoteQuery, query_remotes

if TYPE_CHECKING:
    from collections.abc import Callable

WITHIN = 20.0  # seconds


class Login:
    """Is asked, and has no answer until it is closed."""

    host = "gpu"

    def __init__(self) -> None:
        self.is_closed = threading.Event()

    def close(self) -> None:
        self.is_closed.set()


class Logins(list[Login]):
    """Which logins there were, and whether one was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = threading.Event()


@pytest.fixture
def logins(monkeypatch):
    made = Logins()

    def log_in(_remote, _questions, on_try):
        made.append(Login())
        on_try(made[-1])
        return made[-1]

    def ask_there(login, _remote, _words):
        made.is_asked.set()
        assert len(made) > 1 or login.is_closed.wait(WITHIN)
        raise Unreachable("gone.")

    monkeypatch.setattr(remote_query, "log_in_by_keeper", log_in)
    monkeypatch.setattr(remote_query, "query_remote", ask_there)
    return made


def test_what_is_called_off_logs_in_no_more(monkeypatch, logins):
    """To be cut looks like a bad network, after which one would log in again, and be asked."""
    remotes = [Remote("pressed", "gpu"), Remote("slow", "gpu")]
    monkeypatch.setattr(remote_query, "_remotes_named", lambda _names: remotes)
    list_one = remote_query._list_sessions

    def list_until_pressed(visit):
        if visit.remote.name == "slow":
            return list_one(visit)
        assert logins.is_asked.wait(WITHIN)
        raise KeyboardInterrupt

    monkeypatch.setattr(remote_query, "_list_sessions", list_until_pressed)
    with pytest.raises(KeyboardInterrupt), query_remotes(None, None):
        pass
    assert len(logins) == 1


def test_a_login_that_began_just_then_is_closed(logins):
    visit = RemoteQuery(Remote("box", "gpu"))
    visit.cancel()
    know: Callable[[Any], None] = visit._on_login_started
    know(login := Login())
    assert login.is_closed.is_set()
    for act in (visit.open, visit.sessions):
        with pytest.raises(Unreachable, match="called off"):
            act()
    assert not logins
