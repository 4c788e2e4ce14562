"""What the link promises in an outage, with a real sshd at the end of a path that breaks.

Each test has the length that makes a kernel's owner worry; those that are longer than a minute
are marked slow, and a scaled copy of them runs always.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.real_jupyter import StartedKernel, started_kernel, wait_for
from tests.whole.outages import LANGUAGES, PYTHON, Language, Outage, R, far_kernel
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

LINES = 300
NOTICED_WITHIN = 10.0  # seconds
BACK_WITHIN = 5.0  # seconds
STRANDED_FOR = 10.0  # seconds
ENDS_WITHIN = 5.0  # seconds: then Jupyter kills


def slow(*values: object, name: str | None = None) -> object:
    """Mark what takes longer than `make test` has."""
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.timeout(900)], id=name)


@pytest.fixture
def place(
    request: pytest.FixtureRequest, here: JupyterHere, sshd: RealSshd, far: FarSide, tmp_path: Path
) -> Iterator[Outage]:
    """A kernel of the language that the test names, over a path of its own."""
    language: Language = getattr(request, "param", PYTHON)
    with far_kernel(language, here, sshd, far, tmp_path) as outage:
        yield outage


both = pytest.mark.parametrize("place", LANGUAGES.values(), ids=LANGUAGES, indirect=True)
in_r = pytest.mark.parametrize("place", [R], ids=["R"], indirect=True)


@in_r
def test_three_cuts_lose_no_line_of_r(place: Outage) -> None:
    """Three resets in a cell of 300 lines: all 300 lines arrive, once, in order."""
    cell = place.talk.queue(place.language.count(LINES, 0.02))
    for until in (50, 120, 190):
        place.lines_come(cell, until)
        assert place.path.cut() > 0
    place.end(cell)
    assert place.lines(cell) == list(range(LINES))


@both
@pytest.mark.parametrize(("hole", "pause"), [(12.0, 0.02), slow(40.0, 0.1)])
def test_a_network_that_vanishes_costs_no_line(place: Outage, hole: float, pause: float) -> None:
    """A black hole is noticed within 10 s; five seconds after it all has come, once, in order."""
    cell = place.talk.queue(place.language.count(LINES, pause))
    place.lines_come(cell, 30)
    place.path.vanish()
    begun = time.monotonic()
    noticed = place.until_noticed()
    place.listen_for(hole - (time.monotonic() - begun))
    assert not place.is_over(cell)
    place.path.resume()
    back = place.end(cell)
    assert place.lines(cell) == list(range(LINES))
    assert noticed < NOTICED_WITHIN
    assert back < BACK_WITHIN


@pytest.mark.parametrize(
    ("place", "hole", "is_refused"),
    [
        pytest.param(PYTHON, 12.0, False, id="python"),
        pytest.param(R, 12.0, True, id="R, refused"),
        slow(PYTHON, 120.0, True, name="python, refused for 2 min"),
        slow(R, 120.0, False, name="R for 2 min"),
        slow(PYTHON, 600.0, False, name="python for 10 min"),
    ],
    indirect=["place"],
)
def test_cells_that_wait_behind_a_running_one(
    place: Outage, sshd: RealSshd, hole: float, *, is_refused: bool
) -> None:
    """The network is gone for long: each queued cell runs once, in order, with its own output."""
    language, talk = place.language, place.talk
    running = talk.queue(language.count(LINES, 0.02))
    place.lines_come(running, 30)
    with refused(place, sshd) if is_refused else vanished(place):
        begun = time.monotonic()
        cells = [talk.queue(language.append.format(n=n)) for n in range(5)]
        place.listen_for(hole - (time.monotonic() - begun))
    back = place.end(running, *cells)
    assert place.lines(running) == list(range(LINES))
    assert [place.lines(cell)[-1:] for cell in cells] == [[n + 1] for n in range(5)]
    assert place.replies(running, *cells) == [["ok"]] * 6
    final = talk.queue(language.all)
    place.end(final)
    assert place.text(final).strip() == "0 1 2 3 4"
    assert back < BACK_WITHIN


@contextlib.contextmanager
def vanished(place: Outage) -> Iterator[None]:
    """Take the network away: what is dialled is not answered."""
    place.path.vanish()
    try:
        yield
    finally:
        place.path.resume()


@contextlib.contextmanager
def refused(place: Outage, sshd: RealSshd) -> Iterator[None]:
    """Cut every connection, and refuse new ones."""
    sshd.stop_listening()
    place.path.cut()
    try:
        yield
    finally:
        sshd.start()


def test_a_network_that_changes_during_the_way_back(
    here: JupyterHere, sshd: RealSshd, far: FarSide, tmp_path: Path
) -> None:
    """A try to come back hangs for ever: it is given up, and the next one gets through."""
    with far_kernel(PYTHON, here, sshd, far, tmp_path, rtt=0.2) as place:
        place.path.cut()
        place.listen_for(0.75)  # about where the key is shown
        assert "connecting" in place.status()
        place.path.strand()
        cell = place.talk.queue("print('line 1')")
        back = place.end(cell)
        assert place.lines(cell) == [1]
        assert back < STRANDED_FOR


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """Let a process do nothing for a while, as a sleeping machine's does nothing."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@pytest.mark.parametrize("who", ["front", "evaluator"])
@pytest.mark.parametrize(("seconds", "pause"), [(12.0, 0.03), slow(90.0, 0.25)])
def test_a_process_that_sleeps(place: Outage, who: str, seconds: float, pause: float) -> None:
    """A proxy or an evaluator stops for a while during a cell: every line, once, and soon."""
    cell = place.talk.queue(place.language.count(LINES, pause))
    place.lines_come(cell, 30)
    process = psutil.Process(place.kernel.pid) if who == "front" else place.evaluator
    with stopped(process):
        place.listen_for(seconds)
    begun = time.monotonic()
    place.talk.listen(lambda: len(place.lines(cell)) > 100, seconds=60)
    first = time.monotonic() - begun
    back = first + place.end(cell)
    again = place.talk.queue(place.language.say.format(text="line 7"))
    place.end(again, seconds=BACK_WITHIN)
    assert place.lines(cell) == list(range(LINES))
    assert place.lines(again) == [7]
    assert back < BACK_WITHIN


