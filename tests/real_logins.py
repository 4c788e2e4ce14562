"""The ways in that real hosts have: what each asks for, by which path, and the right answers.

Nine kinds of login times five paths; each way gets an sshd of its own when it is first wanted,
and an alias in one ssh_config. Users, servers, agents and networks end with the ground.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.at_terminal import Question
from tests.real_accounts import CODE, PASSWORD, account, remove_left_accounts
from tests.real_jupyter import MARK, THIS_RUN, wait_for
from tests.real_networks import Networks, remove_networks
from tests.real_parts import real_part
from tests.real_sshd import ENDS_WITH_US, Place, RealSshd, make_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real_users import FarSide

NEEDS = ("sshd", "ssh", "root", "ip", "setpriv", "pam_oath", "network namespaces")
# As OpenSSH asks, and as the program does: "[HOST] " stands before what goes to a host, and other
# words before what stays here; no error looks so.
PASSPHRASES = r"(?:remoter, on this machine: |Enter )[^\n]*(?i:passphrase)"
PASSWORDS = r"(?:\[[^\]\n]+\] [^\n]*|'s |\) )(?i:password)"
CODES = "OATH"
MOST_TRIES = 10  # more than any client or server lets one have
BY_KEYS = "AuthenticationMethods publickey"
BY_PAM = "UsePAM yes\nKbdInteractiveAuthentication yes\nAuthenticationMethods"
FORBIDS = "AllowTcpForwarding no\nDisableForwarding yes"


@dataclass(frozen=True)
class Kind:
    """How one kind of login is let in: by which server, with which client, by which answers."""

    server: str
    """Lines of sshd_config."""
    client: str
    """Lines of ssh_config."""
    wrong_client: str
    """The same for somebody who is not to be let in."""
    user: str
    program: str = "sshd"
    public_keys: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """An alias, and all that is needed to go in by it."""

    alias: str
    config: Path
    user: str
    python: str
    """A Python there that has ipykernel."""
    questions: tuple[Question, ...]
    environment: dict[str, str]
    sshd: RealSshd

    @property
    def wrong(self) -> Way:
        """The same way for somebody without the key, or with wrong answers to all questions."""
        any_of_them = "|".join(question.says for question in self.questions)
        always = (Question(any_of_them, lambda: "000000"),) * MOST_TRIES
        questions = always if self.questions else ()
        return replace(self, alias=f"wrong-{self.alias}", questions=questions)

    def ssh(self, *options: str, command: str = "id -un") -> list[str]:
        """Say how OpenSSH's client goes this way."""
        once = ["-o", "NumberOfPasswordPrompts=1"]
        return ["ssh", "-F", str(self.config), *once, *options, self.alias, command]


