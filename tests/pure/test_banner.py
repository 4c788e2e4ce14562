"""How long a server may be silent, and what of its words a person has yet to see."""

from __future__ import annotations

from typing import Any

import pytest

from remoter_kernel.local.login.banner import ACTED_ON_WITHIN, MOST_SHOWN, Banner
from remoter_kernel.local.login.login import AUTH_RESULT_WITHIN, ResponseTimeout
from remoter_kernel.local.login.openssh import openssh_login
from remoter_kernel.local.login.openssh.openssh_login import OpenSSHLogin
from remoter_kernel.local.login.paramiko import authenticator
from remoter_kernel.local.login.paramiko.authenticator import Authenticator
from remoter_kernel.local.login.paramiko.userauth import AuthResult

ADDRESS = "Visit https://login.example.org/a/1"
RULES = "Be nice."


class Door:
    """A server that lets somebody in at some time, by a clock of its own."""

    def __init__(self, banner: str, at: float) -> None:
        self.banner, self.at, self.now, self.nudges = banner, at, 1000.0, 0
        self.began = self.now

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> AuthResult:
        until = self.now + seconds
        if self.began + self.at <= until:
            self.now = max(self.now, self.began + self.at)
            return AuthResult(is_success=True)
        self.now = until
        raise ResponseTimeout

    def send_ignore(self) -> None:
        self.nudges += 1


def way_in(door: Door, shown: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> Authenticator:
    found: Any = object.__new__(Authenticator)
    found._userauth = door
    found._banner = Banner("box", None if shown is None else shown.append)
    monkeypatch.setattr(authenticator, "time", door)
    way: Authenticator = found
    return way


@pytest.mark.parametrize(
    ("banner", "has_person", "patience"),
    [
        ("", True, AUTH_RESULT_WITHIN),
        (RULES, True, AUTH_RESULT_WITHIN),
        (ADDRESS, True, ACTED_ON_WITHIN),
        ("Open example.org/device and type ABC", True, ACTED_ON_WITHIN),
        (ADDRESS, False, AUTH_RESULT_WITHIN),
    ],
)
def test_a_server_that_has_named_an_address_may_be_silent_for_long(
    *, banner: str, has_person: bool, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] | None = [] if has_person else None
    in_time = way_in(Door(banner, patience - 0.5), shown, monkeypatch)
    assert in_time._wait_for_response() == AuthResult(is_success=True)
    late = Door(banner, patience + 0.5)
    with pytest.raises(ResponseTimeout):
        way_in(late, shown, monkeypatch)._wait_for_response()
    assert late.now - late.began == pytest.approx(patience)
    assert (late.nudges > 0) == (patience > AUTH_RESULT_WITHIN)


def test_it_is_shown_once_and_only_where_the_server_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    way_in(Door(ADDRESS, 0.5), shown, monkeypatch)._wait_for_response()
    assert shown == []
    way_in(Door(ADDRESS, 50.0), shown, monkeypatch)._wait_for_response()
    assert shown == [f"[box says] {ADDRESS}"]


def test_what_was_shown_is_not_shown_again_and_what_comes_later_is() -> None:
    shown: list[str] = []
    banner = Banner("box", shown.append)
    banner.show(RULES)
    banner.show(RULES)
    assert banner.take_unseen(RULES) == ""
    assert banner.take_unseen(f"{RULES}\n{ADDRESS}") == f"[box says] {ADDRESS}"
    banner.show(f"{RULES}\n{ADDRESS}")
    assert shown == [f"[box says] {RULES}"]


def test_a_server_that_says_something_new_all_the_time_is_not_shown_without_end() -> None:
    shown: list[str] = []
    banner = Banner("box", shown.append)
    for number in range(200):
        banner.show(f"{ADDRESS}?{number}")
    assert len(shown) == MOST_SHOWN


class Ssh:
    """An ssh that passes on what a server says, by a clock of its own."""

    def __init__(self) -> None:
        self.step, self.server_text, self.now, self.heard_at = "login", "", 1000.0, 1000.0
        self.is_asking = False  # as the desk, too

    @property
    def idle_seconds(self) -> float:
        return self.now - self.heard_at

    def perf_counter(self) -> float:
        return self.now

    def show(self, _text: str) -> None:
        pass


def waited_for(login: Any, ssh: Ssh, *, each: float) -> float:
    """Let the server say a line with an address each so many seconds; return how long it has."""
    began = ssh.now
    while OpenSSHLogin._is_prompting(login, ssh):  # type: ignore[arg-type]
        ssh.now += 1.0
        if ssh.now - ssh.heard_at >= each:
            ssh.heard_at, ssh.server_text = ssh.now, f"{ssh.server_text}{ADDRESS}\n"
        if ssh.now - began > 10 * ACTED_ON_WITHIN:
            break
    return ssh.now - began


@pytest.mark.parametrize("each", [2.0, 1e9])
def test_openssh_waits_as_long_for_a_server_that_trickles_as_for_a_silent_one(
    each: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a question it has its time again."""
    login: Any = object.__new__(OpenSSHLogin)
    ssh = Ssh()
    ssh.server_text = ADDRESS
    monkeypatch.setattr(openssh_login, "time", ssh)
    login._askpass, login._banner, login._waiting_since = ssh, Banner("box", ssh.show), None
    assert waited_for(login, ssh, each=each) == pytest.approx(ACTED_ON_WITHIN)
    ssh.is_asking = True
    assert OpenSSHLogin._is_prompting(login, ssh)  # type: ignore[arg-type]
    ssh.is_asking = False
    assert waited_for(login, ssh, each=each) == pytest.approx(ACTED_ON_WITHIN)
