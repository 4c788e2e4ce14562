"""One soak: sessions at work in bad weather, then quiet, then the bill."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from bench.proxy import Proxy
from remoter_kernel.local.login.keeper.endpoint import end_logins
from tests.hung_disk import HungDisk
from tests.real_jupyter import MARK, THIS_RUN, JupyterHere
from tests.real_sshd import RealSshd
from tests.real_users import FarSide, far_side
from tests.soak import faults
from tests.soak.ledger import Count
from tests.soak.leftovers import end_all, files, left_behind
from tests.soak.talker import Talker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEGABYTE = 1 << 20
WAY_EVERY = 12.0  # seconds between two faults of one session's way
SOMEBODY_EVERY = 45.0  # seconds between two of those who die or hang
SSHD_EVERY = 180.0  # seconds
DISK_EVERY = 90.0  # seconds
SESSIONS = ".local/share/remoter-kernel/sessions"
BEGINS_WITHIN = 120.0  # seconds until every session has run a cell
OUTPUTS_WITHIN = 300.0  # seconds


@dataclass(frozen=True)
class Plan:
    """How long, how many, and which dice."""

    seed: int
    seconds: float
    pythons: int = 5
    rs: int = 3
    hurry: float = 1.0  # faults come so many times as often


@dataclass
class Row:
    """What came of one session."""

    name: str
    language: str
    count: Count = field(default_factory=Count)
    recovery: float = 0.0  # seconds
    front: list[float] = field(default_factory=list)  # MiB, at the begin and at the end
    evaluator: list[float] = field(default_factory=list)


@dataclass
class Bill:
    """What came of all."""

    rows: list[Row] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def total(self) -> Count:
        """All sessions together."""
        return sum((row.count for row in self.rows), Count())

    @property
    def is_clean(self) -> bool:
        """Is there nothing to complain of?"""
        return self.total.is_clean and not self.complaints and not self.left


class Soak:
    """The ground and who stands on it. Use `run`, once."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.say = say
        self.bill = Bill()
        self.folder = Path()
        self.far: FarSide
        self.here: JupyterHere
        self.weather: faults.Weather
        self.targets: list[faults.Target] = []

    def run(self) -> Bill:
        """Soak, and say what came of it."""
        self.far = far_side()
        if self.far.is_another_user:
            self.far.forget_ended_sessions()  # of a run that was ended by force
        with contextlib.ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="soak-"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            there = stack.enter_context(self.far.folder("soak-"))
            places = (self.folder / "tmp", there / "tmp", self._locks())
            before = files(*places)
            self._prepare(stack, there)
            stack.callback(end_all)
            self._soak()
            self._settle()
            end_logins()
            self.bill.left = left_behind(places, before, but=self._still_needed())
            if not self.bill.is_clean:
                self._keep_evidence()
        if self.far.is_another_user:
            self.far.forget_ended_sessions()
        return self.bill

    def _keep_evidence(self) -> None:
        """Keep journals and logs of both sides: somebody wants to look at them."""
        place = Path(tempfile.mkdtemp(prefix=f"soak-{self.plan.seed}-"))
        shutil.copytree(self.far.home / SESSIONS, place / "sessions")
        for name in ("fronts", "state"):
            shutil.copytree(self.folder / name, place / name, ignore=ignore_sockets)
        self.say(f"What both sides have written is in {place}")

    def _locks(self) -> Path:
        return Path(f"/tmp/remoter-{self.far.home.stat().st_uid}")

    def _still_needed(self) -> set[int]:
        listener = self.weather.sshd._process
        proxies = {target.proxy.pid for target in self.targets}
        return proxies | ({listener.pid} if listener else set())

    # --- the ground ---

    def _prepare(self, stack: contextlib.ExitStack, there: Path) -> None:
        for folder in (there / "tmp", there / "runs"):
            folder.mkdir()
            self.far.give(folder)
        for name in ("tmp", "sshd", "fronts"):
            (self.folder / name).mkdir()
        self.here = stack.enter_context(JupyterHere(self.folder))
        os.environ["TMPDIR"] = str(self.folder / "tmp")
        disk = HungDisk(there)
        disk.build()
        disk.folder = self.far.home / SESSIONS
        words = {MARK: THIS_RUN, "TMPDIR": there / "tmp", **disk.environment}
        mark = f"SetEnv {' '.join(f'{name}={word}' for name, word in words.items())}"
        server = RealSshd(self.folder / "sshd", user=self.far.user, extra_config=mark)
        sshd = stack.enter_context(server)
        self.weather = faults.Weather(sshd, disk)
        languages = ["python"] * self.plan.pythons + ["R"] * self.plan.rs
        for number, language in enumerate(languages, 1):
            self.targets.append(self._target(stack, f"soak-{number}", language, there / "runs"))

    def _target(
        self, stack: contextlib.ExitStack, name: str, language: str, runs: Path
    ) -> faults.Target:
        """Make a remote with a way of its own, and somebody who will use it."""
        sshd = self.weather.sshd
        proxy = stack.enter_context(Proxy(sshd.port))
        alias = f"HostKeyAlias [127.0.0.1]:{sshd.port}"
        config = sshd.ssh_config(
            self.folder / f"{name}.config", name, extra=f"Port {proxy.port}\n{alias}"
        )
        kernel = "ir" if language == "R" else "python3"
        self.here.add_remote(
            name,
            name,
            language=language,
            kernel=kernel,
            ssh_config=config,
            python=str(self.far.python),
            env={"PYDEVD_DISABLE_FILE_VALIDATION": "1"},
        )
        dice = random.Random(f"{self.plan.seed} {name} cells")
        talker = Talker(name, language, self.folder / "fronts", runs / name, dice)
        stack.callback(talker.close)
        sessions = self.far.home / SESSIONS
        dice = random.Random(f"{self.plan.seed} {name} faults")
        return faults.Target(talker, proxy, sessions, self.weather, dice)

    # --- the weather ---

    def _soak(self) -> None:
        """Let all work, first in good weather, then in bad, then in good weather to the end."""
        is_enough = self.weather.is_over.is_set
        works = [
            threading.Thread(target=target.talker.work, args=(is_enough,), daemon=True)
            for target in self.targets
        ]
        for thread in works:
            thread.start()
        try:
            for target in self.targets:
                target.talker.has_begun.wait(BEGINS_WITHIN)
            rows = self.bill.rows = [self._row(target) for target in self.targets]
            rains = [threading.Thread(target=happen, daemon=True) for happen in self._all_weather()]
            for thread in rains:
                thread.start()
            self._tell_minutes(time.monotonic() + self.plan.seconds)
        finally:
            self.weather.is_over.set()
        for thread in rains:
            thread.join()
        for target in self.targets:
            target.proxy.narrow(0)
            target.proxy.resume()
            target.proxy.welcome()
        self.say("The faults are over; what is still due may come.")
        for thread in works:
            thread.join()
        for row, target in zip(rows, self.targets, strict=True):
            self._weigh(row, target)

    def _all_weather(self) -> Iterator[Callable[[], None]]:
        plan, weather = self.plan, self.weather
        for target in self.targets:
            yield partial(faults.rain, target, faults.OF_THE_WAY, WAY_EVERY / plan.hurry)
            # Two threads of one session throw dice of their own, so that each is repeatable.
            dice = random.Random(f"{plan.seed} {target.talker.name} deaths")
            other = replace(target, dice=dice)
            yield partial(faults.rain, other, faults.OF_SOMEBODY, SOMEBODY_EVERY / plan.hurry)
        for happen, pause in (
            (faults.sshd_is_gone, SSHD_EVERY),
            (faults.the_disk_hangs, DISK_EVERY),
        ):
            dice = random.Random(f"{plan.seed} {happen.__name__}")
            yield partial(faults.thunder, weather, dice, happen, pause / plan.hurry)

    def _tell_minutes(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            self.weather.wait(min(left, 60.0))
            asked = sum(len(target.talker.ledger.entries) for target in self.targets)
            self.say(
                f"{max(0.0, until - time.monotonic()):.0f} s left, {asked} requests, "
                f"{self.weather.counted.total()} faults"
            )

    # --- the bill ---

    def _row(self, target: faults.Target) -> Row:
        row = Row(target.talker.name, target.talker.language)
        self._weigh(row, target)
        return row

    @staticmethod
    def _weigh(row: Row, target: faults.Target) -> None:
        """Note the memory of the proxy and of the evaluator."""
        evaluator = target.evaluator()
        for place, pid in (
            (row.front, target.talker.front.pid),
            (row.evaluator, evaluator.pid if evaluator else 0),
        ):
            try:
                place.append(psutil.Process(pid).memory_info().rss / MEGABYTE)
            except psutil.Error:
                place.append(0.0)

    def _settle(self) -> None:
        """Judge, look up what was left to `remoter outputs`, and stop all sessions."""
        bill = self.bill
        for row, target in zip(bill.rows, self.targets, strict=True):
            talker, ledger = target.talker, target.talker.ledger
            text = talker.runs.read_text() if talker.runs.exists() else ""  # it tells why, then
            ran = [line.split() for line in text.splitlines()]
            ledger.note_runs([token for token, _ in ran])
            lives = len({pid for _, pid in ran})
            if lives > 1 + talker.lives:
                ledger.strange.append(f"{lives} kernels, {talker.lives} were ended")
            if any(entry.needs_outputs for entry in ledger.entries.values()):
                ledger.note_outputs(self._outputs(target))
            talker.stop()
            ledger.strange += self._session_troubles(target)
            row.count = ledger.total()
            row.recovery = talker.longest_recovery
            bill.complaints += [*ledger.complaints(), *talker.troubles]
        bill.faults = self.weather.counted
        bill.complaints += self.weather.troubles

    def _outputs(self, target: faults.Target) -> list[dict[str, Any]]:
        """Ask for all that a session has said, as a person would."""
        sessions = self._sessions(target)
        file = self.folder / f"{target.talker.name}.ipynb"
        name = f"{target.talker.name}/{sessions[0].name if sessions else 'none'}"
        ran = self.here.remoter("outputs", name, "--notebook", str(file), timeout=OUTPUTS_WITHIN)
        if ran.returncode != 0:
            self.bill.complaints.append(f"remoter outputs {name}: {ran.stderr}")
            return []
        cells: list[dict[str, Any]] = json.loads(file.read_text())["cells"]
        return cells

    def _sessions(self, target: faults.Target) -> list[Path]:
        """List the folders of the sessions that a remote ever had."""
        return [
            path.parent
            for path in target.sessions.glob("*/session.json")
            if json.loads(path.read_text())["remote"] == target.talker.name
        ]

    def _session_troubles(self, target: faults.Target) -> Iterator[str]:
        """Say if there was not one session, or if it has not ended."""
        name, sessions = target.talker.name, self._sessions(target)
        if len(sessions) != 1:
            yield f"{name} had {len(sessions)} sessions: {', '.join(map(_history, sessions))}"
        for folder in sessions:
            if not json.loads((folder / "session.json").read_text()).get("ended"):
                yield f"{name}/{folder.name} has not ended"


def _history(session: Path) -> str:
    """Tell when a session began, and how it ended."""
    about = json.loads((session / "session.json").read_text())
    begun = time.strftime("%H:%M:%S", time.localtime(about.get("created", 0.0)))
    return f"{session.name} of {begun} ({about.get('why')})"


def ignore_sockets(folder: str, names: list[str]) -> list[str]:
    """Name what cannot be copied."""
    return [
        name
        for name in names
        if not (Path(folder) / name).is_file() | (Path(folder) / name).is_dir()
    ]
