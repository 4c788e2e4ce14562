"""One text for a bug report: what is here, what is there, and the ends of the logs.

Its own words stand there as they are; each value goes through a `Mask`. Nothing of a kernel's own
output is read for it.
"""

from __future__ import annotations

import contextlib
import getpass
import platform
import re
import socket
import subprocess
import time
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoter_kernel import __version__, logs
from remoter_kernel.errors import BadConfiguration, RemoterError
from remoter_kernel.local import private_files
from remoter_kernel.local.config.remotes import (
    NOTEBOOK_FOLDER,
    Remote,
    config_path,
    find_remote,
    read_remotes,
)
from remoter_kernel.local.config.remotes_toml import write_duration, write_size
from remoter_kernel.local.history.mask import Mask, vocabulary
from remoter_kernel.local.history.remote_query import RemoteQuery
from remoter_kernel.local.history.transcript import format_duration
from remoter_kernel.local.login.keeper import endpoint
from remoter_kernel.local.login.ssh_config import resolve_destination
from remoter_kernel.local.session import undelivered_commands
from remoter_kernel.local.session.dialer import THIS_MACHINE
from remoter_kernel.local.session.session_cache import load_sessions

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.prompts import Prompter

PACKAGES_THERE = ("pyzmq", "jupyter_client", "ipykernel", "tornado", "traitlets")
PACKAGES = (
    *("pyzmq", "jupyter_client", "paramiko", "ipykernel"),
    *("jupyter_server", "jupyterlab", "notebook"),
)
SSH_VERSION_WITHIN = 5.0  # seconds, for `ssh -V`
MOST_SESSIONS = 8  # the newest
MOST_EVALUATORS = 3  # sessions whose logs are read
MOST_PROXIES = 3
MOST_KEEPERS = 2
LINES = 80  # of each log
LAST = 30  # of them with the DEBUG lines, which are about single frames
MOST_READ = 64 * 1024  # bytes of an evaluator's log
USUAL_KERNELS = {"python3", "ir"}  # another name may tell of a project
REQUEST_COLUMNS = ("id", "channel", "type", "stage", "seconds", "why")  # words of an open request
# In the logs of a version before this one it is front.session.link.
LINK = re.compile(r"^(.*Z )\w+ (?:local|front)\.session\.link: (.*)$", re.MULTILINE)


class Report:
    """The text, line by line; it is masked at the end, when all names are known."""

    def __init__(self) -> None:
        self.mask = Mask(vocabulary())
        # Each line: our words, a value, have others a part in it?
        self._lines: list[tuple[str, str, bool]] = []

    def title(self, ours: str, value: str = "") -> None:
        """Begin a part."""
        self._lines += [("", "", False), (f"## {ours}", value and f" {value}", False)]

    def row(self, ours: str, value: object) -> None:
        """Add a line; known names in `value` are replaced."""
        self._lines.append((f"{ours:<16}", str(value), False))

    def quote(self, ours: str, value: object) -> None:
        """Add a line of which others have a part: only harmless words of `value` stay."""
        self._lines.append((f"{ours:<16}" if ours else "    ", str(value), True))

    def text(self) -> str:
        """Return it as strangers may read it."""
        masks = {False: self.mask.mask_names, True: self.mask.mask_foreign}
        shown = [(ours + masks[foreign](value)).rstrip() for ours, value, foreign in self._lines]
        return "\n".join(shown).strip() + "\n"


def make_report(name: str | None, prompter: Prompter | None) -> str:
    """Make a report about a remote; without a name: the default one, or the only one.

    It also says what could not be found out. Raises `Usage` if there is no such remote.
    """
    report = Report()
    clock = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
    report.title(f"remoter report, {clock}")
    _mask_local(report.mask)
    remote: Remote | None = None
    report_local(report)
    try:
        remote = find_remote(name) or THIS_MACHINE
    except BadConfiguration as error:
        _mask_configuration(report.mask)
        report.title("The configuration cannot be read")
        report.quote("", error)
    if remote:
        report_remote(report, remote)
        report_far_side(report, remote, prompter)
    report_logs(report, remote)
    return report.text()


# Names -------------------------------------------------------------------------------------


def _mask_local(mask: Mask) -> None:
    with contextlib.suppress(Exception):  # a user without a name (in a container) is not in a text
        mask.add_names("USER", getpass.getuser())
    mask.add_names("HOME", str(Path.home()), Path.home().as_posix())
    host = socket.gethostname()
    mask.add_names("HOST", host, host.partition(".")[0])
    with contextlib.suppress(RemoterError):
        for remote in read_remotes().all.values():
            _mask_remote(mask, remote)
    for sessions in load_sessions().values():
        for session in sessions:
            mask_session(mask, session)


