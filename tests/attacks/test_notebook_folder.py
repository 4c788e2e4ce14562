"""A folder that came from a stranger: whoever opens a notebook in it runs nothing of it here."""

from __future__ import annotations

import ast
import ensurepip
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.local.config.remotes import Remote, write_remote
from tests.real_jupyter import started_kernel, wait_for
from tests.real_parts import real_part, run_quietly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere

ROOT = Path(__file__).parents[2]
PACKAGED = ROOT / "kernelspec"
# Modules of Python, of packages that the proxy needs, and what is started by its name.
NAMES = [
    *("argparse", "email", "hashlib", "json", "logging", "queue", "random", "secrets", "socket"),
    *("token", "typing", "uuid", "jupyter_client", "jupyter_console", "paramiko", "pip"),
    *("platformdirs", "remoter_kernel", "tomlkit", "traitlets", "zmq"),
]
NOWHERE: dict[str, Any] = {
    "host": "nobody@127.0.0.1:1",
    "local": "never",
}  # nothing listens at that port
OLD = ("-m", "remoter_kernel", "-f", "{connection_file}", "--remote")  # without -P


class Folder:
    """A stranger's folder; each of its modules leaves a file elsewhere when it is imported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = path.with_name(f"{path.name}-has-run")
        self._seen.mkdir()
        path.mkdir()

    def add(self, *names: str) -> Folder:
        for name in names:
            (self.path / f"{name}.py").write_text(f"open({str(self._seen / name)!r}, 'w').close()")
        return self

    @property
    def has_run(self) -> list[str]:
        return sorted(path.name for path in self._seen.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "downloaded").add(*NAMES)


def open_notebook(spec: str, folder: Path) -> dict[str, Any]:
    """Start a kernel in a folder, as Jupyter does, and run a cell; return the error in it."""
    with started_kernel(spec, cwd=str(folder)) as kernel:
        reply = kernel.client.execute_interactive(
            "1", allow_stdin=False, output_hook=lambda _message: None, timeout=60
        )
        return reply["content"]


def was_not_reached(content: dict[str, Any]) -> bool:
    """Say whether a cell got the sentence of a proxy and a keeper that work."""
    return content["status"] == "error" and "127.0.0.1" in content["evalue"]


def run_in(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ------------------------------------------------------------------------------ a notebook


def test_opening_a_notebook_runs_nothing_of_its_folder(here: JupyterHere, folder: Folder):
    """A cloned repository has a `json.py`: opening its notebook shall run that."""
    spec = here.add_remote("strange", **NOWHERE)
    try:
        content = open_notebook(spec, folder.path)
    finally:
        assert folder.has_run == []
    assert was_not_reached(content)


def test_neither_does_the_packaged_kernelspec(
    here: JupyterHere, folder: Folder, tmp_path: Path, monkeypatch
):
    """The same with the kernelspec that the wheel installs, which names no remote."""
    write_remote(Remote("packaged", **NOWHERE), make_default=True, replace=True)
    shutil.copytree(PACKAGED, tmp_path / "kernels/remoter")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))  # ahead of what is installed here
    try:
        content = open_notebook("remoter", folder.path)
    finally:
        assert folder.has_run == []
    assert was_not_reached(content)


@pytest.mark.parametrize("path", [":/opt/lib", ".", "sub:/opt/lib", "/opt/lib:"])
def test_a_relative_python_path_leads_nowhere(
    here: JupyterHere, folder: Folder, path: str, monkeypatch
):
    """A shell's start file says `PYTHONPATH=$PYTHONPATH:/opt/lib`: to Python that is the folder."""
    spec = here.add_remote("pathless", **NOWHERE)
    (folder.path / "remoter_kernel.py").unlink()  # that runs instead of ours: nobody could tell
    shutil.copytree(folder.path, folder.path / "sub")
    monkeypatch.setenv("PYTHONPATH", path)
    try:
        content = open_notebook(spec, folder.path)
    finally:
        assert folder.has_run == []
    assert was_not_reached(content)


# ------------------------------------------------------------------------------ old kernelspecs


