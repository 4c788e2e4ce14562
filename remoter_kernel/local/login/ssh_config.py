"""Turns what a person calls a host into where, as whom and with which files to log in.

`ssh -G` answers where an OpenSSH client exists, because only it reads ssh_config as
OpenSSH does (paramiko's parser knows neither `Include` nor `Match tagged`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel.errors import BadConfiguration, Unreachable, Usage
from remoter_kernel.local.login.destination import (
    CONNECT_WITHIN,
    SSH_PORT,
    Destination,
    OpenSSHOptions,
)
from remoter_kernel.local.login.ssh_config_cache import ConfigFiles, cache_answer, cached_answer
from remoter_kernel.local.login.ssh_keywords import (
    Tokens,
    account_home,
    local_user,
    login_rules,
)
from remoter_kernel.local.private_files import requiring_home

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

QUERY_WITHIN = 5.0  # seconds for `ssh -G`: a `Match exec` in it may ask the network
LONGEST_CHAIN = 8  # jump hosts: more than that is two aliases that name each other

SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
# As `ssh -G` prints them where nobody has named others.
USER_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"
SYSTEM_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
KERBEROS = ("gssapiauthentication", "gssapikeyexchange")
# What `ssh -G` lists when nobody has named an identity; see `Destination.identity_files`.
DEFAULT_IDENTITIES = frozenset(
    f"~/.ssh/id_{kind}"
    for kind in [
        "rsa",
        "ecdsa",
        "ecdsa_sk",
        "ed25519",
        "ed25519_sk",
        "xmss",
        "dsa",
        "mldsa44_ed25519",
    ]
)
# By the ssh that has said so, and its date.
_defaults_by_ssh: dict[tuple[str, int], dict[str, list[str]]] = {}


@dataclass(frozen=True)
class _HostSpec:
    """The parts of `[user@]host[:port]`; empty or 0 where nothing was said."""

    host: str
    user: str = ""
    port: int = 0


def resolve_destination(
    host: str, ssh_config: Path, environment: Mapping[str, str] | None = None
) -> Destination:
    """Say where `host` is: an alias of `ssh_config`, or `user@host[:port]`.

    `environment`: of whoever logs in, if that is another process.
    """
    environment = dict(os.environ) if environment is None else environment
    with requiring_home():
        return _resolve_hop(host, Path(ssh_config).expanduser(), environment, depth=0)


def _resolve_hop(
    host: str, config: Path, environment: Mapping[str, str], *, depth: int
) -> Destination:
    if depth > LONGEST_CHAIN:
        raise BadConfiguration(
            f"the jump hosts of {host} lead in a circle.", f"Look at ProxyJump in {config}."
        )
    spec = _parse_host_spec(host)
    ssh = _find_ssh(environment)
    keywords = _query_ssh(spec, config, environment) if ssh else _read_without_ssh(spec, config)
    tokens = _tokens_for(spec, keywords, config, environment)
    destination = replace(
        _destination(spec, keywords, tokens),
        rules=login_rules(keywords, _ssh_defaults(ssh) if ssh else None),
        openssh=_openssh_options(keywords, config),
    )
    jumps = tokens.expand_command(keywords.get("proxyjump", ["none"])[0])
    if jumps.lower() == "none":
        return destination
    chain: list[Destination] = []
    for place, hop in enumerate(re.split(r"\s*,\s*", jumps.strip())):
        found = _resolve_hop(hop, config, environment, depth=depth + 1)
        # As in OpenSSH, only the first hop may bring jump hosts of its own.
        chain += [*(found.jumps if place == 0 else ()), replace(found, jumps=())]
    return replace(destination, jumps=tuple(chain), proxy_command="")  # ProxyJump excludes it


def _parse_host_spec(text: str) -> _HostSpec:
    """Split `[ssh://][user@]host[:port]`, where an IPv6 address with a port has brackets."""
    rest = text.strip().removeprefix("ssh://").rstrip("/")
    user, at, where = rest.rpartition("@")
    if match := re.fullmatch(r"\[(?P<host>[^\]]+)\](?::(?P<port>\d+))?", where):
        name, port = match["host"], match["port"]
    elif where.count(":") == 1:
        name, _, port = where.partition(":")
    else:
        name, port = where, None
    # A leading "-" would be an option to ssh, and a control character a second line.
    bad = not name or name.startswith("-") or user.startswith("-") or (at and not user)
    # The rest as ssh itself has it; a backslash is for users like CORP\ada.
    if bad or re.search(r"[\s\x00-\x1f\x7f'\"`$;&<>|(){}]", user + name) or "\\" in name:
        raise Usage(
            f"{text!r} is no host.", "Write an alias of your ssh config or user@host[:port]."
        )
    if port is not None and not (port.isdigit() and 0 < int(port) < 65536):  # noqa: PLR2004 (TCP's)
        raise Usage(f"{text!r} has no valid port.", "Write user@host:22, for example.")
    return _HostSpec(name, user, int(port or 0))


# ----------------------------------------------------------- asking OpenSSH


def run_quietly(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program that asks nothing; raises OSError and subprocess.TimeoutExpired."""
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
        check=False,
    )


