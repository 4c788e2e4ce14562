"""Hosts on which something is the matter with the login, or with the account behind it.

Each is a function that gives the way in; what it makes ends with the ground.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.at_terminal import Question
from tests.failing_path import FailingPath
from tests.real_jupyter import wait_for
from tests.real_logins import PASSWORDS, certified, public, with_key
from tests.real_parts import real_part, run_quietly
from tests.real_users import own_name, throw_away_user

if TYPE_CHECKING:
    from tests.real_logins import LoginGround, Way
    from tests.real_users import FarSide

HOME = "size=4m"  # of an account whose home is a disk of its own
GRACE = 2  # seconds that one server waits for an answer
NOISE = """
echo "Welcome to the noisy host"; echo "on stderr, too" >&2; printf '\\033]0;title\\007no newline'
"""
# How many bytes a server has sent in the middle of each step; a login has about 2,000.
CUTS = {"greeting": 10, "key exchange": 600, "login": 1400}


@dataclass(frozen=True)
class Bad:
    """A bad host, and how one sees with OpenSSH's client what is the matter."""

    way: Callable[[LoginGround], Way]
    lets_in: bool
    shows: str
    """What is to be read (a regular expression), of the client or of the command."""
    command: str = "id -un"


BAD: dict[str, Bad] = {}

Make = Callable[["LoginGround"], "Way"]


def bad(*, lets_in: bool, shows: str, command: str = "id -un") -> Callable[[Make], Make]:
    """Add a bad host; its function's name is its name."""

    def add(way: Make) -> Make:
        BAD[way.__name__.replace("_", " ")] = Bad(way, lets_in, shows, command)
        return way

    return add


# ------------------------------------------------------------------ at the door


@bad(lets_in=False, shows="Permission denied")
def an_expired_certificate(ground: LoginGround) -> Way:
    return ground.open(certified(ground, "20200101:20200102"), "expired")


@bad(lets_in=False, shows="marked as revoked")
def a_revoked_host_key(ground: LoginGround) -> Way:
    way = ground.open(ground.kind("ed25519"), "revoked")
    line = way.sshd.host_key_line
    # Where several hosts share a key it is revoked for all of them.
    way.sshd.known_hosts.write_text(f"@revoked * {line.partition(' ')[2]}\n{line}\n")
    return way


@bad(lets_in=False, shows="HAS CHANGED")
def a_changed_host_key(ground: LoginGround) -> Way:
    way = ground.open(ground.kind("ed25519"), "changed")
    name = way.sshd.host_key_line.split()[0]
    other = " ".join(public(ground.key()).split()[:2])
    way.sshd.known_hosts.write_text(f"{name} {other}\n")
    return way


@bad(lets_in=False, shows="Too many authentication failures")
def fewer_tries_than_keys(ground: LoginGround) -> Way:
    key = ground.key()
    held = ground.agent(*(ground.key() for _ in range(4)), key)
    kind = replace(
        ground.kind("ed25519"),
        client="IdentityFile none",
        public_keys=(public(key),),
        environment=held,
    )
    return ground.open(kind, "tries", server="MaxAuthTries 3")


@bad(lets_in=False, shows="closed|reset|[Tt]imeout")
def a_question_that_is_answered_too_late(ground: LoginGround) -> Way:
    way = ground.open(ground.kind("password"), "late", server=f"LoginGraceTime {GRACE}")

    def when_it_is_too_late() -> str:
        wait_for(lambda: not way.sshd.logins(), seconds=GRACE + 5, what="the server hangs up")
        return "too late"

    return replace(way, questions=(Question(PASSWORDS, when_it_is_too_late),))


@bad(lets_in=False, shows="closed|reset")
def a_cut_while_somebody_types(ground: LoginGround) -> Way:
    way = ground.open(ground.kind("password"), "typing")

    def after_the_cut() -> str:
        way.sshd.cut_all()
        wait_for(lambda: not way.sshd.logins(), what="the login is cut")
        return "cut"

    return replace(way, questions=(Question(PASSWORDS, after_the_cut),))


def cut_after(ground: LoginGround, way: Way, size: int) -> Way:
    """Lead the way through a path that is cut once the server has sent so many bytes; one time."""
    path = ground.stack.enter_context(FailingPath(way.sshd.port, size))
    cut = replace(way, alias=f"cut-{way.alias}-{path.port}")
    client = f"Port {path.port}\nHostKeyAlias [127.0.0.1]:{way.sshd.port}\n"
    ground.name(cut, client + ground.kind("ed25519").client)
    return cut


# ------------------------------------------------------------- servers with rules


@bad(lets_in=True, shows="^remoter")
def one_session_per_login(ground: LoginGround) -> Way:
    return ground.open(ground.kind("ed25519"), "session", server="MaxSessions 1")


@bad(lets_in=True, shows="PTY allocation request failed")
def no_terminal_there(ground: LoginGround) -> Way:
    return ground.open(ground.kind("ed25519"), "tty", server="PermitTTY no")


# --------------------------------------------------------------------- accounts


def _account(ground: LoginGround, name: str, shell: str = "/bin/bash") -> tuple[FarSide, Way]:
    """Make a user with that shell whom a key lets in."""
    user = ground.stack.enter_context(throw_away_user(own_name(f"remoter-{name}"), shell=shell))
    key = ground.key()
    kind = replace(
        ground.kind("ed25519"),
        client=with_key(key),
        public_keys=(public(key),),
        user=user.user,
    )
    return user, ground.open(kind, name)


def _with_shell(ground: LoginGround, name: str) -> Way:
    real_part(name)
    return _account(ground, name, run_quietly(["which", name]).strip())[1]


@bad(lets_in=True, command="echo $shell", shows=r"/csh")
def the_shell_csh(ground: LoginGround) -> Way:
    return _with_shell(ground, "csh")


@bad(lets_in=True, command="echo $shell", shows=r"/tcsh")
def the_shell_tcsh(ground: LoginGround) -> Way:
    return _with_shell(ground, "tcsh")


@bad(lets_in=True, command="echo $FISH_VERSION", shows=r"^\d+\.")
def the_shell_fish(ground: LoginGround) -> Way:
    return _with_shell(ground, "fish")


@bad(lets_in=True, shows="^Welcome to the noisy host")
def a_noisy_profile(ground: LoginGround) -> Way:
    user, way = _account(ground, "noisy")
    for name in (".bashrc", ".profile", ".bash_profile"):
        file = user.home / name
        file.write_text(NOISE)
        user.give(file)
    return way


def _on_a_disk_of_its_own(ground: LoginGround, name: str, options: str) -> tuple[FarSide, Way]:
    """Make an account whose home is a small disk, which ends with the user."""
    user, way = _account(ground, name)
    ids = user.ids
    options = f"{HOME},mode=755,uid={ids['user']},gid={ids['group']}{options}"
    run_quietly(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(user.home)])
    return user, way


@bad(lets_in=True, command="echo much > more", shows="No space left")
def a_home_that_is_full(ground: LoginGround) -> Way:
    user, way = _on_a_disk_of_its_own(ground, "full", "")
    for size in (65536, 1):
        with contextlib.suppress(OSError), (user.home / "waste").open("ab", 0) as file:
            while True:
                file.write(bytes(size))
    return way


@bad(lets_in=True, command="cp /bin/true . && ./true", shows="Permission denied")
def a_home_that_runs_nothing(ground: LoginGround) -> Way:
    return _on_a_disk_of_its_own(ground, "noexec", ",noexec")[1]
