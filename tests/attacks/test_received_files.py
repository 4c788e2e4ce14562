"""Whoever sends files may be hostile: what was asked for comes, and nothing beside it."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from remoter_kernel.errors import ProtocolError, RemoterError
from remoter_kernel.evaluator import transfer_command as far_end
from remoter_kernel.local.login.keeper.endpoint import end_logins
from remoter_kernel.local.objects.remote_temp_dir import RemoteTempDir
from remoter_kernel.local.transfer.file_transfer import SocketEnds
from remoter_kernel.transfer import partial_file as parts
from remoter_kernel.transfer.framed_stream import (
    ACK_BODY,
    ASK_FROM,
    BODY_START,
    GREETING,
    HEAD,
    TRANSFER_VERSION,
    Cut,
    FileEntry,
    FileTrouble,
    FramedStream,
    FrameType,
    TroubleCode,
    pack_frame,
    to_body,
)
from remoter_kernel.transfer.plan import make_plan
from remoter_kernel.transfer.receiver import Receiver
from remoter_kernel.transfer.safe_paths import partial_name
from remoter_kernel.transfer.sender import Sender
from tests.real_jupyter import wait_for
from tests.two_ends import carry, dst, entry, link, names, say, send, src, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

__all__ = ["dst", "src"]  # fixtures

MIB = 1024 * 1024
FINISH = pack_frame(FrameType.FINISH)


def words(word: FrameType, **said: Any) -> bytes:
    return pack_frame(word, to_body(said))


def folder(path: str, number: int, **said: Any) -> bytes:
    return words(
        FrameType.ENTRY, **{**FileEntry(path, "folder").to_dict(number, asks=False), **said}
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="module", autouse=True)
def nobody_waits_long_for_a_part() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "ALONE_WITHIN", 0.0)
        patch.setattr(parts, "TRY_EVERY", 0.0)
        yield


# --------------------------------------------------------------- the whole way


class Evil:
    """A remote whose evaluator is not ours: it says what a test wants it to say."""

    def __init__(self, here: JupyterHere, far: FarSide, remote: dict[str, Any], home: Path) -> None:
        self._here = here
        self._said = home / "said"
        python = home / "python"
        python.write_text(
            f'#!/bin/sh\nif [ "$2" = transfer ]; then cat {self._said}; exec cat > /dev/null; fi\n'
            f'exec {far.python} "$@"\n'
        )
        python.chmod(0o755)
        here.add_remote("evil", **{**remote, "python": str(python)})

    def get(self, said: bytes, source: str, to: Path) -> subprocess.CompletedProcess[str]:
        """Run `remoter get` while the far side says that."""
        self._said.write_bytes(GREETING + b"\n" + said)
        return self._here.remoter("get", "evil", source, f"{to}/")


@pytest.fixture(scope="module")
def evil(here: JupyterHere, far: FarSide, python_remote: dict[str, Any]) -> Iterator[Evil]:
    with far.folder() as home:
        yield Evil(here, far, python_remote, home)
        end_logins()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with two files that whoever writes them has won."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    for name in (".bashrc", ".ssh/authorized_keys"):
        (home / name).write_text("# mine")
        (home / name).chmod(0o600)
    return home


def is_untouched(home: Path) -> bool:
    files = [home / ".bashrc", home / ".ssh/authorized_keys"]
    texts = {(path.read_text(), mode(path)) for path in files}
    return texts == {("# mine", 0o600)} and names(home / ".ssh") == ["authorized_keys"]


def test_a_link_in_what_was_asked_for_does_not_lead_beside_it(evil: Evil, home: Path) -> None:
    """The remote sends `results/l`, a link to `..`, and then `results/l/.bashrc`."""
    said = start("results") + folder("results", 1) + link("results/l", "..", 2)
    said += entry("results/l/.bashrc", 3) + entry("results/l/.ssh/authorized_keys", 4) + FINISH
    ran = evil.get(said, "results", home)
    assert is_untouched(home)
    assert names(home) == [".bashrc", ".ssh", "results"]
    assert names(home / "results") == []
    assert ran.returncode == 4
    assert ran.stderr.startswith("remoter: evil: it sent a file called ..")
    assert "outside the folder that is to be written: it was not written" in ran.stderr


def test_a_hidden_name_is_nothing_that_a_dot_asks_for(evil: Evil, home: Path) -> None:
    """The remote says that its folder is called `.bashrc`."""
    ran = evil.get(start(".bashrc", is_folder=False) + entry(".bashrc"), ".", home)
    assert is_untouched(home)
    assert names(home) == [".bashrc", ".ssh"]
    assert ran.returncode == 4
    assert (
        "evil: it sent a file called .bashrc, and a hidden name has to be asked for" in ran.stderr
    )


def test_a_sender_of_more_than_it_has_told_of_is_left(evil: Evil, home: Path) -> None:
    """The remote tells of one small file, and sends a second one."""
    said = start("results", files=1, size=4, entries=2) + folder("results", 1)
    ran = evil.get(said + entry("results/a", 2) + entry("results/b", 3) + FINISH, "results", home)
    assert names(home / "results") == ["a"]
    assert ran.returncode == 4
    assert "evil: The sender said what no sender says: More came than the 2 entries" in ran.stderr
    assert "Ask who runs it." in ran.stderr


def test_an_honest_remotes_own_folder_and_hidden_files_come_as_before(
    here: JupyterHere, far: FarSide, python_remote: dict[str, Any], home: Path
) -> None:
    """`.` has its name there, which is said; `.bashrc` is asked for by its name."""
    with far.folder() as there:
        (there / "ada").mkdir()
        (there / "ada/.bashrc").write_text("theirs")
        here.add_remote("honest", **python_remote, cwd=str(there / "ada"))
        ran = here.remoter("get", "honest", ".", f"{home}/")
        assert (ran.returncode, (home / "ada/.bashrc").read_text()) == (0, "theirs")
        assert ". is called ada there" in ran.stderr
        assert is_untouched(home)
        ran = here.remoter("get", "honest", ".bashrc", f"{home}/")
        assert (ran.returncode, (home / ".bashrc").read_text()) == (0, "theirs")
        assert mode(home / ".bashrc") == 0o600
        end_logins("honest")


# --------------------------------------------------------------- beside what was asked for


BESIDE = {
    "a link up": link("top/l", "..", 2) + entry("top/l/.bashrc", 3),
    "a link up from below": folder("top/a", 2)
    + link("top/a/l", "../..", 3)
    + entry("top/a/l/.bashrc", 4),
    "a link to a neighbour": link("top/l", "../.ssh", 2) + entry("top/l/authorized_keys", 3),
    "over a link that is inside": folder("top/a", 2)
    + folder("top/a/b", 3)
    + link("top/l", "a/b", 4)
    + link("top/l/m", "../../..", 5)
    + entry("top/l/m/.bashrc", 6),
    "the mode of what is beside": link("top/l", "..", 2) + folder("top/l/.ssh", 3, mode=0o777),
}


@pytest.mark.parametrize("what", BESIDE)
@pytest.mark.parametrize("is_there", [True, False])
def test_nothing_is_written_beside_a_folder(what: str, home: Path, *, is_there: bool) -> None:
    """The sender makes links in its folder that lead to what lies beside it."""
    if is_there:
        (home / "top").mkdir()
    error = say(start("top") + folder("top", 1) + BESIDE[what] + FINISH, home, "top")
    assert isinstance(error, FileTrouble)
    assert error.code is TroubleCode.UNSAFE
    assert is_untouched(home)
    assert names(home) == [".bashrc", ".ssh", "top"]
    assert mode(home / ".ssh") == 0o755


def test_a_source_is_no_link_to_its_neighbour(home: Path) -> None:
    """The sender makes the source itself a link, and then sends what is in it."""
    said = start("top") + link("top", ".ssh", 1) + entry("top/authorized_keys", 2)
    assert isinstance(say(said, home, "top"), ProtocolError)
    assert is_untouched(home)
    assert names(home) == [".bashrc", ".ssh"]


def test_a_source_that_is_a_file_has_no_room_for_others(home: Path) -> None:
    """The sender tells of a file, and sends a folder with links in its place."""
    for said in (folder("top", 1), link("top", "..", 1), link("top/l", "..", 1), entry("top/x")):
        error = say(start("top", is_folder=False) + said, home, "top")
        assert isinstance(error, (FileTrouble, ProtocolError))
        assert not isinstance(error, Cut)
    assert names(home) == [".bashrc", ".ssh"]


def test_a_link_that_the_person_has_made_does_not_widen_a_source(home: Path) -> None:
    """A source is asked for whose place is, on this side, a link to the folder around it."""
    (home / "top").symlink_to(".")
    error = say(start("top") + folder("top", 1) + entry("top/.bashrc", 2) + FINISH, home, "top")
    assert isinstance(error, FileTrouble)
    assert is_untouched(home)


@pytest.mark.parametrize("is_looked_at", [True, False])
def test_a_link_that_comes_after_the_look_is_looked_at_again(
    home: Path, *, is_looked_at: bool
) -> None:
    """The sender tells of a file, makes a link on the way to it, and then sends its bytes.

    The link leads to another one, which the person has made, and which leads out.
    """
    (home / "top").mkdir()
    (home / "top/mine").symlink_to("../.ssh")
    whole = entry("top/new/authorized_keys", 2)
    told = whole[: HEAD.size + HEAD.unpack_from(whole)[1]]
    said = start("top") + folder("top", 1) + told
    if is_looked_at:  # the bytes of one that was told of before the link was there
        said += link("top/new", "mine", 3) + whole[len(told) :]
    else:  # one that was told of after it
        said += link("top/new", "mine", 3) + entry("top/new/authorized_keys", 4)
    error = say(said, home, "top")
    assert isinstance(error, FileTrouble)
    assert error.code is TroubleCode.UNSAFE
    assert is_untouched(home)


def test_one_dot_is_one_source(home: Path) -> None:
    """The sender is asked for `.`, and sends a folder of that name and one of programs."""
    error = say(start("ada", "bin") + folder("bin", 1), home, ".")
    assert isinstance(error, FileTrouble)
    assert error.code is TroubleCode.UNSAFE
    assert names(home) == [".bashrc", ".ssh"]


@pytest.mark.parametrize("word", [".", "..", "~", "~ada", "*", "**", "a/.."])
def test_hidden_names_are_not_asked_for_by_words_without_a_dot(word: str, home: Path) -> None:
    """The sender answers with a hidden name what only it can know the name of."""
    error = say(start(".bashrc", is_folder=False) + entry(".bashrc"), home, word)
    assert isinstance(error, FileTrouble)
    assert is_untouched(home)


# --------------------------------------------------------------- modes


def test_modes_keep_the_umask(dst: Path) -> None:
    """The sender wants all of it to be written by everybody, and a program to run as its owner."""
    said = start("top") + folder("top", 1, mode=0o777) + folder("top/sub", 2, mode=0o777)
    said += entry("top/a", 3, mode=0o6777) + entry("top/b", 4, mode=None) + FINISH
    assert say(said, dst, "top") is None
    found = {path.name: mode(path) for path in dst.rglob("*")}
    assert found == {"top": 0o755, "sub": 0o755, "a": 0o755, "b": 0o644}


@pytest.mark.parametrize("size", [4, ASK_FROM])
def test_what_is_there_is_not_opened_to_others(home: Path, size: int) -> None:
    """The sender replaces a private file, and tells of private folders, to open them."""
    (home / ".ssh").chmod(0o700)
    content = b"k" * size
    said = start(".ssh") + folder(".ssh", 1, mode=0o777)
    said += entry(".ssh/authorized_keys", 2, content, mode=0o777) + FINISH
    assert say(said, home, ".ssh") is None
    assert (home / ".ssh/authorized_keys").read_bytes() == content
    assert mode(home / ".ssh") == 0o700
    assert mode(home / ".ssh/authorized_keys") == 0o700


def test_what_is_there_may_become_a_program_or_private(src: Path, dst: Path) -> None:
    """A honest sender's modes are followed, as far as that opens nothing."""
    for name, before, sent, after in [
        ("script", 0o644, 0o755, 0o755),
        ("private", 0o644, 0o600, 0o600),
        ("group", 0o640, 0o777, 0o750),
        ("again", 0o600, 0o644, 0o600),
    ]:
        (src / name).write_text(name)
        (src / name).chmod(sent)
        (dst / name).write_text("before")
        (dst / name).chmod(before)
        send(src / name, to=dst / name)
        assert (mode(dst / name), (dst / name).read_text()) == (after, name)
        send(src / name, to=dst / name)
        assert mode(dst / name) == after


