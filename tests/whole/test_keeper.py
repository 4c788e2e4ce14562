"""One login for many kernels: who shares it, who survives whom, and when it ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from remoter_kernel.errors import RemoterError, Unreachable
from remoter_kernel.local import private_sockets
from remoter_kernel.local.config.remotes import find_remote
from remoter_kernel.local.login.keeper import endpoint
from remoter_kernel.local.login.keeper.endpoint import receive_message, send_message
from remoter_kernel.local.login.keeper.keeper_login import KeeperLogin, log_in_by_keeper
from remoter_kernel.local.login.keeper.keeper_server import KeeperServer
from remoter_kernel.local.login.prompts import HostKeyDecision, NotAnswered
from tests.real_jupyter import StartedKernel, started_kernel, wait_for
from tests.real_sshd import RealSshd, make_key
from tests.whole.talk import Talk
from tests.whole.test_life import value

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.login.prompts import Prompt
    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

NAME = "kept"


@pytest.fixture
def spec(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[str]:
    """A remote of which nobody keeps a login before the test, or after it."""
    yield here.add_remote(NAME, login_lifetime=600.0, **python_remote)
    endpoint.end_logins(NAME)


@pytest.fixture
def remote(spec: str) -> Remote:
    """The same, without Jupyter."""
    del spec
    found = find_remote(NAME)
    assert found
    return found


@contextlib.contextmanager
def login(remote: Remote, **options: Any) -> Iterator[KeeperLogin]:
    """Use the keeper's login, and give it back."""
    with contextlib.closing(log_in_by_keeper(remote, **options)) as kept:
        yield kept


def accepted(sshd: RealSshd) -> int:
    """Count the logins that the server has let in so far."""
    return sshd.log.read_text().count("Accepted publickey")


def keeper(remote: Remote) -> psutil.Process:
    """Find the process that keeps a remote's login."""
    del remote
    return psutil.Process(json.loads(endpoint.endpoint_file().read_text())["pid"])


def is_gone(process: psutil.Process) -> bool:
    """Has a process ended?"""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def test_three_kernels_and_their_restarts_need_one_login(spec: str, sshd: RealSshd) -> None:
    before = accepted(sshd)
    with contextlib.ExitStack() as stack:
        kernels: list[StartedKernel] = [stack.enter_context(started_kernel(spec)) for _ in range(3)]
        pids = {value(Talk(kernel.client), "import os; os.getpid()") for kernel in kernels}
        assert len(pids) == 3
        for kernel in kernels:
            kernel.manager.restart_kernel()
            kernel.client.wait_for_ready(timeout=60)
            assert value(Talk(kernel.client), "1 + 1") == "2"
    assert accepted(sshd) == before + 1


def test_a_login_that_dies_is_renewed_once_for_all(spec: str, sshd: RealSshd) -> None:
    with contextlib.ExitStack() as stack:
        talks = [Talk(stack.enter_context(started_kernel(spec)).client) for _ in range(3)]
        for talk in talks:
            talk.case(lambda talk: talk.run("kept = 1"))
        before = accepted(sshd)
        sshd.cut_all()
        assert [value(talk, "kept") for talk in talks] == ["1"] * 3
        assert accepted(sshd) == before + 1


def test_a_keeper_that_is_killed_is_replaced(spec: str, remote: Remote) -> None:
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("kept = 1"))
        first = keeper(remote)
        first.kill()
        assert value(talk, "kept") == "1"
        assert keeper(remote).pid != first.pid


@pytest.mark.slow
def test_a_running_cell_comes_back_though_keepers_ended_before_anybody_reached_them(
    spec: str, remote: Remote
) -> None:
    """As on a machine that is too busy, for longer than a keeper is waited for."""
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("import time, os"))
        name = kernel.client.execute("time.sleep(15); print('the end')")
        lock = os.open(endpoint.endpoint_file().with_suffix(".lock"), os.O_RDWR)
        try:
            killed = keeper(remote)
            taking = threading.Thread(target=fcntl.flock, args=(lock, fcntl.LOCK_EX))
            taking.start()  # it waits for the keeper's end; each later one finds the lock taken
            killed.kill()
            taking.join()
            until = time.monotonic() + endpoint.STARTS_WITHIN + 2
            wait_for(lambda: time.monotonic() > until, what="it has been tried in vain", seconds=60)
        finally:
            os.close(lock)
        reply = kernel.client.get_shell_msg(timeout=60)
        assert reply["parent_header"]["msg_id"] == name
        assert reply["content"]["status"] == "ok"
        said = ""
        while "the end" not in said:
            message = kernel.client.get_iopub_msg(timeout=60)
            said += message["content"].get("text", "")
        assert "[remoter]" not in said


def test_who_kills_a_fronts_whole_tree_kills_no_login(
    spec: str, sshd: RealSshd, here: JupyterHere
) -> None:
    """As VS Code does at each restart."""
    before = accepted(sshd)
    for _ in range(2):
        with started_kernel(spec) as kernel:
            assert value(Talk(kernel.client), "1 + 1") == "2"
            front = psutil.Process(kernel.pid)
            tree = [front, *front.children(recursive=True)]
            for process in tree:
                process.kill()
    ran = here.remoter("stop", "--all", NAME)
    assert ran.returncode == 0, ran.stderr
    assert accepted(sshd) == before + 1


