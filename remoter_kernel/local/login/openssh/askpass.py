"""What ssh runs to ask a person something: hands the question over, prints the answer.

Run by its path with nothing but the standard library, since whoever runs it is ssh. The
answer passes through a local socket and a pipe, and is written down nowhere.
"""

from __future__ import annotations

import os
import sys
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

# Names in the environment.
ADDRESS_VARIABLE, KEY_VARIABLE = "REMOTER_ASKPASS_PLACE", "REMOTER_ASKPASS_KEY"
HINT_VARIABLE = "SSH_ASKPASS_PROMPT"  # "confirm", "none", or not there: ssh tells what it wants


def main() -> int:
    """Ask; the exit status is 1 where there is no answer."""
    try:
        key = bytes.fromhex(os.environ[KEY_VARIABLE])
        with Client(os.environ[ADDRESS_VARIABLE], authkey=key) as asking:
            asking.send_bytes(os.environ.get(HINT_VARIABLE, "").encode())
            asking.send_bytes(" ".join(sys.argv[1:]).encode(errors="replace"))
            answer = asking.recv_bytes()
    except (EOFError, OSError, KeyError, ValueError, AuthenticationError):
        return 1
    sys.stdout.buffer.write(answer + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
