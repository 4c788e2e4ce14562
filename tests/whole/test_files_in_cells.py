"""`%remoter put` and `get` in a cell: asked about, in their turn, shown as one bar, stopped."""

from __future__ import annotations

import random
import secrets
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.connect import write_connection_file

from bench.proxy import Proxy
from remoter_kernel.local.config.remotes import find_remote, write_remote
from remoter_kernel.local.login.keeper.endpoint import end_logins
from tests.real_jupyter import started_kernel, wait_for
from tests.whole.talk import Talk
from tests.whole.test_login_questions import WHO, answer, configure, said
from tests.whole.test_sessions import a_front

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_logins import LoginGround
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

NARROW = 20e6  # bits per second
PIECE = 1024 * 1024  # bytes
LONG = 30_000_000  # bytes: twelve seconds of a narrow path
QUESTION = "Allow that? yes or no:"
SLOW_WRITE = """
import time
with open('{0}', 'w') as file:
    for i in range(10):
        print(i, file=file)
        time.sleep(0.1)
"""


class Notebook:
    """A kernel in a folder of its own here, with one there."""

    def __init__(self, talk: Talk, folder: Path, there: Path, name: str) -> None:
        self.talk = talk
        self.folder = folder
        self.there = there
        self.name = name

    def run(self, code: str, **options: Any) -> dict[str, list[dict[str, Any]]]:
        """Run a cell; return all that was heard of it."""
        return self.talk.case(lambda talk: talk.run(code, **options))


def of(heard: dict[str, list[dict[str, Any]]], kind: str, request: int = 0) -> list[dict[str, Any]]:
    """The contents of all messages of one kind under one request."""
    said = heard.get(f"iopub under request {request}", [])
    return [message["content"] for message in said if message["type"] == kind]


def error(heard: dict[str, list[dict[str, Any]]], request: int = 0) -> str:
    """The sentence of a cell's error."""
    return "".join(each["evalue"] for each in of(heard, "error", request))


@pytest.fixture(scope="module")
def path(request: Any, sshd: RealSshd) -> Iterator[Proxy]:
    """The way to the server, as wide as the test wants it; a parameter is its round trip."""
    with Proxy(sshd.port, rtt=getattr(request, "param", 0.02)) as proxy:
        line = sshd.known_hosts.read_text()
        sshd.known_hosts.write_text(line + line.replace(str(sshd.port), str(proxy.port)))
        yield proxy


@pytest.fixture
def there(far: FarSide) -> Iterator[Path]:
    """A folder of the far user's own, and of this test's."""
    with far.folder() as folder:
        yield folder


@pytest.fixture
def notebook(
    request: Any, here: JupyterHere, path: Proxy, there: Path, tmp_path: Path
) -> Iterator[Notebook]:
    """A notebook's kernel; a parameter says what the remote's `local` is."""
    config = tmp_path / "ssh_config"
    sshd = request.getfixturevalue("sshd")
    sshd.ssh_config(config, "real")
    config.write_text(config.read_text().replace(str(sshd.port), str(path.port)))
    rule = getattr(request, "param", "allow")
    far_python = request.getfixturevalue("far").python
    name = f"files-{rule}"
    spec = here.add_remote(
        name, "real", ssh_config=config, python=str(far_python), cwd=str(there), local=rule
    )
    folder = tmp_path / "notebooks"
    folder.mkdir()
    with started_kernel(spec, cwd=str(folder)) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("1"))
        yield Notebook(talk, folder, there, name)
    path.narrow(0)


@pytest.mark.parametrize("notebook", ["ask"], indirect=True)
def test_a_person_is_asked_once_for_each_way_that_files_go(notebook: Notebook) -> None:
    (notebook.folder / "a b.txt").write_text("hello")
    heard = notebook.run("%remoter put 'a b.txt' in/", answers=["yes"])
    assert error(heard) == ""
    (asked,) = heard["stdin under request 0"]
    assert f"sends a b.txt (1 file, 5 bytes) to {notebook.name}" in asked["content"]["prompt"]
    assert QUESTION in asked["content"]["prompt"]
    assert (notebook.there / "in" / "a b.txt").read_text() == "hello"
    (shown,) = of(heard, "stream")
    assert "1 file, 5 bytes" in shown["text"]
    heard = notebook.run("%remoter get in/*.txt back/", answers=["yes"])
    (asked,) = heard["stdin under request 0"]
    assert f"fetches in/*.txt from {notebook.name} into " in asked["content"]["prompt"]
    assert (notebook.folder / "back" / "a b.txt").read_text() == "hello"
    for code in ("%remoter put 'a b.txt' again/", "%remoter get again/*.txt back/"):
        heard = notebook.run(code)
        assert "stdin under request 0" not in heard
        assert error(heard) == ""
    assert error(notebook.run("%remoter get nothing ./")).startswith(f"{notebook.name}: nothing ")


