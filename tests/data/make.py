"""Makes what this folder keeps of an older version: `python -m tests.data.make COMMIT`.

The version runs out of a checkout of its commit, as a person would use it: a proxy, a login to a
user `ada` on `gpu-box`, some cells, a lost connection, the end. What lies in her home afterwards,
and on this side, is kept. Needs root, git, sshd, and no user of that name.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from jupyter_client.connect import write_connection_file

from tests.real_jupyter import client_of, wait_for
from tests.real_sshd import Place, RealSshd
from tests.real_users import throw_away_user
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_users import FarSide

DATA = Path(__file__).parent
USER, HOST = "ada", "gpu-box"
NO_BOOT = "00000000-0000-0000-0000-000000000000"  # in place of this machine's
UNDER_ANOTHER_NAME = ("unshare", "--uts", "sh", "-ec", f'hostname {HOST}; exec "$@"', "sh")
PLOT = """from IPython.display import display
display({"text/plain": "<a plot>", "text/html": "<b>a plot</b>"}, raw=True)"""
CELLS = {  # by the ids that they have in the notebook
    "text": "import sys\nprint('hello')\nprint('beware', file=sys.stderr)\n6 * 7",
    "plot": PLOT,
    "error": "1 / 0",
    "night": "for i in range(200):\n    print('line', i)",
}


def main(commit: str) -> None:
    """Make everything that is kept of one version."""
    with contextlib.suppress(KeyError):
        sys.exit(f"There is a user {pwd.getpwnam(USER).pw_name} here; this would remove it.")
    with tempfile.TemporaryDirectory(prefix="remoter-data-") as name, throw_away_user(USER) as ada:
        folder = Path(name)
        checkout(commit, folder / "checkout")
        (ada.home / "venv").symlink_to(ada.python.parents[1])
        (folder / "sshd").mkdir()
        place = Place(enter=UNDER_ANOTHER_NAME)
        with RealSshd(folder / "sshd", user=USER, place=place) as sshd, old_version(folder, sshd):
            record(folder, ada, sshd)
        keep(commit, ada, folder / "state")


def checkout(commit: str, folder: Path) -> None:
    """Put a commit's files there."""
    archive = subprocess.run(["git", "archive", commit], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")


@contextlib.contextmanager
def old_version(folder: Path, sshd: RealSshd) -> Iterator[None]:
    """Let Python and Jupyter find the older version, and it a remote and a state of its own."""
    config = sshd.ssh_config(folder / "ssh_config", HOST)
    remote = {"host": HOST, "python": "~/venv/bin/python", "ssh_config": str(config)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in remote.items()]
    (folder / "remotes.toml").write_text("\n".join([f"[remotes.{HOST}]", *lines, ""]))
    (folder / "home").mkdir()
    before = dict(os.environ)
    words = {"HOME": "home", "REMOTER_CONFIG": "remotes.toml", "REMOTER_STATE": "state"}
    os.environ.update({key: str(folder / name) for key, name in words.items()})
    os.environ.update(PYTHONPATH=str(folder / "checkout"), USER=USER, LOGNAME=USER)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def record(folder: Path, ada: FarSide, sshd: RealSshd) -> None:
    """Run the cells of a notebook, lose the connection, ask for a restart, come back, end it."""
    notebook = ada.home / "night.ipynb"
    cells = [nbformat.v4.new_code_cell(code, id=name) for name, code in CELLS.items()]
    notebook.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    file = folder / "kernel.json"
    write_connection_file(str(file), key=secrets.token_hex(16).encode())
    command = [sys.executable, "-P", "-m", "remoter_kernel", "-f", str(file), "--remote", HOST]
    environment = {**os.environ, "JPY_SESSION_NAME": str(notebook)}
    with (
        subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, cwd="/") as proxy,
        client_of(file) as client,
    ):
        talk = Talk(client)
        for name, code in CELLS.items():
            talk.case(partial(Talk.run, code=code, metadata={"cellId": name}))
        sshd.stop_listening()
        client.shutdown(restart=True)
        proxy.wait(20)
    (waits,) = (folder / "state").glob("orders/*/*.json")
    shutil.copy(waits, folder / "waits.json")  # what follows may carry it out, and forget it
    sshd.start()
    remoter("sessions", HOST)
    remoter("stop", "--all", HOST)
    waits.parent.mkdir(exist_ok=True)
    shutil.copy(folder / "waits.json", waits)
    for keeper in (folder / "state").glob("keepers/*.json"):
        os.kill(json.loads(keeper.read_text())["pid"], signal.SIGTERM)


def remoter(*words: str) -> None:
    """Run the older version's own command."""
    project = Path(os.environ["PYTHONPATH"]) / "pyproject.toml"
    place = tomllib.loads(project.read_text())["project"]["scripts"]["remoter"]
    module, function = place.split(":")
    code = f"import sys, {module} as it; sys.exit(it.{function}())"
    subprocess.run([sys.executable, "-P", "-c", code, *words], check=True, cwd="/")


def keep(commit: str, ada: FarSide, state: Path) -> None:
    """Copy what the session has left there, and the state of this side."""
    (archive,) = ada.home.rglob("*.pyz")
    shutil.copyfile(archive, DATA / f"evaluator-{commit}.pyz")
    (session,) = (path.parent for path in ada.home.rglob("journal"))
    wait_for(lambda: b'"ended"' in (session / "session.json").read_bytes(), what="it is over")
    there = DATA / f"session-{commit}"
    shutil.rmtree(there, ignore_errors=True)
    there.mkdir()
    for file in session.iterdir():
        if file.is_file():
            shutil.copyfile(file, there / file.name)
    door = json.loads((there / "door.json").read_text())
    (there / "door.json").write_text(json.dumps({**door, "boot": NO_BOOT}))
    here = DATA / f"state-{commit}"
    shutil.rmtree(here, ignore_errors=True)
    for path in ("laptop", "kernel_info", "orders", "sessions"):
        for file in sorted(state.glob(f"{path}/**/*.json")) or [state / path]:
            (here / file.relative_to(state)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, here / file.relative_to(state))


if __name__ == "__main__":
    main(*sys.argv[1:])
