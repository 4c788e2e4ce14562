"""A host whose Python has nothing gets an environment of its own, and gives it back."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remoter_kernel.errors import RemoteLacks, Unreachable, Usage
from remoter_kernel.local.config.remotes import Remote, read_remotes
from remoter_kernel.local.launch.host_probe import probe_host
from remoter_kernel.local.launch.remote_venv import install_venv, remove_venv
from remoter_kernel.local.login.log_in import log_in_to
from tests.real_jupyter import MARK, THIS_RUN, started_kernel, wait_for
from tests.real_parts import lend_python, real_part
from tests.real_sshd import RealSshd
from tests.real_users import DEBIAN_PYTHON, FAR_USER, bare_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

VERSIONS = OLDEST, NEW = ("3.9", "3.13")
CLOSED = "http://127.0.0.1:9"  # the port of `discard`: nobody listens there
OWN = (".local/share/remoter-kernel", ".cache/remoter-kernel")  # the tool's folders in a home
LEAST = "a-kernel-of-another-language"  # an environment for it is made in seconds

pytestmark = pytest.mark.timeout(180)  # packages come from the index, and are compiled


@pytest.fixture(scope="module")
def bare() -> Iterator[FarSide]:
    """A user without a Python of its own."""
    real_part("sshd")
    real_part("root")
    real_part("uv")
    with bare_user(f"{FAR_USER}-bare") as user:
        yield user


@pytest.fixture(scope="module")
def lent() -> Iterator[Path]:
    """A folder that anybody can read, for Pythons."""
    with tempfile.TemporaryDirectory(prefix="remoter-lent-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def python_of(version: str, lent: Path) -> Path:
    """Return a Python of that version which has no package."""
    python = lent / version / "bin/python"
    return python if python.exists() else lend_python(version, lent)


def libraries_of(lent: Path) -> str:
    return ":".join(str(lent / version / "lib") for version in VERSIONS)


@contextlib.contextmanager
def a_host(bare: FarSide, folder: Path, lent: Path, **environment: str) -> Iterator[RealSshd]:
    """Let the bare user in, with these variables."""
    # Where IPython keeps its history is not ours to say, and not what is proved here.
    words = {
        MARK: THIS_RUN,
        "LD_LIBRARY_PATH": libraries_of(lent),
        "IPYTHONDIR": "/tmp/ipython-of-bare",
    }
    line = "SetEnv " + " ".join(f"{name}={value}" for name, value in (words | environment).items())
    with RealSshd(folder, user=bare.user, extra_config=line) as server:
        yield server
    subprocess.run(["rm", "-rf", words["IPYTHONDIR"]], check=True)


@pytest.fixture(scope="module")
def host(
    bare: FarSide, lent: Path, here: JupyterHere, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealSshd]:
    """A host that reaches a package index."""
    with a_host(bare, tmp_path_factory.mktemp("index"), lent) as server:
        server.ssh_config(here.folder / "ssh_config", "bare")
        yield server


@pytest.fixture(scope="module")
def island(
    bare: FarSide, lent: Path, here: JupyterHere, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealSshd]:
    """A host that reaches no index: not that of its settings, and no other one."""
    closed = {f"{name}_proxy": CLOSED for name in ("http", "https", "all")}
    settings = {"PIP_INDEX_URL": f"{CLOSED}/simple", "PIP_FIND_LINKS": "/nowhere"}
    with a_host(bare, tmp_path_factory.mktemp("island"), lent, **closed, **settings) as server:
        server.ssh_config(here.folder / "ssh_config", "island")
        yield server


def everything_in(home: Path) -> dict[str, str]:
    """Return the hash of each file in a home but for the tool's own folders."""
    found = {}
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if not name.startswith(OWN) and path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def environments(home: Path) -> list[str]:
    return sorted(path.name for path in (home / OWN[0]).glob("[vw]*-*"))


def add(here: JupyterHere, name: str, host: str, *words: object):
    config = str(here.folder / "ssh_config")
    return here.remoter(
        "add", name, host, "--ssh-config", config, "--install", *map(str, words), timeout=170
    )


# With the command ------------------------------------------------------------------------


def test_from_the_index_used_refused_and_given_back(host, bare, here):
    """The system's Python; made once, found again, not taken away under a session."""
    before = everything_in(bare.home)
    added = add(here, "own", "bare")
    assert added.returncode == 0, added
    assert "can run a kernel" in added.stdout
    folder = bare.home / OWN[0]
    assert read_remotes().all["own"].python == f"{folder}/venv-own/bin/python"
    assert folder.stat().st_mode & 0o777 == 0o700
    again = add(here, "own", "bare", "--replace")
    assert "is there already" in again.stderr
    with started_kernel("remoter-own") as kernel:
        kernel.client.execute_interactive("import sys; print(sys.prefix)", timeout=30)
        (session,) = [path.name for path in folder.glob("sessions/*") if _lives(path)]
        refused = here.remoter("remove", "own", "--purge")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"session {session} still runs in" in refused.stderr
        assert f"remoter stop {session}" in refused.stderr
        assert environments(bare.home) == ["venv-own", "venv-own.lock"]
        assert "own" in read_remotes().all
    removed = here.remoter("remove", "own", "--purge")
    assert removed.returncode == 0, removed
    assert environments(bare.home) == []
    assert "own" not in read_remotes().all
    assert everything_in(bare.home) == before


