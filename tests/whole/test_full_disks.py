"""A real full disk there: told once, nothing lost, and all works when there is room again."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
import pytest

from remoter_kernel.evaluator.records import read_journal
from tests.real_jupyter import MARK, THIS_RUN, started_kernel, wait_for
from tests.real_parts import real_part
from tests.real_sshd import RealSshd
from tests.whole.talk import Talk
from tests.whole.test_deaths import heard, lines, over, replies, text
from tests.whole.test_life import there, value
from tests.whole.test_this_side import reply, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

FLOOD = "for i in range(400): print('x' * 100_000, '\\nline', i, flush=True)"  # 40 MB


class Disk:
    """A small disk of the far user's own, where its sessions are."""

    def __init__(self, far: FarSide, folder: Path) -> None:
        self.folder = folder
        self._ids = f"mode=700,uid={far.ids['user']},gid={far.ids['group']}"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self._mount("size=16m")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)
        self.folder.rmdir()

    def _mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"{options},{self._ids}", "tmpfs"]
        subprocess.run([*command, str(self.folder)], check=True)

    def make_room(self) -> None:
        """Let it be larger."""
        options = f"remount,size=200m,{self._ids}"
        subprocess.run(["mount", "-o", options, str(self.folder)], check=True)

    def fill(self) -> None:
        """Leave not one byte."""
        with contextlib.suppress(OSError), (self.folder / "waste").open("ab", 0) as file:
            while True:
                file.write(bytes(65536))
        with contextlib.suppress(OSError), (self.folder / "waste").open("ab", 0) as file:
            while True:
                file.write(bytes(1))

    def empty(self) -> None:
        """Take away what filled it."""
        (self.folder / "waste").unlink()

    @property
    def session(self) -> Path:
        """The folder of the one session."""
        (folder,) = self.folder.glob("remoter-kernel/sessions/*")
        return folder


@pytest.fixture(scope="module")
def disk(far: FarSide) -> Iterator[Disk]:
    """A disk of 16 MB."""
    real_part("root")
    with Disk(far, Path(f"/mnt/full-{os.getpid()}")) as disk:
        yield disk


