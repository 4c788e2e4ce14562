"""Which way a dialer takes, what it says of one that led nowhere, and what it starts anew."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.errors import (
    ForwardingRefused,
    NoSuchSession,
    ProtocolError,
    RemoteLacks,
    Unreachable,
)
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.launch.launcher import SessionInfo, SessionRequest
from remoter_kernel.local.login.login import CommandEnded, CompletedCommand
from remoter_kernel.local.session import dialer as dialer_module
from remoter_kernel.local.session import undelivered_commands
from remoter_kernel.local.session.dealer_socket import AnotherWay
from remoter_kernel.local.session.dialer import SessionDialer

if TYPE_CHECKING:
    from pathlib import Path

CUT = Unreachable("The connection was cut.")
REMOTE = Remote(name="box", host="box")


class Host:
    """A login, and what is there; each way may be in the way."""

    host = "box"

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.is_forbidden = False
        self.is_ended = False  # does the bridge end at once?
        self.starts: list[Any] = []  # what each start is answered with, unless there is none left
        self.wishes: list[Any] = []
        self.stopped: list[str] = []
        self.answers: list[dict[str, str]] = []

    def open_tunnel(self, _host: str, _port: int) -> SimpleNamespace:
        if self.is_forbidden:
            raise ForwardingRefused("No.")
        self.opened.append("tunnel")
        return SimpleNamespace(address="ipc://x")

    def open_pipe(self, _command: str, _greeting: bytes) -> SimpleNamespace:
        if self.is_ended:
            raise CommandEnded(CompletedCommand(b"", b"no such thing", 3))
        self.opened.append("pipe")
        return SimpleNamespace(address="ipc://x")

    def close(self) -> None:
        """It may be closed as often as one likes."""

    def start(self, _login: Any, _remote: Any, wish: Any, on_commands: Any) -> SessionInfo:
        self.wishes.append(wish)
        on_commands(self.answers)
        answer = self.starts.pop(0) if self.starts else address()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask(self, _login: Any, _remote: Any, words: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        self.stopped += words["sessions"]
        return {"stopped": []}, b""


def address(session: str = "7f3a9c", *, is_joined: bool = False) -> SessionInfo:
    return SessionInfo(session, "127.0.0.1", 1, "0" * 40, is_joined, "box", "me", "3.11", "27")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host, and a state folder of the test's own."""
    host = Host()
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path))
    monkeypatch.setattr(dialer_module, "log_in_by_keeper", lambda *_, **__: host)
    monkeypatch.setattr(dialer_module, "start_session", host.start)
    monkeypatch.setattr(dialer_module, "query_remote", host.ask)
    return host


@pytest.fixture
def dialer(host: Host) -> SessionDialer:
    dialer = SessionDialer(lambda: REMOTE)
    dialer.session_request = SessionRequest(client_key="", kernel_id="0123")
    return dialer


def test_a_way_that_led_to_nobody_is_followed_by_the_other_one(dialer, host):
    """Then the error says what to do; the next try begins with the first way again."""
    dialer.dial()
    assert isinstance(dialer.on_no_welcome(CUT), AnotherWay)
    dialer.dial()
    error = dialer.on_no_welcome(CUT)
    assert not isinstance(error, AnotherWay)
    assert error.advice
    dialer.dial()
    assert host.opened == ["tunnel", "pipe", "tunnel"]


@pytest.mark.parametrize("opened", ["tunnel", "pipe"])
def test_a_way_by_which_the_session_has_answered_is_kept(dialer, host, opened):
    """A cut of it is a cut of the network."""
    dialer.dial()
    if opened == "pipe":
        dialer.on_no_welcome(CUT)
        dialer.dial()
    dialer.dial()  # nobody has doubted: it was up, and was lost
    assert dialer.on_no_welcome(CUT) is CUT
    dialer.dial()
    assert host.opened[-2:] == [opened] * 2


def test_what_the_session_itself_has_said_is_what_is_told(dialer):
    """A greeting that is refused came by this way."""
    refused = ProtocolError("The session's greeting was refused.")
    dialer.dial()
    assert dialer.on_no_welcome(refused) is refused
    assert not dialer.tunnel.is_command


def test_where_forwarding_is_forbidden_there_is_no_other_way(dialer, host):
    """What fails is told, with advice."""
    host.is_forbidden = True
    dialer.dial()
    error = dialer.on_no_welcome(CUT)
    assert not isinstance(error, AnotherWay)
    assert "forbidden" in error.what
    assert error.advice
    dialer.dial()
    assert host.opened == ["pipe", "pipe"]


def test_a_command_that_ends_says_why(dialer, host):
    """Its own words are in the error, and advice."""
    host.is_forbidden = host.is_ended = True
    with pytest.raises(RemoteLacks, match="no such thing") as raised:
        dialer.dial()
    assert raised.value.advice


def test_what_was_started_and_never_reached_is_ended(dialer, host):
    """By its name, through the login; nothing is written down."""
    dialer.dial()
    dialer.stop_orphan()
    assert host.stopped == ["7f3a9c"]
    assert undelivered_commands.load_commands("box") == ()


def test_what_may_have_been_started_is_ended_at_the_next_login(dialer, host):
    """The login was cut before anybody heard its name."""
    host.starts = [Unreachable("the connection is gone.")]
    with pytest.raises(Unreachable):
        dialer.dial()
    dialer.stop_orphan()
    (order,) = undelivered_commands.load_commands("box")
    assert (order.fields["order"], order.fields["session"]) == ("stop", "")


@pytest.mark.parametrize("start", [RemoteLacks("no kernel."), address(is_joined=True)])
def test_what_is_not_ours_is_left_alone(dialer, host, start):
    """A start that was answered with an error, and another proxy's session."""
    host.starts = [start] * 2
    if isinstance(start, Exception):
        with pytest.raises(RemoteLacks):
            dialer.dial()
    else:
        dialer.dial()
    dialer.stop_orphan()
    assert (host.stopped, undelivered_commands.load_commands("box")) == ([], ())


def test_a_session_that_ended_before_anybody_came_is_started_anew(dialer, host):
    """Nothing was in it yet. One that was used is gone, and one hears so."""
    dialer.dial()
    dialer.on_no_welcome(CUT)
    host.starts = [NoSuchSession("It is gone."), address("abcdef")]
    dialer.dial()
    assert dialer.session_info.session == "abcdef"
    assert [wish.session for wish in host.wishes] == ["", "7f3a9c", ""]
    dialer.dial()
    dialer.on_no_welcome(CUT)
    host.starts = [NoSuchSession("It is gone.")]
    with pytest.raises(NoSuchSession):
        dialer.dial()


def test_what_could_not_be_carried_out_is_told_with_the_next_session(dialer, host):
    """Also where the start after it fails: whoever starts then hears of it, once."""
    undelivered_commands.save_command("box", "k", "7f3a9c", "restart")
    host.answers = [{"name": "k", "became": "failed", "why": "It crashes."}]
    host.starts = [RemoteLacks("no room.")]
    with pytest.raises(RemoteLacks):
        dialer.dial()
    (sent,) = host.wishes[0].orders
    assert json.dumps(sent)
    host.answers = []
    dialer.dial()
    assert host.wishes[1].orders == ()
    (notice,) = dialer.session_info.notices
    assert "It crashes." in notice
    dialer.on_no_welcome(CUT)
    dialer.dial()
    assert dialer.session_info.notices == ()
