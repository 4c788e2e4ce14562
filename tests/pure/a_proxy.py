"""A proxy with sockets, a link and a clock that the test holds in its hands."""

from __future__ import annotations

import heapq
import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from remoter_kernel.local.proxy import proxy
from remoter_kernel.local.session.link import LinkState
from remoter_kernel.protocol.frames import Channel, to_json
from remoter_kernel.protocol.messages import MessageSigner, content_of, header_of
from remoter_kernel.protocol.reactor import Timer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pytest

    from remoter_kernel.errors import RemoterError

CONSOLE, ANOTHER = [b"console"], [b"another"]
CLIENT = MessageSigner(b"", session="client")
FAR_KERNEL = MessageSigner(b"", session="kernel")


class Clock:
    """A reactor whose time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.is_stopped = False
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self.now + seconds, call)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        call()

    def stop(self) -> None:
        self.is_stopped = True

    def let_pass(self, seconds: float) -> None:
        """Let time pass, and make the calls that are due."""
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now, _, timer = heapq.heappop(self._timers)
            if timer.call:
                timer.call()
        self.now = until


class Page:
    """Jupyter's sockets: what clients have heard."""

    def __init__(self, reactor: Clock) -> None:
        self.reactor = reactor
        self.connection = {"key": "k"}
        self.voice = MessageSigner(b"")
        self.published: list[tuple[str, str, dict[str, Any]]] = []  # kind, whose, content
        self.replies: list[tuple[str, str, dict[str, Any]]] = []

    def has_room(self) -> bool:
        return True

    def publish(self, parts: Sequence[Any]) -> None:
        self.published.append(told(parts))

    def reply(self, _channel: Channel, _identities: list[bytes], parts: Sequence[Any]) -> None:
        self.replies.append(told(parts))

    def states(self, name: str) -> list[str]:
        """Which states a request was said to have."""
        return [content["execution_state"] for content in self._of("status", name)]

    def text(self, name: str) -> str:
        """All text that was shown in a cell."""
        return "".join(content["text"] for content in self._of("stream", name))

    def _of(self, wanted: str, name: str) -> list[dict[str, Any]]:
        return [said for kind, whose, said in self.published if (kind, whose) == (wanted, name)]

    def reply_to(self, name: str) -> dict[str, Any] | None:
        """The reply to a request, if there is one; one at most."""
        found = [content for _, whose, content in self.replies if whose == name]
        assert len(found) <= 1
        return found[0] if found else None


def told(parts: Sequence[Any]) -> tuple[str, str, dict[str, Any]]:
    """Return what a message is, whose it is, and what it says."""
    header, parent = header_of(parts[1]), header_of(parts[2])
    return str(header["msg_type"]), str(parent.get("msg_id", "")), content_of(parts)


class Wire:
    """The link: what was given to it, and how far that has come."""

    def __init__(self, *_: object) -> None:
        self.state = LinkState.IDLE
        self.error: RemoterError | None = None
        self.ever_connected = False
        self.is_flowing = True  # does what is said leave at once?
        self.welcome: dict[str, Any] = {}
        self.identity: dict[str, str] = {}
        self.pacer = None
        self.said: list[tuple[Channel, list[Any]]] = []
        self.wakes = self.unacknowledged = 0
        self.sent = self.received = 0
        self.on_state: Callable[[LinkState], None] = lambda _state: None
        self._left: set[int] = set()
        self._kept: dict[int, Callable[[], object]] = {}
        self._withdrawn: set[int] = set()
        self.lost_there: set[int] = set()

    def is_lost_there(self, _channel: Channel, number: int) -> bool:
        return number in self.lost_there

    def send(self, channel: Channel, parts: list[Any], on_kept: Any = None) -> int:
        self.said.append((channel, parts))
        number = len(self.said)
        if on_kept:
            self._kept[number] = on_kept
        if self.is_flowing and self.state is LinkState.UP:
            self._left.add(number)
        return number

    def was_sent(self, _channel: Channel, number: int) -> bool:
        return number in self._left

    def cancel_unsent(self, _channel: Channel, number: int) -> bool:
        is_there = number not in self._left and number not in self._withdrawn
        self._withdrawn.add(number)
        return is_there

    def keep_all(self) -> None:
        """Let the evaluator confirm all that was said."""
        for number in list(self._kept):
            self._left.add(number)
            self._kept.pop(number)()

    def change(self, state: LinkState, error: RemoterError | None = None) -> None:
        self.error = error or self.error
        self.ever_connected |= state is LinkState.UP
        if state is not self.state:
            self.state = state
            self.on_state(state)

    def fail(self, error: RemoterError) -> None:
        self.change(LinkState.FAILED, error)

    def deliver_all(self) -> None:
        pass

    def reset(self) -> None:
        self.ever_connected = False

    def connect(self) -> None:
        self.wakes += 1

    @property
    def kinds(self) -> list[str]:
        """The types of the messages that were said, in order."""
        return [
            str(header_of(parts[1])["msg_type"])
            for channel, parts in self.said
            if channel is not Channel.COMMAND
        ]

    @property
    def orders(self) -> list[bytes]:
        """The commands that were said."""
        return [parts[0] for channel, parts in self.said if channel is Channel.COMMAND]


