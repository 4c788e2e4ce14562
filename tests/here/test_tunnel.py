"""A tunnel carries bytes whole and in order, and a cut on one side is a cut on the other."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from paramiko.common import MSG_CHANNEL_CLOSE, MSG_CHANNEL_DATA

from remoter_kernel.errors import ForwardingRefused, RemoteLacks
from remoter_kernel.local import private_sockets
from remoter_kernel.local.login.embedded_host import EmbeddedHost
from remoter_kernel.local.login.login import ConnectionClosed
from remoter_kernel.local.login.openssh.openssh_login import log_in_by_openssh
from remoter_kernel.local.login.paramiko.paramiko_channel import ParamikoChannel
from remoter_kernel.local.login.paramiko.paramiko_login import log_in_by_paramiko
from remoter_kernel.local.login.ssh_config import resolve_destination
from remoter_kernel.local.login.tunnel import Tunnel
from tests import real_parts
from tests.real_sshd import RealSshd, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import paramiko

    from remoter_kernel.local.login.login import ChannelReceiver
    from remoter_kernel.local.login.ssh_login import SSHLogin

KINDS = (
    "sshd",
    "sshd that often wants new keys",
    "sshd from which we often want new keys",
    "embedded host",
    "sshd by the system's ssh",
)
MUCH = 24 * 1024 * 1024  # bytes: several windows
SOON = 5.0  # seconds
NOBODY_LISTENS = (ConnectionRefusedError, FileNotFoundError)


class Far:
    """A TCP server on the far side; hands over the connections it gets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(SOON)
        self.port = self._listener.getsockname()[1]

    def take(self) -> socket.socket:
        connection, _ = self._listener.accept()
        connection.settimeout(30)
        return connection

    def close(self) -> None:
        self._listener.close()


class NoTransport:
    """Carries nothing: its channel is fed by hand."""

    active = True

    def new_channel(self, sink: ChannelReceiver) -> ParamikoChannel:
        return ParamikoChannel(self, 0, sink)

    def send(self, message: object) -> None:
        """Say nothing."""

    send_nowait = remove_channel = record_rtt = send


