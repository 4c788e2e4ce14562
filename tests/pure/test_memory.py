"""What was typed is used once, and once after each cut; what was wrong is forgotten."""

from __future__ import annotations

from remoter_kernel.front.ssh.credentials import HostCredentials, RemoteCredentials


def test_a_password_is_used_once_and_once_after_each_cut():
    memory = HostCredentials()
    assert memory.take_password() == ""
    memory.keep_password("right")
    assert memory.take_password() == ""  # the login that it is from has not been cut
    for _ in range(2):
        memory.refresh()
        assert [memory.take_password() for _ in range(2)] == ["right", ""]


def test_a_wrong_password_is_forgotten():
    memory = HostCredentials()
    memory.keep_password("old")
    memory.refresh()
    assert memory.take_password() == "old"
    memory.keep_password("")
    memory.refresh()
    assert memory.take_password() == ""


def test_each_host_on_the_way_has_secrets_of_its_own():
    memories = RemoteCredentials()
    memories.of("ann@gate:22").keep_password("of the gate")
    memories.of("ann@far:22").keep_password("of the host")
    memories.refresh()
    assert memories.of("ann@far:22").take_password() == "of the host"
    assert memories.of("ann@gate:22").take_password() == "of the gate"


def test_a_safe_is_asked_once_too():
    safe = Shelf({"password of ann@far:22": "kept"})
    memory = HostCredentials("ann@far:22", safe)
    assert [memory.take_password() for _ in range(2)] == ["kept", ""]
    memory.keep_password("")
    assert safe.secrets == {}


def test_no_secret_is_in_what_is_shown():
    memory = HostCredentials("ann@far:22")
    memory.keep_password("right")
    memory.keep_passphrase("id_rsa", "right")
    assert "right" not in repr(memory)


class Shelf:
    """A safe that is a dictionary."""

    def __init__(self, secrets: dict[str, str]) -> None:
        self.secrets = secrets

    def get(self, name: str) -> str:
        return self.secrets.get(name, "")

    def put(self, name: str, secret: str) -> None:
        if secret:
            self.secrets[name] = secret
        else:
            self.secrets.pop(name, None)
