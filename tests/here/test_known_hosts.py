"""A host key is trusted because a line says so, and for no other reason."""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from remoter_kernel.errors import HostKeyProblem
from remoter_kernel.local.login.destination import Destination
from remoter_kernel.local.login.known_hosts import KnownHosts, append_known_host, fingerprint
from remoter_kernel.local.login.login import UnknownHostKey
from remoter_kernel.local.login.prompts import HostKeyDecision, NotAnswered, Prompt
from tests.real_sshd import make_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def key(number: int, kind: str = "ssh-ed25519") -> bytes:
    """Make up a public key: its kind, and a number for its content."""
    name = kind.encode()
    return len(name).to_bytes(4, "big") + name + number.to_bytes(32, "big")


def line(names: str, blob: bytes, kind: str = "ssh-ed25519", marker: str = "") -> str:
    """Write a known_hosts line."""
    return f"{marker} {names} {kind} {base64.b64encode(blob).decode()} a comment\n".lstrip()


def hashed(name: str) -> str:
    """Write a name as HashKnownHosts does."""
    salt = b"a salt of 20 bytes.."
    digest = hmac.digest(salt, name.encode(), "sha1")
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


class Answers:
    """Somebody who answers always the same, and remembers what was asked."""

    def __init__(self, said: HostKeyDecision) -> None:
        self.said = said
        self.asked: list[tuple[str, str, str]] = []

    def confirm_host_key(self, host: str, kind: str, fingerprint: str) -> HostKeyDecision:
        self.asked.append((host, kind, fingerprint))
        return self.said

    def ask(self, host: str, prompts: Sequence[Prompt], instruction: str = "") -> list[str]:
        raise NotAnswered(host)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "known_hosts"


