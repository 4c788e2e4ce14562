"""The proxy's process: `python -P -m remoter_kernel -f CONNECTION_FILE [--remote NAME]`.

Jupyter starts it in the notebook's folder, which may come from a stranger. So this file checks
`sys.path` before it imports anything, `__future__` included. `os` and `sys` are safe: Python itself
has imported them before the folder was on the path.
"""

import os
import sys


def imports_from_here() -> bool:
    """Does Python look for modules in the current folder first, as it does without `-P`?"""
    if sys.flags.safe_path:
        return False
    try:
        return sys.path[0] in {"", os.getcwd()}
    except OSError:  # the folder was removed, and so was what could be imported from it
        return False


def refusal(words: list[str]) -> str:
    """Return what is wrong and what mends it; `words`: the command line."""
    name = words[words.index("--remote") + 1] if "--remote" in words[:-1] else "NAME"
    return (
        f"remoter: this kernel was started without -P, so Python files of {os.getcwd()!r} could "
        "run on this machine. It has ended before that. "
        f"`remoter check {name}` puts -P into the kernelspec; then start the kernel again."
    )


def forget_relative_places() -> None:
    """Take relative paths of PYTHONPATH out of `sys.path`: they begin in this folder, too.

    An empty word is one of them (`export PYTHONPATH=$PYTHONPATH:/opt/lib` makes it).
    """
    named = "" if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "")
    words = named.split(os.pathsep) if named else []
    relative = {os.path.abspath(word) for word in words if not os.path.isabs(word)}
    sys.path[:] = [place for place in sys.path if place not in relative]


if __name__ == "__main__":
    if imports_from_here():
        print(refusal(sys.argv), file=sys.stderr)
        sys.exit(2)  # as any bad configuration
    forget_relative_places()
    if sys.platform == "win32":  # else it looks for `ssh.exe` in the current folder first
        os.environ["NODEFAULTCURRENTDIRECTORYINEXEPATH"] = "1"

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel.errors import RemoterError
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from remoter_kernel.local.proxy.sockets import Sockets


def start_keeper(remote: str | None) -> None:
    """Start the keeper, if there is a remote: it gets ready while this process does."""
    from remoter_kernel.local.config.remotes import find_remote  # noqa: PLC0415 - in a thread
    from remoter_kernel.local.login.keeper.endpoint import prestart  # noqa: PLC0415 - the same

    with contextlib.suppress(RemoterError, OSError):  # the first cell shows what is wrong
        if find_remote(remote):
            prestart()


def begin_log(process: str, remote: str | None) -> None:
    """Begin to write the log of this process."""
    from remoter_kernel.local import private_files  # noqa: PLC0415 - in a thread

    private_files.begin_log_file(process, remote)


def bound_sockets(connection_file: Path) -> "Sockets":
    """Bind Jupyter's sockets before anything else is imported: Jupyter waits for an answer."""
    from remoter_kernel.local.proxy.sockets import Sockets, read_connection  # noqa: PLC0415
    from remoter_kernel.protocol.reactor import Reactor  # noqa: PLC0415

    sockets = Sockets(Reactor(), read_connection(connection_file))
    sockets.bind()
    return sockets


def main() -> int:
    """Serve one connection file."""
    parser = argparse.ArgumentParser(
        prog="python -P -m remoter_kernel", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("-f", dest="connection_file", type=Path, required=True)
    parser.add_argument("--remote", default=None, help="a name in remotes.toml")
    parser.add_argument("--session", default="", help="the id of a session that is there")
    # What Jupyter adds to a kernel's command line (nbclient: the history file) is handed on to
    # the kernel there.
    words, rest = parser.parse_known_args()
    # In threads: Jupyter must be answered though a disk, `ssh -G` or the keeper hangs.
    Thread(begin_log, args=("proxy", words.remote), name="log").start()
    Thread(start_keeper, args=(words.remote,), name="early").start()
    try:
        sockets = bound_sockets(words.connection_file)
        # This import takes a quarter of a second; requests wait at the sockets meanwhile.
        from remoter_kernel.local.proxy.proxy import serve  # noqa: PLC0415

        serve(sockets, words.remote, tuple(rest), words.session)
    except RemoterError as error:
        print(error, file=sys.stderr)  # Jupyter logs it
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
