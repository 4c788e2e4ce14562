"""Real parts for the tests, and a look around after each module for what was left behind."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import settings

from tests import real_parts
from tests.real_jupyter import MARK, THIS_RUN, JupyterHere
from tests.real_lab import LabServer, real_browser
from tests.real_logins import LoginGround
from tests.real_sshd import RealSshd
from tests.real_users import FarSide, far_side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser

LEFT_WITHIN = 10.0  # seconds until everything a module started must be gone


def pytest_configure() -> None:
    """Set what holds for all tests."""
    # How long an example takes is the machine's matter.
    settings.register_profile("house", deadline=None)
    settings.load_profile("house")
    # Ctrl-C is to reach what the tests start: in the background a shell has it ignored.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure no coverage by whole sessions: they run nearly everything, and prove little of it."""
    for item in items:
        if item.path.parent.name in {"whole", "attacks"}:
            item.add_marker("no_cover")


@pytest.fixture(scope="session")
def far() -> Iterator[FarSide]:
    """The user whom the tests log in as, with a Python that has ipykernel."""
    side = far_side()
    yield side
    if side.is_another_user:
        side.forget_ended_sessions()


@pytest.fixture(scope="session")
def another_user(far: FarSide) -> FarSide:
    """Another unix user than ours; without root this proof is said to be missing."""
    if not far.is_another_user:
        real_parts.real_part("root")
    return far


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterHere]:
    """A Jupyter and a home of the module's own."""
    with JupyterHere(tmp_path_factory.mktemp("here")) as jupyter:
        yield jupyter


@pytest.fixture(scope="module")
def sshd(
    here: JupyterHere, far: FarSide, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealSshd]:
    """A real sshd that lets us in as the far user."""
    real_parts.real_part("sshd")
    folder = tmp_path_factory.mktemp("sshd")
    mark = f"SetEnv {MARK}={THIS_RUN}"
    with RealSshd(folder, user=far.user, extra_config=mark) as server:
        yield server


@pytest.fixture(scope="module")
def ground(far: FarSide, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoginGround]:
    """All ways in that real hosts have; each is made when it is first wanted."""
    with LoginGround(tmp_path_factory.mktemp("logins"), far) as ground:
        yield ground


@pytest.fixture(scope="module")
def python_remote(sshd: RealSshd, far: FarSide, here: JupyterHere) -> dict[str, Any]:
    """What a remote needs to reach the far user's Python through the real sshd."""
    config = here.folder / "ssh_config"
    if not config.exists():
        sshd.ssh_config(config, "real")
    return {"host": "real", "ssh_config": config, "python": str(far.python)}


@pytest.fixture(scope="module")
def browser(here: JupyterHere) -> Iterator[Browser]:
    """A real browser, whose home is the module's."""
    with real_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab_server(here: JupyterHere, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """A real JupyterLab."""
    real_parts.real_part("jupyterlab")
    log = tmp_path_factory.mktemp("lab") / "log"
    with LabServer(here.folder / "notebooks", log) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """After each module no thread and no process of either side is there any more."""
    threads = set(threading.enumerate())
    yield
    # An autouse fixture is set up first, so all others of the module are gone by now.
    left = _until_nothing(lambda: _threads_but(threads))
    assert not left, f"threads left behind: {left}"
    left = _until_nothing(marked)
    commands = [" ".join(process.info["cmdline"] or [process.name()]) for process in left]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()  # the next module's check is about the next module
    assert not left, f"processes left behind: {commands}"


def _threads_but(known: set[threading.Thread]) -> list[threading.Thread]:
    # pyzmq starts its own collector with the first message that is not copied, and keeps it.
    return [
        thread
        for thread in threading.enumerate()
        if thread not in known and type(thread).__name__ != "GarbageCollectorThread"
    ]


def _until_nothing(look: Callable[[], list[Any]]) -> list[Any]:
    deadline = time.monotonic() + LEFT_WITHIN
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def marked() -> list[psutil.Process]:
    """List the processes, of any user, that this run started on either side."""
    found = []
    for process in psutil.process_iter(["cmdline", "username", "status"]):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and (
                process.environ().get(MARK) == THIS_RUN
            ):
                found.append(process)
    return found


def is_keeper(process: psutil.Process) -> bool:
    """Does this process keep a login, or serve a kept one? Both stay for a while, on purpose."""
    with contextlib.suppress(psutil.Error):
        return "remoter_kernel.local.login.keeper.keeper_main" in process.cmdline() or (
            process.name().startswith("sshd")
        )
    return True


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly which proofs this run did not give, and why what came at a second try did not."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"not at the first try: {report.nodeid}", sep="_")
        terminalreporter.line(report.longreprtext)
    if real_parts.missing_proofs:
        terminalreporter.section("proofs that are missing", sep="!", red=True)
        for note in real_parts.missing_proofs:
            terminalreporter.line(note)
