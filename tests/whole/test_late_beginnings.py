"""What a kernel says once as it begins is for nobody, even if a busy machine lets it come late."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from tests.real_jupyter import started_kernel
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

LATE = 1.0  # seconds
# Read by the kernel's Python as it starts: a thread that gets no time for a while.
SLOW = f"""
import sys
if "ipykernel_launcher" in sys.orig_argv:
    from ipykernel.iostream import IOPubThread as Thread

    send, welcome = Thread._really_send, Thread._send_welcome_message

    def late(self, message, *rest, **options):
        if any(b'"starting"' in bytes(part) for part in message):
            self.io_loop.call_later({LATE}, send, self, message, *rest, **options)
        else:
            send(self, message, *rest, **options)

    Thread._really_send = late
    Thread._send_welcome_message = lambda self, *words: self.io_loop.call_later(
        {LATE}, welcome, self, *words
    )
"""


@pytest.fixture
def spec(here: JupyterHere, far: FarSide, python_remote: dict[str, Any]) -> Iterator[str]:
    """A remote whose kernel says late that it begins."""
    with far.folder() as folder:
        give(far, folder / "sitecustomize.py", textwrap.dedent(SLOW))
        env = {"PYTHONPATH": str(folder), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        yield here.add_remote("late", env=env, **python_remote)


def give(far: FarSide, path: Path, text: str) -> None:
    """Write a file of the far user's."""
    path.write_text(text)
    far.give(path)


def test_nothing_belongs_to_no_request(spec: str) -> None:
    """While cells run, nothing comes that a client could not put under one of them."""
    with started_kernel(spec) as kernel:
        heard = Talk(kernel.client).case(
            lambda talk: talk.run(f"import time\ntime.sleep({2 * LATE})\nprint('done')")
        )
    assert set(heard) == {"iopub under request 0", "shell under request 0"}, heard
