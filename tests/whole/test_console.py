"""`jupyter console --kernel remoter` at a real terminal, with and without a remote."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from bench.proxy import Proxy
from tests.conftest import is_keeper, marked
from tests.real_jupyter import wait_for
from tests.real_parts import real_part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
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

    def write(self, text: str) -> None:
        """Type without pressing Enter."""
        self._tmux("send-keys", "-l", text)

    def visible(self) -> str:
        """Return what is on the screen now."""
        return self._tmux("capture-pane", "-p", "-J")

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


# --------------------------------------------------------------- a day in text

PROMPT = re.compile(r"^In \[(\d+)\]:", re.MULTILINE)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
TRIES = 6


@pytest.fixture
def path(
    here: JupyterHere,
    sshd: RealSshd,
    far: FarSide,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Proxy]:
    """A breakable path, perhaps a long one, to two remotes: box and box-r."""
    real_part("tmux")
    real_part("jupyter-console")
    config = tmp_path / "config"
    with Proxy(sshd.port, rtt=getattr(request, "param", 0.0)) as proxy:
        name = f"[127.0.0.1]:{sshd.port}"
        sshd.ssh_config(config, "detour", extra=f"Port {proxy.port}\nHostKeyAlias {name}")
        words: dict[str, Any] = {"ssh_config": config, "python": str(far.python)}
        here.add_remote("box", "detour", **words)
        here.add_remote("box-r", "detour", language="R", kernel="ir", **words)
        yield proxy
        for remote in ("box", "box-r"):
            here.remoter("stop", "--all", remote)
    wait_for(lambda: all(map(is_keeper, marked())), seconds=20, what="nothing is left behind")
    (here.folder / "remotes.toml").unlink()


@contextlib.contextmanager
def opened(folder: Path, *command: str) -> Iterator[Terminal]:
    """Open a terminal with this program in it."""
    folder.mkdir()
    with Terminal(folder, list(command)) as terminal:
        yield terminal


def console_of(spec: str) -> list[str]:
    return [sys.executable, "-m", "jupyter_console", "--kernel", spec]


def leave(console: Terminal, word: str = "exit") -> None:
    console.type(word)
    wait_for(console.is_over, seconds=WITHIN, what="the console has ended")


def is_tidy(screen: str) -> bool:
    """No prompt came twice, and nothing is there that only a terminal should see."""
    prompts = PROMPT.findall(screen)
    return prompts == [str(number + 1) for number in range(len(prompts))] and not (
        CONTROL.search(screen)
    )


def ask_and_hide(console: Terminal) -> None:
    """Type what must not be seen, at cell 1."""
    console.wait_for("In [1]:")
    console.type("import getpass; secret = getpass.getpass('pass? ')")
    console.wait_for("pass? ", times=2)
    console.type("hunter2")
    console.wait_for("In [2]:")
    console.type("len(secret)")
    console.wait_for("Out[2]: 7")
    assert "hunter2" not in console.screen()


def write_a_block(console: Terminal) -> None:
    """Type more than a line, at cell 3: the kernel says where it goes on, and when it is done."""
    console.wait_for("In [3]:")
    console.type("for i in range(2):")
    console.wait_for("...:")
    console.type("print('row', i)")
    console.wait_for("...:", times=2)
    console.press("Enter")
    console.wait_for("row 0\nrow 1\n")


def complete_and_repeat(console: Terminal) -> None:
    """Let Tab find an attribute that only the far object has; arrow up brings it back."""
    console.wait_for("In [4]:")
    console.type("Far = type('Far', (), {'tall_' + 'order': 55})")
    console.wait_for("In [5]:")
    console.write("Far.tall")
    console.press("Tab")
    console.wait_for("Far.tall_order")
    console.press("Enter")
    console.wait_for("Out[5]: 55")
    console.wait_for("In [6]:")
    console.press("Up")
    console.wait_for("Far.tall_order", times=2)
    console.press("Enter")
    console.wait_for("Out[6]: 55")


def look_at_things(console: Terminal) -> None:
    """Read the help, and a figure's text."""
    console.wait_for("In [7]:")
    console.type("len?")
    console.wait_for("Return the number of items in a container")
    console.wait_for("In [8]:")
    console.type("import matplotlib; matplotlib.use('agg'); import matplotlib.pyplot as plt")
    console.wait_for("In [9]:")
    console.type("plt.figure()")
    console.wait_for("Out[9]: <Figure size 640x480 with 0 Axes>")


def wait_out_a_cut(console: Terminal, path: Proxy) -> None:
    """A notice is there while the link is down, and is gone when it is back."""
    console.wait_for("In [10]:")
    path.refuse()
    path.cut()
    console.type("'after ' + 'it'")
    console.wait_for("Waiting for the link to box …")
    path.welcome()
    console.wait_for("Out[10]: 'after it'")
    assert "Waiting for the link" not in console.visible()
    console.wait_for("In [11]:")
    assert is_tidy(console.visible()), console.visible()


def session_of(here: JupyterHere, remote: str) -> str:
    """Return the id of a remote's only living session."""
    found = json.loads(here.remoter("sessions", remote, "--json").stdout)["sessions"]
    own = [each for each in found if each["remote"] == remote]
    (session,) = [each["id"] for each in own if each["state"] not in {"ended", "dead"}]
    return str(session)


