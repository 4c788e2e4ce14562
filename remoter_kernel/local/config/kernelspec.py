"""The kernelspecs by which Jupyter finds remotes: written, removed, mended, looked up."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_core.paths import jupyter_data_dir

from remoter_kernel.errors import RemoterError, Usage
from remoter_kernel.local.config.remotes import Remote, find_remote, last_kernel_info
from remoter_kernel.local.config.remotes_toml import is_name
from remoter_kernel.local.private_files import CannotWrite, write_private_file
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jupyter_client.kernelspec import KernelSpecManager

PREFIX = "remoter-"
LANGUAGES = {"ir": "R", "python3": "python"}  # of kernels that have the same name everywhere
MODULE_OPTION = ("-m", "remoter_kernel")  # in the command line of each kernelspec of ours
# Options of Python with -P or -I among them: with either it imports nothing from its folder.
SAFE_OPTIONS = re.compile(r"-(?=\w*[IP])[BEIOPbdiqsuvx]+")
LOGOS = ("logo-32x32.png", "logo-64x64.png", "logo-svg.svg")

READ_WITHIN = 0.05  # seconds: reading takes a tenth of that, unless a network disk hangs
RECALL_WITHIN = 0.3  # seconds, once, before Jupyter is answered
LANGUAGE = "python"  # of most kernels
KernelInfoAndLanguage = tuple[dict[str, Any] | None, str]


def kernelspec_name(remote_name: str) -> str:
    """Give the name by which Jupyter knows a remote."""
    return PREFIX + remote_name


def free_display_name(remote_name: str, wished: str = "") -> str:
    """Return the display name of a remote; pickers of kernels show nothing else.

    `Usage` if another kernelspec has the name that was wished for.
    """
    specs = _manager().get_all_specs()
    taken = {
        about["spec"].get("display_name"): name
        for name, about in specs.items()
        if name != kernelspec_name(remote_name)
    }
    if wished in taken:
        raise Usage(
            f'Jupyter shows "{wished}" already: it is the kernelspec {taken[wished]}.',
            "Choose another --display-name.",
        )
    own = f"Remote ({remote_name})"  # the packaged kernelspec may have it: Remote (host)
    names = itertools.chain([own], (f"{own} {number}" for number in itertools.count(2)))
    return wished or next(name for name in names if name not in taken)


def language_of(remote: Remote) -> str:
    """Return the language of a remote's kernel, as far as it is known before any login."""
    try:
        spec = json.loads((_spec_folder(remote.name) / "kernel.json").read_text(encoding="utf-8"))
        written = str(spec["language"])
    except (OSError, ValueError, LookupError, TypeError, Usage):
        written = "python"
    return LANGUAGES.get(remote.kernel, written)


