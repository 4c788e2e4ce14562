"""A session's life: interrupted, restarted, stopped, left behind and found again."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from jupyter_client.connect import write_connection_file

from tests.conftest import marked
from tests.real_jupyter import StartedKernel, client_of, started_kernel, wait_for
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide


@pytest.fixture(scope="module")
def spec(here: JupyterHere, python_remote: dict[str, Any]) -> str:
    """A kernelspec for the far Python."""
    return here.add_remote("life", env={"PYDEVD_DISABLE_FILE_VALIDATION": "1"}, **python_remote)


@pytest.fixture
def kernel(spec: str) -> Iterator[StartedKernel]:
    """A kernel of the test's own."""
    with started_kernel(spec) as started:
        yield started


def value(talk: Talk, expression: str) -> str:
    """Return what a cell with one expression shows."""
    said = talk.case(lambda talk: talk.run(expression))["iopub under request 0"]
    shown = [m["content"]["data"]["text/plain"] for m in said if m["type"] == "execute_result"]
    assert shown, said
    return str(shown[0])


def errors(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the contents of the errors among these messages."""
    return [message["content"] for message in said if message["type"] == "error"]


def there(far: FarSide, *, but: int = 0) -> list[psutil.Process]:
    """List what runs there: evaluator, warden, kernel."""
    me = {os.getpid(), but, *(p.pid for p in psutil.Process().children(recursive=True))}
    return [p for p in marked() if p.info["username"] == far.user and p.pid not in me]


def test_a_cell_runs_as_the_far_user(kernel: StartedKernel, another_user: FarSide) -> None:
    """`getpass.getuser()` in a cell names another unix user than ours, in that user's home."""
    talk = Talk(kernel.client)
    assert value(talk, "__import__('getpass').getuser()") == repr(another_user.user)
    assert another_user.user != getpass.getuser()
    assert value(talk, "__import__('os').getcwd()") == repr(str(another_user.home))


def test_what_belongs_to_us_is_not_the_kernels(kernel: StartedKernel) -> None:
    """The kernel has the login's umask and signals, and no parent that it should die with."""
    talk = Talk(kernel.client)
    talk.case(lambda talk: talk.run("import os, signal"))
    assert value(talk, "oct(os.umask(os.umask(0o22)))") in ("'0o22'", "'0o2'")
    assert value(talk, "signal.getsignal(signal.SIGPIPE).name") == "'SIG_IGN'"  # as Python has it
    assert value(talk, "[n for n in os.environ if n.startswith('JPY_')]") == "[]"


def test_an_interrupt_ends_the_cell(kernel: StartedKernel) -> None:
    """Jupyter's interrupt raises KeyboardInterrupt in the running cell; the kernel goes on."""
    talk = Talk(kernel.client)

    def says(talk: Talk) -> None:
        cell = talk.queue("import time\nprint('started', flush=True)\ntime.sleep(60)")
        talk.until_said("started")
        kernel.manager.interrupt_kernel()
        talk.done(cell)

    said = talk.case(says)
    assert [e["ename"] for e in errors(said["iopub under request 0"])] == ["KeyboardInterrupt"]
    assert value(talk, "6 * 7") == "42"


def test_a_restart_keeps_the_session_and_not_the_variables(
    kernel: StartedKernel, far: FarSide
) -> None:
    """After Jupyter's restart a new proxy is in the same session, whose kernel is a new one."""
    talk = Talk(kernel.client)
    talk.case(lambda talk: talk.run("x = 1; import os"))
    first_front, first_kernel = kernel.pid, int(value(talk, "os.getpid()"))
    evaluator = _evaluator(far)
    kernel.manager.restart_kernel()
    kernel.client.wait_for_ready(timeout=30)
    talk = Talk(kernel.client)
    assert value(talk, "'x' in globals()") == "False"
    assert kernel.pid != first_front
    assert int(value(talk, "__import__('os').getpid()")) != first_kernel
    assert _evaluator(far) == evaluator


def test_a_shutdown_ends_the_session(spec: str, far: FarSide) -> None:
    """With on_shutdown = "stop" nothing runs there any more after Jupyter's shutdown."""
    with started_kernel(spec) as kernel:
        value(Talk(kernel.client), "1")
        assert len(there(far)) >= 3  # evaluator, warden, kernel
    wait_for(lambda: not there(far), what="the far side is empty")


BUSY = """
import atexit, pathlib, time
atexit.register(pathlib.Path({left!r}).touch)
print('on', flush=True)
time.sleep(60)
"""


def test_a_busy_kernel_that_is_stopped_ends_in_order(kernel: StartedKernel, far: FarSide) -> None:
    """It does what it had meant to do at its end; what waits in its queue is not begun."""
    talk = Talk(kernel.client)
    with far.folder() as folder:
        left, begun = folder / "left", folder / "begun"

        def says(talk: Talk) -> None:
            cell = talk.queue(BUSY.format(left=str(left)))
            talk.until_line("on")
            after = talk.queue(f"pathlib.Path({str(begun)!r}).touch()", stop_on_error=False)
            talk.queue("%remoter stop")
            talk.done(cell, after)

        said = talk.case(says)
        assert left.exists()
        assert not begun.exists()
    # It was nobody's interrupt: the cell says what became of it.
    assert [e["ename"] for e in errors(said["iopub under request 0"])] == ["NoSuchSession"]
    assert "It was stopped" in said["shell under request 0"][0]["content"]["evalue"]


def test_a_cell_that_has_just_begun_does_not_hold_up_a_restart(
    kernel: StartedKernel, far: FarSide
) -> None:
    """The interrupt that Jupyter sends before a restart hits it, and the kernel ends in order."""
    talk = Talk(kernel.client)
    with far.folder() as folder:
        left = folder / "left"
        talk.queue(BUSY.format(left=str(left)))
        talk.until_line("on")
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=30)
        assert value(Talk(kernel.client), "6 * 7") == "42"
        assert left.exists()


