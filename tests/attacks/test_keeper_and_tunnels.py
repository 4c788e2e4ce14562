"""Another user of this machine gets nothing from what our own processes say to each other."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import secrets
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import zmq

from remoter_kernel.local import private_sockets
from remoter_kernel.local.login.keeper import endpoint, keeper_main
from remoter_kernel.local.login.keeper.keeper_login import log_in_by_keeper
from remoter_kernel.local.login.keeper.keeper_server import KeeperServer
from remoter_kernel.local.login.tunnel import Tunnel
from remoter_kernel.local.private_files import write_private_file
from remoter_kernel.local.private_sockets import PrivateListener
from tests.real_jupyter import started_kernel, wait_for
from tests.real_parts import real_part
from tests.real_users import DEBIAN_PYTHON, own_name, throw_away_user
from tests.whole.talk import Talk
from tests.whole.test_life import value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.local.config.remotes import Remote
    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

# Connects to every new listener on loopback, keeps the connection, and writes down what it hears.
# A transfer would do what it asks for; a login would show it what somebody typed.
EVE = r"""
import json, os, re, select, socket, sys
ours = {uid.encode() for uid in sys.argv[1].split(",")}
listens = re.compile(rb" 0100007F:(\w{4}) 00000000:0000 0A \S+ \S+ \S+ +(\d+) ")
WISH = b'{"transfer": 1, "do": "receive", "to": "", "sources": [], "cwd": "", "dry": false}'
table = os.open("/proc/net/tcp", os.O_RDONLY)
def listeners():  # they stand first in the table
    found = listens.findall(os.pread(table, 65536, 0))
    return {int(port, 16) for port, uid in found if uid in ours}
known, connections, heard = listeners(), {}, {}
print("ready", flush=True)
is_over = False
while not is_over:
    new = listeners() - known
    known |= new
    for port in new:
        sock = socket.socket()
        try:
            sock.connect(("127.0.0.1", port))
            sock.setblocking(False)
            sock.send(len(WISH).to_bytes(4, "big") + WISH)
        except OSError:
            continue
        connections[sock], heard[port] = port, ""
    for each in select.select([sys.stdin, *connections], [], [], 0)[0]:
        if each is sys.stdin:
            is_over = True
            continue
        try:
            data = each.recv(65536)
        except OSError:
            data = b""
        if data:
            heard[connections[each]] += data.hex()
        else:
            del connections[each]
            each.close()