def _lives(session: Path) -> bool:
    return '"ended"' not in (session / "session.json").read_text()


@pytest.mark.parametrize("version", [OLDEST, pytest.param(NEW, marks=pytest.mark.slow)])
def test_where_no_index_is_reached(version, island, bare, here, lent):
    """Packages are collected here for that Python, and sent; its settings for pip do not count."""
    python = python_of(version, lent)
    name = f"island-{version}"
    before = everything_in(bare.home)
    added = add(here, name, "island", "--python", python, "--offline")
    assert added.returncode == 0, added
    assert f"Collecting packages for Python {version}, " in added.stderr
    assert "Sending" in added.stderr
    code = "import sys, pip; print(*sys.version_info[:2], sep='.', end=' in '); print(sys.prefix)"
    ran = here.remoter("run", name, "-c", code)
    prefix = bare.home / OWN[0] / f"venv-{name}"
    assert (ran.returncode, ran.stdout) == (0, f"{version} in {prefix}\n"), ran
    assert here.remoter("remove", name, "--purge").returncode == 0
    assert environments(bare.home) == []
    assert everything_in(bare.home) == before


def test_an_index_that_is_not_reached_is_told_with_what_to_do(island, bare, here):
    """The same host, asked without --offline: this is also the proof that it reaches none."""
    added = add(here, "island", "island")
    assert added.returncode == 4
    assert "island: the host does not reach a package index" in added.stderr
    assert "Add --offline" in added.stderr
    assert environments(bare.home) == []
    assert "island" not in read_remotes().all


def test_what_contradicts_itself_is_refused_before_any_login(here):
    for words in (["--offline"], ["--install", "--no-check"]):
        ran = here.remoter("add", "x", "nowhere.invalid", *words)
        assert ran.returncode == 2
        assert "--install" in ran.stderr


def test_a_purge_of_what_has_no_environment_forgets_the_remote_all_the_same(host, here):
    here.add_remote("plain", "bare", ssh_config=here.folder / "ssh_config")
    removed = here.remoter("remove", "plain", "--purge")
    assert removed.returncode == 0, removed
    assert "There was no environment of its own" in removed.stdout
    assert "plain" not in read_remotes().all


# Step by step ----------------------------------------------------------------------------


class Heard:
    """Remembers the steps, and may do something at one of them."""

    def __init__(self, at_file: int = 0, then=lambda: None) -> None:
        self.steps: list[str] = []
        self.files = 0
        self.pieces = 0
        self._at, self._then = at_file, then

    def step(self, text: str) -> None:
        self.steps.append(text)

    def sending(self, files: int, _size: int) -> None:
        self.files = files

    def sent(self, _size: int) -> None:
        self.pieces += 1
        if self.pieces == self._at:
            self._then()


def a_remote(here: JupyterHere, alias: str, python: str = "") -> Remote:
    config = here.folder / "ssh_config"
    return Remote("small", alias, kernel=LEAST, ssh_config=config, python=python)


def install(remote: Remote, heard: Heard | None = None, *, is_offline: bool = True) -> str:
    with contextlib.closing(log_in_to(remote)) as login:
        around = probe_host(login, remote.python)
        return install_venv(login, remote, around, heard or Heard(), is_offline=is_offline)


def purge(remote: Remote) -> bool:
    with contextlib.closing(log_in_to(remote)) as login:
        return remove_venv(login, remote)


def test_a_cut_leaves_whole_files_and_the_next_try_goes_on(island, bare, here):
    """What was sent whole is not sent twice; what was not is no wheel."""
    remote = a_remote(here, "island")
    first = Heard(5, island.cut_all)
    with pytest.raises(Unreachable, match="what has arrived whole is not sent twice"):
        install(remote, first)
    wheels = {path.name for path in (bare.home / OWN[0] / "wheels-small").iterdir()}
    whole = {name for name in wheels if name.endswith(".whl")}
    assert 0 < len(whole) < first.files
    assert len(wheels - whole) <= 1
    second = Heard()
    assert install(remote, second) == f"{bare.home}/{OWN[0]}/venv-small/bin/python"
    assert second.files == first.files - len(whole)
    assert environments(bare.home) == ["venv-small", "venv-small.lock"]


def test_a_whole_one_is_found_again(island, bare, here):
    remote = a_remote(here, "island")
    install(remote)
    made = (bare.home / OWN[0] / "venv-small").stat().st_ino
    heard = Heard()
    install(remote, heard)
    assert (bare.home / OWN[0] / "venv-small").stat().st_ino == made
    (step,) = heard.steps
    assert "is there already" in step


