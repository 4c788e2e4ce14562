"""What a login asks when the one before it was cut, however long a person takes to answer."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from remoter_kernel.local.login.keeper.endpoint import end_logins
from remoter_kernel.local.session.link import SHORTEST_TRY
from tests.real_accounts import SERVICES
from tests.real_jupyter import started_kernel, wait_for
from tests.whole.talk import Message, Talk
from tests.whole.test_keeper import is_gone
from tests.whole.test_login_questions import WHO, answer, configure, said

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_logins import LoginGround, Way

GRACE_IS_OVER = 6.0  # seconds of an outage: more than any keeper waits for its first visitor


@pytest.fixture(autouse=True)
def nobody_is_logged_in(here: JupyterHere) -> Iterator[None]:
    """Remotes of one account share a login: none is left to the next test."""
    del here
    yield
    end_logins()


def pass_by(seconds: float) -> None:
    """Let time go by: here it is the fact."""
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > until, seconds=seconds + 1)


@contextlib.contextmanager
def slow_verdict(way: Way) -> Iterator[None]:
    """Let a server think for a moment about an answer that is right."""
    service = SERVICES / way.sshd.program
    before = service.read_text()
    service.write_text(f"{before}account required pam_exec.so quiet /bin/sleep 1\n")
    try:
        yield
    finally:
        service.write_text(before)


@pytest.mark.slow
def test_a_person_may_take_longer_than_any_network(here: JupyterHere, ground: LoginGround) -> None:
    """A code that was typed slowly is not thrown away: it is asked for once."""
    way = ground.way("code")
    spec = f"remoter-{configure(here, way, 'paramiko', 'slow')}"
    with started_kernel(spec) as kernel, slow_verdict(way):
        talk = Talk(kernel.client)
        assert len(answer(talk, way, talk.queue(WHO))) == 1
        talk.heard = []
        before = way.sshd.accepted()
        way.sshd.cut_all()
        cell = talk.queue("print('after', 'all')")
        talk.listen(lambda: bool(talk._of("stdin")))
        pass_by(2 * SHORTEST_TRY + 2)
        talk.send("input_reply", {"value": way.questions[0].answer()}, channel="stdin")
        talk.done(cell)
        assert "after all" in said(talk)
        assert len(talk._of("stdin")) == 1
        assert way.sshd.accepted() == before + 1


def test_a_password_outlives_an_outage(here: JupyterHere, ground: LoginGround) -> None:
    """It is used once after each cut, so long as its keeper may be needed again."""
    way = ground.way("password")
    spec = f"remoter-{configure(here, way, 'paramiko', 'outage', lasts=60.0)}"
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        assert len(answer(talk, way, talk.queue(WHO))) == 1
        talk.heard = []
        way.sshd.stop_listening()
        cell = talk.queue("print('after', 'all')")
        pass_by(GRACE_IS_OVER)
        way.sshd.start()
        talk.done(cell)
        assert "after all" in said(talk)
        assert not talk._of("stdin")


def reply(talk: Talk, asked: Message, value: str) -> None:
    """Answer one question, and say which, as JupyterLab does."""
    session = talk.client.session
    words = session.msg("input_reply", {"value": value}, parent=asked["header"])
    session.send(talk.client.stdin_channel.socket, words)


def test_what_a_cell_asked_and_what_the_login_asks_are_not_mixed_up(
    here: JupyterHere, ground: LoginGround
) -> None:
    """Both may be open in one cell; what is typed for a login that was called off goes nowhere.

    So it is for a client that says which question it answers, as this one does from the start.
    """
    way = ground.way("code")
    spec = f"remoter-{configure(here, way, 'paramiko', 'mixed')}"
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        cell = talk.queue(WHO)
        talk.listen(lambda: len(talk._of("stdin")) == 1)
        reply(talk, talk._of("stdin")[0], way.questions[0].answer())
        talk.done(cell)
        talk.heard = []
        cell = talk.queue("print('heard', input('name? '))")
        talk.listen(lambda: len(talk._of("stdin")) == 1)
        way.sshd.cut_all()
        talk.listen(lambda: len(talk._of("stdin")) == 2)
        kernel.client.session.send(
            talk.client.control_channel.socket, kernel.client.session.msg("interrupt_request", {})
        )
        talk.listen(lambda: bool(talk._of("control")))
        talk.until_said("was not answered. Run a cell to be asked again.")
        another = talk.queue("print('and', input('age? '))")
        talk.listen(lambda: len(talk._of("stdin")) == 3)
        first, called_off, again = talk._of("stdin")
        reply(talk, called_off, "called off")
        reply(talk, first, "Ada")
        reply(talk, again, way.questions[0].answer())
        talk.listen(lambda: len(talk._of("stdin")) == 4)
        reply(talk, talk._of("stdin")[-1], "36")
        talk.done(cell, another)
        assert "heard Ada" in said(talk)
        assert "and 36" in said(talk)
        assert "called off" not in said(talk)


def test_a_client_that_names_no_question_is_asked_one_after_the_other(
    here: JupyterHere, ground: LoginGround
) -> None:
    """What it types for a cell goes to the cell, and a code for the login goes to no kernel."""
    way = ground.way("code")
    spec = f"remoter-{configure(here, way, 'paramiko', 'in-turn')}"
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        assert len(answer(talk, way, talk.queue(WHO))) == 1
        talk.heard = []
        cell = talk.queue("print('heard', input('name? '))")
        talk.listen(lambda: len(talk._of("stdin")) == 1)
        way.sshd.cut_all()
        talk.until_said("First answer the one that is open")
        assert len(talk._of("stdin")) == 1
        talk.send("input_reply", {"value": "Ada"}, channel="stdin")
        talk.listen(lambda: len(talk._of("stdin")) == 2)
        talk.send("input_reply", {"value": way.questions[0].answer()}, channel="stdin")
        talk.done(cell)
        assert "heard Ada" in said(talk)
        assert len(talk._of("stdin")) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_front_that_ends_at_a_question_holds_nobody_up(
    here: JupyterHere, ground: LoginGround, number: int
) -> None:
    """As VS Code ends them; the question goes to whoever comes next."""
    way = ground.way("code")
    spec = f"remoter-{configure(here, way, 'paramiko', f'leaving-{number}')}"
    with started_kernel(spec) as kernel, started_kernel(spec) as other:
        talk = Talk(kernel.client)
        talk.queue(WHO)
        talk.listen(lambda: bool(talk._of("stdin")))
        second = Talk(other.client)
        cell = second.queue(WHO)
        front = psutil.Process(kernel.pid)
        front.send_signal(number)
        wait_for(lambda: is_gone(front), seconds=5, what="the front's end")
        assert len(answer(second, way, cell)) == 1
        assert f"ran as {way.user}" in said(second)