print(json.dumps(heard), flush=True)
"""
ZMTP = b"\xff\0\0\0\0\0\0\0\1\x7f"  # how ZeroMQ greets anybody
NAMES = ("shell", "iopub", "stdin", "control", "hb")


@pytest.fixture(scope="module")
def eve(another_user: FarSide) -> Iterator[FarSide]:
    """Somebody else on this machine."""
    real_part("root")
    del another_user
    with throw_away_user(own_name("remoter-eve")) as user:
        yield user


@contextlib.contextmanager
def listening_in(eve: FarSide, *uids: int) -> Iterator[dict[int, bytes]]:
    """Let the stranger connect to each new listener of these users; then tell what she heard."""
    heard: dict[int, bytes] = {}
    words = [DEBIAN_PYTHON, "-c", EVE, ",".join(map(str, uids))]
    with subprocess.Popen(
        words, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **eve.ids
    ) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "ready\n"
        try:
            yield heard
        finally:
            said, _ = stranger.communicate("\n", timeout=30)
        heard |= {int(port): bytes.fromhex(data) for port, data in json.loads(said).items()}


@pytest.fixture
def kept(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[str]:
    """A remote whose login is kept until the test ends."""
    here.add_remote("kept", login_lifetime=600.0, **python_remote)
    yield "kept"
    endpoint.end_logins()


def remote_of(name: str) -> Remote:
    from remoter_kernel.local.config.remotes import find_remote

    found = find_remote(name)
    assert found
    return found


def keeper() -> psutil.Process:
    return psutil.Process(json.loads(endpoint.endpoint_file().read_text())["pid"])


# ------------------------------------------------------------------- all of it, in use


@pytest.mark.parametrize(
    ("puts", "starts"),
    [(6, 2), pytest.param(50, 10, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_who_connects_to_every_new_listener_hears_nothing_and_disturbs_nobody(
    kept: str,
    here: JupyterHere,
    far: FarSide,
    eve: FarSide,
    tmp_path: Path,
    *,
    puts: int,
    starts: int,
) -> None:
    """She tries to be first at a transfer's way, at the keeper, at a link and at a kernel."""
    uids = {os.getuid(), far.ids["user"]}
    jupyters: set[int] = set()
    file = tmp_path / "file"
    with far.folder() as there, listening_in(eve, *uids) as heard:
        for number in range(puts):
            file.write_text(f"the secret of put {number}")
            put = here.remoter("put", kept, str(file), f"{there}/file-{number}")
            assert put.returncode == 0, put.stderr
            assert (there / f"file-{number}").read_text() == file.read_text()
        for number in range(starts):
            with started_kernel(f"remoter-{kept}") as kernel:
                info: dict[str, Any] = dict(kernel.manager.get_connection_info())
                jupyters |= {int(info[f"{name}_port"]) for name in NAMES}
                assert value(Talk(kernel.client), f"'the secret of kernel {number}'")
                kernel.manager.restart_kernel()
                kernel.client.wait_for_ready(timeout=60)
                assert value(Talk(kernel.client), "1 + 1") == "2"
    assert any(port not in jupyters for port in heard), "she found nothing to connect to"
    # Other programs of these users may listen, too; ours tell her nothing that is anybody's.
    assert not [port for port, data in heard.items() if b"secret" in data or b"put" in data]


def test_no_process_of_ours_here_listens_at_a_port(kept: str) -> None:
    """But for the five sockets that Jupyter names."""
    with started_kernel(f"remoter-{kept}") as kernel:
        assert value(Talk(kernel.client), "1 + 1") == "2"
        info: dict[str, Any] = dict(kernel.manager.get_connection_info())
        jupyters = {int(info[f"{name}_port"]) for name in NAMES}
        for each in (keeper(), psutil.Process(kernel.pid)):
            ports = {
                connection.laddr.port
                for connection in each.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }
            assert ports <= jupyters, each


def test_sockets_and_what_tells_of_them_are_for_this_person_alone(kept: str, eve: FarSide) -> None:
    """She knows the path, and knocks."""
    with contextlib.closing(log_in_by_keeper(remote_of(kept))):
        words = json.loads(endpoint.endpoint_file().read_text())
        path = Path(words["address"].removeprefix("ipc://"))
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(endpoint.endpoint_file().stat().st_mode) == 0o600
        code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r})"
        ran = subprocess.run(
            [DEBIAN_PYTHON, "-c", code], cwd="/", capture_output=True, check=False, **eve.ids
        )
        assert b"PermissionError" in ran.stderr


# ----------------------------------------------------------------------- unix sockets


def as_eve(eve: FarSide, code: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [DEBIAN_PYTHON, "-c", code, *words],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **eve.ids,
    )


KNOCK = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print("in", flush=True)
print(s.recv(100) or "shown out", flush=True)
"""
LISTEN = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print("ready", flush=True)
c, _ = s.accept(); print(c.recv(100) or "nothing", flush=True)
"""