def test_a_folders_group_stays_that_of_what_will_be_in_it(src: Path, dst: Path) -> None:
    """Set-group-id of a folder on this side is this side's; no sender gives or takes it."""
    dst.chmod(0o2775)
    (src / "sub").mkdir()
    send(src, to=f"{dst}/")
    send(src, to=f"{dst}/")
    assert mode(dst / "src/sub") == 0o2755


def test_a_cut_leaves_no_folder_more_closed_than_it_would_have_been(src: Path, dst: Path) -> None:
    """What a transfer that was cut has made is for the next one what was there before."""
    (src / "a").write_text("a")
    src.chmod(0o755)
    said = start("src") + folder("src", 1, mode=0o755)
    assert isinstance(say(said, dst), Cut)
    send(src, to=f"{dst}/")
    assert mode(dst / "src") == 0o755


# --------------------------------------------------------------- parts


def planted(dst: Path, size: int) -> Path:
    return dst / partial_name("top", size, 0)


def told(content: bytes, *, asks: bool) -> bytes:
    whole = entry("top", content=content, asks=asks)
    return start("top", is_folder=False, size=len(content)) + whole + FINISH


@pytest.mark.parametrize("asks", [True, False])
def test_a_hard_link_in_the_place_of_a_part_is_not_written_into(
    dst: Path, tmp_path: Path, *, asks: bool
) -> None:
    """Somebody else of this machine has put one there, to a file of the person's."""
    (tmp_path / "mine").write_text("mine")
    planted(dst, 4).hardlink_to(tmp_path / "mine")
    said = told(b"evil", asks=asks)
    receiving = received(said, dst)
    assert (tmp_path / "mine").read_text() == "mine"
    assert not receiving.troubles
    assert (dst / "top").read_text() == "evil"
    assert (dst / "top").stat().st_nlink == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs another user's file")
