"""One login that several wait for: who is asked what it asks, and who hears how it ended."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.errors import RemoterError, Unreachable
from remoter_kernel.local.login.keeper.endpoint import error_to_message
from remoter_kernel.local.login.keeper.login_attempt import LoginAttempt
from remoter_kernel.local.login.prompts import NeedsPerson, NotAnswered, Prompt
from tests.real_jupyter import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PASSWORD = Prompt("Password of ada:")
CODE = Prompt("Verification code:", is_shown=True)


class Comer:
    """A visitor of the keeper's, and the thread in which it waits for a login."""

    def __init__(self, place: str, *, may_ask: bool = True) -> None:
        self.place, self.may_ask, self.is_gone = place, may_ask, False
        self.said: list[dict[str, Any]] = []
        self.outcome: list[bool | Exception] = []
        self.on_answer: Callable[[dict[str, Any]], None] = lambda _words: None
        self.on_end: Callable[[], None] = lambda: None
        self.thread = threading.Thread(target=lambda: None)

    def send(self, words: dict[str, Any]) -> None:
        self.said.append(words)

    def send_step(self, step: str) -> None:
        self.send({"step": step})

    def come(self, attempt: LoginAttempt, begin: Callable[[], None] | None = None) -> None:
        """Wait for the login, aside."""

        def wait() -> None:
            visitor: Any = self
            try:
                self.outcome.append(attempt.wait(visitor, can_be_asked=self.may_ask, begin=begin))
            except RemoterError as error:
                self.outcome.append(error)

        self.thread = threading.Thread(target=wait)
        self.thread.start()

    def asked(self) -> list[str]:
        """Return what this one was asked, in order."""
        return [each["prompts"][0][0] for each in self.said if each.get("prompts")]

    def is_asked(self, prompt: Prompt, times: int = 1) -> None:
        wait_for(lambda: self.asked().count(prompt.text) == times, what=f"{prompt} at {self.place}")

    def answer(self, value: str, number: int = 0) -> None:
        numbers = [each["number"] for each in self.said if each.get("prompts")]
        self.on_answer({"answers": [value], "number": number or numbers[-1]})

    def decline(self) -> None:
        self.on_answer({**error_to_message(NotAnswered("it was declined."))[0], "number": 0})

    def go(self) -> None:
        self.is_gone = True
        self.on_end()

    def ended(self) -> bool | Exception:
        self.thread.join(5)
        return self.outcome[0]


class Ground:
    """A login that asks, and what it heard."""

    def __init__(self) -> None:
        self.heard: list[str | Exception] = []
        self.is_cut = self.has_ended = False
        self.attempt = LoginAttempt("auto", may_ask=True)
        self.first, self.second = Comer("in first.ipynb"), Comer("by `remoter run` in a terminal")
        self._thread: threading.Thread | None = None

    def abort(self) -> None:
        self.is_cut = self.has_ended = True

    def ask(self, *prompts: Prompt, error: Exception | None = None) -> None:
        """Let the first one begin a login that asks all of this, and ends with an error or well."""

        def make() -> None:
            login: Any = self
            self.attempt.set_login(login)
            self.attempt.send_step("login")
            try:
                for prompt in prompts:
                    self.heard += self.attempt.ask("box", [prompt])
            except Exception as trouble:  # noqa: BLE001 - it is looked at
                self.heard.append(trouble)
                self.attempt.finish(trouble)
            else:
                self.attempt.finish(error)

        self._thread = threading.Thread(target=make)
        self.first.come(self.attempt, self._thread.start)

    def close(self) -> None:
        for each in (self.first, self.second):
            each.go()
        if self._thread:
            self._thread.join(5)


@pytest.fixture
def ground() -> Iterator[Ground]:
    ground = Ground()
    yield ground
    ground.close()


def test_a_question_moves_to_whoever_comes_next(ground: Ground) -> None:
    """The first one hears where it is asked, and goes in by the same login."""
    ground.ask(PASSWORD, CODE)
    ground.first.is_asked(PASSWORD)
    ground.second.come(ground.attempt)
    ground.second.is_asked(PASSWORD)
    where = "the login waits for a password, which is asked for by `remoter run` in a terminal."
    wait_for(lambda: {"elsewhere": where} in ground.first.said, what="word of it")
    ground.second.answer("secret")
    ground.second.is_asked(CODE)
    ground.second.answer("123")
    assert ground.first.ended() is ground.second.ended() is True
    assert ground.heard == ["secret", "123"]
    assert ground.first.asked() == [PASSWORD.text]
    assert {"step": "login"} in ground.second.said


