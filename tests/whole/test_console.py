"""`jupyter console --kernel remoter` at a real terminal, with and without a remote."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.conftest import is_keeper, marked
from tests.real_jupyter import wait_for
from tests.real_parts import real_part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

WITHIN = 30.0  # seconds until something must be on the screen


class Terminal:
    """A real terminal: a tmux server of its own with one window."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.socket = folder / "tmux"
        self.command = command
        self.temporary = folder / "tmp"  # where the program in it keeps temporary files

    def __enter__(self) -> Self:
        self.temporary.mkdir()
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "150", "-y", "50", *self.command)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self._tmux("kill-server")

    def type(self, line: str) -> None:
        """Type a line and press Enter."""
        self._tmux("send-keys", "-l", line)
        self._tmux("send-keys", "Enter")

    def press(self, key: str) -> None:
        """Press one key, in tmux's words: C-c."""
        self._tmux("send-keys", key)

    def screen(self) -> str:
        """Return what is on the screen, and what has left it at the top."""
        return self._tmux("capture-pane", "-p", "-J", "-S", "-200")

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until a text is there so many times."""
        try:
            wait_for(lambda: self.screen().count(text) >= times, seconds=WITHIN, what=text)
        except AssertionError as error:
            error.add_note(self.screen())
            raise

    def is_over(self) -> bool:
        """Has the program in it ended?"""
        command = ["tmux", "-S", str(self.socket), "has-session"]
        return subprocess.run(command, check=False, capture_output=True).returncode != 0

    def _tmux(self, *words: str) -> str:
        command = ["tmux", "-S", str(self.socket), *words]
        # Plain `python` is what the packaged kernelspec says: the one of this environment.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "TERM": "xterm-256color"}
        environment["TMPDIR"] = str(self.temporary)
        return subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment
        ).stdout


@pytest.fixture
def console(tmp_path: Path, here: JupyterHere) -> Iterator[Terminal]:
    """The console, as a person starts it."""
    real_part("tmux")
    real_part("jupyter-console")
    command = [sys.executable, "-m", "jupyter_console", "--kernel", "remoter"]
    with Terminal(tmp_path, command) as terminal:
        yield terminal


def use(console: Terminal, user: str) -> None:
    """Do what people do: a result, a traceback, input(), Ctrl-C, exit."""
    console.wait_for("In [1]:")
    console.type("6 * 7")
    console.wait_for("Out[1]: 42")
    console.type("import getpass; getpass.getuser()")
    console.wait_for(f"Out[2]: '{user}'")
    console.type("1 / 0")
    console.wait_for("ZeroDivisionError: division by zero")
    console.wait_for("In [4]:")
    console.type("name = input('who? ')")
    console.wait_for("who? ", times=2)
    console.type("Ada")
    console.wait_for("In [5]:")
    console.type("'Hello, ' + name")
    console.wait_for("Out[5]: 'Hello, Ada'")
    console.type("import time; print('go' + 'ing'); time.sleep(600)")
    console.wait_for("going\n")
    console.press("C-c")
    console.wait_for("KeyboardInterrupt")
    console.wait_for("In [7]:")
    console.type("2 + 2")
    console.wait_for("Out[7]: 4")
    console.type("exit")
    wait_for(console.is_over, seconds=WITHIN, what="the console has ended")


def test_the_default_remote(console_of_the_remote: Terminal, far: FarSide) -> None:
    """With a default remote, `remoter` is a kernel of the far user; nothing is left of it."""
    use(console_of_the_remote, far.user)
    wait_for(lambda: all(map(is_keeper, marked())), seconds=10, what="nothing is left behind")


@pytest.fixture
def console_of_the_remote(
    here: JupyterHere, python_remote: dict[str, Any], request: pytest.FixtureRequest
) -> Iterator[Terminal]:
    """The console, where there is a default remote."""
    here.add_remote("box", **python_remote)
    yield request.getfixturevalue("console")
    (here.folder / "remotes.toml").unlink()


def test_no_remote_at_all(console: Terminal) -> None:
    """Without any remote, `remoter` goes through SSH to this machine; nothing is left of it."""
    use(console, getpass.getuser())
    wait_for(lambda: all(map(is_keeper, marked())), seconds=10, what="nothing is left behind")
    assert not list(console.temporary.iterdir())