@pytest.mark.parametrize("asks", [True, False])
def test_a_part_of_somebody_else_is_not_gone_on_with(dst: Path, *, asks: bool) -> None:
    """Who has made it can still write into it, after it was checked and before it is renamed."""
    planted(dst, 4).write_text("ev")
    os.chown(planted(dst, 4), 65534, 65534)
    planted(dst, 4).chmod(0o666)
    with planted(dst, 4).open() as theirs:
        receiving = received(told(b"evil", asks=asks), dst)
        assert theirs.read() == "ev"
    assert not receiving.troubles
    assert (dst / "top").stat().st_uid == os.geteuid()


def test_what_cannot_be_had_is_not_removed_either(dst: Path) -> None:
    """A part that another transfer holds stays that one's: both would lose it otherwise."""
    fcntl = pytest.importorskip("fcntl")
    with planted(dst, 4).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        receiving = received(told(b"evil", asks=False), dst)
        assert "another transfer" in receiving.troubles[0].reason
        assert planted(dst, 4).exists()


def received(said: bytes, dst: Path) -> Receiver:
    """Let a receiver hear that; return it as it is at the end."""
    receiving = Receiver(f"{dst}/", "/", asked=["top"])
    with contextlib.suppress(RemoterError):
        hear(receiving, [said])
    return receiving


