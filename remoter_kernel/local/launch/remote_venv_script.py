"""Runs on the REMOTE, read from stdin: finds, makes and removes its private environment.

Must be readable by any Python since 3.9, and needs nothing but the standard library. Everything
that it writes is in remoter's own folder. It answers in one line that begins with `ANSWER_MARK`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_MARK = "@remoter-install@"
STAMP = "remoter-kernel.json"  # written last: an environment without it is not complete
LOCK_WITHIN = 300  # seconds that an earlier installation may need to end
ENDS_WITHIN = 4.0  # seconds that a session which was stopped may need to be gone
IMPORT_WITHIN = 120.0  # seconds for the first imports, on a slow disk
MOST_PIP_OUTPUT = 4000  # bytes of pip's output
# What would send pip elsewhere than into the environment, or make it write in the home.
MISLEADING = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_LOG", "PIP_REPORT", "PIP_PYTHON")


class InstallError(Exception):
    """Why it cannot be done, in words of which `remote_venv` makes a sentence."""

    def __init__(self, trouble: str, what: str) -> None:
        super().__init__(trouble, what)
        self.answer = {"trouble": trouble, "what": what}


class EnvPaths:
    """Where the environment of one remote is, with what belongs to it."""

    def __init__(self, name: str) -> None:
        data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")  # noqa: PTH111 - keeps "~" when there is no home
        self.folder = Path(data) / "remoter-kernel"
        self.environment = self.folder / f"venv-{name}"
        self.wheels = self.folder / f"wheels-{name}"
        self.lock = self.folder / f"venv-{name}.lock"
        self.python = self.environment / "bin/python"
        self.stamp = self.environment / STAMP

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until no other installation is at work here: a cut login leaves one running."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        signal.signal(signal.SIGALRM, self._on_lock_timeout)  # flock itself has no timeout
        signal.alarm(LOCK_WITHIN)
        while True:
            with self.lock.open("a") as file:
                wait_for_lock(file.fileno())
                # Whoever had the lock before may have removed the file: then this lock is of none.
                if not is_same_file(self.lock, file.fileno()):
                    continue
                signal.alarm(0)
                try:
                    yield
                finally:
                    if not os.path.lexists(str(self.environment)):
                        self.lock.unlink()
                return

    def _on_lock_timeout(self, *_: object) -> None:
        raise InstallError("busy", str(self.environment))


def wait_for_lock(file: int) -> None:
    """Wait for the lock of an open file; it ends with the process."""
    import fcntl  # noqa: PLC0415 - the local end imports this module, too, perhaps on Windows

    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)


def is_same_file(path: Path, file: int) -> bool:
    """Is the open file the one that is at that place now?"""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


# What is there ---------------------------------------------------------------------------


def describe_env(paths: EnvPaths, request: dict[str, Any]) -> dict[str, Any]:
    """Describe the environment, what runs in it, this Python and this host."""
    exists = os.path.lexists(str(paths.environment))
    return {
        "environment": str(paths.environment),
        "python": str(paths.python),
        "wheels": str(paths.wheels),
        "state": "complete" if is_complete(paths, request) else "half" if exists else "none",
        "stamp": read_stamp(paths),
        "running": running_in(paths.environment),
        "host": socket.gethostname(),
        "has_venv": importlib.util.find_spec("venv") is not None,
        "pip": bundled_pip(),
        "platform": describe_platform(),
    }


def read_stamp(paths: EnvPaths) -> dict[str, Any]:
    """Return what was written when the environment was complete."""
    try:
        words = json.loads(paths.stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return words if isinstance(words, dict) else {}


def is_complete(paths: EnvPaths, request: dict[str, Any]) -> bool:
    """Was it made to its end, and can the modules still be imported (after an upgrade, say)?"""
    stamp = read_stamp(paths)
    is_other = request.get("is_named") and stamp.get("base") != own_base()
    return bool(stamp) and not is_other and not import_error(paths, request["modules"])


def own_base() -> str:
    """Return the Python that environments made by this one stand on."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def import_error(paths: EnvPaths, modules: list[str]) -> str:
    """Import what is wanted; return why that fails, "" if it does not."""
    # ipykernel takes a second to import: it is only looked for.
    lines = [
        "import importlib.util as u",
        f"[__import__(m) for m in {modules!r} if m != 'ipykernel']",
        f"lost = [m for m in {modules!r} if u.find_spec(m) is None]",
        "assert not lost, lost",
    ]
    command = [str(paths.python), "-I", "-B", "-c", "\n".join(lines)]
    try:
        status, said = run_command(command, clean_environment(is_offline=True), IMPORT_WITHIN)
    except OSError as error:
        return f"{error.strerror}: {paths.python}"
    return (said.strip().splitlines() or [f"status {status}"])[-1] if status else ""


