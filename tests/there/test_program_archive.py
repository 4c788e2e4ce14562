"""The program there: kept while a session needs it, compiled once, and gone when nobody does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.evaluator import launch, program_archive, stdio_reply
from remoter_kernel.evaluator.folders import data_folder
from remoter_kernel.evaluator.registry import Session, read_json
from remoter_kernel.local.launch.launcher import FOLDER_DIGITS, pack_evaluator
from tests.real_jupyter import MARK, THIS_RUN, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "0" * 40
LONG_AGO = 3 * 24 * 3600.0  # seconds


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own."""
    (tmp_path / "run").mkdir(mode=0o700)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name[4:8].lower()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv(MARK, THIS_RUN)
    return tmp_path


@pytest.fixture
def archive(home: Path) -> Path:
    """What travels, where it comes to."""
    name, content = pack_evaluator()
    folder = data_folder() / "programs" / name[:FOLDER_DIGITS]
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return folder / name


def a_version(name: str, *, is_old: bool = True) -> Path:
    folder = program_archive.programs_folder() / name
    folder.mkdir(parents=True)
    (folder / f"{name}.pyz").write_bytes(b"x")
    return made_old(folder) if is_old else folder


def made_old(path: Path) -> Path:
    then = time.time() - LONG_AGO
    os.utime(path, (then, then))
    return path


def a_session(version: str | None, **about: Any) -> Session:
    session = Session.create({"created": time.time(), **about})
    if version:
        session.write(program_archive.PROGRAM_FILE, {"program": version})
    return session


def launched(archive: Path, **wish: Any) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, str(archive)],
        input=json.dumps({"client_key": KEY, **wish}),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.startswith("REMOTER "), ran
    words = ran.stdout.removeprefix("REMOTER ").strip()
    return json.loads(words) if words.startswith("{") else {"said": words}


def test_a_version_stays_while_a_living_session_names_it(archive):
    """One that is over, one that is named, one that was used today, and the one that runs."""
    kept = [a_version("named"), a_version("today", is_old=False), made_old(archive.parent)]
    gone = [a_version("over"), a_version("nobodys")]
    a_session("named")
    a_session("over", ended=1.0)
    program_archive.remove_unused(archive.parent)
    assert [folder.exists() for folder in kept] == [True] * 3
    assert [folder.exists() for folder in gone] == [False] * 2


@pytest.mark.parametrize("text", [None, "{", "[]", '{"program": null}'])
def test_nothing_goes_while_a_session_cannot_be_asked_what_it_needs(archive, text):
    """Its file is torn, say: any version may be the one that it runs."""
    perhaps = a_version("perhaps")
    session = a_session(None)
    if text:
        (session.folder / program_archive.PROGRAM_FILE).write_text(text)
    program_archive.remove_unused(archive.parent)
    assert perhaps.exists()
    session.mark_ended("It is over.")
    program_archive.remove_unused(archive.parent)
    assert not perhaps.exists()


def test_a_launch_is_not_without_its_program_while_another_version_tidies(archive, monkeypatch):
    """Its folder was not used for days, and no session names it yet."""
    made_old(archive.parent)
    other = a_version("other", is_old=False)

    def tidy(_answer: object) -> None:
        program_archive.remove_unused(other)

    monkeypatch.setattr(sys, "argv", [str(archive)])
    monkeypatch.setattr(stdio_reply, "reply_to_stdin", tidy)
    monkeypatch.setattr(
        program_archive,
        "start_maintenance",
        lambda: due.append(program_archive._is_maintenance_due(archive)),
    )
    due: list[bool] = []
    umask = os.umask(0o022)
    try:
        launch.main("27")
    finally:
        os.umask(umask)
    assert archive.exists()
    assert due == [True]


@pytest.mark.parametrize("is_needed", [True, False])
def test_archives_of_versions_before_go_once_nobody_runs_from_them(home, archive, *, is_needed):
    """A session that names no version is from before there were such folders."""
    former = home / "cach/remoter-kernel/0123.pyz"
    (former.parent / "wheels").mkdir(parents=True)
    former.touch()
    made_old(former)
    if is_needed:
        a_session(None)
    program_archive.remove_unused(archive.parent)
    assert former.exists() is is_needed
    assert (former.parent / "wheels").exists()


