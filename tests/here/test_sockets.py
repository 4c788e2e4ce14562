"""Jupyter's ports: while a kernel restarts, anybody may borrow them."""

from __future__ import annotations

import socket
import threading

import pytest
import zmq

from remoter_kernel.errors import Usage
from remoter_kernel.front.jupyter import sockets
from remoter_kernel.front.jupyter.sockets import Sockets


@pytest.fixture
def handle():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as made:
        made.linger = 0
        yield made


def test_a_port_that_somebody_has_borrowed_is_waited_for(handle):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        threading.Timer(0.3, other.close).start()
        Sockets._take_port(handle, f"tcp://127.0.0.1:{port}")
    assert str(port) in handle.last_endpoint.decode()


def test_a_port_that_stays_taken_is_told(handle, monkeypatch):
    monkeypatch.setattr(sockets, "FREE_WITHIN", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(Usage, match="taken"):
        Sockets._take_port(handle, f"tcp://127.0.0.1:{other.getsockname()[1]}")
