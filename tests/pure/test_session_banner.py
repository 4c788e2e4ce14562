"""What a person hears of a session in the first cell: each thing once."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from remoter_kernel.local.launch.launcher import SessionInfo
from remoter_kernel.local.proxy.presenters import SessionBanner
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.messages import MessageSigner, header_of
from remoter_kernel.protocol.requests import Request, Requests, Stage

CELL = MessageSigner(b"").compose("execute_request", {"code": "1", "silent": False})
ASKED = Request(Channel.SHELL, CELL, header_of(CELL[1]), number=1)


def address(*notices: str) -> SessionInfo:
    known = SessionInfo("7f3a9c", "127.0.0.1", 1, "0" * 40, True, "box", "me", "3.11", "27")
    return replace(known, notices=notices)


def test_a_notice_is_told_once_however_often_the_link_comes_back():
    """Another start of the same session may bring another one."""
    told: list[str] = []
    replies: Any = SimpleNamespace(
        send_state=lambda _cell, _state: None, write=lambda _header, text: told.append(text)
    )
    requests = Requests()
    requests.add(ASKED, Stage.QUEUED)
    news = SessionBanner(replies, requests, lambda: True)
    first = address("Session abc123 could not be stopped.")
    for heard in (first, first, address(), address("Another one.")):
        news.on_session(heard, "", is_busy=False)
        news.on_link_state()
    assert told == ["[remoter] Session abc123 could not be stopped.\n", "[remoter] Another one.\n"]
