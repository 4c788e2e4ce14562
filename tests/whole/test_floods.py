"""More output than a path, a page or a person can take: nothing waits behind it, nothing is lost.

The journal holds every line of it all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from bench.proxy import Proxy
from remoter_kernel.evaluator.records import Scan
from remoter_kernel.protocol.frames import Channel, unpack_parts
from tests.conftest import marked
from tests.pure.test_terminal_text import terminal
from tests.real_jupyter import started_kernel
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

RTT = 0.05  # seconds
NARROW = 10e6  # bits per second
FLOOD = 'n = 0\nwhile True:\n    print(n, "flood " * 12)\n    n += 1'
FLOOD_SECONDS = 3.0
IDLE_WITHIN = 2.0  # seconds from an interrupt
GROWS_BY = 100e6  # bytes
WAIT = 60.0  # seconds


class Far:
    """A far kernel at the end of a path, and what is known of its processes and its journal."""

    def __init__(self, talk: Talk, path: Proxy, front: int, home: Path) -> None:
        self.talk = talk
        self.path = path
        self.front = psutil.Process(front)
        self.home = home
        (self.evaluator,) = [
            process
            for process in marked()
            if ".pyz" in " ".join(process.cmdline()) and "warden" not in process.cmdline()
        ]

    def memory(self) -> dict[str, int]:
        """Return what both of our processes take, in bytes."""
        return {
            name: process.memory_info().rss
            for name, process in (("front", self.front), ("evaluator", self.evaluator))
        }

    @property
    def folder(self) -> Path:
        """Where the session keeps its journal; its name is the session's id."""
        doors = (self.home / ".local/share/remoter-kernel/sessions").glob("*/door.json")
        pid = self.evaluator.pid
        return next(door.parent for door in doors if json.loads(door.read_text())["pid"] == pid)

    def written(self, cell: str) -> str:
        """Return all text of a cell that the journal's file holds."""
        texts = []
        with (self.folder / "journal").open("rb") as file:
            for _, record in Scan(file):
                if record.channel is Channel.IOPUB and not record.is_marker:
                    parts = [bytes(part) for part in unpack_parts(record.body)]
                    if b'"stream"' in parts[1] and cell.encode() in parts[2]:
                        texts.append(json.loads(parts[4])["text"])
        return "".join(texts)


@contextlib.contextmanager
def far_kernel(
    here: JupyterHere,
    sshd: RealSshd,
    far: FarSide,
    tmp_path: Path,
    path: Proxy,
    *,
    environment: dict[str, str] | None = None,
    **settings: Any,
) -> Iterator[Far]:
    """Start a kernel there over a path; `environment` is the proxy's, `settings` the remote's."""
    config = sshd.ssh_config(tmp_path / "ssh_config", "flood", extra=f"Port {path.port}")
    known = sshd.known_hosts.read_text().replace(str(sshd.port), str(path.port))
    (tmp_path / "known").write_text(known)
    text = config.read_text().replace(str(sshd.known_hosts), str(tmp_path / "known"))
    config.write_text(text)
    settings |= {"host": "flood", "ssh_config": config, "python": str(far.python)}
    spec = here.add_remote("flood", **settings)
    with started_kernel(spec, env=environment or dict(os.environ)) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("1"))
        yield Far(talk, path, kernel.pid, far.home)


@pytest.fixture
def narrow(here: JupyterHere, sshd: RealSshd, far: FarSide, tmp_path: Path) -> Iterator[Far]:
    """A kernel at the end of 10 Mbit/s, 50 ms there and back."""
    with (
        Proxy(sshd.port, rtt=RTT, bits_per_second=NARROW) as path,
        far_kernel(here, sshd, far, tmp_path, path) as kernel,
    ):
        yield kernel


@pytest.fixture
def wide(here: JupyterHere, sshd: RealSshd, far: FarSide, tmp_path: Path) -> Iterator[Far]:
    """A kernel at the end of a path that only breaks when it is told to."""
    with Proxy(sshd.port) as path, far_kernel(here, sshd, far, tmp_path, path) as kernel:
        yield kernel


def streams(talk: Talk, cell: str, name: str = "stdout") -> str:
    """Return what a cell shows of one stream."""
    return "".join(
        message["content"]["text"]
        for channel, message in talk.heard
        if channel == "iopub"
        and message["msg_type"] == "stream"
        and message["content"]["name"] == name
        and message["parent_header"].get("msg_id") == cell
    )


def flood_and_interrupt(talk: Talk) -> tuple[str, float]:
    """Print without end for a while, interrupt; return the cell, and how long it went on."""
    cell = talk.queue(FLOOD)
    with contextlib.suppress(AssertionError):
        talk.listen(lambda: False, seconds=FLOOD_SECONDS)
    begun = time.monotonic()
    talk.send("interrupt_request", {}, channel="control")
    talk.listen(lambda: talk._is_done(cell), seconds=WAIT)
    return cell, time.monotonic() - begun


