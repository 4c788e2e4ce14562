"""Whoever watches a run, or leaves it: questions, cuts, Ctrl-C at any moment, `-f`."""

from __future__ import annotations

import json
import signal
import subprocess
import warnings
from typing import TYPE_CHECKING, Any

import pexpect
import pytest

from bench.proxy import Proxy
from remoter_kernel.local.login.keeper.endpoint import end_logins
from tests.real_jupyter import wait_for
from tests.whole.test_run import LONG, REMOTER, box, living, shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

__all__ = ["box"]  # a fixture

TICKS = "import time\nfor i in range(40):\n    print('tick', i, flush=True)\n    time.sleep(0.1)\n"
ASKS = "name = input('who? ')\nprint('hello', name)\ninput('again? ')\n"


@pytest.fixture
def detached(here: JupyterHere, box: str) -> Iterator[str]:
    """The id of a run that goes on for long."""
    ran = here.remoter("run", box, "--detach", "-c", LONG)
    assert ran.returncode == 0, ran.stderr
    yield ran.stdout.strip()
    here.remoter("stop", "--all", box)


def started(*words: str) -> subprocess.Popen[str]:
    """Start the command, its output in pipes."""
    pipe = subprocess.PIPE
    return subprocess.Popen([REMOTER, *words], stdout=pipe, stderr=pipe, text=True)


def test_a_run_goes_on_over_a_cut(box: str) -> None:
    """The keeper of the login ends in the middle: every line comes, once, in order."""
    with started("run", box, "-c", TICKS) as process:
        lines = [process.stdout.readline() for _ in range(4)]
        end_logins(box)
        lines += process.stdout.readlines()
    assert lines == [f"tick {i}\n" for i in range(40)]
    assert process.returncode == 0


def test_a_link_that_stays_away_is_told(
    here: JupyterHere, sshd: RealSshd, far: FarSide, tmp_path: Path
) -> None:
    """On stderr, when it has been gone for a moment and when it is back; nothing is lost."""
    with Proxy(sshd.port) as path:
        config = tmp_path / "ssh_config"
        alias = f"[127.0.0.1]:{sshd.port}"  # the key is known by the sshd's own port
        sshd.ssh_config(config, "far", extra=f"Port {path.port}\nHostKeyAlias {alias}")
        here.add_remote("far", host="far", ssh_config=config, python=str(far.python))
        with started("run", "far", "-c", TICKS) as process:
            lines = [process.stdout.readline()]
            path.refuse()
            path.cut()
            first = process.stderr.readline()
            path.welcome()
            rest, complaint = process.communicate(timeout=40)
    assert lines + rest.splitlines(keepends=True) == [f"tick {i}\n" for i in range(40)]
    assert first.startswith("remoter: far: the link is lost; the code goes on there")
    assert complaint.startswith("remoter: far: the link is back after ")
    assert process.returncode == 0


@pytest.mark.parametrize("manner", ["", "--json"])
def test_answers_come_from_a_pipe(box: str, tmp_path: Path, manner: str) -> None:
    """Line after line, as for a script that runs here; after the last there is no more input."""
    line = f"printf 'Ada\\n' | remoter run {box} {manner} -c \"{ASKS}\""
    ran = shell(line, tmp_path)
    said = json.loads(ran.stdout)["outputs"][0]["text"] if manner else ran.stdout
    prompts = ran.stderr if manner else ran.stdout
    assert "hello Ada\n" in said
    assert "who? " in prompts
    assert "EOFError" in (ran.stdout if manner else ran.stderr)
    assert ran.returncode == 1


def test_questions_at_a_terminal(here: JupyterHere, box: str) -> None:
    """An answer goes there; Ctrl-C at the next question interrupts what has asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: a fork beside threads
        person = pexpect.spawn(REMOTER, ["run", box, "-c", ASKS], encoding="utf-8", timeout=40)
    try:
        person.expect("who\\? ")
        person.sendline("Ada")
        person.expect("hello Ada")
        person.expect("again\\? ")
        person.sendintr()
        person.expect("KeyboardInterrupt")
        person.expect(pexpect.EOF)
    finally:
        person.close(force=True)
    assert person.exitstatus == 1
    assert not living(here, box)


def test_the_end_of_input_is_one_there(box: str) -> None:
    """Ctrl-D at a question is an EOFError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        code = "try:\n    input('who? ')\nexcept EOFError:\n    print('nobody')\n"
        person = pexpect.spawn(REMOTER, ["run", box, "-c", code], encoding="utf-8", timeout=40)
    try:
        person.expect("who\\? ")
        person.sendeof()
        person.expect("nobody")
        person.expect(pexpect.EOF)
    finally:
        person.close(force=True)
    assert person.exitstatus == 0


def test_ctrl_c_before_the_kernel_is_there(
    here: JupyterHere, python_remote: dict[str, Any]
) -> None:
    """130, without a word, and nothing stays there."""
    here.add_remote("slow", init=("sleep 20",), **python_remote)
    with started("run", "slow", "-c", "print('never')") as process:
        wait_for(lambda: living(here, "slow"), seconds=30, what="its session has begun")
        process.send_signal(signal.SIGINT)
        text, complaint = process.communicate(timeout=30)
    assert (text, complaint.strip(), process.returncode) == ("", "", 130)
    assert not living(here, "slow")


@pytest.mark.parametrize("verb", ["outputs", "log"])
def test_ctrl_c_ends_the_following_and_nothing_else(
    here: JupyterHere, box: str, detached: str, verb: str
) -> None:
    """130, without a word; what was followed goes on."""
    with started(verb, "-f", detached) as process:
        wanted = "on" if verb == "outputs" else "asked for: import time"
        assert any(wanted in line for line in iter(process.stdout.readline, ""))
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=30)
    assert (complaint.strip(), process.returncode) == ("", 130)
    wait_for(lambda: [each["state"] for each in living(here, box)] == ["busy"], what="busy")


def test_a_follower_whose_reader_leaves_ends_quietly(detached: str) -> None:
    """`remoter log -f | head -1`."""
    with started("log", "-f", detached) as process:
        process.stdout.readline()
        process.stdout.close()
        complaint = process.stderr.read()
    assert (complaint, process.returncode) == ("", 141)
