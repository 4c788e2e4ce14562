"""Each verb of the R package remoter, and what does its work here, in Python and in R.

One row of docs/reference/from-remoter.md is one test, which runs what the row names. Chains of
hosts, questions of logins and wrong passwords are in test_logins.py; many MPI ranks (pbdCS) in
test_many_ranks.py.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.connect import write_connection_file
from jupyter_client.kernelspec import KernelSpecManager

from tests.real_jupyter import started_kernel, wait_for
from tests.real_parts import real_part
from tests.whole.talk import Talk
from tests.whole.test_cell_lines import times_of
from tests.whole.test_console import Terminal
from tests.whole.test_control import Debugger
from tests.whole.test_run import REMOTER, living
from tests.whole.test_sessions import a_front, asked, shown, told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide
    from tests.whole.talk import Message, Transcript

LANGUAGES = {"Python": "python3", "R": "ir"}  # and their kernels
python_alone = pytest.mark.parametrize("side", ["Python"], indirect=True)


@dataclass(frozen=True)
class Side:
    """A session on a remote, somebody who talks to it, and a folder on either side."""

    remote: str
    language: str
    talk: Talk
    folder: Path
    there: Path
    before: list[dict[str, Any]]  # what was there before the first login

    @property
    def spec(self) -> str:
        return f"remoter-{self.remote}"

    def says(self, code: str) -> Transcript:
        """Run a cell; return all that was heard of it."""
        return self.talk.case(lambda talk: talk.run(code))

    def run(self, code: str) -> str:
        """Run a cell; return the text that it showed."""
        return shown(self.says(code))

    def either(self, python: str, r: str) -> str:
        """Choose what is written in this side's language."""
        return {"Python": python, "R": r}[self.language]

    @property
    def busy(self) -> str:
        """A cell that says that it has begun, and then takes a minute."""
        return self.either(
            "import time; print('on', flush=True); time.sleep(60)", "cat('on\\n'); Sys.sleep(60)"
        )


@pytest.fixture(scope="module", params=LANGUAGES)
def side(
    request: Any,
    here: JupyterHere,
    far: FarSide,
    python_remote: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Side]:
    """One session for all rows in this language."""
    language = request.param
    if language == "R":
        real_part("irkernel")
    remote = f"verbs-{language.lower()}-{os.getpid()}"
    folder = tmp_path_factory.mktemp("notebooks")
    with far.folder() as there:
        wishes: dict[str, Any] = {
            "kernel": LANGUAGES[language],
            "cwd": str(there),
            "local": "allow",
        }
        spec = here.add_remote(remote, language=language, **wishes, **python_remote)
        before = living(here, remote)
        with started_kernel(spec, cwd=str(folder)) as kernel:
            talk = Talk(kernel.client)
            talk.case(lambda talk: talk.run("1"))
            yield Side(remote, language, talk, folder, there, before)
        here.remoter("stop", "--all", remote)  # what a test that failed has left


@pytest.fixture
def session(side: Side) -> str:
    """The id of that session."""
    return side.run("%remoter status").partition("session")[2].split()[0]


def of(said: Transcript, kind: str) -> list[Message]:
    """The contents of what came of one kind."""
    return [m["content"] for m in said["iopub under request 0"] if m["type"] == kind]


# --------------------------------------------------------------- to and fro


def test_server(here: JupyterHere, side: Side, session: str) -> None:
    """Nobody starts it: nothing was there before, and the first login has started it."""
    assert side.before == []
    wait_for(lambda: told(here, side.remote, session)["fronts"] == 1, what="it is counted")
    assert told(here, side.remote, session)["kernel"] == LANGUAGES[side.language]


def test_client_in_the_kernel_picker(side: Side) -> None:
    """The remote is one of the kernels, under its name and with its language."""
    spec = KernelSpecManager().get_all_specs()[side.spec]["spec"]
    assert (spec["display_name"], spec["language"]) == (f"Remote ({side.remote})", side.language)


def test_client_at_the_console(side: Side, session: str, tmp_path: Path) -> None:
    """`remoter attach` has the session's variables, and `exit` leaves it as it is."""
    real_part("tmux")
    real_part("jupyter-console")
    side.run(side.either("kept = 'since before'", "kept <- 'since before'"))
    with Terminal(tmp_path, [REMOTER, "attach", session]) as console:
        console.wait_for("]:")
        console.type("kept")
        console.wait_for("since before")
        console.type("exit")
        wait_for(console.is_over, seconds=30, what="the console has ended")
    assert "since before" in side.run("kept")


