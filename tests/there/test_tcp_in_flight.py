"""Bytes that the system still holds between two ends of one machine."""

from __future__ import annotations

import contextlib
import socket
import sys

import pytest

from remoter_kernel.protocol import link_connection
from remoter_kernel.protocol.link_connection import connection_ports, has_bytes_in_flight
from tests.real_jupyter import wait_for

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells it")


@pytest.fixture
def ends():
    """A sender and a receiver on loopback."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as receiver,
    ):
        sender, _ = server.accept()
        with sender:
            yield sender, receiver


def read_all(receiver: socket.socket) -> int:
    receiver.setblocking(False)
    total = 0
    with contextlib.suppress(BlockingIOError):
        while chunk := receiver.recv(1 << 20):
            total += len(chunk)
    return total


@linux
def test_what_nobody_has_read_is_on_its_way(ends):
    """Be it in the receiver's buffer or, when that is full, in the sender's."""
    sender, receiver = ends
    ports = connection_ports(receiver.fileno())
    assert ports == (sender.getsockname()[1], receiver.getsockname()[1])
    assert not has_bytes_in_flight(*ports)
    sender.send(b"one")
    assert has_bytes_in_flight(*ports)
    assert not has_bytes_in_flight(*reversed(ports))
    assert read_all(receiver) == 3
    wait_for(lambda: not has_bytes_in_flight(*ports))
    sender.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sender.send(b"x" * 65536)
    assert has_bytes_in_flight(*ports)
    wait_for(lambda: read_all(receiver) == 0 and not has_bytes_in_flight(*ports))


@linux
def test_what_a_sender_that_is_gone_has_sent_is_on_its_way(ends):
    """Its process has ended; the system goes on sending."""
    sender, receiver = ends
    ports = connection_ports(receiver.fileno())
    sender.send(b"last words")
    sender.close()
    assert has_bytes_in_flight(*ports)


def test_where_no_system_tells_it_nothing_is(monkeypatch, tmp_path):
    """Another system, a file that is not there, a connection that is closed again."""
    monkeypatch.setattr(link_connection, "CONNECTIONS", tmp_path / "none")
    assert not has_bytes_in_flight(1, 2)
    assert connection_ports(-1) == (0, 0)