def _mask_remote(mask: Mask, remote: Remote) -> None:
    user, _, host = remote.host.rpartition("@")
    mask.add_names("HOST", host, host.partition(":")[0])
    mask.add_names("USER", user)
    mask.add_names("REMOTE", remote.name)
    mask.add_names("PATH", remote.python, remote.cwd, *remote.path_map, *remote.path_map.values())
    mask.add_names("VALUE", *remote.env, *remote.env.values(), *remote.init)


def _mask_configuration(mask: Mask) -> None:
    """Mask all words of a configuration that cannot be parsed: its error quotes some."""
    with contextlib.suppress(OSError):
        text = config_path().read_text(encoding="utf-8", errors="replace")
        mask.add_names("VALUE", *re.findall(r"[^\s\"'=\[\],{}]+", text))


def mask_destination(mask: Mask, destination: Destination) -> None:
    """Mask what an alias of the ssh config stands for, and the jump hosts."""
    for each in (destination, *destination.jumps):
        mask.add_names("HOST", each.host_name, each.alias, each.host_key_alias)
        mask.add_names("USER", each.user)


def mask_session(mask: Mask, session: dict[str, Any]) -> None:
    """Mask the names in what is known of a session."""
    mask.allow(str(session.get("id", "")))
    mask.add_names("HOST", str(session.get("host") or ""))
    for kind in ("notebook", "script"):
        path = str(session.get(kind) or "").replace("\\", "/")
        *folders, name = path.split("/")
        mask.add_names(kind.upper(), path, name, name.rpartition(".")[0])
        mask.add_names("FOLDER", *folders)


# What is here ------------------------------------------------------------------------------