class LoginGround:
    """All kinds and all paths, between enter and exit; what a killed run left is removed first."""

    def __init__(self, folder: Path, far: FarSide) -> None:
        self.folder = folder
        self.far = far
        self.config = folder / "ssh_config"
        self.secrets: list[str] = []
        """What must be found nowhere, of the ways that were taken."""
        self.stack = contextlib.ExitStack()
        self.servers: list[RealSshd] = []
        self._places: dict[str, Place] = {}
        self._kinds: dict[str, Kind] = {}
        self._ways: dict[tuple[str, str], Way] = {}
        self._jumps: dict[str, Way] = {}

    def __enter__(self) -> Self:
        for part in NEEDS:
            real_part(part)
        remove_networks()
        remove_left_accounts()
        self._places = {"here": Place(enter=ENDS_WITH_US)}
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    # --- ways ---

    def way(self, kind: str, path: str = "direct") -> Way:
        """Give the way in of this kind by this path; the same one each time."""
        if (kind, path) not in self._ways:
            # No word of a question may be in an alias, which programs put before questions.
            alias = f"host-{len(self._ways)}"
            self._ways[kind, path] = PATHS[path](self, self.kind(kind), alias)
        return self._ways[kind, path]

    def kind(self, name: str) -> Kind:
        """Give a kind of login, with all that it takes."""
        if name not in self._kinds:
            self._kinds[name] = KINDS[name](self)
        return self._kinds[name]

    def open(
        self, kind: Kind, alias: str, *, place: str = "here", server: str = "", client: str = ""
    ) -> Way:
        """Start a server for this kind, with more lines for both sides, and name it `alias`."""
        # The log is to tell of each answer that was refused.
        lines = f"{server}\n{kind.server}\nSetEnv {MARK}={THIS_RUN}\nLogLevel VERBOSE"
        sshd = RealSshd(
            self.new_folder(),
            user=kind.user,
            extra_config=lines,
            place=self.place(place),
            program=kind.program,
        )
        self.stack.enter_context(sshd)
        sshd.allow(*kind.public_keys)
        self.servers.append(sshd)
        way = Way(
            alias,
            self.config,
            kind.user,
            str(self.far.python),
            kind.questions,
            kind.environment,
            sshd,
        )
        self.name(way, f"{client}\n{kind.client}")
        self.name(way.wrong, f"{client}\n{kind.wrong_client}")
        return way

    def name(self, way: Way, client: str) -> None:
        """Write the alias of a way into the ssh_config; the first word on an option counts."""
        lines = [
            *client.splitlines(),
            f"HostName {way.sshd.place.address}",
            f"Port {way.sshd.port}",
            f"User {way.user}",
            f"UserKnownHostsFile {way.sshd.known_hosts}",
            "GlobalKnownHostsFile /dev/null",
            "StrictHostKeyChecking ask",
        ]
        with self.config.open("a") as file:
            file.write("".join([f"Host {way.alias}\n", *(f"    {line}\n" for line in lines)]))

    def place(self, name: str) -> Place:
        """Say where that is; the networks are made for the first who asks."""
        if name not in self._places:
            self._places |= self.stack.enter_context(Networks()).places
        return self._places[name]

    def jump(self, name: str) -> str:
        """Give the alias of the server to jump through in that network: a key opens it."""
        if name not in self._jumps:
            self._jumps[name] = self.open(self.kind("ed25519"), f"jump-{name}", place=name)
        return self._jumps[name].alias

    # --- parts of kinds ---

    def new_folder(self) -> Path:
        """Make a folder for one thing."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def key(self, kind: str = "ed25519", passphrase: str = "") -> Path:
        """Make a key pair."""
        return make_key(self.new_folder() / f"id_{kind}", kind, passphrase)

    def agent(self, *keys: Path) -> dict[str, str]:
        """Start an agent that holds these keys; returns what the environment says of it."""
        # A socket's name must be short.
        folder = tempfile.mkdtemp(prefix="agent-")
        self.stack.callback(shutil.rmtree, folder, ignore_errors=True)
        said = {"SSH_AUTH_SOCK": f"{folder}/socket"}
        # An agent drops what would end it with us; a shell that reads from us does not.
        process = subprocess.Popen(
            ["sh", "-c", 'ssh-agent -D -a "$0" >/dev/null & cat; kill $!', said["SSH_AUTH_SOCK"]],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self.stack.callback(process.communicate, timeout=10)
        wait_for(Path(said["SSH_AUTH_SOCK"]).exists, what="the agent listens")
        for key in keys:
            subprocess.run(
                ["ssh-add", "-q", str(key)], env=os.environ | said, check=True, capture_output=True
            )
        return said

    def password(self, answer: str) -> Question:
        """Remember a password as a secret, and give the question for it."""
        self.secrets.append(answer)
        return Question(PASSWORDS, lambda: answer)


# ------------------------------------------------------------------------ kinds


def public(key: Path) -> str:
    """Read the public half."""
    return Path(f"{key}.pub").read_text()


def with_key(key: Path, *more: str) -> str:
    """Say in an ssh_config to show this key and no other."""
    return "\n".join([f"IdentityFile {key}", "IdentitiesOnly yes", *more])


WITHOUT_KEYS = "IdentityFile none\nIdentitiesOnly yes"


def _with_agent(ground: LoginGround) -> Kind:
    key = ground.key()
    environment = ground.agent(key)
    public_keys = (public(key),)
    key.unlink()  # the agent alone has it
    nobody = f"IdentityAgent {ground.agent()['SSH_AUTH_SOCK']}"
    return Kind(
        BY_KEYS,
        "IdentityFile none",
        f"{nobody}\nIdentityFile none",
        ground.far.user,
        public_keys=public_keys,
        environment=environment,
    )


def _with_file(ground: LoginGround, kind: str) -> Kind:
    key, other = ground.key(kind), ground.key()
    client, wrong = with_key(key), with_key(other)
    return Kind(BY_KEYS, client, wrong, ground.far.user, public_keys=(public(key),))


def _with_passphrase(ground: LoginGround) -> Kind:
    passphrase = secrets.token_hex(12)
    ground.secrets.append(passphrase)
    key = ground.key(passphrase=passphrase)
    return Kind(
        BY_KEYS,
        with_key(key),
        with_key(key),
        ground.far.user,
        public_keys=(public(key),),
        questions=(Question(PASSPHRASES, lambda: passphrase),),
    )


def certified(ground: LoginGround, valid: str = "always:forever") -> Kind:
    """A key that is let in because of who signed it, when it is valid."""
    authority, key = ground.key(), ground.key()
    _sign(authority, key, ground.far.user, valid)
    stranger = ground.key()
    _sign(ground.key(), stranger, ground.far.user, valid)
    server = f"TrustedUserCAKeys {authority}.pub\n{BY_KEYS}"
    return Kind(server, with_key(key), with_key(stranger), ground.far.user)


def _sign(authority: Path, key: Path, user: str, valid: str) -> None:
    command = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", "-n", user, "-V", valid]
    subprocess.run([*command, f"{key}.pub"], check=True, capture_output=True)


def _with_password(ground: LoginGround) -> Kind:
    made = ground.stack.enter_context(account("pass", ground.new_folder(), PASSWORD))
    server = "UsePAM yes\nPasswordAuthentication yes\nAuthenticationMethods password"
    questions = (ground.password(made.password),)
    return Kind(
        server, WITHOUT_KEYS, WITHOUT_KEYS, made.far.user, made.service, questions=questions
    )


def _with_code(ground: LoginGround) -> Kind:
    made = ground.stack.enter_context(account("code", ground.new_folder(), CODE))
    return Kind(
        f"{BY_PAM} keyboard-interactive:pam",
        WITHOUT_KEYS,
        WITHOUT_KEYS,
        made.far.user,
        made.service,
        questions=(Question(CODES, made.next_code),),
    )


def _with_password_and_code(ground: LoginGround) -> Kind:
    made = ground.stack.enter_context(account("both", ground.new_folder(), PASSWORD, CODE))
    return Kind(
        f"{BY_PAM} keyboard-interactive:pam",
        WITHOUT_KEYS,
        WITHOUT_KEYS,
        made.far.user,
        made.service,
        questions=(ground.password(made.password), Question(CODES, made.next_code)),
    )


def _with_key_and_code(ground: LoginGround) -> Kind:
    made = ground.stack.enter_context(account("keycode", ground.new_folder(), CODE))
    key = ground.key()
    return Kind(
        f"{BY_PAM} publickey,keyboard-interactive:pam",
        with_key(key),
        with_key(key),
        made.far.user,
        made.service,
        public_keys=(public(key),),
        questions=(Question(CODES, made.next_code),),
    )


KINDS: dict[str, Callable[[LoginGround], Kind]] = {
    "agent": _with_agent,
    "ed25519": lambda ground: _with_file(ground, "ed25519"),
    "rsa": lambda ground: _with_file(ground, "rsa"),
    "encrypted key": _with_passphrase,
    "certificate": certified,
    "password": _with_password,
    "code": _with_code,
    "password and code": _with_password_and_code,
    "key and code": _with_key_and_code,
}

# ------------------------------------------------------------------------ paths


def _one_jump(ground: LoginGround, kind: Kind, alias: str) -> Way:
    client = f"ProxyJump {ground.jump('gate')}"
    return ground.open(kind, alias, place="middle", client=client)


def _two_jumps(ground: LoginGround, kind: Kind, alias: str) -> Way:
    client = f"ProxyJump {ground.jump('gate')},{ground.jump('middle')}"
    return ground.open(kind, alias, place="deep", client=client)


def _proxy_command(ground: LoginGround, kind: Kind, alias: str) -> Way:
    client = f"ProxyCommand ssh -F {ground.config} -W %h:%p {ground.jump('gate')}"
    return ground.open(kind, alias, place="middle", client=client)


PATHS: dict[str, Callable[[LoginGround, Kind, str], Way]] = {
    "direct": lambda ground, kind, alias: ground.open(kind, alias),
    "one jump": _one_jump,
    "two jumps": _two_jumps,
    "proxy command": _proxy_command,
    "no forwarding": lambda ground, kind, alias: ground.open(kind, alias, server=FORBIDS),
}
