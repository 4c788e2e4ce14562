"""A real jupyter_server with its default limits, and a browser's websocket: nothing is dropped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests import real_parts
from tests.real_server import JupyterServer, Page, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

LINES = 50_000


@pytest.fixture
def page(here: JupyterHere, python_remote: dict[str, Any], tmp_path: Path) -> Iterator[Page]:
    """A notebook that is open in a browser, with a far kernel."""
    real_parts.real_part("jupyter_server")
    spec = here.add_remote("served", **python_remote)
    with JupyterServer(here.folder / "notebooks", tmp_path / "server.log") as server:
        page = server.open(spec)
        yield page
        page.close()


def test_five_megabytes_in_many_small_messages_come_whole(page: Page) -> None:
    """A cell that flushes each line, five times what passes in a second: all of it is shown."""
    cell = page.run("1")
    list(page.until_idle(cell))
    cell = page.run(f"for n in range({LINES}):\n    print(f'{{n:08}}', 'y' * 90, flush=n % 8 == 0)")
    messages = list(page.until_idle(cell))
    assert text_of(messages, "stderr") == ""
    assert text_of(messages) == "".join(f"{n:08} {'y' * 90}\n" for n in range(LINES))


@pytest.mark.timing
def test_an_interrupt_of_a_paced_cell_is_quick(page: Page) -> None:
    """Text that waits for its pace is no reason to wait: idle within 2 s, and a line says why."""
    cell = page.run("n = 0\nwhile True:\n    print(n, 'flood ' * 12)\n    n += 1")
    begun, asked = time.monotonic(), 0.0
    messages = []
    for message in page.until_idle(cell):
        messages.append(message)
        if not asked and time.monotonic() - begun > 3.0 and text_of(messages[-1:]):
            asked = time.monotonic()
            page.say("interrupt_request", {}, "control")
    assert time.monotonic() - asked < 2.0
    assert "held back" in text_of(messages, "stderr")
    assert "rate exceeded" not in text_of(messages, "stderr")


def test_a_question_about_its_use_is_answered_by_the_far_kernel(page: Page, far: FarSide) -> None:
    """Panels that show what a kernel uses ask on control; it is the far process that is shown."""
    cell = page.run("import os, socket; print(os.getpid(), socket.gethostname())")
    pid, host = text_of(list(page.until_idle(cell))).split()
    asked = page.say("usage_request", {}, "control")
    page.listen(lambda: any(each["msg_type"] == "usage_reply" for each in page.of(asked)))
    (reply,) = [each for each in page.of(asked) if each["msg_type"] == "usage_reply"]
    used = reply["content"]
    assert (used["pid"], used["hostname"]) == (int(pid), host)
    assert psutil.Process(used["pid"]).username() == far.user
    assert used["kernel_memory"] > 1_000_000
    assert used["host_virtual_memory"]["total"] == psutil.virtual_memory().total
