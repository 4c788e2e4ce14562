"""Every word of ssh_config, and what follows from it for a login by paramiko (pure).

`ssh` itself heeds all of them. Paramiko's side knows some; a word that it does not know and
that matters makes `auto` take `ssh` (see `transport_choice`). The values are those that `ssh -G`
prints, or those of the file where paramiko's parser reads it: keys are in lower case.
"""

from __future__ import annotations

import fnmatch
import getpass
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Said = Mapping[str, Sequence[str]]  # what ssh_config says: values by keyword, in lower case

OFF_VALUES = frozenset({"", "no", "false", "none"})
NOT_SUPPORTED = "which paramiko cannot heed"
NOT_IN_PARAMIKO = "and paramiko does not have what it names"

COMMAND_TOKENS = "%hknpr"  # ProxyCommand and ProxyJump know only these; the shell does the rest
OPENSSH_TOKENS = "Cj"


@dataclass(frozen=True)
class Unsupported:
    """Why a word is beyond paramiko, and what it says where it asks for nothing."""

    reason: str = NOT_SUPPORTED
    harmless_values: frozenset[str] = OFF_VALUES
    # To go on without it would be less safe than the person has chosen
    weakens_safety: bool = False


def _reasons(table: dict[str, str]) -> dict[str, str]:
    """Return each keyword with its reason, of a table from reasons to keywords."""
    return {word: reason for reason, words in table.items() for word in words.split()}


# Paramiko's side does what these say: where, or how.
SUPPORTED = _reasons(
    {
        "say what else counts: `ssh -G` knows": "Host Match Include IgnoreUnknown Tag",
        "`ssh -G` tells the name that comes of it": "CanonicalDomains CanonicalizeFallbackLocal "
        "CanonicalizeHostname CanonicalizeMaxDots CanonicalizePermittedCNAMEs Hostname",
        "the way": "Port User ConnectTimeout ProxyCommand ProxyJump",
        "which keys are shown": "IdentitiesOnly IdentityAgent IdentityFile",
        "what is tried, in which order and how often": "KbdInteractiveAuthentication "
        "NumberOfPasswordPrompts PasswordAuthentication PreferredAuthentications",
        "what paramiko has of them is offered, and nothing else": "Ciphers HostKeyAlgorithms "
        "KexAlgorithms MACs PubkeyAcceptedAlgorithms RequiredRSASize",
        "where host keys are looked for and written": "GlobalKnownHostsFile HashKnownHosts "
        "HostKeyAlias UserKnownHostsFile",
        "with `yes` no unknown host key is accepted; else it is asked about": (
            "StrictHostKeyChecking"
        ),
        "a master that lives is joined": "ControlMaster ControlPath ControlPersist",
        "ssh is taken where there is a ticket": "GSSAPIAuthentication GSSAPIKeyExchange",
    }
)

# Paramiko's side cannot do what these say.
UNSUPPORTED = {
    "RevokedHostKeys": Unsupported(weakens_safety=True),
    "RefuseConnection": Unsupported(weakens_safety=True),
    "KnownHostsCommand": Unsupported("which paramiko cannot run"),
    "CertificateFile": Unsupported("and paramiko finds only one beside its key"),
    "HostbasedAuthentication": Unsupported(),
    "PubkeyAuthentication": Unsupported(
        harmless_values=frozenset({"yes", "no", "true", "false", "unbound"}), weakens_safety=True
    ),
    "PKCS11Provider": Unsupported("which paramiko cannot load"),
    "UseKeychain": Unsupported("which paramiko cannot read"),
    "ProxyUseFdpass": Unsupported(),
    "AddressFamily": Unsupported(harmless_values=frozenset({"any"})),
    "BindAddress": Unsupported(harmless_values=frozenset({"", "none", "*"})),
    "BindInterface": Unsupported(),
    "CheckHostIP": Unsupported(),
    "KbdInteractiveDevices": Unsupported(),
    "RekeyLimit": Unsupported(harmless_values=frozenset({"0 0", "default", "default none"})),
}

