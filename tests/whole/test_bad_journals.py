"""Journals that are damaged or must not tell: what runs twice (nothing), what is in them."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from bench.proxy import Proxy
from tests.real_jupyter import StartedKernel, started_kernel, wait_for
from tests.whole.talk import Talk
from tests.whole.test_deaths import (
    evaluator,
    heard,
    is_replaced,
    kill_evaluator,
    over,
    replies,
    session,
    text,
)
from tests.whole.test_life import there, value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

PROGRAMS = ".local/share/remoter-kernel/programs"
SECRET = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def spec(here: JupyterHere, python_remote: dict[str, Any]) -> str:
    """A kernelspec for the far Python."""
    return here.add_remote("journals", **python_remote)


@pytest.fixture
def kernel(spec: str, far: FarSide) -> Iterator[StartedKernel]:
    """A kernel of the test's own, that leaves nothing."""
    with started_kernel(spec) as started:
        yield started
    wait_for(lambda: not there(far), what="the far side is empty")


@pytest.fixture
def talk(kernel: StartedKernel) -> Talk:
    """A conversation with a kernel that works."""
    talk = Talk(kernel.client)
    talk.case(lambda talk: talk.run("import os; ran = []"))
    return talk


def flip(journal: Path, word: bytes) -> None:
    """Flip one bit in the head of the last record that has this word."""
    raw = journal.read_bytes()
    place = raw.rindex(b"\xfe\xffrk", 0, raw.rindex(word)) + 20
    with journal.open("r+b") as file:
        file.seek(place)
        file.write(bytes([raw[place] ^ 1]))


def test_a_request_whose_record_is_damaged_is_not_run_twice(
    here: JupyterHere, far: FarSide, sshd: RealSshd, tmp_path: Path
) -> None:
    """Written, handed over, not acknowledged, unreadable: the proxy says it again, in vain."""
    config = tmp_path / "ssh_config"
    with Proxy(sshd.port, rtt=0.2) as path:  # an acknowledgement is under way for a while
        name = f"[127.0.0.1]:{sshd.port}"
        sshd.ssh_config(config, "far", extra=f"Port {path.port}\nHostKeyAlias {name}")
        spec = here.add_remote("far", host="far", ssh_config=config, python=str(far.python))
        with started_kernel(spec) as kernel:
            talk = Talk(kernel.client)
            talk.case(lambda talk: talk.run("import os; ran = []"))
            journal = session(far) / "journal"
            child = psutil.Process(int(value(talk, "os.getpid()")))
            first = evaluator(far)
            wait_for(lambda: not_confirmed(talk) == 0, what="no acknowledgement is due")
            with suspended(child):  # it says nothing, so no acknowledgement rides on that
                cell = talk.queue("ran.append('surely once')")
                wait_for(lambda: b"surely once" in journal.read_bytes())
                first.kill()
                flip(journal, b"surely once")
                path.cut()
                wait_for(lambda: is_replaced(far, first), seconds=40.0)
            over(talk, cell)
            wait_for(lambda: b"surely once" in journal.read_bytes().partition(b'"missing"')[2])
            talk.listen(lambda: False, seconds=0.05)
            assert len(replies(talk, cell)) == 1
            errors = [m["content"] for m in heard(talk, cell) if m["msg_type"] == "error"]
            assert all("not run again" in error["evalue"] for error in errors)
            assert value(talk, "len(ran) < 2") == "True"
    wait_for(lambda: not there(far), what="the far side is empty")


def not_confirmed(talk: Talk) -> int:
    """Ask the proxy how much of what it said is not confirmed."""
    talk.case(lambda talk: talk.run("%remoter status"))
    said = "".join(str(m["content"]) for _, m in talk.heard if m["msg_type"] == "stream")
    return int((re.findall(r"; (\d+) not confirmed", said) or ["0"])[0])


@contextlib.contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    """Stop a process for a while."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def test_no_file_of_a_session_has_what_was_answered_to_a_prompt(
    talk: Talk, far: FarSide, here: JupyterHere
) -> None:
    """`input` and `getpass`, and an evaluator's death in between: grep finds the secret nowhere."""
    folder = session(far)
    for ask in ("input('name? ')", "__import__('getpass').getpass('word? ')"):
        for is_killed in (False, True):
            asked = len(talk._of("stdin"))
            cell = talk.queue(f"got = {ask}; print(len(got))")
            talk.listen(lambda asked=asked: len(talk._of("stdin")) > asked)  # type: ignore[misc]
            if is_killed:
                kill_evaluator(far)
            talk.send("input_reply", {"value": SECRET}, channel="stdin")
            over(talk, cell)
            assert text(talk, cell).endswith(f"{len(SECRET)}\n")
    assert value(talk, f"got == {SECRET[::-1]!r}[::-1]") == "True"
    files = [
        path
        for place in (folder, here.folder / "state", far.home / PROGRAMS)
        for path in place.rglob("*")
        if path.is_file()
    ]
    assert folder / "journal" in files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("is_quick", [True, False])
def test_kernel_and_evaluator_die_one_after_the_other(
    talk: Talk, far: FarSide, *, is_quick: bool
) -> None:
    """Between two kernels, or while the second starts: another evaluator sees to one, once."""
    folder, pid = session(far), int(value(talk, "os.getpid()"))
    first, file = evaluator(far), session(far) / "child.json"
    cell = talk.queue("import time; print('going', flush=True); time.sleep(60)")
    talk.listen(lambda: "going" in text(talk, cell))
    psutil.Process(pid).kill()
    wait_for(lambda: not file.exists())
    if not is_quick:
        wait_for(file.exists)
    first.kill()
    over(talk, cell)
    later = talk.queue("print('ran' in globals(), 1 + 1)")
    over(talk, later)
    assert text(talk, later).endswith("False 2\n")
    (error,) = [m["content"] for m in heard(talk, cell) if m["msg_type"] == "error"]
    assert "SIGKILL" in error["evalue"]
    assert session(far) == folder
    kernels = [p for p in there(far) if "ipykernel_launcher" in " ".join(p.cmdline())]
    assert len(kernels) == 1
