"""Orders that waited for a login and cannot be carried out: nobody else's kernel suffers."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.evaluator.processes import boot_id, pid_namespace, started_at
from remoter_kernel.evaluator.records import first_line
from remoter_kernel.local.session import undelivered_commands
from tests.real_jupyter import started_kernel
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

NAME = "late"
LOST = "late01"  # a session that only a newer version could take over


@pytest.fixture
def spec(here: JupyterHere, far: FarSide, python_remote: dict[str, Any]) -> Iterator[str]:
    """A remote with such a session, whose kernel runs, and two orders that wait for a login."""
    folder = far.home / ".local/share/remoter-kernel/sessions" / LOST
    for path in [*reversed(folder.relative_to(far.home).parents), folder.relative_to(far.home)]:
        if not (far.home / path).exists():
            (far.home / path).mkdir()
            far.give(far.home / path)
    here_now = {"host": socket.gethostname(), "boot": boot_id(), "pids": pid_namespace()}
    kernel = {"pid": os.getpid(), "started": started_at(os.getpid()), "warden": 1}
    files = {
        "session.json": json.dumps({"created": 1.0}).encode(),
        "door.json": json.dumps({**here_now, "pid": 2**22 + 1, "started": "1"}).encode(),
        "child.json": json.dumps(kernel).encode(),
        "journal": first_line(9),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for path in folder.iterdir():
        far.give(path)
    spec = here.add_remote(NAME, **python_remote)
    undelivered_commands.save_command(NAME, "k", LOST, "restart")
    waiting(here).joinpath("torn.json").write_text("{")
    yield spec
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def waiting(here: JupyterHere) -> Path:
    return here.folder / "state/orders" / NAME


def test_the_next_kernel_starts_and_its_person_hears_of_them_once(spec, here):
    """In the first cell, and in no other; then they are gone."""
    shown = []
    for _ in range(2):
        with started_kernel(spec) as kernel:
            talk = Talk(kernel.client)
            said = talk.case(lambda talk: talk.run("print(6 * 7)"))
            told = [m["content"] for m in said["iopub under request 0"] if m["type"] == "stream"]
            assert {"name": "stdout", "text": "42\n"} in told
            shown.append("".join(each["text"] for each in told if each["name"] == "stderr"))
            assert list(waiting(here).iterdir()) == []
    assert f"Session {LOST} could not be restarted" in shown[0]
    assert "newer version" in shown[0]
    assert "makes no sense" in shown[0]
    assert shown[1] == ""


def test_a_run_from_a_terminal_says_it_on_stderr(spec, here):
    """What the code prints is not mixed with it."""
    ran = here.remoter("run", NAME, "-c", "print(6 * 7)")
    assert (ran.returncode, ran.stdout) == (0, "42\n"), ran
    assert f"Session {LOST} could not be restarted" in ran.stderr
    assert here.remoter("run", NAME, "-c", "print(6 * 7)").stderr == ""
    assert list(waiting(here).iterdir()) == []
