"""The last order of a proxy that has no link to its session."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from remoter_kernel.errors import NoSuchSession, RemoteLacks, Unreachable
from remoter_kernel.local.session import undelivered_commands
from remoter_kernel.local.session.final_command import send_and_exit
from remoter_kernel.local.session.link import LinkState


def a_dialer(session: str = "", *, is_claimed: bool = True) -> SimpleNamespace:
    """A dialer of a proxy that may have been told for which notebook it is."""
    return SimpleNamespace(
        remote=SimpleNamespace(name="gpu-box"),
        session_request=SimpleNamespace(kernel_id="0123"),
        session_info=SimpleNamespace(session=session) if session else None,
        is_identified=SimpleNamespace(is_set=lambda: is_claimed),
    )


@pytest.mark.parametrize("order", ["restart", "stop"])
@pytest.mark.parametrize(
    ("state", "error", "session", "is_written"),
    [
        (LinkState.FAILED, Unreachable("No route."), "", True),
        (LinkState.FAILED, NoSuchSession("It is over."), "", False),
        (LinkState.FAILED, RemoteLacks("The kernel did not start."), "7f3a9c", True),
        (LinkState.IDLE, None, "", False),
    ],
)
def test_it_is_written_down_where_there_may_be_a_session(
    order, state, error, session, is_written, *, tmp_path, monkeypatch
):
    """The host cannot be reached now, and nobody waits for what will not come by itself."""
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path))
    stopped = []
    send_and_exit(
        order,
        reactor=SimpleNamespace(stop=lambda: stopped.append(True)),  # type: ignore[arg-type]
        link=SimpleNamespace(state=state, ever_connected=bool(session), error=error),  # type: ignore[arg-type]
        dialer=a_dialer(session),  # type: ignore[arg-type]
    )
    written = [{"order": order, "kernel_id": "0123", "session": session}]
    pending = [dict(each.fields) for each in undelivered_commands.load_commands("gpu-box")]
    assert [bool(each.pop("nonce")) for each in pending] == [True] * len(pending)
    assert pending == (written if is_written else [])
    assert stopped


def test_a_front_that_nobody_has_told_anything_ends_at_once(tmp_path, monkeypatch):
    """It has no session, and none before it is meant."""
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path))
    stopped = []
    for state in (LinkState.DIALLING, LinkState.FAILED):
        link = SimpleNamespace(state=state, ever_connected=False, error=Unreachable("No route."))
        reactor = SimpleNamespace(stop=lambda: stopped.append(True))
        send_and_exit("stop", reactor=reactor, link=link, dialer=a_dialer(is_claimed=False))  # type: ignore[arg-type]
    assert len(stopped) == 2
    assert not undelivered_commands.load_commands("gpu-box")
