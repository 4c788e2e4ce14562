"""What a login asks is asked once, of whoever can answer, and is told to nobody else."""

from __future__ import annotations

import re
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import keyring
import psutil
import pytest

from remoter_kernel.local.config.remotes import find_remote, write_remote
from remoter_kernel.local.login.credentials import KEYRING_SERVICE
from remoter_kernel.local.login.keeper.endpoint import end_logins
from tests.at_terminal import Ended, Question, at_terminal
from tests.real_jupyter import started_kernel
from tests.real_parts import run_quietly
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_logins import LoginGround, Way

WHO = "import getpass; print('ran as', getpass.getuser())"
LASTS = 6.0  # seconds that a login is kept here, and the tests wait for at their end
NO_QUESTION = "ssh-add|ssh-copy-id|ControlMaster|terminal"  # ways to log in without any
WITH_QUESTIONS = ("encrypted key", "password", "code", "password and code", "key and code")


@pytest.fixture(params=["paramiko", pytest.param("openssh", marks=pytest.mark.slow)])
def transport(request: pytest.FixtureRequest) -> str:
    """Both must do."""
    return str(request.param)


@pytest.fixture(autouse=True)
def nobody_is_logged_in(here: JupyterHere) -> Iterator[None]:
    """Remotes of one account share a login: none is left to the next test."""
    del here
    yield
    end_logins()


def configure(
    here: JupyterHere, way: Way, transport: str, name: str = "", *, lasts: float = LASTS
) -> str:
    """Write a remote down; returns its name."""
    name = f"{name or way.alias}-{transport}"
    here.add_remote(
        name,
        way.alias,
        ssh_config=way.config,
        transport=transport,
        python=way.python,
        kernel="python3",
        login_lifetime=lasts,
    )
    return name


def run(name: str, way: Way) -> Ended:
    """Run a line there from a terminal."""
    command = [str(Path(sys.executable).with_name("remoter")), "run", name, "-c", WHO]
    return at_terminal(command, way.questions, environment=way.environment)


def answer(talk: Talk, way: Way, cell: str) -> list[str]:
    """Answer in the cell what the login asks; returns the prompts."""
    prompts = []
    for number, question in enumerate(way.questions, 1):
        talk.listen(partial(_has_asked_or_ended, talk, cell, number))
        assert len(talk._of("stdin")) == number, said(talk)
        prompts.append(talk._of("stdin")[-1]["content"]["prompt"])
        assert re.search(question.says, prompts[-1])
        talk.send("input_reply", {"value": question.answer()}, channel="stdin")
    talk.done(cell)
    return prompts


def _has_asked_or_ended(talk: Talk, cell: str, times: int) -> bool:
    return len(talk._of("stdin")) == times or talk._is_done(cell)


def said(talk: Talk) -> str:
    """Return what came in streams, results and errors."""
    return str([message["content"] for channel, message in talk.heard if channel == "iopub"])


# ------------------------------------------------------------------- one login