def test_the_host_was_restarted_meanwhile(place: Outage, tmp_path: Path) -> None:
    """Each cell is told why and when; none runs in a fresh kernel; the journal can be read."""
    talk, folder = place.talk, place.session
    note = place.far.home / f"ran-{folder.name}"
    before = set(folder.parent.iterdir())
    printed = talk.queue("print('line 0')")
    place.end(printed)
    running = talk.queue("import time\nprint('going', flush=True)\ntime.sleep(300)")
    talk.listen(lambda: "going" in place.text(running))
    place.path.stall()
    queued = [talk.queue(f"open({str(note)!r}, 'a').write('x')") for _ in range(3)]
    kernel = json.loads((folder / "child.json").read_text())
    # All at once, as a power cut does it: nobody writes down how anybody ended.
    victims = [psutil.Process(n) for n in (place.door["pid"], kernel["warden"], kernel["pid"])]
    for process in victims:
        process.suspend()
    for process in victims:
        process.kill()
    psutil.wait_procs(victims, timeout=10)
    (folder / "door.json").write_text(json.dumps({**place.door, "boot": "another"}))
    place.path.cut()
    place.path.resume()
    place.end(running, *queued)
    for cell in (running, *queued):
        (error,) = place.errors(cell)
        assert error["ename"] == "NoSuchSession"
        assert re.search(
            r"The machine was restarted\. It ended at \d{4}-\d\d-\d\d \d\d:\d\d", error["evalue"]
        )
    assert place.replies(running, *queued) == [["error"]] * 4
    later = talk.queue(f"open({str(note)!r}, 'a').write('x')")
    place.end(later)
    assert place.errors(later)[0]["ename"] == "NoSuchSession"
    assert not note.exists()
    assert set(folder.parent.iterdir()) == before
    read = place.here.remoter("outputs", folder.name)
    assert read.returncode == 0, read.stderr
    assert "line 0\n" in read.stdout
    assert "going\n" in read.stdout


