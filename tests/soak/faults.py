"""What goes wrong during a soak: each fault has a name, breaks one thing, and mends it.

House rules of this file:

- A fault is a function of its `Target`; when it returns, what can be mended is mended.
- The *way* is at fault often, *somebody dies or hangs* seldom. Each session has one
  of either at a time, so that they overlap, but nobody is killed whose other half (the
  evaluator of a kernel, the kernel of an evaluator) is dead already: such a session is over.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from remoter_kernel.local.config.remotes import find_remote
from remoter_kernel.local.login.keeper.endpoint import endpoint_file

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.proxy import Proxy
    from tests.hung_disk import HungDisk
    from tests.real_sshd import RealSshd
    from tests.soak.talker import Talker

REPLACED_WITHIN = 60.0  # seconds until another evaluator is there; what comes next waits for it


@dataclass
class Weather:
    """What all faults of a soak share: when they end, and how many there were."""

    sshd: RealSshd
    disk: HungDisk
    is_over: threading.Event = field(default_factory=threading.Event)
    counted: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)  # of the faults' own
    sshd_lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self, seconds: float) -> None:
        """Wait, but no longer than the faults go on."""
        self.is_over.wait(seconds)


@dataclass
class Target:
    """One session, as faults see it."""

    talker: Talker
    proxy: Proxy
    sessions: Path  # the folder of the far user
    weather: Weather
    dice: random.Random

    def last(self, shortest: float, longest: float) -> None:
        """Let a fault go on for some seconds."""
        self.weather.wait(self.dice.uniform(shortest, longest))

    def evaluator(self) -> psutil.Process | None:
        """Find the process that answers for the session now."""
        for folder in self.sessions.glob("*"):
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                about = json.loads((folder / "session.json").read_text())
                if about["remote"] == self.talker.name and not about.get("ended"):
                    door = json.loads((folder / "door.json").read_text())
                    return psutil.Process(door["pid"])
        return None

    def kernel(self) -> psutil.Process | None:
        """Find the process that has run a cell last."""
        with contextlib.suppress(OSError, IndexError, ValueError, psutil.Error):
            return psutil.Process(int(self.talker.runs.read_text().split()[-1]))
        return None


OF_THE_WAY: dict[str, tuple[Callable[[Target], bool | None], int]] = {}
OF_SOMEBODY: dict[str, tuple[Callable[[Target], bool | None], int]] = {}


def fault(
    kinds: dict[str, tuple[Callable[[Target], bool | None], int]], often: int
) -> Callable[[Callable[[Target], bool | None]], Callable[[Target], bool | None]]:
    """Add a fault; its function's name is its name. One that returns False did not happen."""

    def add(happens: Callable[[Target], bool | None]) -> Callable[[Target], bool | None]:
        kinds[happens.__name__.replace("_", " ")] = (happens, often)
        return happens

    return add


# --- the way ---


@fault(OF_THE_WAY, often=6)
def a_reset(target: Target) -> None:
    target.proxy.cut()


@fault(OF_THE_WAY, often=3)
def a_black_hole(target: Target) -> None:
    target.proxy.stall()
    target.last(3, 25)
    if target.dice.random() < 0.5:
        target.proxy.cut()
    target.proxy.resume()


@fault(OF_THE_WAY, often=2)
def nobody_listens(target: Target) -> None:
    target.proxy.refuse()
    target.proxy.cut()
    target.last(2, 12)
    target.proxy.welcome()


@fault(OF_THE_WAY, often=2)
def a_slow_link(target: Target) -> None:
    target.proxy.narrow(target.dice.choice((2e5, 1e6, 5e6)))
    target.last(5, 20)
    target.proxy.narrow(0)


@fault(OF_THE_WAY, often=2)
def the_login_is_killed(target: Target) -> bool:
    """Any session's login may be hit: who serves whom is known to sshd alone."""
    with target.weather.sshd_lock:
        logins = target.weather.sshd.logins()
        if logins:
            with contextlib.suppress(psutil.Error):
                target.dice.choice(logins).kill()
    return bool(logins)


@fault(OF_THE_WAY, often=1)
def the_keeper_is_killed(target: Target) -> bool:
    """Whoever holds the login here: the next one who needs it starts another."""
    remote = find_remote(target.talker.name)
    assert remote
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        psutil.Process(json.loads(endpoint_file().read_text())["pid"]).kill()
        return True
    return False