def test_a_shutdown_may_keep_the_session(
    here: JupyterHere, far: FarSide, python_remote: dict[str, Any]
) -> None:
    """With on_shutdown = "keep" the far side is still there, and a running cell goes on."""
    spec = here.add_remote("keeps", on_shutdown="keep", **python_remote)
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        child = int(value(talk, "__import__('os').getpid()"))
    evaluator = _evaluator(far)
    try:
        assert psutil.pid_exists(child)
    finally:
        evaluator.terminate()  # as `remoter stop` would
        wait_for(lambda: not there(far), what="the far side is empty")


def test_a_killed_front_finds_its_session_again(file: Path, spec: str, far: FarSide) -> None:
    """A proxy that was killed and is started with the same connection file has its variables."""
    with _front(file) as front, client_of(file) as client:
        value(Talk(client), "locals().setdefault('kept', 'since before')")
        front.kill()
        front.wait(10)
    with _front(file), client_of(file) as client:
        assert value(Talk(client), "kept") == "'since before'"
        client.shutdown()
        wait_for(lambda: not there(far), what="the far side is empty")


def test_a_front_that_is_asked_to_end_leaves_the_session(
    file: Path, spec: str, far: FarSide
) -> None:
    """SIGTERM without a shutdown request (VS Code's way) ends the proxy, not the session."""
    with _front(file) as front, client_of(file) as client:
        value(Talk(client), "locals().setdefault('kept', 'since before')")
        front.terminate()
        assert front.wait(5) == 0
    assert len(there(far)) >= 3
    with _front(file), client_of(file) as client:
        assert value(Talk(client), "kept") == "'since before'"
        client.shutdown()
        wait_for(lambda: not there(far), what="the far side is empty")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_kernel_that_dies_says_how(kernel: StartedKernel, number: signal.Signals) -> None:
    """The running cell's error names the signal, the queued cell gets one too, then it works."""
    talk = Talk(kernel.client)

    def says(talk: Talk) -> None:
        code = f"import os, signal; print('going', flush=True); os.kill(os.getpid(), {int(number)})"
        talk.done(talk.queue(code), talk.queue("'queued'"))

    said = talk.case(says)
    for place in ("iopub under request 0", "iopub under request 1"):
        (error,) = errors(said[place])
        assert number.name in error["evalue"]
    kinds = [message["type"] for message in said["iopub under request 0"]]
    assert kinds[-2:] == ["error", "status"]
    client = kernel.client
    wait_for(lambda: value_or_none(talk), seconds=20, what="the kernel is usable again")
    assert client.is_alive()