def running_in(environment: Path) -> list[int]:
    """Return the processes of this user that were started from the environment, but for us."""
    begin = f"{environment}/bin/"
    found = (pid for pid, argv0 in own_processes() if argv0.startswith(begin))
    return sorted(pid for pid in found if pid != os.getpid())


def still_running_in(environment: Path) -> list[int]:
    """Return what runs in it; wait a little for a session that was just stopped."""
    limit = time.monotonic() + ENDS_WITHIN
    while running_in(environment) and time.monotonic() < limit:
        time.sleep(0.1)
    return running_in(environment)


def own_processes() -> Iterator[tuple[int, str]]:
    """Yield number and first word of the processes of this user."""
    if Path("/proc/self/cmdline").exists():
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if path.stat().st_uid == os.getuid():
                    argv0 = (path / "cmdline").read_bytes().partition(b"\0")[0]
                    yield int(path.name), os.fsdecode(argv0)
        return
    command = ["ps", "-U", str(os.getuid()), "-o", "pid=,args="]
    _, said = run_command(command, dict(os.environ), IMPORT_WITHIN)
    for line in said.splitlines():
        pid, _, words = line.strip().partition(" ")
        if pid.isdigit():
            yield int(pid), words


def bundled_pip() -> str:
    """Return the wheel of pip that this Python brings; "" on a Debian without python3-venv."""
    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR") or ""]
    with contextlib.suppress(ImportError):
        import ensurepip  # noqa: PLC0415 - is not there on such a Debian

        folders.insert(0, str(Path(ensurepip.__file__).parent / "_bundled"))
    found = [path for folder in folders if folder for path in Path(folder).glob("pip-*.whl")]
    return str(found[0]) if found else ""


def describe_platform() -> dict[str, Any]:
    """Say what a wheel must fit."""
    return {
        "python": list(sys.version_info[:3]),
        "implementation": sys.implementation.name,
        "is_free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "bits": struct.calcsize("P") * 8,
        "machine": platform.machine(),
        "system": platform.system(),
        "libc": libc(),
    }


def libc() -> list[str]:
    """Return name and version of the C library, or of macOS."""
    if platform.system() == "Darwin":
        return ["macos", platform.mac_ver()[0]]
    with contextlib.suppress(ValueError, OSError, AttributeError):
        name, version = str(os.confstr("CS_GNU_LIBC_VERSION")).split()
        return [name, version]
    for loader in Path("/lib").glob("ld-musl-*.so.1"):
        with contextlib.suppress(OSError):
            _, said = run_command([str(loader)], {}, IMPORT_WITHIN)
            versions = [line.split()[1] for line in said.splitlines() if line.startswith("Version")]
            return ["musl", versions[0] if versions else ""]
    return ["", ""]


# What is brought -------------------------------------------------------------------------


def missing_wheels(paths: EnvPaths, request: dict[str, Any]) -> dict[str, Any]:
    """Make the folder for wheels (`files`: names and SHA256); return which are missing.

    None is, where an installation that a cut login has left running comes to its end.
    """
    with paths.exclusive():
        if is_complete(paths, request):
            return {"missing": []}
    paths.wheels.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = request["files"]
    here = set()
    for path in paths.wheels.iterdir():
        if wanted.get(path.name) == hashlib.sha256(path.read_bytes()).hexdigest():
            here.add(path.name)
        else:
            path.unlink()  # half of something, or of another time
    return {"missing": sorted(set(wanted) - here)}


# Make ------------------------------------------------------------------------------------


