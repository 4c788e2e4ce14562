"""What ssh_config says for safety counts, whatever carries the login."""

from __future__ import annotations

import base64
import gzip
import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from remoter_kernel.errors import BadConfiguration, HostKeyProblem, LoginRefused, Unreachable
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.login import credentials
from remoter_kernel.local.login import log_in as logins
from remoter_kernel.local.login.credentials import HostCredentials, RemoteCredentials
from remoter_kernel.local.login.destination import Destination
from remoter_kernel.local.login.known_hosts import KnownHosts
from remoter_kernel.local.login.log_in import choose_transport, log_in_to
from remoter_kernel.local.login.login import UnknownHostKey
from remoter_kernel.local.login.paramiko.paramiko_login import log_in_by_paramiko
from remoter_kernel.local.login.prompts import HostKeyDecision
from remoter_kernel.local.login.ssh_config import resolve_destination
from tests import real_parts
from tests.real_sshd import RealSshd, make_key

if TYPE_CHECKING:
    from collections.abc import Iterator

Transport = Literal["auto", "paramiko", "openssh"]
TRANSPORTS: tuple[Transport, ...] = ("paramiko", "openssh")
# A server that offers all that a person may forbid, and tells each method that is tried.
OFFERS_ALL = "PasswordAuthentication yes\nKbdInteractiveAuthentication yes\nLogLevel DEBUG1"
DEBIAN = "SendEnv LANG LC_*\nHashKnownHosts yes\nGSSAPIAuthentication yes"


@pytest.fixture(scope="module", autouse=True)
def parts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Real ends on both sides."""
    tmp_path_factory.getbasetemp()
    real_parts.real_part("sshd")
    real_parts.real_part("ssh")


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the agent of whoever runs this is not shown to anybody."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSshd]:
    """One server for most of these tests."""
    with RealSshd(tmp_path_factory.mktemp("sshd"), extra_config=OFFERS_ALL) as sshd:
        yield sshd


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Where the ssh_config of a test is."""
    return tmp_path / "ssh_config"


class Somebody:
    """Answers always the same, and remembers what was asked."""

    def __init__(self, trust: HostKeyDecision = HostKeyDecision.NO) -> None:
        self.trust = trust
        self.asked: list[Any] = []

    def confirm_host_key(self, *what: Any, **more: Any) -> HostKeyDecision:
        self.asked.append((what, more))
        return self.trust

    def ask(self, host: str, prompts: Any, *more: Any, **yet_more: Any) -> list[str]:
        self.asked.append((host, prompts, more, yet_more))
        return ["not the password"] * len(prompts)


def remote(config: Path, transport: Transport = "auto", host: str = "real") -> Remote:
    return Remote(name="box", host=host, ssh_config=config, transport=transport)


def enter(config: Path, transport: Transport = "auto", who: Any = None, host: str = "real") -> str:
    """Log in and out; return which transport it was, and with which cipher."""
    login = log_in_to(remote(config, transport, host), who)
    login.close()
    return f"{login.transport} {login.cipher}"


def methods_tried(server: RealSshd, since: int) -> list[str]:
    """List the methods that a client has tried since the log was so long."""
    return re.findall(r"userauth-request for user .* method (\S+)", server.log.read_text()[since:])


# ------------------------------------------------------------------ the table


def test_each_word_that_ssh_prints_has_its_place():
    """A word without a place would be passed over in silence."""
    from remoter_kernel.local.login.ssh_keywords import KEYWORDS

    printed = subprocess.run(
        ["ssh", "-G", "-F", "none", "host.invalid"], capture_output=True, text=True, check=True
    )
    assert not {line.split()[0].lower() for line in printed.stdout.splitlines()} - set(KEYWORDS)