def test_a_day_in_text(here: JupyterHere, path: Proxy, tmp_path: Path) -> None:
    """Blocks, Tab, history, help, a cut; what is kept in the evening is there in the morning."""
    with opened(tmp_path / "day", *console_of("remoter-box")) as console:
        ask_and_hide(console)
        write_a_block(console)
        complete_and_repeat(console)
        look_at_things(console)
        wait_out_a_cut(console, path)
        console.type("%remoter status")
        console.wait_for("at shutdown  the session ends")
        console.wait_for("In [11]:", times=2)  # the kernel has counted nothing
        console.type("%remoter keep")
        console.wait_for("stays when this kernel is shut down")
        session = session_of(here, "box")
        leave(console)
    remoter = str(Path(sys.executable).with_name("remoter"))
    for number in range(TRIES):
        with opened(tmp_path / f"next-{number}", remoter, "attach", session) as console:
            console.wait_for("In [1]:")
            console.press("Up")
            # The console asks for the history once, and goes without after a second.
            try:
                wait_for(lambda: "'after ' + 'it'" in console.screen(), seconds=2)
            except AssertionError:
                if number == TRIES - 1:
                    raise
                leave(console)
                continue
            console.press("C-c")
            console.press("C-r")
            console.write("Far.t")
            console.wait_for("Far.tall_order")
            console.press("Enter")  # this is the one
            console.press("Enter")
            console.wait_for("]: 55")
            leave(console)
            break


def test_a_short_day_in_r(path: Proxy, tmp_path: Path) -> None:
    """A value, an error, a block, a question, help and Ctrl-C."""
    real_part("irkernel")
    with opened(tmp_path / "day", *console_of("remoter-box-r")) as console:
        console.wait_for("In [1]:")
        console.type("6 * 7")
        console.wait_for("[1] 42")
        console.type("stop('not ' , 'so')")
        console.wait_for("not so")
        console.wait_for("In [3]:")
        console.type("name <- readline('who? ')")
        console.wait_for("who? ", times=2)
        console.type("Ada")
        console.wait_for("In [4]:")
        console.type("f <- function(x) {")
        console.wait_for("...:")
        console.type("paste('Hello,', x) }")
        console.wait_for("In [5]:")
        console.type("f(name)")
        console.wait_for('"Hello, Ada"')
        console.wait_for("In [6]:")
        console.type("cat('go', 'ing\\n', sep = ''); Sys.sleep(600)")
        console.wait_for("going\n")
        console.press("C-c")
        console.wait_for("In [7]:")
        assert is_tidy(console.visible()), console.visible()
        console.type("?mean")
        console.wait_for("Arithmetic Mean")  # in a pager, which has the whole screen
        console.press("q")
        console.wait_for("In [8]:")
        leave(console, "quit()")


def test_cells_of_this_side(path: Proxy, far: FarSide, tmp_path: Path) -> None:
    """The first cell of all asks, before the far side is reached; nothing else is said beside."""
    day = opened(tmp_path / "day", *console_of("remoter-box"))
    with far.folder() as folder, day as console:
        console.wait_for("In [1]:")
        console.type("%local 6 * 7")
        console.wait_for("yes or no:")
        console.type("yes")
        console.wait_for("Out[1]: 42")
        console.wait_for("In [2]:")
        console.type("%%local")
        console.wait_for("...:")
        console.type("print('out', 'here'); 1 / 0")
        console.press("Enter")
        console.wait_for("out here\n")
        console.wait_for("ZeroDivisionError: division by zero")
        assert "WARNING" not in console.screen()
        console.type("'on the ' + 'other'")
        console.wait_for("Out[1]: 'on the other'")
        (tmp_path / "weights").write_bytes(bytes(4_000_000))
        path.narrow(16e6)
        console.type(f"%remoter put {tmp_path / 'weights'} {folder}/")
        console.wait_for("outside of this notebook's folder (1 of 1)")
        console.type("yes")
        console.wait_for("1 file, 3.8 MiB in ")
        (line,) = re.findall("^to box: .* of 3.8 MiB, .*$", console.screen(), re.MULTILINE)
        assert line.endswith(" left")
        assert (folder / "weights").stat().st_size == 4_000_000
        leave(console)


@pytest.mark.parametrize("path", [0.2], indirect=True)
def test_questions_over_a_long_path(path: Proxy, tmp_path: Path) -> None:
    """The console takes a cell that shows no sign of life at once for done, and asks nothing.

    Typed before the far side is reached, and when the way there takes its time.
    """
    with opened(tmp_path / "far", *console_of("remoter-box")) as console:
        for number in (1, 2, 3):
            console.wait_for(f"In [{number}]:")
            console.type(f"print('Hello,', input('who{number}? '))")
            console.wait_for(f"who{number}? ", times=2)
            console.type("Ada")
            console.wait_for("Hello, Ada", times=number)
        console.wait_for("In [4]:")
        assert is_tidy(console.visible()), console.visible()
        leave(console)