def check(file: Path, text: str, blob: bytes, *, port: int = 22, alias: str = "", who=None) -> None:
    """Check a key of box.example.org against a file with this text."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    destination = Destination(
        "Box.example.org", port, "ada", known_hosts_files=(file,), host_key_alias=alias
    )
    KnownHosts(destination).check("ssh-ed25519", blob, who)


@pytest.mark.parametrize(
    "names",
    [
        "box.example.org",
        "other,box.example.org,10.0.0.1",
        "*.example.org",
        "b?x.example.org",
        "BOX.example.org",
        hashed("box.example.org"),
    ],
)
def test_a_known_key_is_trusted(file, names):
    check(file, line(names, key(1)), key(1))


@pytest.mark.parametrize(
    "names",
    [
        "example.org",
        "*.example.org,!box.example.org",
        "[box.example.org]:2222",
        "bo[x].example.org",
        hashed("other"),
        "|1|garbage",
        "|1|AA==|AA==|AA==",
        "# box.example.org",
    ],
)
def test_a_line_about_another_host_says_nothing(file, names):
    with pytest.raises(UnknownHostKey):
        check(file, line(names, key(1)), key(1))


def test_a_port_belongs_to_the_name(file):
    check(file, line("[box.example.org]:2222", key(1)), key(1), port=2222)
    check(file, line(hashed("[box.example.org]:2222"), key(1)), key(1), port=2222)


def test_a_key_known_without_the_port_will_do_if_it_matches(file):
    check(file, line("box.example.org", key(1)), key(1), port=2222)
    with pytest.raises(UnknownHostKey):  # unknown, not changed: another server of that machine
        check(file, line("box.example.org", key(1)), key(2), port=2222)


def test_an_alias_replaces_name_and_port(file):
    check(file, line("the-box", key(1)), key(1), port=2222, alias="the-box")
    with pytest.raises(UnknownHostKey):
        check(file, line("box.example.org", key(1)), key(1), alias="the-box")


@pytest.mark.parametrize(
    "bad",
    [
        "garbage\n",
        "box.example.org ssh-ed25519 !!!notbase64\n",
        "box.example.org ssh-ed25519\n",
        "box.example.org ssh-rsa " + base64.b64encode(key(9)).decode() + "\n",
        "@cert-authority * ssh-ed25519 " + base64.b64encode(key(9)).decode() + "\n",
        "@revoked * ssh-ed25519 " + base64.b64encode(key(9)).decode() + "\n",
        "@what * ssh-ed25519 " + base64.b64encode(key(9)).decode() + "\n",
        "\udcff\udcfe\n".encode("utf-8", "surrogateescape").decode("latin-1"),
        "\n\n# comment\n",
    ],
)
def test_a_line_that_cannot_be_used_spoils_no_other(file, bad):
    check(file, bad + line("box.example.org", key(1)), key(1))


def test_a_missing_or_unreadable_file_says_nothing(tmp_path):
    destination = Destination("box", 22, "ada", known_hosts_files=(tmp_path / "none", tmp_path))
    with pytest.raises(UnknownHostKey):
        KnownHosts(destination).check("ssh-ed25519", key(1), None)


def test_a_revoked_key_is_refused_even_where_it_is_known(file):
    answers = Answers(HostKeyDecision.YES)
    text = line("box.example.org", key(1)) + line("*", key(1), marker="@revoked")
    with pytest.raises(HostKeyProblem, match=r"revoked.*line 2"):
        check(file, text, key(1), who=answers)
    assert not answers.asked


def test_a_changed_key_is_refused_and_never_asked_about(file):
    answers = Answers(HostKeyDecision.YES)
    text = "# first\n" + line("box.example.org", key(1))
    with pytest.raises(HostKeyProblem, match="has changed") as caught:
        check(file, text, key(2), who=answers)
    said = str(caught.value)
    assert not answers.asked
    assert f"{file}, line 2" in said
    assert fingerprint(key(1)) in said
    assert fingerprint(key(2)) in said
    assert not caught.value.worth_retrying
    assert file.read_text() == text


def test_a_host_known_by_another_kind_of_key_counts_as_changed(file):
    with pytest.raises(HostKeyProblem, match="has changed"):
        check(file, line("box.example.org", key(1, "ssh-rsa"), "ssh-rsa"), key(1))


def test_the_known_kinds_are_those_of_this_host(file):
    file.parent.mkdir()
    file.write_text(
        line("box", key(1, "ssh-rsa"), "ssh-rsa")
        + line("other", key(2))
        + line("box", key(3), marker="@revoked")
    )
    destination = Destination("box", 22, "ada", known_hosts_files=(file,))
    assert KnownHosts(destination).known_kinds == ("ssh-rsa",)


def test_without_a_person_an_unknown_key_says_what_to_run(file):
    with pytest.raises(UnknownHostKey) as caught:
        check(file, "", key(1))
    caught.value.at("gpu-box")
    assert fingerprint(key(1)) in str(caught.value)
    assert "remoter check gpu-box" in str(caught.value)


def test_an_accepted_key_is_written_down_and_not_asked_about_again(file):
    answers = Answers(HostKeyDecision.YES)
    destination = Destination("box", 2222, "ada", known_hosts_files=(file, file.with_name("2")))
    KnownHosts(destination).check("ssh-ed25519", key(1), answers)
    assert answers.asked == [("box:2222", "ssh-ed25519", fingerprint(key(1)))]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    KnownHosts(destination).check("ssh-ed25519", key(1), None)
    assert file.read_text().startswith("[box]:2222 ssh-ed25519 ")


def test_a_refused_key_is_not_written_down(file):
    with pytest.raises(UnknownHostKey, match="not accepted"):
        check(file, "", key(1), who=Answers(HostKeyDecision.NO))
    assert file.read_text() == ""


def test_a_new_line_never_joins_an_unfinished_one(file):
    file.parent.mkdir()
    file.write_text("unfinished")
    append_known_host(file, "box x y")
    assert file.read_text() == "unfinished\nbox x y\n"


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "in-the-way").touch()
    destination = Destination(
        "box", 22, "ada", known_hosts_files=(tmp_path / "in-the-way" / "known_hosts",)
    )
    with pytest.raises(HostKeyProblem, match="cannot be written"):
        KnownHosts(destination).check("ssh-ed25519", key(1), Answers(HostKeyDecision.YES))


def test_fingerprints_are_those_of_ssh_keygen(tmp_path):
    if not shutil.which("ssh-keygen"):
        pytest.skip("no ssh-keygen here")
    public = make_key(tmp_path / "key").with_suffix(".pub")
    blob = base64.b64decode(public.read_text().split()[1])
    said = subprocess.run(["ssh-keygen", "-lf", public], capture_output=True, text=True, check=True)
    assert fingerprint(blob) == said.stdout.split()[1]
    assert hashlib.sha256(blob).digest() == base64.b64decode(fingerprint(blob)[7:] + "=")


def test_a_key_that_is_accepted_once_is_not_remembered(file):
    check(file, "", key(1), who=Answers(HostKeyDecision.ONCE))
    assert file.read_text() == ""
