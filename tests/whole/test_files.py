"""`remoter put` and `get` through a real sshd: both ways, after cuts, and what goes wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.proxy import Proxy
from remoter_kernel.local.login.keeper.endpoint import end_logins
from remoter_kernel.transfer.safe_paths import partial_name
from tests.real_jupyter import MARK, THIS_RUN, wait_for
from tests.real_parts import real_part
from tests.real_sshd import RealSshd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

RTT = 0.02  # seconds
MIB = 1024 * 1024
WIDE = 80e6  # bits per second: a cut loses little of what is on its way


class Ground:
    """A remote behind a proxy, with a folder there and one here."""

    def __init__(self, here: JupyterHere, sshd: RealSshd, path: Proxy, folder: Path) -> None:
        self.here = here
        self.sshd = sshd
        self.path = path
        self.folder = folder
        self.name = "files"
        self.there = Path()

    def ask(self, *words: Any, code: int = 0, **options: Any) -> str:
        """Run the command; return what it said."""
        ran = self.here.remoter(*map(str, words), **{"timeout": 110.0, **options})
        assert ran.returncode == code, ran
        return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def ground(
    here: JupyterHere, far: FarSide, sshd: RealSshd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    """One remote for all tests."""
    folder = tmp_path_factory.mktemp("files")
    with Proxy(sshd.port, rtt=RTT) as path:
        config = folder / "ssh_config"
        sshd.ssh_config(config, "real")
        config.write_text(config.read_text().replace(str(sshd.port), str(path.port)))
        line = sshd.known_hosts.read_text()
        sshd.known_hosts.write_text(line + line.replace(str(sshd.port), str(path.port)))
        ground = Ground(here, sshd, path, folder)
        with far.folder() as there:
            ground.there = there
            here.add_remote(
                ground.name, "real", ssh_config=config, python=str(far.python), cwd=str(there)
            )
            ground.ask("check", ground.name)
            yield ground
            end_logins()


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    return folder


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def noise(path: Path, size: int) -> str:
    """Write random bytes; return their checksum."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --------------------------------------------------------------- both ways


def test_files_folders_and_globs_go_both_ways(
    ground: Ground, far: FarSide, src: Path, tmp_path: Path
) -> None:
    """Globs there are found there; `~`, spaces and dashes mean what they say."""
    for name in ("a.csv", "b.csv", "-x y.csv", "c.txt"):
        (src / name).write_text(name)
    said = ground.ask("put", ground.name, f"{src}/*.csv", "in/")
    assert said.startswith("3 files, ")
    assert names(ground.there / "in") == ["-x y.csv", "a.csv", "b.csv"]
    ground.ask("get", ground.name, "in/*.csv", f"{tmp_path}/back/")
    assert names(tmp_path / "back") == ["-x y.csv", "a.csv", "b.csv"]
    ground.ask("get", "--", ground.name, "in/-x y.csv", "-dash", cwd=tmp_path)
    assert (tmp_path / "-dash").read_text() == "-x y.csv"
    at_home = far.home / f"files-{tmp_path.parent.name}"
    try:
        ground.ask("put", ground.name, src, f"~/{at_home.name}/")
        ground.ask("get", ground.name, f"~/{at_home.name}/src/c.txt", tmp_path / "c.txt")
    finally:
        shutil.rmtree(at_home, ignore_errors=True)
    assert (tmp_path / "c.txt").read_text() == "c.txt"


def test_a_dry_run_says_what_would_go_where(ground: Ground, src: Path, tmp_path: Path) -> None:
    said = ground.ask("put", ground.name, src, "dry empty/")
    assert said.startswith("0 files, 0 bytes in ")
    assert (ground.there / "dry empty/src").is_dir()
    (src / "a").write_text("12345")
    said = ground.ask("put", "--dry-run", ground.name, src, "dry/")
    assert f"5 bytes  {src}/a -> {ground.there}/dry/src/a" in said
    assert not (ground.there / "dry").exists()
    ground.ask("put", ground.name, src, "wet/")
    said = ground.ask("get", ground.name, "wet/src", f"{tmp_path}/dry/", "--dry-run")
    assert f"5 bytes  src/a -> {tmp_path}/dry/src/a" in said
    assert not (tmp_path / "dry").exists()