def test_a_login_ends_some_time_after_its_last_user(
    here: JupyterHere, python_remote: dict[str, Any]
) -> None:
    here.add_remote(NAME, login_lifetime=0.5, **python_remote)
    remote = find_remote(NAME)
    assert remote
    with login(remote), login(remote) as second:
        kept = keeper(remote)
        assert not second.is_new
    wait_for(lambda: is_gone(kept), what="the keeper's end")
    assert not endpoint.endpoint_file().exists()


def test_many_come_at_once_and_start_one_keeper(remote: Remote, sshd: RealSshd) -> None:
    before = accepted(sshd)
    users: set[str] = set()

    def come() -> None:
        with login(remote) as mine:
            users.add(mine.run("whoami").stdout.decode())

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(users), accepted(sshd)) == (1, before + 1)


@pytest.mark.parametrize("transport", ["paramiko", "openssh"])
def test_many_use_one_login_with_room_for_few(
    here: JupyterHere, far: FarSide, tmp_path: Path, transport: str
) -> None:
    """A dozen notebooks that are opened together; sshd has room for ten, this one for one."""
    with RealSshd(tmp_path, user=far.user, extra_config="MaxSessions 1") as narrow:
        config = narrow.ssh_config(tmp_path / "ssh_config", "narrow")
        here.add_remote(NAME, "narrow", ssh_config=config, transport=transport)
        remote = find_remote(NAME)
        assert remote

        def come(_number: int) -> bytes:
            with login(remote) as mine:
                return mine.run("sleep 0.3; id -un").stdout

        with ThreadPoolExecutor(4) as pool:
            said = list(pool.map(come, range(4)))
        endpoint.end_logins(NAME)
        assert said == [f"{far.user}\n".encode()] * 4


def test_a_wait_is_called_off(remote: Remote) -> None:
    with login(remote) as mine:
        threading.Timer(0.3, mine.abort).start()
        with pytest.raises(Unreachable):
            mine.run("sleep 5")


def test_errors_arrive_as_what_they_are(remote: Remote, sshd: RealSshd) -> None:
    with login(remote):
        pass
    endpoint.end_logins(NAME)
    sshd.stop_listening()
    try:
        with pytest.raises(Unreachable, match="refuses connections"), login(remote):
            pass
    finally:
        sshd.start()


def test_what_was_left_of_a_broken_upload_is_sent_anew(remote: Remote, here: JupyterHere) -> None:
    with login(remote) as mine:
        assert here.remoter("run", NAME, "-c", "1").returncode == 0
        mine.run("cd ~/.local/share/remoter-kernel/programs; truncate -s 100 */*.pyz")
        ran = here.remoter("run", NAME, "-c", "print('fine')")
        assert (ran.returncode, ran.stdout) == (0, "fine\n"), ran.stderr


