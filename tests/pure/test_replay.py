"""What a new evaluator learns from the journal of one that died."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.evaluator.records import EVERYONE, Record, marker
from remoter_kernel.evaluator.recovery import DISPATCHED, RecoveredState
from remoter_kernel.protocol.frames import Channel, Lane, pack_parts, to_json
from remoter_kernel.protocol.requests import Stage

ME, OTHER = b"front--1", b"front--2"


def message(kind: str, name: str = "", parent: str = "", **content: Any) -> bytes:
    """Return a message's parts as they are written."""
    words = ({"msg_type": kind, "msg_id": name}, {"msg_id": parent} if parent else {}, {}, content)
    return pack_parts([b"", *(json.dumps(each).encode() for each in words)])


class Story:
    """A journal as it grows, and the past that it tells."""

    def __init__(self) -> None:
        self.past = RecoveredState()
        self.number = 0

    def tell(self, channel: Channel, body: bytes, **options: Any) -> None:
        self.number += 1
        front = options.pop("front", ME)
        is_from_front = bool(options.get("client_number"))
        record = Record(
            self.number, channel, is_from_front, front, body, 100.0 + self.number, **options
        )
        self.past.apply(record)

    def ask(self, name: str, own: int, kind: str = "execute_request", **options: Any) -> None:
        self.tell(Channel.SHELL, message(kind, name), client_number=own, **options)

    def busy(self, name: str) -> None:
        self.state(name, "busy")

    def state(self, name: str, state: str) -> None:
        body = message("status", parent=name, execution_state=state)
        self.tell(Channel.IOPUB, body, front=EVERYONE)

    def reply(self, name: str) -> None:
        self.tell(Channel.SHELL, message("execute_reply", parent=name, status="ok"))

    def hand_over(self, name: str) -> None:
        self.number += 1
        self.past.apply(marker(self.number, 0.0, {"mark": DISPATCHED, "request": name}))

    def shorten(self, name: str) -> None:
        """Have the states of a cell gone, to make room."""
        self.number += 1
        words = {"mark": "shortened", "what": "status", "cell": name}
        self.past.apply(marker(self.number, 0.0, words))


def asked(story: Story) -> list[str]:
    """List what the kernel has and has not replied to."""
    return [each.id for each in story.past.requests.at(Stage.SENT, Stage.RUNNING)]


def ending(story: Story) -> list[str]:
    """List what has its reply, and no idle."""
    return [each.id for each in story.past.requests.at(Stage.REPLIED)]


def waiting(story: Story) -> list[str]:
    """List what the kernel has not got."""
    return [each.id for each in story.past.requests.at(Stage.HELD)]


@pytest.fixture
def story() -> Story:
    """Nothing said yet."""
    return Story()


def test_a_request_without_a_reply_may_have_run(story):
    """It was handed over as soon as it was written; with its reply it is done."""
    story.ask("a", 1)
    story.ask("b", 2)
    story.busy("a")
    assert (asked(story), story.past.started) == (["a", "b"], {"a"})
    story.reply("a")
    assert (asked(story), story.past.started) == (["b"], set())
    (request,) = story.past.requests.at(Stage.SENT)
    assert (request.client, request.number) == (ME, 2)


def test_a_reply_without_an_idle_is_no_end(story):
    """They come by two sockets: what an evaluator died between is not over."""
    story.ask("a", 1)
    story.ask("b", 2)
    story.busy("a")
    story.reply("a")
    assert (asked(story), ending(story)) == (["b"], ["a"])
    story.busy("b")  # so the child was done with the one before, whatever was heard of that
    assert ending(story) == []
    story.state("b", "idle")
    story.reply("b")
    assert (asked(story), ending(story)) == ([], [])


def test_a_held_request_is_handed_over_unless_a_mark_says_that_it_was(story):
    """Only what the child cannot have got is handed to it by another evaluator."""
    for own, name in enumerate("abc", 1):
        story.ask(name, own, is_held=True)
    story.hand_over("a")
    story.reply("b")  # an interrupt, say
    assert (asked(story), waiting(story)) == (["a"], ["c"])


