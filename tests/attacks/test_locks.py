"""Another user of the machine, who takes the place where a person's locks would be."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.local.launch.launcher import pack_evaluator
from tests.real_jupyter import MARK, THIS_RUN, far_environment, started_kernel
from tests.real_parts import real_part
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

STRANGER = 65534
# Waits for the others at a file, then says where it would put its locks, and that it has one.
LOOK = """
import sys, time, pathlib
sys.path.insert(0, {zip!r})
from remoter_kernel.evaluator.named_lock import NamedLock
while not pathlib.Path({gate!r}).exists():
    time.sleep(0.001)
lock = NamedLock(sys.argv[1])
assert lock.acquire(0.0)
print(lock._path.parent)
lock.release()
"""


@pytest.fixture
def folder(another_user: FarSide) -> Iterator[Path]:
    """A folder of the person's own, with what travels in it."""
    with another_user.folder() as folder:
        content = pack_evaluator()[1]
        (folder / "evaluator.pyz").write_bytes(content)
        (folder / "data").mkdir()
        for path in (folder / "evaluator.pyz", folder / "data"):
            another_user.give(path)
        yield folder
        for reminder in (folder / "data").glob("remoter-kernel/sessions/.locks-*"):
            shutil.rmtree(reminder.readlink(), ignore_errors=True)


@pytest.fixture
def usual_place(another_user: FarSide) -> Iterator[Path]:
    """Where the locks usually are; nothing is there before or after."""
    place = Path(f"/tmp/remoter-{pwd.getpwnam(another_user.user).pw_uid}")
    remove(place)
    yield place
    remove(place)


def remove(path: Path) -> None:
    """Remove whatever it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def take(place: Path, how: str, victim: FarSide) -> None:
    """Take a place in /tmp as somebody else."""
    if how == "a file":
        place.touch()
    elif how == "a folder that all may use":
        place.mkdir()
        place.chmod(0o777)
    elif how == "a link to a folder of the victim":
        place.symlink_to(victim.home)
    else:
        place.mkdir(mode=0o700)
    os.chown(place, STRANGER, STRANGER, follow_symlinks=False)


def looked_for(
    far: FarSide, folder: Path, *, times: int = 1, before: tuple[str, ...] = (), **env: str
) -> list[tuple[str, str]]:
    """Look for the place of the locks in some processes at once; return what each said."""
    gate = folder / "gate"
    gate.unlink(missing_ok=True)
    code = LOOK.format(zip=str(folder / "evaluator.pyz"), gate=str(gate))
    environment = far_environment(far) | {"XDG_DATA_HOME": str(folder / "data"), MARK: THIS_RUN}
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [*before, str(far.python), "-c", code, f"lock-{number}"],
                    cwd="/",
                    env=environment | env,
                    **pipe,
                    **({} if before else far.ids),
                )
            )
            for number in range(times)
        ]
        gate.touch()
        said = [process.communicate(timeout=60) for process in started]
    return [(out.strip(), err) for out, err in said]


@pytest.mark.parametrize(
    "how",
    ["a folder", "a folder that all may use", "a file", "a link to a folder of the victim"],
)
def test_who_takes_the_usual_place_keeps_nobody_out(
    another_user: FarSide, folder: Path, usual_place: Path, how: str
) -> None:
    """`mkdir /tmp/remoter-UID` and the like, so that the person's sessions cannot start.

    All processes come to another place, and to the same one, though they begin at once.
    """
    take(usual_place, how, another_user)
    ((place, trouble), *others) = looked_for(another_user, folder, times=6)
    assert place, trouble
    assert {where for where, _ in others} == {place}
    about = Path(place).lstat()
    assert stat.S_ISDIR(about.st_mode)
    assert about.st_mode & 0o777 == 0o700
    assert about.st_uid == pwd.getpwnam(another_user.user).pw_uid
    assert len(list(Path("/tmp").glob(f"{usual_place.name}-*"))) == 1


def test_who_lets_go_of_the_usual_place_changes_nothing(
    another_user: FarSide, folder: Path, usual_place: Path
) -> None:
    """A place taken and given back again, so that two launches do not meet at one lock."""
    take(usual_place, "a folder", another_user)
    ((before, _),) = looked_for(another_user, folder)
    remove(usual_place)
    assert looked_for(another_user, folder)[0][0] == before


def test_who_takes_the_other_place_too_keeps_nobody_out(
    another_user: FarSide, folder: Path, usual_place: Path
) -> None:
    """Something cleans /tmp, and somebody takes the name that was remembered."""
    take(usual_place, "a folder", another_user)
    ((before, _),) = looked_for(another_user, folder)
    Path(before).rmdir()
    take(Path(before), "a link to a folder of the victim", another_user)
    places = {where for where, _ in looked_for(another_user, folder, times=6)}
    Path(before).unlink()
    (place,) = places
    assert place not in {"", before, str(usual_place)}
    assert Path(place).stat().st_uid == pwd.getpwnam(another_user.user).pw_uid


def test_a_session_starts_though_its_place_is_taken(
    here: JupyterHere, python_remote: dict[str, Any], another_user: FarSide, usual_place: Path
) -> None:
    """The whole way, with a real login."""
    take(usual_place, "a folder", another_user)
    spec = here.add_remote("taken", **python_remote)
    with started_kernel(spec) as kernel:
        said = Talk(kernel.client).case(lambda talk: talk.run("1 + 1"))
        assert said["shell under request 0"][0]["content"]["status"] == "ok", said
    for reminder in another_user.home.glob(".local/share/remoter-kernel/sessions/.locks-*"):
        shutil.rmtree(reminder.readlink(), ignore_errors=True)
        reminder.unlink()


@pytest.mark.parametrize("has_tmpdir", [True, False])
def test_where_tmp_cannot_be_written_another_place_is_found_or_named(
    another_user: FarSide, folder: Path, *, has_tmpdir: bool
) -> None:
    """/tmp is full or closed to this user: TMPDIR is heeded, and without it the error names it."""
    real_part("setpriv")
    real_part("network namespaces")  # and so those of mounts
    entry = pwd.getpwnam(another_user.user)
    kept = another_user.home / "of-this-test"
    shutil.copytree(folder, kept)
    for path in (kept, *kept.rglob("*")):
        another_user.give(path)
    closed = " && ".join(f"mount -t tmpfs -o mode=755 none {path}" for path in ("/tmp", "/var/tmp"))
    ids = f"--reuid {entry.pw_uid} --regid {entry.pw_gid} --clear-groups"
    script = f'{closed} && exec setpriv {ids} "$@"'
    before = ("unshare", "--mount", "sh", "-c", script, "sh")
    tmpdir = str(kept / "data") if has_tmpdir else ""
    try:
        ((place, trouble),) = looked_for(another_user, kept, before=before, TMPDIR=tmpdir)
    finally:
        shutil.rmtree(kept)
    if has_tmpdir:
        assert place.startswith(f"{kept}/data/remoter-{entry.pw_uid}-"), trouble
    else:
        assert "has no place for locks (/tmp: Permission denied" in trouble
        assert "Set TMPDIR" in trouble
