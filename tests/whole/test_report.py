"""`remoter report` and `remoter log --debug`: what is told after troubles, and what never is."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import re
import secrets
import shutil
import socket
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from remoter_kernel import __version__
from remoter_kernel.local.login.keeper.endpoint import end_logins
from tests.at_terminal import Question, at_terminal
from tests.real_jupyter import started_kernel, wait_for
from tests.whole.talk import Talk
from tests.whole.test_login_questions import answer
from tests.whole.test_sessions import shown, told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_logins import LoginGround, Way

REMOTER = str(Path(sys.executable).with_name("remoter"))
MARK = secrets.token_hex(4)  # in all that is a person's own here


def marked(word: str) -> str:
    return f"{word}-{MARK}"


@pytest.fixture(scope="module", autouse=True)
def all_is_logged(here: JupyterHere) -> Iterator[None]:
    """As much as there is to be logged."""
    os.environ["REMOTER_LOG"] = "debug"
    yield
    end_logins()
    del os.environ["REMOTER_LOG"]
    del here


@pytest.fixture(scope="module")
def way(ground: LoginGround) -> Way:
    """A host that asks for a password and a code that works once."""
    return ground.way("password and code")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder there that anybody may enter."""
    folder = Path(tempfile.mkdtemp(suffix=marked("cwd")))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def remote(here: JupyterHere, way: Way, folder: Path) -> str:
    """A remote of which each value that may be anybody's own carries a mark."""
    name = marked("remote")
    here.add_remote(
        name,
        way.alias,
        ssh_config=way.config,
        python=way.python,
        kernel="python3",
        env={"TOKEN": marked("token")},
        init=(f"export OTHER={marked('init')}",),
        cwd=str(folder),
    )
    return name


@pytest.fixture(scope="module")
def codes() -> list[str]:
    """What was typed."""
    return []


