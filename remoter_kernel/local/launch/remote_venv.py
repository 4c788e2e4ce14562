"""Makes a Python environment on a remote, in remoter's folder there, and removes it.

A Python there reads the script, `remote_venv_script.py`, from stdin: no file of it stays.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from remoter_kernel.errors import RemoteLacks, Unreachable, Usage
from remoter_kernel.local.launch import wheelhouse
from remoter_kernel.local.launch.host_probe import OLDEST_PYTHON, probe_host
from remoter_kernel.local.launch.launcher import (
    format_version,
    is_over,
    parse_sessions,
    query_remote,
    shell_path,
)
from remoter_kernel.local.launch.remote_venv_script import ANSWER_MARK
from remoter_kernel.local.launch.upload import sha256_of, upload_files
from remoter_kernel.plain_text import plain_text, plain_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.launch.host_probe import FoundPython, HostProbeResult
    from remoter_kernel.local.login.login import CompletedCommand, Login

DESCRIBE_WITHIN = 180.0  # seconds: what is there is tried, and a cold disk takes its time
MAKE_WITHIN = 1800.0  # seconds
PYTHON_KERNEL = "python3"
NO_ROOM = re.compile(r"No space left|quota exceeded|Read-only file system", re.IGNORECASE)
NO_INDEX = re.compile(
    r"NewConnectionError|Failed to establish|name resolution|ProxyError|Cannot connect to proxy|"
    r"ConnectTimeout|timed out|Network is unreachable|Max retries exceeded|Could not fetch URL|"
    r"connection broken",
    re.IGNORECASE,
)
NOT_EXECUTABLE = re.compile(r"failed to map segment|Permission denied|noexec")


class InstallProgress(Protocol):
    """Whoever shows how far it is."""

    def step(self, text: str) -> None:
        """Show that something begins which may take a while."""

    def sending(self, files: int, size: int) -> None:
        """Show that files of so many bytes in all are about to be sent."""

    def sent(self, size: int) -> None:
        """Show that so many more bytes have been sent."""


@dataclass(frozen=True)
class VenvContents:
    """What is installed for a kernel, and what must import afterwards."""

    packages: tuple[str, ...]
    modules: tuple[str, ...]


def venv_contents(kernel: str) -> VenvContents:
    """Return what an environment needs: it runs the evaluator, and of kernels only Python's."""
    if kernel == PYTHON_KERNEL:
        # With pip, so that a cell can install more (`%pip install`).
        return VenvContents(("pip", "ipykernel"), ("zmq", "jupyter_client", "ipykernel"))
    return VenvContents(("pyzmq", "jupyter_client"), ("zmq", "jupyter_client"))


def choose_base_python(probe: HostProbeResult, named: str) -> FoundPython:
    """Choose the Python that an environment can stand on: the likeliest that is new enough."""
    base = next((python for python in probe.pythons if python.is_new_enough), None)
    if base is not None:
        return base
    floor = ".".join(map(str, OLDEST_PYTHON))
    if not probe.pythons:
        what = f"there is no Python {named} that runs" if named else "no Python was found"
        raise RemoteLacks(
            f"{what}, and an environment needs one ({floor} or newer).",
            "Install one there, which needs no root with uv or Miniforge, or name it (--python).",
        )
    newest = max(probe.pythons, key=lambda python: [int(n) for n in python.version.split(".")])
    raise RemoteLacks(
        f"{newest.path} is Python {newest.version}, and an environment needs {floor} or newer.",
        "Install a newer one there, which needs no root with uv or Miniforge, and name it "
        "(--python).",
    )


# Install ---------------------------------------------------------------------------------


def install_venv(
    login: Login,
    remote: Remote,
    probe: HostProbeResult,
    progress: InstallProgress,
    *,
    is_offline: bool,
) -> str:
    """Make the remote's environment there, or find it complete; return the path of its Python."""
    base = choose_base_python(probe, remote.python)
    installer = _RemoteInstaller(login, remote, base)
    facts = installer.describe()
    if facts["state"] == "complete":
        progress.step(f"The environment is there already: {facts['environment']}")
        return str(facts["python"])
    if not facts["has_venv"]:
        raise RemoteLacks(
            f"{base.path} there has no venv module.",
            "Install it (Debian: python3-venv), or name another Python with --python.",
        )
    again = " anew, for it is not complete" if facts["state"] == "half" else ""
    progress.step(f"Making the environment {facts['environment']}{again}")
    pip = _upload_packages(installer, facts, progress, is_offline=is_offline)
    what = " and ".join(installer.contents.packages)
    progress.step(f"Installing {what} there, which may take a minute")
    made = installer.ask("make", MAKE_WITHIN, is_offline=is_offline, pip=pip)
    if "running" in made:
        _raise_in_use(facts | {"running": _pids(made["running"])})
    return str(facts["python"])


