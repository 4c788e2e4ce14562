"""The last order of a front that has not met its session."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from remoter_kernel.errors import NoSuchSession, Unreachable
from remoter_kernel.front import orders
from remoter_kernel.front.departure import leave_with
from remoter_kernel.front.link import State


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
        dialer=SimpleNamespace(remote=SimpleNamespace(name="gpu-box")),  # type: ignore[arg-type]
        kernel_id="0123",
    )
    written = ({"order": order, "kernel_id": "0123", "session": ""},)
    assert orders.pending("gpu-box") == (written if is_written else ())
    assert stopped