@pytest.fixture(scope="module")
def spec(
    here: JupyterHere, far: FarSide, disk: Disk, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A kernelspec for a host whose sessions are on that disk."""
    folder = tmp_path_factory.mktemp("full")
    mark = f"SetEnv {MARK}={THIS_RUN} XDG_DATA_HOME={disk.folder}"
    with RealSshd(folder, user=far.user, extra_config=mark) as server:
        config = server.ssh_config(folder / "ssh_config", "full")
        wishes: dict[str, Any] = {"python": str(far.python), "local": "allow"}
        yield here.add_remote("full", "full", ssh_config=config, **wishes)


@pytest.fixture
def talk(spec: str, disk: Disk, far: FarSide) -> Iterator[Talk]:
    """A conversation with a kernel, which leaves nothing."""
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("kept = 'since before'; import os"))
        yield talk
    leave_nothing(disk, far)


def leave_nothing(disk: Disk, far: FarSide) -> None:
    """Wait until no session runs, and remove those that there were."""
    wait_for(lambda: not there(far), what="the far side is empty")
    for path in disk.folder.iterdir():
        subprocess.run(["rm", "-rf", str(path)], check=True)


def test_a_session_goes_on_when_its_disk_is_full(talk: Talk, here: JupyterHere, disk: Disk) -> None:
    """Forty megabytes on sixteen: told once; later cells work; with room all is written."""
    cell = talk.queue(FLOOD)
    over(talk, cell)
    assert lines(talk, cell) == list(range(400))
    told = text(talk, cell).count("No space left")
    for number in range(3):  # the first of them hears of it if the disk was slower than the flood
        assert value(talk, f"{number} + 1, kept") == f"({number + 1}, 'since before')"
        told += sum("No space left" in str(m["content"]) for _, m in talk.heard)
        assert told == 1
    name = disk.session.name
    listed = here.remoter("sessions", "full")
    assert (listed.returncode, name in listed.stdout) == (0, True), listed
    assert here.remoter("log", f"full/{name}").returncode == 0
    half = here.remoter("outputs", f"full/{name}")
    assert half.returncode == 0
    assert "line 100" in half.stdout
    assert "line 399" not in half.stdout
    disk.make_room()
    wait_for(lambda: (disk.session / "journal").stat().st_size > 40_000_000, seconds=20)
    assert value(talk, "'room', kept") == "('room', 'since before')"
    whole = here.remoter("outputs", f"full/{name}")
    assert [f"line {number}\n" in whole.stdout for number in (0, 399)] == [True, True]
    numbers = [record.number for record in read_journal(disk.session / "journal")]
    assert numbers == list(range(1, len(numbers) + 1))
    stopped = here.remoter("stop", f"full/{name}")
    assert (stopped.returncode, stopped.stdout) == (0, f"full/{name} was stopped.\n")


def test_a_kernel_that_dies_on_a_full_disk_starts_anew(talk: Talk, disk: Disk) -> None:
    """What it needs to start has room, or one hears that it has none."""
    pid = int(value(talk, "os.getpid()"))
    disk.fill()
    cell = talk.queue("import time; time.sleep(60)")
    talk.listen(lambda: bool(heard(talk, cell)))
    psutil.Process(pid).kill()
    over(talk, cell)
    assert "SIGKILL" in str([m["content"] for m in heard(talk, cell) if m["msg_type"] == "error"])
    assert value(talk, "1 + 1") == "2"


def test_an_object_for_which_there_is_no_room(talk: Talk, disk: Disk) -> None:
    """The cell says why it was not carried, in either direction, and nothing stays there."""
    run(talk, "%local here = bytes(2 * 2**20)")
    run(talk, "there = bytes(2 * 2**20)")
    disk.fill()
    os.truncate(disk.folder / "waste", (disk.folder / "waste").stat().st_size - 2**19)
    for words in ("push here", "pull there"):
        said = reply(run(talk, f"%remoter {words}"))
        assert "No space left" in said["evalue"], said
        assert not list(disk.session.glob("carried-*"))
    disk.empty()
    for words in ("push here", "pull there"):
        assert reply(run(talk, f"%remoter {words}"))["status"] == "ok"


def test_an_object_for_which_there_is_no_room_here(spec: str, disk: Disk, far: FarSide) -> None:
    """The cell says so, in either direction, and what did not fit is removed."""
    with Disk(far, Path(f"/mnt/full-here-{os.getpid()}")) as small:
        environment = {**os.environ, "TMPDIR": str(small.folder)}
        with started_kernel(spec, env=environment) as kernel:
            talk = Talk(kernel.client)
            run(talk, "there = bytes(2 * 2**20)")
            run(talk, "%local here = bytes(2 * 2**20)")
            small.fill()
            os.truncate(small.folder / "waste", (small.folder / "waste").stat().st_size - 2**19)
            said = reply(run(talk, "%remoter pull there"))
            assert f"No space left on device. Look at {small.folder}" in said["evalue"], said
            said = reply(run(talk, "%remoter push here"))
            assert "No space left on device" in said["evalue"], said
            assert not list(small.folder.glob("remoter-*/*"))
            small.empty()
            assert reply(run(talk, "%remoter pull there"))["status"] == "ok"
    leave_nothing(disk, far)


def test_an_evaluator_that_dies_on_a_full_disk(talk: Talk, disk: Disk, far: FarSide) -> None:
    """No other one can begin without room; one hears so, and with room it does."""
    disk.fill()
    cell = talk.queue("import time; print('going', flush=True); time.sleep(3)")
    talk.listen(lambda: "going" in text(talk, cell))
    evaluator_of(disk).kill()
    wait_for(lambda: "No space left" in status(talk), seconds=30)
    refused = talk.queue("'refused'")
    talk.listen(lambda: talk._is_done(refused), seconds=30)
    (error,) = [m["content"] for m in heard(talk, refused) if m["msg_type"] == "error"]
    assert "No space left" in error["evalue"]
    disk.empty()
    later = talk.queue("print(kept)")
    over(talk, cell, later)
    assert text(talk, later).endswith("since before\n")
    assert len(replies(talk, cell)) == 1


def status(talk: Talk) -> str:
    """Ask the proxy how the link is."""
    asked = talk.queue("%remoter status")
    over(talk, asked)
    return text(talk, asked)


def evaluator_of(disk: Disk) -> psutil.Process:
    """Return the process that answers for the session."""
    return psutil.Process(json.loads((disk.session / "door.json").read_text())["pid"])


def test_a_session_that_finds_no_room_at_its_start(spec: str, disk: Disk, far: FarSide) -> None:
    """The cell says what is missing; with room the same cell works."""
    disk.fill()
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        said: dict[str, Any] = talk.case(lambda talk: talk.run("1"))
        (error,) = [m for m in said["iopub under request 0"] if m["type"] == "error"]
        assert "No space left" in error["content"]["evalue"]
        disk.empty()
        assert value(talk, "1 + 1") == "2"
    wait_for(lambda: not there(far), what="the far side is empty")