def test_each_word_of_the_manual_page_has_its_place():
    """The page knows words that `ssh -G` prints only where they are used."""
    from remoter_kernel.local.login.ssh_keywords import IRRELEVANT, KEYWORDS, SUPPORTED, UNSUPPORTED

    found = shutil.which("man") and subprocess.run(
        ["man", "-w", "ssh_config"], capture_output=True, text=True, check=False
    )
    page = Path(found.stdout.strip()) if found and found.returncode == 0 else Path("/none")
    if not page.is_file():
        real_parts.lack(
            "no manual page ssh_config(5) here", "apt-get install man-db", even_in_ci=True
        )
    raw = page.read_bytes()
    text = (gzip.decompress(raw) if page.suffix == ".gz" else raw).decode()
    words = set(re.findall(r"^\.It Cm (\S+)", text, re.MULTILINE))
    assert len(words) > 80
    assert not {word.lower() for word in words} - set(KEYWORDS)
    assert len(KEYWORDS) == len(SUPPORTED) + len(UNSUPPORTED) + len(IRRELEVANT)  # one place each


def test_a_word_of_a_newer_ssh_is_left_to_that_ssh():
    """Whoever uses a safety option of next year is not logged in without it."""
    from remoter_kernel.local.login.ssh_keywords import login_rules, why_unsupported

    usual = {"port": ["22"], "nextyear": ["no"]}
    assert login_rules({"port": ["23"], "nextyear": ["no"]}, usual).unsupported == ()
    rules = login_rules({"port": ["23"], "nextyear": ["yes"]}, usual)
    assert rules.unsupported == ("nextyear",)
    assert "says nextyear for it" in why_unsupported("nextyear")


@pytest.mark.parametrize(
    ("line", "is_left_to_ssh"),
    [
        (DEBIAN, False),
        ("Compression yes\nServerAliveInterval 30\nForwardAgent yes\nAddKeysToAgent yes", False),
        ("Ciphers aes256-ctr\nHostKeyAlgorithms ssh-ed25519\nRequiredRSASize 2048", False),
        ("StrictHostKeyChecking accept-new\nVerifyHostKeyDNS yes", False),
        ("RevokedHostKeys none\nProxyUseFdpass no\nAddressFamily any", False),
        ("RevokedHostKeys /x", True),
        ("ProxyUseFdpass yes", True),
        ("AddressFamily inet6", True),
        ("BindAddress 127.0.0.1", True),
        ("HostbasedAuthentication yes", True),
        ("KnownHostsCommand /bin/true", True),
        ("PKCS11Provider /x.so", True),
        ("CheckHostIP yes", True),
        ("RekeyLimit 1G 1h", True),
        ("PubkeyAuthentication host-bound", True),
        ("PubkeyAcceptedAlgorithms +ssh-rsa", True),
        ("CertificateFile /x-cert.pub", True),
    ],
)
def test_auto_takes_ssh_for_what_paramiko_cannot_do_and_for_nothing_else(
    config, line, is_left_to_ssh
):
    """A host is guarded by a word of ssh_config that paramiko's side would not heed."""
    config.write_text(line)
    where = resolve_destination("box", config)
    transport, why = choose_transport("auto", logins.transport_facts(where))
    assert transport == ("openssh" if is_left_to_ssh else "paramiko")
    assert (line.split()[0] in why) == is_left_to_ssh


def test_a_jump_host_counts_as_its_host_does(config):
    """The gate is guarded, what is behind it is not."""
    config.write_text("Host gate\n RevokedHostKeys /x\nHost box\n ProxyJump gate\n")
    transport, why = choose_transport(
        "auto", logins.transport_facts(resolve_destination("box", config))
    )
    assert (transport, "RevokedHostKeys for its jump host gate" in why) == ("openssh", True)


# ------------------------------------------------------------------ host keys


def test_a_key_that_is_revoked_by_a_file_is_refused(server, config, tmp_path):
    """Somebody has stolen the host key, and its owner has revoked it by RevokedHostKeys."""
    revoked = tmp_path / "revoked"
    shutil.copy(server.host_key().with_suffix(".pub"), revoked)
    server.ssh_config(config, extra=f"RevokedHostKeys {revoked}")
    with pytest.raises(HostKeyProblem, match=f"is revoked .RevokedHostKeys {revoked}"):
        enter(config)
    with pytest.raises(BadConfiguration, match=r"RevokedHostKeys for .*paramiko cannot heed"):
        enter(config, "paramiko")
    revoked.unlink()
    with pytest.raises(HostKeyProblem, match="cannot say whether"):
        enter(config)