def test_what_was_typed_just_before_it_moved_counts(ground: Ground) -> None:
    """Nobody types a code twice; the one who would be asked now is asked no more."""
    ground.ask(CODE)
    ground.first.is_asked(CODE)
    ground.second.come(ground.attempt)
    ground.second.is_asked(CODE)
    ground.first.answer("123")
    assert ground.first.ended() is ground.second.ended() is True
    assert ground.heard == ["123"]
    assert ground.second.said[-1] == {"withdrawn": 1}


def test_an_answer_to_a_question_before_is_none_to_this_one(ground: Ground) -> None:
    """A password that comes late is sent to nobody as a code."""
    ground.ask(PASSWORD, CODE)
    ground.first.is_asked(PASSWORD)
    ground.second.come(ground.attempt)
    ground.second.is_asked(PASSWORD)
    ground.second.answer("secret")
    ground.second.is_asked(CODE)
    ground.first.answer("secret", number=1)
    ground.second.answer("123")
    assert ground.second.ended() is True
    assert ground.heard == ["secret", "123"]


def test_who_declines_gives_the_question_back(ground: Ground) -> None:
    """It was begun by mistake, say; the page that was asked before is asked again."""
    ground.ask(PASSWORD)
    ground.first.is_asked(PASSWORD)
    ground.second.come(ground.attempt)
    ground.second.is_asked(PASSWORD)
    ground.second.decline()
    assert isinstance(ground.second.ended(), NotAnswered)
    ground.first.is_asked(PASSWORD, times=2)
    ground.first.answer("secret")
    assert ground.first.ended() is True
    assert ground.heard == ["secret"]


def test_who_goes_gives_the_question_back(ground: Ground) -> None:
    """Also if it is the one that began the login."""
    ground.ask(PASSWORD)
    ground.first.is_asked(PASSWORD)
    ground.second.come(ground.attempt)
    ground.second.is_asked(PASSWORD)
    ground.first.go()
    assert isinstance(ground.first.ended(), Unreachable)
    ground.second.answer("secret")
    assert ground.second.ended() is True
    assert not ground.is_cut


def test_a_login_for_which_nobody_waits_is_cut(ground: Ground) -> None:
    ground.ask(PASSWORD)
    ground.first.is_asked(PASSWORD)
    ground.first.go()
    wait_for(lambda: ground.is_cut, what="the cut")
    wait_for(lambda: ground.attempt.is_over, what="its end")
    assert isinstance(ground.heard[0], NotAnswered)


def test_who_waits_may_stop_while_another_is_asked(ground: Ground) -> None:
    """An interrupt ends the cell, and takes nothing from the one that is asked."""
    ground.ask(PASSWORD)
    ground.first.is_asked(PASSWORD)
    ground.second.come(ground.attempt)
    ground.second.is_asked(PASSWORD)
    ground.first.decline()
    assert isinstance(ground.first.ended(), NotAnswered)
    ground.second.answer("secret")
    assert ground.second.ended() is True


@pytest.mark.parametrize("is_early", [False, True])
def test_who_cannot_be_asked_hears_at_once_where_the_question_is(
    ground: Ground, *, is_early: bool
) -> None:
    """Whether it came before the question or after."""
    command = Comer("by a script", may_ask=False)
    ground.ask(PASSWORD)
    if is_early:
        command.come(ground.attempt)
    ground.first.is_asked(PASSWORD)
    if not is_early:
        command.come(ground.attempt)
    error = command.ended()
    assert isinstance(error, NeedsPerson)
    assert "a password, which is asked for in first.ipynb" in str(error)
    assert "remoter check box" in str(error.at("box"))
    assert error.exit_code == 3
    ground.first.answer("secret")
    assert ground.first.ended() is True


def test_whoever_was_asked_hears_why_it_failed(ground: Ground) -> None:
    """A login that was refused is not tried again behind the back of who has typed."""
    refused = RemoterError("three wrong passwords.")
    ground.ask(PASSWORD, error=refused)
    ground.first.is_asked(PASSWORD)
    ground.second.come(ground.attempt)
    ground.second.is_asked(PASSWORD)
    ground.second.answer("secret")
    assert ground.first.ended() is ground.second.ended() is refused