@pytest.mark.timing
def test_many_small_files_cost_no_round_trips(ground: Ground, src: Path, tmp_path: Path) -> None:
    """A thousand of them, at 20 ms each, would take 20 seconds."""
    for number in range(1000):
        (src / f"{number}.txt").write_text(f"{number}\n" * 200)
    ground.ask("check", ground.name)
    began = time.monotonic()
    ground.ask("put", ground.name, src, "small/")
    ground.ask("get", ground.name, "small/src", f"{tmp_path}/back/")
    assert time.monotonic() - began < 2 * 1000 * RTT / 2
    assert len(names(tmp_path / "back/src")) == 1000


@pytest.mark.parametrize("way", ["openssh", "no forwarding"])
def test_it_needs_neither_paramiko_nor_forwarding(
    ground: Ground, src: Path, far: FarSide, tmp_path: Path, way: str
) -> None:
    """Both transports carry it, and a server that forbids forwarding."""
    real_part("ssh")
    rules = f"SetEnv {MARK}={THIS_RUN}\nAllowTcpForwarding no"
    folder = tmp_path / "sshd"
    folder.mkdir()
    with RealSshd(folder, user=far.user, extra_config=rules) as server:
        config = server.ssh_config(folder / "config", "real")
        transport: Any = "openssh" if way == "openssh" else "paramiko"
        ground.here.add_remote(
            "odd", "real", ssh_config=config, python=str(far.python), transport=transport
        )
        digest = noise(src / "a", 3 * MIB)
        there = ground.there / way
        ground.ask("put", "odd", src / "a", there)
        ground.ask("get", "odd", there, tmp_path / "back")
        assert checksum(tmp_path / "back") == digest
        end_logins("odd")


# --------------------------------------------------------------- cuts


def carry_with_cuts(ground: Ground, words: list[Any], size: int, cuts: int) -> tuple[str, int]:
    """Cut the link so many times while a command runs; return what it said, and its bytes."""
    path = ground.path
    begun = path.bytes_up + path.bytes_down
    command = [Path(sys.executable).with_name("remoter"), *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.append(running.stderr.read()))
        reader.start()
        try:
            for number in range(1, cuts + 1):
                mark = size * number / (cuts + 1)
                wait_for(
                    lambda mark=mark: (
                        path.bytes_up + path.bytes_down - begun > mark or running.poll() is not None
                    ),
                    seconds=120,
                    what=f"cut {number} is due",
                )
                assert running.poll() is None, said
                path.cut()
            running.wait(120)
        finally:
            running.kill()
            reader.join()
    assert running.returncode == 0, said
    return said[0], path.bytes_up + path.bytes_down - begun


def both_ways_with_cuts(ground: Ground, src: Path, back: Path, size: int, most: float) -> None:
    digest = noise(src, size)
    said, sent = carry_with_cuts(ground, ["put", ground.name, src, "cut.bin"], size, 3)
    assert checksum(ground.there / "cut.bin") == digest
    assert "the link was lost" in said
    assert sent < most * size
    _, sent = carry_with_cuts(ground, ["get", ground.name, "cut.bin", back], size, 3)
    assert checksum(back) == digest
    assert sent < most * size
    assert not [name for name in names(ground.there) if name.endswith(".part")]


@pytest.mark.slow
def test_three_cuts_cost_little(ground: Ground, src: Path, tmp_path: Path) -> None:
    """64 MiB each way: it goes on where it was, within one command."""
    ground.path.narrow(WIDE)
    try:
        both_ways_with_cuts(ground, src / "big", tmp_path / "back", 64 * MIB, 1.1)
    finally:
        ground.path.narrow(0)