def _upload_packages(
    installer: _RemoteInstaller,
    facts: dict[str, Any],
    progress: InstallProgress,
    *,
    is_offline: bool,
) -> str:
    """Send what the host cannot fetch; return where a wheel of pip is there."""
    shell_path(facts["python"])  # raises now, not after minutes, if no shell could start it later
    if is_offline:
        target = wheelhouse.parse_target(facts["platform"])
        progress.step(f"Collecting packages for {target.label}")
        # The wheel of pip is needed to install the others, if not by the kernel.
        wheels = wheelhouse.collect_wheels(target, sorted({"pip", *installer.contents.packages}))
        installer.send(wheels, facts["wheels"], progress)
        (pip,) = (wheel for wheel in wheels if wheel.name.startswith("pip-"))
    elif facts["pip"]:
        return str(facts["pip"])
    else:
        version = facts["version"].rpartition(".")[0]
        pip = wheelhouse.pip_wheel(version)
        installer.send([pip], facts["wheels"], progress)
    return f"{facts['wheels']}/{pip.name}"


class _RemoteInstaller:
    """The installer on a remote, run by one of its Pythons."""

    def __init__(self, login: Login, remote: Remote, base: FoundPython) -> None:
        self._login = login
        self._remote = remote
        self._python = shell_path(base.path)
        self._is_named = bool(remote.python)
        self.contents = venv_contents(remote.kernel)

    def ask(self, verb: str, seconds: float, **words: Any) -> dict[str, Any]:
        """Run one verb of the script; what it reports as trouble becomes an error."""
        request = {
            "verb": verb,
            "name": self._remote.name,
            "is_named": self._is_named,
            **dataclasses.asdict(self.contents),
            **words,
        }
        # Not `exec`: sshd reports no signal as a status, and the shell does (128 + its number).
        command = f"sh -c '\"{self._python}\" -I -B -; exit $?'"
        try:
            ran = self._login.run(command, installer_script(request).encode(), seconds=seconds)
        except Unreachable as error:
            raise Unreachable(
                f"{error.what.rstrip('.')}, before the environment was ready.",
                "Run the same command again: what is half-made is made anew.",
            ) from error
        answer = parse_installer_answer(ran)
        if answer is None:
            raise RemoteLacks(
                f"{self._python} there does not run what it is given: {_exit_text(ran)}.",
                "Name another Python with --python.",
            )
        if "trouble" in answer:
            _raise_install_error(str(answer["trouble"]), str(answer.get("what")))
        return answer

    def describe(self) -> dict[str, Any]:
        """Ask how the environment is, what runs in it, and what this Python and host are."""
        return parse_venv_facts(self.ask("look", DESCRIBE_WITHIN))

    def send(self, files: Sequence[Path], folder: str, progress: InstallProgress) -> None:
        """Send the files that are not in that folder there yet."""
        names = {path.name: sha256_of(path) for path in files}
        missing = self.ask("receive", DESCRIBE_WITHIN, files=names).get("missing")
        if not isinstance(missing, list):
            raise _nonsense_answer()
        wanted = [path for path in files if path.name in missing]
        progress.sending(len(wanted), sum(path.stat().st_size for path in wanted))
        upload_files(self._login, wanted, shell_path(folder), self._python, progress.sent)


def installer_script(request: dict[str, Any]) -> str:
    """Return the script with one request at its end."""
    text = Path(__file__).with_name("remote_venv_script.py").read_text("utf-8")
    return f"{text}\n\nanswer_request(json.loads({json.dumps(request)!a}))\n"


def parse_installer_answer(ran: CompletedCommand) -> dict[str, Any] | None:
    """Read the line that begins with our mark, whatever else was printed around it."""
    for line in ran.stdout.decode("utf-8", "replace").splitlines():
        if line.startswith(ANSWER_MARK):
            try:
                words = plain_words(json.loads(line.removeprefix(ANSWER_MARK)))
            except (ValueError, RecursionError):
                return None
            return words if isinstance(words, dict) else None
    return None


