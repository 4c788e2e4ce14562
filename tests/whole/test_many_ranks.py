"""One notebook, many MPI ranks: a far kernel that starts them, and what becomes of them.

The cells are those of docs/tutorials/many-ranks.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from jupyter_client.connect import write_connection_file

from bench.proxy import Proxy
from tests.conftest import marked
from tests.real_jupyter import started_kernel, wait_for
from tests.real_users import ranks_python
from tests.whole.talk import Talk
from tests.whole.test_sessions import a_front, asked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

WAIT = 60.0  # seconds
LINES = 100
START = """
import ipyparallel as ipp
cluster = ipp.Cluster(engines="mpi", n=2, cluster_id="{name}")
rc = cluster.start_and_connect_sync()
rc.ids
"""
MEET = """%%px
from mpi4py import MPI
comm = MPI.COMM_WORLD
kept = comm.rank + 40
"""
FIND = """
import ipyparallel as ipp
cluster = ipp.Cluster.from_file(cluster_id="{name}")
rc = cluster.connect_client_sync()
"""
COUNT = """%%px
import time
for i in range({lines}):
    print('line', i, flush=True)
    time.sleep({pause})
"""


@dataclass(frozen=True)
class Place:
    """A remote whose kernels can start ranks, and the path to it."""

    name: str
    path: Proxy
    far: FarSide

    @property
    def spec(self) -> str:
        return f"remoter-{self.name}"

    def there(self) -> set[str]:
        """List what MPI and its controllers have there: processes, and files outside of homes."""
        return {*self._processes(), *self._files()}

    def _processes(self) -> Iterator[str]:
        for process in marked():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if re.search(r"ipyparallel\.(controller|engine)|prterun|mpiexec", line):
                    yield f"{process.pid} {line}"

    def _files(self) -> Iterator[str]:
        for folder, pattern in (("/tmp", "ompi.*"), ("/dev/shm", "sm_segment.*")):
            for path in Path(folder).glob(pattern):
                with contextlib.suppress(OSError):
                    if path.owner() == self.far.user:
                        yield str(path)


@pytest.fixture(scope="module")
def place(here: JupyterHere, sshd: RealSshd, far: FarSide) -> Iterator[Place]:
    """A remote of these tests alone."""
    python, name = ranks_python(far), f"ranks-{os.getpid()}"
    known = f"HostKeyAlias [127.0.0.1]:{sshd.port}"
    with far.folder() as folder, Proxy(sshd.port) as path:
        config = here.folder / "ssh_config_ranks"
        sshd.ssh_config(config, name, extra=f"Port {path.port}\n{known}")
        environment = {
            "PATH": f"{python.parent}:$PATH",
            "IPYTHONDIR": str(folder),
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # where there is one core
        }
        here.add_remote(name, name, ssh_config=config, python=str(python), env=environment)
        yield Place(name, path, far)
        here.remoter("stop", "--all", name)


@contextlib.contextmanager
def all_gone(place: Place) -> Iterator[None]:
    """See to it that whatever ranks are started meanwhile are gone in the end."""
    before = place.there()
    yield
    left = lambda: place.there() - before  # noqa: E731
    wait_for(lambda: not left(), seconds=30, what=f"no rank is left of {left()}")


@pytest.fixture(scope="module")
def talk(place: Place) -> Iterator[Talk]:
    """A conversation with a kernel that has ranks: for all tests that leave it as it is."""
    with all_gone(place), started_kernel(place.spec) as kernel:
        talk = Talk(kernel.client)
        begin(talk, "kept")
        yield talk


def begin(talk: Talk, name: str) -> None:
    """Start two ranks, and let them meet."""
    said = run(talk, START.format(name=name))
    assert "[0, 1]" in said, said
    said = run(talk, MEET)
    assert "Error" not in said, said


def session_of(talk: Talk) -> str:
    """Return the id of the session that a kernel is in."""
    return run(talk, "%remoter status").partition("session")[2].split()[0]


def run(talk: Talk, code: str) -> str:
    """Run a cell to its end; return what it showed."""
    cell = talk.queue(code)
    talk.listen(lambda: talk._is_done(cell), seconds=WAIT)
    return shown(talk, cell)


def shown(talk: Talk, cell: str) -> str:
    """Return what a cell has shown so far: what ranks print is a display, told anew as it grows."""
    texts: dict[str, str] = {}
    for number, (channel, message) in enumerate(talk.heard):
        if channel != "iopub" or message["parent_header"].get("msg_id") != cell:
            continue
        content = message["content"]
        text = content.get("text") or (content.get("data") or {}).get("text/plain", "")
        # ipyparallel may give the displays of two ranks one name.
        name = (content.get("transient") or {}).get("display_id", number)
        place = f"{name}{text.partition(']')[0]}"
        before = texts.get(place, "")
        assert text.startswith(before), (before, text)
        assert text != before or not before, text  # each comes once, and so they only grow
        texts[place] = text + "".join(content.get("traceback", []))
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(texts.values()))


def lines(talk: Talk, cell: str, rank: int) -> list[int]:
    """Return the numbers of the lines that one rank has printed in a cell so far."""
    printed = shown(talk, cell).partition(f"[stdout:{rank}] ")[2].partition("[stdout:")[0]
    return [int(number) for number in re.findall(r"^line (\d+)$", printed, re.MULTILINE)]


def have_begun(talk: Talk, cell: str) -> bool:
    """Has each rank printed a few lines of a cell?"""
    return all(len(lines(talk, cell, rank)) > 5 for rank in (0, 1))


# --------------------------------------------------------------- what a cell shows


def test_all_ranks_answer(talk: Talk) -> None:
    """What each rank prints is under the cell; a function's values come from each in order."""
    said = run(talk, "%%px\nprint(f'{comm.rank} of {comm.size}: {comm.allreduce(comm.rank + 1)}')")
    assert "[stdout:0] 0 of 2: 3" in said
    assert "[stdout:1] 1 of 2: 3" in said
    run(talk, "def add(x):\n    return x + kept, comm.allreduce(1)")
    assert "[(41, 2), (42, 2)]" in run(talk, "rc[:].apply_sync(add, 1)")