def test_another_user_who_reaches_a_socket_is_shown_out(
    eve: FarSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were its folder open, whose process it is would still be looked at."""
    with eve.folder() as folder:
        folder.chmod(0o777)
        monkeypatch.setattr(private_sockets, "_socket_folders", lambda: iter([folder]))
        with PrivateListener("x", 4) as listener:
            path = Path(listener.address.removeprefix("ipc://"))
            path.chmod(0o777)
            with as_eve(eve, KNOCK, str(path)) as stranger:
                assert stranger.stdout.readline() == "in\n"
                with pytest.raises(TimeoutError):
                    listener.accept(0.3)
                assert stranger.stdout.readline() == "shown out\n"
            with private_sockets.connect_to_listener(listener.address, 5), listener.accept(5):
                pass


def test_who_sits_at_the_socket_of_a_dead_keeper_hears_nothing(eve: FarSide) -> None:
    """A folder that was cleaned away may be anybody's when it is made again."""
    with eve.folder() as folder:
        path = folder / "k"
        with as_eve(eve, LISTEN, str(path)) as stranger:
            assert stranger.stdout.readline() == "ready\n"
            path.chmod(0o777)
            folder.chmod(0o755)
            with pytest.raises(PermissionError):
                private_sockets.connect_to_listener(f"ipc://{path}", 5)
            assert stranger.stdout.readline() == "nothing\n"


def test_a_folder_with_a_long_name_has_its_sockets_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / ("deep" * 30)))
    with PrivateListener("x", 4) as listener:
        path = Path(listener.address.removeprefix("ipc://"))
        assert not listener.is_tcp
        assert len(os.fsencode(path)) <= private_sockets.LONGEST_PATH
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        with private_sockets.connect_to_listener(listener.address, 5), listener.accept(5):
            pass
    assert not path.parent.exists()


# ----------------------------------------------------------------- the keeper's file


@pytest.mark.parametrize("what", ["another", "half", "empty"])
def test_a_keepers_file_of_another_machine_or_boot_is_not_believed(kept: str, what: str) -> None:
    """A home may be on several machines, and a stranger may sit at the same place on the next."""
    with contextlib.closing(log_in_by_keeper(remote_of(kept))):
        text = endpoint.endpoint_file().read_text()
        words = json.loads(text)
        lies = {
            "another": json.dumps({**words, "machine": "another"}),
            "half": text[: len(text) // 2],
            "empty": "",
        }
        connection = endpoint.try_connect()
        assert connection
        connection.close()
        endpoint.endpoint_file().write_text(lies[what])
        assert endpoint.try_connect() is None
        endpoint.endpoint_file().write_text(text)


def test_two_that_start_at_once_leave_one_keeper_that_is_found(here: JupyterHere) -> None:
    """Each notebook starts one ahead: the later one must not take away the first one's socket."""
    del here
    for _ in range(2):
        endpoint.prestart()
        endpoint._prestarted.append(endpoint._spawn_keeper())
        started, endpoint._prestarted[:] = list(endpoint._prestarted), []
        with endpoint.connect_to_keeper():
            for each in started:
                with each:
                    assert each.stdout.read() == b""
            again = endpoint.try_connect()
            assert again
            again.close()
        endpoint.end_logins()
    wait_for(lambda: not endpoint.endpoint_file().exists(), what="no keeper")


def test_many_who_come_at_once_all_come_in(kept: str) -> None:
    """More than may wait at a socket: Linux turns them away at once."""
    with contextlib.closing(log_in_by_keeper(remote_of(kept))):
        first = keeper().pid
        connections = [endpoint.try_connect() for _ in range(200)]
        assert all(connections)
        for connection in connections:
            connection.close()
        assert keeper().pid == first


def test_a_keeper_without_descriptors_left_goes_on() -> None:
    """Whoever opens many connections must not end its door for good."""
    mine, theirs = socket.socketpair()

    class Door:
        is_tcp = False
        port = 0

        def __init__(self) -> None:
            gone = OSError(errno.ECONNABORTED, "gone")
            self.troubles = [OSError(errno.EMFILE, "too many"), gone, mine]

        def accept(self) -> Any:
            if not self.troubles:
                raise OSError(errno.EBADF, "closed")
            next_one = self.troubles.pop(0)
            if isinstance(next_one, OSError):
                raise next_one
            return next_one

    server = KeeperServer()
    with theirs:
        keeper_main._accept_clients(Door(), b"", server)  # type: ignore[arg-type]
        wait_for(lambda: len(server._login_of_client) == 1, what="the visitor is in")
    wait_for(lambda: not server._login_of_client, what="the visitor is out")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says so of a process")
def test_a_keepers_memory_is_in_no_core_file_and_cannot_be_read() -> None:
    """Passwords and passphrases are in it."""
    code = (
        "import ctypes, resource\n"
        "from remoter_kernel.local.login.keeper.keeper_main import protect_memory\n"
        "protect_memory()\n"
        "print(ctypes.CDLL(None).prctl(3), resource.getrlimit(resource.RLIMIT_CORE))\n"
        "print(open('/proc/self/comm').read())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[:2] == ["0 (0, 0)", "remoter-keeper"]


def test_a_keeper_can_have_many_visitors(kept: str) -> None:
    """More than the 1,024 descriptors that a process usually may have."""
    with contextlib.closing(log_in_by_keeper(remote_of(kept))):
        soft, hard = resource.prlimit(keeper().pid, resource.RLIMIT_NOFILE)
        assert soft == min(hard, keeper_main.DESCRIPTORS)


# -------------------------------------------------- where there is nothing but TCP


@pytest.fixture
def only_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_sockets, "HAS_UNIX_SOCKETS", False)


def far_end() -> tuple[socket.socket, int]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)
    return listener, listener.getsockname()[1]