def has_usable_ssh(environment: Mapping[str, str]) -> bool:
    """Say whether there is an OpenSSH client here that works for this user."""
    return bool(_find_ssh(environment))


def _find_ssh(environment: Mapping[str, str]) -> str:
    """Find ssh; it does nothing for a user id without an entry in the user database."""
    with contextlib.suppress(KeyError):
        if os.name == "posix":
            import pwd  # noqa: PLC0415 (not on Windows)

            pwd.getpwuid(os.getuid())
        return shutil.which("ssh", path=environment.get("PATH", os.defpath)) or ""
    return ""


def _ssh_defaults(ssh: str) -> dict[str, list[str]] | None:
    """Say what this ssh does where no file says anything; None where it does not tell."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # then it is asked again
        key = (ssh, os.stat(ssh).st_mtime_ns)  # noqa: PTH116 (a text is at hand)
        if key not in _defaults_by_ssh:
            done = run_quietly([ssh, "-G", "-F", "none", "--", "host.invalid"], QUERY_WITHIN)
            found = _parse_keywords(done.stdout.decode(errors="surrogateescape"))
            _defaults_by_ssh.clear()
            _defaults_by_ssh[key] = found
        return _defaults_by_ssh[key]
    return None


def _parse_keywords(output: str) -> dict[str, list[str]]:
    keywords: dict[str, list[str]] = {}
    for line in output.split("\n"):
        key, _, value = line.partition(" ")
        keywords.setdefault(key.lower(), []).append(value.strip())
    return keywords


def _query_ssh(
    spec: _HostSpec, config: Path, environment: Mapping[str, str], *options: str
) -> dict[str, list[str]]:
    """Let `ssh -G` say all that its configuration means for this host."""
    choice = _config_option(config)
    command = ["ssh", "-v", "-G", *choice, *options]  # with -v it tells which files it reads
    command += ["-l", spec.user] if spec.user else []
    command += ["-p", str(spec.port)] if spec.port else []
    command += ["--", spec.host]
    ssh = _find_ssh(environment)
    files = ConfigFiles(ssh, choice)
    answer = cached_answer(command, files)
    if answer is None:
        done = _run_ssh_g(command, spec, config, environment)
        answer = done.stdout.decode(errors="surrogateescape")
        is_sure = not files.is_uncacheable and files.covers(done.stderr.decode(errors="replace"))
        # What has changed while ssh was reading may be in the answer, or may not.
        if is_sure and files.is_settled and ConfigFiles(ssh, choice).stamp == files.stamp:
            cache_answer(command, files, answer)
    return _parse_keywords(answer)


def _run_ssh_g(
    command: list[str], spec: _HostSpec, config: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[bytes]:
    try:
        done = run_quietly(command, QUERY_WITHIN, environment)
    except subprocess.TimeoutExpired as error:
        raise Unreachable(
            f"`ssh -G {spec.host}` did not answer within {QUERY_WITHIN:g} s.",
            f"Look for a slow `Match exec` in {config}.",
        ) from error
    except OSError as error:
        raise BadConfiguration(f"`ssh -G` cannot be run: {error}.") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        why = [line for line in said if not line.startswith("debug")] or ["no reason given"]
        raise BadConfiguration(
            f"ssh does not understand its configuration for {spec.host}: {why[-1]}.",
            f"Look at {config}.",
        )
    return done


def _config_option(config: Path) -> list[str]:
    """Choose ssh's option `-F`.

    Without it ssh reads the system's file too, but looks in the home of the password
    database, whatever HOME says.
    """
    if config == Path(account_home()) / ".ssh" / "config":
        return []
    if config.exists():
        return ["-F", str(config)]
    if config != Path.home() / ".ssh" / "config":
        raise BadConfiguration(
            f"the ssh configuration {config} does not exist.",
            "Correct `ssh_config` of this remote, or make the file.",
        )
    return ["-F", str(SYSTEM_CONFIG) if SYSTEM_CONFIG.exists() else "none"]


def _read_without_ssh(spec: _HostSpec, config: Path) -> dict[str, list[str]]:
    """Read ssh_config with paramiko's parser, where there is no OpenSSH client."""
    from remoter_kernel.local.login.paramiko.paramiko_config import lookup_host  # noqa: PLC0415 (0.2 s, seldom)

    keywords: dict[str, list[str]] = {}
    if config.exists():
        keywords = lookup_host(config, spec.host)
    elif config != Path.home() / ".ssh" / "config":
        _config_option(config)  # says that it does not exist
    # What was typed counts before what the file says.
    typed = {"user": spec.user, "port": str(spec.port or "")}
    return keywords | {key: [value] for key, value in typed.items() if value}


