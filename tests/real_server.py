"""A real jupyter_server, and a notebook's kernel as a browser's websocket sees it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Self

import psutil

from tests.real_jupyter import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOKEN = "a-page"


class Page:
    """One notebook's kernel as a browser sees it."""

    def __init__(self, server: JupyterServer, session: dict[str, Any]) -> None:
        import websocket

        self.server = server
        self.session = session
        self.kernel = str(session["kernel"]["id"])
        address = f"ws://127.0.0.1:{server.port}/api/kernels/{self.kernel}/channels?token={TOKEN}"
        self.socket = websocket.create_connection(address, timeout=30)
        self.heard: list[dict[str, Any]] = []  # everything, in order; `came`: when
        self._said = 0

    def close(self) -> None:
        """Close the page and shut its kernel down."""
        self.socket.close()
        self.server.ask(f"sessions/{self.session['id']}", method="DELETE")

    def say(
        self,
        kind: str,
        content: dict[str, Any],
        channel: str = "shell",
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Send a message; return its id."""
        self._said += 1
        key = f"{self.kernel}-{self._said}"
        header = {
            "msg_id": key,
            "msg_type": kind,
            "username": "",
            "session": "page",
            "date": "",
            "version": "5.4",
        }
        words = {"header": header, "parent_header": {}, "metadata": metadata or {}}
        message = {**words, "content": content, "channel": channel, "buffers": []}
        self.socket.send(json.dumps(message))
        return key

    def run(self, code: str, *, cell: str = "", allow_stdin: bool = False) -> str:
        """Send a cell; return its id."""
        content = {"code": code, "silent": False, "allow_stdin": allow_stdin}
        metadata = {"cellId": cell} if cell else {}
        return self.say("execute_request", content, metadata=metadata)

    def listen(self, enough: Callable[[], Any], seconds: float = 60.0) -> None:
        """Take in messages until there is enough."""
        import websocket

        limit = time.monotonic() + seconds
        while not enough():
            left = limit - time.monotonic()
            assert left > 0, f"not within {seconds} s; the last were {self.heard[-5:]}"
            self.socket.settimeout(left)
            try:
                message = json.loads(self.socket.recv())
            except websocket.WebSocketTimeoutException:
                continue
            self.heard.append({**message, "came": time.monotonic()})

    def of(self, cell: str) -> list[dict[str, Any]]:
        """Return what came of a cell so far."""
        return [each for each in self.heard if each["parent_header"].get("msg_id") == cell]

    def is_over(self, cell: str) -> bool:
        """Has a cell its reply and its idle?"""
        said = self.of(cell)
        is_idle = any(each["content"].get("execution_state") == "idle" for each in said)
        return is_idle and any(each["msg_type"] == "execute_reply" for each in said)

    def states(self) -> list[str]:
        """Return the states that belong to no cell: `restarting` is one."""
        states = (each["content"].get("execution_state") for each in self.heard)
        return [state for state in states if state]

    def until_idle(self, cell: str, seconds: float = 60.0) -> Iterator[dict[str, Any]]:
        """Yield what comes of a cell until it has its reply and its idle."""
        while not self.is_over(cell):
            already = len(self.heard)
            self.listen(lambda already=already: len(self.heard) > already, seconds)  # type: ignore[misc]
            if self.heard[-1]["parent_header"].get("msg_id") == cell:
                yield self.heard[-1]


class JupyterServer:
    """A jupyter_server on a port of its own, with its default limits but for what is named."""

    program = "jupyter_server"  # a module that is run

    def __init__(self, folder: Path, log: Path, *options: str) -> None:
        self.folder = folder
        self.log = log
        self.options = options
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = [
            f"--port={self.port}",
            f"--IdentityProvider.token={TOKEN}",
            f"--ServerApp.root_dir={self.folder}",
            *self.options,
        ]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.program, "--no-browser", "--allow-root", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: self.ask("status"), seconds=30)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:  # an extension that does not end is not what is proven
            self._process.kill()
            self._process.wait(20)

    def kill(self) -> None:
        """Kill it and the kernels that it has started, as an empty battery does."""
        assert self._process is not None
        started = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(20)

    def has_ended(self) -> bool:
        """Has its process ended by itself?"""
        return self._process is not None and self._process.poll() is not None

    def ask(self, path: str, words: dict[str, Any] | None = None, method: str = "GET") -> Any:
        """Ask over REST; None if that failed."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}",
            json.dumps(words).encode() if words else None,
            {"Authorization": f"token {TOKEN}"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.URLError:
            return None

    def open(self, spec: str, notebook: str = "a.ipynb") -> Page:
        """Open a notebook with a kernel."""
        kernel = {"name": spec}
        words = {"path": notebook, "name": notebook, "type": "notebook", "kernel": kernel}
        return Page(self, self.ask("sessions", words, "POST"))


def text_of(messages: list[dict[str, Any]], name: str = "stdout") -> str:
    """Return what a stream shows."""
    return "".join(
        message["content"]["text"]
        for message in messages
        if message["msg_type"] == "stream" and message["content"]["name"] == name
    )