def test_a_host_that_has_none_of_the_algorithms_is_refused(server, config):
    """The host shows a key of a kind that the person has ruled out."""
    server.ssh_config(config, extra="HostKeyAlgorithms rsa-sha2-512")
    with pytest.raises(Unreachable, match="no host key type in common"):
        enter(config)
    with pytest.raises(Unreachable, match="have nothing in common"):
        enter(config, "paramiko")


def test_only_the_algorithms_that_are_named_are_offered(server, config):
    """A person has ruled out what paramiko would take first."""
    server.ssh_config(config, extra="Ciphers aes256-ctr\nKexAlgorithms -*ecdh*,curve*")
    assert enter(config) == "paramiko aes256-ctr"
    config.unlink()
    server.ssh_config(config, extra="Ciphers chacha20-poly1305@openssh.com")
    assert enter(config).startswith("openssh ")
    with pytest.raises(Unreachable, match="says Ciphers for real"):
        enter(config, "paramiko")


def test_a_short_rsa_key_is_refused(config, tmp_path):
    """The host's RSA key, or the person's, is one that can be factored some day."""
    with RealSshd(tmp_path, host_key_kinds=("rsa",)) as one:
        one.ssh_config(config, extra="RequiredRSASize 4096")
        with pytest.raises(HostKeyProblem, match="RSA key of 3072 bits"):
            enter(config, "paramiko")
        assert one.accepted() == 0
    short = make_key(tmp_path / "short", "rsa")
    with RealSshd(tmp_path) as one:
        one.allow(short.with_suffix(".pub").read_text())
        one.client_key = short
        config.unlink()
        one.ssh_config(config, extra="RequiredRSASize 4096")
        with pytest.raises(LoginRefused, match=r"has 3072 bits .see RequiredRSASize"):
            enter(config, "paramiko")
        assert one.accepted() == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_no_host_is_trusted_because_its_address_is_loopback(server, config, transport, tmp_path):
    """Somebody else has taken the forwarded port: NoHostAuthenticationForLocalhost looks away."""
    server.ssh_config(
        config,
        extra="NoHostAuthenticationForLocalhost yes\nVerifyHostKeyDNS yes\n"
        f"StrictHostKeyChecking accept-new\nUserKnownHostsFile {tmp_path}/empty",
    )
    before = server.accepted()
    with pytest.raises(UnknownHostKey, match="not known here"):
        enter(config, transport)
    who = Somebody(HostKeyDecision.NO)
    with pytest.raises(UnknownHostKey, match="not accepted"):
        enter(config, transport, who)
    assert len(who.asked) == 1
    assert server.accepted() == before
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_where_checking_is_strict_nobody_is_asked(server, config, transport, tmp_path):
    """Somebody in a hurry says yes to the key of a stranger: this person may not be asked."""
    server.ssh_config(
        config, extra=f"StrictHostKeyChecking yes\nUserKnownHostsFile {tmp_path}/empty"
    )
    who = Somebody(HostKeyDecision.YES)
    for someone in (who, None):
        with pytest.raises(UnknownHostKey, match=f"StrictHostKeyChecking yes.*{tmp_path}/empty"):
            enter(config, transport, someone)
    assert not who.asked


