"""A process's log: who waits for it (nobody), what is in it, and how much is kept."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import sys
import threading
import time

import pytest

from remoter_kernel import logs
from remoter_kernel.errors import RemoteLacks, Unreachable
from remoter_kernel.local import private_files
from remoter_kernel.local.launch.launcher import StrangeAnswer
from remoter_kernel.local.login.keeper.endpoint import error_to_message as keeper_told
from remoter_kernel.local.login.keeper.endpoint import raise_from_message
from remoter_kernel.local.login.login_errors import (
    connection_ended,
    connection_timed_out,
    proxy_command_failed,
)
from tests.real_jupyter import wait_for

log = logging.getLogger("remoter_kernel.protocol.link_connection")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "made" / "debug.log"
    logs.open_log(path)
    yield path
    logs.close_log()


def lines_of(path):
    logs.close_log()
    return path.read_text().splitlines()


def test_a_line_says_when_how_grave_and_where(file):
    log.info("sent %d bytes", 12)
    (line,) = lines_of(file)
    clock, rest = line.split("Z ", 1)
    assert rest == "INFO protocol.link_connection: sent 12 bytes"
    written = time.strptime(clock.split(".")[0], "%Y-%m-%d %H:%M:%S")
    assert abs(time.mktime(written) - time.mktime(time.gmtime())) < 60
    assert len(clock.split(".")[1]) == 3


def test_nobody_else_may_read_it(file):
    log.info("x")
    logs.close_log()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_words_of_others_stay_on_their_line_and_do_nothing_to_a_terminal():
    words = "a\n2026-11-29 CRITICAL b\r\x1b]0;c\x07\u202e\ud800 \x9b2J"
    # Not logged: what is captured of a test has to be text that any encoding takes.
    record = logging.LogRecord(log.name, logging.INFO, "", 0, "the host said %s", (words,), None)
    line = logs.written(record).removesuffix("\n")
    assert line.isprintable()
    assert "\\n2026-11-29 CRITICAL b\\r\\x1b]0;c\\x07\\u202e\\ud800" in line


def test_a_line_has_a_bound(file):
    log.info("%s", "x" * 1_000_000)
    (line,) = lines_of(file)
    assert len(line) < 1100


def test_an_error_is_told_with_its_way_and_without_its_words(file):
    def fail(secret):
        raise ValueError(f"{secret} is no number")

    try:
        fail("hunter2")
    except ValueError:
        log.exception("It failed.")
    text = "\n".join(lines_of(file))
    assert f"{__name__}:" in text
    assert " fail\n" in text
    assert text.endswith("ValueError")
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "x", "/home/ada/x"), f"OSError: {os.strerror(errno.ENOSPC)}"),
        (Unreachable("The connection was cut."), "Unreachable: The connection was cut."),
        (RemoteLacks("It ended: signal 9\nx = secret"), "RemoteLacks: It ended: signal 9"),
        (StrangeAnswer("gpu answered strangely: secret"), "StrangeAnswer: gpu answered strangely"),
        (KeyError("secret"), "KeyError"),
    ],
)  # fmt: skip
def test_a_reason_has_no_words_that_were_quoted(error, told):
    assert logs.reason(error) == told


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (connection_ended("gpu", "login", said="secret"), "ended the connection during the step"),
        (connection_timed_out("gpu", "login", said='a "b: secret'), "fell silent during the step"),
        (
            proxy_command_failed("gpu", 1, "token=secret"),
            "the ProxyCommand of gpu failed with status 1",
        ),
    ],
)
def test_a_reason_has_no_words_of_a_server_or_a_proxy(error, told):
    """A code with which somebody logs in may be among them; also after the keeper has told it."""
    assert "secret" in str(error)
    with pytest.raises(Unreachable) as again:
        raise_from_message(*keeper_told(error))
    for each in (error, again.value):
        assert logs.reason(each).startswith("Unreachable: ")
        assert told in logs.reason(each)
        assert "secret" not in logs.reason(each)


def test_frames_are_logged_only_if_that_is_wanted(tmp_path):
    for level, count in (("", 0), ("info", 0), ("nonsense", 0), ("DEBUG", 1)):
        logs.open_log(tmp_path / f"log-{level}", level)
        log.debug("x")
        logs.close_log()
        assert sum(1 for path in tmp_path.glob(f"log-{level}")) == count


def test_a_file_that_is_full_begins_anew_and_the_one_before_is_kept(file, monkeypatch):
    monkeypatch.setattr(logs, "MOST_BYTES", 10_000)
    monkeypatch.setattr(logs, "MOST_AT_ONCE", 10)
    for number in range(2000):
        log.info("line %d", number)
    (writer,) = logs._open
    wait_for(writer._lines.empty)
    logs.close_log()
    kept = "".join(path.read_text() for path in sorted(file.parent.iterdir(), reverse=True))
    assert kept.endswith("line 1999\n")
    sizes = [path.stat().st_size for path in file.parent.iterdir()]
    assert len(sizes) <= 2
    assert max(sizes) < 11_000


class Disk:
    """What `os.open` does for the writer of a log."""

    def __init__(self, monkeypatch):
        self.is_free = threading.Event()
        self.error = None
        self.is_asked = threading.Event()
        self._open = os.open
        monkeypatch.setattr(os, "open", self.open)

    def open(self, path, *words):
        if str(path).endswith("debug.log"):
            self.is_asked.set()
            self.is_free.wait(30)
            if self.error:
                raise self.error
        return self._open(path, *words)


def test_a_disk_that_hangs_holds_nobody_up_and_costs_lines_which_are_counted(file, monkeypatch):
    monkeypatch.setattr(logs, "MOST_WAITING", 100)
    disk = Disk(monkeypatch)
    log.info("first")
    assert disk.is_asked.wait(10)
    began = time.monotonic()
    for number in range(10_000):
        log.info("line %d", number)
    took = time.monotonic() - began
    disk.is_free.set()
    text = "\n".join(lines_of(file))
    assert took < 5
    assert text.count(" line ") == 100
    assert "could not be written here: 9900" in text


def test_a_process_ends_though_the_disk_hangs(file, monkeypatch):
    disk = Disk(monkeypatch)
    log.info("x")
    assert disk.is_asked.wait(10)
    began = time.monotonic()
    logs.close_log()
    assert time.monotonic() - began < 5
    disk.is_free.set()


def test_a_full_disk_costs_lines_which_are_counted(file, monkeypatch):
    disk = Disk(monkeypatch)
    disk.is_free.set()
    disk.error = OSError(errno.ENOSPC, "full")
    log.info("one")
    log.info("two")
    (writer,) = logs._open
    wait_for(lambda: writer._lost == 2)
    disk.error = None
    log.info("three")
    lines = lines_of(file)
    assert "could not be written here: 2" in lines[0]
    assert lines[1].endswith("three")


def test_a_line_that_was_cut_in_the_middle_does_not_swallow_the_next(file, monkeypatch):
    write, room = os.write, [40]

    def short(handle, data):
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "full")
        count = write(handle, data[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(os, "write", short)
    log.info("one that is quite long")
    (writer,) = logs._open
    wait_for(lambda: writer._lost == 1)
    room[0] = 10_000
    log.info("two")
    lines = lines_of(file)
    assert len(lines[0]) == 40
    assert "could not be written here: 1" in lines[1]
    assert lines[2].endswith("two")


def test_where_no_thread_is_left_there_is_no_log_and_no_trouble(tmp_path, monkeypatch):
    def fail(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    logs.open_log(tmp_path / "log")
    log.info("x")
    logs.close_log()


def test_what_cannot_be_said_is_no_trouble_of_who_says_it(file, monkeypatch):
    # pytest's own handler takes it for a fault of the test.
    monkeypatch.setattr(logging.getLogger("remoter_kernel"), "propagate", False)

    class Odd:
        def __str__(self):
            raise ValueError

    log.info("%s", Odd())
    log.info("%d", "x")
    lines = lines_of(file)
    assert len(lines) == 2
    assert all("cannot be written" in line for line in lines)


def test_a_thread_that_dies_is_logged_and_told_as_before(file, monkeypatch):
    told = []
    logs.close_log()
    monkeypatch.setattr(threading, "excepthook", told.append)
    logs.open_log(file)
    thread = threading.Thread(target=lambda: 1 // 0, name="doomed")
    thread.start()
    thread.join()
    text = "\n".join(lines_of(file))
    assert "Thread doomed has died." in text
    assert text.endswith("ZeroDivisionError")
    assert len(told) == 1
    assert threading.excepthook == told.append


def test_a_process_that_ends_in_order_has_written_all(tmp_path):
    code = (
        "import logging, pathlib, sys; from remoter_kernel import logs\n"
        "logs.open_log(pathlib.Path(sys.argv[1]))\n"
        "[logging.getLogger('remoter_kernel.x').info('line %d', n) for n in range(1000)]\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], check=True)
    assert len((tmp_path / "log").read_text().splitlines()) == 1000


def test_nothing_is_printed_where_there_is_no_log():
    code = (
        "import logging; import remoter_kernel.logs\n"
        "logging.getLogger('remoter_kernel.x').critical('x')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert ran.stderr == b""


# ------------------------------------------------------------------ files of this side


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path))
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder


def old_log(folder, name, *, days=0.0):
    for path in (folder / name, folder / f"{name}.1"):
        path.write_text("x\n")
        changed = time.time() - days * 24 * 3600
        os.utime(path, (changed, changed))


NOBODY = 2**22 + 1  # more than any process number of Linux


def test_logs_of_processes_that_have_ended_go_by_age_and_by_count(folder):
    for number in range(25):
        old_log(folder, f"proxy-a-20260101T000000-{NOBODY + number}.log", days=number / 100)
    old_log(folder, f"keeper-20260101T000000-{NOBODY}.log", days=15)
    old_log(folder, f"keeper-20260101T000000-{NOBODY + 1}.log", days=13)
    old_log(folder, f"proxy-a-b-20260101T000000-{os.getpid()}.log", days=100)
    (folder / "notes.log").write_text("mine")
    private_files.clear_old()
    left = {path.name for path in folder.iterdir()}
    assert len([name for name in left if name.startswith("proxy-a-2026")]) == 40
    assert f"proxy-a-20260101T000000-{NOBODY + 19}.log" in left
    assert f"keeper-20260101T000000-{NOBODY}.log" not in left
    assert f"keeper-20260101T000000-{NOBODY}.log.1" not in left
    assert f"keeper-20260101T000000-{NOBODY + 1}.log" in left
    assert {"notes.log", f"proxy-a-b-20260101T000000-{os.getpid()}.log"} <= left


def test_a_process_clears_old_logs_by_the_thread_that_writes(folder):
    old_log(folder, f"keeper-20260101T000000-{NOBODY}.log", days=15)
    private_files.begin_log_file("proxy", "my-remote.2")
    log.info("x")
    wait_for(lambda: len(list(folder.iterdir())) == 1)
    (found,) = private_files.log_files()
    logs.close_log()
    assert (found.kind, found.remote, found.pid) == ("proxy", "my-remote.2", os.getpid())
    assert found.is_open
    assert found.text().endswith("x\n")


def test_a_name_from_a_command_line_leads_nowhere_else(folder):
    private_files.begin_log_file("proxy", "../../" + "x" * 5000)
    log.info("x")
    logs.close_log()
    (path,) = folder.iterdir()
    assert path.name.startswith("proxy-.._.._xxx")


def test_a_state_folder_that_cannot_be_made_costs_the_log_alone(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / "file"))
    private_files.begin_log_file("proxy", "a")
    log.info("x")
    logs.close_log()
    assert (tmp_path / "file").read_text() == ""