# These have no bearing on what a login is for here, or are overruled for each login: see
# `openssh_argv`.
IRRELEVANT = _reasons(
    {
        "an unknown host key is asked about, always": (
            "NoHostAuthenticationForLocalhost VerifyHostKeyDNS"
        ),
        "we ask, in our own words": "BatchMode VisualHostKey FingerprintHash",
        "no key is learnt but one that somebody has accepted": "UpdateHostKeys",
        "certificates of hosts are left to ssh": "CASignatureAlgorithms",
        "only for HostbasedAuthentication": "EnableSSHKeysign HostbasedAcceptedAlgorithms",
        "only for Kerberos, which is left to ssh": "GSSAPIClientIdentity GSSAPIDelegateCredentials "
        "GSSAPIKexAlgorithms GSSAPIRenewalForcesRekey GSSAPIServerIdentity GSSAPITrustDns",
        "keys on a security key are left to ssh": "SecurityKeyProvider",
        "the agent is not told; a login is kept, so a passphrase is asked for once": (
            "AddKeysToAgent"
        ),
        "nothing of the person's own is forwarded": "ClearAllForwardings DynamicForward "
        "ExitOnForwardFailure ForwardAgent ForwardX11 ForwardX11Timeout ForwardX11Trusted "
        "GatewayPorts LocalForward PermitRemoteOpen RemoteForward StreamLocalBindMask "
        "StreamLocalBindUnlink Tunnel TunnelDevice XAuthLocation",
        "there is no terminal, and commands are our own": "EnableEscapeCommandline EscapeChar "
        "ForkAfterAuthentication LocalCommand ObscureKeystrokeTiming PermitLocalCommand "
        "RemoteCommand RequestTTY SessionType StdinNull",
        "`env` of the remote says what a kernel gets": "SendEnv SetEnv",
        "how a connection is kept, and tried again, is ours": "ChannelTimeout Compression "
        "ConnectionAttempts IPQoS ServerAliveCountMax ServerAliveInterval TCPKeepAlive",
        "what ssh says of itself": "LogLevel LogVerbose SyslogFacility VersionAddendum "
        "WarnWeakCrypto",
    }
)

# Words of files that were written for an older ssh; `ssh -G` calls them by the name of today.
FORMER_KEYWORDS = {
    "challengeresponseauthentication": "kbdinteractiveauthentication",
    "skeyauthentication": "kbdinteractiveauthentication",
    "tisauthentication": "kbdinteractiveauthentication",
    "dsaauthentication": "pubkeyauthentication",
    "pubkeyacceptedkeytypes": "pubkeyacceptedalgorithms",
    "hostbasedkeytypes": "hostbasedacceptedalgorithms",
    "smartcarddevice": "pkcs11provider",
}
KEYWORDS = {name.lower(): name for name in (*SUPPORTED, *UNSUPPORTED, *IRRELEVANT)}
_UNSUPPORTED = {name.lower(): beyond for name, beyond in UNSUPPORTED.items()}
METHODS = {  # of RFC 4252, in ssh's own order; the word that can forbid each
    "publickey": "PubkeyAuthentication",
    "keyboard-interactive": "KbdInteractiveAuthentication",
    "password": "PasswordAuthentication",
}
ALGORITHMS = ("ciphers", "hostkeyalgorithms", "kexalgorithms", "macs", "pubkeyacceptedalgorithms")
PROMPTS, RSA_BITS = 3, 1024  # where nothing is said