def test_batch(here: JupyterHere, side: Side, tmp_path: Path) -> None:
    """A script's first line comes while it runs; it stops at its first error, and fails: 1."""
    heard = side.there / "heard"
    script = tmp_path / side.either("script.py", "script.R")
    script.write_text(
        side.either(
            "import os, time\nprint('first', flush=True)\n"
            f"for i in range(1000):\n    os.path.exists('{heard}') or time.sleep(0.02)\n"
            f"print(os.path.exists('{heard}'))\n1 / 0\nprint('never')\n",
            "cat('first\\n')\n"
            f"for (i in 1:1000) if (!file.exists('{heard}')) Sys.sleep(0.02)\n"
            f"print(file.exists('{heard}'))\nstop('division by zero')\ncat('never\\n')\n",
        )
    )
    complaint = tmp_path / "complaint"
    words = [REMOTER, "run", side.remote, str(script)]
    with (
        complaint.open("w") as errors,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True) as running,
    ):
        first = running.stdout.readline()
        heard.touch()
        rest = running.stdout.read()
    assert first == "first\n"
    assert rest == side.either("True\n", "[1] TRUE\n")
    assert "division by zero" in complaint.read_text()
    assert running.returncode == 1
    ran = here.remoter("run", side.remote, "-c", "6 * 7")
    assert (ran.stdout, ran.returncode) == (side.either("42\n", "[1] 42\n"), 0)


@python_alone
def test_relay(
    here: JupyterHere, side: Side, sshd: RealSshd, python_remote: dict[str, Any]
) -> None:
    """`ProxyJump`: one more login on the way, and nothing to start on the host between."""
    sshd.ssh_config(python_remote["ssh_config"], "behind", extra="ProxyJump real")
    here.add_remote("behind", **{**python_remote, "host": "behind"})
    before = sshd.accepted()
    assert asked(here, "run", "behind", "-c", "print('behind')") == "behind\n"
    assert sshd.accepted() == before + 2


# --------------------------------------------------------------- objects, files, this side


def test_c2s_and_s2c(side: Side) -> None:
    """`%remoter push x`, `%remoter pull x as y`: values, between any two languages."""
    side.run("%local x = 41")
    assert side.run("%remoter push x").startswith("x is there now")
    side.run(side.either("x = x + 1", "x <- x + 1L"))
    side.run("%remoter pull x as y")
    assert side.run("%local x, y") == "(41, 42)"


def test_sendfile_and_recvfile(here: JupyterHere, side: Side) -> None:
    """In a cell and at a shell, there and back."""
    (side.folder / "data.txt").write_text("41\n")
    side.run("%remoter put data.txt in-cell.txt")
    asked(here, "put", side.remote, str(side.folder / "data.txt"), "at-shell.txt")
    for name in ("in-cell.txt", "at-shell.txt"):
        reads = side.either(f"print(open('{name}').read())", f"cat(readLines('{name}'))")
        assert side.run(reads).strip() == "41"
    side.run("%remoter get in-cell.txt ./")
    asked(here, "get", side.remote, "at-shell.txt", f"{side.folder}/")
    assert (side.folder / "in-cell.txt").read_text() == "41\n"
    assert (side.folder / "at-shell.txt").read_text() == "41\n"


def test_evalc_lsc_and_rmc(side: Side) -> None:
    """`%%local` evaluates here, `%who` lists, `del` removes; the far side sees none of it."""
    side.run("%%local\nonly_here = 40\nprint(only_here + 2)")
    assert "only_here" in side.run("%local %who").split()
    assert "only_here" in side.run("only_here")  # of an error: there is no such name
    side.run("%local del only_here")
    assert "only_here" not in side.run("%local %who").split()


# --------------------------------------------------------------- what is shown


def test_rpng(side: Side) -> None:
    """A plot is a picture under its cell, without any device to open or close."""
    plot = "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    (shown_there,) = of(side.says(side.either(plot, "plot(1:3)")), "display_data")
    assert "image/png" in shown_there["data"]


def test_rhelp(side: Side) -> None:
    """`?name`, Shift-Tab and Tab: answered by the kernel there."""
    said = side.says(side.either("?len", "?mean"))
    (reply,) = said["shell under request 0"]
    (page,) = reply["content"]["payload"]
    words = side.either("number of items", "rithmetic")
    assert (page["source"], words in page["data"]["text/plain"]) == ("page", True)
    name = side.either("len", "mean")
    at = {"code": name, "cursor_pos": len(name)}
    assert side.talk.ask("inspect_request", {**at, "detail_level": 0})["found"]
    side.run(side.either("far_away = 1", "far_away <- 1"))
    at = {"code": "far_aw", "cursor_pos": 6}
    assert side.talk.ask("complete_request", at)["matches"] == ["far_away"]


