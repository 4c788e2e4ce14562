"""Probes a host: which Pythons are there, and what each of them can run.

One command does it all: `sh -s` (any login shell can start that), with a script on its stdin. Only
lines that begin with our mark are read, so that banners around them do no harm.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import RemoteLacks
from remoter_kernel.local.config.remotes_toml import did_you_mean
from remoter_kernel.local.launch.launcher import format_version
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from remoter_kernel.local.login.login import Login

PROBE_MARK = "@remoter-survey@"
OLDEST_PYTHON = (3, 9)  # the evaluator's floor: that of ipykernel 6
MOST_READ = 64 * 1024  # bytes of an answer that is none of ours
PROBE_WITHIN = 90.0  # seconds; a cold home on NFS with a dozen environments may take a minute


@dataclass(frozen=True)
class RemoteKernelspec:
    """A kernelspec there."""

    name: str
    display_name: str
    language: str
    debugger: bool = False
    program: str = ""  # what it starts, where the kernelspec names it with its path


@dataclass(frozen=True)
class FoundPython:
    """A Python there, and which modules it has."""

    path: str
    version: str  # "3.11.2"
    has_zmq: bool
    has_jupyter_client: bool
    has_ipykernel: bool
    kernelspecs: tuple[RemoteKernelspec, ...] = ()

    @property
    def is_new_enough(self) -> bool:
        """Whether the evaluator's code can be read by it."""
        return tuple(int(part) for part in self.version.split(".")[:2]) >= OLDEST_PYTHON

    @property
    def missing(self) -> tuple[str, ...]:
        """What this Python lacks to run an evaluator; empty if nothing."""
        wanted = {"pyzmq": self.has_zmq, "jupyter_client": self.has_jupyter_client}
        missing = tuple(name for name, is_there in wanted.items() if not is_there)
        floor = ".".join(map(str, OLDEST_PYTHON))
        return missing if self.is_new_enough else (f"Python {floor} or newer", *missing)

    def other_interpreter(self, name: str) -> str:
        """Return the program of a Python kernel that is another Python than this one; mostly ""."""
        kernel = self.kernel(name)
        if kernel is None:
            return ""
        is_other = kernel.language.lower() == "python" and kernel.program not in {"", self.path}
        is_sibling = Path(kernel.program).parent == Path(self.path).parent  # python3, python3.11
        return kernel.program if is_other and not is_sibling else ""

    def kernel(self, name: str) -> RemoteKernelspec | None:
        """Find a kernelspec that this Python knows."""
        return next((kernel for kernel in self.kernelspecs if kernel.name == name), None)


@dataclass(frozen=True)
class HostProbeResult:
    """What the script has found on a host."""

    pythons: tuple[FoundPython, ...]  # the likeliest first, as the shell there would find them
    home: str
    system: str  # "Linux x86_64"
    ends_with_login: bool = False  # systemd's KillUserProcesses, without linger

    def best(self, kernel: str = "python3") -> FoundPython | None:
        """Choose the Python that can run an evaluator, if possible with this kernel."""
        able = [python for python in self.pythons if not python.missing]
        return next((python for python in able if python.kernel(kernel)), able[0] if able else None)

    def choose(self, named: str, kernel: str) -> tuple[FoundPython, RemoteKernelspec]:
        """Choose Python and kernel, or raise what is missing; `named`: the Python looked for."""
        python = self.best(kernel)
        if python is None:
            raise self._no_python(named)
        found = python.kernel(kernel)
        if found is None:
            names = [known.name for known in python.kernelspecs]
            raise RemoteLacks(
                f'no kernel there is called "{kernel}"{did_you_mean(kernel, names)}; '
                f"{python.path} knows {', '.join(names) or 'none'}.",
                "Install it there, or name another one with --kernel.",
            )
        return python, found

    def _no_python(self, named: str) -> RemoteLacks:
        if not self.pythons:
            what = f"there is no Python {named} that runs." if named else "no Python was found."
            return RemoteLacks(what, "Name one with --python, as in --python ~/venv/bin/python.")
        # Advice is for one Python: the one that lacks least.
        python = min(self.pythons, key=lambda each: (not each.is_new_enough, len(each.missing)))
        what = f"{python.path} is Python {python.version} and lacks {', '.join(python.missing)}."
        if len(self.pythons) > 1:
            what = f"none of the {len(self.pythons)} Pythons there can run a kernel: {what}"
        if not python.is_new_enough:
            return RemoteLacks(what, "Install a newer one there, and name it with --python.")
        install = f"{shlex.quote(python.path)} -m pip install ipykernel"
        return RemoteLacks(
            what,
            f"Run there: {install}, or name another one with --python; `remoter add --install` "
            "makes an environment of its own there.",
        )


