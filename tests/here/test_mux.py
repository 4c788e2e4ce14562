"""Whatever answers at a master's socket, there is an answer for us in time."""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remoter_kernel.local.login.login import ConnectionClosed, ResponseTimeout
from remoter_kernel.local.login.openssh.mux_transport import (
    ALIVE,
    EXITED,
    FAILED,
    HELLO,
    NEW_SESSION,
    OPENED,
    VERSION,
    Mux,
    MuxError,
    master_answers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def message(*words: int | bytes) -> bytes:
    body = b"".join(
        struct.pack(">I", word) if isinstance(word, int) else struct.pack(">I", len(word)) + word
        for word in words
    )
    return struct.pack(">I", len(body)) + body


GREETING = message(HELLO, VERSION)


@pytest.fixture
def fake() -> Iterator[Callable[..., Path]]:
    """Make a master that says these things, one after each thing that it hears."""
    folder = Path(tempfile.mkdtemp(prefix="mux-"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "m"))
    listener.listen()
    threads: list[threading.Thread] = []
    open_ones: list[socket.socket] = []

    def serve(answers: tuple[bytes, ...], *, closes: bool) -> None:
        connection, _ = listener.accept()
        open_ones.append(connection)
        with contextlib.suppress(OSError):
            for answer in answers:
                connection.recv(65536)
                connection.sendall(answer)
        if closes:
            connection.shutdown(socket.SHUT_RDWR)

    def make(*answers: bytes, closes: bool = True) -> Path:
        thread = threading.Thread(target=serve, args=(answers,), kwargs={"closes": closes})
        threads.append(thread)
        thread.start()
        return folder / "m"

    yield make
    for thread in threads:
        thread.join(5)
    for one in (listener, *open_ones):
        one.close()
    (folder / "m").unlink()
    folder.rmdir()


def test_a_master_says_its_process_id(fake):
    place = fake(GREETING, message(ALIVE, 1, 4711))
    connection = Mux(place, 5)
    assert connection.process_id() == 4711
    connection.close()


def test_nobody_there_is_no_master(tmp_path):
    assert not master_answers(tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert not master_answers(tmp_path / "file")
    assert not master_answers(tmp_path / ("long" * 60))


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\xff" * 100,
        message(HELLO, 3),
        message(HELLO),
        message(FAILED, 1, b"no"),
        struct.pack(">I", 8) + b"half",
    ],
)
def test_what_is_no_master_is_closed(fake, greeting):
    with pytest.raises(ConnectionClosed):
        Mux(fake(greeting), 5)


def test_a_master_that_is_silent_is_not_waited_for(fake):
    with pytest.raises(ResponseTimeout):
        Mux(fake(closes=False), 0.2)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (message(FAILED, 1, b"Session open refused by peer"), MuxError),
        (message(ALIVE, 1, 1), ConnectionClosed),
        (message(OPENED), ConnectionClosed),
        (b"", ConnectionClosed),
    ],
)
def test_what_is_declined_or_not_understood_is_told(fake, answer, error):
    connection = Mux(fake(GREETING, answer), 5)
    with pytest.raises(error):
        connection.open((), NEW_SESSION, "true")
    connection.close()


def test_a_session_says_how_it_ended_or_nothing(fake):
    for last, status in ((message(EXITED, 1, 7), 7), (b"", None)):
        connection = Mux(fake(GREETING, message(OPENED, 1, 1) + last), 5)
        connection.open((), NEW_SESSION, "true")
        assert connection.wait_for_exit() == status
        connection.close()
