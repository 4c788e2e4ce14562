"""The script that looks around, run by real shells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from remoter_kernel.local.launch.host_probe import HostProbeResult, parse_probe, probe_script
from tests.real_parts import lack


def look(
    home, *, python="", shell="sh", path=os.defpath, is_own=True, environment=None
) -> HostProbeResult:
    ran = subprocess.run(
        [shell, "-c", "sh -s"],
        input=probe_script(python, is_own=is_own).encode(),
        env={"HOME": str(home), "PATH": path, "SHELL": "/bin/sh", **(environment or {})},
        capture_output=True,
        check=False,
    )
    return parse_probe(ran.stdout, ran.stderr)


def imitate(path, version="3, 12, 1"):
    """Put something there that answers like a Python of another version."""
    path.parent.mkdir(parents=True)
    path.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.version_info = ({version})\n"
        f"sys.executable = sys.prefix = {str(path)!r}\n"
        "code, sys.argv = sys.argv[4], sys.argv[4:]\n"
        "exec(code)\n"
    )
    path.chmod(0o755)


def test_a_named_python_is_the_only_one_looked_at(tmp_path):
    around = look(tmp_path, python=sys.executable)
    assert around.home == str(tmp_path)
    (python,) = around.pythons
    assert python.path == sys.executable
    assert python.version == ".".join(map(str, sys.version_info[:3]))
    assert python.missing == ()
    assert python.has_ipykernel
    assert python.kernel("python3").language == "python"


@pytest.mark.parametrize("is_own", [True, False])
def test_the_default_kernel_of_a_named_python_is_its_own(tmp_path, is_own):
    """`ipykernel install --user` of another environment does not change that."""
    folder = tmp_path / ".local/share/jupyter/kernels/python3"
    folder.mkdir(parents=True)
    other = {"argv": ["/other/bin/python"], "display_name": "Other", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(other))
    # A Python that Jupyter does not take for the person's own environment, as a lent one.
    path, environment = sys.executable, {"JUPYTER_PREFER_ENV_PATH": "0"}
    (python,) = look(tmp_path, python=path, is_own=is_own, environment=environment).pythons
    assert python.other_interpreter("python3") == ("" if is_own else "/other/bin/python")


def test_modules_that_lie_in_the_home_are_no_modules_of_that_python(tmp_path, monkeypatch):
    """Where the login begins there may be a `json.py` or a `queue.py`, as in any folder."""
    for name in ("json", "queue", "zmq"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the folder')")
    monkeypatch.chdir(tmp_path)
    (python,) = look(tmp_path, python=sys.executable).pythons
    assert python.missing == ()


def test_a_named_python_may_begin_with_the_home_and_hold_spaces(tmp_path):
    imitate(tmp_path / "my envs" / "it's" / "python")
    (python,) = look(tmp_path, python="~/my envs/it's/python").pythons
    assert python.version == "3.12.1"


def test_a_python_that_is_not_there_is_not_found(tmp_path):
    assert look(tmp_path, python="/nowhere/python").pythons == ()
    assert look(tmp_path, python="$(touch owned); `touch owned`").pythons == ()
    assert not list(tmp_path.iterdir())


PLACES = [
    ".venv/bin/python",
    "venvs/torch/bin/python",
    "miniforge3/bin/python",
    "miniforge3/envs/a/bin/python",
    ".pyenv/versions/3.12.1/bin/python",
]


def test_environments_are_found_where_people_keep_them(tmp_path):
    for place in PLACES:
        imitate(tmp_path / place)
    found = [python.path for python in look(tmp_path).pythons]
    assert [path for path in found if path.startswith(str(tmp_path))] == [
        str(tmp_path / place) for place in PLACES
    ]


def test_something_that_is_no_python_is_passed_over(tmp_path):
    imitate(tmp_path / ".venv/bin/python")
    (tmp_path / ".venv/bin/python").write_text("#!/bin/sh\necho hello; exit 3\n")
    (tmp_path / "venvs/x/bin/python").mkdir(parents=True)
    assert all(str(tmp_path) not in python.path for python in look(tmp_path).pythons)


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh", "tcsh", "fish"])
def test_any_login_shell_can_start_it(shell, tmp_path):
    if shutil.which(shell) is None:
        lack(f"no {shell} here", f"apt-get install -y --no-install-recommends {shell}")
    assert look(tmp_path, shell=shell, python=sys.executable).pythons