def test_showlog(here: JupyterHere, side: Side, session: str) -> None:
    """`%remoter log` and `remoter log`: what was asked, by whom, and how it ended."""
    side.run("'to be logged'")
    assert "asked for: 'to be logged'" in side.run("%remoter log")
    wait_for(lambda: "asked for: 'to be logged'" in asked(here, "log", f"{side.remote}/{session}"))


def test_timer(side: Side) -> None:
    """`%remoter timer on`: after each cell, how long it was there and on the link."""
    side.run("%remoter timer on")
    try:
        cell = side.talk.queue(side.either("import time; time.sleep(0.3)", "Sys.sleep(0.3)"))
        side.talk.done(cell)
        heard = [message for channel, message in side.talk.heard if channel == "iopub"]
        mine = [each for each in heard if each["parent_header"].get("msg_id") == cell]
        assert 0.2 < times_of(mine)[0] < 10
    finally:
        side.run("%remoter timer off")


@python_alone
def test_sync(side: Side) -> None:
    """The debugger's panel lists the variables there (IRkernel has no debugger)."""
    side.run("in_the_panel = 42")
    variables = Debugger(side.talk).ask("inspectVariables")["variables"]
    assert {"in_the_panel": "42"}.items() <= {v["name"]: v["value"] for v in variables}.items()


def test_is_secure(side: Side) -> None:
    """`%remoter status` names the cipher, the host key and CURVE."""
    status = side.run("%remoter status")
    (login,) = [line for line in status.splitlines() if line.startswith("login")]
    assert "aes" in login or "chacha" in login
    assert "ed25519" in login
    assert "CURVE" in status


# --------------------------------------------------------------- many, and the end


def test_many_clients(side: Side, session: str, tmp_path: Path) -> None:
    """A second proxy on the session: the same variables, and what one runs the other sees."""
    key = secrets.token_hex(16).encode()
    file = Path(write_connection_file(str(tmp_path / "second.json"), key=key)[0])
    with a_front(file, side.remote, "--session", session) as second:
        second.run(side.either("shared = 42", "shared <- 42"))
        assert "42" in side.run("shared")
        side.talk.heard.clear()
        second.run(side.either("print('for ' + 'both')", "cat('for', 'both\\n')"))
        side.talk.until_said("for both")


def test_interrupt_and_streaming(side: Side) -> None:
    """Output comes while the cell runs, and an interrupt ends that cell alone."""
    side.run(side.either("kept = 'still here'", "kept <- 'still here'"))

    def stopped(talk: Talk) -> None:
        cell = talk.queue(side.busy)
        talk.until_line("on")
        talk.ask("interrupt_request", channel="control")
        talk.done(cell)

    (reply,) = side.talk.case(stopped)["shell under request 0"]
    assert reply["content"]["status"] == side.either("error", "abort")
    assert "still here" in side.run("kept")


def test_exit_of_the_client_alone(here: JupyterHere, side: Side) -> None:
    """`%remoter keep`, then close: the cell runs on; `remoter stop` does not wait for it.

    That it runs on where an interrupt comes first, as from Jupyter, is in test_life.py.
    """
    with started_kernel(side.spec) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("1"))
        kept = shown(talk.case(lambda talk: talk.run("%remoter keep"))).split()[1]
        talk.queue(side.busy)
        talk.until_line("on")
        # By itself: Jupyter's manager interrupts first, and on a busy machine long before.
        talk.send("shutdown_request", {"restart": False}, channel="control")
        wait_for(lambda: not kernel.manager.is_alive(), what="the front has ended", seconds=30)
    state = lambda: [told(here, side.remote, kept)[key] for key in ("fronts", "state")]  # noqa: E731
    wait_for(lambda: state()[0] == 0, what="the front has left", seconds=30)
    assert state() == [0, "busy"], asked(here, "log", f"{side.remote}/{kept}")
    asked(here, "stop", f"{side.remote}/{kept}")
    assert state() == [0, "ended"]


def test_shutdown(here: JupyterHere, side: Side, session: str) -> None:
    """`%remoter stop` ends a session whose kernel is busy, from within; others stay."""
    with started_kernel(side.spec) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("1"))
        talk.queue(side.busy)
        talk.until_line("on")
        ended = shown(talk.case(lambda talk: talk.run("%remoter stop"))).split()[1]
        state = lambda: told(here, side.remote, ended)["state"]  # noqa: E731
        wait_for(lambda: state() == "ended", what="its session has ended", seconds=30)
    assert told(here, side.remote, session)["state"] == "idle"