@pytest.mark.parametrize("notebook", ["ask"], indirect=True)
def test_without_a_yes_nothing_is_done(notebook: Notebook) -> None:
    (notebook.folder / "a").write_text("secret")
    heard = notebook.run("%remoter put a in/", answers=["no"])
    assert "was not allowed" in error(heard)
    heard = notebook.run("%remoter put a in/", allow_stdin=False)
    assert 'local = "allow"' in error(heard)
    assert not list(notebook.there.iterdir())


@pytest.mark.parametrize("notebook", ["never"], indirect=True)
def test_never_means_never(notebook: Notebook) -> None:
    (notebook.folder / "a").write_text("secret")
    for code in ("%remoter put a in/", "%remoter get a ./"):
        assert 'local = "never"' in error(notebook.run(code))
    assert not list(notebook.there.iterdir())


def test_what_is_fetched_stays_below_the_notebook_unless_that_is_allowed(
    notebook: Notebook, tmp_path: Path
) -> None:
    """Also where cells may use this side: the question names the place."""
    (notebook.there / "a").write_text("hello")
    outside = tmp_path / "elsewhere"
    code = f"%remoter get a {outside}/"
    assert "nobody can be asked" in error(notebook.run(code, allow_stdin=False))
    heard = notebook.run(code, answers=["no"])
    assert str(outside) in heard["stdin under request 0"][0]["content"]["prompt"]
    assert "was not allowed" in error(heard)
    assert not outside.exists()
    assert error(notebook.run(code, answers=["yes"])) == ""
    assert (outside / "a").read_text() == "hello"


def test_cells_run_in_their_turn(notebook: Notebook) -> None:
    """The cell above has written the file, and the cell below finds what was put."""
    (notebook.folder / "b").write_text("from here")

    def all_cells(talk: Talk) -> None:
        cells = [
            talk.queue(SLOW_WRITE.format("slow.txt")),
            talk.queue("%remoter get slow.txt ./"),
            talk.queue("%remoter put b b.txt"),
            talk.queue("print(open('b.txt').read())"),
        ]
        talk.done(*cells)

    heard = notebook.talk.case(all_cells)
    assert [error(heard, number) for number in range(4)] == [""] * 4
    assert (notebook.folder / "slow.txt").read_text().split() == list("0123456789")
    assert of(heard, "stream", 3)[0]["text"] == "from here\n"


def test_after_an_error_the_cells_behind_do_not_run(notebook: Notebook) -> None:
    """As with a kernel, whichever side the error is of."""
    (notebook.folder / "a").write_text("a")

    def all_cells(talk: Talk) -> None:  # what fails at once may do so before the next cell comes
        cells = [talk.queue("%remoter put a missing/x"), talk.queue("print('runs')")]
        talk.done(*cells)

    heard = notebook.talk.case(all_cells)
    assert "there is no such folder" in error(heard)
    assert not of(heard, "stream", 1)
    assert heard["shell under request 1"][0]["content"]["status"] == "aborted"

    def others(talk: Talk) -> None:
        cells = [talk.queue("import time; time.sleep(1); 1/0"), talk.queue("%remoter put a x")]
        talk.done(*cells)

    heard = notebook.talk.case(others)
    assert heard["shell under request 1"][0]["content"]["status"] == "aborted"
    assert not (notebook.there / "x").exists()
    assert error(notebook.run("%remoter put a x")) == ""


