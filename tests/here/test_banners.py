"""What a server says before it lets anybody in reaches the person, who may have to act on it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from remoter_kernel.errors import Unreachable
from remoter_kernel.local.login import banner
from remoter_kernel.local.login.openssh import openssh_login
from remoter_kernel.local.login.openssh.openssh_login import log_in_by_openssh
from remoter_kernel.local.login.paramiko import authenticator
from remoter_kernel.local.login.paramiko.paramiko_login import log_in_by_paramiko
from remoter_kernel.local.login.ssh_config import resolve_destination
from tests import real_parts
from tests.waiting_host import WaitingHost

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from remoter_kernel.local.login.prompts import HostKeyDecision, Prompt
    from remoter_kernel.local.login.ssh_login import SSHLogin

ADDRESS = "https://login.example.org/a/4711"
CHECK = f"# One more check is needed.\n# Please visit: {ADDRESS}\n"
RULES = "Unauthorised use is forbidden.\n"


@pytest.fixture(params=["paramiko", "openssh"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in; of a host that falls silent one knows soon."""
    if request.param == "openssh":
        real_parts.real_part("ssh")
    for module in (authenticator, openssh_login):
        monkeypatch.setattr(module, "AUTH_RESULT_WITHIN", 1.0)
    monkeypatch.setattr(banner, "SHOWN_AFTER", 0.2)
    for user in (authenticator, openssh_login):
        monkeypatch.setattr(user, "SHOWN_AFTER", 0.2)
    return str(request.param)


def enter(transport: str, host: WaitingHost, person: Reader | None) -> SSHLogin:
    where = resolve_destination("waits", host.ssh_config())
    by = log_in_by_paramiko if transport == "paramiko" else log_in_by_openssh
    return by(where, prompter=person)


class Reader:
    """Somebody who does what is said at an address, and answers nothing."""

    def __init__(self, host: WaitingHost) -> None:
        self.host = host
        self.shown: list[str] = []

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> HostKeyDecision:
        raise AssertionError

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        assert (host, list(prompts)) == ("", [])
        assert self.host.was_asked.is_set()
        self.shown.append(instruction)
        self.host.lets_in.set()
        return []


def test_an_address_is_shown_while_the_server_waits(transport: str, tmp_path: Path) -> None:
    with WaitingHost(tmp_path, CHECK) as host:
        person = Reader(host)
        with closing(enter(transport, host, person)) as login:
            assert login.is_alive
    (shown,) = person.shown
    mark = f"[waits (127.0.0.1:{host.port}) says] "
    assert all(line.startswith(mark) for line in shown.split("\n")), shown
    assert f"{mark}# Please visit: {ADDRESS}" in shown


def test_a_server_that_goes_on_at_once_shows_nothing(transport: str, tmp_path: Path) -> None:
    with WaitingHost(tmp_path, CHECK) as host:
        host.lets_in.set()
        person = Reader(host)
        enter(transport, host, person).close()
    assert person.shown == []


@pytest.mark.parametrize("said", [CHECK, RULES])
def test_where_nobody_can_be_shown_it_the_reason_has_it(
    transport: str, said: str, tmp_path: Path
) -> None:
    with WaitingHost(tmp_path, said) as host, pytest.raises(Unreachable) as caught:
        enter(transport, host, None)
    words = said.splitlines()[-1]
    assert f'{words}"' in caught.value.what
    assert caught.value.worth_retrying


def test_the_reason_of_a_server_that_hangs_up_is_told(transport: str, tmp_path: Path) -> None:
    gone = "This machine is down until Monday."
    with (
        WaitingHost(tmp_path, f"{RULES}{gone}\n", hangs_up=True) as host,
        pytest.raises(Unreachable, match="ended the connection") as caught,
    ):
        enter(transport, host, None)
    assert gone in caught.value.what
