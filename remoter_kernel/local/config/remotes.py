"""Which remotes there are: the file `remotes.toml`, and the last kernel_info of each.

With `cwd = "notebook"` the folder of the notebook is looked up in `path_map`, whose longest
matching entry counts; without any, what is in the home here is in the home there.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import platformdirs

from remoter_kernel.errors import BadConfiguration, RemoterError, Usage
from remoter_kernel.local.config import remotes_toml as remotes_text
from remoter_kernel.local.config.remotes_toml import Remote, Remotes, did_you_mean, is_name
from remoter_kernel.local.private_files import (
    APPLICATION,
    CannotWrite,
    file_lock,
    requiring_home,
    state_folder,
    write_private_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Remote", "Remotes", "is_name", "state_folder"]  # which others import from here

NOTEBOOK_FOLDER = "notebook"
HOME = "~"


def config_path() -> Path:
    """Return where `remotes.toml` is: REMOTER_CONFIG, else the person's config folder."""
    named = os.environ.get("REMOTER_CONFIG")
    with requiring_home():
        if named:
            return Path(named).expanduser()
        return platformdirs.user_config_path(APPLICATION) / "remotes.toml"


# --------------------------------------------------------------- the file
def read_remotes(path: Path | None = None) -> Remotes:
    """Read all remotes; a missing file means that there are none yet."""
    path = path or config_path()
    return remotes_text.parse_remotes(_read_file(path), path)


def find_remote(name: str | None, path: Path | None = None) -> Remote | None:
    """Find a remote by name; without a name the default, or the only one.

    None means: none was named, and none is configured.
    """
    if name is not None:
        return named_remote(name, path)
    path = path or config_path()
    remotes = read_remotes(path)
    if remotes.default is not None:
        return remotes.all[remotes.default]
    if len(remotes.all) > 1:
        names = ", ".join(sorted(remotes.all))
        raise Usage(
            f"There are several remotes ({names}) and no default.",
            f'Name one, or put default = "NAME" at the top of {path}.',
        )
    return next(iter(remotes.all.values()), None)


def named_remote(name: str, path: Path | None = None) -> Remote:
    """Return the remote of this name; `Usage` if there is none."""
    path = path or config_path()
    remotes = read_remotes(path)
    if name not in remotes.all:
        raise _unknown_remote(name, remotes, path)
    return remotes.all[name]


def write_remote(
    remote: Remote, *, make_default: bool, replace: bool, path: Path | None = None
) -> None:
    """Write a remote into the file; all else in it stays as it is."""
    path = path or config_path()
    with file_lock(path):  # two `remoter add` at once must not lose one of the remotes
        remotes = read_remotes(path)
        if remote.name in remotes.all and not replace:
            raise Usage(
                f"There is a remote {remote.name} already.",
                "Use --replace to write it anew, or choose another name.",
            )
        default = remote.name if make_default else remotes.default
        wanted = Remotes({**remotes.all, remote.name: remote}, default)
        _rewrite_remotes(
            path, wanted, lambda t: remotes_text.upsert_remote(t, remote, make_default=make_default)
        )


def delete_remote(name: str, path: Path | None = None) -> None:
    """Take a remote out of the file, and remove its last kernel_info."""
    path = path or config_path()
    with file_lock(path):
        remotes = read_remotes(path)
        if name not in remotes.all:
            raise _unknown_remote(name, remotes, path)
        rest = {other: remote for other, remote in remotes.all.items() if other != name}
        default = None if remotes.default == name else remotes.default
        _rewrite_remotes(path, Remotes(rest, default), lambda t: remotes_text.drop_remote(t, name))
    _kernel_info_path(name).unlink(missing_ok=True)


def _rewrite_remotes(path: Path, wanted: Remotes, change: Callable[[str], str]) -> None:
    text = change(_read_file(path))
    # A hand-written file has more shapes than any editor of TOML expects: look before it counts.
    if remotes_text.parse_remotes(text, path) != wanted:
        raise BadConfiguration(
            f"{path} is written in a way that cannot be changed safely; it stays as it was.",
            "Write each remote as its own [remotes.NAME] table, or make the change by hand.",
        )
    write_private_file(path, text)


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:  # no remote was added yet
        return ""
    except UnicodeDecodeError as err:
        line = path.read_bytes()[: err.start].count(b"\n") + 1
        raise BadConfiguration(
            f"{path}, line {line}: this is not UTF-8 text.", "Correct that line and try again."
        ) from err
    except OSError as err:
        reason = err.strerror or str(err)
        raise BadConfiguration(
            f"{path} cannot be read: {reason}.",
            "Check its permissions, or name another file in REMOTER_CONFIG.",
        ) from err


def _unknown_remote(name: str, remotes: Remotes, path: Path) -> Usage:
    known = ", ".join(sorted(remotes.all)) or "none yet"
    return Usage(
        f'No remote is called "{name}"{did_you_mean(name, remotes.all)}.',
        f"{path} knows: {known}. To add one: remoter add NAME HOST",
    )


# --------------------------------------------------------------- what was last seen there
def last_kernel_info(remote: Remote) -> dict[str, Any] | None:
    """Return the content of the last `kernel_info_reply` from this remote; None if none is kept.

    Not that of another kernel, nor of a remote of this name with another host.
    """
    try:
        memory = json.loads(_kernel_info_path(remote.name).read_text(encoding="utf-8"))
        is_its_own = memory["of"] == _kernel_identity(remote)
        content = memory["content"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # a proxy starts without it, only with less to answer
    return content if is_its_own and isinstance(content, dict) else None


def remember_kernel_info(remote: Remote, content: dict[str, Any]) -> None:
    """Keep the content of a `kernel_info_reply` for the next start of a proxy."""
    memory = {"of": _kernel_identity(remote), "content": content}
    with contextlib.suppress(CannotWrite):  # a proxy starts without it, too
        write_private_file(_kernel_info_path(remote.name), json.dumps(memory))


def _kernel_identity(remote: Remote) -> list[str]:
    """Return what makes a kernel another one, with other features."""
    return [remote.host, remote.python, remote.kernel]


def _kernel_info_path(remote_name: str) -> Path:
    if not is_name(remote_name):  # it becomes part of a path
        raise RemoterError(f"{remote_name!r} is no remote's name.")
    return state_folder() / "kernel_info" / f"{remote_name}.json"


def remote_cwd(cwd: str, path_map: Mapping[str, str], folder: Path, home: Path) -> str:
    """Return the folder in which the kernel starts there.

    `folder`: the notebook's, here (absolute); `home`: the person's, here. Raises
    BadConfiguration if the notebook's folder has no counterpart there.
    """
    if cwd != NOTEBOOK_FOLDER:
        return cwd
    pairs = {_expand_home(here, home): there for here, there in (path_map or {HOME: HOME}).items()}
    fitting = [here for here in pairs if folder.is_relative_to(here)]
    if not fitting:
        raise BadConfiguration(
            f'cwd is "notebook", and nothing says where {folder} is there.',
            f'Add it to this remote: path_map = {{ "{folder.as_posix()}" = "~/a/folder" }}.',
        )
    here = max(fitting, key=lambda path: len(path.parts))
    inside = folder.relative_to(here)
    return str(PurePosixPath(pairs[here], *inside.parts))


def _expand_home(path: str, home: Path) -> Path:
    return home / path[2:] if path.startswith("~/") else home if path == HOME else Path(path)
