"""The notebooks of nbclient's own `test_run_all_notebooks`, there instead of here.

The notebooks and the options come out of nbclient's source distribution, fetched from the
package index into a cache. The yardstick is a local kernel that runs the same notebooks.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import copy
import importlib.metadata
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests import real_parts
from tests.real_sources import source_of

if TYPE_CHECKING:
    from pathlib import Path

    from nbformat import NotebookNode

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

NOTEBOOKS = 16
KERNEL_THERE = "remoter-notebooks"
KERNEL_HERE = "plain"
ENVIRONMENT = {"COLUMNS": "80", "LINES": "24", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def cases(folder: Path) -> dict[str, dict[str, Any]]:
    """Read which notebooks that test runs, with which options."""
    tree = ast.parse((folder / "tests/test_client.py").read_text())
    test = next(
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "test_run_all_notebooks"
    )
    (marker,) = (d for d in test.decorator_list if isinstance(d, ast.Call) and len(d.args) == 2)
    found: dict[str, dict[str, Any]] = {}
    assert isinstance(marker.args[1], ast.List)
    for case in marker.args[1].elts:
        # Some are pytest.param(name, options, marks=...).
        name, options = case.args[:2] if isinstance(case, ast.Call) else case.elts  # type: ignore[attr-defined]
        found[ast.literal_eval(name)] = ast.literal_eval(options)
    return found


def run(notebook: NotebookNode, options: dict[str, Any], folder: Path) -> NotebookNode:
    """Run a notebook as nbclient's test does, and return it with its outputs."""
    from nbclient import NotebookClient

    ran = copy.deepcopy(notebook)
    for cell in ran.cells:
        cell.pop("execution_count", None)
        cell["outputs"] = []
    client = NotebookClient(ran, resources={"metadata": {"path": str(folder)}}, **options)
    executed: NotebookNode = asyncio.run(client.async_execute())
    return executed


ADDRESS = re.compile(r"0x[0-9a-f]{7,16}")
PLACE = re.compile(r"ipykernel_\d+/\d+\.py|/(home|root|usr|tmp)[^\s:\"]*/")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def outputs(notebook: NotebookNode) -> list[Any]:
    """Return the outputs of all cells in the form in which nbclient's test compares them."""
    cells: list[Any] = []
    for cell in notebook.cells:
        said = [comparable(dict(output)) for output in cell.get("outputs", [])]
        cells.append((cell.get("execution_count"), joined(said)))
    return cells


def joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join texts that follow each other: ipykernel's timer cuts them where the machine is busy."""
    whole: list[dict[str, Any]] = []
    for output in outputs:
        name = output.get("name")
        if name is not None and whole and whole[-1].get("name") == name:
            whole[-1]["text"] += output["text"]
        else:
            whole.append(output)
    return whole


def comparable(output: dict[str, Any]) -> dict[str, Any]:
    """Leave out addresses, ids, colours and the form of base64, as nbclient's test does."""
    output.pop("metadata", None)
    if "text" in output:
        output["text"] = ADDRESS.sub("<address>", output["text"])
    data = dict(output.get("data", {}))
    if "text/plain" in data:
        data["text/plain"] = ADDRESS.sub("<address>", data["text/plain"])
    widget = "application/vnd.jupyter.widget-view+json"
    if widget in data:
        data[widget] = {**data[widget], "model_id": "<id>"}
    for kind, value in data.items():
        if isinstance(value, str) and kind.startswith("image/") and kind != "image/svg+xml":
            data[kind] = base64.b64decode(value)
    if data:
        output["data"] = data
    if "traceback" in output:
        output["traceback"] = [PLACE.sub("", COLOURS.sub("", line)) for line in output["traceback"]]
    return output


@pytest.fixture(scope="module")
def nbclient_source() -> Path:
    """The sources of nbclient, of the version that is installed here."""
    real_parts.real_part("nbclient")
    return source_of("nbclient", importlib.metadata.version("nbclient"))


@pytest.fixture(scope="module", autouse=True)
def _plain_kernel(here: JupyterHere, far: FarSide) -> None:
    """The same Python as a plain local kernel, under a name of its own."""
    folder = here.data / "kernels" / KERNEL_HERE
    folder.mkdir(parents=True)
    argv = [str(far.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "plain", "language": "python", "env": ENVIRONMENT}
    (folder / "kernel.json").write_text(json.dumps(spec))


NAMES = (
    "Other Comms.ipynb",
    "Clear Output.ipynb",
    "Empty Cell.ipynb",
    "Factorials.ipynb",
    "HelloWorld.ipynb",
    "Inline Image.ipynb",
    "Interrupt.ipynb",
    "JupyterWidgets.ipynb",
    "Skip Exceptions with Cell Tags.ipynb",
    "Skip Exceptions.ipynb",
    "Skip Execution with Cell Tag.ipynb",
    "SVG.ipynb",
    "Unicode.ipynb",
    "UnicodePy3.ipynb",
    "update-display-id.ipynb",
    "Check History in Memory.ipynb",
)


def test_all_of_them(nbclient_source: Path) -> None:
    """The sixteen notebooks that nbclient's test runs are the ones that run here."""
    assert set(cases(nbclient_source)) == set(NAMES)
    assert len(NAMES) == NOTEBOOKS


@pytest.mark.parametrize("name", NAMES)
def test_gives_what_a_local_kernel_gives(
    name: str, nbclient_source: Path, far: FarSide, here: JupyterHere, python_remote: dict[str, Any]
) -> None:
    """Each notebook has the outputs and the execution counts of a local run."""
    import nbformat

    options = cases(nbclient_source)[name]
    # nbclient keeps the history in memory by itself only where the kernel is called `python`.
    options["extra_arguments"] = ["--HistoryManager.hist_file=:memory:"]
    with far.folder() as folder:
        shutil.copytree(nbclient_source / "tests/files", folder, dirs_exist_ok=True)
        here.add_remote("notebooks", env=ENVIRONMENT, cwd=str(folder), **python_remote)
        notebook = nbformat.read(folder / name, 4)
        ours = run(notebook, {**options, "kernel_name": KERNEL_THERE}, folder)
        theirs = run(notebook, {**options, "kernel_name": KERNEL_HERE}, folder)
    assert outputs(ours) == outputs(theirs)
