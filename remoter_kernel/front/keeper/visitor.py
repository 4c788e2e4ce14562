"""One visitor of a keeper: what it asks for, what it is asked, and the tunnels that are its own."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Any

from remoter_kernel.front.keeper.talk import raise_told, receive, send
from remoter_kernel.front.questions import NotAnswered, Trust
from remoter_kernel.front.ssh.channel import Closed
from remoter_kernel.wire.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

    from remoter_kernel.front.questions import Prompt
    from remoter_kernel.front.ssh.login import Login
    from remoter_kernel.front.ssh.tunnel import Tunnel

Heard = tuple[dict[str, Any], list[bytes]]

LOOK_EVERY = 1.0  # seconds between two looks at whether a question still has a point


class Visitor:
    """A front or a command; may be asked (see `Questions`)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._requests: queue.SimpleQueue[Heard | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._mouth = threading.Lock()  # steps and questions may come from two threads
        self.is_gone = False
        self._under_way: Login | None = None  # a login that is being made for this visitor
        self._tunnels: list[Tunnel] = []
        self._reader = Thread(self._read, name="keeper-ear", on_error=self._read_no_more)

    def requests(self) -> Iterator[Heard]:
        """Yield what it asks for, until it goes."""
        self._reader.start()
        while (heard := self._requests.get()) is not None:
            yield heard

    def say(self, words: dict[str, Any], *blobs: bytes) -> None:
        """Answer; one that is gone does not hear it."""
        with contextlib.suppress(OSError), self._mouth:
            send(self._connection, words, *blobs)

    def leave(self) -> None:
        """Show it out: its tunnels end."""
        self._note_end()
        tunnels, self._tunnels = self._tunnels, []
        for tunnel in tunnels:
            tunnel.close()
        with contextlib.suppress(OSError):
            self._connection.close()

    # --- its tunnels ---

    def own(self, tunnel: Tunnel) -> dict[str, Any]:
        """Keep a tunnel for as long as the visitor stays."""
        with self._lock:
            self._tunnels = [each for each in self._tunnels if each.is_open] + [tunnel]
            if not self.is_gone:
                return {"address": tunnel.address, "secret": tunnel.secret.hex()}
        tunnel.close()
        return {}

    @property
    def has_tunnels(self) -> bool:
        """Would it miss the login?"""
        return any(tunnel.is_open for tunnel in list(self._tunnels))

    @property
    def received(self) -> int:
        """How many bytes have come for it so far."""
        return sum(tunnel.received for tunnel in self._tunnels)

    # --- what it is asked and told (the thread of the one who logs in) ---

    def watch(self, login: Login | None) -> None:
        """Know a login that is being made: if the visitor goes, nobody waits for it."""
        with self._lock:
            self._under_way = login
            is_gone = self.is_gone
        if login and is_gone:
            login.cut()

    def tell_step(self, step: str) -> None:
        """Tell which step of a login begins."""
        self.say({"step": step})

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> Trust:
        """Have the visitor's person asked about a host key."""
        words = {"ask": "host key", "host": host, "kind": kind, "fingerprint": fingerprint}
        return Trust(self._ask(words)["trust"])

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        """Have the visitor's person asked."""
        shown = [[prompt.text, prompt.is_shown] for prompt in prompts]
        words = {"ask": "prompts", "host": host, "prompts": shown, "instruction": instruction}
        return [str(answer) for answer in self._ask(words)["answers"]]

    def _ask(self, words: dict[str, Any]) -> dict[str, Any]:
        self.say(words)
        answer = self._wait_for_answer()
        if answer is None:
            raise NotAnswered("the question was not answered: whoever asked for the login is gone.")
        raise_told(answer, [])
        return answer

    def _wait_for_answer(self) -> dict[str, Any] | None:
        """Wait as long as a person and the server do: meanwhile nobody else can log in."""
        while True:
            try:
                return self._answers.get(timeout=LOOK_EVERY)
            except queue.Empty:
                login = self._under_way
                if login and login.has_ended:
                    raise Closed from None

    # --- its own thread ---

    def _read(self) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError, LookupError, TypeError):
            while True:
                words, blobs = receive(self._connection)
                if "do" in words:
                    self._requests.put((words, blobs))
                else:
                    self._answers.put(words)
        self._read_no_more()

    def _read_no_more(self, _error: BaseException | None = None) -> None:
        self._note_end()
        self._requests.put(None)
        self._answers.put(None)

    def _note_end(self) -> None:
        with self._lock:
            self.is_gone = True
            login, self._under_way = self._under_way, None
        if login:
            login.cut()
