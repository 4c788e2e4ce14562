"""Where a kernel starts there: a fixed folder, or the notebook's own, as it is called there (pure).

With `cwd = "notebook"` the folder of the notebook is looked up in `path_map`, whose longest
matching entry counts; without any, what is in the home here is in the home there.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from remoter_kernel.errors import BadConfiguration

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTEBOOK_FOLDER = "notebook"
HOME = "~"


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