def test_an_interrupt_stops_it_and_the_next_try_goes_on(notebook: Notebook, path: Proxy) -> None:
    """One display, updated; a part there; and fewer bytes the second time."""
    (notebook.folder / "big").write_bytes(bytes(range(256)) * (LONG // 256))
    size = (notebook.folder / "big").stat().st_size
    path.narrow(NARROW)
    begun = path.bytes_up

    def stopped(talk: Talk) -> None:
        cells = [talk.queue("%remoter put big big.bin"), talk.queue("print('not run')")]
        wait_for(lambda: path.bytes_up - begun > size / 3, what="a third is sent")
        talk.ask("interrupt_request", channel="control")
        talk.done(*cells)

    heard = notebook.talk.case(stopped)
    (failed,) = of(heard, "error")
    assert failed["ename"] == "KeyboardInterrupt"
    assert len(of(heard, "display_data")) == 1
    (display,) = {each["transient"]["display_id"] for each in of(heard, "display_data")}
    updates = of(heard, "update_display_data")
    assert {each["transient"]["display_id"] for each in updates} == {display}
    assert updates[-1]["data"]["text/plain"].endswith(" %, interrupted")
    assert "<progress" in of(heard, "display_data")[0]["data"]["text/html"]
    assert heard["shell under request 1"][0]["content"]["status"] == "aborted"
    wait_for(lambda: [each.name[:5] for each in notebook.there.iterdir()] == [".big."])
    path.narrow(NARROW)
    begun = path.bytes_up
    heard = notebook.run("%remoter put big big.bin")
    assert error(heard) == ""
    assert path.bytes_up - begun < size * 0.75
    assert "100 %" in of(heard, "update_display_data")[-1]["data"]["text/plain"]
    assert of(heard, "stream")[-1]["text"].startswith("1 file, ")
    same = (notebook.there / "big.bin").read_bytes() == (notebook.folder / "big").read_bytes()
    assert same
    assert [each.name for each in notebook.there.iterdir()] == ["big.bin"]


def time_interrupts(
    notebook: Notebook, path: Proxy, verb: str, size: int, times: int
) -> list[float]:
    """Return how many seconds each of some interrupts takes while one file is carried."""
    folder = notebook.folder
    big = (notebook.there if verb == "get" else folder) / "big"
    with big.open("wb") as file:
        for _ in range(size // PIECE):
            file.write(random.randbytes(PIECE))
    begun = path.bytes_up + path.bytes_down
    to = str(folder / "got") if verb == "get" else "big.bin"
    remoter = str(Path(sys.executable).with_name("remoter"))
    words = [remoter, verb, notebook.name, str(big), to]
    took = []
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as sending:
        try:
            for number in range(times):
                wanted = begun + size * (number + 0.5) / (times + 0.5)
                flows = lambda: path.bytes_up + path.bytes_down > wanted  # noqa: B023, E731
                wait_for(flows, seconds=120, what="it flows")
                cell = notebook.talk.queue("print('on', flush=True)\nwhile True: pass")
                notebook.talk.until_line("on")
                asked = time.monotonic()
                notebook.talk.ask("interrupt_request", channel="control")
                notebook.talk.done(cell)
                took.append(time.monotonic() - asked)
            assert sending.poll() is None, "the transfer was over before"
        finally:
            sending.terminate()
    return took


@pytest.mark.timing
@pytest.mark.parametrize("verb", ["put", "get"])
def test_control_stays_fast_while_files_flow(notebook: Notebook, path: Proxy, verb: str) -> None:
    """An interrupt of a cell takes two round trips and half a second at most."""
    path.narrow(100e6)
    (took,) = time_interrupts(notebook, path, verb, 128 * 1024 * 1024, 1)
    assert took < 2 * 0.02 + 0.5


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.parametrize("path", [0.05], indirect=True)
@pytest.mark.parametrize("verb", ["put", "get"])
def test_control_stays_fast_all_through_a_gigabyte(
    notebook: Notebook, path: Proxy, verb: str
) -> None:
    """The same at 50 ms, as fast as the path goes, five times on the way."""
    took = time_interrupts(notebook, path, verb, 1024 * 1024 * 1024, 5)
    print("seconds from interrupt to idle:", *(f"{each:.2f}" for each in took))
    assert max(took) < 2 * 0.05 + 0.5


def test_without_any_remote_it_carries_on_this_machine(
    here: JupyterHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the SSH server of the proxy's own."""
    monkeypatch.setenv("REMOTER_CONFIG", str(tmp_path / "none.toml"))
    key = secrets.token_hex(16).encode()
    file = Path(write_connection_file(str(tmp_path / "kernel.json"), key=key)[0])
    (tmp_path / "a").write_text("hello")
    with a_front(file, "") as front:
        shown = front.run(f"%remoter put {tmp_path}/a {tmp_path}/there/", answers=["yes"])
        assert "1 file, 5 bytes" in shown
        assert (tmp_path / "there/a").read_text() == "hello"
        front.run("%remoter stop")


def test_what_the_login_asks_is_asked_in_the_cell_that_carries(
    here: JupyterHere, ground: LoginGround, there: Path, tmp_path: Path
) -> None:
    """The first cell of all may be one of ours; the next one is not asked again."""
    way = ground.way("code")
    name = configure(here, way, "paramiko", "files")
    remote = find_remote(name)
    assert remote
    write_remote(replace(remote, local="allow"), make_default=False, replace=True)
    (tmp_path / "a").write_text("hello")
    there.chmod(0o777)  # another user comes by this way
    with started_kernel(f"remoter-{name}", cwd=str(tmp_path)) as kernel:
        talk = Talk(kernel.client)
        cell = talk.queue(f"%remoter put a {there}/")
        assert len(answer(talk, way, cell)) == 1
        assert (there / "a").read_text() == "hello"
        talk.run(WHO)
        assert f"ran as {way.user}" in said(talk)
    (there / "a").unlink()
    end_logins(name)
