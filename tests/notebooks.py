"""Notebooks that a test makes, and the commands that run them from top to bottom."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from tests.real_sshd import free_port, make_key

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

PARAMETERS = "parameters"  # the tag of the cell before which papermill puts its own
# Both kernels of a comparison have the same width, and read no profile of anybody's.
ENVIRONMENT = {"COLUMNS": "80", "LINES": "24", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str
    seconds: float


def command(*words: str | Path, folder: Path, seconds: float = 100.0) -> Ran:
    """Run a command of this Python's environment, without a terminal."""
    began = time.monotonic()
    program = Path(sys.executable).with_name(str(words[0]))
    ran = subprocess.run(
        [str(program), *map(str, words[1:])],
        check=False,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr, time.monotonic() - began)


def write(path: Path, cells: list[str], kernel: str, language: str = "python") -> Path:
    """Write a notebook; a cell that begins with `# parameters` is tagged so."""
    made = [new_code_cell(source) for source in cells]
    for cell in made:
        if cell.source.startswith(f"# {PARAMETERS}"):
            cell.metadata["tags"] = [PARAMETERS]
    notebook = new_notebook(cells=made)
    notebook.metadata["kernelspec"] = {"name": kernel, "display_name": "", "language": language}
    nbformat.write(notebook, path)
    return path


def read(path: Path) -> NotebookNode:
    """Read a notebook."""
    return nbformat.read(path, 4)


def code_cells(path: Path) -> list[NotebookNode]:
    """Read the code cells of a notebook, without what papermill writes between them."""
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def join_streams(notebook: NotebookNode) -> NotebookNode:
    """Join neighbouring outputs of one stream: where a kernel divides its text is chance."""
    for cell in notebook.cells:
        said: list[NotebookNode] = []
        for output in cell.get("outputs", []):
            is_stream = output.output_type == "stream"
            if is_stream and said and said[-1].get("name") == output.name:
                said[-1].text += output.text
            else:
                said.append(output)
        cell["outputs"] = said
    return notebook


def text(cell: NotebookNode) -> str:
    """Return what a cell has printed, and the values that it shows."""
    said = [
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
    ]
    return "".join(said)


def errors(notebook: NotebookNode) -> list[dict[str, Any]]:
    """Return the errors that a notebook shows."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if output.output_type == "error"]


def plain_spec(here: JupyterHere, far: FarSide) -> str:
    """Install a kernelspec of the far user's Python, to be run here; returns its name."""
    folder = here.data / "kernels/plain"
    folder.mkdir(parents=True, exist_ok=True)
    argv = [str(far.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "plain", "language": "python", "env": ENVIRONMENT}
    (folder / "kernel.json").write_text(json.dumps(spec))
    return "plain"


def bad_remotes(here: JupyterHere, sshd: RealSshd, good: dict[str, Any]) -> dict[str, str]:
    """Configure remotes with which no kernel comes to be; return what a person should read."""
    config = good["ssh_config"]
    key = make_key(here.folder / "another_key")
    # sshd's own lines come after these, and the first that is read counts.
    sshd.ssh_config(config, "closed", extra=f"Port {free_port()}")
    wrong = sshd.ssh_config(here.folder / "ssh_config_wrong", "wrong-key")
    wrong.write_text(wrong.read_text().replace(str(sshd.client_key), str(key)))
    here.add_remote("closed", **{**good, "host": "closed"})
    here.add_remote("wrong-key", **{**good, "host": "wrong-key", "ssh_config": wrong})
    here.add_remote("no-python", **{**good, "python": "/nowhere/python"})
    here.add_remote("no-kernel", kernel="julia", **good)
    return {
        "closed": "refuses connections at port",
        "wrong-key": "did not accept the key",
        "no-python": "There is no /nowhere/python",
        "no-kernel": "There is no kernelspec julia",
    }