class Proxy:
    """The whole of it, as it is wired, between a page and a wire."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = folder / "remotes.toml"
        config.write_text('[remotes.far]\nhost = "far.example"\n')
        monkeypatch.setenv("REMOTER_CONFIG", str(config))
        monkeypatch.setenv("REMOTER_STATE", str(folder / "state"))
        monkeypatch.setattr(proxy, "Link", Wire)
        self.clock = Clock()
        self.page = Page(self.clock)
        self.kernel = proxy.KernelProxy(self.page, "far")  # type: ignore[arg-type]
        self.link: Wire = self.kernel.link  # type: ignore[assignment]
        self.link.on_state = self.kernel._session_messages.on_link_state
        self.requests = self.kernel._requests
        self.requests._clock = lambda: self.clock.now

    # --- the client ---

    def ask(
        self,
        kind: str,
        content: dict[str, Any] | None = None,
        *,
        client: list[bytes] = CONSOLE,
        channel: Channel = Channel.SHELL,
        header: dict[str, Any] | None = None,
    ) -> str:
        """Send a message as a client; return its id."""
        parts = CLIENT.compose(kind, content or {})
        parts[1] = to_json({**header_of(parts[1]), **(header or {})})
        self.kernel._on_client_message(channel, client, parts)
        return str(header_of(parts[1])["msg_id"])

    def run(self, code: str = "1", *, client: list[bytes] = CONSOLE, **options: Any) -> str:
        """Ask for a cell to be run."""
        content = {"code": code, "silent": False, "allow_stdin": True, **options}
        return self.ask("execute_request", content, client=client)

    # --- the session ---

    def be_up(self, *, is_ready: bool = True) -> None:
        """Let the link be there, and the kernel."""
        self.link.change(LinkState.UP)
        if is_ready:
            self.note(event="ready", session="kernel", username="far", kernel_info={"status": "ok"})

    def be_found(self, **words: Any) -> None:
        """Let the dialer know which session it is."""
        about = {"session": "abcd", "begun": 0.0, "is_joined": False, "others": (), "notices": ()}
        address: Any = SimpleNamespace(**{**about, **words})
        self.kernel.dialer.session_info = address

    def note(self, **words: Any) -> None:
        """Let the evaluator say an event."""
        self.hear(Channel.EVENT, [to_json(words)])

    def publish(self, kind: str, content: dict[str, Any], name: str) -> None:
        """Let the kernel there publish something in a request."""
        self.hear(Channel.IOPUB, FAR_KERNEL.compose(kind, content, {"msg_id": name}))

    def state(self, name: str, *states: str) -> None:
        """Let the kernel there say that it is busy with a request, or done with it."""
        for state in states:
            self.publish("status", {"execution_state": state}, name)

    def reply(
        self, name: str, kind: str = "execute_reply", channel: Channel = Channel.SHELL, **more: Any
    ) -> None:
        """Let the kernel there reply to a request."""
        content = {"status": "ok", **more}
        self.hear(channel, FAR_KERNEL.compose(kind, content, {"msg_id": name}))

    def answer(self, name: str) -> None:
        """Let the kernel there deal with a cell from its begin to its end."""
        self.state(name, "busy")
        self.reply(name)
        self.state(name, "idle")

    def hear(self, channel: Channel, parts: list[Any]) -> None:
        self.kernel._session_messages.on_message(channel, parts)

    def stages(self) -> dict[str, str]:
        """The stage of each request that is not over, by its id, as it is told to people."""
        self.kernel._describe_requests()
        return {each.id: each.stage.name for each in self.requests}