def test_two_visitors_cannot_be_played_off_against_each_other() -> None:
    """A stranger at a dead keeper's port passes on what one says to the other."""
    key = secrets.token_bytes(private_sockets.SECRET_SIZE)
    listener, port = far_end()
    proven: list[bool] = []

    def visit() -> None:
        with socket.create_connection(("127.0.0.1", port), 5) as visitor:
            proven.append(private_sockets.authenticate_as_client(visitor, key, port))

    visitors = [threading.Thread(target=visit) for _ in range(2)]
    with listener:
        for visitor in visitors:
            visitor.start()
        (first, _), (second, _) = listener.accept(), listener.accept()
        with first, second:
            first.settimeout(5)
            second.settimeout(5)
            # Each is told the other's nonce, and what there is of answers.
            of_first, of_second = first.recv(100), second.recv(100)
            first.sendall(of_second + of_first)
            second.sendall(of_first + of_second)
            assert (first.recv(100), second.recv(100)) == (b"", b"")
    for visitor in visitors:
        visitor.join(10)
    assert proven == [False, False]


def test_a_proof_of_one_role_or_port_is_none_of_another() -> None:
    key = secrets.token_bytes(private_sockets.SECRET_SIZE)
    for port_here, expected in ((4000, True), (4001, False)):
        near, far = socket.socketpair()
        with near, far:
            told: list[bool] = []
            keeping = threading.Thread(
                target=lambda far=far, told=told: told.append(
                    private_sockets.authenticate_as_keeper(far, key, 4000)
                )
            )
            keeping.start()
            assert private_sockets.authenticate_as_client(near, key, port_here) is expected
            near.shutdown(socket.SHUT_WR)
            keeping.join(10)
            assert told == [expected]