# --------------------------------------------------- from words to a Destination


def _tokens_for(
    spec: _HostSpec, keywords: dict[str, list[str]], config: Path, environment: Mapping[str, str]
) -> Tokens:
    def ask_ssh(name: str) -> str:
        if not has_usable_ssh(environment):
            return tokens.hash(_first_value(keywords, "proxyjump")) if name == "C" else ""
        # Of all that takes tokens, this is what each `ssh -G` shows filled in.
        told = _query_ssh(spec, config, environment, "-o", f"ControlPath=/%{name}")
        return told.get("controlpath", ["/"])[0].removeprefix("/")

    local_host = socket.gethostname()
    tokens = Tokens(
        {
            "%": "%",
            "d": str(Path.home()),
            "h": _first_value(keywords, "hostname", spec.host),
            "i": str(os.getuid() if hasattr(os, "getuid") else 0),
            "k": _first_value(keywords, "hostkeyalias") or spec.host,
            "L": local_host.partition(".")[0],
            "l": local_host,
            "n": spec.host,
            "p": str(int(_first_value(keywords, "port", str(SSH_PORT)))),
            "r": _first_value(keywords, "user") or _local_user_name(),
            "u": local_user(),
        },
        ask_ssh,
        environment,
    )
    return tokens


def _local_user_name() -> str:
    name = local_user()
    if not name:
        who = f" (number {os.getuid()})" if os.name == "posix" else ""
        raise BadConfiguration(
            f"nobody is named to log in as, and the user here{who} has no name either.",
            "Write user@host, or `User` in your ssh config.",
        )
    return name


def _first_value(keywords: dict[str, list[str]], key: str, default: str = "") -> str:
    value = keywords.get(key, [default])[0]
    return default if value.lower() == "none" else value


def _destination(spec: _HostSpec, keywords: dict[str, list[str]], tokens: Tokens) -> Destination:
    identities = [name for name in keywords.get("identityfile", []) if name.lower() != "none"]
    if all(name in DEFAULT_IDENTITIES for name in identities) and len(identities) > 1:
        identities = []
    wait = _first_value(keywords, "connecttimeout", "0")
    agent = keywords.get("identityagent", [""])[0]
    return Destination(
        host_name=tokens.values["h"],
        port=int(tokens.values["p"]),
        user=tokens.values["r"],
        identity_files=tuple(tokens.expand_path(name) for name in identities),
        known_hosts_files=_known_hosts_files(keywords, tokens),
        host_key_alias=_first_value(keywords, "hostkeyalias"),
        identities_only=_first_value(keywords, "identitiesonly") == "yes",
        identity_agent="" if agent == "SSH_AUTH_SOCK" else tokens.expand(agent),
        connect_timeout=float(wait) if wait.isdigit() and int(wait) else CONNECT_WITHIN,
        proxy_command=tokens.expand_command(_first_value(keywords, "proxycommand")),
        alias=spec.host,
        environment=tokens.environment,
    )


def _openssh_options(keywords: dict[str, list[str]], config: Path) -> OpenSSHOptions:
    return OpenSSHOptions(
        config_option=tuple(_config_option(config)),
        control_path=_first_value(keywords, "controlpath"),
        uses_kerberos=any(_first_value(keywords, word) == "yes" for word in KERBEROS),
        keeps_alive=_first_value(keywords, "serveraliveinterval", "0") != "0",
        keywords=frozenset(keywords),
    )


def _known_hosts_files(keywords: dict[str, list[str]], tokens: Tokens) -> tuple[Path, ...]:
    """List the user's files first, then the system's, which take no tokens."""
    usual = {"userknownhostsfile": USER_KNOWN_HOSTS, "globalknownhostsfile": SYSTEM_KNOWN_HOSTS}
    user, system = (_split_paths(keywords.get(key, [files])) for key, files in usual.items())
    # Where the person has no file, none learns a new key: the system's is not theirs to write.
    own = [tokens.expand_path(name) for name in user] or [Path(os.devnull)]
    return (*own, *map(Path, system))


def _split_paths(values: list[str]) -> list[str]:
    # ssh -G does not quote: a new path starts where a "/", "~" or drive letter follows a space.
    names = re.split(r"\s+(?=[/~%$]|[A-Za-z]:[\\/]|none\b)", " ".join(values))
    return [name.strip('"') for name in names if name and name.lower() != "none"]
