"""The program itself on the remote: one folder for each version, beside the sessions.

A folder holds the archive that was uploaded, named by its hash, and what each Python here has
compiled of it: one zip, which `__main__` uses if it is whole. Folders of other versions go once
each living session is known to need another one. All of that happens in a process of its own,
after a start has been answered.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import marshal
import os
import shutil
import sys
import time
import zipfile
import zlib
from pathlib import Path

from remoter_kernel.errors import RemoterError
from remoter_kernel.evaluator import registry
from remoter_kernel.evaluator.folders import data_folder
from remoter_kernel.evaluator.named_lock import hold

PROGRAM_FILE = "program.json"  # of a session: which version its evaluator runs
LOOK_EVERY = 3600.0  # seconds
UNUSED_FOR = 24 * 3600.0  # seconds: another laptop's version may come again soon
UNCHECKED = (0b01).to_bytes(4, "little")  # PEP 552: named by a hash, which nobody compares
LEAST_PRIORITY = 19


def own_archive() -> Path | None:
    """Return the archive that runs; none where the package is run from its sources."""
    archive = Path(sys.argv[0])
    return archive if archive.suffix == ".pyz" else None


def has_valid_hash(archive: Path) -> bool:
    """Has it the hash that its name says? An upload that was cut must not run."""
    return hashlib.sha256(archive.read_bytes()).hexdigest() == archive.stem


def mark_used(archive: Path) -> None:
    """Keep other versions from removing it, while this launch makes a session that names it."""
    then = time.time() - LOOK_EVERY - 1  # not now: maintenance stays due
    with contextlib.suppress(OSError):
        if archive.parent.stat().st_mtime < then:
            os.utime(archive.parent, (then, then))


def record_version(session: registry.Session) -> None:
    """Let a session name the version that it needs for as long as it lives."""
    archive = own_archive()
    if archive:
        session.write(PROGRAM_FILE, {"program": archive.parent.name})


def start_maintenance() -> None:
    """Compile, and remove what is old, in a process that nobody waits for, if that is due."""
    archive = own_archive()
    try:
        if (
            archive is None
            or archive.parent.parent != programs_folder()
            or not _is_maintenance_due(archive)
        ):
            return
        if os.fork():
            return
    except OSError:
        return  # it can wait
    try:
        os.setsid()  # sshd's hang-up at the end of the login must not reach it
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # the login must not wait for us
            os.dup2(nothing, stream)
        os.nice(LEAST_PRIORITY)
        _maintain(archive)
    finally:
        os._exit(0)


def programs_folder() -> Path:
    """Return where the versions of the program are."""
    return data_folder() / "programs"


def _is_maintenance_due(archive: Path) -> bool:
    is_old = time.time() - archive.parent.stat().st_mtime > LOOK_EVERY
    return is_old or not any(archive.parent.glob(f"{_cache_tag()}.*.zip"))


def _maintain(archive: Path) -> None:
    with contextlib.suppress(OSError, RemoterError), hold("programs", 0.0) as is_held:
        if is_held:  # else another process is at it
            compile_program(archive)
            os.utime(archive.parent)  # from now on it is not due for a while
            remove_unused(archive.parent)


# Compiling -------------------------------------------------------------------------------


def _cache_tag() -> str:
    """Name what can use the same compiled code: as `__main__` does."""
    magic = importlib.util.MAGIC_NUMBER.hex()
    return f"{sys.implementation.cache_tag}.{magic}.{sys.flags.optimize}"


def compile_program(archive: Path) -> Path:
    """Compile all modules for this Python, into one zip beside the archive; return that."""
    for place in archive.parent.glob(f"{_cache_tag()}.*.zip"):
        if place.name == _name_of(place.read_bytes()):
            return place  # it is in use, perhaps
        place.unlink()
    buffer = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(buffer, "w") as compiled:
        for name in source.namelist():
            if name != "__main__.py":
                text = source.read(name)
                _add_module(compiled, name, text)  # for tracebacks
                code = compile(text, f"{archive}/{name}", "exec", dont_inherit=True)
                header = importlib.util.MAGIC_NUMBER + UNCHECKED + bytes(8)  # of a .pyc, PEP 552
                _add_module(compiled, f"{name}c", header + marshal.dumps(code))
    place = archive.parent / _name_of(buffer.getvalue())
    _write_atomically(place, buffer.getvalue())
    return place


def _name_of(content: bytes) -> str:
    return f"{_cache_tag()}.{zlib.crc32(content):08x}.zip"


def _add_module(compiled: zipfile.ZipFile, name: str, content: bytes) -> None:
    about = zipfile.ZipInfo(name)
    about.compress_type = zipfile.ZIP_DEFLATED  # a home may be slow to read
    compiled.writestr(about, content)


def _write_atomically(place: Path, content: bytes) -> None:
    beside = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a crash could leave the name with nothing in it
        beside.replace(place)
    except OSError:
        beside.unlink()
        raise


# Removing --------------------------------------------------------------------------------


def remove_unused(current: Path) -> None:
    """Remove versions that no living session names, and what cut uploads have left."""
    living = [
        each for each in registry.all_sessions() if not each.read("session.json").get("ended")
    ]
    for part in filter(_is_unused, (*current.glob("*.pyz.*"), *current.glob("*.zip.*"))):
        part.unlink()
    named = {each.read(PROGRAM_FILE).get("program") for each in living}
    if None in named:  # its file cannot be read, or it is from before there were such folders
        return
    for folder in programs_folder().iterdir():
        if folder != current and folder.name not in named and _is_unused(folder):
            shutil.rmtree(folder, ignore_errors=True)
    # Where versions before this one were; expanduser keeps "~" where there is no home.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - see above
    for archive in filter(_is_unused, Path(cache, "remoter-kernel").glob("*.pyz*")):
        archive.unlink()


def _is_unused(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > UNUSED_FOR
