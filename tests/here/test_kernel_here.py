"""The kernel on this side: its end holds up nobody, and what it said before is heard."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from remoter_kernel.local.proxy.here.local_kernel import LocalKernel
from remoter_kernel.protocol.messages import HEADER, PARENT, content_of, header_of
from remoter_kernel.protocol.reactor import Reactor
from tests.real_jupyter import READY_WITHIN, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remoter_kernel.errors import RemoterError
    from remoter_kernel.protocol.frames import Bytes, Channel

MANY = 3000
SHOW = f"""
from IPython.display import display
for number in range({MANY}):
    display(number)
"""


class Side:
    """A kernel on this side that is ready, and what came of it."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.heard: list[str] = []
        self.ended: list[RemoterError] = []
        ready: list[bool] = []
        self.side = LocalKernel(reactor)
        self.side.on_message = self._hear
        self.side.on_ready = lambda: ready.append(True)
        self.side.on_end = self.ended.append
        self.side.start()
        self.until(lambda: bool(ready))

    def _hear(self, _channel: Channel, parts: list[Bytes]) -> None:
        if header_of(parts[PARENT]).get("msg_type") != "execute_request":
            return
        kind = str(header_of(parts[HEADER])["msg_type"])
        data = content_of(parts).get("data", {})
        self.heard.append(data.get("text/plain", kind))

    def until(self, is_so: Callable[[], bool]) -> None:
        self.reactor.run_until(is_so, time.monotonic() + READY_WITHIN)
        assert is_so(), self.heard[-5:]

    def run(self, code: str) -> None:
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        self.side.send_request("execute_request", content)


@pytest.fixture
def here() -> Iterator[Side]:
    """A kernel that is ready."""
    with closing(Reactor()) as reactor:
        side = Side(reactor)
        yield side
        side.side.close()
    wait_for(lambda: "this side's end" not in [each.name for each in threading.enumerate()])


def numbers(here: Side) -> list[str]:
    return [each for each in here.heard if each.isdigit()]


def test_its_end_holds_up_nobody(here: Side) -> None:
    """Also of one that heeds nothing but a kill: the loop goes on at once."""
    here.run("import signal, time\nsignal.signal(2, signal.SIG_IGN)\nwhile True: time.sleep(1)")
    here.until(lambda: "execute_input" in here.heard)
    begun = time.monotonic()
    here.side.stop()
    assert time.monotonic() - begun < 0.05
    assert not here.side.is_ready


def test_another_can_be_started_while_one_ends(here: Side) -> None:
    """Nothing of the first reaches the second."""
    here.run("print('first')")
    here.until(lambda: "stream" in here.heard)
    here.side.stop()
    here.heard.clear()
    ready: list[bool] = []
    here.side.on_ready = lambda: ready.append(True)
    here.side.start()
    here.until(lambda: bool(ready))
    here.run("1 + 1")
    here.until(lambda: "execute_reply" in here.heard)
    assert "2" in here.heard


def test_a_reply_comes_after_its_outputs(here: Side, tmp_path) -> None:
    """Also where this process was held up."""
    mark = tmp_path / "done"
    here.run(f"{SHOW}\nimport pathlib; pathlib.Path({str(mark)!r}).touch()")
    wait_for(mark.exists)
    here.until(lambda: "execute_reply" in here.heard)
    before = here.heard[: here.heard.index("execute_reply")]
    assert [each for each in before if each.isdigit()] == list(map(str, range(MANY)))


@pytest.mark.parametrize(
    ("how", "is_doubtful"), [("os._exit(0)", False), ("os.kill(os.getpid(), 9)", True)]
)
def test_all_comes_before_its_death(here: Side, how, is_doubtful):
    """And where it was killed, it is said that its last outputs may be missing."""
    # Half a second: what a killed process has not handed to the system is lost.
    here.run(f"{SHOW}\nimport os, time\ntime.sleep(0.5)\n{how}")
    here.until(lambda: bool(here.ended))
    assert numbers(here) == list(map(str, range(MANY)))
    assert ("may be missing" in str(here.ended[0])) is is_doubtful
