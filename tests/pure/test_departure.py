"""The last order of a front that has not met its session."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from remoter_kernel.errors import NoSuchSession, Unreachable
from remoter_kernel.front import orders
from remoter_kernel.front.departure import leave_with
from remoter_kernel.front.link import State


def a_dialer(*, is_claimed: bool = True) -> SimpleNamespace:
    """A dialer of a front that may have been told for which notebook it is."""
    return SimpleNamespace(
        remote=SimpleNamespace(name="gpu-box"),
        wish=SimpleNamespace(kernel_id="0123"),
        is_claimed=SimpleNamespace(is_set=lambda: is_claimed),
    )


@pytest.mark.parametrize("order", ["restart", "stop"])
@pytest.mark.parametrize(
    ("state", "error", "is_written"),
    [
        (State.FAILED, Unreachable("No route."), True),
        (State.FAILED, NoSuchSession("It is over."), False),
        (State.IDLE, None, False),
    ],
)
def test_it_is_written_down_where_a_front_before_it_may_have_left_a_session(
    order, state, error, is_written, *, tmp_path, monkeypatch
):
    """Its predecessor was killed, and the host cannot be reached now."""
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path))
    stopped = []
    leave_with(
        order,
        reactor=SimpleNamespace(stop=lambda: stopped.append(True)),  # type: ignore[arg-type]
        link=SimpleNamespace(state=state, has_met=False, error=error),  # type: ignore[arg-type]
        dialer=a_dialer(),  # type: ignore[arg-type]
    )
    written = ({"order": order, "kernel_id": "0123", "session": ""},)
    assert orders.pending("gpu-box") == (written if is_written else ())
    assert stopped


def test_a_front_that_nobody_has_told_anything_ends_at_once(tmp_path, monkeypatch):
    """It has no session, and none before it is meant."""
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path))
    stopped = []
    for state in (State.DIALLING, State.FAILED):
        link = SimpleNamespace(state=state, has_met=False, error=Unreachable("No route."))
        reactor = SimpleNamespace(stop=lambda: stopped.append(True))
        leave_with("stop", reactor=reactor, link=link, dialer=a_dialer(is_claimed=False))  # type: ignore[arg-type]
    assert len(stopped) == 2
    assert not orders.pending("gpu-box")