def numbers(text: str) -> list[int]:
    """Return the numbers of a flood's whole lines."""
    return [int(number) for number in re.findall(r"^(\d+) (?:flood ){12}$", text, re.MULTILINE)]


@pytest.mark.timing
def test_an_interrupt_is_not_kept_waiting_by_a_flood(narrow: Far) -> None:
    """Idle within 2 s, memory as before; head, one line, tail, error; all of it in the journal."""
    before = narrow.memory()
    cell, seconds = flood_and_interrupt(narrow.talk)
    assert seconds < IDLE_WITHIN
    for name, size in narrow.memory().items():
        assert size - before[name] < GROWS_BY, name
    shown = numbers(streams(narrow.talk, cell))
    written = numbers(narrow.written(cell))
    assert written == list(range(len(written)))
    assert shown[:100] == written[:100]
    assert len(set(written[-3:]) & set(shown)) > 1
    assert shown == sorted(set(shown))
    notes = streams(narrow.talk, cell, "stderr")
    assert notes.count("held back") >= 1
    assert "remoter outputs" in notes
    kinds = [
        message["msg_type"]
        for _, message in narrow.talk.heard
        if message["parent_header"].get("msg_id") == cell
    ]
    assert kinds.count("error") == kinds.count("execute_reply") == 1
    again = narrow.talk.queue("print('the next cell')")
    narrow.talk.listen(lambda: narrow.talk._is_done(again), seconds=5)
    assert streams(narrow.talk, again) == "the next cell\n"


CATCHING = f"""
import time
try:
    {FLOOD.replace(chr(10), chr(10) + "    ")}
except KeyboardInterrupt:
    hit = time.time()
    print('hit', n, flush=True)
"""
REACHES_WITHIN = 2 * RTT + 0.3  # seconds: the machine is at work for two


@pytest.mark.timing
@pytest.mark.parametrize("seconds", [2.0, pytest.param(5.0, marks=pytest.mark.slow)])
def test_an_interrupt_goes_past_a_flood_and_outputs_has_all_of_it(
    narrow: Far, here: JupyterHere, sshd: RealSshd, tmp_path: Path, seconds: float
) -> None:
    """During a flood it is there in two trips, and every line can be had later."""
    talk, before = narrow.talk, narrow.memory()
    cell = talk.queue(CATCHING)
    with contextlib.suppress(AssertionError):
        talk.listen(lambda: False, seconds=seconds)
    sent = time.time()
    talk.send("interrupt_request", {}, channel="control")
    talk.listen(lambda: talk._is_done(cell), seconds=WAIT)
    idle = time.time() - sent
    grown = {name: (size - before[name]) / 1e6 for name, size in narrow.memory().items()}
    told = talk.queue("print(hit, n)")
    talk.listen(lambda: talk._is_done(told), seconds=WAIT)
    hit, count = (float(word) for word in streams(talk, told).split())
    assert hit - sent < REACHES_WITHIN
    assert idle < IDLE_WITHIN
    assert max(grown.values()) < GROWS_BY / 1e6
    sshd.ssh_config(tmp_path / "ssh_config", "flood")  # all of it, by a wider path
    read = here.remoter("outputs", narrow.folder.name)
    assert read.returncode == 0, read.stderr
    written = numbers(read.stdout)
    assert written == list(range(len(written)))
    # Of the last line perhaps a part; or it was printed, and not counted any more.
    assert abs(int(count) - len(written)) <= 1


def test_fifty_megabytes_are_in_the_journal_whatever_is_shown(narrow: Far) -> None:
    """A cell that prints 50 MB over a narrow path ends soon, and the journal has each line."""
    line = "x" * 90
    cell = narrow.talk.queue(f"for n in range(500_000):\n    print(f'{{n:08}} {line}')")
    narrow.talk.listen(lambda: narrow.talk._is_done(cell), seconds=WAIT)
    written = narrow.written(cell)
    assert written == "".join(f"{n:08} {line}\n" for n in range(500_000))
    shown = streams(narrow.talk, cell)
    assert written.startswith(shown[:100_000])
    assert written.endswith(shown[-100_000:])
    assert len(shown) < len(written) / 2
    assert "held back" in streams(narrow.talk, cell, "stderr")


def test_a_remote_may_let_less_wait(
    here: JupyterHere, sshd: RealSshd, far: FarSide, tmp_path: Path
) -> None:
    """With a waiting_limit of 1 MiB, most of 12 MB is held back that would be shown else."""
    with (
        Proxy(sshd.port, rtt=RTT, bits_per_second=NARROW) as path,
        far_kernel(here, sshd, far, tmp_path, path, waiting_limit=2**20) as kernel,
    ):
        cell = kernel.talk.queue("print(('x' * 99 + '\\n') * 120_000)")
        kernel.talk.listen(lambda: kernel.talk._is_done(cell), seconds=WAIT)
        assert 2**19 < len(streams(kernel.talk, cell)) < 6e6
        assert "held back" in streams(kernel.talk, cell, "stderr")


