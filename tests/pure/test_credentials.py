"""What was typed is used once, and once after each cut; what was wrong is forgotten."""

from __future__ import annotations

from remoter_kernel.local.login.credentials import HostCredentials, RemoteCredentials


def test_a_password_is_used_once_and_once_after_each_cut():
    memory = HostCredentials()
    assert memory.take_password() == ""
    memory.store_password("right")
    assert memory.take_password() == ""  # the login that it is from has not been cut
    for _ in range(2):
        memory.allow_reuse()
        assert [memory.take_password() for _ in range(2)] == ["right", ""]


def test_a_wrong_password_is_forgotten():
    memory = HostCredentials()
    memory.store_password("old")
    memory.allow_reuse()
    assert memory.take_password() == "old"
    memory.store_password("")
    memory.allow_reuse()
    assert memory.take_password() == ""


def test_each_host_on_the_way_has_secrets_of_its_own():
    memories = RemoteCredentials()
    memories.for_host("ann@gate:22").store_password("of the gate")
    memories.for_host("ann@far:22").store_password("of the host")
    memories.allow_reuse()
    assert memories.for_host("ann@far:22").take_password() == "of the host"
    assert memories.for_host("ann@gate:22").take_password() == "of the gate"


def test_a_safe_is_asked_once_too():
    safe = Shelf({"password of ann@far:22": "kept"})
    memory = HostCredentials("ann@far:22", safe)
    assert [memory.take_password() for _ in range(2)] == ["kept", ""]
    memory.store_password("")
    assert safe.secrets == {}


def test_no_secret_is_in_what_is_shown():
    memory = HostCredentials("ann@far:22")
    memory.store_password("right")
    memory.store_passphrase("id_rsa", "right")
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
