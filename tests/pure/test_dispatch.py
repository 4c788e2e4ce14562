"""Requests reach the kernel in the order in which they came, whatever disk and kernel do."""

from __future__ import annotations

import json
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.evaluator.kernel_output import KernelOutputHandler
from remoter_kernel.evaluator.listener import Client
from remoter_kernel.evaluator.message_writer import MessageWriter
from remoter_kernel.evaluator.recovery import DISPATCHED
from remoter_kernel.evaluator.request_handler import RequestHandler
from remoter_kernel.protocol.frames import (
    Channel,
    FrameHeader,
    Lane,
    MessageType,
    pack_parts,
    to_json,
    unpack_parts,
)
from remoter_kernel.protocol.messages import (
    CONTENT,
    HEADER,
    PARENT,
    MessageSigner,
    content_of,
    header_of,
    read_message,
)
from remoter_kernel.protocol.requests import Stage
from remoter_kernel.protocol.stream import MemoryOutbox, ReliableStream

ME, OTHER = b"client-1", b"client-2"
VOICE = MessageSigner(b"")


class Disk:
    """A journal whose writes come to an end when the test says so, in order."""

    def __init__(self) -> None:
        self.thens: deque = deque()
        self.held: list[str] = []  # ids of what is written as held
        self.marks: list[str] = []
        self.said: list[tuple[str, str, dict]] = []  # parent, type, content

    def append(self, _channel, body, *, then=None, is_from_client=False, is_held=False, **_):
        self.thens.append(then)
        parts = unpack_parts(body)
        if is_held:
            self.held.append(header_of(parts[HEADER])["msg_id"])
        if not is_from_client and len(parts) > CONTENT:
            parent = header_of(parts[PARENT]).get("msg_id", "")
            self.said.append((parent, header_of(parts[HEADER])["msg_type"], content_of(parts)))

    def append_marker(self, words, then):
        assert words["mark"] == DISPATCHED
        self.marks.append(words["request"])
        self.thens.append(then)

    def write(self, count: int = 10**6) -> None:
        """Let so many records be written."""
        while self.thens and count:
            count -= 1
            then = self.thens.popleft()
            if then:
                then()


