"""Comm messages of a page in a browser: each is handled, whatever the proxy says meanwhile.

JupyterLab forgets all that it has not handled yet when a message of another session arrives:
so handlers here are slow, on the page and there, and the proxy is made to speak.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab_visits import visit
from tests.real_jupyter import wait_for
from tests.real_lab import LabServer
from tests.real_parts import real_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.real_jupyter import JupyterHere
    from tests.real_lab import Lab
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

MANY = 50
# There: it says back what it has got, and remembers it.
TARGET = """import time
got = []
def opened(comm, _):
    def hear(message):
        time.sleep(0.01)
        got.append(message["content"]["data"]["number"])
        comm.send({"number": got[-1]})
    comm.on_msg(hear)
get_ipython().kernel.comm_manager.register_target("slow", opened)"""
# On the page: `heard` grows by one each 150 ms; what has come meanwhile waits in Lab's client.
OPEN = """() => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    window.come = 0;
    window.heard = [];
    kernel.anyMessage.connect((_, {msg, direction}) => {
        if (direction === "recv" && msg.header.msg_type === "comm_msg") window.come++;
    });
    window.comm = kernel.createComm("slow");
    window.comm.onMsg = async message => {
        await new Promise(resolve => setTimeout(resolve, 150));
        window.heard.push(message.content.data.number);
    };
    window.comm.open();
}"""
SEND = """([first, end]) => {
    for (let number = first; number < end; number++) window.comm.send({number});
}"""
ASK = """() => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    return kernel.requestComplete({code: "pri", cursor_pos: 3});
}"""
LET_IT_SPEAK = """() => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    return kernel.requestExecute({code: "%remoter status"}).done;
}"""


@pytest.fixture(scope="module")
def lab_server(here: JupyterHere, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """A JupyterLab whose parts a page's own code can reach."""
    real_part("jupyterlab")
    log = tmp_path_factory.mktemp("lab") / "log"
    with LabServer(here.folder / "notebooks", log, "--expose-app-in-browser") as server:
        yield server


@pytest.fixture
def notebook(
    browser: Browser, lab_server: LabServer, tmp_path: Path
) -> Callable[[str], AbstractContextManager[Lab]]:
    """Opens a notebook of the kernel that is named."""
    return partial(visit, browser, lab_server, pictures=tmp_path)


def heard(lab: Lab) -> list[int]:
    """Return the numbers that the page has handled so far."""
    return list(lab.page.evaluate("window.heard"))


def come(lab: Lab) -> int:
    """Return how many have come to the page so far, handled or not."""
    return int(lab.page.evaluate("window.come"))


def all_are_handled(lab: Lab) -> None:
    """All of them, once, in order: there, and on the page."""
    everything = list(range(MANY))
    wait_for(lambda: heard(lab)[-1] == MANY - 1, seconds=60, what="the last is handled")
    assert heard(lab) == everything
    assert lab.run(f"got == list(range({MANY}))") == "True"


def test_while_the_link_is_lost_and_comes_back(
    here: JupyterHere,
    python_remote: dict[str, Any],
    sshd: RealSshd,
    notebook: Callable[[str], AbstractContextManager[Lab]],
) -> None:
    """The proxy says that a cell waits, and answers a question about itself."""
    spec = here.add_remote("gpu-box", **python_remote)
    with notebook(spec) as lab:
        lab.run(TARGET)
        lab.page.evaluate(OPEN)
        lab.page.evaluate(SEND, [0, 20])
        wait_for(lambda: come(lab) == 20, seconds=30, what="the first have come")
        sshd.stop_listening()
        try:
            lab.page.evaluate(SEND, [20, 35])
            cell = lab.begin("'it ' + 'ran'")
            lab.page.evaluate(LET_IT_SPEAK)
            cell.says("Waiting for the link")
        finally:
            sshd.start()
        lab.page.evaluate(SEND, [35, MANY])
        wait_for(lambda: come(lab) == MANY, seconds=30, what="all have come")
        lab.page.evaluate(LET_IT_SPEAK)
        all_are_handled(lab)
        assert cell.text() == "'it ran'"


@pytest.mark.slow
def test_before_the_far_kernel_is_there(
    here: JupyterHere,
    python_remote: dict[str, Any],
    far: FarSide,
    notebook: Callable[[str], AbstractContextManager[Lab]],
) -> None:
    """What a page says at once waits for the kernel; meanwhile the proxy answers for it."""
    with far.folder() as folder:
        gate = folder / "open"
        shut = f"while [ ! -e {gate} ]; do sleep 0.1; done"
        spec = here.add_remote("late", **python_remote, init=(shut,))
        with notebook(spec) as lab:
            cell = lab.begin(f"{TARGET}\nprint('registered')")
            lab.page.evaluate(OPEN)
            lab.page.evaluate(SEND, [0, 30])
            lab.page.evaluate(ASK)  # answered with nothing, by the proxy
            assert not come(lab)
            gate.touch()
            lab.page.evaluate(SEND, [30, MANY])
            wait_for(lambda: come(lab) == MANY, seconds=30, what="all have come")
            assert len(heard(lab)) < MANY
            lab.page.evaluate(LET_IT_SPEAK)
            all_are_handled(lab)
            assert cell.text() == "registered\n"