def probe_host(login: Login, python: str = "", *, is_own: bool = True) -> HostProbeResult:
    """Look for Pythons there; where `python` names one, for that one alone.

    `is_own`: the Python that is chosen stands in the configuration, so that the default kernel
    is its own; else what Jupyter there finds first.
    """
    ran = login.run("sh -s", probe_script(python, is_own=is_own).encode(), seconds=PROBE_WITHIN)
    return parse_probe(ran.stdout, ran.stderr)


def probe_script(python: str = "", *, is_own: bool = True) -> str:
    """Return the shell script of the probe, for one named Python or for any."""
    text = Path(__file__).with_name("survey.sh").read_text("utf-8")
    own = "yes" if is_own else ""
    return f"named={_quote_path_for_shell(python)}\nown={own}\nmark={PROBE_MARK}\n{text}"


def _quote_path_for_shell(path: str) -> str:
    """Quote a path for the shell, but let it expand `~/`."""
    if path.startswith("~/"):
        return '"$HOME"/' + shlex.quote(path[2:])
    return shlex.quote(path)


def parse_probe(stdout: bytes, stderr: bytes = b"") -> HostProbeResult:
    """Read the lines of the script, whatever else was printed around them."""
    facts: dict[str, str] = {}
    pythons: dict[str, FoundPython] = {}
    for line in stdout.decode("utf-8", "replace").splitlines():
        mark, _, rest = line.partition(" ")
        kind, _, value = rest.partition(" ")
        if mark != PROBE_MARK:
            continue
        if kind == "python":
            prefix, found = _parse_python(value)
            pythons.setdefault(prefix, found)  # python and python3 of one environment
        else:
            facts[kind] = _printable_text(value)
    if "end" not in facts:
        raise RemoteLacks(
            f"the host does not run what it is asked to, but answers: {_excerpt(stdout, stderr)}",
            "An account with a forced command or a menu cannot run a kernel: use another one.",
        )
    return HostProbeResult(
        tuple(pythons.values()),
        facts.get("home", ""),
        facts.get("system", ""),
        ends_with_login="kills" in facts,
    )


def _parse_python(value: str) -> tuple[str, FoundPython]:
    try:
        seen: dict[str, Any] = json.loads(value)
        kernels = tuple(
            RemoteKernelspec(
                name=_printable_text(name),
                display_name=_printable_text(label),
                language=_printable_text(language),
                debugger=bool(debugger),
                program=_printable_text(program),
            )
            for name, label, language, debugger, program in seen["kernels"]
        )
        return str(seen["prefix"]), FoundPython(
            path=_printable_text(seen["path"]),
            version=format_version(seen["version"]),
            has_zmq=bool(seen["zmq"]),
            has_jupyter_client=bool(seen["jupyter_client"]),
            has_ipykernel=bool(seen["ipykernel"]),
            kernelspecs=kernels,
        )
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as err:
        raise RemoteLacks(
            "a Python there gave an answer that makes no sense.", "Name another with --python."
        ) from err


def _excerpt(stdout: bytes, stderr: bytes) -> str:
    """Return the beginning of an output, without characters that act on a terminal."""
    said = (stdout[:MOST_READ] + b" " + stderr[:MOST_READ]).decode("utf-8", "replace")
    text = " ".join(plain_text(said).split())
    return f"“{text[:120]}”" if text else "nothing."


def _printable_text(text: object) -> str:
    """Return a name from there without characters that act on a terminal."""
    return plain_text(text).strip()
