"""Collects wheels here for a Python there: another version of it, on another platform.

`pip download --python-version` evaluates markers (`python_version < "3.10"`) for the Python that
runs it, and so leaves packages out in silence. So uv resolves the complete set, and pip downloads
exactly that.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from remoter_kernel.errors import RemoteLacks, RemoterError, Usage
from remoter_kernel.local.launch.launcher import format_version
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

APPLICATION = "remoter-kernel"
COLLECT_WITHIN = 900.0  # seconds
# uv knows these minor versions of glibc 2; the newest one that is not newer than the host's counts.
GLIBC_MINORS = (17, 28, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40)
OLDEST_TAG = 5  # of manylinux_2_N
FORMER_MANYLINUX = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
POINTER_BITS = 64  # of the Pythons that wheels are collected for
HIGHEST_VERSION_PART = 999  # of a libc: there is a tag for each version below it
# pip's settings by uv's variables: both must look for packages in the same places.
UV_VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "no-index": ("UV_NO_INDEX", " "),
    "cert": ("SSL_CERT_FILE", " "),
}


@dataclass(frozen=True)
class Target:
    """The Python and the platform that wheels must fit."""

    python: str  # "3.9"
    machine: str  # "x86_64" or "aarch64"
    libc: str  # "glibc", "musl" or "macos"
    version: tuple[int, int]  # of that

    @property
    def label(self) -> str:
        """Describe it for a person."""
        return (
            f"Python {self.python}, {self.machine}, {self.libc} {'.'.join(map(str, self.version))}"
        )

    @property
    def platform(self) -> str:
        """Name it as uv does."""
        if self.libc == "musl":
            return f"{self.machine}-unknown-linux-musl"
        if self.libc == "macos":
            return f"{self.machine}-apple-darwin"
        minor = max(minor for minor in GLIBC_MINORS if minor <= self.version[1])
        return f"{self.machine}-manylinux_2_{minor}"

    @property
    def tags(self) -> tuple[str, ...]:
        """List the platform tags of the wheels that run there, the best first."""
        major, minor = self.version
        if self.libc == "musl":
            return tuple(f"musllinux_1_{each}_{self.machine}" for each in range(minor, -1, -1))
        if self.libc == "macos":
            kinds = ("arm64" if self.machine == "aarch64" else "x86_64", "universal2")
            versions = [(each, 0) for each in range(major, 10, -1)]
            versions += [(10, each) for each in range(15, 8, -1)]
            return tuple(f"macosx_{a}_{b}_{kind}" for a, b in versions for kind in kinds)
        tags = []
        for each in range(minor, OLDEST_TAG - 1, -1):
            tags.append(f"manylinux_2_{each}_{self.machine}")
            if each in FORMER_MANYLINUX:
                tags.append(f"{FORMER_MANYLINUX[each]}_{self.machine}")
        return tuple(tags)


def parse_target(facts: Mapping[str, Any]) -> Target:
    """Read what the host says of itself; RemoteLacks if no wheels can be collected for it."""
    try:
        return _parse_target(facts)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise _unsupported_target("what it says of itself makes no sense.") from error


def _parse_target(facts: Mapping[str, Any]) -> Target:
    implementation, machine = plain_text(facts["implementation"]), plain_text(facts["machine"])
    python = format_version(list(facts["python"][:2]))
    libc, version = map(plain_text, facts["libc"])
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if implementation != "cpython" or facts["is_free_threaded"]:
        kind = "a free-threaded CPython" if implementation == "cpython" else implementation
        raise _unsupported_target(
            f"its Python is {kind}, and wheels are collected for CPython alone."
        )
    if int(facts["bits"]) != POINTER_BITS or machine.lower() not in MACHINES:
        what = f"{machine} with a Python of {int(facts['bits'])} bits"
        raise _unsupported_target(f"it is {what}; wheels are collected for 64 bits of x86 or ARM.")
    is_known = libc in {"glibc", "musl", "macos"} and numbers
    if not is_known or max(numbers) > HIGHEST_VERSION_PART:
        raise _unsupported_target(
            f"its C library is not known ({libc or facts['system']} {version})."
        )
    version_there = (numbers[0], numbers[1] if len(numbers) > 1 else 0)
    target = Target(python, MACHINES[machine.lower()], libc, version_there)
    if libc == "glibc" and target.version < (2, GLIBC_MINORS[0]):
        raise _unsupported_target(
            f"its glibc {version} is too old: wheels need 2.{GLIBC_MINORS[0]}."
        )
    return target


def _unsupported_target(what: str) -> RemoteLacks:
    return RemoteLacks(
        f"nothing can be collected for this host: {what}",
        "If it reaches a package index, leave --offline out; else name another Python (--python).",
    )


# Collect ---------------------------------------------------------------------------------


def collect_wheels(target: Target, packages: Sequence[str]) -> list[Path]:
    """Return the wheels of packages and of all that they need, from the cache or the index."""
    pip = _pip_command()
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
    settings = {**os.environ, **uv_settings(listed.stdout, os.environ)}
    wanted = _resolve_requirements(target, packages, settings)
    wheels_folder = _cache_folder(target, wanted)
    if not _is_complete(wheels_folder, wanted):
        _download_wheels(wheels_folder, wanted, target, pip)
    _remove_older(wheels_folder)
    return sorted(wheels_folder.glob("*.whl"))


def _is_complete(wheels_folder: Path, wanted: str) -> bool:
    """Is each package there once, with the hash of one of its files?"""
    wheels = [hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels_folder.glob("*.whl")]
    count = sum("==" in line for line in wanted.splitlines())
    return len(wheels) == count and all(digest in wanted for digest in wheels)


def _download_wheels(wheels_folder: Path, wanted: str, target: Target, pip: list[str]) -> None:
    wheels_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    requirements = wheels_folder / "requirements.txt"
    requirements.write_text(wanted, encoding="utf-8")
    # With hashes, pip keeps what is in that folder if it is right, and downloads the rest.
    command = [*pip, "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(wheels_folder), "--quiet"]
    command += ["--python-version", target.python, "--implementation", "cp"]
    command += ["--abi", f"cp{target.python.replace('.', '')}"]
    command += [word for tag in target.tags for word in ("--platform", tag)]
    _run_tool(command, dict(os.environ), target)
    if not _is_complete(wheels_folder, wanted):
        raise RemoterError(
            f"not exactly the packages that are needed were collected for {target.label}.",
            f"Remove {wheels_folder}, then try again.",
        )


def pip_wheel(python: str) -> Path:
    """Return a wheel of pip that a Python of that version can run, from here or from the index."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*_pip_command(), "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--python-version", python, "--dest", folder, "pip"]
        _run_tool(command, dict(os.environ), None)
        (wheel,) = Path(folder).glob("pip-*.whl")  # --no-deps: there is one
        wheels_folder = platformdirs.user_cache_path(APPLICATION) / "wheels" / f"pip-{python}"
        wheels_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Beside and renamed: another command may read it just now.
        beside = wheels_folder / f"{wheel.name}.{os.getpid()}"
        shutil.copyfile(wheel, beside)
        return beside.replace(wheels_folder / wheel.name)


