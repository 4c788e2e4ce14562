"""What a person can ask about sessions: from the command line, and in a cell."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest
from jupyter_client.connect import write_connection_file

from remoter_kernel.local.history.remote_query import JournalReader, locate_session
from tests.conftest import is_keeper, marked
from tests.real_jupyter import client_of, started_kernel, wait_for
from tests.real_parts import real_part
from tests.whole.talk import Talk
from tests.whole.test_console import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jupyter_client.blocking.client import BlockingKernelClient

    from tests.real_jupyter import JupyterHere

DEAF = """
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print('deaf', flush=True)
while True:
    pass
"""
TICKS = """
import time
for i in range(30):
    print('tick', i, flush=True)
    time.sleep(0.1)
"""


@dataclass
class Front:
    """A proxy that was started by hand, and its client."""

    process: subprocess.Popen[bytes]
    client: BlockingKernelClient
    talk: Talk

    def run(self, code: str, **options: Any) -> str:
        """Run a cell; return all the text that it showed."""
        return shown(self.talk.case(lambda talk: talk.run(code, **options)))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


def shown(said: dict[str, list[dict[str, Any]]]) -> str:
    """Return all text that a cell showed."""
    texts = []
    for message in said["iopub under request 0"]:
        content = message["content"]
        texts.append(content.get("text") or (content.get("data") or {}).get("text/plain", ""))
        texts += content.get("traceback", [])
    return "".join(texts)


@pytest.fixture(scope="module")
def remote(here: JupyterHere, python_remote: dict[str, Any]) -> str:
    """The name of a remote that only these tests use."""
    name = f"asked-{os.getpid()}"
    here.add_remote(name, **python_remote)
    return name


@pytest.fixture
def session(front: Front) -> str:
    """The id of the session that the test's first proxy has started."""
    front.talk.case(lambda talk: talk.run("1"))
    status = front.run("%remoter status")
    return status.partition("session")[2].split()[0]


@pytest.fixture
def file(here: JupyterHere, tmp_path: Path) -> Path:
    """A connection file, as Jupyter writes one."""
    return Path(
        write_connection_file(str(tmp_path / "kernel.json"), key=secrets.token_hex(16).encode())[0]
    )


@contextlib.contextmanager
def a_front(file: Path, remote: str, *words: str) -> Iterator[Front]:
    """Start a proxy by hand; it is asked to end, the session is not."""
    named = ["--remote", remote] if remote else []
    command = [sys.executable, "-P", "-m", "remoter_kernel", "-f", str(file), *named, *words]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            with client_of(file) as client:
                yield Front(process, client, Talk(client))
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def front(file: Path, remote: str, here: JupyterHere) -> Iterator[Front]:
    """A front of the test's own; its sessions are ended after it."""
    with a_front(file, remote) as front:
        yield front
    here.remoter("stop", "--all", remote)
    wait_for(lambda: not marked_there(remote), what="the far side is empty")


def marked_there(remote: str) -> list[psutil.Process]:
    """List what still runs there for the sessions of this module."""
    here = {os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))}
    mine = [p for p in marked() if p.pid not in here and not is_keeper(p)]
    return [p for p in mine if "sshd" not in p.name()]


def asked(here: JupyterHere, *words: str, code: int = 0) -> str:
    """Run the command; return what it printed."""
    ran = here.remoter(*words)
    assert ran.returncode == code, (words, ran)
    return ran.stdout if code == 0 else ran.stderr


def told(here: JupyterHere, remote: str, session: str) -> dict[str, Any]:
    """Return what `remoter sessions --json` tells of one session."""
    document = json.loads(asked(here, "sessions", remote, "--json"))
    (found,) = [each for each in document["sessions"] if each["id"] == session]
    return dict(found)


# --------------------------------------------------------------- the command


def test_sessions_are_listed_with_how_they_are(
    here: JupyterHere, front: Front, remote: str, session: str
) -> None:
    """Idle, then busy, then ended: with kernel, remote, proxies, process and journal."""
    heard = lambda: {key: told(here, remote, session)[key] for key in ("state", "fronts")}  # noqa: E731
    wait_for(lambda: heard() == {"state": "idle", "fronts": 1}, what="idle, with a client")
    about = told(here, remote, session)
    assert about["remote"] == remote
    assert about["kernel"] == "python3"
    assert about["journal"] > 0
    assert 0 <= about["seconds"] < 60
    assert psutil.Process(about["pid"]).is_running()
    cell = front.talk.queue("import time; time.sleep(60)")
    wait_for(lambda: told(here, remote, session)["state"] == "busy", what="busy")
    row = next(line for line in asked(here, "sessions").splitlines() if session in line)
    assert remote in row
    assert "busy for" in row
    assert asked(here, "stop", session) == f"{remote}/{session} was stopped.\n"
    assert told(here, remote, session)["state"] == "ended"
    assert told(here, remote, session)["why"] == "It was stopped."
    front.talk.listen(lambda: front.talk._is_done(cell))