@pytest.mark.parametrize("file", ["/dev/null", "none"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_advice_to_accept_a_key_says_that_it_would_not_be_kept(server, config, transport, file):
    """Whoever follows advice that cannot help stops reading what is said about host keys."""
    server.ssh_config(config, extra=f"UserKnownHostsFile {file}")
    with pytest.raises(UnknownHostKey, match="keeps no host keys for it"):
        enter(config, transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_accepted_key_is_written_down_under_a_hashed_name(server, config, transport, tmp_path):
    """Whoever reads the file later learns which hosts this person knows."""
    known = tmp_path / "known"
    server.ssh_config(config, extra=f"HashKnownHosts yes\nUserKnownHostsFile {known}")
    assert transport in enter(config, transport, Somebody(HostKeyDecision.YES))
    assert known.read_text().startswith("|1|")
    assert "127.0.0.1" not in known.read_text()
    assert transport in enter(config, transport)  # it is found again


@pytest.mark.parametrize(
    "separator",
    [b"\x0c", b"\x0b", b"\x1c", b"\x1d", b"\x1e", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9"],
)
def test_a_comment_does_not_vouch_for_a_host(server, tmp_path, separator):
    """A line that somebody was given to paste has a key of another host in its comment."""
    key = base64.b64decode(server.host_key_line.split()[2])
    known = tmp_path / "known"
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()[1]
    comment = separator + server.host_key_line.encode()
    known.write_bytes(f"elsewhere ssh-ed25519 {other} hello".encode() + comment + b"\n")
    where = Destination("127.0.0.1", server.port, "ada", known_hosts_files=(known,))
    with pytest.raises(UnknownHostKey):
        KnownHosts(where).check("ssh-ed25519", key, None)
    known.write_bytes(known.read_bytes().replace(separator, b"\r\n"))
    KnownHosts(where).check("ssh-ed25519", key, None)


# ------------------------------------------------------------------ what is tried


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_password_that_is_forbidden_is_never_asked_for(server, config, transport, tmp_path):
    """A host that wants a password is not to be told one, nor is anybody to be asked for it."""
    config.write_text("IdentityFile /none\n")
    server.ssh_config(
        config,
        extra="PasswordAuthentication no\nChallengeResponseAuthentication no\n"
        f"PubkeyAuthentication no\nIdentityFile {tmp_path}/none",
    )
    who, since = Somebody(), len(server.log.read_text())
    with pytest.raises(LoginRefused, match="PasswordAuthentication no"):
        enter(config, transport, who)
    assert not who.asked
    assert set(methods_tried(server, since)) == {"none"}


def test_what_is_forbidden_is_named_beside_what_was_tried(server, config, tmp_path):
    """The key did not do, and the other ways are forbidden."""
    config.write_text(f"Host real\n IdentityFile {make_key(tmp_path / 'other')}\n")
    server.client_key = tmp_path / "none"
    try:
        server.ssh_config(config, extra="PreferredAuthentications publickey")
    finally:
        server.client_key = server.folder / "client_key"
    who = Somebody()
    with pytest.raises(LoginRefused, match=r"did not accept.*PreferredAuthentications publickey"):
        enter(config, "paramiko", who)
    assert not who.asked


@pytest.mark.parametrize(
    ("extra", "methods"),
    [
        ("PreferredAuthentications password", {"password"}),
        ("PubkeyAuthentication no\nPasswordAuthentication no", {"keyboard-interactive"}),
        ("PubkeyAuthentication no\nKbdInteractiveAuthentication no", {"password"}),
    ],
)
def test_no_key_is_shown_where_keys_are_not_wanted(server, config, extra, methods):
    """Six keys would use up the tries of a host, and tell it who else this person is."""
    extra += "\nNumberOfPasswordPrompts 2"
    server.ssh_config(config, extra=extra)
    who, since = Somebody(), len(server.log.read_text())
    with pytest.raises(LoginRefused, match="2 times"):
        enter(config, "paramiko", who)
    tried = methods_tried(server, since)
    assert set(tried) - {"none"} <= methods
    assert tried[0] == "none"


def test_the_order_is_the_persons(server, config):
    """A password first, then the key: which is right."""
    order = "password,publickey"
    server.ssh_config(config, extra=f"PreferredAuthentications {order}\nNumberOfPasswordPrompts 1")
    since = len(server.log.read_text())
    assert "paramiko" in enter(config, "paramiko", Somebody())
    assert methods_tried(server, since) == ["none", "password", "publickey"]
    assert "paramiko" in enter(config, "paramiko")  # with nobody to be asked: the key alone


def test_a_key_may_sign_only_as_is_allowed(server, config):
    """The person has ruled out keys of that kind."""
    server.ssh_config(config, extra="PubkeyAcceptedAlgorithms rsa-sha2-512")
    before = server.accepted()
    with pytest.raises(LoginRefused, match="PubkeyAcceptedAlgorithms leaves it out"):
        enter(config, "paramiko")
    assert server.accepted() == before


# ------------------------------------------------------------------ secrets


class Shelf:
    """A keyring that is a dictionary."""

    secrets: dict[str, str]

    def __init__(self) -> None:
        self.secrets = Shelf.secrets

    def get(self, name: str) -> str:
        return self.secrets.get(name, "")

    def put(self, name: str, secret: str) -> None:
        self.secrets[name] = secret


class Watched(RemoteCredentials):
    """Remembers whose secrets were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def for_host(self, where: str) -> HostCredentials:
        self.names.append(where)
        return super().for_host(where)


def test_two_hosts_of_one_name_behind_two_gates_share_no_secret(server, config, tmp_path):
    """Company B's node1 is sent the password that university A's node1 has taken."""
    (tmp_path / "gate").mkdir()
    names = {}
    with RealSshd(tmp_path / "gate") as gate:
        gate.ssh_config(config, "gate-a")
        server.ssh_config(config, "gate-b")
        server.ssh_config(config, "at-a", extra="ProxyJump gate-a")
        server.ssh_config(config, "at-b", extra="ProxyJump gate-b")
        server.ssh_config(config, "direct")
        for alias in ("at-a", "at-b", "direct"):
            watched = Watched()
            log_in_by_paramiko(resolve_destination(alias, config), credentials=watched).close()
            names[alias] = watched.names[-1]
    plain = f"{server.user}@127.0.0.1:{server.port}"
    assert names["direct"] == plain  # as ever: nothing that was kept is lost
    assert len(set(names.values())) == 3
    assert names["at-a"].startswith(plain)


def test_an_alias_for_the_host_key_and_a_proxy_command_are_part_of_the_name(config):
    """Many hosts are `localhost` behind forwarded ports, or behind a command."""
    from remoter_kernel.local.login.credentials import hops_with_names

    config.write_text(
        "Host a\n HostKeyAlias a\nHost b\n HostKeyAlias b\nHost c\n ProxyCommand nc gate 1\n"
        "Host d\n ProxyCommand nc --password s3cr3t gate 2\nHost *\n HostName node1\n User ada\n"
    )
    names = [
        name for alias in "abcd" for _, name in hops_with_names(resolve_destination(alias, config))
    ]
    assert len(set(names)) == 4
    assert not [name for name in names if "s3cr3t" in name]


def test_what_is_forgotten_is_what_was_kept(config, monkeypatch):
    """A remote is removed, and its password stays behind."""
    config.write_text("Host gate\nHost box\n ProxyJump gate\nHost *\n User ada\n")
    Shelf.secrets = {"password of ada@box:22": "kept by an earlier version"}
    monkeypatch.setattr(credentials, "KeyringStore", Shelf)
    monkeypatch.setattr(logins, "KeyringStore", Shelf)
    memories = RemoteCredentials()
    memories.use_keyring(is_remembered=True)
    for _, name in credentials.hops_with_names(resolve_destination("box", config)):
        memories.for_host(name).store_password("s3cr3t")
    assert len([secret for secret in Shelf.secrets.values() if secret]) == 3
    logins.clear_secrets(remote(config, host="box"))
    assert not [secret for secret in Shelf.secrets.values() if secret]


# ------------------------------------------------------------------ tokens, and no ssh


@pytest.fixture(params=["ssh -G", "paramiko's parser"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to read ssh_config."""
    if request.param != "ssh -G":
        monkeypatch.setattr(shutil, "which", lambda _name, **_options: None)
    return str(request.param)


def test_tokens_stand_for_what_they_stand_for_in_ssh(reader, config):
    """Another key than the person's own would be looked for, and another file of host keys."""
    whole = subprocess.run(
        ["ssh", "-G", "-l", "ada", "-p", "23", "-o", "ControlPath=/%C", "box"],
        capture_output=True,
        text=True,
        check=True,
    )
    (connection,) = re.findall(r"^controlpath /(\w+)$", whole.stdout, re.MULTILINE)
    config.write_text(
        "Host box\n User ada\n Port 23\n HostKeyAlias key-of-%h\n"
        " IdentityFile /i/%i/%k/%C\n UserKnownHostsFile /u/%i/%C\n GlobalKnownHostsFile /g/%i\n"
        " IdentityAgent /a/%i\n"
        "Host by-command\n ProxyCommand go %r %h %p %% ${HOME} %n\n User ada\n"
        "Host behind\n ProxyJump %r@gate-of-%h\n User ada\n"
    )
    found = resolve_destination("box", config)
    number = os.getuid()
    assert found.identity_files == (Path(f"/i/{number}/key-of-%h/{connection}"),)
    assert found.known_hosts_files == (Path(f"/u/{number}/{connection}"), Path("/g/%i"))
    assert found.identity_agent == f"/a/{number}"
    assert found.host_key_alias == "key-of-%h"
    command = resolve_destination("by-command", config).proxy_command
    assert command == "go ada by-command 22 % ${HOME} by-command"
    jump = resolve_destination("behind", config).jumps[0]
    assert (jump.user, jump.host_name) == ("ada", "gate-of-behind")


def test_without_ssh_a_guarded_host_is_not_entered(server, config, monkeypatch):
    """Nobody here can read the list of revoked keys; to go on without it is no answer."""
    server.ssh_config(config, extra="RevokedHostKeys /etc/ssh/revoked")
    monkeypatch.setattr(shutil, "which", lambda _name, **_options: None)
    before = server.accepted()
    with pytest.raises(BadConfiguration, match=r"RevokedHostKeys .*Install an OpenSSH client"):
        enter(config)
    assert server.accepted() == before


def test_without_ssh_what_is_forbidden_is_forbidden_too(server, config, monkeypatch):
    """The words of an older ssh count, too."""
    server.ssh_config(
        config,
        extra="PubkeyAuthentication no\nPasswordAuthentication no\n"
        "ChallengeResponseAuthentication no",
    )
    monkeypatch.setattr(shutil, "which", lambda _name, **_options: None)
    who = Somebody()
    with pytest.raises(LoginRefused, match="KbdInteractiveAuthentication no"):
        enter(config, "auto", who)
    assert not who.asked


def test_without_ssh_it_is_said_what_was_not_read(config, monkeypatch):
    """The host's own words are in a file that only ssh would have found."""
    config.write_text("Include more\nHost box\n HostName box.invalid\n User ada\n")
    monkeypatch.setattr(shutil, "which", lambda _name, **_options: None)
    with pytest.raises(Unreachable, match="Include, which only an OpenSSH client"):
        enter(config, host="box")
    config.write_text("Match tagged x\n User ada\n")
    with pytest.raises(BadConfiguration, match="each kind of Match"):
        resolve_destination("box", config)
    config.write_text("CanonicalizeHostname yes\n")
    with pytest.raises(BadConfiguration, match="CanonicalizeHostname"):
        resolve_destination("box", config)


def test_a_user_id_without_a_name_can_log_in_as_somebody(server, config, monkeypatch):
    """In many containers the number of whoever runs this has no entry in the user database."""
    server.ssh_config(config, extra="HostKeyAlias real")
    server.known_hosts.write_text("real " + server.host_key_line.partition(" ")[2] + "\n")

    def nobody(number: int) -> Any:
        raise KeyError(number)

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    try:
        assert enter(config).startswith("paramiko ")
    finally:
        server.known_hosts.write_text(server.host_key_line + "\n")
    assert resolve_destination("eve@box", config).user == "eve"
    with pytest.raises(BadConfiguration, match=r"number \d+.*user@host"):
        resolve_destination("box", config)