def test_a_link_that_dies_without_a_word_is_noticed(ground: Ground, src: Path) -> None:
    """By signs of life that do not come; the part that the dead end held is free by then."""
    size = 24 * MIB
    digest = noise(src / "big", size)
    ground.path.narrow(WIDE)
    remoter = str(Path(sys.executable).with_name("remoter"))
    command = [remoter, "put", ground.name, str(src / "big"), "mute"]
    begun = ground.path.bytes_up
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
        try:
            wait_for(lambda: ground.path.bytes_up - begun > size / 3, seconds=30)
            ground.path.strand()
            assert running.wait(100) == 0
        finally:
            running.kill()
            ground.path.narrow(0)
    assert checksum(ground.there / "mute") == digest
    assert ground.path.bytes_up - begun < 1.3 * size


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_cuts_of_a_gigabyte_cost_less_than_a_twentieth(
    ground: Ground, src: Path, tmp_path: Path
) -> None:
    both_ways_with_cuts(ground, src / "big", tmp_path / "back", 1024 * MIB, 1.05)
    (ground.there / "cut.bin").unlink()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_six_gigabytes_never_are_in_memory(ground: Ground, src: Path, tmp_path: Path) -> None:
    """A sparse file stays one, and the command stays below 200 MB."""
    with (src / "sparse").open("wb") as file:
        file.truncate(6 * 1024 * MIB)
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [Path(sys.executable).with_name("remoter"), "put", ground.name]
    words = map(str, [*command, src / "sparse", "sparse"])
    ran = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 200_000  # KiB
    about = (ground.there / "sparse").stat()
    assert about.st_size == 6 * 1024 * MIB
    assert about.st_blocks * 512 < 100 * MIB
    (ground.there / "sparse").unlink()


def test_small_files_are_not_sent_twice_after_a_cut(ground: Ground, src: Path) -> None:
    """What the other side has dealt with is known."""
    for number in range(600):
        (src / f"{number}").write_bytes(os.urandom(20_000))
    size = 600 * 20_000
    ground.path.narrow(WIDE)
    try:
        _, sent = carry_with_cuts(ground, ["put", ground.name, src, "many/"], size, 2)
    finally:
        ground.path.narrow(0)
    assert len(names(ground.there / "many/src")) == 600
    assert sent < 1.3 * size


def test_a_read_only_file_whose_transfer_was_killed_at_its_end_is_gone_on_with(
    ground: Ground, far: FarSide, src: Path
) -> None:
    """It had its mode already, and not its name."""
    digest = noise(src / "a", 2 * MIB)
    (src / "a").chmod(0o444)
    about = (src / "a").stat()
    part = ground.there / partial_name("a", about.st_size, about.st_mtime_ns)
    shutil.copy(src / "a", part)
    shutil.chown(part, far.ids["user"], far.ids["group"])
    begun = ground.path.bytes_up
    ground.ask("put", ground.name, src / "a", "read-only")
    assert checksum(ground.there / "read-only") == digest
    assert stat.S_IMODE((ground.there / "read-only").stat().st_mode) == 0o444
    assert ground.path.bytes_up - begun < MIB
    assert not part.exists()


# --------------------------------------------------------------- what goes wrong


def test_what_is_wrong_there_names_the_file_and_what_to_do(ground: Ground, src: Path) -> None:
    (src / "a").write_text("a")
    name = ground.name
    said = ground.ask("get", name, "nothing", src, code=4)
    assert said.startswith(f"remoter: {name}: nothing cannot be read there: there is no such")
    said = ground.ask("put", name, src / "a", "/root/a", code=4)
    assert "/root/a cannot be written there: Permission denied. See to its permissions" in said
    said = ground.ask("put", name, src / "a", "no/such/folder", code=4)
    assert "there is no such folder" in said
    (ground.there / "folder/a").mkdir(parents=True)
    said = ground.ask("put", name, src / "a", "folder/", code=4)
    assert "a folder is in its place" in said