def value_or_none(talk: Talk) -> str | None:
    """Return what a cell shows, or None while it shows nothing."""
    with contextlib.suppress(AssertionError):
        return value(talk, "1 + 1")
    return None


def test_a_kernel_that_ends_itself_says_so(kernel: StartedKernel) -> None:
    """A cell that ends the kernel's process gets an error with the exit code."""
    talk = Talk(kernel.client)
    said = talk.case(lambda talk: talk.run("import os; os._exit(3)"))
    (error,) = errors(said["iopub under request 0"])
    assert "exit code 3" in error["evalue"]
    assert value(talk, "2 + 2") == "4"


def test_a_kernel_that_lost_the_race_for_its_port_is_started_again(
    here: JupyterHere, far: FarSide, python_remote: dict[str, Any]
) -> None:
    """Another process may bind a port between choosing and binding it: that is no failure."""
    with far.folder() as folder:
        lose = f"echo Address already in use >&2; mkdir {folder}/lost; exit 1"
        init = (f"test -e {folder}/lost || {{ {lose}; }}",)
        with started_kernel(here.add_remote("racing", init=init, **python_remote)) as kernel:
            assert value(Talk(kernel.client), "3 * 3") == "9"
        assert (folder / "lost").exists()


@pytest.mark.parametrize("then", ["sleep 600", "true"])
def test_a_kernel_that_goes_on_without_its_port_is_started_again(
    here: JupyterHere, far: FarSide, python_remote: dict[str, Any], then: str
) -> None:
    """R does, and would never be ready, or never ask: nobody hears what it says there."""
    with far.folder() as folder:
        lose = f"echo Address already in use >&2; mkdir {folder}/lost; {then}"
        init = (f"echo >> {folder}/starts", f"test -e {folder}/lost || {{ {lose}; }}")
        with started_kernel(here.add_remote("racing", init=init, **python_remote)) as kernel:
            assert value(Talk(kernel.client), "3 * 3") == "9"
        assert (folder / "starts").read_text() == 2 * "\n"


def test_a_second_front_knows_the_kernel_before_it_is_reached(
    kernel: StartedKernel, spec: str
) -> None:
    """The first kernel_info reply of a new proxy is what the far kernel said last time."""
    talk = Talk(kernel.client)
    value(talk, "1")
    learnt = talk.case(lambda talk: talk.tell("kernel_info_request", {}))
    content = learnt["shell under request 0"][0]["content"]
    assert content["implementation"] == "ipython"
    with started_kernel(spec) as second:
        first = Talk(second.client).case(lambda talk: talk.tell("kernel_info_request", {}))
        told = first["shell under request 0"][0]["content"]
    assert told.pop("banner")[:6] == content.pop("banner")[:6]  # the tip in it is by chance
    assert told == content


def _evaluator(far: FarSide) -> psutil.Process:
    """Find the evaluator: the far process that has a warden for a child."""
    found = [p for p in there(far) if any("warden" in c.cmdline() for c in p.children())]
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def file(here: JupyterHere, tmp_path: Path, far: FarSide) -> Iterator[Path]:
    """A connection file, as Jupyter writes one; nothing runs there any more afterwards."""
    path, _ = write_connection_file(
        str(tmp_path / "kernel.json"), key=secrets.token_hex(16).encode()
    )
    yield Path(path)
    for left in there(far):  # by a test that has failed: the next one begins with nothing, too
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()


@contextlib.contextmanager
def _front(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-P", "-m", "remoter_kernel", "-f", str(file), "--remote", "life"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as front:
        try:
            yield front
        finally:
            front.terminate()
            front.wait(10)
