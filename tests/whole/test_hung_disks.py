"""A disk there that hangs: what does not need it goes on, and afterwards nothing is missing.

And the loop of an evaluator touches no file at all while its session works, on any disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.proxy import Proxy
from remoter_kernel.evaluator.records import Record, read_journal
from remoter_kernel.local.config.remotes import find_remote
from remoter_kernel.local.launch.launcher import SessionRequest
from remoter_kernel.local.proxy.sockets import key_fingerprint
from remoter_kernel.local.session.dialer import SessionDialer
from remoter_kernel.protocol.frames import Channel, from_json, unpack_parts
from tests.hung_disk import HungDisk
from tests.real_jupyter import MARK, THIS_RUN, started_kernel, wait_for
from tests.real_parts import real_part
from tests.real_sshd import RealSshd
from tests.whole.talk import Talk
from tests.whole.test_deaths import heard, over, text
from tests.whole.test_life import there, value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere, StartedKernel
    from tests.real_users import FarSide

LONGER_THAN_A_WIRE = 10.0  # seconds: a wire is given up after eight of silence
NOTE = "cannot be written there (it does not answer)"
DIALLED_WITHIN = 60.0  # seconds
SWEPT_WITHIN = 20.0  # seconds

WATCH = '''
"""Tells of each file that a thread touches while it is in an evaluator's loop."""

import os, sys, threading