@pytest.fixture(scope="module", params=KINDS)
def login(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[SSHLogin]:
    """A login on each kind of server."""
    if request.param == "embedded host":
        with EmbeddedHost() as host:
            login: SSHLogin = log_in_by_paramiko(host.destination())
            yield login
            login.close()
        return
    real_parts.real_part("sshd")
    folder = tmp_path_factory.mktemp("sshd")
    extra = "RekeyLimit 1M" if "that often" in request.param else ""
    with RealSshd(folder, extra_config=extra) as server:
        enter = log_in_by_openssh if "system's" in request.param else log_in_by_paramiko
        login = enter(resolve_destination("real", server.ssh_config(folder / "config", "real")))
        if "we often" in request.param:
            login.live_transport.packetizer.REKEY_BYTES = 1 << 20
        yield login
        login.close()


@pytest.fixture
def far() -> Iterator[Far]:
    far = Far()
    yield far
    far.close()


def connect(tunnel: Tunnel) -> socket.socket:
    """Connect to this side of a tunnel, as ZeroMQ would."""
    near = private_sockets.connect_to_listener(tunnel.address, 30)
    near.settimeout(30)
    return near


def comes_true(fact: Callable[[], bool]) -> None:
    """Wait for a fact."""
    deadline = time.monotonic() + SOON
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ends(connection: socket.socket) -> bool:
    """Say whether a connection ends soon (what is still in it is read)."""
    connection.settimeout(SOON)
    try:
        while connection.recv(1 << 20):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def send_until_it_ends(connection: socket.socket) -> None:
    """Send for as long as anybody takes it."""
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(bytes(1 << 16))


def digest_of(connection: socket.socket, size: int, pause: Callable[[int], None]) -> str:
    """Read that many bytes and say what they were."""
    digest = hashlib.sha256()
    while size:
        data = connection.recv(min(size, 1 << 16))
        assert data, f"the connection ended {size} bytes too early"
        size -= len(data)
        digest.update(data)
        pause(size)
    return digest.hexdigest()


def test_bytes_pass_whole_both_ways_at_once_to_slow_readers(login, far):
    tunnel = login.open_tunnel("127.0.0.1", far.port)
    near, there = connect(tunnel), far.take()
    up, down = os.urandom(MUCH), os.urandom(MUCH)
    found: dict[str, str] = {}

    def slowly(left: int) -> None:
        if left % (1 << 21) < 1 << 16:
            time.sleep(0.02)  # the other side must wait: that is what is tried here

    def read(name: str, connection: socket.socket) -> None:
        found[name] = digest_of(connection, MUCH, slowly)

    threads = [
        threading.Thread(target=near.sendall, args=(up,)),
        threading.Thread(target=there.sendall, args=(down,)),
        threading.Thread(target=read, args=("down", near)),
        threading.Thread(target=read, args=("up", there)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {
        "up": hashlib.sha256(up).hexdigest(),
        "down": hashlib.sha256(down).hexdigest(),
    }
    assert (tunnel.sent, tunnel.received) == (MUCH, MUCH)
    for end in (near, there):
        end.close()
    tunnel.close()


def test_what_came_before_anybody_connected_here_is_there(login, far):
    tunnel = login.open_tunnel("127.0.0.1", far.port)
    there = far.take()
    there.sendall(b"greeting")
    with connect(tunnel) as near:
        assert near.recv(100) == b"greeting"
        there.sendall(b" and more")
        assert near.recv(100) == b" and more"
    assert ends(there)
    there.close()
    tunnel.close()


def test_what_comes_while_an_older_block_is_being_written_waits_for_it():
    """A block that fits at once must not overtake one that did not fit: 300 tries of each."""
    ours, local = socket.socketpair()
    local.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    tunnel = Tunnel(NoTransport(), "there", 1, local=local)
    sent = hashlib.sha256()
    found: list[str] = []
    with ours:
        blocks = [os.urandom(length) for _ in range(300) for length in (50_000, 10)]
        size = sum(map(len, blocks))
        reader = threading.Thread(
            target=lambda: found.append(digest_of(ours, size, lambda _left: None))
        )
        reader.start()
        for block in blocks:
            tunnel.data_received(block)
            sent.update(block)
            time.sleep(0.0001)
        reader.join(30)
        tunnel.close()
    local.close()
    assert found == [sent.hexdigest()]


def test_when_the_far_side_closes_this_side_ends_after_its_last_byte(login, far):
    tunnel = login.open_tunnel("127.0.0.1", far.port)
    near, there = connect(tunnel), far.take()
    sent = os.urandom(4_000_000)  # more than this side's buffers take, less than a window
    there.sendall(sent)
    there.close()
    comes_true(lambda: tunnel.received == len(sent) and not tunnel.is_open)
    assert digest_of(near, len(sent), lambda _left: None) == hashlib.sha256(sent).hexdigest()
    assert near.recv(1) == b""
    near.close()
    tunnel.close()


def test_when_this_side_closes_the_far_side_ends(login, far):
    tunnel = login.open_tunnel("127.0.0.1", far.port)
    near, there = connect(tunnel), far.take()
    near.sendall(b"last words")
    near.close()
    assert there.recv(100) == b"last words"
    assert ends(there)
    there.close()
    assert not tunnel.is_open


def test_closing_a_tunnel_ends_both_sides_even_when_both_are_full(login, far):
    tunnel = login.open_tunnel("127.0.0.1", far.port)
    near, there = connect(tunnel), far.take()
    for end in (near, there):
        end.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while end.send(bytes(1 << 20)):
                pass
    began = time.monotonic()
    tunnel.close()
    assert time.monotonic() - began < SOON
    assert ends(near)
    assert ends(there)
    near.close()
    there.close()


def test_nothing_follows_a_close():
    """Data on its way when the channel is closed goes out first, and nothing after it."""
    may_send, said = threading.Event(), []

    class Slow(NoTransport):
        def send(self, message: paramiko.Message) -> None:
            began.set()
            may_send.wait(SOON)
            said.append(message.asbytes()[0])

        def send_nowait(self, message: paramiko.Message) -> None:
            said.append(message.asbytes()[0])

    began = threading.Event()
    channel = Slow().new_channel(Tunnel(NoTransport(), "there", 1))
    channel.on_open_confirmation(0, 1 << 20, 1 << 15)
    sending = threading.Thread(target=channel.send, args=(b"data",))
    sending.start()
    began.wait(SOON)
    channel.close()
    channel.adjust_window(1 << 22)
    channel.send_eof()
    with pytest.raises(ConnectionClosed):
        channel.send(b"more")
    with pytest.raises(ConnectionClosed):
        channel.exec_command("command")
    assert said == []
    may_send.set()
    sending.join(SOON)
    channel.close()
    assert said == [MSG_CHANNEL_DATA, MSG_CHANNEL_CLOSE]


def test_a_login_outlives_tunnels_that_are_closed_while_they_send(login, far):
    for _ in range(20):
        tunnel = login.open_tunnel("127.0.0.1", far.port)
        with connect(tunnel) as near, far.take() as there:
            sending = threading.Thread(target=send_until_it_ends, args=(near,))
            reading = threading.Thread(target=ends, args=(there,))
            sending.start()
            reading.start()
            comes_true(lambda tunnel=tunnel: tunnel.sent > 1 << 20)  # type: ignore[misc]
            tunnel.close()
            sending.join(SOON)
            reading.join(SOON)
    assert login.is_alive
    assert login.run("echo fine").stdout == b"fine\n"


def test_a_tunnel_takes_exactly_one_connection(login, far):
    tunnel = login.open_tunnel("127.0.0.1", far.port)
    with connect(tunnel) as near, far.take() as there:
        near.sendall(b"first")
        assert there.recv(10) == b"first"
        with pytest.raises(NOBODY_LISTENS):
            connect(tunnel)
    tunnel.close()


def test_a_tunnel_that_nobody_used_closes(login, far):
    tunnel = login.open_tunnel("127.0.0.1", far.port)
    there = far.take()
    tunnel.close()
    assert ends(there)
    there.close()
    with pytest.raises(NOBODY_LISTENS):
        connect(tunnel)


def test_a_tunnel_whose_far_side_is_gone_before_anybody_connected_refuses(login, far):
    tunnel = login.open_tunnel("127.0.0.1", far.port)
    far.take().close()
    comes_true(lambda: not tunnel.is_open)
    try:
        with connect(tunnel) as near:
            assert ends(near)
    except NOBODY_LISTENS:
        pass
    tunnel.close()


def test_nothing_listening_there_is_said_when_the_tunnel_is_opened(login):
    port = free_port()
    with pytest.raises(RemoteLacks, match=f"nothing listens at 127.0.0.1:{port}") as caught:
        login.open_tunnel("127.0.0.1", port)
    assert not isinstance(caught.value, ForwardingRefused)


def test_a_hundred_tunnels_one_after_the_other(login, far):
    for number in range(100):
        tunnel = login.open_tunnel("127.0.0.1", far.port)
        with connect(tunnel) as near, far.take() as there:
            near.sendall(b"%d" % number)
            assert there.recv(10) == b"%d" % number
        tunnel.close()


def test_forbidden_forwarding_is_an_error_of_its_own(tmp_path: Path):
    real_parts.real_part("sshd")
    with RealSshd(tmp_path, extra_config="AllowTcpForwarding no") as server:
        login = log_in_by_paramiko(
            resolve_destination("real", server.ssh_config(tmp_path / "config", "real"))
        )
        with pytest.raises(ForwardingRefused, match="forbids TCP forwarding"):
            login.open_tunnel("127.0.0.1", server.port)
        assert login.run("echo fine").stdout == b"fine\n"
        login.close()


@pytest.mark.parametrize("how", ["cut here", "closed here", "killed there"])
def test_when_the_login_ends_so_does_each_tunnel_on_both_sides(tmp_path: Path, far, how):
    real_parts.real_part("sshd")
    with RealSshd(tmp_path) as server:
        login = log_in_by_paramiko(
            resolve_destination("real", server.ssh_config(tmp_path / "config", "real"))
        )
        tunnel = login.open_tunnel("127.0.0.1", far.port)
        with connect(tunnel) as near, far.take() as there:
            near.sendall(b"x")
            assert there.recv(1) == b"x"
            {"cut here": login.abort, "closed here": login.close, "killed there": server.cut_all}[
                how
            ]()
            assert ends(near)
            assert ends(there)
        assert not login.is_alive
        login.close()