def test_what_a_cut_upload_has_left_goes(archive):
    """Once it is a day old; one that is under way stays."""
    parts = [archive.with_name(f"{archive.name}.{number}") for number in (1, 2)]
    for part in parts:
        part.touch()
    made_old(parts[0])
    program_archive.remove_unused(archive.parent)
    assert [part.exists() for part in parts] == [False, True]


def test_it_is_compiled_once_and_used(archive):
    """A whole one is left as it is; a damaged one is made anew, and not run meanwhile."""
    place = program_archive.compile_program(archive)
    began = place.stat().st_mtime_ns
    assert program_archive.compile_program(archive) == place
    assert place.stat().st_mtime_ns == began
    with zipfile.ZipFile(place) as compiled:
        assert "remoter_kernel/evaluator/supervisor.pyc" in compiled.namelist()
    assert str(place) in where_it_runs_from(archive)
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 0xFF
    place.write_bytes(content)
    assert str(archive) in where_it_runs_from(archive)
    again = program_archive.compile_program(archive)
    assert [path.name for path in archive.parent.glob("*.zip")] == [again.name]
    assert str(again) in where_it_runs_from(archive)


def where_it_runs_from(archive: Path) -> str:
    words = [sys.executable, "-v", str(archive), "ask"]
    ran = subprocess.run(words, input="{}", capture_output=True, text=True, check=True)
    lines = [line for line in ran.stderr.splitlines() if "remoter_kernel.evaluator.query" in line]
    return "\n".join(lines)


def test_a_damaged_archive_is_sent_anew(archive):
    """It says what is lacking, and does not run."""
    with zipfile.ZipFile(archive) as whole:  # a start does not read this one
        about = whole.getinfo("remoter_kernel/evaluator/transfer_command.py")
    content = bytearray(archive.read_bytes())
    content[about.header_offset + 200] ^= 0xFF
    archive.write_bytes(content)
    assert launched(archive) == {"said": "lacks zip"}
    assert not archive.exists()


def test_a_start_leaves_it_compiled_and_a_second_one_has_nothing_to_do(archive):
    """Whoever waits for the answer does not wait for that."""
    launched(archive, session="abc123")
    (place,) = wait_for(lambda: list(archive.parent.glob("*.zip")), what="it is compiled")
    began = place.stat().st_mtime_ns
    launched(archive, session="abc123")
    assert place.stat().st_mtime_ns == began


@pytest.fixture
def session(archive: Path) -> Iterator[Path]:
    """The folder of a real session, whose evaluator was started from the archive."""
    name = launched(archive, kernel_id="k")["session"]
    folder = data_folder() / "sessions" / name
    wait_for(lambda: read_json(folder / "child.json").get("pid"), what="the kernel is started")
    yield folder
    launched(archive, session="abc123", orders=[{"order": "stop", "session": name, "name": "x"}])


def test_a_cleaned_cache_loses_nothing(home, archive, session):
    """The warden starts again from it, and so does an evaluator that takes over."""
    assert read_json(session / program_archive.PROGRAM_FILE) == {"program": archive.parent.name}
    shutil.rmtree(home / "cach", ignore_errors=True)
    kernel = read_json(session / "child.json")["pid"]
    restart = {"order": "restart", "session": session.name, "name": "r"}
    answer = launched(archive, kernel_id="k", orders=[restart])
    assert (answer["commands"][0]["became"], answer["joined"]) == ("done", True)
    wait_for(lambda: read_json(session / "child.json").get("pid", kernel) != kernel, seconds=30)
    door = read_json(session / "door.json")
    os.kill(door["pid"], 9)
    answer = launched(archive, kernel_id="k")
    assert (answer["session"], answer["joined"]) == (session.name, True)
    assert answer["port"] != door["port"]


def test_a_relative_data_folder_is_no_data_folder(home, monkeypatch):
    """The specification says so; the shell there passes over it, too."""
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    monkeypatch.setenv("HOME", str(home))
    assert data_folder() == home / ".local/share/remoter-kernel"