def test_three_kernels_share_one_login(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """A host that asks for a code is asked for one login: by the first cell, in that cell."""
    way = ground.way("code")
    spec = f"remoter-{configure(here, way, transport)}"
    before = way.sshd.accepted()
    with ExitStack() as stack:
        for number in range(3):
            talk = Talk(stack.enter_context(started_kernel(spec)).client)
            cell = talk.queue(WHO)
            asked = answer(talk, way if number == 0 else replace(way, questions=()), cell)
            assert len(asked) == (number == 0)
            assert f"ran as {way.user}" in said(talk)
            assert not talk._of("stdin")[len(asked) :]
        assert way.sshd.accepted() == before + 1


def test_remotes_on_one_host_share_its_login(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """Three remotes on a host that asks for a code: one code, one keeper."""
    way = ground.way("code")
    names = [configure(here, way, transport, f"share-{number}") for number in range(3)]
    before = way.sshd.accepted()
    for number, name in enumerate(names):
        ended = run(name, way if number == 0 else replace(way, questions=()))
        assert (ended.status, ended.asked) == (0, number == 0), ended.text
    assert way.sshd.accepted() == before + 1
    assert len(list((here.folder / "state/keepers").glob("*.json"))) == 1
    # One of them goes, and the others stay logged in.
    assert here.remoter("remove", names[0]).returncode == 0
    ended = run(names[1], replace(way, questions=()))
    assert (ended.status, ended.asked) == (0, 0), ended.text
    assert way.sshd.accepted() == before + 1


def test_restarts_and_killed_trees_ask_nothing_again(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """Each is a new proxy process; VS Code kills the whole tree of the old one."""
    way = ground.way("code")
    spec = f"remoter-{configure(here, way, transport, 'restarts')}"
    before = way.sshd.accepted()
    with ExitStack() as stack:
        kernels = [stack.enter_context(started_kernel(spec)) for _ in range(3)]
        talk = Talk(kernels[0].client)
        assert len(answer(talk, way, talk.queue(WHO))) == 1
        for kernel in kernels:
            kernel.manager.restart_kernel()
            kernel.client.wait_for_ready(timeout=60)
            talk = Talk(kernel.client)
            answer(talk, replace(way, questions=()), talk.queue(WHO))
            assert f"ran as {way.user}" in said(talk)
            front = psutil.Process(kernel.pid)
            for process in [front, *front.children(recursive=True)]:
                process.kill()
        with started_kernel(spec) as kernel:
            talk = Talk(kernel.client)
            answer(talk, replace(way, questions=()), talk.queue(WHO))
            assert f"ran as {way.user}" in said(talk)
    assert way.sshd.accepted() == before + 1
    name = spec.removeprefix("remoter-")
    assert here.remoter("stop", "--all", name).returncode == 0


def test_silent_code_before_the_first_cell_is_answered_at_once_and_run_first(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """As VS Code does: it waits for its own code before it sends the cell in which to ask."""
    way = ground.way("code")
    spec = f"remoter-{configure(here, way, transport, 'silent-first')}"
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        code = "__vsc_ipynb_file__ = '/a/notebook.ipynb'"
        for text in (code, "import os as _os"):
            options = {"silent": True, "store_history": False, "allow_stdin": False}
            first = talk.queue(text, **options)
            talk.done(first)
        cell = talk.queue("print(__vsc_ipynb_file__)")
        assert len(answer(talk, way, cell)) == 1
        assert "/a/notebook.ipynb" in said(talk)


def test_the_next_command_asks_nothing(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """As long as the login lasts, whoever comes next goes in by it."""
    way = ground.way("password and code")
    name = configure(here, way, transport)
    before = way.sshd.accepted()
    first, second = run(name, way), run(name, replace(way, questions=()))
    assert (first.status, first.asked) == (0, 2), first.text
    assert (second.status, second.text) == (0, f"ran as {way.user}\n")
    assert way.sshd.accepted() == before + 1


def test_a_kernel_goes_in_by_the_login_of_a_command(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """Who cannot be asked has no need to be, once somebody has logged in at a terminal."""
    way = ground.way("key and code")
    name = configure(here, way, transport)
    assert run(name, way).status == 0
    before = way.sshd.accepted()
    with started_kernel(f"remoter-{name}") as kernel:
        talk = Talk(kernel.client)
        talk.done(talk.queue(WHO, allow_stdin=False))
        assert f"ran as {way.user}" in said(talk)
    assert way.sshd.accepted() == before


def test_after_a_cut_a_code_is_asked_for_in_the_next_cell(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """Nobody dials alone with a code that is used up; the variables are there all the while."""
    way = ground.way("code")
    spec = f"remoter-{configure(here, way, transport, 'cut')}"
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        answer(talk, way, talk.queue("kept = 'since before'"))
        for _ in range(2):
            way.sshd.cut_all()
            talk.heard = []
            cell = talk.queue("print(kept)")
            assert len(answer(talk, way, cell)) == 1
            assert "since before" in said(talk)


def test_after_a_cut_a_password_is_used_once_more_and_then_asked_for(
    here: JupyterHere, ground: LoginGround
) -> None:
    way = ground.way("password")
    spec = f"remoter-{configure(here, way, 'paramiko', 'cut')}"
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        answer(talk, way, talk.queue("kept = 'since before'"))
        way.sshd.cut_all()
        talk.heard = []
        talk.done(talk.queue("print(kept)"))
        assert not talk._of("stdin")
        assert "since before" in said(talk)


# --------------------------------------------------------------- wrong answers


def test_a_wrong_password_may_be_put_right(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """Whoever mistypes it is asked again in the same login."""
    way = ground.way("password")
    name = configure(here, way, transport, "mistyped")
    mistyped = Question(way.questions[0].says, lambda: "mistyped")
    before = way.sshd.refused()
    ended = run(name, replace(way, questions=(mistyped, *way.questions)))
    assert (ended.status, ended.asked) == (0, 2), ended.text
    assert f"ran as {way.user}\n" in ended.text
    assert way.sshd.refused() == before + 1


def test_three_wrong_passwords_end_in_a_sentence(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """Three tries are three tries: none is made behind the person's back."""
    way = ground.way("password").wrong
    name = configure(here, way, transport)
    before = way.sshd.refused()
    ended = run(name, way)
    assert (ended.status, ended.asked) == (3, 3), ended.text
    assert way.sshd.refused() == before + 3
    assert_is_a_sentence(ended.text, name)


def test_a_server_that_allows_fewer_tries_is_understood(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """It hangs up after two; nobody dials again to have a third."""
    way = ground.open(ground.kind("password"), f"strict-{transport}", server="MaxAuthTries 2").wrong
    name = configure(here, way, transport)
    ended = run(name, way)
    assert (ended.status, ended.asked) == (3, 2), ended.text
    assert way.sshd.refused() == 2
    assert_is_a_sentence(ended.text, name)


def test_a_code_is_not_sent_twice(here: JupyterHere, ground: LoginGround, transport: str) -> None:
    """A wrong code is asked for anew; what was typed once is not tried again."""
    way = ground.way("code")
    name = configure(here, way, transport, "anew")
    used = way.questions[0].answer()
    mistyped = Question(way.questions[0].says, lambda: "000000")
    before = way.sshd.refused()
    ended = run(name, replace(way, questions=(mistyped, *way.questions)))
    assert (ended.status, ended.asked) == (0, 2), ended.text
    assert used not in ended.text
    assert way.sshd.refused() == before + 1


def assert_is_a_sentence(text: str, name: str) -> None:
    """The last line is for a person."""
    last = text.rstrip().splitlines()[-1]
    assert last.startswith(f"remoter: {name}: ")
    assert last.endswith(".")
    assert "Traceback" not in text


# --------------------------------------------------------------- nobody to ask


@pytest.mark.parametrize("kind", WITH_QUESTIONS)
def test_with_nobody_to_ask_the_error_names_ways_without_a_question(
    here: JupyterHere, ground: LoginGround, kind: str, transport: str
) -> None:
    """No terminal: nothing is tried, and the sentence says what to do."""
    way = ground.way(kind)
    name = configure(here, way, transport, f"nobody-{ground.way(kind).alias}")
    before = way.sshd.refused()
    ran = here.remoter("run", name, "-c", WHO)
    assert (ran.returncode, ran.stdout) == (3, ""), ran
    assert re.search(NO_QUESTION, ran.stderr), ran.stderr
    assert_is_a_sentence(ran.stderr, name)
    assert way.sshd.refused() == before


@pytest.mark.parametrize("kind", ["encrypted key", "password and code"])
def test_a_cell_that_may_not_ask_says_so(
    here: JupyterHere, ground: LoginGround, kind: str, transport: str
) -> None:
    """`allow_stdin` is false: an error, at once; a cell that may ask then goes in."""
    way = ground.way(kind)
    name = configure(here, way, transport, f"silent-{way.alias}")
    with started_kernel(f"remoter-{name}") as kernel:
        talk = Talk(kernel.client)
        talk.done(talk.queue(WHO, allow_stdin=False))
        assert re.search(NO_QUESTION, said(talk))
        assert not talk._of("stdin")
        talk.heard = []
        assert len(answer(talk, way, talk.queue(WHO))) == len(way.questions)
        assert f"ran as {way.user}" in said(talk)


# ---------------------------------------------------------- an unknown host key


@pytest.mark.parametrize("kind", ["ed25519", "password"])
@pytest.mark.parametrize("trust", ["yes", "once", "no"])
def test_an_unknown_host_key_is_asked_about_first(
    here: JupyterHere, ground: LoginGround, trust: str, kind: str, transport: str
) -> None:
    """It is shown; "yes" is remembered, "once" is not, and after "no" nothing else is asked."""
    way = ground.way(kind)
    folder = ground.new_folder()
    learned, config = folder / "learned", folder / "ssh_config"
    known = str(way.sshd.known_hosts)
    text = way.config.read_text().replace(known, str(learned))
    config.write_text(text)
    asked = Question("SHA256:", lambda: trust, is_hidden=False)
    way = replace(way, config=config, questions=(asked, *way.questions))
    ended = run(configure(here, way, transport, f"unknown-{trust}-{way.alias}"), way)
    expected = (3, 1) if trust == "no" else (0, len(way.questions))
    assert (ended.status, ended.asked) == expected, ended.text
    assert fingerprint(way.sshd.known_hosts) in ended.text
    assert learned.exists() == (trust == "yes")


def test_an_unknown_host_key_is_asked_about_in_the_cell(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """Each time that a cell is run, until somebody says what it is."""
    way = ground.way("ed25519")
    folder = ground.new_folder()
    learned, config = folder / "learned", folder / "ssh_config"
    text = way.config.read_text().replace(str(way.sshd.known_hosts), str(learned))
    config.write_text(text)
    asked = Question("SHA256:", lambda: "no", is_hidden=False)
    no = replace(way, config=config, questions=(asked,))
    yes = replace(no, questions=(Question("SHA256:", lambda: "yes", is_hidden=False),))
    with started_kernel(f"remoter-{configure(here, no, transport, 'stranger')}") as kernel:
        talk = Talk(kernel.client)
        for attempt, shown in ((no, "was not accepted"), (no, "was not accepted"), (yes, "ran as")):
            talk.heard = []
            assert len(answer(talk, attempt, talk.queue(WHO))) == 1
            assert shown in said(talk)
    assert learned.exists()


def test_a_person_may_take_time_also_after_a_cut(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """A try to come back that hangs is given up soon, but not while somebody looks for a code."""
    way = ground.way("password and code")
    slow = [
        Question(each.says, partial(_after, 7.0 * (not number), each))
        for number, each in enumerate(way.questions)
    ]
    with started_kernel(f"remoter-{configure(here, way, transport, 'slowly')}") as kernel:
        talk = Talk(kernel.client)
        answer(talk, way, talk.queue("kept = 'since before'"))
        way.sshd.cut_all()
        talk.heard = []
        cell = talk.queue("print(kept)")
        assert len(answer(talk, replace(way, questions=tuple(slow)), cell)) == 2
        assert "since before" in said(talk)


def _after(seconds: float, question: Question) -> str:
    time.sleep(seconds)  # a person is slow
    return question.answer()


def test_a_question_that_is_called_off_is_told_in_the_cell(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    way = ground.way("code")
    with started_kernel(f"remoter-{configure(here, way, transport, 'called-off')}") as kernel:
        talk = Talk(kernel.client)
        cell = talk.queue(WHO)
        talk.listen(lambda: bool(talk._of("stdin")))
        kernel.manager.interrupt_kernel()
        talk.done(cell)
        assert "was not answered" in said(talk)
        talk.heard = []
        answer(talk, way, talk.queue(WHO))
        assert f"ran as {way.user}" in said(talk)


def fingerprint(known_hosts: Path) -> str:
    """Say what ssh-keygen says of the key in there."""
    return run_quietly(["ssh-keygen", "-lf", str(known_hosts)]).split()[1]


# --------------------------------------------------------------------- secrets


def test_what_was_answered_is_found_nowhere(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """Not in a file of either side, not in a command line, an environment or an output."""
    ways = [ground.way(kind) for kind in ("encrypted key", "password", "password and code")]
    with ExitStack() as stack:
        for way in ways:
            spec = f"remoter-{configure(here, way, transport, f'secret-{way.alias}')}"
            talk = Talk(stack.enter_context(started_kernel(spec)).client)
            answer(talk, way, talk.queue(WHO))
            assert f"ran as {way.user}" in said(talk)
            assert not found_in(str(talk.heard), ground.secrets)
        assert len(ground.secrets) >= len(ways)
        homes = {Path(f"~{way.user}").expanduser() for way in ways}
        shared = [home / ".local/share/remoter-kernel" for home in homes]
        assert all(list(folder.rglob("journal")) for folder in shared)
        for folder in (here.folder, *shared):
            for file in (path for path in folder.rglob("*") if path.is_file()):
                assert not found_in(file.read_bytes().decode("latin-1"), ground.secrets), file
        for server in ground.servers:
            assert not found_in(server.log.read_text(), ground.secrets)
        for process in psutil.process_iter(["cmdline", "environ"]):
            told = str(process.info["cmdline"]) + str(process.info["environ"])
            assert not found_in(told, ground.secrets), process


def test_no_secret_is_in_what_debug_tells(
    here: JupyterHere, ground: LoginGround, transport: str
) -> None:
    """A traceback is for the developers, and they need no password."""
    way = ground.way("password and code").wrong
    name = configure(here, way, transport, "debug")
    secret = Question(way.questions[0].says, lambda: f"{ground.secrets[-1]}x")
    command = [str(Path(sys.executable).with_name("remoter")), "--debug", "run", name, "-c", WHO]
    ended = at_terminal(command, [secret] * len(way.questions))
    assert ended.status == 3, ended.text
    assert not found_in(ended.text, ground.secrets)


def found_in(text: str, secrets: list[str]) -> list[str]:
    """Say which secrets are told there, in any spelling of bytes."""
    return [one for one in secrets if one in text or one.encode().hex() in text]


# ------------------------------------------------------- what the system remembers


@pytest.mark.slow
def test_what_is_remembered_on_request_is_asked_once(
    here: JupyterHere, ground: LoginGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the system's keyring (here: one that is a file), beyond the keeper's life."""
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyrings.alt.file.PlaintextKeyring")
    monkeypatch.setenv("XDG_DATA_HOME", str(here.folder / "keyring"))
    for kind in ("password", "encrypted key"):
        way = ground.way(kind)
        name = configure(here, way, "paramiko", f"remembered-{way.alias}")
        remote = find_remote(name)
        assert remote
        write_remote(replace(remote, remember=True), make_default=False, replace=True)
        for asked in (1, 0):
            ended = run(name, way if asked else replace(way, questions=()))
            assert (ended.status, ended.asked) == (0, asked), ended.text
            end_logins(name)
    # One that has become wrong is forgotten, after one try.
    way = ground.way("password")
    name = f"remembered-{way.alias}-paramiko"
    keyring.set_password(
        KEYRING_SERVICE, f"password of {way.user}@127.0.0.1:{way.sshd.port}", "old"
    )
    before = way.sshd.refused()
    ended = run(name, way)
    assert (ended.status, ended.asked) == (0, 1), ended.text
    assert way.sshd.refused() == before + 1
    # A remote that is removed leaves none.
    assert keyring.get_password(
        KEYRING_SERVICE, f"password of {way.user}@127.0.0.1:{way.sshd.port}"
    )
    assert here.remoter("remove", name).returncode == 0
    assert not keyring.get_password(
        KEYRING_SERVICE, f"password of {way.user}@127.0.0.1:{way.sshd.port}"
    )