def test_a_session_that_is_not_there_has_an_exit_code_of_its_own(
    here: JupyterHere, remote: str, session: str
) -> None:
    """5 for every verb; an id that has ended is told so."""
    for verb in ("attach", "stop", "log", "outputs"):
        assert "no session" in asked(here, verb, f"{remote}/ffffff0", code=5)
    asked(here, "stop", session)
    assert "had ended already" in asked(here, "stop", session, code=5)
    assert "is over" in asked(here, "attach", session, code=5)
    asked(here, "log", f"nowhere/{session}", code=2)
    asked(here, "stop", code=2)


def test_all_sessions_of_a_remote_are_its_own(
    here: JupyterHere, python_remote: dict[str, Any], remote: str, session: str
) -> None:
    """`--all` leaves alone what another remote has on the same host."""
    here.add_remote(f"{remote}-2", **python_remote)
    asked(here, "stop", "--all", f"{remote}-2")
    assert told(here, remote, session)["state"] != "ended"
    asked(here, "stop", "--all", remote)
    assert told(here, remote, session)["state"] == "ended"


def test_a_deaf_kernel_is_stopped(
    here: JupyterHere, front: Front, remote: str, session: str
) -> None:
    """A busy kernel that ignores SIGINT and SIGTERM is gone once `remoter stop` returns."""
    front.run("import os; print(os.getpid())")
    child = int(front.run("os.getpid()"))
    front.talk.queue(DEAF)
    front.talk.until_said("deaf")
    asked(here, "stop", f"{remote}/{session[:5]}")
    assert not psutil.pid_exists(child)


def test_an_evaluator_that_does_nothing_is_killed(
    here: JupyterHere, front: Front, remote: str, session: str
) -> None:
    """A stopped (SIGSTOP) evaluator cannot end its session: it is killed, its kernel, too."""
    child = int(front.run("__import__('os').getpid()"))
    evaluator = told(here, remote, session)["pid"]
    os.kill(evaluator, signal.SIGSTOP)
    assert "was killed" in asked(here, "stop", session)
    wait_for(lambda: not psutil.pid_exists(child) and not psutil.pid_exists(evaluator))
    assert told(here, remote, session)["state"] == "ended"


def test_the_log_tells_what_happened(here: JupyterHere, front: Front, session: str) -> None:
    """Proxies, requests and how they ended, interrupts: in this order, each with its time."""
    front.run("1 / 0")
    front.talk.queue("import time; print('on', flush=True); time.sleep(60)")
    front.talk.until_line("on")
    front.talk.send("interrupt_request", {}, channel="control")
    wait_for(lambda: "KeyboardInterrupt" in asked(here, "log", session))
    lines = asked(here, "log", session).splitlines()
    expected = [
        f"Session {session} began",
        "came.",
        "asked for: 1 / 0",
        "ZeroDivisionError",
        "asked for: import time",
        "asked to interrupt",
        "KeyboardInterrupt",
    ]
    for line in lines:
        assert line[:2] == "20"  # a year
        if expected and expected[0] in line:
            expected.pop(0)
    assert not expected, lines


def test_the_log_is_followed_to_the_end(here: JupyterHere, front: Front, session: str) -> None:
    """`remoter log -f` shows a request as it is made, and ends with the session."""
    command = [str(Path(sys.executable).with_name("remoter")), "log", "-f", session]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout
        front.run("'followed'")
        for line in following.stdout:
            if "asked for: 'followed'" in line:
                break
        front.run("%remoter stop")
        assert "The session is over. It was stopped." in following.stdout.read()
    assert following.returncode == 0