def test_a_half_made_one_is_made_anew_also_while_a_login_is_cut(island, bare, here):
    """The stamp is written last. What a cut login has left running is waited for."""
    remote = a_remote(here, "island")
    place = bare.home / OWN[0] / "venv-small"
    (place / "remoter-kernel.json").unlink(missing_ok=True)
    (place / "junk").write_text("")

    def cut_while_it_is_made() -> None:
        wait_for(lambda: place.exists() and not (place / "junk").exists(), seconds=60)
        wait_for((place / "bin/python").exists)
        island.cut_all()

    heard = Heard()
    cutter = threading.Thread(target=cut_while_it_is_made)
    cutter.start()
    with pytest.raises(Unreachable, match="what is half-made is made anew"):
        install(remote, heard)
    cutter.join()
    assert "anew" in heard.steps[0]
    assert install(remote) == f"{place}/bin/python"
    assert (place / "remoter-kernel.json").exists()
    assert environments(bare.home) == ["venv-small", "venv-small.lock"]


def test_what_runs_in_it_and_is_no_session_is_named_by_its_number(island, bare, here, lent):
    """A console of the person's own, say."""
    remote = a_remote(here, "island")
    python = install(remote)
    command = [python, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    options = {**bare.ids, "env": {"LD_LIBRARY_PATH": libraries_of(lent)}}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
        assert process.stdout.readline() == b"up\n"
        with pytest.raises(Usage, match=rf"process {process.pid} there still runs in"):
            purge(remote)
        process.kill()
    assert purge(remote)
    assert not purge(remote)


def test_a_python_without_ensurepip_is_sent_a_pip(host, bare, here, lent):
    """As Debian's is without python3-venv; the index is reached for the rest."""
    python = python_of("3.13", lent)
    (lent / "3.13/lib/python3.13/ensurepip").rename(lent / "ensurepip")
    heard = Heard()
    try:
        remote = a_remote(here, "bare", python=str(python))
        install(remote, heard, is_offline=False)
    finally:
        (lent / "ensurepip").rename(lent / "3.13/lib/python3.13/ensurepip")
    assert heard.files == 1
    assert purge(remote)


def test_a_python_without_venv_is_told(island, here, lent):
    python = python_of("3.13", lent)
    (lent / "3.13/lib/python3.13/venv").rename(lent / "venv")
    try:
        with pytest.raises(RemoteLacks, match=r"has no venv module.*python3-venv"):
            install(a_remote(here, "island", python=str(python)))
    finally:
        (lent / "venv").rename(lent / "3.13/lib/python3.13/venv")


def test_no_python_at_all_is_told(island, here):
    with pytest.raises(RemoteLacks, match="there is no Python /nowhere/python that runs"):
        install(a_remote(here, "island", python="/nowhere/python"))


def test_a_python_that_dies_is_told_with_its_signal(island, bare, here):
    """One that answers a question, and cannot stand a program."""
    python = bare.home / "crashes"
    lines = [
        f'case "$*" in *-c*) {DEBIAN_PYTHON} "$@" | sed "s#{DEBIAN_PYTHON}#{python}#";;',
        "*) kill -SEGV $$;; esac",
    ]
    python.write_text("#!/bin/sh\n" + "\n".join(lines))
    python.chmod(0o755)
    bare.give(python)
    try:
        with pytest.raises(RemoteLacks, match="died of signal 11"):
            install(a_remote(here, "island", python=str(python)))
    finally:
        python.unlink()


@contextlib.contextmanager
def a_disk(bare: FarSide, options: str) -> Iterator[None]:
    """Mount something in the place of the tool's folder."""
    folder = bare.home / OWN[0]
    ids = f"uid={bare.ids['user']},gid={bare.ids['group']}"
    command = ["mount", "-t", "tmpfs", "-o", f"mode=700,{ids},{options}", "tmpfs", str(folder)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


BAD_DISKS = {
    "too small for what is sent": ("size=2m", "No space left", "Make room"),
    "too small for what is installed": ("size=8m", "No space left", "Make room"),
    "read-only": ("ro", "Read-only file system", "Make room"),
    "noexec": ("noexec", "may not be executed", "noexec"),
}


@pytest.mark.parametrize("kind", BAD_DISKS)
def test_a_bad_disk_is_told(kind, island, bare, here):
    """And what was half-made is taken away: it would take the room that is missing."""
    options, what, advice = BAD_DISKS[kind]
    with a_disk(bare, options):
        with pytest.raises(RemoteLacks) as caught:
            install(a_remote(here, "island"))
        assert "venv-small" not in environments(bare.home)
    assert what in caught.value.what
    assert advice in caught.value.advice


def test_nothing_of_the_old_home_has_changed(bare):
    """After all of the above."""
    assert environments(bare.home) == []
    assert set(everything_in(bare.home)) == {
        path.name for path in Path("/etc/skel").iterdir() if path.is_file()
    }