class Kernel:
    """Gets what it is given, while it is there."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.is_there = True
        self.interrupts = 0

    def send(self, _channel, parts) -> None:
        self.got.append(header_of(parts[HEADER])["msg_id"])

    def interrupt(self) -> None:
        self.interrupts += 1


class Evaluator:
    """The desk and the ear, with everything around them made up."""

    def __init__(self) -> None:
        self.disk, self.kernel = Disk(), Kernel()
        self.timers: list = []
        door: Any = SimpleNamespace(
            reactor=SimpleNamespace(call_later=self._later),
            limit_output=lambda _cells: None,
            flush_now=False,
        )
        session: Any = SimpleNamespace(id="7f3a9c")
        journal: Any = self.disk
        door.journal = journal
        self.speaker = MessageWriter(journal)
        self.desk = RequestHandler(session, door, self.speaker)
        self.desk.kernel_for = self._child
        self.ear = KernelOutputHandler(self.desk, None)
        self.requests = self.desk.requests
        self.clients = {
            name: Client(name, MemoryOutbox(), ReliableStream(MemoryOutbox()))  # type: ignore[arg-type]
            for name in (ME, OTHER)
        }
        self.number = 0

    def _later(self, _seconds, call) -> Any:
        self.timers.append(call)
        return SimpleNamespace(cancel=lambda: None)

    def _child(self, _channel) -> Any:
        return self.kernel if self.kernel.is_there else None

    def ask(self, name: str, kind: str = "execute_request", **options: Any) -> None:
        self.number += 1
        client = options.pop("client", ME)
        channel = options.pop("channel", Channel.SHELL)
        header = {"msg_type": kind, "msg_id": name, **options.pop("header", {})}
        body = pack_parts([b"", *(json.dumps(each).encode() for each in (header, {}, {}, options))])
        self.desk.on_item(
            self.clients[client], FrameHeader(MessageType.ITEM, channel, self.number), body
        )

    def order(self, order: str, client: bytes = ME, cells: tuple[str, ...] = ()) -> None:
        self.number += 1
        body = pack_parts([to_json({"order": order, "cells": list(cells)})])
        head = FrameHeader(MessageType.ITEM, Channel.COMMAND, self.number, barrier=self.number - 1)
        self.desk.on_item(self.clients[client], head, body)

    def be_there(self) -> None:
        self.kernel.is_there = True
        self.desk.dispatcher.dispatch_waiting()

    def hear(self, channel: Channel, kind: str, parent: str, **content: Any) -> None:
        parts = VOICE.compose(kind, content, {"msg_id": parent})
        self.ear.on_message(read_message(channel, parts))

    def state(self, name: str, state: str) -> None:
        self.hear(Channel.IOPUB, "status", name, execution_state=state)

    def told(self, name: str) -> list[str]:
        return [
            content.get("execution_state") or kind
            for parent, kind, content in self.disk.said
            if parent == name
        ]


@pytest.fixture
def evaluator() -> Evaluator:
    return Evaluator()


def test_a_cell_that_comes_at_the_moment_of_readiness_does_not_overtake(evaluator):
    """The one before came while the kernel was starting, and is not written yet."""
    evaluator.kernel.is_there = False
    evaluator.ask("a = 2")
    evaluator.be_there()
    evaluator.ask("b = a + 1")
    while evaluator.disk.thens:
        evaluator.disk.write(1)
    assert evaluator.kernel.got == ["a = 2", "b = a + 1"]
    assert evaluator.disk.held == evaluator.disk.marks == ["a = 2", "b = a + 1"]


def test_a_cell_that_comes_at_the_end_of_an_interrupt_does_not_overtake(evaluator):
    evaluator.ask("runs")
    evaluator.disk.write()
    evaluator.state("runs", "busy")
    evaluator.order("interrupt", client=OTHER, cells=("runs",))
    evaluator.ask("first")
    evaluator.hear(Channel.SHELL, "execute_reply", "runs", status="error")
    evaluator.timers[-1]()
    evaluator.ask("second")
    while evaluator.disk.thens:
        evaluator.disk.write(1)
    assert evaluator.kernel.got == ["runs", "first", "second"]


def test_a_cell_whose_reply_an_interrupt_has_taken_is_answered_and_others_go_on(evaluator):
    """A kernel that is interrupted as a cell ends may be done with it, and give no reply."""
    evaluator.ask("ends")
    evaluator.disk.write()
    evaluator.state("ends", "busy")
    evaluator.order("interrupt", cells=("ends",))
    evaluator.ask("sent before", client=OTHER)
    evaluator.state("ends", "idle")
    evaluator.timers.pop()()
    evaluator.disk.write()
    assert evaluator.told("ends") == ["busy", "idle", "execute_reply"]
    assert evaluator.disk.said[-1][2]["ename"] == "KeyboardInterrupt"
    assert evaluator.kernel.got == ["ends", "sent before"]
    assert not evaluator.desk.interrupts.is_under_way


def test_a_reply_that_comes_after_the_idle_is_the_only_one(evaluator):
    evaluator.ask("cell")
    evaluator.disk.write()
    evaluator.state("cell", "busy")
    evaluator.order("interrupt", cells=("cell",))
    evaluator.state("cell", "idle")
    evaluator.hear(Channel.SHELL, "execute_reply", "cell", status="error")
    for timer in evaluator.timers:
        timer()
    assert evaluator.told("cell") == ["busy", "idle", "execute_reply"]
    assert not evaluator.desk.interrupts.is_under_way


def test_an_interrupt_is_for_the_cell_that_runs_and_not_for_one_that_lost_its_reply(evaluator):
    evaluator.ask("lost")
    evaluator.disk.write()
    evaluator.state("lost", "busy")
    evaluator.state("lost", "idle")
    evaluator.ask("runs")
    evaluator.disk.write()
    evaluator.state("runs", "busy")
    evaluator.order("interrupt", cells=("runs",))
    evaluator.ask("waits", client=OTHER)
    evaluator.hear(Channel.SHELL, "execute_reply", "runs", status="error")
    evaluator.timers[-1]()
    evaluator.disk.write()
    assert evaluator.kernel.got == ["lost", "runs", "waits"]


def test_an_interrupt_of_a_cell_that_ends_without_a_reply_holds_nobody_back(evaluator):
    for name in ("first", "second"):
        evaluator.ask(name)
    evaluator.disk.write()
    evaluator.state("first", "busy")
    evaluator.order("interrupt", cells=("first",))
    evaluator.requests.move(evaluator.requests.get("first"), Stage.DONE, "no reply")
    evaluator.timers[-1]()
    assert not evaluator.desk.interrupts.is_under_way


def test_two_clients_that_ask_at_the_moment_of_readiness_are_served_in_order(evaluator):
    evaluator.kernel.is_there = False
    for number in range(20):
        evaluator.ask(f"{number}", client=(ME, OTHER)[number % 2])
        if number == 9:
            evaluator.disk.write(5)
            evaluator.be_there()
    evaluator.disk.write()
    assert evaluator.kernel.got == [str(number) for number in range(20)]


def test_nothing_is_given_away_before_the_journal_says_that_it_may_have_been(evaluator):
    evaluator.kernel.is_there = False
    evaluator.ask("one")
    evaluator.disk.write()
    evaluator.be_there()
    assert (evaluator.kernel.got, evaluator.disk.marks) == ([], ["one"])
    evaluator.disk.write()
    assert evaluator.kernel.got == ["one"]


def test_a_subshell_waits_for_no_interrupt(evaluator):
    evaluator.ask("runs")
    evaluator.disk.write()
    evaluator.order("interrupt", cells=("runs",))
    evaluator.ask("waits")
    evaluator.ask("subshell", header={"subshell_id": "s"})
    evaluator.disk.write()
    assert evaluator.kernel.got == ["runs", "subshell"]


def test_an_answer_to_a_prompt_of_a_kernel_that_is_gone_is_for_no_other_kernel(evaluator):
    evaluator.kernel.is_there = False
    evaluator.ask("answer", "input_reply", channel=Channel.STDIN)
    evaluator.disk.write()
    evaluator.be_there()
    assert (evaluator.kernel.got, len(evaluator.requests)) == ([], 0)


def test_an_interrupt_takes_out_what_waits_and_what_is_behind_it(evaluator):
    evaluator.kernel.is_there = False
    for name in ("one", "two"):
        evaluator.ask(name)
    evaluator.ask("goes on", stop_on_error=False)
    evaluator.ask("of another", client=OTHER)
    evaluator.disk.write()
    evaluator.order("interrupt")
    assert evaluator.told("one") == ["busy", "error", "execute_reply", "idle"]
    assert evaluator.told("two") == ["busy", "execute_reply", "idle"]
    evaluator.be_there()
    evaluator.disk.write()
    assert evaluator.kernel.got == ["goes on", "of another"]


def test_an_interrupt_that_comes_first_takes_out_what_was_sent_before_it(evaluator):
    """It travels by another lane, and overtakes."""
    body = pack_parts([to_json({"order": "interrupt", "cells": ["late"]})])
    evaluator.desk.on_item(
        evaluator.clients[ME], FrameHeader(MessageType.ITEM, Channel.COMMAND, 1, barrier=1), body
    )
    evaluator.ask("late")
    evaluator.disk.write()
    assert evaluator.kernel.got == []
    assert evaluator.told("late") == ["busy", "error", "execute_reply", "idle"]


@pytest.mark.parametrize("does_stop", [True, False])
@pytest.mark.parametrize("is_late", [True, False])
def test_nothing_that_was_sent_before_a_restart_runs_in_the_fresh_kernel(
    evaluator, does_stop, is_late
):
    """Not even a cell that no error before it calls off."""
    evaluator.kernel.is_there = False
    if is_late:
        body = pack_parts([to_json({"order": "restart"})])
        head = FrameHeader(MessageType.ITEM, Channel.COMMAND, 1, barrier=1)
        evaluator.desk.on_item(evaluator.clients[ME], head, body)
        evaluator.ask("before", stop_on_error=does_stop)
    else:
        evaluator.ask("before", stop_on_error=does_stop)
        evaluator.disk.write()
        evaluator.order("restart")
    evaluator.be_there()
    evaluator.ask("after", stop_on_error=does_stop)
    evaluator.disk.write()
    assert evaluator.kernel.got == ["after"]
    assert evaluator.told("before") == ["busy", "execute_reply", "idle"]


def test_an_idle_that_was_said_in_the_kernels_place_is_not_passed_on_when_it_comes(evaluator):
    """A cell that ended without its kernel, as far as clients know, may go on there."""
    evaluator.ask("cell")
    evaluator.disk.write()
    evaluator.state("cell", "busy")
    evaluator.desk.fail_all("OutputsMissing", "Its reply is missing.")
    evaluator.state("cell", "idle")
    evaluator.state("cell", "busy")
    assert evaluator.told("cell") == ["busy", "error", "execute_reply", "idle"]


@pytest.mark.parametrize("is_cut", [True, False])
def test_only_a_kernel_that_was_killed_may_have_had_more_to_say(evaluator, is_cut):
    for name in ("replied", "running", "waits"):
        evaluator.ask(name)
    evaluator.disk.write()
    evaluator.state("replied", "busy")
    evaluator.hear(Channel.SHELL, "execute_reply", "replied", status="ok")
    evaluator.desk.fail_all("KernelDied", "It died.", is_cut=is_cut)
    said = ["stream"] * is_cut
    assert evaluator.told("replied") == ["busy", "execute_reply", "stream", "idle"]
    # That it has begun may be among what nobody heard.
    assert evaluator.told("running") == ["busy", *said, "error", "execute_reply", "idle"]
    assert evaluator.told("waits") == ["busy", "error", "execute_reply", "idle"]
    assert len(evaluator.requests) == 0


def test_a_kernel_that_says_everything_twice_is_heard_once(evaluator):
    evaluator.ask("cell")
    evaluator.disk.write()
    for _ in range(2):
        evaluator.state("cell", "busy")
    for _ in range(2):
        evaluator.hear(Channel.SHELL, "execute_reply", "cell", status="ok")
    for _ in range(2):
        evaluator.state("cell", "idle")
    assert evaluator.told("cell") == ["busy", "execute_reply", "idle"]


def test_a_kernel_cannot_answer_what_it_was_not_given(evaluator):
    evaluator.kernel.is_there = False
    evaluator.ask("held")
    evaluator.disk.write()
    evaluator.hear(Channel.SHELL, "execute_reply", "held", status="ok")
    evaluator.hear(Channel.STDIN, "input_request", "held", prompt="Password:")
    assert evaluator.told("held") == []
    evaluator.be_there()
    evaluator.disk.write()
    assert evaluator.kernel.got == ["held"]


def test_a_kernel_is_at_nothing_that_it_was_not_given(evaluator):
    evaluator.kernel.is_there = False
    evaluator.ask("cell")
    evaluator.ask("comm", "comm_msg")
    evaluator.disk.write()
    for name in ("cell", "comm"):
        evaluator.state(name, "busy")
        evaluator.state(name, "idle")
    assert evaluator.told("cell") == []
    evaluator.be_there()
    evaluator.disk.write()
    assert evaluator.kernel.got == ["cell", "comm"]


def test_an_output_that_says_idle_is_no_idle(evaluator):
    evaluator.ask("cell")
    evaluator.disk.write()
    evaluator.state("cell", "busy")
    evaluator.hear(Channel.IOPUB, "display_data", "cell", data={"text/plain": '"idle"'})
    evaluator.hear(Channel.SHELL, "execute_reply", "cell", status="ok")
    assert [each.stage for each in evaluator.requests] == [Stage.REPLIED]


def test_ten_thousand_messages_of_widgets_leave_nothing(evaluator):
    for number in range(10_000):
        evaluator.ask(f"comm {number}", "comm_msg")
        evaluator.disk.write()
        evaluator.state(f"comm {number}", "busy")
        evaluator.state(f"comm {number}", "idle")
    assert (len(evaluator.requests), len(evaluator.kernel.got)) == (0, 10_000)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from([ME, OTHER]), st.booleans()),
        st.tuples(st.just("write"), st.integers(1, 4)),
        st.tuples(st.just("kernel"), st.booleans()),
        st.tuples(st.just("interrupt"), st.sampled_from([ME, OTHER])),
        st.tuples(st.just("timer")),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_happens_order_is_kept_and_each_cell_runs_or_is_answered_once(steps):
    evaluator = Evaluator()
    for at, (what, *words) in enumerate(steps):
        if what == "ask":
            evaluator.ask(f"{at:02}", client=words[0], stop_on_error=words[1])
        elif what == "write":
            evaluator.disk.write(words[0])
        elif what == "kernel":
            evaluator.kernel.is_there = words[0]
            evaluator.desk.dispatcher.dispatch_waiting()
        elif what == "interrupt":
            evaluator.order("interrupt", client=words[0])
        elif evaluator.timers:
            evaluator.timers.pop(0)()
    evaluator.be_there()
    while evaluator.disk.thens or evaluator.timers:
        evaluator.disk.write()
        while evaluator.timers:
            evaluator.timers.pop(0)()
    asked = {f"{at:02}" for at, step in enumerate(steps) if step[0] == "ask"}
    got = evaluator.kernel.got
    answered = [name for name, kind, _ in evaluator.disk.said if kind == "execute_reply"]
    assert got == sorted(set(got))
    assert sorted(got + answered) == sorted(asked)
    assert Lane.BULK in evaluator.clients[ME].stream.acked