def test_outputs_go_to_the_terminal_and_to_a_notebook(
    here: JupyterHere, front: Front, session: str, tmp_path: Path
) -> None:
    """Every cell with its outputs, as text and as a valid notebook."""
    front.run("print('hello')\n6 * 7", metadata={"cellId": "answer"})
    front.run("1 / 0")
    text = asked(here, "outputs", session)
    assert "In [2]: print('hello')\n        6 * 7\nhello\nOut[2]: 42\n" in text
    assert "ZeroDivisionError: division by zero" in text
    assert asked(here, "outputs", session, "--notebook", str(tmp_path / "out.ipynb"))
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = {cell.id: cell for cell in notebook.cells}
    assert [o.output_type for o in cells["answer"].outputs] == ["stream", "execute_result"]
    assert notebook.cells[-1].outputs[0].ename == "ZeroDivisionError"
    (tmp_path / "out.ipynb").write_text("my own")
    again = ("outputs", session, "--notebook", str(tmp_path / "out.ipynb"))
    assert here.remoter(*again).returncode == 2
    assert (tmp_path / "out.ipynb").read_text() == "my own"
    assert asked(here, *again, "--force")
    assert nbformat.read(tmp_path / "out.ipynb", as_version=4) == notebook


def test_what_a_killed_front_missed_goes_into_the_notebook(
    here: JupyterHere, front: Front, session: str, tmp_path: Path
) -> None:
    """A proxy dies in the middle of a cell: `--into` fills that cell, and no byte else."""
    cells = [
        nbformat.v4.new_markdown_cell("# night", id="title"),
        nbformat.v4.new_code_cell(TICKS, id="ticks"),
        nbformat.v4.new_code_cell("'untouched'", id="other"),
    ]
    path = tmp_path / "night.ipynb"
    before = nbformat.writes(nbformat.v4.new_notebook(cells=cells)) + "\n"
    path.write_text(before)
    front.talk.queue(TICKS, metadata={"cellId": "ticks"})
    front.talk.until_said("tick 3")
    front.kill()
    wait_for(lambda: "tick 29" in asked(here, "outputs", session), seconds=20)
    assert "Filled 1 cell" in asked(here, "outputs", session, "--into", str(path))
    after = nbformat.read(path, as_version=4)
    nbformat.validate(after)
    assert after.cells[1].outputs[0].text == "".join(f"tick {i}\n" for i in range(30))
    after.cells[1].outputs, after.cells[1].execution_count = [], None
    assert nbformat.writes(after) + "\n" == before
    assert "Nothing was missing" in asked(here, "outputs", session, "--into", str(path))
    other = tmp_path / "other.ipynb"
    cell = nbformat.v4.new_code_cell("'of another day'", id="another")
    other.write_text(unrelated := nbformat.writes(nbformat.v4.new_notebook(cells=[cell])))
    ran = here.remoter("outputs", session, "--into", str(other))
    assert ran.returncode == 2
    assert f"other.ipynb is another notebook: session {session} has run none" in ran.stderr
    assert other.read_text() == unrelated


def test_a_console_attaches_interrupts_and_leaves_the_session(
    here: JupyterHere, front: Front, remote: str, session: str, tmp_path: Path
) -> None:
    """`remoter attach`: the session's variables, Ctrl-C, and `exit` leaves it running."""
    real_part("tmux")
    real_part("jupyter-console")
    front.run("kept = 'since before'")
    remoter = str(Path(sys.executable).with_name("remoter"))
    (folder := tmp_path / "terminal").mkdir()
    with Terminal(folder, [remoter, "attach", session]) as console:
        console.wait_for("]:")
        console.type("kept")
        console.wait_for("'since before'")
        console.type("import time; print('go' + 'ing'); time.sleep(600)")
        console.wait_for("going\n")
        console.press("C-c")
        console.wait_for("KeyboardInterrupt")
        console.type("exit")
        wait_for(console.is_over, seconds=30, what="the console has ended")
    assert front.run("kept") == "'since before'"
    wait_for(lambda: told(here, remote, session)["state"] == "idle", what="idle")


# --------------------------------------------------------------- in a cell


def test_verbs_answer_while_the_kernel_is_busy(front: Front, session: str) -> None:
    """`%remoter status` and `log` are answered at once, in their own cells, by this side."""
    front.talk.queue("import time; time.sleep(60)")
    begin = time.monotonic()
    status = front.run("%remoter status")
    assert time.monotonic() - begin < 5
    assert "up for" in status
    assert "CURVE" in status
    assert "asked for: import time; time.sleep(60)" in front.run("%remoter log")
    said = front.talk.case(lambda talk: talk.run("%remoter stuats"))
    (reply,) = said["shell under request 0"]
    assert reply["content"]["status"] == "error"
    assert 'did you mean "status"' in reply["content"]["evalue"]
    kinds = [message["type"] for message in said["iopub under request 0"]]
    assert kinds == ["status", "execute_input", "error", "status"]


