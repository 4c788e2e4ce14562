"""Everything that can be wrong between here and a kernel there, each with its remedy.

A trouble is a generator: it breaks something, yields, and mends it.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.proxy import Proxy
from tests.real_jupyter import MARK, THIS_RUN
from tests.real_parts import old_python, real_part, run_quietly
from tests.real_sshd import RealSshd, free_port, make_key
from tests.real_users import throw_away_user

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

NAME = "trouble"


@dataclass
class Place:
    """A remote that can be broken and mended: the sshd, our config, the far user's home."""

    here: JupyterHere
    far: FarSide
    sshd: RealSshd
    folder: Path
    stack: contextlib.ExitStack
    wishes: dict[str, Any] = field(default_factory=dict)

    def reach(self, sshd: RealSshd | None = None, **other: str) -> None:
        """Write our ssh_config: right, but for the options that are named."""
        server = sshd or self.sshd
        options = {
            "HostName": "127.0.0.1",
            "Port": str(server.port),
            "User": server.user,
            "IdentityFile": str(server.client_key),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(server.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "ask",
            "ConnectTimeout": "2",
            **other,
        }
        lines = "".join(f"    {name} {value}\n" for name, value in options.items())
        (self.folder / "ssh_config").write_text(f"Host {NAME}-host\n{lines}")

    def remote(self, **wishes: Any) -> None:
        """Write the remote down: right, but for the wishes that are named."""
        right = {"python": str(self.far.python), "ssh_config": self.folder / "ssh_config"}
        self.here.add_remote(NAME, host=f"{NAME}-host", **{**right, **self.wishes, **wishes})

    def serve(self, *, user: str | None, **options: Any) -> RealSshd:
        """Start another sshd, which ends with the test."""
        folder = self.folder / f"sshd-{free_port()}"
        folder.mkdir()
        options["extra_config"] = f"{options.get('extra_config', '')}\nSetEnv {MARK}={THIS_RUN}"
        return self.stack.enter_context(RealSshd(folder, user=user, **options))


@dataclass(frozen=True)
class Trouble:
    """What happens, what the sentence must speak of, and how the command ends."""

    happens: Callable[[Place], Iterator[None]]
    says: str  # a regular expression
    exit_code: int


TROUBLES: dict[str, Trouble] = {}


def trouble(
    says: str, exit_code: int
) -> Callable[[Callable[[Place], Iterator[None]]], Callable[[Place], Iterator[None]]]:
    """Add a trouble; its function's name is its name."""

    def add(happens: Callable[[Place], Iterator[None]]) -> Callable[[Place], Iterator[None]]:
        TROUBLES[happens.__name__.replace("_", " ")] = Trouble(happens, says, exit_code)
        return happens

    return add


# --- on the way ---


@trouble("no-such-host.invalid", 3)
def a_host_that_does_not_resolve(place: Place) -> Iterator[None]:
    place.reach(HostName="no-such-host.invalid")
    yield
    place.reach()


@trouble("refuse", 3)
def a_host_that_refuses(place: Place) -> Iterator[None]:
    place.reach(Port=str(free_port()))
    yield
    place.reach()


@trouble("(?i)silent", 3)
def a_host_that_swallows_everything(place: Place) -> Iterator[None]:
    proxy = place.stack.enter_context(Proxy(place.sshd.port))
    proxy.stall()
    place.reach(Port=str(proxy.port), HostKeyAlias=f"[127.0.0.1]:{place.sshd.port}")
    yield
    proxy.cut()
    proxy.resume()


@trouble("(?i)ssh", 3)
def a_server_of_another_kind(place: Place) -> Iterator[None]:
    import http.server
    import threading

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    place.stack.callback(thread.join)
    place.stack.callback(server.server_close)
    place.stack.callback(server.shutdown)
    place.reach(Port=str(server.server_port), HostKeyAlias=f"[127.0.0.1]:{place.sshd.port}")
    yield
    place.reach()


# --- at the door ---


@trouble("(?i)key", 3)
def a_key_that_is_not_let_in(place: Place) -> Iterator[None]:
    stranger = make_key(place.folder / "stranger")
    place.reach(IdentityFile=str(stranger))
    yield
    place.reach()


@trouble("SHA256:.*", 3)
def a_host_key_that_nobody_knows(place: Place) -> Iterator[None]:
    known = place.folder / "known_hosts"
    known.write_text("")
    place.reach(UserKnownHostsFile=str(known))
    yield
    known.write_text(place.sshd.known_hosts.read_text())


@trouble("(?i)changed|another|differ", 3)
def a_host_key_that_has_changed(place: Place) -> Iterator[None]:
    other = make_key(place.folder / "other_host_key").with_suffix(".pub").read_text().split()
    known = place.folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{place.sshd.port} {other[0]} {other[1]}\n")
    place.reach(UserKnownHostsFile=str(known))
    yield
    known.write_text(place.sshd.known_hosts.read_text())


@trouble("(?i)command|banner|go away", 4)
def a_forced_command(place: Place) -> Iterator[None]:
    server = place.serve(user=place.sshd.user, force_command="echo go away")
    place.reach(server)
    yield
    place.reach()


# --- over there ---


@trouble("/nowhere/python", 4)
def no_python_there(place: Place) -> Iterator[None]:
    place.remote(python="/nowhere/python")
    yield
    place.remote()


@trouble(r"3\.8", 4)
def a_python_that_is_too_old(place: Place) -> Iterator[None]:
    old = old_python("3.8")
    place.reach(place.serve(user=None))  # it lies in our own home
    place.remote(python=str(old))
    yield
    place.reach()
    place.remote()


@trouble("zmq", 4)
def a_python_without_pyzmq(place: Place) -> Iterator[None]:
    bare = place.folder / "bare"
    run_quietly(["/usr/bin/python3", "-m", "venv", "--without-pip", str(bare)])
    place.stack.callback(shutil.rmtree, bare)
    for parent in (bare, *bare.parents):
        if parent.stat().st_uid == place.folder.stat().st_uid and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    place.remote(python=str(bare / "bin/python"))
    yield
    place.remote()


@trouble("no-such-kernel", 4)
def a_kernelspec_that_is_not_there(place: Place) -> Iterator[None]:
    place.remote(kernel="no-such-kernel")
    yield
    place.remote()


@trouble("module load", 4)
def an_init_line_that_fails(place: Place) -> Iterator[None]:
    place.remote(init=("module load cuda/99 || { echo no module load cuda/99 >&2; exit 1; }",))
    yield
    place.remote()


@trouble("/nowhere/at/all", 4)
def a_folder_that_is_not_there(place: Place) -> Iterator[None]:
    place.remote(cwd="/nowhere/at/all")
    yield
    place.remote()


@trouble("(?i)room|space|written", 4)
def a_full_home(place: Place) -> Iterator[None]:
    real_part("root")
    user = place.stack.enter_context(throw_away_user("remoter-full"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=777", "tmpfs", str(user.home)]
    subprocess.run(mount, check=True)
    place.stack.callback(subprocess.run, ["umount", "-l", str(user.home)], check=True)
    place.reach(place.serve(user=user.user))
    (user.home / "all-of-it").write_bytes(bytes(16384))
    yield
    (user.home / "all-of-it").unlink()
    subprocess.run(["mount", "-o", "remount,size=50m", str(user.home)], check=True)


# --- in what we have written down ---


@trouble("remotes.toml.*line|line.*remotes.toml", 2)
def a_broken_configuration(place: Place) -> Iterator[None]:
    config = place.here.folder / "remotes.toml"
    right = config.read_text()
    config.write_text(right + "\n[remotes.other\nhost = 1\n")
    yield
    config.write_text(right)


@trouble("(?i)configured|no remote", 2)
def a_remote_that_was_taken_away(place: Place) -> Iterator[None]:
    config = place.here.folder / "remotes.toml"
    right = config.read_text()
    config.write_text("")
    yield
    config.write_text(right)