@pytest.mark.parametrize("is_restart", [True, False], ids=["restart", "shutdown"])
def test_an_order_that_nobody_hears(place: Outage, *, is_restart: bool) -> None:
    """Restart or shutdown while the network is gone: the front ends, the next login obeys."""
    talk, manager = place.talk, place.kernel.manager
    talk.case(lambda talk: talk.run("kept = 1"))
    first, session = place.evaluator, place.session
    child = psutil.Process(json.loads((session / "child.json").read_text())["pid"])
    front = psutil.Process(place.kernel.pid)
    place.path.vanish()
    request = manager.session.msg("shutdown_request", {"restart": is_restart})
    begun = time.monotonic()
    manager.session.send(place.kernel.client.control_channel.socket, request)
    front.wait(10)
    seconds = time.monotonic() - begun
    orders = list((place.here.folder / "state/orders/outage").iterdir())
    assert [json.loads(path.read_text())["order"] for path in orders] == [
        "restart" if is_restart else "stop"
    ]
    assert seconds < ENDS_WITHIN
    assert child.is_running()
    place.path.resume()
    with started_kernel("remoter-outage") if not is_restart else as_it_was(place) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("1"))
        talk.case(lambda talk: talk.run("print('kept' in globals())"))
        assert any(m["content"].get("text") == "False\n" for _, m in talk.heard)
    assert not list((place.here.folder / "state/orders/outage").iterdir())
    wait_for(lambda: has_ended(child))
    assert has_ended(first) is not is_restart
    assert ("It was stopped" in (session / "session.json").read_text()) is not is_restart


def test_a_restart_while_the_evaluator_is_held_up(place: Outage) -> None:
    """The proxy that follows runs its first cell in a fresh kernel, whenever that is told."""
    talk, manager = place.talk, place.kernel.manager
    talk.case(lambda talk: talk.run("kept = 1"))
    front = psutil.Process(place.kernel.pid)
    with stopped(place.evaluator):
        request = manager.session.msg("shutdown_request", {"restart": True})
        manager.session.send(place.kernel.client.control_channel.socket, request)
        front.wait(10)
        with as_it_was(place) as kernel:
            talk = Talk(kernel.client)
            cell = talk.queue("print('kept' in globals())")
            place.evaluator.resume()
            talk.done(cell)
            said = [m["content"]["text"] for _, m in talk.heard if m["msg_type"] == "stream"]
            assert "False\n" in said, said


def test_a_restart_whose_evaluator_is_killed_before_the_kernel_has_ended(place: Outage) -> None:
    """It was heard: the session goes on, with a fresh kernel."""
    talk, manager = place.talk, place.kernel.manager
    talk.case(lambda talk: talk.run("kept = 1"))
    session = place.session
    front = psutil.Process(place.kernel.pid)
    kernel = psutil.Process(json.loads((session / "child.json").read_text())["pid"])
    with stopped(kernel):
        request = manager.session.msg("shutdown_request", {"restart": True})
        manager.session.send(place.kernel.client.control_channel.socket, request)
        front.wait(10)
        place.evaluator.kill()
    wait_for(lambda: has_ended(kernel), what="the kernel ends, as it was asked to")
    with as_it_was(place) as again:
        talk = Talk(again.client)
        talk.case(lambda talk: talk.run("print('kept' in globals())"))
        assert any(m["content"].get("text") == "False\n" for _, m in talk.heard)
    assert "ended" not in json.loads((session / "session.json").read_text())


def has_ended(process: psutil.Process) -> bool:
    """Has this process ended, whether somebody has asked how or not?"""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@contextlib.contextmanager
def as_it_was(place: Outage) -> Iterator[StartedKernel]:
    """Let Jupyter start the kernel again, as it does at a restart."""
    place.kernel.manager.restart_kernel(now=True)
    place.kernel.client.wait_for_ready(timeout=60)
    yield place.kernel
