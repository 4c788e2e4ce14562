"""Jupyter's ports: while a kernel restarts, anybody may borrow them."""

from __future__ import annotations

import socket
import threading

import pytest
import zmq

from remoter_kernel.errors import Usage
from remoter_kernel.local.proxy import sockets
from remoter_kernel.local.proxy.sockets import PORTS, Sockets
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.reactor import Reactor


@pytest.fixture
def handle():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as made:
        made.linger = 0
        yield made


def test_a_port_that_somebody_has_borrowed_is_waited_for(handle):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        threading.Timer(0.3, other.close).start()
        Sockets._bind_address(handle, f"tcp://127.0.0.1:{port}")
    assert str(port) in handle.last_endpoint.decode()


def test_a_port_that_stays_taken_is_told(handle, monkeypatch):
    monkeypatch.setattr(sockets, "FREE_WITHIN", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(Usage, match="taken"):
        Sockets._bind_address(handle, f"tcp://127.0.0.1:{other.getsockname()[1]}")


def test_who_subscribed_before_anybody_listened_is_welcomed_first():
    """The process binds its ports before it is ready to answer."""
    reactor, names = Reactor(), [*PORTS.values(), "hb_port"]
    ports = dict.fromkeys(names, 0)
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    for name, holder in zip(names, holders, strict=True):
        ports[name] = holder.getsockname()[1]
        holder.close()
    bound = Sockets(reactor, {**ports, "transport": "tcp", "ip": "127.0.0.1", "key": "key"})
    bound.bind()
    with zmq.Context() as context, context.socket(zmq.SUB) as client:
        client.subscribe(b"")
        client.connect(f"tcp://127.0.0.1:{ports['iopub_port']}")
        assert bound._sockets[Channel.IOPUB].poll(10_000)
        bound.welcome_subscribers()
        bound.publish(bound.voice.compose("status", {"execution_state": "starting"}))
        assert client.poll(10_000)
        frames = client.recv_multipart()
        assert b"iopub_welcome" in frames[3]
    bound.close()
    reactor.close()