@dataclass(frozen=True)
class LoginRules:
    """What ssh_config says about how to log in: what paramiko's side heeds, and what it cannot."""

    methods: tuple[str, ...] = tuple(METHODS)  # those that may be tried, in order
    forbidden: tuple[tuple[str, str], ...] = ()  # each other method, and the words that forbid it
    prompts: int = PROMPTS  # how often a person is asked for a password, a code or a passphrase
    # By keyword, where another list is wanted than the usual one
    algorithms: tuple[tuple[str, str], ...] = ()
    least_rsa_bits: int = RSA_BITS
    hashes_names: bool = False  # names are hashed when a host key is written down
    # Nobody may accept an unknown host key; without it somebody is always asked
    is_strict: bool = False
    unsupported: tuple[str, ...] = ()  # words that only the system's ssh can heed
    skipped: tuple[str, ...] = ()  # words that paramiko's parser of the file has passed over

    @property
    def unsafe_to_ignore(self) -> tuple[str, ...]:
        """Those of `unsupported` without which a login would be less safe."""
        unsafe = {word for word, beyond in UNSUPPORTED.items() if beyond.weakens_safety}
        return tuple(word for word in self.unsupported if word in unsafe)

    def forbidden_by(self, methods: Sequence[str]) -> str:
        """Name the words that forbid these methods; empty where all of them may be tried."""
        words = (why for method, why in self.forbidden if method in methods)
        return ", ".join(dict.fromkeys(words))


DEFAULT_RULES = LoginRules()


def login_rules(keywords: Said, defaults: Said | None) -> LoginRules:
    """Read the rules of a host.

    `defaults` is what plain ssh says where no file does; None where paramiko's parser has read
    the file: then there is only what the file says, and who knows what is misspelt in it.
    """
    forbidden = _forbidden_methods(keywords)
    return LoginRules(
        methods=tuple(name for name in _preferred_methods(keywords) if name not in dict(forbidden)),
        forbidden=forbidden,
        prompts=_number_of(keywords, "numberofpasswordprompts", PROMPTS),
        algorithms=tuple(
            (keyword, _value_of(keywords, keyword))
            for keyword in ALGORITHMS
            if _differs_from_default(keyword, keywords, defaults)
        ),
        least_rsa_bits=_number_of(keywords, "requiredrsasize", RSA_BITS),
        hashes_names=_value_of(keywords, "hashknownhosts") == "yes",
        is_strict=_value_of(keywords, "stricthostkeychecking") in ("yes", "true"),
        unsupported=_unsupported_keywords(keywords, defaults),
        skipped=("Include",) if defaults is None and "include" in keywords else (),
    )


def why_unsupported(keyword: str, label: str = "it") -> str:
    """Say in a clause why paramiko will not do for a host whose configuration has this word."""
    why = NOT_IN_PARAMIKO if keyword in SUPPORTED else NOT_SUPPORTED
    if keyword in UNSUPPORTED:
        why = UNSUPPORTED[keyword].reason
    return f"your ssh config says {keyword} for {label}, {why}"


def filter_algorithms(own: Sequence[str], wanted: str) -> tuple[str, ...]:
    """Return those of our own algorithms that a list of ssh_config lets us use, in its order.

    The list may begin with "+", "-" or "^" (added, removed, first), and may have patterns.
    """
    sign, patterns = wanted[:1], wanted.lstrip("+-^").split(",")
    named = [
        name
        for pattern in patterns
        for name in own
        if fnmatch.fnmatchcase(name, pattern.strip().replace("[", "[[]"))  # ssh knows * and ?
    ]
    rest = [name for name in own if name not in named]
    orders = {"+": list(own), "-": rest, "^": [*named, *rest]}
    return tuple(dict.fromkeys(orders.get(sign, named)))


def _unsupported_keywords(keywords: Said, defaults: Said | None) -> tuple[str, ...]:
    found = []
    for keyword, values in keywords.items():
        if not _differs_from_default(keyword, keywords, defaults):
            continue
        beyond = _UNSUPPORTED.get(keyword)
        if beyond and not all(value.lower() in beyond.harmless_values for value in values):
            found.append(KEYWORDS[keyword])
        elif not defaults:  # who knows what is misspelt in the file
            continue
        elif keyword == "pubkeyacceptedalgorithms":
            if _names_more_algorithms(values, defaults[keyword]):
                found.append(KEYWORDS[keyword])
        elif keyword not in KEYWORDS:
            found.append(keyword)  # of a newer ssh than this table: what it does is not known here
    order = [*UNSUPPORTED, *found]  # for sentences: the weightiest first
    return tuple(sorted(found, key=order.index))