def hear(end: Receiver | Sender, said: Iterable[bytes]) -> None:
    """Let one end hear something, as long as it does hear."""
    near, far = socket.socketpair()
    with near, far:
        duplex = FramedStream(SocketEnds(far))
        duplex.start()

        def speak() -> None:
            with contextlib.suppress(OSError):
                for piece in said:
                    near.sendall(piece)
                near.shutdown(socket.SHUT_WR)

        def listen() -> None:
            with contextlib.suppress(OSError):
                while near.recv(65536):
                    pass

        threads = [threading.Thread(target=each) for each in (speak, listen)]
        for each in threads:
            each.start()
        try:
            end.run(duplex)
        finally:
            duplex.stop()
            duplex.close()
            far.close()
            for each in threads:
                each.join(20)


# --------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "numbers",
    [
        {"files": -1},
        {"files": 2, "entries": 1},
        {"entries": 2**60},
        {"size": 2**62},
        {"size": True},
        {"files": "1"},
    ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_written(
    dst: Path, numbers: dict[str, Any]
) -> None:
    """The sender tells of more files than anybody has, to be free of all bounds."""
    said = start("top", **numbers) + folder("top", 1) + FINISH
    assert isinstance(say(said, dst, "top"), ProtocolError)
    assert names(dst) == []


MORE = {
    "files": [entry(f"top/{number}", number) for number in range(2, 9)],
    "folders": [folder(f"top/{number}", number) for number in range(2, 9)],
    "bytes": [entry("top/a", 2, bytes(130 * 1000), size=2**40)],
    "the same file again": [entry("top/a", number) for number in range(2, 9)],
    "the same file taken back": [
        words(FrameType.ENTRY, **FileEntry("top/a").to_dict(number, asks=False))
        + words(FrameType.FAILED, number=number, again=True)
        for number in range(2, 99)
    ],
}


@pytest.mark.parametrize("what", MORE)
def test_more_than_was_told_of_ends_the_transfer(dst: Path, what: str) -> None:
    """The sender tells of little, so that nobody minds, and fills the disk, or never ends."""
    said = start("top", files=1, size=4, entries=3) + folder("top", 1)
    error = say(said + b"".join(MORE[what]) + FINISH, dst, "top")
    assert isinstance(error, ProtocolError)
    assert "told of" in str(error)
    assert len(names(dst / "top")) <= 2


def test_bytes_of_what_was_refused_are_counted_too(dst: Path) -> None:
    """The sender sends a small file, whose place is taken, without end."""
    (dst / "top").mkdir()
    whole = pack_frame(FrameType.DATA, bytes(1000)) * 100
    said = start("top", is_folder=False) + words(
        FrameType.ENTRY, **FileEntry("top", size=10).to_dict(1, asks=False)
    )
    error = say(said + pack_frame(FrameType.BODY, BODY_START.pack(1, 0)) + whole, dst, "top")
    assert isinstance(error, ProtocolError)
    assert "More came of a file" in str(error)


def grown(src: Path, dst: Path, size: int) -> tuple[Sender, Receiver]:
    """Send two files, of which one has so many bytes by the time it is sent."""
    (src / "log").write_text("log")
    (src / "other").write_text("other")
    plan = make_plan([str(src)], "/")
    with (src / "log").open("ab") as file:
        file.truncate(size)
    sending, receiving = Sender(plan), Receiver(f"{dst}/", "/", asked=["src"])
    assert carry(sending, receiving) == []
    return sending, receiving


def test_a_file_that_has_grown_arrives_as_it_is(src: Path, dst: Path) -> None:
    """An honest sender's numbers are those of when it looked."""
    sending, _ = grown(src, dst, 60 * MIB)
    assert sending.troubles == []
    assert (dst / "src/log").stat().st_size == 60 * MIB


def test_a_file_that_has_grown_beyond_all_bounds_is_one_files_trouble(src: Path, dst: Path) -> None:
    """An honest sender keeps to what it has told of, and the others arrive."""
    sending, receiving = grown(src, dst, 70 * MIB)
    for end in (sending, receiving):
        assert [trouble.path for trouble in end.troubles] == ["src/log"]
        assert "has grown" in end.troubles[0].reason
    assert names(dst / "src") == ["other"]


# --------------------------------------------------------------- memory


def memory_of(do: Callable[[], None]) -> int:
    """Return how many bytes were held at most while something was done."""
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def failures(size: int) -> Iterator[bytes]:
    reason = "x" * size
    for _ in range(300):
        yield words(FrameType.FAILED, number=0, path=reason, reason=reason)
    for number in range(10_000):
        yield words(FrameType.FAILED, number=0, path=f"{number}", reason="")


@pytest.mark.parametrize("is_put", [True, False])
def test_troubles_without_end_end_the_transfer(src: Path, dst: Path, *, is_put: bool) -> None:
    """The other end tells of one trouble after the other, each of half a megabyte."""
    (src / "a").write_bytes(bytes(MIB))
    end = Sender(make_plan([str(src)], "/")) if is_put else Receiver(f"{dst}/", "/", asked=["top"])
    ended: list[Exception] = []

    def do() -> None:
        with pytest.raises(RemoterError) as error:
            hear(end, failures(MIB // 3))
        ended.append(error.value)

    assert memory_of(do) < 50 * MIB
    assert isinstance(ended[0], FileTrouble)
    assert "10,000 others had trouble, too" in str(ended[0])


HUGE = "n" * 300_000
FLOODS = {
    "names of sources": lambda: [
        words(FrameType.START, tops=[{"name": f"{HUGE}{number}"}], more=True)
        for number in range(300)
    ],
    "what is said of sources": lambda: [
        words(FrameType.START, tops=[{"name": f"{number}", "more": HUGE}], more=True)
        for number in range(300)
    ],
    "paths": lambda: [
        start("top"),
        *(
            words(FrameType.ENTRY, **FileEntry(f"top/{HUGE}").to_dict(number, asks=False))
            for number in range(1, 300)
        ),
    ],
    "targets": lambda: [
        start("top", files=0, size=0, entries=300),
        *(link("top/l", HUGE, number) for number in range(1, 300)),
    ],
    "entries": lambda: [
        start("top", files=0, size=0, entries=300),
        *(folder(f"top/{'d' * 4000}", number) for number in range(1, 30_000)),
    ],
}


@pytest.mark.parametrize("what", FLOODS)
@pytest.mark.parametrize("is_dry", [True, False])
def test_what_a_sender_says_is_not_all_kept(dst: Path, what: str, *, is_dry: bool) -> None:
    """The sender fills the memory of this side with names, or with what a dry run lists."""
    said = FLOODS[what]()

    def do() -> None:
        with contextlib.suppress(RemoterError):
            hear(Receiver(f"{dst}/", "/", is_dry=is_dry), said)

    assert memory_of(do) < 20 * MIB


def test_a_place_that_a_receiver_names_is_not_kept_for_each_source(src: Path) -> None:
    """The receiver says that all will be in a folder whose name is a megabyte long."""
    for number in range(300):
        (src / f"{number}").touch()
    sending = Sender(make_plan([f"{src}/*"], "/"))

    def reply() -> Iterator[bytes]:
        yield words(FrameType.READY, place=HUGE, is_folder=True)
        wait_for(lambda: len(sending.targets) == 300, what="it has read where all will be")

    def do() -> None:
        with contextlib.suppress(RemoterError):
            hear(sending, reply())

    assert memory_of(do) < 20 * MIB


def test_one_file_is_open_at_a_time(dst: Path) -> None:
    """The sender begins one file after the other and ends none, until no more can be opened."""
    told = [
        words(FrameType.ENTRY, **FileEntry(f"top/{n}").to_dict(n, asks=False))
        for n in range(2, 500)
    ]
    begun = [pack_frame(FrameType.BODY, BODY_START.pack(number, 0)) for number in range(2, 500)]
    error = say(start("top") + folder("top", 1) + b"".join([*told, *begun]), dst, "top")
    assert isinstance(error, ProtocolError)
    assert "has not ended" in str(error)


# --------------------------------------------------------------- whatever is said


NAMES = [
    "top",
    "top/a",
    "top/sub",
    "top/sub/b",
    "top/l",
    "top/l/x",
    "..",
    "/x",
    "way/x",
    "top/\ud800",
]
JUNK = some.one_of(
    some.none(),
    some.booleans(),
    some.sampled_from([0, 1, 2, 3, 4, 7, -1, 2**31, 2**63, 2**64, 2**100, 0.5, float("inf")]),
    some.sampled_from([*NAMES, "", ".", "a\0b", "x" * 5000, "../..", "file", "folder", "0" * 64]),
    some.sampled_from([[], {}, [1], [{}], {"name": "top"}, [{"name": "top", "is_folder": True}]]),
)
KEYS = ["number", "path", "kind", "size", "mtime", "mode", "target", "asks", "tops", "more"]
KEYS += ["files", "entries", "left_out", "sha256", "again", "trouble", "reason", "place"]
KEYS += ["is_folder", "dry"]
SENDERS = [
    FrameType.START,
    FrameType.ENTRY,
    FrameType.BODY,
    FrameType.DATA,
    FrameType.END,
    FrameType.FAILED,
    FrameType.FINISH,
]
RECEIVERS = [FrameType.READY, FrameType.HAVE, FrameType.ACK, FrameType.FAILED, FrameType.PONG]


def nonsense(own: list[FrameType]) -> some.SearchStrategy[bytes]:
    """Frames that somebody says who mostly says such words."""
    word = some.sampled_from([*own * 4, *FrameType])
    number = some.integers(0, 8)
    places = [0, 1, 4, 100, 2**63, 2**64 - 1]
    return some.one_of(
        some.builds(
            lambda word, said: pack_frame(word, to_body(said)),
            word,
            some.dictionaries(some.sampled_from(KEYS), JUNK, max_size=6),
        ),
        some.builds(pack_frame, word, some.binary(max_size=20)),
        some.builds(
            lambda path, kind, target, said: words(
                FrameType.ENTRY,
                **{**FileEntry(path, kind, 4, 0, 0o777, target).to_dict(9, asks=True), **said},
            ),
            some.sampled_from(NAMES),
            some.sampled_from(["file", "folder", "link"]),
            some.sampled_from(["..", "sub", "\udfff\ud800", "a\0"]),
            some.dictionaries(some.sampled_from(KEYS), JUNK, max_size=2),
        )
        if FrameType.ENTRY in own
        else some.builds(
            lambda word, number, said: words(word, **{"number": number, **said}),
            some.sampled_from([FrameType.HAVE, FrameType.FAILED]),
            number,
            some.dictionaries(some.sampled_from(["size", "sha256", "trouble", "path"]), JUNK),
        ),
        some.builds(
            lambda word, number, at: pack_frame(word, BODY_START.pack(number, at)),
            some.sampled_from([each for each in (FrameType.BODY, FrameType.ACK) if each in own]),
            number | some.sampled_from(places),
            some.sampled_from(places),
        ),
    )


SENT = [
    start("top"),
    folder("top", 1),
    entry("top/a", 2),
    link("top/l", "sub", 3),
    folder("top/sub", 4),
    entry("top/sub/b", 5),
    words(FrameType.FAILED, number=0, path="top/c", reason="no"),
    FINISH,
]
REPLIED = [
    words(FrameType.READY, place="/x", is_folder=True, dry=False),
    pack_frame(FrameType.PONG),
    words(FrameType.HAVE, number=2, size=1, sha256="0" * 64),
    words(FrameType.HAVE, number=3, size=0, sha256=""),
    words(FrameType.FAILED, number=2, path="a", reason="no", trouble=7),
    pack_frame(FrameType.ACK, ACK_BODY.pack(0, 0)),
]


def mutated(honest: list[bytes], own: list[FrameType]) -> some.SearchStrategy[bytes]:
    """What is said by somebody honest, with nonsense between it, left out, twice, or damaged."""

    def put_together(pieces: list[tuple[int, bytes]], left_out: set[int], damage: Any) -> bytes:
        said = [piece for number, piece in enumerate(honest) if number not in left_out]
        for place, piece in pieces:
            said.insert(place, piece)
        whole = bytearray(b"".join(said))
        if damage and whole:
            where, value = damage
            whole[where % len(whole)] = value
        return bytes(whole)

    again = some.sampled_from(honest)
    return some.builds(
        put_together,
        some.lists(some.tuples(some.integers(1, 8), nonsense(own) | again), max_size=4),
        some.sets(some.integers(1, 7), max_size=2),
        some.sampled_from([None] * 3) | some.tuples(some.integers(0, 2000), some.integers(0, 255)),
    )


quick = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@contextlib.contextmanager
def what_lies_beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Lend a folder to write into; nothing beside the source may be another one afterwards."""
    ground = tmp_path_factory.mktemp("said")
    dst, outside = ground / "dst", ground / "outside"
    for path in (dst / "top", outside):
        path.mkdir(parents=True, mode=0o700)
        (path / ".bashrc").write_text("mine")
    (dst / ".bashrc").write_text("mine")
    (dst / "top/way").symlink_to(outside)
    yield dst
    assert names(ground) == ["dst", "outside"]
    assert names(dst) == [".bashrc", "top"]
    assert names(outside) == [".bashrc"]
    assert {(dst / ".bashrc").read_text(), (outside / ".bashrc").read_text()} == {"mine"}
    assert mode(outside) == 0o700
    for path in dst.rglob("*"):
        if path.is_symlink() and path.name != "way":
            assert Path(os.path.normpath(path.parent / path.readlink())).is_relative_to(dst / "top")


@given(said=mutated(SENT, SENDERS), is_dry=some.booleans())
@quick
def test_a_receiver_ends_in_words_and_writes_nothing_beside(
    tmp_path_factory: pytest.TempPathFactory, *, said: bytes, is_dry: bool
) -> None:
    """The sender says anything at all."""
    with what_lies_beside(tmp_path_factory) as dst:
        receiving = Receiver(f"{dst}/", "/", asked=["top"], is_dry=is_dry)
        with contextlib.suppress(RemoterError):
            hear(receiving, [said])
        assert not is_dry or names(dst / "top") == [".bashrc", "way"]


STEPS = some.lists(
    some.tuples(
        some.sampled_from(["file", "folder", "link", "told", "bytes"]),
        some.sampled_from(["a", "l", "a/l", "l/.bashrc", "l/l/.bashrc", "a/l/.bashrc", "way/x"]),
        some.sampled_from(["..", "../..", "a", "way", "../way", "../outside"]),
    ),
    max_size=6,
)


@given(STEPS)
@settings(quick, max_examples=300)
def test_links_and_files_in_any_order_write_nothing_beside(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str]]
) -> None:
    """The sender makes folders and links, tells of files, and sends their bytes later on."""
    said, late = start("top") + folder("top", 1), []
    for number, (what, path, target) in enumerate(steps, 2):
        whole = entry(f"top/{path}", number)
        begin = HEAD.size + HEAD.unpack_from(whole)[1]
        if what == "file":
            said += whole
        elif what == "folder":
            said += folder(f"top/{path}", number, mode=0o777)
        elif what == "link":
            said += link(f"top/{path}", target, number)
        elif what == "told":
            said += whole[:begin]
            late.append(whole[begin:])
        elif late:
            said += late.pop()
    with what_lies_beside(tmp_path_factory) as dst, contextlib.suppress(RemoterError):
        hear(Receiver(f"{dst}/", "/", asked=["top"]), [said, *late, FINISH])


@given(mutated(REPLIED, RECEIVERS))
@quick
def test_a_sender_ends_in_words(tmp_path_factory: pytest.TempPathFactory, said: bytes) -> None:
    """The receiver says anything at all."""
    src = tmp_path_factory.mktemp("sent")
    for name in ("a", "b"):
        (src / name).write_bytes(name.encode() * 1000)
    sending = Sender(make_plan([str(src)], "/"), asks_always=True)
    with contextlib.suppress(RemoterError):
        hear(sending, [said])


WISHES = [".", "..", "*", "**", "a", "", "\0", "a\0/*", "\ud800", "~nobody-here", "*/" * 2000]
WISHES += ["x" * 5000, "/", "/dev/null", "~\0", "[", "$HOME", "$", "${", "a/" * 1500]
WISH = some.one_of(
    some.sampled_from(WISHES), some.lists(some.sampled_from(WISHES), max_size=2), JUNK
)


@given(
    some.fixed_dictionaries(
        {
            "transfer": some.sampled_from([TRANSFER_VERSION] * 9 + [2]),
            "do": some.sampled_from(["send", "receive", "x"]),
        },
        optional=dict.fromkeys(["cwd", "to", "sources", "asks", "dry"], WISH),
    )
)
@quick
def test_the_far_side_reads_any_wish(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, wish: dict[str, Any]
) -> None:
    """Whoever has come to its stdin asks for anything at all."""
    home = tmp_path_factory.getbasetemp() / "wished/for"
    home.mkdir(parents=True, exist_ok=True)
    (home / "a").touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    wish = {"cwd": str(home), "sources": ["a"], **wish}
    with contextlib.suppress(FileTrouble, ProtocolError):
        assert isinstance(far_end._parse_request(wish), (Sender, Receiver))


@pytest.mark.parametrize("said", [b"[]", b"{", b'{"transfer": 1, "do": "send", "sources": 5}'])
def test_nonsense_is_answered_in_words(said: bytes) -> None:
    """As above, through the process itself: it says nothing on stderr, and ends."""
    code = "from remoter_kernel.evaluator.transfer_command import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        input=pack_frame(FrameType.WISH, said),
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert ran.stderr == b""
    assert ran.stdout.startswith(GREETING)


# --------------------------------------------------------------- objects


def test_an_object_that_is_fetched_is_its_owners_alone(tmp_path: Path) -> None:
    """Whoever else can enter its folder, by a mistake of anybody's, cannot read it."""

    class Login:
        def run(self, command: str, stdin: bytes = b"", *, seconds: float = 60) -> Any:
            from remoter_kernel.local.login.login import CompletedCommand

            return CompletedCommand(b"remoter-room:" + b"secret", b"", 0)

    room = RemoteTempDir(Login, "session", lambda: None, lambda: None, [])
    room.download(tmp_path / "object", 6)
    assert (tmp_path / "object").read_bytes() == b"secret"
    assert mode(tmp_path / "object") == 0o600
