"""Messages with very many buffers arrive both ways; what is more than is carried is told."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.protocol.frames import MOST_BUFFERS
from tests.real_jupyter import started_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd

WITHIN = 60.0  # seconds
SEND = """
kernel = get_ipython().kernel
kernel.session.send(
    kernel.iopub_socket, "display_data", {{"data": {{}}, "metadata": {{}}}},
    parent=kernel.get_parent(), ident=b"display_data", buffers=[b"x"] * {count},
)
"""
HUGE = "'x' * 2**20"
SEND_HEADER = f"""
kernel = get_ipython().kernel
header = {{**kernel.session.msg_header("display_data"), "more": {HUGE}}}
kernel.session.send(
    kernel.iopub_socket, "display_data", {{"data": {{}}}},
    parent=kernel.get_parent(), ident=b"display_data", header=header,
)
"""
COUNT = "len(get_ipython().kernel.get_parent()['buffers'])"


@pytest.fixture(scope="module")
def client(here: JupyterHere, sshd: RealSshd, python_remote: dict[str, Any]) -> Iterator[Any]:
    with started_kernel(here.add_remote("buffers", **python_remote)) as kernel:
        run(kernel.client, "pass")
        yield kernel.client


def run(client: Any, code: str, buffers: int = 0, **header: str) -> list[dict[str, Any]]:
    """Run a cell that comes with so many buffers; return what it published, and its reply."""
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
    message = client.session.msg("execute_request", content)
    message["header"].update(header)
    client.session.send(client.shell_channel.socket, message, buffers=[b"x"] * buffers)
    name, until, heard = message["header"]["msg_id"], time.monotonic() + WITHIN, []
    while time.monotonic() < until:
        said = client.get_iopub_msg(timeout=WITHIN)
        if said["parent_header"].get("msg_id") == name:
            heard.append(said)
            if said["content"].get("execution_state") == "idle":
                break
    while (reply := client.get_shell_msg(timeout=WITHIN))["parent_header"]["msg_id"] != name:
        pass
    return [*heard, reply]


def of_kind(heard: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [each for each in heard if each["msg_type"] == kind]


@pytest.mark.parametrize("count", [9_996, 50_000, MOST_BUFFERS])
def test_many_buffers_arrive_from_there(client: Any, count: int) -> None:
    """As from a kernel on this machine."""
    (shown,) = of_kind(run(client, SEND.format(count=count)), "display_data")
    assert [bytes(each) for each in shown["buffers"]] == [b"x"] * count


@pytest.mark.parametrize("count", [9_996, 50_000, MOST_BUFFERS])
def test_many_buffers_arrive_there(client: Any, count: int) -> None:
    """A cell may come with buffers, too; no client does that today."""
    (result,) = of_kind(run(client, COUNT, count), "execute_result")
    assert result["content"]["data"]["text/plain"] == str(count)


def test_what_is_too_much_is_told_in_the_cell_that_published_it(client: Any) -> None:
    """Nothing is dropped in silence, and what comes afterwards arrives."""
    code = SEND.format(count=MOST_BUFFERS + 1) + "\nprint('still here')"
    heard = run(client, code)
    texts = "".join(each["content"]["text"] for each in of_kind(heard, "stream"))
    assert "Something of this cell (display_data) is missing here." in texts
    assert "65,537 buffers is too large to be carried" in texts
    assert "still here" in texts
    assert heard[-1]["content"]["status"] == "ok"


def test_a_cell_that_is_too_much_is_answered_by_an_error(client: Any) -> None:
    """It never leaves this side, and the kernel goes on."""
    heard = run(client, "1", MOST_BUFFERS + 1)
    assert heard[-1]["content"]["status"] == "error"
    assert "65,537 buffers is too large to be carried" in heard[-1]["content"]["evalue"]
    assert run(client, "2")[-1]["content"]["status"] == "ok"


def texts(heard: list[dict[str, Any]]) -> str:
    return "".join(each["content"]["text"] for each in of_kind(heard, "stream"))


def test_headers_that_are_too_large_are_told_in_the_cell_that_published_them(client: Any) -> None:
    """Whoever reads them on this side would have to hold many times as much."""
    shown = texts(run(client, SEND_HEADER + "\nprint('still here')"))
    assert "Something of this cell (display_data) is missing here. A message whose headers" in shown
    assert "still here" in shown


def test_a_cell_whose_header_is_too_large_is_answered_by_an_error(client: Any) -> None:
    """It never leaves this side."""
    heard = run(client, "1", more="x" * 2**20)
    assert heard[-1]["content"]["status"] == "error"
    assert "whose headers have" in heard[-1]["content"]["evalue"]
    assert run(client, "2")[-1]["content"]["status"] == "ok"
