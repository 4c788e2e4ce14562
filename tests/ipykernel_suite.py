"""ipykernel's own tests, those that talk to a kernel over its client, against any kernel.

They start the kernel whose kernelspec is called `python3`, so they run with a JUPYTER_PATH in
which that is the kernel that is meant. They run in a pytest of their own, with its settings.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from tests.real_parts import run_quietly
from tests.real_sources import source_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

PASSED = ""
RUNS_WITHIN = 400.0  # seconds
ENDS_WITHIN = 100  # seconds, a single test
COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# Read by that pytest: what its settings take for granted and is of no use here, and a start
# that lasts until cells run. Some tests give a cell a second to begin; a proxy answers sooner
# than anybody has logged in.
CONFTEST = """
from jupyter_client import manager

start = manager.start_new_kernel

def start_and_compute(**options):
    kernel, client = start(**options)
    client.execute_interactive("", silent=True, timeout=60)
    return kernel, client

manager.start_new_kernel = start_and_compute

def pytest_addoption(parser):
    parser.addoption("--cov", action="store_true")

def pytest_configure(config):
    config.addinivalue_line("markers", "flaky: is tried again by a plugin that is not there")
"""

# The tests that cannot pass through a remote, each with the reason why.
CANNOT = {
    "test_kernel.py::test_save_history": (
        "the kernel is to write a file into a folder of the machine here"
    ),
    "test_kernel.py::test_parent_header_and_ident": (
        "the kernel's client is the evaluator, whose name in ZeroMQ the kernel sees; "
        "which front has asked is known to the evaluator alone"
    ),
}


def remote_kernel(
    here: JupyterHere, far: FarSide, remote: dict[str, Any], folder: Path
) -> list[str]:
    """Configure a remote for the suite; return how its proxy is started."""
    here.add_remote("suite", env=environment(folder), cwd=str(folder), **remote)
    front = ["-P", "-m", "remoter_kernel", "-f", "{connection_file}", "--remote", "suite"]
    return [sys.executable, *front]


def plain_kernel(far: FarSide) -> list[str]:
    """Return how the same Python's kernel is started here, without any of our code."""
    return [str(far.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]


def environment(folder: Path) -> dict[str, str]:
    """Return what both kernels find: one test names a profile by its path here."""
    return {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "IPYTHONDIR": str(folder)}


def outcomes(argv: list[str], files: Iterable[str], far: FarSide, folder: Path) -> dict[str, str]:
    """Run these files of the suite; return what failed of each test, `PASSED` where nothing did."""
    version = run_quietly(
        [str(far.python), "-c", "import importlib.metadata as m; print(m.version('ipykernel'))"],
        cwd="/",
    ).strip()
    source = folder.parent / f"{folder.name}-suite"
    shutil.copytree(source_of("ipykernel", version), source)
    try:
        (source / "conftest.py").write_text(CONFTEST)
        spec = source / "jupyter/kernels/python3/kernel.json"
        spec.parent.mkdir(parents=True)
        about: dict[str, Any] = {"argv": argv, "display_name": "meant", "language": "python"}
        about |= {"interrupt_mode": "message", "env": environment(folder)}
        spec.write_text(json.dumps(about))
        return _run(files, source, folder)
    finally:
        shutil.rmtree(source)


def _run(files: Iterable[str], source: Path, folder: Path) -> dict[str, str]:
    report = source / "report.xml"
    options = [f"--junitxml={report}", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    options += ["-o", "asyncio_default_fixture_loop_scope=function", "-o", f"timeout={ENDS_WITHIN}"]
    for plugin in ("rerunfailures", "xdist", "playwright", "anyio", "pytest_cov"):
        options += ["-p", f"no:{plugin}"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"tests/{file}" for file in files)],
        check=False,
        cwd=source,
        env=os.environ
        | environment(folder)
        | {"JUPYTER_PATH": str(source / "jupyter"), "PYTEST_ADDOPTS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUNS_WITHIN,
    )
    assert report.exists(), ran.stdout + ran.stderr
    return dict(_read(report))


def _read(report: Path) -> Iterable[tuple[str, str]]:
    for case in ET.parse(report).iter("testcase"):
        file = case.get("classname", "").rpartition(".")[2]
        trouble = [part for part in case if part.tag in {"failure", "error"}]
        if case.find("skipped") is None or trouble:
            said = "\n".join(f"{part.get('message')}\n{part.text}" for part in trouble)
            yield f"{file}.py::{case.get('name')}", COLOURS.sub("", said)


def surprises(outcomes: dict[str, str], files: Iterable[str], cannot: dict[str, str]) -> list[str]:
    """List what failed and should not have, and what passed against expectation."""
    due = {name for name in cannot if name.partition("::")[0] in files}
    failed = {name for name, trouble in outcomes.items() if trouble != PASSED}
    unknown = [f"{name} failed:\n{outcomes[name]}" for name in sorted(failed - due)]
    return unknown + [f"{name} does not fail any more" for name in sorted(due - failed)]
