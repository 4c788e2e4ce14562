"""`%remoter` in a cell: its help, what Tab completes, its timer, and other sessions' outputs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.real_jupyter import started_kernel, wait_for
from tests.real_parts import real_part
from tests.whole.talk import Talk
from tests.whole.test_sessions import a_front, asked, file, front, marked_there, remote

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.whole.test_sessions import Front

__all__ = ["file", "front", "remote"]  # fixtures

LINE = re.compile(
    r"\[remoter\] (\d+\.\d+) s there, (\d+\.\d+) s on the link, \d.* sent, \d.* received\n"
)
CHOICE = "open('zebra one.txt', 'w').close(); import os; os.makedirs('zebras', exist_ok=True)"
AWAY = "os.remove('zebra one.txt'); os.rmdir('zebras')"


@pytest.fixture
def paced(
    file: Path, remote: str, here: JupyterHere, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Front]:
    """A proxy that gives no more than jupyter_server takes."""
    monkeypatch.setenv("JPY_SESSION_NAME", "/nowhere/night.ipynb")
    with a_front(file, remote) as front:
        yield front
    here.remoter("stop", "--all", remote)
    wait_for(lambda: not marked_there(remote), what="the far side is empty")


def completed(talk: Talk, code: str) -> dict[str, Any]:
    """Return what a client is offered at the end of a line."""
    words = {"code": code, "cursor_pos": len(code)}
    found: dict[str, Any] = {}
    talk.case(lambda talk: found.update(talk.ask("complete_request", words)))
    return found


def test_what_tab_completes(front: Front, remote: str) -> None:
    """Verbs at once, while the kernel is busy; then sessions, paths there, and our own magics."""
    front.run("1")
    busy = front.talk.queue("import time; time.sleep(3)")
    found = completed(front.talk, "%remoter st")
    assert (found["matches"], found["cursor_start"]) == (["status", "stop"], 9)
    assert completed(front.talk, "%remoter timer ")["matches"] == ["on", "off"]
    assert completed(front.talk, "%remoter help ti")["matches"] == ["timer"]
    session = front.run("%remoter status").partition("session")[2].split()[0]
    assert session in completed(front.talk, "%remoter log ")["matches"]
    front.talk.listen(lambda: front.talk._is_idle(busy))
    front.run(CHOICE)
    try:  # the far side has a second to answer, on a busy machine, too
        wait_for(
            lambda: (
                completed(front.talk, "%remoter get zeb")["matches"]
                == [r"zebra\ one.txt", "zebras/"]
            ),
            seconds=20,
            what="paths there",
        )
    finally:
        front.run(AWAY)
    assert "%remoter" in offered(front.talk, "%rem")
    assert "%%local" in offered(front.talk, "%%loc")
    front.run("front_of_mine = 1")
    assert "front_of_mine" in offered(front.talk, "front_of_m")


def offered(talk: Talk, line: str) -> list[str]:
    """Return what the line would become."""
    found = completed(talk, line)
    return [line[: found["cursor_start"]] + match for match in found["matches"]]


def test_help_says_how_a_verb_is_used(front: Front) -> None:
    """`%remoter` alone is help; a verb has a line and an example; an unknown one the nearest."""
    everything = front.run("%remoter")
    assert "%remoter timer" in everything
    assert everything == front.run("%remoter help")
    text = front.run("%remoter help timer")
    assert "%remoter timer on|off\n" in text
    assert "For example:\n    %remoter timer on\n" in text
    assert 'did you mean "timer"' in front.run("%remoter help tiemr")


def run(talk: Talk, code: str) -> list[dict[str, Any]]:
    """Run a cell; return what it published, with its times."""
    cell = talk.queue(code)
    talk.done(cell)
    published = [message for channel, message in talk.heard if channel == "iopub"]
    return [each for each in published if each["parent_header"].get("msg_id") == cell]


def times_of(published: list[dict[str, Any]]) -> tuple[float, float]:
    """Return what the timer's line says, which is the last one before idle."""
    *_, line, idle = published
    assert idle["content"]["execution_state"] == "idle"
    assert line["content"]["name"] == "stderr"
    told = LINE.fullmatch(line["content"]["text"].removeprefix("\n"))
    assert told, line["content"]
    return float(told[1]), float(told[2])


def test_the_timer_tells_after_each_cell(front: Front) -> None:
    """Half a second there is told as that; the line comes after all outputs, before idle."""
    front.run("1")
    assert front.run("%remoter timer") == "The timer is off.\n"
    assert front.run("%remoter timer on") == "The timer is on.\n"
    published = run(front.talk, "import time; time.sleep(0.5); print('half a line', end='')")
    assert 0.5 <= times_of(published)[0] < 10
    assert published[-3]["content"]["text"] == "half a line"
    assert published[-2]["content"]["text"].startswith("\n")
    assert times_of(run(front.talk, "1 / 0"))
    assert "[remoter]" not in front.run("1", silent=True)
    front.run("%remoter timer off")
    assert front.run("'quiet'") == "'quiet'"
    assert "turned on or off" in front.run("%remoter timer sometimes")


def test_the_timer_comes_last_under_pacing_too(paced: Front) -> None:
    """3 MB of text at 0.5 MB/s: all of it, the line, idle; and its wait counts as the link's."""
    paced.run("%remoter timer on")
    published = run(paced.talk, "print('x' * 3_000_000); print('the end')")
    text = "".join(m["content"]["text"] for m in published[:-2] if m["msg_type"] == "stream")
    assert text == "x" * 3_000_000 + "\nthe end\n"
    assert times_of(published)[1] > 2


def test_the_timer_in_r(here: JupyterHere, python_remote: dict[str, Any]) -> None:
    """IRkernel's dates will do."""
    real_part("irkernel")
    spec = here.add_remote("timed-r", language="R", kernel="ir", **python_remote)
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        run(talk, "%remoter timer on")
        assert 0.4 <= times_of(run(talk, "Sys.sleep(0.4); cat('on\\n')"))[0] < 10
        assert "%remoter" in offered(talk, "%rem")


def test_another_sessions_outputs_and_log(
    here: JupyterHere, front: Front, remote: str, tmp_path: Path
) -> None:
    """Of a session of the same remote, by the beginning of its id; an error if there is none."""
    ran = here.remoter("run", remote, "--detach", "-c", "print('from ' + 'elsewhere')")
    name = ran.stdout.strip()
    asked(here, "outputs", "-f", name)
    assert "from elsewhere" in front.run(f"%remoter outputs {name[:5]}")
    assert "asked to end the session once all is done" in front.run(f"%remoter log {name}")
    assert "There is no session 'fffffff'" in front.run("%remoter outputs fffffff")
