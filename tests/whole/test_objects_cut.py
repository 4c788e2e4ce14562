"""Objects on their way over a link that is cut, and to a kernel that dies."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from bench.proxy import Proxy
from tests.real_jupyter import started_kernel, wait_for
from tests.whole.talk import Talk
from tests.whole.test_this_side import reply, run, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

SIZE = 20 * 2**20  # bytes: some pieces
SLOW = 80_000_000.0  # bits per second: they take two seconds
WAIT = 90.0  # seconds from a cut to the end of a cell


@pytest.fixture(scope="module")
def path(sshd: RealSshd) -> Iterator[Proxy]:
    """A breakable path to the sshd."""
    with Proxy(sshd.port, bits_per_second=SLOW) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def talk(
    here: JupyterHere,
    sshd: RealSshd,
    far: FarSide,
    path: Proxy,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Talk]:
    """Somebody who talks to a kernel over that path."""
    config = tmp_path_factory.mktemp("config") / "ssh_config"
    name = f"[127.0.0.1]:{sshd.port}"  # the key is known by the sshd's own port
    sshd.ssh_config(config, "cut", extra=f"Port {path.port}\nHostKeyAlias {name}")
    spec = here.add_remote(
        "carries-cut", host="cut", ssh_config=config, python=str(far.python), local="allow"
    )
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        run(talk, "import random")
        run(talk, f"%%local\nimport random\nhere = random.randbytes({SIZE})")
        yield talk


def on_their_way(far: FarSide) -> list[int]:
    """Return the sizes of what is being carried, as they are there."""
    sessions = far.home / ".local/share/remoter-kernel/sessions"
    return [file.stat().st_size for file in sessions.glob("*/carried-*/object")]


def test_a_cut_on_the_way_there_is_waited_out(talk: Talk, path: Proxy, far: FarSide) -> None:
    """In the middle of a piece: it is sent once more, and all arrives as it was."""
    cell = talk.queue("%remoter push here")
    wait_for(lambda: sum(on_their_way(far)) > SIZE // 3, seconds=60, what="a part has arrived")
    assert path.cut() > 0
    talk.listen(lambda: talk._is_done(cell), seconds=WAIT)
    digest = "import hashlib; hashlib.sha256(here).hexdigest()"
    assert text_of(run(talk, digest)) == text_of(run(talk, f"%local {digest}"))
    assert not on_their_way(far)


def test_a_cut_on_the_way_here_is_waited_out(talk: Talk, path: Proxy, far: FarSide) -> None:
    """The same in the other direction."""
    run(talk, f"there = random.randbytes({SIZE})")
    cell = talk.queue("%remoter pull there")
    wait_for(lambda: sum(on_their_way(far)) > SIZE, seconds=60, what="it is packed")
    before = path.cut()
    assert before > 0
    talk.listen(lambda: talk._is_done(cell), seconds=WAIT)
    digest = "import hashlib; hashlib.sha256(there).hexdigest()"
    assert text_of(run(talk, digest)) == text_of(run(talk, f"%local {digest}"))
    assert not on_their_way(far)


def test_an_interrupt_does_not_wait_for_a_slow_link(talk: Talk, path: Proxy, far: FarSide) -> None:
    """In either direction, in the middle: pieces are as large as the link is fast."""
    path.narrow(SLOW / 40)
    try:
        for words in ("push here as slow", "pull there as slow"):
            before = path.bytes_up + path.bytes_down
            cell = talk.queue(f"%remoter {words}")
            wait_for(partial(moved_since, path, before), seconds=60, what="some is on its way")
            talk.send("interrupt_request", {}, channel="control")
            talk.listen(partial(talk._is_done, cell), seconds=6)
    finally:
        path.narrow(SLOW)
    wait_for(lambda: not on_their_way(far), what="nothing is left there")
    assert text_of(run(talk, "'slow' in globals()")) == "False"


def moved_since(path: Proxy, before: int) -> bool:
    """Is more than half a mebibyte on its way, or there?"""
    return path.bytes_up + path.bytes_down - before > 2**19


def test_what_an_interrupt_had_to_leave_is_removed_later(
    talk: Talk, path: Proxy, far: FarSide
) -> None:
    """In a black hole nothing can be removed: the next that is carried takes it along."""
    cell = talk.queue("%remoter push here")
    wait_for(lambda: sum(on_their_way(far)) > SIZE // 3, seconds=60, what="a part has arrived")
    path.stall()
    talk.send("interrupt_request", {}, channel="control")
    talk.listen(lambda: talk._is_done(cell), seconds=6)  # the login notices after 12
    assert on_their_way(far)
    path.cut()
    path.resume()
    run(talk, "%local small = 1")
    cell = talk.queue("%remoter push small")
    talk.listen(lambda: talk._is_done(cell), seconds=WAIT)
    assert text_of(run(talk, "small")) == "1"
    wait_for(lambda: not on_their_way(far), what="nothing is left there")


def test_a_kernel_that_dies_meanwhile_is_told(talk: Talk, far: FarSide) -> None:
    """What is unpickled there ends the kernel: the cell says so, and the next one works."""
    run(
        talk,
        "%%local\nimport os\nclass Deadly:\n"
        "    def __reduce__(self):\n        return os._exit, (3,)\ndeadly = Deadly()",
    )
    said = reply(run(talk, "%remoter push deadly --pickle"))
    assert said["status"] == "error"
    assert "died" in said["evalue"], said
    wait_for(lambda: text_of(run(talk, "1 + 1")) == "2", seconds=30, what="the kernel is back")
    run(talk, "%local alive = 'yes'")
    assert reply(run(talk, "%remoter push alive"))["status"] == "ok"
    assert not on_their_way(far)