def parse_venv_facts(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what the script says of the environment, each value of the kind that it must be."""
    try:
        return {
            **{name: plain_text(answer[name]) for name in ("environment", "python", "wheels")},
            **{name: plain_text(answer[name]) for name in ("state", "host", "pip")},
            "running": _pids(answer["running"]),
            "has_venv": bool(answer["has_venv"]),
            "platform": dict(answer["platform"]),
            "version": format_version(answer["platform"]["python"]),
        }
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise _nonsense_answer() from error


def _pids(answer: object) -> list[int]:
    """Return the numbers of processes; what is none is left out."""
    return [pid for pid in (answer if isinstance(answer, list) else ()) if isinstance(pid, int)]


def _nonsense_answer() -> RemoteLacks:
    return RemoteLacks(
        "the Python there gave an answer that makes no sense.", "Name another with --python."
    )


def _exit_text(ran: CompletedCommand) -> str:
    said = (ran.stderr or ran.stdout).decode("utf-8", "replace")
    how = f"died of signal {ran.status - 128}" if ran.status > 128 else f"status {ran.status}"  # noqa: PLR2004 - as shells say it
    last = _last_line(said)
    return f"{how}, {last}" if last else how


def _raise_install_error(trouble: str, what: str) -> NoReturn:
    """Raise what the script has reported, with advice."""
    if NO_ROOM.search(what):
        raise RemoteLacks(
            f"there is no room in the home there, or it cannot be written: {_last_line(what)}.",
            "Make room, or set XDG_DATA_HOME there to a place that has some, then try again.",
        )
    if trouble == "busy":
        raise RemoteLacks(
            f"another installation is still at work in {what}.", "Wait for it, then try again."
        )
    if trouble == "pip" and NO_INDEX.search(what):
        raise RemoteLacks(
            f"the host does not reach a package index: {_pip_error(what)}.",
            "Add --offline: then the packages are collected here and sent.",
        )
    if trouble == "pip":
        raise RemoteLacks(
            f"pip failed there: {_pip_error(what)}.",
            "Try another Python there with --python, or --offline.",
        )
    if trouble == "import" and NOT_EXECUTABLE.search(what):
        raise RemoteLacks(
            f"what was installed may not be executed there: {_last_line(what)}.",
            "The home is mounted noexec: set XDG_DATA_HOME there to a place that is not.",
        )
    if trouble == "import":
        raise RemoteLacks(
            f"what was installed does not work there: {_last_line(what)}.",
            "Try another Python there with --python.",
        )
    raise RemoteLacks(
        f"the environment could not be written there: {_last_line(what)}.",
        "Look at the home there, or set XDG_DATA_HOME to another place, then try again.",
    )


def _pip_error(said: str) -> str:
    """Return the last thing that pip complained about."""
    complaints = [line for line in said.splitlines() if line.startswith("ERROR:")]
    is_death = said.rpartition("\n")[2].startswith("its Python died")
    word = complaints[-1].removeprefix("ERROR:") if complaints and not is_death else said
    return _last_line(word)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return plain_text(lines[-1]).strip().rstrip(".")[:300]


# Take back -------------------------------------------------------------------------------


def remove_venv(login: Login, remote: Remote) -> bool:
    """Remove the remote's environment, unless something runs in it; return if there was one."""
    base = _any_usable_python(login, remote)
    installer = _RemoteInstaller(login, remote, base)
    facts = installer.describe()
    sessions: list[str] = []
    if facts["state"] != "none":
        asked = dataclasses.replace(remote, python=base.path)
        answer, _ = query_remote(login, asked, {"verb": "sessions"})
        sessions = sessions_using(parse_sessions(answer, remote.name), facts, remote.name)
    if sessions:
        _raise_in_use(facts, sessions)
    done = installer.ask("purge", MAKE_WITHIN)
    if "running" in done:
        _raise_in_use(facts | {"running": _pids(done["running"])})
    return bool(done.get("is_removed"))


def _any_usable_python(login: Login, remote: Remote) -> FoundPython:
    """Find a Python that can run the installer: the remote's own may be what is broken."""
    for named in (remote.python, "") if remote.python else ("",):
        for python in probe_host(login, named).pythons:
            if python.is_new_enough:
                return python
    raise RemoteLacks(
        "no Python there can remove the environment.",
        f"Remove the folder venv-{remote.name} in ~/.local/share/remoter-kernel there yourself, "
        f"then run: remoter remove {remote.name}",
    )


def sessions_using(
    sessions: Sequence[dict[str, Any]], facts: dict[str, Any], remote_name: str
) -> list[str]:
    """Name the sessions that run in an environment, by what is known of processes and hosts."""
    named = []
    for session in sessions:
        is_ours = session["remote"] == remote_name
        is_elsewhere = session["host"] != facts["host"]  # one home on several machines
        # Where an evaluator was killed, its kernel may be what runs.
        is_orphan = session["state"] == "dead" and bool(facts["running"]) and is_ours
        is_known = session["pid"] in facts["running"] or (is_ours and is_elsewhere)
        if (is_known and not is_over(session)) or is_orphan:
            named.append(str(session["id"]))
    return named


def _raise_in_use(facts: dict[str, Any], sessions: Sequence[str] = ()) -> NoReturn:
    names = list(sessions) or [str(number) for number in facts["running"]]
    is_one = len(names) == 1
    if sessions:
        what = f"{'session' if is_one else 'sessions'} {', '.join(names)}"
        advice = f"If that is not needed any more: remoter stop {' '.join(names)}, then try again."
    else:
        what = f"{'process' if is_one else 'processes'} {', '.join(names)} there"
        advice = (
            "End what is not needed any more (`remoter sessions` shows sessions), then try again."
        )
    raise Usage(f"{what} still {'runs' if is_one else 'run'} in {facts['environment']}.", advice)
