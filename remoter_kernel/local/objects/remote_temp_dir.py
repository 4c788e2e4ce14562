"""A private folder on the remote for what is carried: below the session's own, gone afterwards.

What is carried goes by the login and not by the session's messages, so that it is neither kept
in the journal nor sent to other clients of the session.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from remoter_kernel.errors import RemoteLacks, RemoterError, Unreachable
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from remoter_kernel.local.login.login import CompletedCommand

BLOCK = 64 * 1024  # bytes; the least that is sent at once
FIRST_PIECE = 256 * 1024  # bytes
LARGEST_PIECE = 8 * 1024 * 1024  # bytes: as much as is in memory here at once
PIECE_TAKES = 1.0  # seconds, about: what is interrupted is out of the way soon
MOST_TRIES = 5  # for a piece whose connection is cut
PIECE_WITHIN = 600.0  # seconds, on a slow link, too
POLL_EVERY = 0.1  # seconds between two looks at whether it was interrupted
CLEAR_WITHIN = 1.0  # seconds that the cell waits for the folder to be removed
OUTPUT_MARK = b"remoter-room:"  # what shells there print by themselves comes before it

# Lines that any login shell (csh and fish, too) passes on: no quotes inside, no newline, no `!`.
_FOLDER = '"${{XDG_DATA_HOME:-$HOME/.local/share}}/remoter-kernel/sessions/{session}/{name}"'
_OPEN = "sh -c 'umask 077; mkdir -p {folder} && cd {folder} && printf remoter-room: && pwd -P'"
# The same piece may be written twice: a cut leaves in doubt how much of it has arrived.
_WRITE = "sh -c 'umask 077; dd of={folder}/object bs={block} seek={begin} conv=notrunc 2>&1'"
_READ = "sh -c 'printf remoter-room:; tail -c +{begin} {folder}/object | head -c {size}'"
_ANSWER = "sh -c 'printf remoter-room:; head -c 1048577 {folder}/answer'"
_CLOSE = "sh -c 'rm -rf {folder}'"


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class CommandExecutor(Protocol):
    """What is needed of a login."""

    def run(self, command: str, stdin: bytes = b"", *, seconds: float = 60) -> CompletedCommand:
        """Run a command with this input, and wait until it ends."""


@dataclass
class RemoteTempDir:
    """One such folder, between enter and exit. Blocks."""

    login: Callable[
        [], CommandExecutor
    ]  # the one of the moment: a cut ends one, and brings another
    session: str
    check_cancelled: Callable[[], None]  # called all the time; may raise
    wait_for_link: Callable[[], None]  # called after a cut; may raise
    leftovers: list[str]  # folders that could not be removed: the next one takes them along
    path: str = ""  # as a process there knows it
    _piece_size: int = FIRST_PIECE

    def __post_init__(self) -> None:
        self._running = threading.Thread()  # that of the last command
        name = f"carried-{secrets.token_hex(8)}"
        self._folder = _FOLDER.format(session=self.session, name=name)

    def __enter__(self) -> Self:
        """Make it."""
        what = "No folder could be made there"
        try:
            self.path = self._run(_OPEN.format(folder=self._folder), what=what).decode().strip()
        except RemoterError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it with all that is in it."""
        clearing = Thread(self._clear, name="clearing")
        clearing.start()
        clearing.join(CLEAR_WITHIN)  # no longer: the link may be a black hole

    def _clear(self) -> None:
        if self._running.is_alive():  # it would write into a folder that is gone, and make it anew
            self._running.join()
        # One by one: other cells may do the same in their threads.
        left = [self.leftovers.pop() for _ in range(len(self.leftovers))]
        for folder in [self._folder, *left]:
            try:
                self.login().run(_CLOSE.format(folder=folder), seconds=PIECE_WITHIN)
            except RemoterError:
                self.leftovers.append(folder)  # at the latest it goes with the session's folder

    def upload(self, path: Path) -> None:
        """Write a local file into `object` there."""
        begin = 0
        with path.open("rb") as file:
            while piece := file.read(self._piece_size):  # whole blocks, as dd seeks by them
                place = {"block": BLOCK, "begin": begin // BLOCK, "folder": self._folder}
                what = "The object could not be written there"
                with self._adapting_piece_size():
                    self._run(_WRITE.format(**place), piece, what=what)
                begin += len(piece)

    def download(self, path: Path, size: int) -> None:
        """Bring so many bytes here."""
        with open(path, "xb", opener=_open_private) as file:
            begin = 0
            while begin < size:
                wanted = min(self._piece_size, size - begin)
                # `tail -c +N` counts from one.
                place = {"begin": begin + 1, "size": wanted, "folder": self._folder}
                what = "The object could not be read there"
                with self._adapting_piece_size():
                    piece = self._run(_READ.format(**place), what=what)
                if len(piece) != wanted:
                    raise RemoteLacks("The object did not arrive as it was sent.", "Try again.")
                file.write(piece)
                begin += wanted

    @contextlib.contextmanager
    def _adapting_piece_size(self) -> Iterator[None]:
        """Let the next piece be as large as the link is fast."""
        begin = time.monotonic()
        yield
        took = time.monotonic() - begin
        if took < PIECE_TAKES / 2:
            self._piece_size = min(self._piece_size * 2, LARGEST_PIECE)
        elif took > PIECE_TAKES:
            self._piece_size = max(self._piece_size // 2, BLOCK)

    def read_answer_file(self) -> bytes:
        """Return what the kernel wrote of its last job."""
        return self._run(
            _ANSWER.format(folder=self._folder), what="The kernel there did not answer"
        )

    def _run(self, command: str, stdin: bytes = b"", *, what: str) -> bytes:
        ran = self._run_with_retries(command, stdin)
        if ran.status:
            output = (ran.stderr or ran.stdout).decode("utf-8", "replace")
            lines = output.strip().splitlines() or ["no reason"]
            # After its reason, dd prints how much it has written.
            line = next((each for each in lines if each.startswith("dd:")), lines[-1])
            why = re.sub(r"[^\x20-\x7e]", "?", line)  # a host may print anything
            raise RemoteLacks(f"{what}: {why}.", "Look at the home there, then try again.")
        return ran.stdout.partition(OUTPUT_MARK)[2]

    def _run_with_retries(self, command: str, stdin: bytes) -> CompletedCommand:
        """Run a command that may be run twice; a cut is waited out."""
        # Each command may run twice: a piece is written to its own place, and read from it.
        for _ in range(MOST_TRIES):
            try:
                return self._run_cancellable(command, stdin)
            except Unreachable:
                self.wait_for_link()
        return self._run_cancellable(command, stdin)

    def _run_cancellable(self, command: str, stdin: bytes) -> CompletedCommand:
        """Run a command; an interrupt does not wait for a link that is slow or dead."""
        self.check_cancelled()
        future: Future[CompletedCommand] = Future()
        login = self.login()

        def run() -> None:
            try:
                future.set_result(login.run(command, stdin, seconds=PIECE_WITHIN))
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                # Nobody may wait for it any more: then it is lost with the future.
                future.set_exception(error)

        self._running = Thread(run, name="piece")
        self._running.start()
        while not wait([future], POLL_EVERY).done:
            self.check_cancelled()
        return future.result()