def test_an_id_that_is_used_twice_is_handed_over_twice(story):
    for own in (1, 2):
        story.ask("same", own, is_held=True)
    story.hand_over("same")
    assert (len(asked(story)), len(waiting(story))) == (1, 1)
    story.hand_over("same")
    assert (len(asked(story)), len(waiting(story))) == (2, 0)


@pytest.mark.parametrize("is_running", [True, False])
def test_a_cell_whose_states_went_to_make_room_has_ended_once_the_kernel_is_at_a_later_one(
    story, is_running
):
    for own in (1, 2, 3):
        story.ask(f"{own}", own)
        if own < 3:
            story.shorten(f"{own}")
            story.reply(f"{own}")
    if is_running:
        story.tell(Channel.IOPUB, message("stream", parent="3"), front=EVERYONE)
    else:
        story.reply("3")
    assert ending(story) == ([] if is_running else ["3"])


def test_a_cell_whose_idle_may_be_still_to_come_has_not_ended(story):
    for own in (1, 2):
        story.ask(f"{own}", own)
        story.reply(f"{own}")
    assert ending(story) == ["1", "2"]


def test_a_widgets_message_gets_no_reply_and_is_not_missed(story):
    """What has no reply by its nature is not waited for."""
    story.ask("a", 1, kind="comm_msg")
    story.ask("b", 2, kind="comm_msg", is_held=True)
    assert (asked(story), waiting(story)) == ([], ["b"])
    story.hand_over("b")
    assert list(story.past.requests) == []


def test_whom_the_child_sounds_like_is_what_was_noted_last(story):
    """A restarted child has another session."""
    for name in ("first", "second"):
        note = {"event": "ready", "session": name, "kernel_info": {"implementation": "x"}}
        story.tell(Channel.EVENT, pack_parts([to_json(note)]), front=EVERYONE)
    story.tell(Channel.EVENT, pack_parts([to_json({"event": "died", "why": ""})]), front=EVERYONE)
    assert story.past.kernel["session"] == "second"
    assert story.past.time == 103.0


ITEMS = st.lists(
    st.tuples(st.sampled_from([ME, OTHER]), st.sampled_from(Channel), st.binary(max_size=20))
)


@given(ITEMS)
def test_how_far_each_front_was_is_known_and_nothing_raises(drawn):
    """The highest number of each lane of each proxy, whatever the bodies are."""
    story, seen = Story(), {}
    for own, (front, channel, body) in enumerate(drawn, 1):
        story.tell(channel, body, client_number=own, front=front)
        lane = Lane.BULK if channel in {0, 3, 4} else Lane.URGENT
        seen.setdefault(front, dict.fromkeys(Lane, 0))[lane] = own
    assert story.past.seen == seen


def test_the_last_interrupt_is_known_with_its_clients_number(story):
    story.ask("a", 1)
    order = pack_parts([to_json({"order": "interrupt", "cells": ["a"]})])
    story.tell(Channel.COMMAND, order, client_number=2)
    assert story.past.interrupted == {"a": 2}
    story.tell(Channel.COMMAND, pack_parts([to_json({"order": "keep"})]), client_number=3)
    assert story.past.interrupted == {"a": 2}


@pytest.mark.parametrize("command", ["restart", "stop"])
def test_a_command_is_unfinished_until_a_kernel_is_ready_or_much_time_has_passed(story, command):
    """Its evaluator may have died while the kernel was to end for it."""
    told = pack_parts([to_json({"order": command})])
    assert story.past.unfinished == ""
    story.tell(Channel.COMMAND, told, client_number=1)
    story.state("a", "idle")
    assert story.past.unfinished == command
    story.tell(Channel.EVENT, pack_parts([to_json({"event": "ready"})]), front=EVERYONE)
    assert story.past.unfinished == ""
    story.tell(Channel.COMMAND, told, client_number=2)
    for _ in range(40):  # a second each
        story.state("a", "idle")
    assert story.past.unfinished == ""
