"""The kernel process: `python -P -m remoter_kernel -f CONNECTION_FILE [--remote NAME]`.

Jupyter starts it in the notebook's folder, which may come from a stranger. So this file looks
where Python imports from before it imports anything, `__future__` included. `os` and `sys` are
there already: Python itself has begun with its own.
"""

import os
import sys


def imports_from_here() -> bool:
    """Say whether Python looks for modules in the current folder first, as it does without `-P`."""
    if sys.flags.safe_path:
        return False
    try:
        return sys.path[0] in {"", os.getcwd()}
    except OSError:  # the folder is gone, and so is what could be imported from it
        return False


def refusal(words: list[str]) -> str:
    """Say what is wrong and what mends it; `words` are those of the command line."""
    name = words[words.index("--remote") + 1] if "--remote" in words[:-1] else "NAME"
    return (
        f"remoter: this kernel was started without -P, so Python files of {os.getcwd()!r} could "
        "run on this machine. It has ended before that. "
        f"`remoter check {name}` puts -P into the kernelspec; then start the kernel again."
    )


def forget_relative_places() -> None:
    """Import nothing from where a relative path in PYTHONPATH leads: that begins here, too.

    An empty word counts as one (`export PYTHONPATH=$PYTHONPATH:/opt/lib` makes it).
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
    if sys.platform == "win32":  # else Windows looks for `ssh.exe` in the current folder first
        os.environ["NODEFAULTCURRENTDIRECTORYINEXEPATH"] = "1"

import argparse
import contextlib
from pathlib import Path

from remoter_kernel.errors import RemoterError
from remoter_kernel.front.configuration.remotes import find_remote
from remoter_kernel.front.keeper.endpoint import start_early
from remoter_kernel.front.log_files import begin as begin_log


def main() -> int:
    """Serve one connection file."""
    parser = argparse.ArgumentParser(
        prog="python -P -m remoter_kernel", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("-f", dest="connection_file", type=Path, required=True)
    parser.add_argument("--remote", default=None, help="a name in remotes.toml")
    parser.add_argument("--session", default="", help="the id of a session that is there")
    # What Jupyter adds to a kernel's command line (nbclient: the history file) is for the
    # kernel there; it means nothing here.
    words, rest = parser.parse_known_args()
    begin_log("proxy", words.remote)
    with contextlib.suppress(RemoterError, OSError):  # what is wrong is told in the first cell
        if find_remote(words.remote):
            start_early()
    # A quarter of a second, which the keeper uses for its own start.
    from remoter_kernel.front.kernel import serve  # noqa: PLC0415

    try:
        serve(words.connection_file, words.remote, tuple(rest), words.session)
    except RemoterError as error:
        print(error, file=sys.stderr)  # the only place to say it
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