def create_env(paths: EnvPaths, request: dict[str, Any]) -> dict[str, Any]:
    """Make the environment, unless it is complete; one that is not is made anew."""
    with paths.exclusive():
        if is_complete(paths, request):
            remove_path(paths.wheels)
            return {"python": str(paths.python), "is_new": False}
        running = still_running_in(paths.environment)
        if running:
            return {"running": running}
        try:
            build_env(paths, request)
        except BaseException:
            remove_path(paths.environment)  # on a full disk, what is half-made fills it
            raise
        remove_path(paths.wheels)
        return {"python": str(paths.python), "is_new": True}


def build_env(paths: EnvPaths, request: dict[str, Any]) -> None:
    """Make it, install into it, try it, and write at last the stamp that it is complete."""
    import venv  # noqa: PLC0415 - some systems leave it out: `describe_env` has reported that

    remove_path(paths.environment)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(str(paths.environment))
    is_offline = bool(request["is_offline"])
    # Python runs pip from within its wheel: Debian's Python has no ensurepip to install it.
    command = [str(paths.python), "-I", "-B", f"{request['pip']}/pip", "install"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--no-user"]
    command += ["--no-compile"]  # more than half of the time, and most of it is never imported
    if is_offline:
        command += ["--isolated", "--no-index", "--find-links", str(paths.wheels)]
    else:
        command += ["--prefer-binary", "--retries", "2"]
    status, said = run_command(
        [*command, *request["packages"]], clean_environment(is_offline=is_offline)
    )
    if status:
        died = f"\nits Python died of signal {-status}" if status < 0 else ""
        raise InstallError("pip", said[-MOST_PIP_OUTPUT:] + died)
    why = import_error(paths, request["modules"])
    if why:
        raise InstallError("import", why)
    about = {
        "base": own_base(),
        "python": platform.python_version(),
        "packages": request["packages"],
    }
    write_atomically(paths.stamp, json.dumps(about))


def clean_environment(*, is_offline: bool) -> dict[str, str]:
    """Return the variables for pip: nothing that leads it out of the environment."""
    left_out = ("PYTHON", "PIP_", "__PYVENV") if is_offline else ("PYTHON", "__PYVENV")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(left_out) and name not in MISLEADING
    }
    if is_offline:
        kept["PIP_CONFIG_FILE"] = os.devnull  # pip reads /etc/pip.conf even with --isolated
    return kept


def run_command(
    command: list[str], env: dict[str, str], seconds: float = 3600.0
) -> tuple[int, str]:
    """Run a command to its end; return its status and its output."""
    try:
        ran = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"it did not end within {seconds:g} s"
    return ran.returncode, ran.stdout.decode("utf-8", "replace")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is seen whole or not at all, also after a power cut."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


# Remove ----------------------------------------------------------------------------------


def remove_env(paths: EnvPaths, _request: dict[str, Any]) -> dict[str, Any]:
    """Remove the environment and what belongs to it, unless something runs in it."""
    if not any(os.path.lexists(str(path)) for path in (paths.environment, paths.wheels)):
        return {"is_removed": False}
    with paths.exclusive():
        running = still_running_in(paths.environment)
        if running:
            return {"running": running}
        was_there = os.path.lexists(str(paths.environment))
        with contextlib.suppress(OSError):
            paths.stamp.unlink()  # what is cut in the middle is no environment any more
        remove_path(paths.environment)
        remove_path(paths.wheels)
    with contextlib.suppress(OSError):
        paths.folder.rmdir()  # other environments or sessions keep it
    return {"is_removed": was_there}


def remove_path(path: Path) -> None:
    """Remove a file or a folder; of a link only itself."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(str(path))


VERBS = {"look": describe_env, "receive": missing_wheels, "make": create_env, "purge": remove_env}


def answer_request(request: dict[str, Any]) -> None:
    """Run one verb, and print its answer as one line."""
    os.umask(0o077)  # what is installed is this user's alone, whatever its start-up files set
    try:
        words = VERBS[request["verb"]](EnvPaths(request["name"]), request)
    except InstallError as error:
        words = error.answer
    except OSError as error:
        words = {"trouble": "file", "what": f"{error.strerror or error}: {error.filename}"}
    except subprocess.SubprocessError as error:
        words = {"trouble": "file", "what": str(error)}
    # On a line of its own, though something before it may have ended without a newline.
    sys.stdout.write(f"\n{ANSWER_MARK} {json.dumps(words)}\n")
    sys.stdout.flush()