def test_what_is_wrong_here_has_another_code(ground: Ground, src: Path) -> None:
    name = ground.name
    assert "cannot be read here" in ground.ask("put", name, src / "nothing", "x", code=1)
    (ground.there / "one").write_text("1")
    said = ground.ask("get", name, "one", src / "no/folder/x", code=1)
    assert "no/folder cannot be written here: there is no such folder" in said
    (src / "a").write_text("a")
    (src / "b").write_text("b")
    assert "need a folder" in ground.ask("put", name, src / "a", src / "b", "new", code=2)
    ground.ask("put", name, "one", code=2)
    ground.ask("put", "nowhere", src, "x", code=2)


def test_a_full_disk_there_is_told_and_the_next_try_goes_on(
    ground: Ground, far: FarSide, src: Path
) -> None:
    """What has arrived whole stays, and so does the part of what has not."""
    real_part("root")
    disk = Path(f"/mnt/files-{os.getpid()}")
    disk.mkdir()
    mine = f"uid={far.ids['user']},gid={far.ids['group']}"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=8m,{mine}", "tmpfs", str(disk)], check=True
    )
    try:
        noise(src / "a", 2 * MIB)
        digest = noise(src / "b", 20 * MIB)
        said = ground.ask("put", ground.name, src, f"{disk}/", code=4)
        assert f"{disk}/src/b cannot be written there: No space left on device. Make room" in said
        assert (disk / "src/a").stat().st_size == 2 * MIB
        (part,) = (disk / "src").glob(".b.*.part")
        assert part.stat().st_size > 4 * MIB
        subprocess.run(["mount", "-o", f"remount,size=64m,{mine}", str(disk)], check=True)
        begun = ground.path.bytes_up
        ground.ask("put", ground.name, src, f"{disk}/")
        assert checksum(disk / "src/b") == digest
        assert ground.path.bytes_up - begun < 17 * MIB
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
        disk.rmdir()


def test_an_account_that_runs_one_command_is_told_as_such(
    ground: Ground, far: FarSide, src: Path, tmp_path: Path
) -> None:
    (src / "a").write_text("a")
    folder = tmp_path / "sshd"
    folder.mkdir()
    with RealSshd(folder, user=far.user, force_command="/bin/echo no") as server:
        config = server.ssh_config(folder / "config", "real")
        ground.here.add_remote("forced", "real", ssh_config=config, python=str(far.python))
        said = ground.ask("put", "forced", src / "a", "x", code=4)
        assert "did not start a transfer" in said
        end_logins("forced")


HOSTILE = """
import json, os, struct, sys
def say(word, body):
    os.write(1, struct.pack('!BI', word, len(body)) + body)
os.write(1, b'REMOTER transfer\\n')
tops = [{'name': 'a', 'is_folder': True}]
say(2, json.dumps({'tops': tops, 'files': 1, 'size': 4, 'entries': 2}).encode())
entry = {'number': 1, 'path': 'a/../../.bashrc', 'kind': 'file', 'size': 4, 'mtime': 0, 'mode': 511}
say(4, json.dumps({**entry, 'target': '', 'asks': False}).encode())
say(6, struct.pack('!QQ', 1, 0))
say(7, b'evil')
sys.stdin.buffer.read()
"""


def test_a_remote_that_answers_with_another_place_is_refused(
    ground: Ground, far: FarSide, tmp_path: Path
) -> None:
    """A whole evaluator there that is not ours: `get` ends, and nothing is written."""
    evil = ground.there / "evil.py"
    evil.write_text(HOSTILE)
    python = ground.there / "python"
    python.write_text(
        f'#!/bin/sh\nif [ "$2" = transfer ]; then exec {far.python} {evil}; fi\n'
        f'exec {far.python} "$@"\n'
    )
    python.chmod(0o755)
    ground.here.add_remote(
        "hostile", "real", ssh_config=ground.folder / "ssh_config", python=str(python)
    )
    (tmp_path / "deep/er").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    said = ground.ask("get", "hostile", "a", f"{tmp_path}/deep/er/", code=4)
    assert "hostile: it sent a file called a/../../.bashrc" in said
    assert "it was not written" in said
    assert sorted(tmp_path.rglob("*")) == before
    end_logins("hostile")
