"""What Jupyter is told about a remote."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from remoter_kernel.errors import Usage
from remoter_kernel.local.config import kernelspec
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.private_files import CannotWrite

PACKAGED = Path(__file__).parents[2] / "kernelspec"


@pytest.fixture(autouse=True)
def own_jupyter(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PATH", "")


def test_jupyter_finds_the_remote_and_starts_it_by_an_absolute_python():
    kernelspec.install_kernelspec(Remote("gpu-box", "gpu"), debugger=True)
    spec = KernelSpecManager().get_kernel_spec("remoter-gpu-box")
    assert spec.argv == [
        sys.executable,
        "-P",
        "-m",
        "remoter_kernel",
        "-f",
        "{connection_file}",
        "--remote",
        "gpu-box",
    ]
    assert spec.display_name == "Remote (gpu-box)"
    assert spec.language == "python"
    assert spec.interrupt_mode == "message"
    assert spec.metadata == {"debugger": True, "supported_encryption": ["curve"]}
    assert Path(spec.argv[0]).is_absolute()  # VS Code finds the wrong `python`
    assert Path(spec.argv[0]).exists()


def test_name_and_language_are_what_was_said():
    folder = kernelspec.install_kernelspec(Remote("r", "r"), "R – on the cluster", "R")
    spec = json.loads((folder / "kernel.json").read_text())
    assert spec["display_name"] == "R – on the cluster"
    assert spec["language"] == "R"
    assert "debugger" not in spec["metadata"]
    assert "kernel_protocol_version" not in spec


def test_the_logos_come_along():
    folder = kernelspec.install_kernelspec(Remote("a", "a"))
    assert {path.name for path in folder.iterdir()} == {"kernel.json", *kernelspec.LOGOS}


def test_a_launcher_tells_languages_apart():
    folders = {
        language: kernelspec.install_kernelspec(Remote(f"a{number}", "h"), "", language)
        for number, language in enumerate(["python", "R", "julia", "../python"])
    }
    for logo in kernelspec.LOGOS:
        drawn = {language: (folder / logo).read_bytes() for language, folder in folders.items()}
        plain = (PACKAGED / logo).read_bytes()
        assert drawn["julia"] == drawn["../python"] == plain
        assert len({plain, drawn["python"], drawn["R"]}) == 3


@pytest.mark.parametrize("folder", ["", "python", "r"])
def test_logos_are_as_large_as_they_say(folder):
    for size in (32, 64):
        png = (PACKAGED / folder / f"logo-{size}x{size}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", png[16:24]) == (size, size)
        assert png[25] == 6, "it has no alpha channel: a dark launcher shows a square"
    svg = ET.fromstring((PACKAGED / folder / "logo-svg.svg").read_text())
    assert svg.get("viewBox") == "0 0 64 64"
    assert not list(svg.iter("{http://www.w3.org/2000/svg}text")), "fonts differ between machines"


def test_a_display_name_belongs_to_one_kernelspec(tmp_path):
    kernelspec.install_kernelspec(Remote("a", "a"), "Mine")
    with pytest.raises(Usage, match='"Mine" already: it is the kernelspec remoter-a'):
        kernelspec.free_display_name("b", "Mine")
    assert kernelspec.free_display_name("a", "Mine") == "Mine"
    assert kernelspec.free_display_name("b", "Yours") == "Yours"
    assert kernelspec.free_display_name("b") == "Remote (b)"


def test_a_remote_called_host_is_not_taken_for_the_packaged_one(tmp_path):
    shutil.copytree(PACKAGED, tmp_path / "kernels/remoter")
    assert kernelspec.free_display_name("host") == "Remote (host) 2"
    kernelspec.install_kernelspec(Remote("a", "a"), "Remote (host) 2")
    assert kernelspec.free_display_name("host") == "Remote (host) 3"


def test_the_language_is_that_of_the_kernel_which_is_configured_now():
    kernelspec.install_kernelspec(Remote("a", "a"), language="julia")
    assert kernelspec.language_of(Remote("a", "a", kernel="julia-1.11")) == "julia"
    assert kernelspec.language_of(Remote("a", "a", kernel="ir")) == "R"
    assert kernelspec.language_of(Remote("a", "a", kernel="python3")) == "python"
    assert kernelspec.language_of(Remote("unknown", "a", kernel="own")) == "python"


def test_installing_again_replaces_and_removing_forgets():
    kernelspec.install_kernelspec(Remote("a", "a"), "one")
    folder = kernelspec.install_kernelspec(Remote("a", "a"), "two")
    assert json.loads((folder / "kernel.json").read_text())["display_name"] == "two"
    assert kernelspec.kernelspec_names() == ("remoter-a",)
    assert kernelspec.remove_kernelspec("a")
    assert not folder.exists()
    assert not kernelspec.remove_kernelspec("a")
    assert kernelspec.kernelspec_names() == ()


@pytest.mark.parametrize("name", ["../x", "a b", "..", "", "A", "a/b"])
def test_a_name_that_could_climb_is_refused(name):
    with pytest.raises(Usage):
        kernelspec.remove_kernelspec(name)
    with pytest.raises(Usage):
        kernelspec.install_kernelspec(Remote(name, "h"))


def test_the_packaged_kernelspec_is_the_default_remote():
    spec = json.loads((PACKAGED / "kernel.json").read_text())
    assert spec == {
        "argv": ["python", "-P", "-m", "remoter_kernel", "-f", "{connection_file}"],
        "display_name": "Remote (host)",
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {"supported_encryption": ["curve"]},
    }


# --------------------------------------------------------------- kernelspecs without -P

OURS = ["-m", "remoter_kernel", "-f", "{connection_file}"]
LACKING = {
    "as it was written": (["/opt/python", *OURS], ["/opt/python", "-P", *OURS]),
    "with options": (["py", "-X", "dev", "-B", *OURS], ["py", "-X", "dev", "-B", "-P", *OURS]),
    "behind another command": (
        ["env", "-S", "A=b", "nice", "-n", "5", "python", *OURS, "--remote", "-P"],
        ["env", "-S", "A=b", "nice", "-n", "5", "python", "-P", *OURS, "--remote", "-P"],
    ),
}
LEFT_ALONE = {
    "safe": ["python", "-P", *OURS],
    "safe with others": ["python", "-X", "dev", "-sBP", "-u", *OURS],
    "isolated": ["python", "-I", *OURS],
    "another kernel": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "another module": ["python", "-m", "remoter_kernel.errors"],
    "nothing": [],
}


@pytest.mark.parametrize(("argv", "safe"), LACKING.values(), ids=LACKING)
def test_the_option_is_put_before_the_module(argv, safe):
    assert kernelspec.with_safe_path(argv) == safe
    assert kernelspec.with_safe_path(safe) == []


@pytest.mark.parametrize("argv", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_is_safe_or_not_ours_is_left_alone(argv):
    assert kernelspec.with_safe_path(argv) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"argv": "python"}', '{"argv": [1]}', "\xff"])
def test_what_is_no_kernelspec_is_left_alone(tmp_path, text):
    file = tmp_path / "kernels/remoter-x/kernel.json"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="latin-1")
    assert kernelspec.mend_kernelspecs() == ([], [])
    assert file.read_text(encoding="latin-1") == text


def an_old_one(folder):
    """Write a kernelspec of an earlier version, as a person has edited it."""
    file = folder / "kernels/mine/kernel.json"
    file.parent.mkdir(parents=True)
    about = {"argv": ["python", *OURS], "env": {"A": "ä"}, "display_name": "Mine"}
    file.write_text(json.dumps(about))
    file.chmod(0o644)
    return file, about


def test_a_kernelspec_is_mended_under_any_name_and_whoever_could_read_it_still_can(tmp_path):
    file, about = an_old_one(tmp_path)
    assert kernelspec.unsafe_kernelspecs() == [file]
    assert kernelspec.mend_kernelspecs() == ([file], [])
    assert json.loads(file.read_text()) == {**about, "argv": ["python", "-P", *OURS]}
    assert file.stat().st_mode & 0o777 == 0o644
    assert kernelspec.unsafe_kernelspecs() == []


def test_one_that_hides_behind_another_of_its_name_is_found_too(tmp_path, monkeypatch):
    """Another Jupyter of this person looks in other places first."""
    file, _ = an_old_one(tmp_path)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "first"))
    shutil.copytree(PACKAGED, tmp_path / "first/kernels/mine")
    assert kernelspec.unsafe_kernelspecs() == [file]


def test_one_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    file, about = an_old_one(tmp_path)

    def refuse(path, text):
        raise CannotWrite(f"{path} cannot be written: Permission denied.")

    monkeypatch.setattr(kernelspec, "write_private_file", refuse)
    mended, (error,) = kernelspec.mend_kernelspecs()
    assert (mended, error.what) == ([], f"{file} cannot be written: Permission denied.")
    assert json.loads(file.read_text()) == about