def _resolve_requirements(target: Target, packages: Sequence[str], settings: dict[str, str]) -> str:
    """Return the lines of a requirements.txt: each package, its version and hashes."""
    # Else uv obeys the uv.toml or pyproject.toml of the current folder, which may be a stranger's.
    project = platformdirs.user_cache_path(APPLICATION)
    project.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [_find_uv(), "--project", str(project), "pip", "compile"]
    command += ["--quiet", "--no-header", "--no-annotate"]
    command += ["--generate-hashes", "--only-binary", ":all:", "--no-python-downloads"]
    command += ["--python", sys.executable, "--python-version", target.python]
    command += ["--python-platform", target.platform, "-"]
    return _run_tool(command, settings, target, "".join(f"{each}\n" for each in packages))


def _find_uv() -> str:
    if importlib.util.find_spec("uv") is not None:
        import uv  # noqa: PLC0415 - an extra

        with contextlib.suppress(FileNotFoundError):
            return str(uv.find_uv_bin())
    found = shutil.which("uv")
    if found is None:
        raise Usage(
            "--offline needs uv here, which says what fits another Python.",
            "Run: pip install 'remoter-kernel[offline]'",
        )
    return found


def _pip_command() -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise Usage(
            f"pip is not there for {sys.executable}, and is needed to collect packages.",
            "Run: pip install 'remoter-kernel[offline]'",
        )
    # -P, or pip imports from the current folder.
    return [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input"]


def _run_tool(
    command: list[str], env: dict[str, str], target: Target | None, stdin: str | None = None
) -> str:
    try:
        ran = subprocess.run(
            command,
            input=stdin or "",
            env=env,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=COLLECT_WITHIN,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RemoterError(
            f"packages could not be collected here within {COLLECT_WITHIN:g} s.",
            "Look at the network, then try again.",
        ) from None
    if ran.returncode == 0:
        return ran.stdout
    lines = (ran.stderr.strip() or ran.stdout.strip() or f"status {ran.returncode}").splitlines()
    for_what = f" for {target.label}" if target else ""
    raise RemoterError(
        f"packages could not be collected here{for_what}: {lines[-1].strip()}",
        "This machine must reach a package index; pip's settings here say which.",
    )


# The settings, and the shelves -----------------------------------------------------------


def uv_settings(listed: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Make variables for uv of what `pip config list` prints; those that are set already stay.

    In variables, and not in a command line: an index's address may hold a password.
    """
    found: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        key = name.removeprefix(":env:").removeprefix("global").removeprefix(".")
        if key in UV_VARIABLES:
            variable, between = UV_VARIABLES[key]
            with contextlib.suppress(ValueError, SyntaxError):
                found[variable] = between.join(str(ast.literal_eval(value)).split())
    if "UV_INDEX" in found:
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip takes the best of all indexes, too
    return {name: value for name, value in found.items() if name not in environment}


def _cache_folder(target: Target, wanted: str) -> Path:
    """Name the folder of one set of wheels."""
    digest = hashlib.sha256(wanted.encode()).hexdigest()[:16]
    name = f"{target.python}-{target.platform}-{digest}"
    return platformdirs.user_cache_path(APPLICATION) / "wheels" / name


def _remove_older(wheels_folder: Path) -> None:
    """Remove sets for the same platform that are a month older: newer versions replace them."""
    month = 30 * 24 * 3600.0  # seconds: another kernel's set may be for the same platform
    for other in wheels_folder.parent.glob(f"{wheels_folder.name.rpartition('-')[0]}-*"):
        with contextlib.suppress(OSError):
            if other.stat().st_mtime < wheels_folder.stat().st_mtime - month:
                shutil.rmtree(other)