def test_a_proxy_that_was_started_without_the_option_ends_and_says_why(folder: Folder):
    """An earlier version wrote the kernelspec: its command line lacks -P."""
    (folder.path / "remoter_kernel.py").unlink()  # that runs instead of ours: nobody could tell
    words = [word.format(connection_file="none") for word in OLD]
    ran = run_in(folder.path, *words, "box")
    assert folder.has_run == []
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr == (
        f"remoter: this kernel was started without -P, so Python files of {str(folder.path)!r} "
        "could run on this machine. It has ended before that. `remoter check box` puts -P into "
        "the kernelspec; then start the kernel again.\n"
    )


@pytest.mark.parametrize(
    ("options", "environment"), [(["-P"], {}), (["-I"], {}), ([], {"PYTHONSAFEPATH": "1"})]
)
def test_each_way_to_start_it_safely_will_do(folder: Folder, options, environment):
    """Whoever has made Python safe in another way than ours is not turned away."""
    ran = run_in(folder.path, *options, "-m", "remoter_kernel", "--help", **environment)
    assert (ran.returncode, folder.has_run) == (0, [])


def test_old_kernelspecs_are_named_and_mended(here: JupyterHere, folder: Folder):
    """Kernelspecs that are there, edited by hand, stay as they are but for the option."""
    spec = here.add_remote("old", **NOWHERE)
    file = here.data / "kernels" / spec / "kernel.json"
    about = json.loads(file.read_text())
    about |= {"argv": [sys.executable, "-X", "dev", *OLD, "old"], "env": {"MINE": "ö"}}
    file.write_text(json.dumps(about))
    listed = here.remoter("list", "--json")
    assert json.loads(listed.stdout)["unsafe_kernelspecs"] == [spec]
    assert f"files of a notebook's folder run on this machine: {spec}." in listed.stderr
    checked = here.remoter("check", "old")
    assert checked.returncode == 3  # nobody is there; that is another matter
    assert f"Put -P into {spec}: " in checked.stderr
    about["argv"] = [sys.executable, "-X", "dev", "-P", *OLD, "old"]
    assert json.loads(file.read_text()) == about
    assert json.loads(here.remoter("list", "--json").stdout)["unsafe_kernelspecs"] == []
    assert was_not_reached(open_notebook(spec, folder.path))
    assert folder.has_run == []


def test_adding_a_remote_mends_those_of_the_others(here: JupyterHere):
    """A remote is added after an upgrade: the kernelspecs of the others are mended, too."""
    spec = here.add_remote("older", **NOWHERE)
    file = here.data / "kernels" / spec / "kernel.json"
    file.write_text(json.dumps({"argv": [sys.executable, *OLD, "older"], "display_name": "x"}))
    added = here.remoter("add", "newer", "nobody@127.0.0.1:1", "--no-check")
    assert added.returncode == 0
    assert f"Put -P into {spec}: " in added.stderr
    assert json.loads(file.read_text())["argv"] == [sys.executable, "-P", *OLD, "older"]


# ------------------------------------------------------------------------------ what goes on


