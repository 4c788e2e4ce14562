"""Copies files between this machine and a remote, and goes on where it was when the link is cut.

Blocks; `stop` may be called from another thread.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

from remoter_kernel.errors import ProtocolError, RemoteLacks, RemoterError, Unreachable
from remoter_kernel.local.launch.launcher import notify_if_slow, open_transfer
from remoter_kernel.local.private_sockets import connect_to_listener
from remoter_kernel.local.transfer.transfer_progress import (
    TransferProgress,
    TransferResult,
    dry_run_lines,
    escape_name,
    transfer_error,
)
from remoter_kernel.transfer.framed_stream import (
    TRANSFER_VERSION,
    FileTrouble,
    FramedStream,
    FrameType,
)
from remoter_kernel.transfer.plan import make_plan
from remoter_kernel.transfer.receiver import Receiver
from remoter_kernel.transfer.sender import Sender

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.login.login import Login
    from remoter_kernel.local.transfer.transfer_progress import TransferSpec
    from remoter_kernel.transfer.plan import Plan

CONNECT_WITHIN = 5.0  # seconds; it is on this machine
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds between two tries: nobody waits at a prompt
MOST_TRIES = 8  # without a byte that came through
PROGRESS_EVERY = 0.1  # seconds
ASK_OWNER = "Nothing more was carried. Ask who runs it."


class TransferInterrupted(RemoterError):
    """Somebody has interrupted it."""

    name = "KeyboardInterrupt"  # as cells call it

    def __init__(self) -> None:
        super().__init__(
            "The transfer was interrupted; what has arrived stays.",
            "The next try goes on from there.",
        )


class SocketEnds:
    """A connected socket, as the ends of a stream."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def fileno(self) -> int:
        """The descriptor to select for reading."""
        return self._connection.fileno()

    def read_into(self, view: memoryview) -> int:
        """Read what is there; 0 is the end."""
        return self._connection.recv_into(view)

    def write(self, view: memoryview) -> int:
        """Write some of it."""
        return self._connection.send(view)

    def end(self) -> None:
        """Let a blocked `read_into` or `write` fail: `close` would not wake them."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class Transfer:
    """One transfer: `run` it, once."""

    def __init__(
        self,
        spec: TransferSpec,
        remote: Remote,
        log_in: Callable[[bool], AbstractContextManager[Login]],
        on_progress: Callable[[TransferProgress], None] = lambda _progress: None,
        *,
        plan: Plan | None = None,
    ) -> None:
        """`log_in(in_doubt)` gives a login; in doubt, one that is checked, as the last may be dead.

        `plan`: what is to be put, where a person was asked about just that.
        """
        self._plan = plan
        self._spec = spec
        self._remote = remote
        self._log_in = log_in
        self._on_progress = on_progress
        self._progress = TransferProgress(is_put=spec.is_put, remote=remote.name)
        self._endpoint: Sender | Receiver | None = None  # the local end
        self._stream: FramedStream | None = None  # while one is open
        self._started_at = self._reported_at = 0.0
        self._attempt: tuple[float, int] | None = None  # when its first bytes came, and after which
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """Interrupt it; from another thread."""
        self._is_stopped.set()
        stream = self._stream  # the other thread may set it to None meanwhile
        if stream:
            stream.stop()

    def run(self) -> TransferResult:
        """Copy all; a RemoterError says why not."""
        self._started_at = time.monotonic()
        spec = self._spec
        try:
            if spec.is_put:
                plan = self._plan or make_plan(spec.sources, str(spec.here))
                self._endpoint = Sender(plan, self._on_bytes)
            else:
                self._endpoint = Receiver(
                    spec.to,
                    str(spec.here),
                    self._on_bytes,
                    asked=spec.sources,
                    on_name=self._report_name,
                    is_dry=spec.is_dry,
                )
            self._retry_until_done()
        except FileTrouble as trouble:
            raise transfer_error(trouble, spec, self._remote.name) from None
        except RemoterError as error:
            if self._is_stopped.is_set():
                raise TransferInterrupted from None
            if isinstance(error, ProtocolError):
                raise RemoteLacks(error.what, ASK_OWNER, remote=self._remote.name) from None
            raise error.at(self._remote.name) from None
        return self._result(time.monotonic() - self._started_at)

    def _retry_until_done(self) -> None:
        """Try until all is copied; give up after MOST_TRIES without a byte that came through."""
        tries, pause = 0, FIRST_PAUSE
        size_at_cut = 0  # bytes
        while True:
            try:
                self._try_once(in_doubt=tries > 0)
            except Unreachable as error:
                if not self._handshake_done() or self._is_stopped.is_set():
                    raise
                if self._progress.size > size_at_cut:  # something came through: it is worth it
                    tries, pause, size_at_cut = 0, FIRST_PAUSE, self._progress.size
                tries += 1
                if tries > MOST_TRIES:
                    raise Unreachable(
                        f"The link was lost, and did not come back: {error.what}",
                        "What has arrived stays; run it again, and it goes on where it stopped.",
                    ) from None
                self._report_note(f"the link was lost, try {tries} of {MOST_TRIES}")
            else:
                return
            self._is_stopped.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _try_once(self, *, in_doubt: bool) -> None:
        with self._log_in(in_doubt) as login:
            with notify_if_slow(self._remote.host, self._report_note):
                way = open_transfer(login, self._remote)
            try:
                connection = connect_to_listener(way.address, CONNECT_WITHIN)
                connection.sendall(way.secret)  # other users of this machine can connect there, too
            except OSError as error:
                raise Unreachable(f"the connection is gone ({error}).") from None
            with connection:
                self._run_protocol(FramedStream(SocketEnds(connection)))

    def _run_protocol(self, stream: FramedStream) -> None:
        spec = self._spec
        request = {
            "transfer": TRANSFER_VERSION,
            "do": "receive" if spec.is_put else "send",
            "to": spec.to,
            "sources": list(spec.sources),
            "cwd": spec.there,
            "dry": spec.is_dry,
            "asks": self._handshake_done(),  # after a cut, small files may be there, too
        }
        self._stream, self._attempt = stream, None
        stream.start()
        try:
            if self._is_stopped.is_set():  # before `stop` could see the stream
                raise Unreachable("it was interrupted.")
            stream.send_json(FrameType.WISH, request)
            assert self._endpoint is not None  # noqa: S101 - made before the first try
            self._endpoint.run(stream)
        finally:
            self._stream = None
            stream.stop()
            stream.close()

    def _handshake_done(self) -> bool:
        """Has the other end ever answered?"""
        return bool(self._endpoint and self._endpoint.targets)

    # --- how far it is ---

    def _on_bytes(self, size: int, files: int) -> None:
        """Count what has been sent, or received; report it now and then."""
        progress, end, now = self._progress, self._endpoint, time.monotonic()
        if self._attempt is None:  # the totals are known by now, and may be others than before
            self._attempt = now, size
            if isinstance(end, Sender):
                progress.all_size, progress.all_files = end.plan.size, end.plan.files
            elif end:
                progress.all_size = end.start.get("size", 0)
                progress.all_files = end.start.get("files", 0)
        progress.size, progress.files = size, files
        is_last = files == progress.all_files
        if not is_last and now - self._reported_at < PROGRESS_EVERY:
            return
        self._reported_at = now
        began, began_with = self._attempt
        progress.seconds = now - self._started_at
        progress.recent, progress.recent_seconds = size - began_with, now - began
        progress.note = ""
        self._on_progress(progress)

    def _report_name(self, word: str, name: str) -> None:
        """Report the name of a source that was asked for as `.` or `~`, before it is written."""
        self._report_note(f"{escape_name(word)} is called {escape_name(name)} there")

    def _report_note(self, note: str) -> None:
        self._progress.note = note
        self._on_progress(self._progress)

    def _result(self, seconds: float) -> TransferResult:
        end, spec, remote = self._endpoint, self._spec, self._remote.name
        assert end is not None  # noqa: S101 - it has run
        troubles = tuple(transfer_error(each, spec, remote) for each in end.troubles)
        if isinstance(end, Sender):
            plan, names = end.plan, [str(top["name"]) for top in end.plan.tops]
            places = dict(zip(names, end.targets, strict=False))
            entries = [(item.place, item.entry) for item in plan.items]
            rows = [
                (place, entry.kind, entry.size, _target_of_entry(entry.path, places))
                for place, entry in entries
            ]
            left_out, (files, size) = plan.left_out, end.arrived
        else:
            rows = [(entry.path, entry.kind, entry.size, place) for entry, place in end.entries]
            left_out = end.start.get("left_out", [])
            files, size = self._progress.files, self._progress.size
        return TransferResult(
            files=files,
            size=size,
            seconds=seconds,
            targets=tuple(end.targets),
            left_out=tuple(map(escape_name, left_out)),
            troubles=troubles,
            dry_run=tuple(dry_run_lines(rows)) if spec.is_dry else (),
            is_dry=spec.is_dry,
        )


def _target_of_entry(path: str, places: dict[str, str]) -> str:
    """Return where an entry goes, of which it is known where its source goes."""
    top, slash, rest = path.partition("/")
    return f"{places.get(top, top)}{slash}{rest}"