@pytest.fixture(scope="module")
def troubles(here: JupyterHere, remote: str, way: Way, codes: list[str]) -> Iterator[str]:
    """A session that has seen failures of many kinds; returns its id."""
    typed = tuple(noted(question, codes) for question in way.questions)
    wrong = at_terminal([REMOTER, "run", remote, "-c", "1"], way.wrong.questions)
    assert wrong.status == 3, wrong.text
    notebook = here.folder / "notebooks" / f"{marked('notebook')}.ipynb"
    notebook.parent.mkdir(exist_ok=True)
    words = {"metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    notebook.write_text(json.dumps({"cells": [], **words}))
    environment = {**os.environ, "JPY_SESSION_NAME": str(notebook)}
    with ExitStack() as stack:
        spec = f"remoter-{remote}"
        kernel = stack.enter_context(
            started_kernel(spec, cwd=str(notebook.parent), env=environment)
        )
        talk = Talk(kernel.client)
        first = talk.queue(f"import os, sys, time; print('{marked('output')}')")
        answer(talk, replace(way, questions=typed), first)
        status = talk.case(lambda talk: talk.run("%remoter status"))
        session = shown(status).partition("\nsession")[2].split()[0]
        for code in (
            f"raise ValueError('{marked('error')}')",
            f"print('{marked('stderr')}', file=sys.stderr)",
            f"os.write(2, b'{marked('printed')}\\n'); os.kill(os.getpid(), 9)",
            f"{MARK}_name = 1",
        ):
            talk.case(partial(Talk.run, code=code))
        psutil.Process(told(here, remote, session)["pid"] or -1).kill()
        talk.case(lambda talk: talk.run(f"'{marked('after')}'"))
        # What a session says of itself there is a second old at most.
        wait_for(lambda: told(here, remote, session)["state"] == "idle", what="it is idle")
        yield session


def noted(question: Question, codes: list[str]) -> Question:
    """The same question, whose answer is written down."""

    def answered() -> str:
        codes.append(question.answer())
        return codes[-1]

    return replace(question, answer=answered)


def clean(text: str, way: Way, codes: list[str], here: JupyterHere) -> None:
    """Nothing that is anybody's own is in a text."""
    own = [MARK, *codes, *way_names(way), str(here.folder), str(Path.home()), "127.0.0.1"]
    for word in own:
        assert word.lower() not in text.lower(), word
    for word in (getpass.getuser(), socket.gethostname()):
        assert not re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", text, re.IGNORECASE)


def way_names(way: Way) -> list[str]:
    return [way.alias, way.user, f"/home/{way.user}", way.sshd.place.address, str(way.config)]


def test_a_report_tells_what_happened_and_nothing_that_is_a_persons_own(
    here: JupyterHere, remote: str, way: Way, troubles: str, codes: list[str]
) -> None:
    ran = here.remoter("report", remote)
    assert (ran.returncode, ran.stderr) == (0, "")
    clean(ran.stdout, way, codes, here)
    assert len(codes) == 2
    for expected in (
        rf"remoter-kernel +{re.escape(__version__)}",
        r"pyzmq +\d+\.\d+",
        r"ssh +OpenSSH_",
        r"## There\nPython +3\.\S+\nsystem +Linux .*\npyzmq +\d+\.\d+",
        r"transport +auto",
        r"env +1 entries",
        rf"## Session {troubles}\nstate +idle for",
        r"\nkeeper +answers",
        r"proxy +runs\nits link +2\S+ \S+Z The link is up",
        r"did not accept what was typed",
        r"Logged in by paramiko in",
        r"An evaluator begins as process",
        r"An evaluator adopts as process",
        r"The kernel died: it was killed by signal 9 \(SIGKILL\)",
        r"The link is waiting \(last error: Unreachable: The connection was cut\.\)",
        r"Client \w+ has come",
        r"DEBUG protocol\.link_connection: received a frame of \d+ bytes",
    ):
        assert re.search(expected, ran.stdout), expected


def test_a_log_has_no_contents_even_where_it_is_not_masked(
    here: JupyterHere, troubles: str, codes: list[str]
) -> None:
    """The names of hosts and remotes may be in it; what was typed, computed and printed may not."""
    ran = here.remoter("log", "--debug", troubles)
    assert ran.returncode == 0, ran.stderr
    assert "An evaluator begins" in ran.stdout
    files = list((here.folder / "state/logs").iterdir())
    assert {path.name.split("-")[0] for path in files} >= {"proxy", "keeper", "command"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    secret = [*codes, *map(marked, ("output", "error", "stderr", "printed", "token", "init"))]
    for text in (ran.stdout, *(path.read_text() for path in files)):
        assert not [word for word in (*secret, f"{MARK}_name") if word in text]


def test_the_log_is_not_followed(here: JupyterHere, troubles: str) -> None:
    ran = here.remoter("log", "--debug", "-f", troubles)
    assert ran.returncode == 2
    assert "-f" in ran.stderr


FAILURES: dict[str, dict[str, Any]] = {
    "a kernel that is not there": {"kernel": marked("kernel")},
    "a kernel that ends at once": {"init": (f"echo {marked('words')} >&2; exit 3",)},
    "no Python": {"python": f"/opt/{marked('python')}/bin/python3"},
    "a folder that is not there": {"cwd": f"/scratch/{marked('folder')}"},
    "a name that is not known": {"host": f"{marked('user')}@{marked('host')}.invalid"},
    "an IPv6 address": {"host": f"{marked('user')}@[2001:db8::77:{MARK[:4]}]:2222"},
    "an IPv4 address": {"host": f"{marked('user')}@127.77.66.55:1"},
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_report_after_a_failure(
    here: JupyterHere, way: Way, troubles: str, codes: list[str], failure: str
) -> None:
    """Whatever went wrong, here or there, has words in which names are."""
    del troubles  # for the login that it has left
    name = f"x{len(failure)}-{MARK}"
    usual = {"host": way.alias, "ssh_config": way.config, "python": way.python}
    here.add_remote(name, **{**usual, **FAILURES[failure]})
    ran = here.remoter("run", name, "-c", f"print('{marked('output')}')")
    assert ran.returncode > 1, ran.stdout
    ran = here.remoter("report", name)
    assert (ran.returncode, ran.stderr) == (0, "")
    clean(ran.stdout, way, codes, here)
    for part in ("2001:db8", "127.77.66.55", "127.77", f":{MARK[:4]}"):
        assert part not in ran.stdout
    is_reached = "host" not in FAILURES[failure] and "python" not in FAILURES[failure]
    assert ("The remote was not asked" in ran.stdout) is not is_reached
    assert "## The log of a keeper" in ran.stdout


def test_what_answers_strangely_is_not_quoted(
    here: JupyterHere, way: Way, troubles: str, codes: list[str]
) -> None:
    del troubles
    folder = Path(tempfile.mkdtemp(suffix=marked("there")))
    folder.chmod(0o755)
    python = folder / "python3"
    python.write_text(f"#!/bin/sh\necho REMOTER {marked('said')} the file is 271828\n")
    python.chmod(0o755)
    try:
        name = f"strange-{MARK}"
        here.add_remote(name, way.alias, ssh_config=way.config, python=str(python))
        assert here.remoter("run", name, "-c", "1").returncode == 4
        ran = here.remoter("report", name)
        clean(ran.stdout, way, [*codes, "271828"], here)
        assert "StrangeAnswer" in ran.stdout
        assert "answered strangely" in ran.stdout
    finally:
        shutil.rmtree(folder)


def test_a_report_without_a_configuration_that_can_be_read(
    here: JupyterHere, way: Way, troubles: str, codes: list[str]
) -> None:
    del troubles
    config = here.folder / "remotes.toml"
    before = config.read_text()
    config.write_text(f"[remotes.{MARK}]\n{MARK} = '{MARK}'\n")
    try:
        ran = here.remoter("report")
    finally:
        config.write_text(before)
    assert (ran.returncode, ran.stderr) == (0, "")
    clean(ran.stdout, way, codes, here)
    assert "The configuration cannot be read" in ran.stdout
    assert "## The log of a keeper" in ran.stdout


def test_a_report_overwrites_only_what_it_is_told_to(
    here: JupyterHere, tmp_path: Path, troubles: str
) -> None:
    del troubles
    name, file = f"x{len('no Python')}-{MARK}", tmp_path / "report.txt"
    here.add_remote(name, "nobody.invalid")
    file.write_text("mine")
    ran = here.remoter("report", name, "-o", str(file))
    assert ran.returncode == 2
    assert "--force" in ran.stderr
    assert file.read_text() == "mine"
    ran = here.remoter("report", name, "-o", str(file), "--force")
    assert ran.returncode == 0, ran.stderr
    assert file.read_text().startswith("## remoter report")
    assert ran.stdout == ""
    for where, code in (("", 2), (str(tmp_path), 2), (str(tmp_path / "none/report.txt"), 1)):
        ran = here.remoter("report", name, "-o", where)
        assert ran.returncode == code, (where, ran.stderr)
        assert "fault in remoter" not in ran.stderr


def test_logs_that_hang_hold_nobody_up(
    here: JupyterHere, remote: str, way: Way, troubles: str
) -> None:
    """A pipe that nobody reads is as a disk that does not answer, for whoever opens it."""
    del troubles
    with started_kernel(f"remoter-{remote}") as kernel:
        talk = Talk(kernel.client)
        assert "begun" in shown(talk.case(lambda talk: talk.run("'begun'")))
        status = talk.case(lambda talk: talk.run("%remoter status"))
        session = shown(status).partition("\nsession")[2].split()[0]
        home = Path(pwd.getpwnam(way.user).pw_dir)
        there = home / ".local/share/remoter-kernel/sessions" / session / "debug.log"
        (mine,) = (here.folder / "state/logs").glob(f"proxy-*-{kernel.pid}.log")
        for path in (there, mine):
            path.unlink()
            os.mkfifo(path)
            path.chmod(0o666)
        for number in range(20):
            assert f"seen {number}" in shown(talk.case(partial(Talk.run, code=f"'seen {number}'")))
        assert here.remoter("report", remote, timeout=30.0).returncode == 0
        stopped = here.remoter("stop", session)
        assert stopped.returncode == 0, stopped.stderr
        assert told(here, remote, session)["why"] == "It was stopped."
    assert not psutil.pid_exists(kernel.pid)


def test_a_report_about_nobody(here: JupyterHere) -> None:
    assert here.remoter("report", "nobody-of-that-name").returncode == 2
    assert here.remoter("report", "").returncode == 2