def test_who_comes_while_a_keeper_ends_finds_another(
    here: JupyterHere, python_remote: dict[str, Any]
) -> None:
    """With no lifetime at all it ends at each visit's end; nobody sees that, nothing is left."""
    here.add_remote(NAME, login_lifetime=0.0, **python_remote)
    remote = find_remote(NAME)
    assert remote
    said: list[bytes] = []

    def come_often() -> None:
        for _ in range(6):
            with login(remote) as mine:
                said.append(mine.run("echo in").stdout)

    threads = [threading.Thread(target=come_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [b"in\n"] * 18
    wait_for(lambda: not endpoint.endpoint_file().exists(), what="nothing of it left")


class Asked:
    """Somebody who is asked, and answers when the test says so."""

    def __init__(self, *answers: str) -> None:
        self.was_asked, self.may_answer = threading.Event(), threading.Event()
        self._answers = list(answers)

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> HostKeyDecision:
        raise AssertionError

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        self.was_asked.set()
        assert self.may_answer.wait(60)
        if not self._answers:
            raise NotAnswered("it was declined.")
        return self._answers


@pytest.fixture
def asking(
    here: JupyterHere, far: FarSide, tmp_path: Path
) -> Iterator[tuple[Remote, RealSshd, str]]:
    """A remote that asks for a key's passphrase, for as long as its server waits for that."""
    phrase = secrets.token_hex(8)
    key = make_key(tmp_path / "locked", passphrase=phrase)
    with RealSshd(tmp_path, user=far.user, extra_config="LoginGraceTime 3") as server:
        server.allow(key.with_name("locked.pub").read_text())
        config = tmp_path / "ssh_config"
        config.write_text(f"Host asking\n    IdentityFile {key}\n")
        server.ssh_config(config, "asking")
        text = config.read_text().replace(f"    IdentityFile {server.client_key}\n", "")
        config.write_text(text)
        here.add_remote(NAME, "asking", ssh_config=config, transport="paramiko")
        remote = find_remote(NAME)
        assert remote
        yield remote, server, phrase
        endpoint.end_logins(NAME)


def in_thread(remote: Remote, questions: Asked) -> tuple[threading.Thread, list[object]]:
    """Log in elsewhere; gives the thread, and what will have come of it."""
    outcome: list[object] = []

    def come() -> None:
        try:
            with login(remote, prompter=questions) as mine:
                outcome.append(mine.run("echo in").stdout)
        except RemoterError as error:
            outcome.append(error)

    thread = threading.Thread(target=come)
    thread.start()
    return thread, outcome


def test_a_question_that_nobody_answers_holds_up_nobody(
    asking: tuple[Remote, RealSshd, str],
) -> None:
    """Whoever comes next is asked instead, at once; both go in by the same login."""
    remote, server, phrase = asking
    absent, present = Asked(phrase), Asked(phrase)
    before = server.log.read_text().count("Connection from")
    first, told_first = in_thread(remote, absent)
    assert absent.was_asked.wait(10)
    present.may_answer.set()
    second, told_second = in_thread(remote, present)
    second.join(20)
    first.join(20)
    assert told_first == told_second == [b"in\n"]
    assert server.log.read_text().count("Connection from") == before + 1
    absent.may_answer.set()  # far too late: nobody hears it


def test_when_the_server_hangs_up_nobody_waits_for_an_answer(
    asking: tuple[Remote, RealSshd, str],
) -> None:
    """The reason comes at once, and not with the answer; the next one is asked anew."""
    remote, _, phrase = asking
    absent, present = Asked(phrase), Asked(phrase)
    first, told_first = in_thread(remote, absent)
    first.join(20)
    assert isinstance(told_first[0], Unreachable)
    assert "ended the connection" in str(told_first[0])
    present.may_answer.set()
    second, told_second = in_thread(remote, present)
    second.join(20)
    assert told_second == [b"in\n"]
    absent.may_answer.set()


def test_nobody_logs_in_for_who_is_gone(asking: tuple[Remote, RealSshd, str]) -> None:
    """One who has left is not dialled for, and the question goes back to the other one."""
    remote, server, _ = asking
    asked = Asked()
    first, told_first = in_thread(remote, asked)
    assert asked.was_asked.wait(10)
    before = server.log.read_text().count("Connection from")
    waiting, absent = KeeperLogin(remote), Asked()
    second = threading.Thread(target=begin, args=(waiting, absent))
    second.start()
    assert absent.was_asked.wait(10)
    waiting.abort()
    second.join(10)
    waiting.close()
    asked.may_answer.set()
    absent.may_answer.set()
    first.join(10)
    assert isinstance(told_first[0], NotAnswered)
    kept = keeper(remote)
    wait_for(lambda: is_gone(kept), what="the keeper's end")  # nobody was let in: at once
    assert server.log.read_text().count("Connection from") == before


def begin(login: KeeperLogin, questions: Asked) -> None:
    """Have a login made that is called off."""
    with pytest.raises(Unreachable):
        login.start(questions, lambda _step: None, in_doubt=False, is_stale=False)


def test_tunnels_end_with_their_visitor(remote: Remote, sshd: RealSshd) -> None:
    """The login goes on for the others."""
    with login(remote) as another:
        with login(remote) as mine:
            address = mine.open_tunnel("127.0.0.1", sshd.port).address
            through = private_sockets.connect_to_listener(address, 10)
            through.settimeout(10)
            assert through.recv(4) == b"SSH-"
        with through, contextlib.suppress(ConnectionError):
            while through.recv(4096):
                pass
        assert another.run("echo still here").stdout == b"still here\n"


def test_who_comes_too_late_hears_nothing_but_the_end() -> None:
    """It can find another keeper only when this one has left its place."""
    server = KeeperServer()
    server.end()
    here, there = Pipe()
    with here:
        send_message(here, {"do": "end"})
        server.serve_client(there)
        assert not here.poll()
        server.close()
        with pytest.raises((EOFError, ConnectionError)):
            receive_message(here)


def test_a_keeper_takes_away_only_what_is_its_own(tmp_path: Path) -> None:
    place = tmp_path / "keeper.json"
    for text in ("of another", "its own"):
        place.write_text(text)
        place.with_suffix(".log").touch()
        endpoint.remove_endpoint_file(place, "its own")
        left = {file.suffix for file in tmp_path.iterdir()} - {".lock"}
        assert left == ({".json", ".log"} if text == "of another" else set())


def test_a_login_that_died_unnoticed_is_made_anew_for_the_next_thing(
    remote: Remote, sshd: RealSshd
) -> None:
    with login(remote) as mine:
        for _ in range(2):
            sshd.cut_all()
            wait_for(lambda: is_heard(mine), what="a login that works")


def is_heard(login: KeeperLogin) -> bool:
    """Does a command get through? One that was under way at the end does not."""
    with contextlib.suppress(Unreachable):
        return login.run("echo still here").stdout == b"still here\n"
    return False