def environment_in(place: Path) -> str:
    """Make a virtual environment that has what ours has; return its Python."""
    run_quietly([sys.executable, "-m", "venv", "--without-pip", str(place)])
    python = str(place / "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run_quietly([python, "-c", code], cwd="/").strip())
    lines = [sysconfig.get_path("purelib"), str(ROOT)]
    (packages / "ours.pth").write_text("\n".join(lines) + "\n")
    return python


def kernelspec_by(python: str, name: str) -> str:
    """Let that Python write a remote and its kernelspec."""
    words = ["add", name, NOWHERE["host"], "--no-check", "--replace"]
    code = "import sys; from remoter_kernel.cli.main import main; main()"
    run_quietly([python, "-P", "-c", code, *words], cwd="/")
    return f"remoter-{name}"


@pytest.fixture(params=["its folder", "the home"])
def place(request, tmp_path: Path) -> Iterator[Path]:
    """Where a notebook lies, and where an environment is made: the folder, and one in it."""
    place = Path.home() if request.param == "the home" else tmp_path / "project"
    place.mkdir(exist_ok=True)
    yield place
    shutil.rmtree(place / ".venv", ignore_errors=True)


def test_an_environment_beside_the_notebook_goes_on_working(here: JupyterHere, place: Path):
    """What is installed below the notebook's folder was put there by the person."""
    python = environment_in(place / ".venv")
    assert was_not_reached(open_notebook(kernelspec_by(python, "beside"), place))


def test_a_notebook_in_a_checkout_goes_on_working(here: JupyterHere):
    """The package is installed editable, and its own folder is that of the notebook."""
    assert was_not_reached(open_notebook(kernelspec_by(sys.executable, "checkout"), ROOT))


# ------------------------------------------------------------------------------ commands


def attached_session(here: JupyterHere) -> str:
    """Return the session of `attached` that has a client; "" if there is none."""
    found = json.loads(here.remoter("sessions", "attached", "--json").stdout)["sessions"]
    return next((str(each["id"]) for each in found if each["fronts"]), "")


def test_attach_runs_nothing_of_the_folder(
    here: JupyterHere, folder: Folder, python_remote: dict[str, Any]
):
    """`remoter attach` in such a folder: the console and its kernel begin there, too."""
    real_part("jupyter-console")
    spec = here.add_remote("attached", on_shutdown="keep", **python_remote)
    with started_kernel(spec) as kernel:
        kernel.client.execute_interactive("1", timeout=60)
        try:
            # The session writes down who is there up to a second late.
            session = wait_for(lambda: attached_session(here), what="its session with a client")
            ran = here.remoter("attach", f"attached/{session}", cwd=folder.path)
        finally:
            assert here.remoter("stop", "--all", "attached").returncode == 0
    assert folder.has_run == []
    assert "Jupyter console" in ran.stdout, ran  # stdin has ended: so has the console


COLLECT = """
from remoter_kernel.local.launch.wheelhouse import Target, collect_wheels
(wheel,) = collect_wheels(Target("3.12", "x86_64", "glibc", (2, 36)), ["wanted"])
print(wheel.name)
"""


def make_wheel(folder: Path, version: str) -> None:
    """Make a package called `wanted`, which has nothing in it."""
    about = f"wanted-{version}.dist-info"
    with zipfile.ZipFile(folder / f"wanted-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: wanted\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{about}/RECORD", "")


def test_collecting_packages_heeds_nothing_of_the_folder(
    here: JupyterHere, folder: Folder, tmp_path: Path
):
    """`remoter add --offline` in such a folder: its pip.py runs, or its uv.toml chooses."""
    real_part("uv")
    (pip,) = Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl")
    links = tmp_path / "links"
    links.mkdir()
    for version in ("1.0", "2.0"):
        make_wheel(links, version)
    (folder.path / "uv.toml").write_text('constraint-dependencies = ["wanted<2"]\n')
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PYTHONPATH": str(pip)}
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "UV_CACHE_DIR": str(tmp_path / "uv")}
    ran = run_in(folder.path, "-P", "-c", COLLECT, **settings, **cache)
    assert folder.has_run == []
    assert ran.stdout == "wanted-2.0-py3-none-any.whl\n", ran.stderr


def test_the_embedded_host_runs_nothing_of_the_folder(folder: Folder):
    """`remoter demo`, or the kernel of nowhere: it starts an SSH server of its own."""
    code = (
        "from remoter_kernel.local.login.embedded_host import EmbeddedHost\n"
        "with EmbeddedHost() as host: print(host.destination().socket_path.is_socket())"
    )
    ran = run_in(folder.path, "-P", "-c", code)
    assert (ran.stdout, folder.has_run) == ("True\n", []), ran.stderr


def test_no_python_is_started_by_a_module_s_name_without_the_option():
    """Whoever adds another program that begins with `python -m` is told here."""
    unsafe = [
        f"{path.relative_to(ROOT)}:{words.lineno}"
        for path in sorted((ROOT / "remoter_kernel").rglob("*.py"))
        for words in ast.walk(ast.parse(path.read_text()))
        if isinstance(words, ast.List) and "'-m'" in (said := ast.unparse(words))
        if "sys.executable" in said and "'-P'" not in said
    ]
    # The kernel of `%%local`: a person has let code run here, and may import what lies there.
    assert [place.partition(":")[0] for place in unsafe] == [
        "remoter_kernel/local/proxy/here/local_kernel.py"
    ]
