"""What proxies hear of the time between two evaluators, as the child's messages come in."""

from __future__ import annotations

import pytest

from remoter_kernel.evaluator.message_writer import MessageWriter
from remoter_kernel.evaluator.recovery import InDoubtRequests, RecoveredState
from remoter_kernel.protocol.frames import Channel, unpack_parts
from remoter_kernel.protocol.messages import HEADER, PARENT, MessageSigner, content_of, header_of
from remoter_kernel.protocol.requests import Request, Stage

VOICE = MessageSigner(b"")


class Journal:
    """Takes what is said."""

    def __init__(self):
        self.said = []

    def append(self, channel, body, **_):
        parts = unpack_parts(body)
        parent = header_of(parts[PARENT])["msg_id"]
        self.said.append((parent, header_of(parts[HEADER])["msg_type"], content_of(parts)))


class Reactor:
    """Keeps what is to happen later."""

    def __init__(self):
        self.timers = []

    def call_later(self, _seconds, call):
        self.timers.append(call)


class Story:
    """An adoption of cells `a` and `b`, of which the first had begun."""

    def __init__(self):
        self.journal, self.reactor = Journal(), Reactor()
        self.past = past = RecoveredState()
        self.headers = {name: {"msg_id": name, "msg_type": "execute_request"} for name in "ab"}
        self.requests = past.requests
        for header in self.headers.values():
            request = Request(Channel.SHELL, [], header, client=b"front--1", number=1)
            self.requests.add(request, Stage.SENT)
        self.requests.on_state("a", "busy")
        past.inferred.replies["a"] = {}
        speaker = MessageWriter(self.journal)  # type: ignore[arg-type]
        self.adoption = InDoubtRequests(self.reactor, past, speaker)  # type: ignore[arg-type]

    def hear(self, cell, kind, **content):
        self.adoption.on_iopub(VOICE.compose(kind, content, self.headers[cell]))
        self.adoption.on_next_request(
            self.requests.on_state(cell, content.get("execution_state", "")).finished_before
        )

    def forget(self, *cells):
        for request in [each for each in self.requests if each.id in cells]:
            self.requests.move(request, Stage.DONE)

    def reply(self, cell):
        request = self.requests.get(cell)
        assert request
        self.adoption.on_reply(request)
        assert self.requests.on_reply(cell) is request

    def kinds(self, cell):
        return [kind for parent, kind, _ in self.journal.said if parent == cell]

    def told(self):
        return [
            (parent, "nobody has heard" in content["text"])
            for parent, kind, content in self.journal.said
            if kind == "stream"
        ]

    def answer(self):
        """Let the child say that it is between two cells, and what it published arrive."""
        self.adoption.on_kernel_info(Child())  # type: ignore[arg-type]
        self.reactor.timers.pop()()

    def wait(self):
        timers, self.reactor.timers = self.reactor.timers, []
        for timer in timers:
            timer()


@pytest.fixture
def story():
    return Story()


def test_a_cell_that_had_begun_is_told_with_the_first_word_of_it(story):
    for text in ("one", "two"):
        story.hear("a", "stream", name="stdout", text=text)
    story.wait()
    assert story.told() == [("a", False)]


def test_a_cell_that_is_heard_from_its_begin_has_nothing_missing(story):
    story.hear("a", "status", execution_state="idle")
    story.hear("b", "status", execution_state="busy")
    story.hear("b", "stream", name="stdout", text="one")
    assert story.told() == [("a", False)]


def test_a_cell_whose_begin_was_not_heard_is_told(story):
    """It began while nobody listened: what it said by then is missing, too."""
    story.hear("b", "stream", name="stdout", text="two")
    assert story.told() == [("b", False)]


def test_a_child_that_says_nothing_may_have_asked_what_nobody_heard(story):
    story.wait()
    assert story.told() == [("a", False), ("a", True)]
    story.wait()
    story.hear("a", "stream", name="stdout", text="one")
    assert len(story.told()) == 2


def test_a_cell_may_fall_silent_later_and_each_is_told_once(story):
    """What was heard from its begin misses nothing, but it may have asked in vain, too."""
    story.hear("a", "stream", name="stdout", text="one")
    story.wait()
    assert story.told() == [("a", False)]
    story.wait()
    assert story.told() == [("a", False), ("a", True)]
    story.forget("a")
    story.hear("b", "status", execution_state="busy")
    for _ in range(3):
        story.wait()
    assert story.told() == [("a", False), ("a", True), ("b", True)]


def test_where_all_has_its_answer_silence_means_nothing(story):
    story.forget("a", "b")
    story.wait()
    assert story.told() == []


class Child:
    """Is asked again."""

    def resend_kernel_info(self):
        pass