FILE = os.open(os.environ["WATCH"] + "/" + str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
LOOP, MAIN, NAMES = "_one_pass", threading.get_ident(), (
    "stat lstat fstat pread write ftruncate listdir scandir access readlink unlink rename replace"
    " mkdir rmdir link symlink utime chmod fsync"
).split()


def trace(what, words):
    if threading.get_ident() != MAIN or str(words).startswith("('/proc/"):  # which is no disk
        return
    frame, names = sys._getframe(), []
    while frame:
        names.append(frame.f_code.co_name)
        if frame.f_code.co_name == LOOP:
            line = f"{what} {words!r:.200} {' < '.join(names)}"
            REAL_WRITE(FILE, (line + chr(10)).encode())
            return
        frame = frame.f_back


def hook(event, words):
    is_file = event.startswith(("os.", "shutil.", "glob.", "pathlib.")) and "kill" not in event
    if is_file or event in {"open", "import"}:
        trace(event, words[:1])


def wrapped(name):
    real = getattr(os, name)

    def call(*words, **more):
        trace(name, words[:1])
        return real(*words, **more)

    return call


REAL_WRITE = os.write
for name in NAMES:
    setattr(os, name, wrapped(name))
sys.addaudithook(hook)
'''


class Place:
    """Where the sessions of one remote are, and the way there."""

    def __init__(self, here: JupyterHere, far: FarSide, folder: Path, name: str) -> None:
        self._here, self._far, self._folder, self._name = here, far, folder, name

    def serve(self, data: Path, environment: dict[str, str]) -> Iterator[tuple[str, Proxy]]:
        """Yield a kernelspec, and the path to its host."""
        words = {MARK: THIS_RUN, "XDG_DATA_HOME": data, **environment}
        mark = "SetEnv " + " ".join(f"{name}={value}" for name, value in words.items())
        with (
            RealSshd(self._folder, user=self._far.user, extra_config=mark) as server,
            Proxy(server.port) as path,
        ):
            extra = f"Port {path.port}\nHostKeyAlias [127.0.0.1]:{server.port}"
            config = self._folder / "ssh_config"
            server.ssh_config(config, self._name, extra=extra)
            wishes: dict[str, Any] = {"python": str(self._far.python), "local": "allow"}
            host = self._name
            yield self._here.add_remote(self._name, host, ssh_config=config, **wishes), path


def session_in(folder: Path) -> Path:
    """The folder of the one session."""
    (door,) = folder.glob("remoter-kernel/sessions/*/door.json")
    return door.parent


# --- a disk that hangs ---


@pytest.fixture(scope="module")
def disk(far: FarSide) -> Iterator[HungDisk]:
    """A disk of the far user's that can hang."""
    real_part("gcc")
    with far.folder() as folder:
        disk = HungDisk(folder)
        disk.build()
        far.give(disk.folder)
        yield disk


@pytest.fixture(scope="module")
def way(
    here: JupyterHere, far: FarSide, disk: HungDisk, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Proxy]]:
    """A kernelspec for a host whose sessions are on that disk, and the path there."""
    place = Place(here, far, tmp_path_factory.mktemp("hung"), "hung")
    yield from place.serve(disk.folder, disk.environment)


def test_a_disk_that_hangs_costs_no_interrupt_and_no_connection(
    way: tuple[str, Proxy], disk: HungDisk, far: FarSide
) -> None:
    """Longer than a wire lives in silence: a cell goes on, is interrupted, and a cut is mended."""
    spec, path = way
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        assert value(talk, "kept = 'since before'; kept") == "'since before'"
        cell = talk.queue("import time\nfor i in range(10**6): print('line', i); time.sleep(0.2)")
        talk.listen(lambda: "line 1" in text(talk, cell))
        with disk.hung():
            began = time.monotonic()
            talk.listen(
                lambda: time.monotonic() - began > LONGER_THAN_A_WIRE, seconds=DIALLED_WITHIN
            )
            shown = text(talk, cell).count("line")
            assert shown > LONGER_THAN_A_WIRE
            talk.listen(lambda: NOTE in text(talk, cell), seconds=DIALLED_WITHIN)
            path.cut()
            talk.listen(lambda: text(talk, cell).count("line") > shown + 5, seconds=DIALLED_WITHIN)
            asked = time.monotonic()
            kernel.manager.interrupt_kernel()
            talk.listen(lambda: "KeyboardInterrupt" in str(heard(talk, cell)), seconds=20)
            assert time.monotonic() - asked < LONGER_THAN_A_WIRE / 2
        over(talk, cell)
        assert text(talk, cell).count(NOTE) == 1
        assert value(talk, "kept") == "'since before'"
        journal = list(read_journal(session_in(disk.folder) / "journal"))
        assert visits(journal) == ["came", "went", "came"], "one cut, and it was ours"
        numbers = [record.number for record in journal]
        assert numbers == list(range(1, len(numbers) + 1))
    wait_for(lambda: not there(far), what="the far side is empty")


def visits(journal: list[Record]) -> list[str]:
    """When the proxy came and went, as the evaluator has seen it."""
    notes = [from_json(unpack_parts(r.body)[0]) for r in journal if r.channel is Channel.EVENT]
    return [note["event"] for note in notes if note.get("event") in {"came", "went"}]


# --- the loop and files ---


@pytest.fixture
def watch(far: FarSide) -> Iterator[Path]:
    """A folder with what watches a Python from its beginning, and where it tells."""
    with far.folder() as folder:
        (folder / "sitecustomize.py").write_text(WATCH)
        (folder / "sitecustomize.py").chmod(0o644)
        yield folder


def touched(watch: Path) -> list[str]:
    """What an evaluator's loop has touched so far; it tells where the launch did."""
    return [line for file in watch.glob("[0-9]*") for line in file.read_text().splitlines()]


def test_the_loop_of_an_evaluator_touches_no_file_while_its_session_works(
    here: JupyterHere, far: FarSide, watch: Path, tmp_path: Path
) -> None:
    """Cells, questions, interrupts, another client, orders, cuts, and sweeping: threads do that."""
    data = watch / "data"
    old = data / "remoter-kernel" / "sessions" / "0ld0ld"
    old.mkdir(parents=True)
    (old / "session.json").write_text(json.dumps({"ended": 1.0}))
    for folder in (data, *data.rglob("*")):
        far.give(folder)
    environment = {"WATCH": str(watch), "PYTHONPATH": str(watch)}
    for spec, path in Place(here, far, tmp_path, "watched").serve(data, environment):
        with started_kernel(spec) as kernel:
            talk = Talk(kernel.client)
            assert value(talk, "1 + 1") == "2"
            forget(watch)  # what its start touches
            at_work(talk, kernel, path)
            another_client(kernel)
            wait_for(lambda: not old.exists(), seconds=SWEPT_WITHIN, what="it was swept")
            assert value(talk, "1 + 2") == "3"
            assert "\n".join(touched(watch)) == ""
            assert here.remoter("stop", "--all", "watched").returncode == 0  # it was to be kept
    wait_for(lambda: not there(far), what="the far side is empty")


def forget(watch: Path) -> None:
    """Begin anew."""
    for file in watch.glob("[0-9]*"):
        file.write_text("")


def test_a_loop_that_touches_a_file_is_seen(watch: Path) -> None:
    """Else the proof before would prove nothing."""
    code = """if True:
        import os
        from remoter_kernel.protocol.reactor import Reactor
        reactor = Reactor()
        reactor.call_later(0.0, lambda: os.stat("/seen"[:1]))
        reactor.call_later(0.0, lambda: open("/dev/null").close())
        reactor.call_later(0.0, reactor.stop)
        os.lstat("/")
        reactor.run()
    """
    folder = Path(__file__).parents[2]
    environment = {**os.environ, "WATCH": str(watch), "PYTHONPATH": f"{watch}:{folder}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert [line.split()[0] for line in touched(watch)] == ["stat", "open"]


def at_work(talk: Talk, kernel: StartedKernel, path: Proxy) -> None:
    """Use a session for what it is for."""
    talk.case(lambda talk: talk.run("print('x' * 10**6); 1 / 0"))
    talk.case(lambda talk: talk.run("input('?')", answers=["yes"]))
    talk.case(lambda talk: talk.run("%remoter keep"))
    assert talk.ask("complete_request", {"code": "pri", "cursor_pos": 3})["status"] == "ok"
    cell = talk.queue("import time; print('on', flush=True); time.sleep(60)")
    talk.listen(lambda: "on" in text(talk, cell))
    path.cut()
    kernel.manager.interrupt_kernel()
    talk.listen(lambda: talk._is_done(cell), seconds=DIALLED_WITHIN)


def another_client(kernel: StartedKernel) -> None:
    """Come through another login, with a key that is new there."""
    dialer = SessionDialer(lambda: find_remote("watched"))
    dialer.session_request = SessionRequest(
        client_key="", kernel_id=key_fingerprint(kernel.client.session.key.decode())
    )
    line = dialer.dial()
    line.close()