def test_keep_outlives_a_shutdown(here: JupyterHere, front: Front, remote: str) -> None:
    """After `%remoter keep` Jupyter's shutdown ends the proxy alone; `stop` ends the rest."""
    with started_kernel(f"remoter-{remote}") as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("1"))
        kept = shown(talk.case(lambda talk: talk.run("%remoter keep"))).split()[1]
        status = shown(talk.case(lambda talk: talk.run("%remoter status")))
        assert "the session stays" in status
    wait_for(lambda: told(here, remote, kept)["fronts"] == 0, what="the front has left")
    wait_for(lambda: told(here, remote, kept)["state"] == "idle", what="idle")
    asked(here, "stop", f"{remote}/{kept}")


def test_stop_ends_the_session_from_within(
    here: JupyterHere, front: Front, remote: str, session: str
) -> None:
    """`%remoter stop` ends it; the next cell says why there is none."""
    assert session in front.run("%remoter stop")
    wait_for(lambda: told(here, remote, session)["state"] == "ended", what="ended")
    assert "It was stopped" in front.run("1 + 1")


def test_missed_outputs_are_shown_in_a_cell(
    front: Front, remote: str, file: Path, session: str
) -> None:
    """A new proxy shows what the dead one was not given, and what was given not again."""
    front.run("print('was ' + 'given')")
    front.talk.queue(TICKS)
    front.talk.until_said("tick 3")
    time.sleep(0.3)  # acknowledgements wait for 0.1 s
    front.kill()
    with a_front(file, remote) as second:
        second.run("1")
        missed = second.run("%remoter outputs")
    assert "tick 29" in missed
    assert "tick 0\n" not in missed
    assert "was given" not in missed


def test_what_was_held_back_is_asked_for_by_its_cell(
    here: JupyterHere, front: Front, remote: str, session: str
) -> None:
    """Outputs of the named requests come whole, although their proxy has taken them."""
    cell = front.talk.queue("print('all ' + 'of it')")
    front.talk.done(cell)
    with locate_session(f"{remote}/{session}", None) as found:
        ask = found.query.ask
        wait_for(lambda: told(here, remote, session)["state"] == "idle", what="idle")
        assert list(JournalReader(ask, session, "missed")) == []
        bodies = [bytes(said.body) for said in JournalReader(ask, session, "missed", cells=[cell])]
    assert b"print('all ' + 'of it')" in bodies[0]
    assert any(b"all of it" in body for body in bodies[1:])


# --------------------------------------------------------------- several proxies


def test_two_fronts_on_one_session(front: Front, remote: str, session: str, tmp_path: Path) -> None:
    """Both hear all outputs, a reply goes to who asked, either interrupts; both may leave."""
    other = Path(
        write_connection_file(str(tmp_path / "other.json"), key=secrets.token_hex(16).encode())[0]
    )
    with a_front(other, remote, "--session", session) as second:
        assert second.run("who = 'second'; who") == "'second'"
        assert front.run("who") == "'second'"
        front.talk.listen(lambda: False, seconds=0.05)
        front.talk.heard.clear()
        second.talk.case(lambda talk: talk.run("print('for both')"))
        front.talk.until_said("for both")
        assert not [m for channel, m in front.talk.heard if channel == "shell"]
        cell = front.talk.queue("import time; print('on', flush=True); time.sleep(60)")
        front.talk.until_line("on")
        second.talk.send("interrupt_request", {}, channel="control")
        front.talk.done(cell)
        assert "sleep" not in second.run("'still here'")
    assert front.run("who") == "'second'"


def test_an_idle_session_without_fronts_ends_and_a_busy_one_does_not(
    here: JupyterHere, python_remote: dict[str, Any], file: Path, tmp_path: Path
) -> None:
    """idle_timeout counts from the last thing that was done, and only without a proxy."""
    remote = f"brief-{os.getpid()}"
    here.add_remote(remote, idle_timeout=1.0, **python_remote)
    with a_front(file, remote) as front:
        front.run("1")
        session = front.run("%remoter status").partition("session")[2].split()[0]
        time.sleep(2.5)  # longer than the timeout, with a proxy
        wait_for(lambda: told(here, remote, session)["state"] == "idle", what="idle")
        front.talk.queue("import time; time.sleep(5); print('done')")
        wait_for(lambda: told(here, remote, session)["state"] == "busy", what="busy")
        front.kill()
        begin = time.monotonic()
    wait_for(lambda: told(here, remote, session)["state"] == "ended", seconds=30)
    assert time.monotonic() - begin > 4
    assert told(here, remote, session)["why"].startswith("It was idle")
    assert "done" in asked(here, "outputs", session)
