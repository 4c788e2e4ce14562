"""The kernel process: `python -m remoter_kernel -f CONNECTION_FILE [--remote NAME]`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from remoter_kernel.errors import RemoterError
from remoter_kernel.front.configuration.remotes import find_remote
from remoter_kernel.front.keeper.endpoint import start_early


def main() -> int:
    """Serve one connection file."""
    parser = argparse.ArgumentParser(
        prog="python -m remoter_kernel", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("-f", dest="connection_file", type=Path, required=True)
    parser.add_argument("--remote", default=None, help="a name in remotes.toml")
    parser.add_argument("--session", default="", help="the id of a session that is there")
    # What Jupyter adds to a kernel's command line (nbclient: the history file) is for the
    # kernel there; it means nothing here.
    words, rest = parser.parse_known_args()
    with contextlib.suppress(RemoterError, OSError):  # what is wrong is told in the first cell
        if find_remote(words.remote):
            start_early()
    # A quarter of a second, which the keeper uses for its own start.
    from remoter_kernel.front.kernel import serve  # noqa: PLC0415

    try:
        serve(words.connection_file, words.remote, tuple(rest), words.session)
    except RemoterError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the only place to say it
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