# --- somebody ---


@contextlib.contextmanager
def _stopped(process: psutil.Process) -> Iterator[None]:
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGSTOP)
    yield
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGCONT)


@fault(OF_SOMEBODY, often=3)
def the_evaluator_hangs(target: Target) -> bool:
    evaluator = target.evaluator()
    if evaluator:
        with _stopped(evaluator):
            target.last(2, 15)
    return bool(evaluator)


@fault(OF_SOMEBODY, often=3)
def the_front_hangs(target: Target) -> None:
    with target.talker.front_lock, _stopped(psutil.Process(target.talker.front.pid)):
        target.last(2, 15)


@fault(OF_SOMEBODY, often=2)
def the_evaluator_is_killed(target: Target) -> bool:
    first = target.evaluator()
    if first is None or not _lives(target.kernel()):
        return False
    target.talker.note_death()
    first.kill()
    until = time.monotonic() + REPLACED_WITHIN
    while time.monotonic() < until and not target.weather.is_over.is_set():
        now = target.evaluator()
        if now and now.pid != first.pid:
            break
        target.weather.wait(0.2)
    target.talker.note_death()
    return True


@fault(OF_SOMEBODY, often=1)
def the_kernel_is_killed(target: Target) -> bool:
    kernel, evaluator = target.kernel(), target.evaluator()
    if kernel is None or not (_lives(kernel) and _lives(evaluator)):
        return False
    target.talker.note_death()
    target.talker.lives += 1
    kernel.kill()
    return True


@fault(OF_SOMEBODY, often=1)
def the_kernel_is_killed_while_its_evaluator_hangs(target: Target) -> bool:
    """What it had handed to its system by then waits there for the evaluator."""
    evaluator = target.evaluator()
    if evaluator is None:
        return False
    with _stopped(evaluator):
        target.last(1, 4)
        has_happened = the_kernel_is_killed(target)
        target.last(0.5, 3)
    return bool(has_happened)


@fault(OF_SOMEBODY, often=1)
def the_front_is_killed(target: Target) -> None:
    with target.talker.front_lock:
        target.talker.note_death()
        target.talker.front.kill()


def _lives(process: psutil.Process | None) -> bool:
    with contextlib.suppress(psutil.Error):
        return process is not None and process.status() != psutil.STATUS_ZOMBIE
    return False


# --- all of them at once ---


def sshd_is_gone(weather: Weather, dice: random.Random) -> None:
    """Stop the sshd and all its logins, and start it again."""
    with weather.sshd_lock:
        weather.sshd.stop_listening()
        weather.wait(dice.uniform(1, 8))
        weather.sshd.start()


def the_disk_hangs(weather: Weather, dice: random.Random) -> None:
    """Let whoever asks something of the sessions' folder there wait for an answer."""
    with weather.disk.hung():
        weather.wait(dice.uniform(1, 12))


# --- one after the other ---


def rain(
    target: Target,
    kinds: dict[str, tuple[Callable[[Target], bool | None], int]],
    pause: float,
) -> None:
    """Let faults of these kinds happen to a session, `pause` seconds apart on average."""
    while not target.weather.is_over.is_set():
        target.last(0.2 * pause, 1.8 * pause)
        if target.weather.is_over.is_set():
            return
        (name,) = target.dice.choices(list(kinds), [often for _, often in kinds.values()])
        try:
            happened = kinds[name][0](target)
        except psutil.NoSuchProcess:
            continue  # it has ended by itself just now
        except Exception as error:  # noqa: BLE001 - a thread's end must not be silent
            target.weather.troubles.append(f"{name}: {type(error).__name__}: {error}")
            return
        if happened is not False:
            target.weather.counted[name] += 1
            target.talker.mended_at = time.monotonic()


def thunder(
    weather: Weather,
    dice: random.Random,
    happen: Callable[[Weather, random.Random], None],
    pause: float,
) -> None:
    """Let something happen to all, `pause` seconds apart on average."""
    name = happen.__name__.replace("_", " ")
    while not weather.is_over.is_set():
        weather.wait(dice.uniform(0.5 * pause, 1.5 * pause))
        if not weather.is_over.is_set():
            try:
                happen(weather, dice)
            except Exception as error:  # noqa: BLE001 - a thread's end must not be silent
                weather.troubles.append(f"{name}: {type(error).__name__}: {error}")
                return
            weather.counted[name] += 1