def test_what_the_link_can_carry_comes_whole(wide: Far) -> None:
    """Twenty megabytes over a wide path: every byte is shown, and nothing is said of it."""
    cell = wide.talk.queue("for n in range(200_000):\n    print(f'{n:08}', 'y' * 90)")
    wide.talk.listen(lambda: wide.talk._is_done(cell), seconds=WAIT)
    assert streams(wide.talk, cell) == "".join(f"{n:08} {'y' * 90}\n" for n in range(200_000))
    assert streams(wide.talk, cell, "stderr") == ""


BAR = """
import sys, time
for n in range(20_001):
    filled = n * 40 // 20_000
    sys.stderr.write(f"\\r{n / 200:3.0f}%|{'█' * filled}{' ' * (40 - filled)}| {n:5}/20000 [00:30]")
    if n % 100 == 0:
        sys.stderr.flush()
        time.sleep(SECONDS / 200)
sys.stderr.write("\\n")
"""


@pytest.mark.parametrize(
    ("outage", "seconds", "is_cut"),
    [(10.0, 6.0, True), pytest.param(30.0, 30.0, False, marks=pytest.mark.slow)],
)
def test_a_bar_that_nobody_watched_ends_as_it_would_have(
    wide: Far, outage: float, seconds: float, *, is_cut: bool
) -> None:
    """20,000 updates across an outage: the bar ends the same, with under 5 % of the bytes."""
    talk = wide.talk
    cell = talk.queue("import time; time.sleep(0.5)\n" + BAR.replace("SECONDS", str(seconds)))
    talk.listen(lambda: talk.has_begun(cell), seconds=5)
    before = wide.path.bytes_down
    wide.path.vanish()
    if is_cut:  # else the far side speaks to nobody for a second, and at this pace that is much
        wide.path.cut()
    with contextlib.suppress(AssertionError):
        talk.listen(lambda: talk._is_done(cell), seconds=outage)
    wide.path.resume()
    talk.listen(lambda: talk._is_done(cell), seconds=WAIT)
    here = [sys.executable, "-c", BAR.replace("SECONDS", "0")]
    whole = subprocess.run(here, capture_output=True, check=True).stderr.decode()
    shown = streams(talk, cell, "stderr")
    sent = wide.path.bytes_down - before
    assert "20000/20000" in shown
    assert terminal(shown) == terminal(whole)
    assert wide.written(cell) == whole
    assert len(shown.encode()) < len(whole.encode()) * 0.05
    assert sent < len(whole.encode()) * 0.05


class Limits:
    """Counts as jupyter_server does: messages and bytes of any three seconds."""

    def __init__(self) -> None:
        self.came: deque[tuple[float, int]] = deque()
        self.most = (0, 0)

    def hear(self, message: dict[str, Any]) -> None:
        now = time.monotonic()
        if message["msg_type"] in {"status", "comm_open", "execute_input"}:
            return
        is_text = message["msg_type"] == "stream"
        self.came.append((now, len(json.dumps(message, default=str)) if is_text else 0))
        while self.came[0][0] < now - 3.0:
            self.came.popleft()
        size = sum(size for _, size in self.came)
        self.most = (max(self.most[0], len(self.came)), max(self.most[1], size))


@pytest.mark.timing
def test_jupyter_server_is_given_what_it_takes(
    here: JupyterHere, sshd: RealSshd, far: FarSide, tmp_path: Path
) -> None:
    """Five megabytes of small lines come whole, below its limits; an interrupt waits for none."""
    environment = {**os.environ, "JPY_SESSION_NAME": str(tmp_path / "a.ipynb")}
    with (
        Proxy(sshd.port) as path,
        far_kernel(here, sshd, far, tmp_path, path, environment=environment) as kernel,
    ):
        talk, limits = kernel.talk, Limits()
        code = "for n in range(50_000):\n    print(f'{n:08}', 'y' * 90, flush=n % 10 == 0)"
        cell = talk.queue(code)
        counted = 0
        while not talk._is_done(cell):
            before = counted
            talk.listen(lambda before=before: len(talk.heard) > before, seconds=20.0)  # type: ignore[misc]
            for channel, message in talk.heard[counted:]:
                if channel == "iopub":
                    limits.hear(message)
            counted = len(talk.heard)
        assert streams(talk, cell) == "".join(f"{n:08} {'y' * 90}\n" for n in range(50_000))
        assert limits.most[0] < 3000
        assert limits.most[1] < 3_000_000
        cell, seconds = flood_and_interrupt(talk)
        assert seconds < IDLE_WITHIN
        assert "held back" in streams(talk, cell, "stderr")