def _names_more_algorithms(wanted: Sequence[str], defaults: Sequence[str]) -> bool:
    """Say whether a list of key algorithms has more than usual, or only those for security keys.

    Of the other lists it need not be known: where paramiko and a host have nothing in common
    they find out before anything is at stake.
    """
    names, known = (",".join(lists).split(",") for lists in (wanted, defaults))
    return not set(names) <= set(known) or all(name.startswith("sk-") for name in names)


def _differs_from_default(keyword: str, keywords: Said, defaults: Said | None) -> bool:
    return keyword in keywords and (
        defaults is None or list(keywords[keyword]) != list(defaults.get(keyword, ()))
    )


def _preferred_methods(keywords: Said) -> list[str]:
    wanted = _value_of(keywords, "preferredauthentications")
    if wanted in ("", "none", "any"):
        return list(METHODS)
    return [name for name in dict.fromkeys(wanted.replace(" ", "").split(",")) if name in METHODS]


def _forbidden_methods(keywords: Said) -> tuple[tuple[str, str], ...]:
    found = []
    has_no_prompts = _number_of(keywords, "numberofpasswordprompts", PROMPTS) == 0
    for method, keyword in METHODS.items():
        if _value_of(keywords, keyword.lower()) in ("no", "false"):
            found.append((method, f"{keyword} no"))
        elif method not in _preferred_methods(keywords):
            wanted = _value_of(keywords, "preferredauthentications")
            found.append((method, f"PreferredAuthentications {wanted}"))
        elif method != "publickey" and has_no_prompts:
            found.append((method, "NumberOfPasswordPrompts 0"))
    return tuple(found)


def _value_of(keywords: Said, keyword: str) -> str:
    return (keywords.get(keyword) or [""])[0].lower()


def _number_of(keywords: Said, keyword: str, default: int) -> int:
    value = _value_of(keywords, keyword)
    return int(value) if value.isdigit() else default


def local_user() -> str:
    """Return the name of whoever runs this; empty for a user id that has none (containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""


def account_home() -> str:
    """Return the home that the user database knows, or HOME where it knows nobody."""
    name = local_user()
    home = os.path.expanduser(f"~{name}")  # noqa: PTH111 (no lookup by name)
    return str(Path.home()) if home.startswith("~") or not name else home


@dataclass(frozen=True)
class Tokens:
    """What the tokens stand for, for one host."""

    values: dict[str, str]
    expand_by_ssh: Callable[[str], str]  # expands a token whose value differs from ssh to ssh
    environment: Mapping[str, str]  # of whoever logs in

    def expand(self, text: str) -> str:
        """Fill in a path or the name of a socket; `${NAME}` is of the environment."""
        text = re.sub(r"%(.)", self._value, text)
        return re.sub(r"\$\{(\w+)\}", lambda match: self.environment.get(match[1], match[0]), text)

    def expand_command(self, text: str) -> str:
        """Fill in a ProxyCommand or a ProxyJump."""
        return re.sub(f"%([{COMMAND_TOKENS}])", self._value, text)

    def expand_path(self, text: str) -> Path:
        """Make a path of it."""
        return Path(self.expand(_unexpand_home(text.strip('"')))).expanduser()

    def hash(self, jump: str = "") -> str:
        """Compute `%C`, as a ssh does that knows `%j`, too."""
        whole = "".join(self.values[name] for name in "lhpr") + jump
        return hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest()

    def _value(self, match: re.Match[str]) -> str:
        if match[1] in OPENSSH_TOKENS:
            return self.expand_by_ssh(match[1])
        return self.values.get(match[1], match[0])


def _unexpand_home(path: str) -> str:
    """Write ssh's own default paths so that HOME decides about them, as for all else here."""
    home = account_home()
    start = f"{home}/.ssh/known_hosts"
    return path.replace(home, "~", 1) if path in (start, f"{start}2") else path
