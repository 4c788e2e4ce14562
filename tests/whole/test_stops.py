"""Stop, pressed while the far side cannot hear it: the cell that was meant ends, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from jupyter_client.connect import write_connection_file

from tests.whole.outages import LANGUAGES, PYTHON, Language, Outage, far_kernel
from tests.whole.test_sessions import a_front

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

RTT = 0.2  # seconds
SOON = 5.0  # seconds

both = pytest.mark.parametrize("near", LANGUAGES.values(), ids=LANGUAGES, indirect=True)


@pytest.fixture(scope="module")
def near(
    request: pytest.FixtureRequest,
    here: JupyterHere,
    sshd: RealSshd,
    far: FarSide,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Outage]:
    """A kernel of the language that the test names, over a path of its own."""
    folder = tmp_path_factory.mktemp("near")
    with far_kernel(request.param, here, sshd, far, folder) as outage:
        yield outage


@pytest.fixture
def place(near: Outage) -> Outage:
    """The same, with nothing that has run."""
    near.end(near.talk.queue(near.language.begin))
    return near


def ran(place: Outage) -> str:
    """Return which of the numbered cells have run."""
    cell = place.talk.queue(place.language.all)
    place.end(cell)
    return place.text(cell).strip()


def stop(place: Outage) -> None:
    """Press Stop: the proxy answers by itself."""
    place.talk.ask("interrupt_request", channel="control")


def repair(place: Outage) -> None:
    """Let the network be back, and found at once."""
    place.path.cut()
    place.path.resume()


@both
@pytest.mark.parametrize("is_strict", [True, False])
def test_the_running_cell_is_stopped(place: Outage, *, is_strict: bool) -> None:
    """Of the cells behind it none is interrupted: with `stop_on_error` they are called off."""
    language, talk = place.language, place.talk
    running = talk.queue(language.count(2, 30.0), stop_on_error=is_strict)
    place.lines_come(running, 1)
    place.path.stall()
    queued = [talk.queue(language.append.format(n=n), stop_on_error=is_strict) for n in (1, 2)]
    stop(place)
    after = talk.queue(language.append.format(n=3), stop_on_error=is_strict)
    repair(place)
    place.end(running, *queued, after, seconds=SOON)
    assert place.lines(running) == [0]
    assert place.replies(running)[0][0] in {"error", "abort"}
    expected = "aborted" if is_strict else "ok"
    assert place.replies(*queued, after) == [[expected], [expected], ["ok"]]
    assert not any(place.errors(cell) for cell in (*queued, after))
    assert ran(place) == ("3" if is_strict else "1 2 3")


@both
@pytest.mark.parametrize("is_strict", [True, False])
def test_the_first_that_has_not_begun_is_stopped(place: Outage, *, is_strict: bool) -> None:
    """The running cell has ended meanwhile: the next one is stopped, and what comes later runs."""
    language, talk = place.language, place.talk
    running = talk.queue(language.count(2, 0.3), stop_on_error=is_strict)
    place.lines_come(running, 1)
    place.path.stall()
    queued = [talk.queue(language.append.format(n=n), stop_on_error=is_strict) for n in (1, 2)]
    stop(place)
    after = talk.queue(language.append.format(n=3), stop_on_error=is_strict)
    place.listen_for(1.5)  # it ends there
    repair(place)
    place.end(running, *queued, after, seconds=SOON)
    assert place.lines(running) == [0, 1]
    expected = "aborted" if is_strict else "ok"
    assert place.replies(running, *queued, after) == [["ok"], ["error"], [expected], ["ok"]]
    assert [each["ename"] for each in place.errors(queued[0])] == ["KeyboardInterrupt"]
    assert ran(place) == ("3" if is_strict else "2 3")


@pytest.mark.parametrize("near", [PYTHON], ids=["python"], indirect=True)
def test_a_stop_that_comes_too_late_is_for_nobody(
    place: Outage, here: JupyterHere, sshd: RealSshd, far: FarSide, tmp_path: Path
) -> None:
    """The cell that was meant has ended, and somebody else's runs by now: that one goes on."""
    config = sshd.ssh_config(tmp_path / "ssh_config", "beside")
    here.add_remote("beside", "beside", ssh_config=config, python=str(far.python))
    file = tmp_path / "kernel.json"
    write_connection_file(str(file))
    with a_front(file, "beside", "--session", place.session.name) as other:
        meant = place.talk.queue(place.language.count(1, 1.0))
        place.lines_come(meant, 1)
        place.path.stall()
        stop(place)
        theirs = other.talk.queue("print('on', flush=True); time.sleep(2); 'through'")
        other.talk.until_line("on")
        repair(place)
        place.end(meant)
        other.talk.done(theirs)
        assert place.replies(meant) == [["ok"]]
        assert [m["content"]["status"] for m in other.talk._of("shell")][-1:] == ["ok"]


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=LANGUAGES)
def test_a_cell_that_is_run_and_stopped_within_a_trip(
    language: Language, here: JupyterHere, sshd: RealSshd, far: FarSide, tmp_path: Path
) -> None:
    """Whenever Stop comes during the way there, it is that cell that stops, and the next runs."""
    gaps = [0.0, 0.003, 0.02, 0.05, 0.15] * 2
    with far_kernel(language, here, sshd, far, tmp_path, rtt=RTT) as distant:
        for n, gap in enumerate(gaps):
            cell = distant.talk.queue(language.count(1, 30.0))
            distant.listen_for(gap)
            stop(distant)
            after = distant.talk.queue(language.append.format(n=n))
            distant.end(cell, after, seconds=SOON)
            assert distant.replies(cell)[0][0] in {"error", "abort"}
            assert distant.replies(after) == [["ok"]]
        assert ran(distant) == " ".join(map(str, range(len(gaps))))