def report_local(report: Report) -> None:
    """Describe this machine."""
    report.title("Here")
    report.row("remoter-kernel", __version__)
    report.row("Python", f"{platform.python_version()} ({platform.python_implementation()})")
    report.row("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            report.row(package, metadata.version(package))
    report.row("ssh", _ssh_version())


def _ssh_version() -> str:
    try:
        ran = subprocess.run(
            ["ssh", "-V"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=SSH_VERSION_WITHIN,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"none ({type(error).__name__})"
    found = re.search(rb"OpenSSH_[\w.]+", ran.stderr + ran.stdout)
    return found[0].decode() if found else "another one than OpenSSH"


def report_remote(report: Report, remote: Remote) -> None:
    """Describe how the remote is configured; values only where they identify nobody."""
    report.title("The remote", remote.name)
    if remote is THIS_MACHINE:
        report.row("host", "this machine: there is no remote")
        return
    for key in (field.name for field in fields(remote) if field.name != "name"):
        report.row(key, _describe_setting(remote, key))
    with contextlib.suppress(RemoterError, OSError):
        destination = resolve_destination(remote.host, remote.ssh_config)
        mask_destination(report.mask, destination)
        report.row("jump hosts", len(destination.jumps))
        report.row("ProxyCommand", "set" if destination.proxy_command else "not set")
    waiting = undelivered_commands.load_commands(remote.name)
    report.row("commands", f"{len(waiting)} wait until it can be reached")


def _describe_setting(remote: Remote, key: str) -> str:
    value = getattr(remote, key)
    if key in DESCRIBERS:
        return DESCRIBERS[key](value)
    if isinstance(value, str):
        return "set" if value else "not set"
    return f"{len(value)} entries"


def _host_shape(host: str) -> str:
    """Return how a host is written, without its names."""
    user = "user@" if "@" in host else ""
    port = ":port" if re.search(r":\d+$", host) else ""
    return f"{user}host{port}"


# How the value of a key is shown. Of any other key, only whether it is set, or its length.
DESCRIBERS: dict[str, Callable[[Any], str]] = {
    "on_shutdown": str,
    "transport": str,
    "local": str,
    "remember": str,
    "idle_timeout": write_duration,
    "login_lifetime": write_duration,
    "journal_limit": write_size,
    "waiting_limit": write_size,
    "host": _host_shape,
    "kernel": lambda kernel: kernel if kernel in USUAL_KERNELS else "another one",
    "cwd": lambda cwd: cwd if cwd in {"", NOTEBOOK_FOLDER} else "set",
    "ssh_config": lambda path: "the usual one" if path == Remote("", "").ssh_config else "another",
}


# What is there -----------------------------------------------------------------------------


def report_far_side(report: Report, remote: Remote, prompter: Prompter | None) -> None:
    """Log in, and describe the login and what is there; or why that was not possible."""
    visit = RemoteQuery(remote, prompter)
    try:
        visit.open()
        _report_login(report, visit)
        report.title("There")
        _report_versions(report, visit)
        _report_sessions(report, visit)
    except RemoterError as error:
        report.title("The remote was not asked, or not all of it")
        report.quote(type(error).__name__, f"{logs.own_words(error)} {error.advice}")
    finally:
        visit.close()


def _report_login(report: Report, visit: RemoteQuery) -> None:
    login = visit.login
    report.title("The login")
    why = getattr(login, "why_transport", "")
    report.row("transport", getattr(login, "transport", "") or "not known")
    report.quote("why", why or "-")
    report.row("cipher", getattr(login, "cipher", "") or "not known")
    report.row("round trip", f"{1000 * getattr(login, 'round_trip', 0.0):.1f} ms")
    since = getattr(login, "since", 0.0)
    report.row("kept for", format_duration(time.time() - since) if since else "-")
    steps = getattr(login, "seconds", {})
    shown = ", ".join(f"{step} {seconds:.3f} s" for step, seconds in steps.items())
    report.quote("its steps", shown or "-")
    report.mask.add_names("USER", str(getattr(login, "user", "")))


def _report_versions(report: Report, visit: RemoteQuery) -> None:
    answer, _ = visit.ask({"verb": "versions"})
    names, packages = (
        each if isinstance(each, dict) else {}
        for each in (answer.get("names"), answer.get("packages"))
    )
    for kind in ("user", "home", "host"):
        report.mask.add_names(kind.upper(), str(names.get(kind, "")))
    report.row("Python", _version(answer.get("python")))
    system = re.fullmatch(r"[\w .+-]{1,80}", str(answer.get("system")))
    report.row("system", system[0] if system else "strange")
    for name in PACKAGES_THERE:
        report.row(name, _version(packages.get(name)))


def _version(told: object) -> str:
    """Return a version if it looks like one: an address has more numbers, or larger ones."""
    found = re.fullmatch(r"\d{1,4}(?:\.\d{1,4}){0,2}(?:\.?(?:a|b|rc|dev|post)\d{1,4})?", str(told))
    return found[0] if found else "strange"


def _report_sessions(report: Report, visit: RemoteQuery) -> None:
    sessions = sorted(visit.sessions(), key=lambda each: -each["created"])[:MOST_SESSIONS]
    for session in sessions:
        mask_session(report.mask, session)
    report.row("sessions", len(sessions) or "none")
    for session in sessions:
        report.title("Session", session["id"])
        report.quote("state", f"{session['state']} for {format_duration(session['seconds'])}")
        report.quote("why", session["why"].partition("\n")[0] or "-")
        kinds = (kind for kind in ("notebook", "script") if session.get(kind))
        report.row("for", next(kinds, "neither a notebook nor a script"))
        report.quote("kernel", session["kernel"])
        report.row("clients", session["fronts"])
        report.row("journal", f"{session['journal']} bytes")
        _report_requests(report, visit, session["id"])
    for session in sessions[:MOST_EVALUATORS]:
        _, log = visit.ask({"verb": "debug", "session": session["id"], "most": MOST_READ})
        title = f"The evaluator's log of session {session['id']}"
        _quote_log(report, title, log.decode(errors="replace"))


def _report_requests(report: Report, visit: RemoteQuery, session: str) -> None:
    """Describe the open requests in the evaluator's table (see `Requests.rows`)."""
    try:
        answer, _ = visit.ask({"verb": "requests", "session": session})
        requests = answer.get("requests")
    except RemoterError:
        requests = None
    if not isinstance(requests, list):
        report.row("open requests", "not told")
        return
    report.row("open requests", len(requests))
    for request in (each for each in requests if isinstance(each, dict)):
        columns = (f"{word} {request[word]}" for word in REQUEST_COLUMNS if word in request)
        report.quote("", ", ".join(columns))


# Logs --------------------------------------------------------------------------------------


def report_logs(report: Report, remote: Remote | None) -> None:
    """Describe the proxies and the keeper, and quote the ends of their logs."""
    logs = private_files.log_files()
    named = {remote.name, ""} if remote and remote is not THIS_MACHINE else {""}
    proxies = [log for log in logs if log.kind == "proxy" and (not remote or log.remote in named)]
    keepers = [log for log in logs if log.kind == "keeper"]
    report.title("Processes here")
    report.row("keeper", _keeper_state())
    for log in proxies[:MOST_PROXIES]:
        links = LINK.findall(log.text())
        report.row("proxy", "runs" if log.is_open else "has ended")
        report.quote("its link", "".join(links[-1]) if links else "has not been needed")
    for log in [*proxies[:MOST_PROXIES], *keepers[:MOST_KEEPERS]]:
        is_there = "which runs" if log.is_open else "which has ended"
        _quote_log(report, f"The log of a {log.kind}, {is_there}", log.text())


def _keeper_state() -> str:
    connection = endpoint.try_connect()
    if connection:
        connection.close()
        return "answers"
    return "is not there" if not endpoint.endpoint_file().exists() else "does not answer"


def _quote_log(report: Report, title: str, text: str) -> None:
    report.title(title)
    lines = text.splitlines()
    for line in log_tail(lines):
        report.quote("", line)
    if not lines:
        report.row("", "nothing")


def log_tail(lines: list[str]) -> list[str]:
    """Return the last lines of a log, and before them only what DEBUG lines would push out."""
    changes = [line for line in lines[:-LAST] if " DEBUG " not in line]
    return [*changes[-(LINES - LAST) :], *lines[-LAST:]]
