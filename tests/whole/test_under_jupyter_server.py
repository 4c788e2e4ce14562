"""A real jupyter_server with its default limits, and a browser's websocket: nothing is dropped."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests import real_parts
from tests.real_jupyter import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere

LINES = 50_000
TOKEN = "floods"


class Page:
    """One notebook's kernel as a browser sees it."""

    def __init__(self, port: int, kernel: str) -> None:
        import websocket

        address = f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels?token={TOKEN}"
        self.socket = websocket.create_connection(address, timeout=30)
        self.said = 0

    def say(self, kind: str, content: dict[str, Any], channel: str = "shell") -> str:
        """Send a message; return its id."""
        self.said += 1
        key = f"message-{self.said}"
        header = {
            "msg_id": key,
            "msg_type": kind,
            "username": "",
            "session": "page",
            "date": "",
            "version": "5.4",
        }
        words = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        self.socket.send(json.dumps({**words, "channel": channel, "buffers": []}))
        return key

    def run(self, code: str) -> str:
        """Send a cell; return its id."""
        return self.say("execute_request", {"code": code, "silent": False, "allow_stdin": False})

    def until_idle(self, cell: str, seconds: float = 60.0) -> Iterator[dict[str, Any]]:
        """Yield what comes of a cell until it has its reply and its idle."""
        limit = time.monotonic() + seconds
        missing = {"reply", "idle"}
        while missing:
            assert time.monotonic() < limit, f"no {missing} within {seconds} s"
            message = json.loads(self.socket.recv())
            if message["parent_header"].get("msg_id") != cell:
                continue
            if message["msg_type"] == "execute_reply":
                missing.discard("reply")
            if message["content"].get("execution_state") == "idle":
                missing.discard("idle")
            yield message


@pytest.fixture
def page(here: JupyterHere, python_remote: dict[str, Any], tmp_path: Path) -> Iterator[Page]:
    """A notebook that is open in a browser, with a far kernel."""
    real_parts.real_part("jupyter_server")
    spec = here.add_remote("served", **python_remote)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = here.folder / "notebooks"
    root.mkdir(exist_ok=True)
    options = [
        f"--port={port}",
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={root}",
    ]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def ask(path: str, words: dict[str, Any] | None = None, method: str = "GET") -> Any:
        data = json.dumps(words).encode() if words else None
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/{path}",
            data,
            {"Authorization": f"token {TOKEN}"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.URLError:
            return None

    try:
        wait_for(lambda: ask("status"), seconds=30)
        words = {"path": "a.ipynb", "name": "a", "type": "notebook", "kernel": {"name": spec}}
        session = ask("sessions", words, "POST")
        yield (shown := Page(port, session["kernel"]["id"]))
        shown.socket.close()
        ask(f"sessions/{session['id']}", method="DELETE")
    finally:
        server.terminate()
        server.wait(20)


def text_of(messages: list[dict[str, Any]], name: str = "stdout") -> str:
    """Return what a stream shows."""
    return "".join(
        message["content"]["text"]
        for message in messages
        if message["msg_type"] == "stream" and message["content"]["name"] == name
    )


def test_five_megabytes_in_many_small_messages_come_whole(page: Page) -> None:
    """A cell that flushes each line, five times what passes in a second: all of it is shown."""
    cell = page.run("1")
    list(page.until_idle(cell))
    cell = page.run(f"for n in range({LINES}):\n    print(f'{{n:08}}', 'y' * 90, flush=n % 8 == 0)")
    messages = list(page.until_idle(cell))
    assert text_of(messages, "stderr") == ""
    assert text_of(messages) == "".join(f"{n:08} {'y' * 90}\n" for n in range(LINES))


def test_an_interrupt_of_a_paced_cell_is_quick(page: Page) -> None:
    """Text that waits for its pace is no reason to wait: idle within 2 s, and a line says why."""
    cell = page.run("n = 0\nwhile True:\n    print(n, 'flood ' * 12)\n    n += 1")
    begun, asked = time.monotonic(), 0.0
    messages = []
    for message in page.until_idle(cell):
        messages.append(message)
        if not asked and time.monotonic() - begun > 3.0 and text_of(messages[-1:]):
            asked = time.monotonic()
            page.say("interrupt_request", {}, "control")
    assert time.monotonic() - asked < 2.0
    assert "held back" in text_of(messages, "stderr")
    assert "rate exceeded" not in text_of(messages, "stderr")