def test_a_cell_that_was_heard_to_its_end_by_the_dead_one_has_lost_its_reply_alone(story):
    """Busy to idle are written down: the reply follows from them, and nothing is missing."""
    for kind, content in (
        ("status", {"execution_state": "busy"}),
        ("execute_input", {"execution_count": 7, "code": "x"}),
        ("error", {"ename": "KeyError", "evalue": "x", "traceback": []}),
        ("status", {"execution_state": "idle"}),
    ):
        story.past.inferred.on_iopub("a", VOICE.compose(kind, content, story.headers["a"]))
    story.forget("b")
    story.wait()
    story.answer()
    assert [(parent, kind) for parent, kind, _ in story.journal.said] == [("a", "execute_reply")]
    (reply,) = [content for _, _, content in story.journal.said]
    assert (reply["status"], reply["ename"], reply["execution_count"]) == ("error", "KeyError", 7)


def test_an_idle_that_comes_a_moment_after_the_answer_is_no_second_one(story):
    """They come by two sockets: the answer may be the quicker one."""
    story.adoption.on_kernel_info(Child())
    story.hear("a", "status", execution_state="idle")
    story.reactor.timers.pop()()
    assert story.kinds("a") == ["stream", "error", "execute_reply"]


def test_a_cell_that_begins_right_after_the_answer_is_not_taken_for_one_before_it(story):
    """Its busy comes while what was published before the answer may still be on its way."""
    story.hear("a", "status", execution_state="idle")
    story.adoption.on_question_reached()
    story.adoption.on_kernel_info(Child())
    story.hear("b", "status", execution_state="busy")
    story.reactor.timers.pop()()
    assert story.kinds("a") == ["stream", "error", "execute_reply"]
    assert story.kinds("b") == []
    story.hear("b", "stream", name="stdout", text="one")
    story.hear("b", "status", execution_state="idle")
    story.reply("b")
    story.answer()
    assert story.kinds("b") == []


def test_a_cell_whose_idle_was_heard_gets_no_other(story):
    """It had begun before the death: its reply is lost, and what its reply was is not known."""
    story.hear("a", "status", execution_state="idle")
    story.answer()
    assert story.kinds("a") == ["stream", "error", "execute_reply"]


def test_a_reply_proves_no_outputs(story):
    """It came to the new evaluator before that heard what was published: the cell is told."""
    story.reply("a")
    assert story.told() == [("a", False)]
    story.hear("a", "status", execution_state="idle")
    story.forget("b")
    story.answer()
    assert story.kinds("a") == ["stream"]


def test_a_cell_whose_idle_is_heard_and_whose_reply_was_lost_gets_one_before_the_next_reply(story):
    """Replies come in order: that of the first was sent to an evaluator that was dead."""
    story.hear("a", "status", execution_state="idle")
    story.hear("b", "status", execution_state="busy")
    story.reply("b")
    assert story.kinds("a")[-2:] == ["error", "execute_reply"]
    assert not story.requests.get("a")
    assert story.kinds("b") == []


def test_a_reply_that_was_lost_is_what_the_outputs_say_where_all_were_heard(story):
    story.past.inferred.idle.add("a")
    story.past.inferred.replies["a"] = {"status": "ok"}
    story.requests.on_state("a", "idle")
    story.reply("b")
    assert story.kinds("a") == ["execute_reply"]


def test_a_reply_whose_idle_nobody_heard_gets_one(story):
    """After two answers of the child nothing more comes: the cell ends all the same, once."""
    story.reply("a")
    for _ in range(2):
        story.answer()
    assert story.kinds("a") == ["stream", "status"]


def test_a_reply_whose_idle_was_said_before_anybody_listened_gets_one(story):
    """The next cell is heard from its begin: the one before will say nothing any more."""
    story.reply("a")
    story.hear("b", "status", execution_state="busy")
    assert story.kinds("a") == ["stream", "status"]
    story.hear("b", "status", execution_state="idle")
    story.reply("b")
    assert story.kinds("b") == []
    story.answer()
    story.answer()
    assert story.kinds("a") == ["stream", "status"]


def test_a_cell_that_was_heard_from_its_begin_needs_no_word(story):
    story.hear("b", "status", execution_state="busy")
    story.reply("b")
    assert story.told() == []


def test_an_interrupt_that_died_with_its_evaluator_is_carried_out(story):
    """The kernel answers nobody for so long: it is at that cell, and nothing stands behind it."""
    carried_out = []
    story.adoption.on_lost_interrupt = lambda cell, number: carried_out.append((cell.id, number))
    story.past.interrupted = {"a": 7}
    story.wait()
    story.wait()
    assert carried_out == []  # another cell is in the kernel's queue: it might be hit
    story.forget("b")
    story.wait()
    story.wait()
    assert carried_out == [("a", 7)]


def test_what_is_heard_of_a_cell_that_was_interrupted_needs_no_other_interrupt(story):
    carried_out = []
    story.adoption.on_lost_interrupt = lambda cell, number: carried_out.append(cell.id)
    story.past.interrupted = {"a": 7}
    story.forget("b")
    story.hear("a", "stream", name="stdout", text="one")
    story.wait()
    assert carried_out == []