def test_who_was_not_asked_may_try_by_itself(ground: Ground) -> None:
    """It may have an agent, or a key, that the other one had not."""
    ground.attempt.may_ask = False
    go_on = threading.Event()

    def make() -> None:
        go_on.wait(5)
        ground.attempt.finish(RemoterError("no key."))

    thread = threading.Thread(target=make)
    ground.first.come(ground.attempt, thread.start)
    ground.second.come(ground.attempt)
    wait_for(lambda: len(ground.attempt._waiters) == 2, what="both of them")
    go_on.set()
    assert isinstance(ground.first.ended(), RemoterError)
    assert ground.second.ended() is False
    thread.join(5)


def test_no_secret_is_left_in_it(ground: Ground) -> None:
    ground.ask(PASSWORD)
    ground.first.is_asked(PASSWORD)
    ground.first.answer("secret")
    assert ground.first.ended() is True
    assert "secret" not in repr(vars(ground.attempt))


# What asks for nothing -------------------------------------------------------------------


BANNER = "[box says] Welcome, all is logged."


def tell(ground: Ground, *, go_on: threading.Event) -> None:
    """Let the first one begin a login that shows a banner."""

    def make() -> None:
        login: Any = ground
        ground.attempt.set_login(login)
        wait_for(lambda: len(ground.attempt._waiters) == 3, what="all of them")
        ground.heard.append(repr(ground.attempt.ask("", [], BANNER)))
        go_on.wait(10)
        ground.attempt.finish()

    ground._thread = threading.Thread(target=make)
    ground.first.come(ground.attempt, ground._thread.start)


def told_to(comer: Comer) -> list[str]:
    return [each["instruction"] for each in comer.said if "ask" in each]


def test_a_banner_throws_nobody_out_and_all_who_wait_hear_it(ground: Ground) -> None:
    """Nothing is asked: who has no person waits on, and nobody hears that an answer is missing."""
    go_on, command, late = threading.Event(), Comer("by cron", may_ask=False), Comer("late")
    tell(ground, go_on=go_on)
    ground.second.come(ground.attempt)
    command.come(ground.attempt)
    wait_for(lambda: ground.heard == ["[]"], what="that the login goes on at once")
    late.come(ground.attempt)
    wait_for(lambda: told_to(late) == [BANNER], what="the banner for whoever comes later")
    go_on.set()
    outcomes = [each.ended() for each in (ground.first, ground.second, command, late)]
    assert outcomes == [True] * 4
    assert told_to(ground.first) == told_to(ground.second) == [BANNER]
    assert command.said == []
    assert not [each for each in ground.second.said if "elsewhere" in each]


def test_a_notice_takes_no_question_away(ground: Ground) -> None:
    """It is told before the next one; what comes back of it is no answer."""
    ground.ask(PASSWORD, CODE)
    ground.first.is_asked(PASSWORD)
    assert ground.attempt.ask("", [], BANNER) == []
    assert told_to(ground.first) == [""]
    ground.first.on_answer({"answers": [], "number": 0})
    ground.first.answer("secret")
    ground.first.is_asked(CODE)
    assert told_to(ground.first) == ["", BANNER, ""]
    ground.first.answer("123")
    assert ground.first.ended() is True
    assert ground.heard == ["secret", "123"]


def test_a_login_that_was_cut_asks_nobody_who_comes_later(ground: Ground) -> None:
    """A password would be typed for nothing: whoever comes begins another one."""
    go_on = threading.Event()
    ground.abort = lambda: None  # type: ignore[method-assign]  # it takes a while

    def make() -> None:
        login: Any = ground
        ground.attempt.set_login(login)
        go_on.wait(10)
        try:
            ground.attempt.ask("box", [PASSWORD])
        except NotAnswered as error:
            ground.attempt.finish(error)

    ground._thread = threading.Thread(target=make)
    ground.first.come(ground.attempt, ground._thread.start)
    wait_for(lambda: len(ground.attempt._waiters) == 1, what="the first one")
    ground.first.go()
    ground.first.ended()
    ground.second.come(ground.attempt)
    wait_for(lambda: len(ground.attempt._waiters) == 1, what="the second one")
    go_on.set()
    assert ground.second.ended() is False
    assert ground.second.asked() == []
