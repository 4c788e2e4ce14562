"""What a kernel says is handed on in its order, to the end, and odd words of it harm nobody."""

from __future__ import annotations

import itertools
import json
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from remoter_kernel.evaluator.kernel_process import KernelProcess
from remoter_kernel.protocol.messages import (
    CONTENT,
    HEADER,
    PARENT,
    KernelMessage,
    MessageSigner,
    content_of,
    header_of,
)
from remoter_kernel.protocol.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from remoter_kernel.protocol.frames import Bytes

WITHIN = 20.0  # seconds
MANY = 3000


class Kernel:
    """A kernel's sockets, played by the test: answers who it is, else says what it is told to."""

    def __init__(self, reactor: Reactor, child: KernelProcess) -> None:
        manager = child.manager
        self.reactor = reactor
        self.voice = MessageSigner(manager.session.key)
        self.context = zmq.Context()
        self.answers = 1  # to each question who it is
        self.asked = 0
        kinds = {"iopub": zmq.PUB, "shell": zmq.ROUTER, "control": zmq.ROUTER, "stdin": zmq.ROUTER}
        self.sockets = {name: self.context.socket(kind) for name, kind in kinds.items()}
        for name, handle in self.sockets.items():
            handle.sndhwm = 0
            handle.bind(f"tcp://127.0.0.1:{getattr(manager, f'{name}_port')}")
        reactor.add_reader(self.sockets["shell"], self._hear)

    def _hear(self) -> None:
        identity, *frames = self.sockets["shell"].recv_multipart()
        _, parts = self.voice.check([identity, *frames])
        header = header_of(parts[HEADER])
        if header["msg_type"] == "kernel_info_request":
            self.asked += 1
            self.publish("status", {"execution_state": "busy"}, header)
            for _ in range(self.answers):
                self.say("shell", "kernel_info_reply", {"number": self.asked}, header)

    def publish(self, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        parts = self.voice.compose(kind, content, parent)
        self.sockets["iopub"].send_multipart([kind.encode(), *self.voice.sign(parts)])

    def say(self, socket: str, kind: str, content: Any, parent: dict[str, Any]) -> None:
        parts = self.voice.compose(kind, content, parent)
        self.sockets[socket].send_multipart([b"session", *self.voice.sign(parts)])

    def say_odd(self, socket: str, parts: list[Bytes]) -> None:
        first = b"topic" if socket == "iopub" else b"session"
        self.sockets[socket].send_multipart([first, *self.voice.sign(parts)])

    def end(self) -> None:
        self.reactor.remove_reader(self.sockets["shell"])
        for handle in self.sockets.values():
            handle.close(linger=1000)

    def close(self) -> None:
        self.end()
        self.context.term()


class Story:
    """An evaluator's child and its kernel, and what was heard, in order."""

    def __init__(self, reactor: Reactor, folder: Path) -> None:
        self.reactor = reactor
        self.heard: list[str] = []
        self.ready: list[dict[str, Any]] = []
        self.child = child = KernelProcess(reactor, folder, "python3", b"session")
        child.client.on_message = self._hear
        child.on_ready = lambda _header, info: self.ready.append(info)
        child.on_exit = lambda words: self.heard.append(f"exit {words['status']}")
        child.manager.connection_file = str(folder / "connection.json")
        child.manager.write_connection_file()
        self.kernel = Kernel(reactor, child)
        child._connector.connect()

    def _hear(self, message: KernelMessage) -> None:
        kind, content = message.type, content_of(message.parts)
        self.heard.append(" ".join([kind, *map(str, content.values())]))

    def until(self, is_so: Callable[[], bool]) -> None:
        self.reactor.run_until(is_so, time.monotonic() + WITHIN)
        assert is_so(), self.heard[-5:]

    def until_said(self, word: str) -> None:
        self.until(lambda: word in self.heard)

    def wait_unheard(self) -> None:
        """Wait until all that the kernel has said is here, without hearing any of it."""
        poller = zmq.Poller()
        for handle in self.kernel.sockets.values():
            poller.register(handle, zmq.POLLIN)
        poller.poll(300)  # nothing comes to a kernel: this is the time

    def request(self, name: str = "a") -> dict[str, Any]:
        return {"msg_id": name, "msg_type": "execute_request", "session": "client"}


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    """A child that has met its kernel."""
    with closing(Reactor()) as reactor:
        story = Story(reactor, tmp_path)
        try:
            story.until(lambda: bool(story.ready))
            yield story
        finally:
            story.kernel.close()
            story.child.close()


def numbered(many: int = MANY) -> list[str]:
    return [f"display_data {number}" for number in range(many)]


def publish_many(story: Story, request: dict[str, Any], many: int = MANY) -> None:
    for number in range(many):
        story.kernel.publish("display_data", {"number": number}, request)


@pytest.mark.parametrize("has_idle", [True, False])
def test_a_reply_comes_after_all_that_was_published_before_it(story: Story, has_idle):
    """Also where the evaluator was held up; meanwhile others get their turn."""
    request, turns = story.request(), []
    publish_many(story, request)
    story.kernel.say("shell", "execute_reply", {"status": "ok"}, request)
    if has_idle:
        story.kernel.publish("status", {"execution_state": "idle"}, request)
    story.wait_unheard()
    story.reactor.call_later(0, lambda: turns.append(len(story.heard)))
    story.until(lambda: "execute_reply ok" in story.heard)
    story.until(lambda: len(story.heard) == MANY + 1 + has_idle)
    assert story.heard == [*numbered(), "execute_reply ok", *has_idle * ["status idle"]]
    assert turns[0] < MANY


def test_the_kernel_tells_when_it_is_at_our_question_between_what_comes_before_and_after(
    story: Story,
):
    """On iopub: the answer comes by another socket, earlier or later than both."""
    story.child.client.on_question_reached = lambda: story.heard.append("reached")
    story.kernel.publish("status", {"execution_state": "idle"}, story.request("a"))
    story.child.resend_kernel_info()
    story.until_said("reached")
    story.kernel.publish("status", {"execution_state": "busy"}, story.request("b"))
    story.until_said("status busy")
    assert story.heard == ["status idle", "reached", "status busy"]


def test_a_question_comes_after_what_was_printed_before_it(story: Story):
    """It has no idle."""
    publish_many(story, story.request())
    story.kernel.say("stdin", "input_request", {"prompt": "?"}, story.request())
    story.wait_unheard()
    story.until_said("input_request ?")
    assert story.heard == [*numbered(), "input_request ?"]


@pytest.mark.parametrize("socket", ["shell", "stdin"])
def test_silence_ends_nothing_while_the_system_holds_some_of_it(story: Story, monkeypatch, socket):
    """What a full buffer dropped is sent again, after a while without a word."""
    holds = [True]
    asked: list[tuple[int, int]] = []

    def is_on_its_way(sender: int, receiver: int) -> bool:
        asked.append((sender, receiver))
        return holds[0]

    monkeypatch.setattr("remoter_kernel.protocol.kernel_client.has_bytes_in_flight", is_on_its_way)
    earlier = story.kernel.voice.compose("display_data", {"number": 1}, story.request())
    story.kernel.say(socket, "some_reply", {"status": "ok"}, story.request())
    story.until(lambda: len(asked) > 2)
    story.kernel.say_odd("iopub", earlier)
    story.until_said("display_data 1")
    holds[0] = False
    story.until_said("some_reply ok")
    assert story.heard == ["display_data 1", "some_reply ok"]
    assert {sender for sender, _ in asked} <= {story.child.manager.iopub_port}


def test_an_idle_before_its_reply_holds_that_up_for_no_time(story: Story):
    """Either order is in the protocol."""
    story.kernel.publish("status", {"execution_state": "idle"}, story.request())
    story.until_said("status idle")
    begun = time.monotonic()
    story.kernel.say("shell", "execute_reply", {"status": "ok"}, story.request())
    story.until_said("execute_reply ok")
    assert time.monotonic() - begun < 0.04


@pytest.mark.parametrize("socket", ["shell", "stdin"])
def test_a_kernel_that_publishes_without_end_holds_no_reply_back(story: Story, socket):
    """What it publishes after the reply is later than that, by its own clock."""
    numbers = itertools.count()

    def flood() -> None:
        for _ in range(300):
            story.kernel.publish("display_data", {"number": next(numbers)}, story.request("b"))
        story.reactor.call_later(0.001, flood)

    publish_many(story, story.request())
    story.kernel.say(socket, "some_reply", {"status": "ok"}, story.request())
    flood()
    begun = time.monotonic()
    story.until_said("some_reply ok")
    assert time.monotonic() - begun < 5
    assert story.heard[: MANY + 1] == [*numbered(), "some_reply ok"]


def test_a_kernel_without_a_clock_that_publishes_without_end_holds_no_reply_back_for_ever(
    story: Story, monkeypatch
):
    """The last bound is a time."""
    monkeypatch.setattr("remoter_kernel.protocol.kernel_client.REPLY_WITHIN", 0.3)

    def flood() -> None:
        parts = story.kernel.voice.compose("display_data", {"number": 0}, story.request("b"))
        parts[HEADER] = json.dumps({"msg_type": "display_data"}).encode()
        story.kernel.say_odd("iopub", parts)
        story.reactor.call_later(0.001, flood)

    flood()
    story.kernel.say("shell", "execute_reply", {"status": "ok"}, story.request())
    story.until_said("execute_reply ok")


def end(story: Story, status: int = 0) -> None:
    """Let the warden tell that the process has ended."""
    story.child._warden = object()  # type: ignore[assignment]
    story.child._on_warden_message({"status": status})


def test_all_that_a_kernel_said_before_its_end_comes_before_the_news_of_it(story: Story):
    """Its outputs, then its reply, then its end."""
    publish_many(story, story.request())
    story.kernel.say("shell", "execute_reply", {"status": "ok"}, story.request())
    story.kernel.end()
    end(story)
    story.until_said("exit 0")
    assert story.heard == [*numbered(), "execute_reply ok", "exit 0"]


def test_what_a_kernel_leaves_behind_may_keep_its_connections(story: Story):
    """A process that it forked: then silence tells that all was heard."""
    publish_many(story, story.request())
    end(story, -9)
    story.until_said("exit -9")
    assert story.heard == [*numbered(), "exit -9"]


def test_who_goes_on_publishing_after_the_end_does_not_hold_it_up_for_ever(
    story: Story, monkeypatch
):
    """There is a bound."""
    monkeypatch.setattr("remoter_kernel.protocol.kernel_client.END_WITHIN", 0.5)

    def flood() -> None:
        publish_many(story, story.request(), 10)
        story.reactor.call_later(0.001, flood)

    flood()
    end(story)
    story.until_said("exit 0")


def test_a_kernel_that_never_listened_has_ended_at_once(tmp_path: Path):
    """Nothing is waited for."""
    with closing(Reactor()) as reactor:
        child = KernelProcess(reactor, tmp_path, "python3", b"session")
        child.manager.connection_file = str(tmp_path / "connection.json")
        child.manager.write_connection_file()
        ended: list[dict[str, Any]] = []
        child.on_exit = ended.append
        child._connector.connect()
        child._warden = object()  # type: ignore[assignment]
        child._on_warden_message({"status": 1})
        assert ended == [{"status": 1}]
        child.close()


def odd(story: Story) -> Iterator[list[Bytes]]:
    """Make messages that are signed, and not as they should be."""
    whole = story.kernel.voice.compose("execute_reply", {"status": "ok"}, story.request())
    for place, word in itertools.product(
        (HEADER, PARENT),
        (b"", b"{", b"[]", b"7", b"\xff\xfe", b'{"msg_id": []}', b'{"msg_id": {}, "msg_type": 7}'),
    ):
        yield [*whole[:place], word, *whole[place + 1 :]]
    for word in (b"", b"{", b"[" * 100_000, b"null"):
        yield [*whole[:CONTENT], word]


@pytest.mark.parametrize("socket", ["shell", "control", "stdin", "iopub"])
def test_odd_messages_harm_no_others(story: Story, socket, caplog):
    """Each is left out, or goes to who asked; the log has some of it, the loop no error."""
    for parts in odd(story):
        story.kernel.say_odd(socket, parts)
    if socket != "iopub":
        story.kernel.sockets[socket].send_multipart([b"session", b"nothing of ours"])
    story.kernel.publish("display_data", {"number": 1}, story.request())
    story.kernel.say("shell", "execute_reply", {"status": "well"}, story.request())
    story.kernel.publish("status", {"execution_state": "idle"}, story.request())
    story.until_said("execute_reply well")
    story.until_said("status idle")
    assert "display_data 1" in story.heard
    assert 0 < len([each for each in caplog.records if "no sense" in each.message]) <= 10


def test_what_a_listener_cannot_read_harms_no_other_message(story: Story):
    """Whoever takes it in may look further into it."""
    heard: list[str] = []

    def hear(message: KernelMessage) -> None:
        heard.append(message.type)
        assert content_of(message.parts)["number"] + 1

    story.child.client.on_message = hear
    for number in ("odd", 1):
        story.kernel.publish(f"display_{number}", {"number": number}, story.request())
    story.until(lambda: len(heard) == 2)
    assert heard == ["display_odd", "display_1"]


def test_a_kernel_that_answers_twice_is_ready_once(story: Story):
    """What it says to an earlier question is no answer to the next."""
    story.kernel.answers = 3
    story.child.resend_kernel_info()
    story.until(lambda: len(story.ready) == 2)
    story.child.resend_kernel_info()  # two of the answers before are still to come
    story.until(lambda: len(story.ready) == 3)
    story.kernel.publish("display_data", {"number": 1}, story.request())
    story.until_said("display_data 1")
    assert [info["number"] for info in story.ready] == [1, 2, 3]


def test_a_request_that_is_replied_to_twice_and_one_that_nobody_sent(story: Story):
    """All of it is handed on to those who know what was asked, and nothing waits for ever."""
    for name in ("a", "a", "never"):
        story.kernel.say("shell", "execute_reply", {"status": name}, story.request(name))
    story.kernel.publish("status", {"execution_state": "idle"}, story.request("a"))
    story.until_said("execute_reply never")
    assert [each for each in story.heard if "reply" in each] == [
        "execute_reply a",
        "execute_reply a",
        "execute_reply never",
    ]
