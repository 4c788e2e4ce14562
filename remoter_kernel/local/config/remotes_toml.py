"""What `remotes.toml` says: text to remotes, and remotes into text.

Pure: no file is touched here. House rules:

- An error names the file, the line, and the nearest right word.
- What a person wrote by hand (order, comments, spacing) stays as it is.
- Nothing is written that would not be read back as the same remotes.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import tomlkit
import tomlkit.exceptions
from tomlkit.items import InlineTable

from remoter_kernel.errors import BadConfiguration, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

NAME_PATTERN = re.compile(r"[a-z0-9._-]+")  # jupyter_client lower-cases the names of kernelspecs
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # seconds
SIZES = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6, "KiB": 2**10, "kB": 10**3, "B": 1}
SMALLEST_LIMIT = 2**20  # bytes: a smaller journal would be markers of what was dropped


def _expand_user(path: str) -> Path:
    """Fill in the person's home; where there is none, whoever needs that file says so."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


# 17 attributes: the table of settings of a remote in `remotes.toml`.
@dataclass(frozen=True)
class Remote:
    """A configured place to run: a host, how to log in, which kernel, which environment."""

    name: str
    host: str  # an alias of ~/.ssh/config, or user@host[:port]
    python: str = ""  # "": look for python3 there
    kernel: str = "python3"
    init: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    cwd: str = ""  # "": the home there; "notebook": where `path_map` says the notebook is
    path_map: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    on_shutdown: Literal["stop", "keep"] = "stop"
    idle_timeout: float = 72 * 3600.0  # seconds
    journal_limit: int = 2**30  # bytes
    waiting_limit: int = 8 * 2**20  # bytes of one cell's text that may wait for a client
    transport: Literal["auto", "paramiko", "openssh"] = "auto"
    ssh_config: Path = field(default_factory=lambda: _expand_user("~/.ssh/config"))
    login_lifetime: float = 600.0  # seconds that the keeper keeps a login nobody uses
    local: Literal["ask", "allow", "never"] = "ask"  # may notebooks run %%local cells here?
    remember: bool = False  # may what a login asks for be kept in this system's keyring?


@dataclass(frozen=True)
class Remotes:
    """All remotes by name, and which of them is meant when none is named."""

    all: dict[str, Remote] = field(default_factory=dict)
    default: str | None = None


# --------------------------------------------------------------- values