def test_a_byte_now_and_then_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One deadline counts for all of a proof."""
    monkeypatch.setattr(private_sockets, "HANDSHAKE_WITHIN", 0.5)
    near, far = socket.socketpair()
    over = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while not over.wait(0.1):
                far.send(b"x")

    dripping = threading.Thread(target=drip)
    dripping.start()
    began = time.monotonic()
    with near, far:
        assert not private_sockets.authenticate_as_client(
            near, bytes(private_sockets.SECRET_SIZE), 1
        )
        took = time.monotonic() - began
        over.set()
        dripping.join(5)
    assert took < 2


@pytest.mark.usefixtures("only_tcp")
def test_a_keeper_at_a_port_lets_in_only_who_knows_its_key(here: JupyterHere) -> None:
    del here
    server = KeeperServer()
    with PrivateListener("k", 4) as listener:
        about = endpoint.endpoint_record(listener.address, os.getpid())
        write_private_file(endpoint.endpoint_file(), json.dumps(about))
        accepting = threading.Thread(
            target=keeper_main._accept_clients, args=(listener, bytes.fromhex(about["key"]), server)
        )
        accepting.start()
        try:
            with socket.create_connection(("127.0.0.1", listener.port)) as stranger:
                stranger.settimeout(10)
                stranger.sendall(secrets.token_bytes(private_sockets.SECRET_SIZE))
                assert len(stranger.recv(1000)) == 2 * private_sockets.SECRET_SIZE
                stranger.sendall(secrets.token_bytes(private_sockets.SECRET_SIZE))
                with contextlib.suppress(ConnectionError):
                    assert stranger.recv(1000) == b""
            assert not server._login_of_client
            connection = endpoint.try_connect()
            assert connection
            with connection:
                wait_for(lambda: len(server._login_of_client) == 1, what="who knows the key is in")
            endpoint.endpoint_file().write_text(
                json.dumps({**about, "key": "00" * private_sockets.SECRET_SIZE})
            )
            assert endpoint.try_connect() is None
        finally:
            endpoint.endpoint_file().unlink()
            listener._socket.shutdown(socket.SHUT_RDWR)
            listener.close()
            accepting.join(10)
    wait_for(lambda: not server._login_of_client, what="everybody is out")


class Wire:
    """What carries a tunnel's bytes: to a list."""

    active = True

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def new_channel(self, _sink: object) -> Wire:
        return self

    def request_open(self, *_: object) -> None: ...
    def wait_open(self, _seconds: float) -> None: ...
    def close(self) -> None: ...
    def adjust_window(self, _size: int) -> None: ...

    def send(self, data: bytes) -> None:
        self.sent.append(bytes(data))


@pytest.mark.usefixtures("only_tcp")
def test_a_tunnel_at_a_port_is_for_who_knows_its_secret() -> None:
    """A stranger who is first, and silent, or guesses, is left; then the right one comes in."""
    wire: Any = Wire()
    tunnel = Tunnel(wire, "127.0.0.1", 1)
    tunnel.open(5)
    where = ("127.0.0.1", int(tunnel.address.rpartition(":")[2]))
    assert len(tunnel.secret) == private_sockets.SECRET_SIZE
    with socket.create_connection(where), socket.create_connection(where) as guesses:
        guesses.sendall(bytes(private_sockets.SECRET_SIZE) + b"of a stranger")
        with private_sockets.connect_to_listener(tunnel.address, 5) as mine:
            mine.sendall(tunnel.secret + b"mine")
            wait_for(lambda: b"".join(wire.sent) == b"mine", what="what came through")
    tunnel.close()


@pytest.mark.usefixtures("only_tcp")
def test_a_tunnel_at_a_port_is_for_our_own_zeromq_and_no_other(eve: FarSide) -> None:
    """ZeroMQ has no word for a secret: whose process it is decides."""
    wire: Any = Wire()
    tunnel = Tunnel(wire, "127.0.0.1", 1)
    tunnel.open(5)
    port = tunnel.address.rpartition(":")[2]
    code = (
        "import socket, sys\n"
        "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "s.sendall(b'\\xff' + bytes(8) + b'\\x7f of a stranger'); print('in', flush=True)\n"
        "try: print(s.recv(100) or 'shown out', flush=True)\n"
        "except ConnectionError: print('shown out', flush=True)\n"
    )
    with as_eve(eve, code, port) as stranger:
        assert stranger.stdout.readline() == "in\n"
        assert stranger.stdout.readline() == "shown out\n"
    with zmq.Context() as context, context.socket(zmq.DEALER) as mine:
        mine.linger = 0
        mine.connect(tunnel.address)
        wait_for(lambda: b"".join(wire.sent)[:10] == ZMTP, what="ZeroMQ's greeting")
    assert b"stranger" not in b"".join(wire.sent)
    tunnel.close()