def install_kernelspec(
    remote: Remote, display_name: str = "", language: str = "python", *, debugger: bool = False
) -> Path:
    """Write the kernelspec of a remote for this user; return its folder.

    `language` is that of the kernel there; `debugger` says that it is one that can debug
    (ipykernel): Jupyter shows the button by this word, before any kernel runs.
    """
    folder = _spec_folder(remote.name)
    spec: dict[str, Any] = {
        "argv": proxy_argv("--remote", remote.name),
        "display_name": display_name or f"Remote ({remote.name})",
        "language": language,
        "interrupt_mode": "message",
        # Jupyter encrypts its connection to the proxy only if the kernelspec says this.
        "metadata": {"supported_encryption": ["curve"]} | ({"debugger": True} if debugger else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_spec(folder / "kernel.json", spec)
    for logo in _logos(language):
        shutil.copyfile(logo, folder / logo.name)
    return folder


def proxy_argv(*words: str) -> list[str]:
    """Return the command line by which Jupyter starts a proxy, with these words at its end."""
    # Python with its path, as Jupyter itself may run in another environment than this one; -P, as
    # Jupyter starts it in the notebook's folder, from which nothing must be imported.
    python = [sys.executable, "-P", "-m", "remoter_kernel"]
    return [*python, "-f", "{connection_file}", *words]


def remove_kernelspec(remote_name: str) -> bool:
    """Remove the kernelspec of a remote; return whether there was one."""
    folder = _spec_folder(remote_name)
    if folder.is_symlink():  # as `jupyter kernelspec install --symlink` leaves them
        folder.unlink()
        return True
    if not folder.exists():
        return False
    shutil.rmtree(folder)
    return True


def kernelspec_names() -> tuple[str, ...]:
    """Give the names of all kernelspecs that this module wrote for this person."""
    specs = _kernels_folder().glob(f"{PREFIX}*/kernel.json")
    return tuple(sorted(spec.parent.name for spec in specs))


def unsafe_kernelspecs() -> list[Path]:
    """Find the kernelspecs of ours, whoever wrote them, that start Python without `-P`.

    Python then runs files of the notebook's folder. Earlier versions have written such ones.
    """
    folders = map(Path, _manager().kernel_dirs)
    files = (file for folder in folders for file in sorted(folder.glob("*/kernel.json")))
    return [file for file in files if _with_safe_argv(_read_spec(file))]


def mend_kernelspecs() -> tuple[list[Path], list[CannotWrite]]:
    """Put `-P` into the kernelspecs that lack it, and change nothing else in them.

    Returns those that were mended, and why others could not be.
    """
    mended, left = [], []
    for file in unsafe_kernelspecs():
        try:
            mode = file.stat().st_mode & 0o777
            _write_spec(file, _with_safe_argv(_read_spec(file)))
            file.chmod(mode)  # one of a whole system must stay readable for all
            mended.append(file)
        except CannotWrite as error:
            left.append(error)
    return mended, left


def with_safe_path(argv: Sequence[str]) -> list[str]:
    """Put `-P` into a command line of ours that lacks it; return [] if nothing is to be done."""
    pairs = list(itertools.pairwise(argv))
    if MODULE_OPTION not in pairs:
        return []
    place = pairs.index(MODULE_OPTION)
    options = itertools.takewhile(lambda word: word.startswith("-"), reversed(argv[:place]))
    if any(SAFE_OPTIONS.fullmatch(word) for word in options):
        return []
    # Right before -m: what stands farther ahead may be another command's, such as nice or env.
    return [*argv[:place], "-P", *argv[place:]]


def _manager() -> KernelSpecManager:
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415 - no proxy needs it

    return KernelSpecManager()


def _read_spec(file: Path) -> dict[str, Any]:
    try:
        spec = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # Jupyter cannot start this one either
        return {}
    return spec if isinstance(spec, dict) else {}


def _with_safe_argv(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the kernelspec with `-P` in its command line, or {} if it needs no mending."""
    argv = spec.get("argv")
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        return {}
    safe = with_safe_path(argv)
    return {**spec, "argv": safe} if safe else {}


def _write_spec(file: Path, spec: dict[str, Any]) -> None:
    write_private_file(file, json.dumps(spec, indent=1, ensure_ascii=False) + "\n")


def _kernels_folder() -> Path:
    return Path(jupyter_data_dir()) / "kernels"


def _spec_folder(remote_name: str) -> Path:
    if not is_name(remote_name):  # it becomes a path, and paths can climb
        raise Usage(f"{remote_name!r} cannot be a remote's name.", "Use only a-z 0-9 . _ -")
    return _kernels_folder() / kernelspec_name(remote_name)


def _logos(language: str) -> list[Path]:
    """Find the logos: beside the packaged kernelspec, or in a checkout; none is no fault.

    Those of some languages have a badge, so that a launcher's tiles are told apart.
    """
    installed = Path(sys.prefix) / "share/jupyter/kernels/remoter"
    checkout = Path(__file__).parents[3] / "kernelspec"
    plain = checkout if (checkout / "kernel.json").is_file() else installed
    own = plain / language.lower()
    folder = own if language.isalnum() and own.is_dir() else plain
    return [logo for logo in map(folder.joinpath, LOGOS) if logo.is_file()]


class RemoteLookup:
    """Finds one remote by its name, for a thread that must not block on a disk.

    While the file cannot be read, the remote stays as it was read last.
    """

    def __init__(
        self,
        name: str | None,
        local: Remote,
        find: Callable[[str | None], Remote | None] = find_remote,
    ) -> None:
        """`local` stands for this machine, which serves where there is no remote."""
        self._name = name
        self._local = local
        self._find = find
        self._last = self._unknown = Remote(name=name or "default", host="")
        self._read_thread: Thread | None = None

    def find(self) -> Remote:
        """Return the remote as it is configured now; one that cannot be read has its name."""
        reading = self._read_thread
        if reading is None or not reading.is_alive():
            reading = self._read_thread = _start_reading(self._read)
            reading.join(READ_WITHIN)  # once for each thread: a disk that hangs costs no more
        return self._last

    def recall(self) -> KernelInfoAndLanguage:
        """Return the last `kernel_info_reply` of the remote, if any, and its kernel's language."""
        known: list[KernelInfoAndLanguage] = [(None, LANGUAGE)]

        def recall() -> None:
            self._read()
            known.append((last_kernel_info(self._last), language_of(self._last)))

        _start_reading(recall).join(RECALL_WITHIN)
        return known[-1]

    def _read(self) -> None:
        try:
            self._last = self._find(self._name) or self._local
        except (RemoterError, OSError):  # the first cell that dials shows what is wrong
            self._last = self._unknown


def _start_reading(read: Callable[[], None]) -> Thread:
    thread = Thread(read, name="configuration")
    thread.start()
    return thread
