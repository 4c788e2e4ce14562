"""The oldest and the newest Python that a remote may have: 3.9 with ipykernel 6, and 3.13.

They lie in our own home, so the login is our own; a machine without them skips loudly.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real_jupyter import started_kernel
from tests.real_parts import old_python, real_part, run_quietly
from tests.real_sshd import RealSshd
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere

KERNELS = {"3.9": "ipykernel<7", "3.13": "ipykernel"}

pytestmark = pytest.mark.timeout(240)  # the first run on a machine installs both


def environment(version: str) -> Path:
    """Return the Python of a virtual environment of that version, made once per machine."""
    python = old_python(version)
    name = f"remoter-tests-python-{version}-{os.getuid()}"
    folder = Path(tempfile.gettempdir()) / name
    if not folder.exists():
        # Made beside and moved would break its paths: the last step marks it as complete.
        shutil.rmtree(folder, ignore_errors=True)
        try:
            run_quietly([str(python), "-m", "venv", str(folder)])
            pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q"]
            run_quietly([*pip, KERNELS[version]])
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder / "bin/python"


@pytest.fixture(scope="module")
def our_own_login(here: JupyterHere, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ssh_config with a host `own`, where we log in as ourselves."""
    from tests.real_jupyter import MARK, THIS_RUN

    real_part("sshd")
    folder = tmp_path_factory.mktemp("own")
    with RealSshd(folder, extra_config=f"SetEnv {MARK}={THIS_RUN}") as server:
        yield server.ssh_config(folder / "ssh_config", "own")


@pytest.mark.parametrize("version", KERNELS)
def test_a_python_of_that_version(version: str, here: JupyterHere, our_own_login: Path) -> None:
    """It starts a session, says what it is, streams, fails, asks, interrupts and restarts."""
    python = environment(version)
    name = f"python-{version}"
    spec = here.add_remote(name, host="own", ssh_config=our_own_login, python=str(python))
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        assert shown(talk, "import sys; '%d.%d' % sys.version_info[:2]") == repr(version)
        major = shown(talk, "import ipykernel; ipykernel.version_info[0]")
        assert major == "6" if version == "3.9" else int(major) >= 7
        said = talk.case(lambda talk: talk.run("for i in range(50): print(i, flush=True)"))
        (stream,) = [m for m in said["iopub under request 0"] if m["type"] == "stream"]
        assert stream["content"]["text"] == "".join(f"{i}\n" for i in range(50))
        said = talk.case(lambda talk: talk.run("1 / 0"))
        assert said["shell under request 0"][0]["content"]["ename"] == "ZeroDivisionError"
        said = talk.case(lambda talk: talk.run("input('?')", answers=["yes"]))
        (result,) = [m for m in said["iopub under request 0"] if m["type"] == "execute_result"]
        assert result["content"]["data"]["text/plain"] == "'yes'"

        def interrupted(talk: Talk) -> None:
            cell = talk.queue("import time; print('started', flush=True); time.sleep(60)")
            talk.until_said("started")
            kernel.manager.interrupt_kernel()
            talk.done(cell)

        said = talk.case(interrupted)
        assert said["shell under request 0"][0]["content"]["ename"] == "KeyboardInterrupt"
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=30)
        assert shown(Talk(kernel.client), "'i' in globals()") == "False"


@pytest.mark.parametrize("version", KERNELS)
def test_the_command_finds_it_good(version: str, here: JupyterHere, our_own_login: Path) -> None:
    """`remoter check` goes all the way on that Python."""
    name = f"python-{version}"
    python = str(environment(version))
    here.add_remote(name, host="own", ssh_config=our_own_login, python=python)
    checked = here.remoter("check", name)
    assert checked.returncode == 0, checked


@pytest.mark.parametrize("version", KERNELS)
def test_it_sends_and_receives_files(
    version: str, here: JupyterHere, our_own_login: Path, tmp_path: Path
) -> None:
    """Both ends of a transfer run on that Python."""
    name = f"python-{version}"
    python = str(environment(version))
    here.add_remote(name, host="own", ssh_config=our_own_login, python=python)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a").write_bytes(os.urandom(3_000_000))
    (tmp_path / "src/b").symlink_to("a")
    (tmp_path / "src/c").symlink_to("/etc")
    for words in (("put", "src", "there/"), ("put", "src", "there/"), ("get", "there/src", "back")):
        verb, source, to = words
        source = str(tmp_path / source)
        ran = here.remoter(verb, name, source, f"{tmp_path}/{to}")
        assert ran.returncode == 0, ran
    assert (tmp_path / "back/b").read_bytes() == (tmp_path / "src/a").read_bytes()
    assert here.remoter("get", name, f"{tmp_path}/no*", str(tmp_path)).returncode == 4


def shown(talk: Talk, code: str) -> str:
    """Return what a cell shows as its result."""
    said = talk.case(lambda talk: talk.run(code))["iopub under request 0"]
    (result,) = [m for m in said if m["type"] == "execute_result"]
    return str(result["content"]["data"]["text/plain"])
