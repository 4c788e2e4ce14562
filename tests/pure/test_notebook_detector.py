"""Which notebook a client that starts kernels by itself has started a proxy for."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from remoter_kernel.local.proxy.client_startup_code import (
    MOST_HELD,
    ClientStartupCode,
    is_client_code,
)
from remoter_kernel.local.proxy.identity import ClientNotebookDetector
from remoter_kernel.local.session import machine
from remoter_kernel.local.session.notebook_identity import notebook_from
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.requests import Request, Requests, Stage

SILENT: dict[str, Any] = {"silent": True, "allow_stdin": False}


def a_request(kind: str = "execute_request", cell: Any = None, **content: Any) -> Request:
    """Make a request with this content, of this cell."""
    header = {"msg_type": kind, "msg_id": "m"}
    metadata = {} if cell is None else {"cellId": cell}
    parts = [b"", *(json.dumps(each).encode() for each in (header, {}, metadata, content))]
    return Request(Channel.SHELL, parts, header)


class Clock:
    """A reactor with one timer, which rings when the test says so."""

    def call_later(self, _seconds: float, call: Any) -> Any:
        self.ring = call
        return SimpleNamespace(cancel=lambda: None)


@pytest.fixture
def heard() -> list[str]:
    """What was heard, in order."""
    return []


@pytest.fixture
def clock() -> Clock:
    """When a wait is over."""
    return Clock()


@pytest.fixture
def introduction(clock: Clock, heard: list[str]) -> ClientNotebookDetector:
    """One that waits."""
    found = ClientNotebookDetector(clock, heard.append)  # type: ignore[arg-type]
    found.start()
    return found


@pytest.mark.parametrize(
    ("code", "path"),
    [
        ('import x\n__vsc_ipynb_file__ = "/home/ada/a b.ipynb"\nrest()', "/home/ada/a b.ipynb"),
        (
            '__vsc_ipynb_file__ = "c:\\\\\\\\Users\\\\\\\\ada\\\\\\\\ü.ipynb"',
            "c:\\\\Users\\\\ada\\\\ü.ipynb",
        ),
        ("print(__vsc_ipynb_file__)", ""),
        ('__vsc_ipynb_file__ = "never closed', ""),
        ("", ""),
    ],
)
def test_the_line_of_start_up_code(code: str, path: str) -> None:
    code, path = code.replace("\\\\", "\\"), path.replace("\\\\", "\\")
    assert notebook_from({"code": code}, {}) == path


@pytest.mark.parametrize(
    ("cell", "path"),
    [
        ("vscode-notebook-cell:/home/ada/a%20b.ipynb#W0sZmlsZQ%3D%3D", "/home/ada/a b.ipynb"),
        ("vscode-notebook-cell:/c%3A/Users/ada/a.ipynb#W1sZmlsZQ%3D%3D", "c:/Users/ada/a.ipynb"),
        ("vscode-notebook-cell://wsl%2Bubuntu/home/ada/a.ipynb#X1", "/home/ada/a.ipynb"),
        ("vscode-notebook-cell:Untitled-1.ipynb?jupyter-notebook#W0", "Untitled-1.ipynb"),
        ("vscode-interactive-input:/home/ada/a.py#1", ""),
        ("0c1b2a", ""),
        (["a list"], ""),
    ],
)
def test_the_address_of_a_cell(cell: Any, path: str) -> None:
    assert notebook_from({"code": "1"}, {"cellId": cell}) == path
    assert notebook_from({"code": "1"}, {}) == ""


def test_silent_code_and_what_a_person_types_leave_time(
    introduction: ClientNotebookDetector, heard: list[str]
) -> None:
    introduction.on_request(a_request(code="import ipywidgets", **SILENT))
    introduction.on_request(a_request("complete_request", code="pri", cursor_pos=3))
    assert introduction.is_waiting
    introduction.on_request(a_request(code='__vsc_ipynb_file__ = "/a.ipynb"', **SILENT))
    assert heard == ["/a.ipynb"]
    assert not introduction.is_waiting
    introduction.on_request(a_request(code="1"))
    assert heard == ["/a.ipynb"]


@pytest.mark.parametrize(
    "request_",
    [
        a_request(code="1"),
        a_request(code="1", silent=True),
        a_request(code="", user_expressions={"a": "1"}, **SILENT),
        a_request("comm_info_request"),
    ],
)
def test_what_wants_an_answer_is_not_held_up(
    introduction: ClientNotebookDetector, heard: list[str], request_: Request
) -> None:
    introduction.on_request(request_)
    assert heard == [""]


def test_a_client_that_says_nothing_is_not_waited_for_long(
    introduction: ClientNotebookDetector,
    clock: Clock,
    heard: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock.ring()
    assert heard == [""]
    assert not introduction.is_waiting
    of_vscode = ClientNotebookDetector(clock, heard.append)  # type: ignore[arg-type]
    clock.ring = None
    monkeypatch.setenv("VSCODE_PID", "1")
    of_vscode.start()
    assert clock.ring is None


def test_what_was_answered_runs_first_and_once() -> None:
    said: list[Any] = []
    requests = Requests()
    mouth: Any = SimpleNamespace(reply=lambda _request, content: said.append(content["status"]))
    link: Any = SimpleNamespace(
        ever_connected=False, send=lambda _channel, parts: said.append(parts)
    )
    startup = ClientStartupCode(requests, mouth, link)
    kept, late = a_request(code="a = 1", **SILENT), a_request(code="b = 1", **SILENT)
    assert startup.reply_early(kept)
    link.ever_connected = True
    assert startup.reply_early(late)
    assert not startup.reply_early(a_request(code="c = 1"))
    (held,) = requests
    assert (held.stage, held.why) == (Stage.HELD, "start-up code, answered already")
    startup.send_held()
    startup.send_held()
    assert said == ["ok", "ok", list(kept.parts)]
    assert len(requests) == 0
    assert not requests.on_state("m", "busy").is_new  # its client has heard that it was run


def test_start_up_code_is_kept_within_bounds() -> None:
    requests, said = Requests(), []
    mouth: Any = SimpleNamespace(reply=lambda _request, _content: None)
    link: Any = SimpleNamespace(
        ever_connected=False, send=lambda _channel, parts: said.append(parts)
    )
    startup = ClientStartupCode(requests, mouth, link)
    for number in range(MOST_HELD + 5):
        startup.reply_early(a_request(code=f"a = {number}", **SILENT))
    startup.send_held()
    assert len(said) == MOST_HELD
    assert b"a = 5" in said[0][-1]


@pytest.mark.parametrize(
    ("content", "is_own"),
    [
        ({"code": "1"}, False),
        ({"code": "1", "store_history": False}, False),
        ({"code": "1", "silent": True}, False),
        ({"code": "1", **SILENT}, True),
    ],
)
def test_what_is_a_clients_own_code(
    content: dict[str, Any], *, is_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VS Code, which starts kernels itself, does not call its own silent."""
    monkeypatch.setattr(machine, "_PARENT", "12")
    assert is_client_code(content) is is_own
    monkeypatch.setattr(machine, "_PARENT", "")
    assert is_client_code(content) is (is_own or content.get("store_history") is False)
