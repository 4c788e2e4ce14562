"""Tests a remote step by step, and stops at the first step that fails."""

from __future__ import annotations

import contextlib
import shlex
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from remoter_kernel import __version__
from remoter_kernel.errors import RemoterError
from remoter_kernel.local.config.remotes import named_remote, remember_kernel_info
from remoter_kernel.local.history.status_report import plain_sockets_warning
from remoter_kernel.local.launch.host_probe import probe_host
from remoter_kernel.local.login.keeper.keeper_login import KeeperLogin, log_in_by_keeper
from remoter_kernel.local.login.ssh_config import resolve_destination
from remoter_kernel.local.run.runner import Runner
from remoter_kernel.local.session.dialer import SessionDialer
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.launch.host_probe import HostProbeResult
    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.prompts import Prompter

STEPS = (
    "name",
    "connect",
    "host key",
    "login",
    "Python",
    "packages",
    "lifetime",
    "start",
    "round trip",
    "versions",
    "times",
)
LOGIN_STEPS = ("connect", "host key", "login")  # as `log_in_by_paramiko` calls them
EMPTY_CELLS = 3  # the quickest counts: the first one warms up


@dataclass(frozen=True)
class Step:
    """One step: what was found, or the error that ends the check."""

    name: str
    found: str = ""
    seconds: float | None = None
    error: RemoterError | None = None


def check_up(name: str, prompter: Prompter | None) -> Iterator[Step]:
    """Test the remote `name` up to a running kernel; the last step may hold an error."""
    way = _Checker(name, prompter)
    with contextlib.closing(way):
        try:
            for step in way.steps():
                yield replace(step, found=plain_text(step.found))
        except RemoterError as err:
            yield Step(way.current_step, error=err.at(name))


class _Checker:
    """The check of one remote."""

    def __init__(self, name: str, prompter: Prompter | None) -> None:
        self.current_step = "name"  # the one that an error belongs to
        self._name = name
        self._prompter = prompter
        self._began = time.perf_counter()
        self._login: KeeperLogin | None = None
        self._runner: Runner | None = None

    def steps(self) -> Iterator[Step]:
        remote = named_remote(self._name)
        destination = resolve_destination(remote.host, remote.ssh_config)
        yield Step("name", _describe_destination(destination))
        yield from self._log_in(remote)
        yield from self._look_around(remote)
        yield from self._start(remote)

    def _log_in(self, remote: Remote) -> Iterator[Step]:
        try:
            self._login = login = log_in_by_keeper(remote, self._prompter, self._on_step)
        except RemoterError:
            yield from map(Step, LOGIN_STEPS[: LOGIN_STEPS.index(self.current_step)])
            raise
        found = (f"{login.host}, {login.cipher}", login.host_key, _describe_login(login))
        for step, what in zip(LOGIN_STEPS, found, strict=True):
            yield Step(step, what, login.seconds.get(step))

    def _look_around(self, remote: Remote) -> Iterator[Step]:
        assert self._login is not None  # noqa: S101 - the step before this one
        self.current_step = "Python"
        began = time.perf_counter()
        is_own = bool(remote.python)
        around = probe_host(self._login, remote.python or "python3", is_own=is_own)
        seconds = time.perf_counter() - began
        if not any(python.is_new_enough for python in around.pythons):
            around.choose(remote.python, remote.kernel)
        best = around.best(remote.kernel) or around.pythons[0]
        yield Step("Python", f"{best.version}, {best.path} ({around.system})", seconds)
        self.current_step = "packages"
        python, kernel = around.choose(remote.python, remote.kernel)
        other = python.other_interpreter(kernel.name)
        runs = f"; it runs in {other}, as its kernelspec there says" if other else ""
        what = f"kernel {kernel.name} for {kernel.language}{runs}"
        yield Step("packages", f"pyzmq, jupyter_client; {what}")
        yield Step("lifetime", describe_lifetime(around, self._login.user))

    def _start(self, remote: Remote) -> Iterator[Step]:
        self.current_step = "start"
        dialer = SessionDialer(lambda: remote, self._prompter)
        self._runner = runner = Runner(dialer)
        runner.start()
        address = dialer.session_info
        assert address is not None  # noqa: S101 - it has just started
        remember_kernel_info(remote, runner.kernel_info)
        tunnel = dialer.tunnel
        by = f", through a command ({tunnel.why_command})" if tunnel.is_command else ""
        yield Step("start", f"on {address.host} as {address.user}{by}", runner.start_seconds)
        self.current_step = "round trip"
        seconds = min(_empty_cell(runner) for _ in range(EMPTY_CELLS))
        yield Step("round trip", "an empty cell", seconds)
        info = runner.kernel_info
        kernel = f"{info.get('implementation')} {info.get('implementation_version')}"
        there = f"Python {address.python}, pyzmq {address.pyzmq}, {kernel}"
        note = "" if runner.is_encrypted else f"; {plain_sockets_warning(address.host)}"
        yield Step("versions", f"remoter {__version__} here; {there} there{note}")
        yield Step("times", "all of the above", time.perf_counter() - self._began)

    def close(self) -> None:
        if self._runner is not None:
            self._runner.stop()
        if self._login is not None:
            self._login.close()

    def _on_step(self, step: str) -> None:
        self.current_step = step


def _empty_cell(runner: Runner) -> float:
    began = time.perf_counter()
    runner.run("", lambda _kind, _content: None)
    return time.perf_counter() - began


def _describe_login(login: KeeperLogin) -> str:
    reason = f" ({login.why_transport})" if login.why_transport else ""
    since = (
        "" if login.is_new else f"; kept since {time.strftime('%X', time.localtime(login.since))}"
    )
    return f"as {login.user}, by {login.transport}{reason}{since}"


def describe_lifetime(around: HostProbeResult, user: str) -> str:
    """Describe whether sessions outlive the login, and what to do if they do not."""
    if not around.ends_with_login:
        return "sessions outlive the login"
    return (
        "this host ends sessions with the login (KillUserProcesses=yes): ask its administrator "
        f"for `loginctl enable-linger {shlex.quote(user)}`"
    )


def _describe_destination(destination: Destination) -> str:
    where = f"{destination.user}@{destination.host_name}:{destination.port}"
    hops = ", ".join(hop.host_name for hop in destination.jumps)
    return f"{where} through {hops}" if hops else where