def read_duration(value: object) -> float:
    """Read "90s", "30m", "72h" or "2d" as seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smhd])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f'a duration such as "90s", "30m", "72h" or "2d", not {value!r}')
    return float(found[1]) * UNITS[found[2]]


def write_duration(seconds: float) -> str:
    """Write seconds as people do: "72h", "10m", "90s"."""
    unit = next((u for u in "hm" if seconds and seconds % UNITS[u] == 0), "s")
    number = seconds / UNITS[unit]
    return f"{number:.0f}{unit}" if number.is_integer() else f"{number:.3f}{unit}"


def read_size(value: object) -> int:
    """Read "64MB" or "1GiB" as bytes."""
    units = "|".join(SIZES)
    found = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({units})", value) if isinstance(value, str) else None
    size = int(float(found[1]) * SIZES[found[2]]) if found else 0
    if size < SMALLEST_LIMIT:
        raise ValueError(f'a size of 1 MiB or more, such as "64MiB" or "2GB", not {value!r}')
    return size


def write_size(size: int) -> str:
    """Write bytes as people do: "8MiB", "2GB"."""
    unit = next(unit for unit, bytes_each in SIZES.items() if size % bytes_each == 0)
    return f"{size // SIZES[unit]}{unit}"


def _read_text_value(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f'a text in quotes, such as "{value}"')  # noqa: TRY004 - one kind of error for all readers
    return value


def _read_nonempty_text(value: object) -> str:
    if not _read_text_value(value).strip():
        raise ValueError("a text that is not empty")
    return _read_text_value(value)


def _read_lines(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise ValueError('a list of strings, such as ["module load cuda"]')
    return tuple(value)


def _read_environment(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(word, str) for word in value.values()):
        raise ValueError('a table of names and strings, such as { OMP_NUM_THREADS = "8" }')
    for name in value:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"names that a shell can export, which {name!r} is not")
    return MappingProxyType(dict(value))


def _read_path_map(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(there, str) and re.match(r"~$|~/|[/\\]|[A-Za-z]:", here)
        for here, there in value.items()
    ):
        raise ValueError('folders here with folders there, such as { "~/work" = "/scratch/me" }')
    return MappingProxyType(dict(value))


def _read_boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 - one kind of error for all readers
    return value


def _one_of(*words: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in words:
            options = " or ".join(f'"{word}"' for word in words)
            raise ValueError(f"{options}, not {value!r}{did_you_mean(str(value), words)}")
        return str(value)

    return read


def _read_path(value: object) -> Path:
    return _expand_user(_read_nonempty_text(value))


VALUE_READERS: Mapping[str, Callable[[object], Any]] = {
    "host": _read_nonempty_text,
    "python": _read_text_value,
    "kernel": _read_nonempty_text,
    "init": _read_lines,
    "env": _read_environment,
    "cwd": _read_text_value,
    "path_map": _read_path_map,
    "on_shutdown": _one_of("stop", "keep"),
    "idle_timeout": read_duration,
    "journal_limit": read_size,
    "waiting_limit": read_size,
    "transport": _one_of("auto", "paramiko", "openssh"),
    "ssh_config": _read_path,
    "login_lifetime": read_duration,
    "local": _one_of("ask", "allow", "never"),
    "remember": _read_boolean,
}


def is_name(name: str) -> bool:
    """Say whether a remote may be called that (and a folder be named after it)."""
    return NAME_PATTERN.fullmatch(name) is not None and name not in {".", ".."}


def did_you_mean(word: str, right_words: Iterable[str]) -> str:
    """Suggest the right word that is most like `word`: "" or " (did you mean …?)"."""
    found = difflib.get_close_matches(word, list(right_words), n=1, cutoff=0.5)
    return f' (did you mean "{found[0]}"?)' if found else ""


# --------------------------------------------------------------- reading


def parse_remotes(text: str, where: Path) -> Remotes:
    """Read the text of the file `where`, or say what is wrong in which line."""
    return _RemotesParser(text, where).remotes()


class _RemotesParser:
    """Parses one text; keeps what an error needs to name the line."""

    def __init__(self, text: str, where: Path) -> None:
        self._text = text
        self._where = where

    def remotes(self) -> Remotes:
        try:
            document = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as err:
            self._refuse_toml(str(err))
        for key, value in document.items():
            if key not in {"default", "remotes"}:
                if isinstance(value, dict):
                    self._refuse((key,), f"write [remotes.{key}] instead of [{key}].")
                hint = did_you_mean(key, ("default", "remotes"))
                self._refuse((key,), f'"{key}" is no key{hint}.')
        tables = document.get("remotes", {})
        if not isinstance(tables, dict):
            self._refuse(("remotes",), "a remote is a table: write [remotes.NAME].")
        remotes = {name: self._remote(name, table) for name, table in tables.items()}
        return Remotes(remotes, self._default(document.get("default"), remotes))

    def _default(self, default: object, remotes: Mapping[str, Remote]) -> str | None:
        if default is None or (isinstance(default, str) and default in remotes):
            return default
        hint = did_you_mean(str(default), remotes)
        return self._refuse(("default",), f"default is {default!r}, which is no remote{hint}.")

    def _remote(self, name: str, table: object) -> Remote:
        path = ("remotes", name)
        if not isinstance(table, dict):
            self._refuse(path, f"a remote is a table: write [remotes.{name}] above its keys.")
        if not is_name(name):
            self._refuse(path, f"{name!r} cannot be a remote's name: use only a-z 0-9 . _ -")
        values = {}
        for key, value in table.items():
            if key not in VALUE_READERS:
                self._refuse((*path, key), f'"{key}" is no key{did_you_mean(key, VALUE_READERS)}.')
            try:
                values[key] = VALUE_READERS[key](value)
            except ValueError as err:
                self._refuse((*path, key), f"{key} must be {err}.")
        if "host" not in values:
            self._refuse(path, f'the remote {name} has no host: add host = "…".')
        return Remote(name=name, **values)

    def _refuse(self, path: tuple[str, ...], what: str) -> NoReturn:
        self._refuse_line(line_number(self._text, path), what)

    def _refuse_line(self, line: int, what: str) -> NoReturn:
        message = f"{self._where}, line {line}: {what}"
        raise BadConfiguration(message, "Correct that line and try again.")

    def _refuse_toml(self, complaint: str) -> NoReturn:
        found = re.search(r" \(at line (\d+), column \d+\)$", complaint)
        line = int(found[1]) if found else max(1, self._text.rstrip().count("\n") + 1)
        what = f"this is not TOML: {complaint.partition(' (at ')[0]}."
        if twice := re.fullmatch(
            r"Cannot (?:declare|mutate|overwrite).*'remotes', '([^']+)'.*", complaint
        ):
            what = f"the remote {twice[1]} is there twice: keep one of the two, or rename one."
        elif "overwrite a value" in complaint:
            what = "this key is there twice: keep one of the two."
        self._refuse_line(line, what)


def line_number(text: str, path: tuple[str, ...]) -> int:
    """Find the line (from 1) where the value at `path` begins in a correct TOML text.

    TOML readers tell no positions, so this reads ever longer beginnings of the text:
    slow, exact for every way to write a key, and only used on the way to an error.
    """
    lines = text.splitlines(keepends=True)
    begin = 0
    for end in range(1, len(lines) + 1):
        try:
            value: Any = tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue  # these lines end within a value that has several
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return begin + 1
        begin = end
    return 1


# --------------------------------------------------------------- writing


def upsert_remote(text: str, remote: Remote, *, make_default: bool) -> str:
    """Write `remote` into the text, in the place of one with this name where there is one."""
    if not is_name(remote.name):
        raise Usage(f"{remote.name!r} cannot be a remote's name.", "Use only a-z 0-9 . _ -")
    document = tomlkit.parse(text)
    if "remotes" not in document:
        document["remotes"] = tomlkit.table(is_super_table=True)
    tables: Any = document["remotes"]
    wanted = _as_table(remote)
    if remote.name in tables:
        there = tables[remote.name]
        # Key by key, so that comments and the order of what stays are kept.
        for key in [key for key in there if key not in wanted]:
            del there[key]
        for key, value in wanted.items():
            if there.get(key) != value:
                there[key] = _as_item(value)
    else:
        table = tomlkit.inline_table() if isinstance(tables, InlineTable) else tomlkit.table()
        for key, value in wanted.items():
            table[key] = _as_item(value)
        tables[remote.name] = table
    if make_default:
        document["default"] = remote.name
    return tomlkit.dumps(document)


def drop_remote(text: str, name: str) -> str:
    """Take a remote out of the text; the default goes with it where it was the default."""
    document = tomlkit.parse(text)
    tables: Any = document["remotes"]
    del tables[name]
    if document.get("default") == name:
        del document["default"]
    return tomlkit.dumps(document)


def _as_table(remote: Remote) -> dict[str, Any]:
    """Return the keys whose values are not the defaults."""
    plain = Remote(name=remote.name, host="")
    changed = {
        key.name: getattr(remote, key.name)
        for key in fields(remote)
        if key.name != "name" and getattr(remote, key.name) != getattr(plain, key.name)
    }
    writers: dict[str, Callable[[Any], Any]] = {
        "init": list,
        "env": dict,
        "path_map": dict,
        "remember": bool,
        "idle_timeout": write_duration,
        "journal_limit": write_size,
        "waiting_limit": write_size,
        "login_lifetime": write_duration,
        "ssh_config": str,
    }
    return {key: writers.get(key, str)(value) for key, value in changed.items()}


def _as_item(value: Any) -> Any:
    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return table
    return value