def test_an_error_of_one_rank_is_told_as_its_own(talk: Talk) -> None:
    """The cell fails, the other rank's output stands, and both go on."""
    said = run(talk, "%%px\nif comm.rank == 1:\n    1 / 0\nprint('through')")
    assert "[stdout:0] through" in said
    assert re.search(r"\[1:execute\].*ZeroDivisionError: division by zero", said, re.DOTALL)
    assert "[0:execute]" not in said
    assert "[stdout:1]" not in said
    assert "[2, 2]" in run(talk, "rc[:].apply_sync(lambda: comm.allreduce(1))")


def test_an_interrupt_ends_the_cell_on_every_rank(talk: Talk) -> None:
    """Each stops where it is, and both are there for the next cell."""
    cell = talk.queue(COUNT.format(lines=LINES, pause=0.5))
    talk.listen(lambda: have_begun(talk, cell), seconds=WAIT)
    talk.ask("interrupt_request", channel="control")
    talk.listen(lambda: talk._is_done(cell), seconds=10)
    # A rank that still counted would not answer before half a minute has passed.
    again = talk.queue("rc[:].apply_sync(lambda: (i, comm.allreduce(1)))")
    talk.listen(lambda: talk._is_done(again), seconds=10)
    found = re.findall(r"\((\d+), 2\)", shown(talk, again))
    assert len(found) == 2
    assert all(5 <= int(each) < LINES - 1 for each in found)


def test_a_cut_loses_no_line_of_any_rank(talk: Talk, place: Place) -> None:
    """The ranks go on meanwhile: what they have printed arrives, once, in order."""
    cell = talk.queue(COUNT.format(lines=LINES, pause=0.05))
    talk.listen(partial(have_begun, talk, cell), seconds=WAIT)
    assert place.path.cut() > 0
    talk.listen(lambda: talk._is_done(cell), seconds=WAIT)
    assert [lines(talk, cell, rank) for rank in (0, 1)] == [list(range(LINES))] * 2


# --------------------------------------------------------------- what becomes of them


@pytest.mark.slow
def test_ranks_outlive_the_front_and_the_kernel(
    here: JupyterHere, place: Place, tmp_path: Path
) -> None:
    """A killed proxy changes nothing; a killed kernel leaves them to the next one."""
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    for file in files:
        write_connection_file(str(file), key=secrets.token_hex(16).encode())
    with all_gone(place):
        with a_front(files[0], place.name) as front:
            begin(front.talk, "left")
            session = session_of(front.talk)
            front.kill()
        with a_front(files[1], place.name, "--session", session) as front:
            assert "[40, 41]" in run(front.talk, "rc[:]['kept']")
            kernel = int(run(front.talk, "import os; os.getpid()"))
            os.kill(kernel, signal.SIGKILL)
            wait_for(lambda: not psutil.pid_exists(kernel), what="the kernel is dead")
            run(front.talk, FIND.format(name="left"))
            assert "[40, 41]" in run(front.talk, "rc[:]['kept']")
            run(front.talk, "cluster.stop_cluster_sync()")
        asked(here, "stop", f"{place.name}/{session}")


@pytest.mark.parametrize("how", ["stop", pytest.param("restart", marks=pytest.mark.slow)])
def test_busy_ranks_end_with_their_kernel(here: JupyterHere, place: Place, how: str) -> None:
    """Neither `remoter stop` nor a restart leaves ranks behind, whatever they are doing."""
    with started_kernel(place.spec) as kernel, all_gone(place):
        talk = Talk(kernel.client)
        begin(talk, how)
        session = session_of(talk)
        cell = talk.queue(COUNT.format(lines=LINES, pause=0.5))
        talk.listen(lambda: have_begun(talk, cell), seconds=WAIT)
        if how == "stop":
            asked(here, "stop", f"{place.name}/{session}")
        else:
            kernel.manager.restart_kernel()
