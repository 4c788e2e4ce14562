"""What Jupyter is told about a remote."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from remoter_kernel.errors import Usage
from remoter_kernel.front import kernelspec
from remoter_kernel.front.remotes import Remote


@pytest.fixture(autouse=True)
def own_jupyter(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PATH", "")


def test_jupyter_finds_the_remote_and_starts_it_by_an_absolute_python():
    kernelspec.install_kernelspec(Remote("gpu-box", "gpu"), debugger=True)
    spec = KernelSpecManager().get_kernel_spec("remoter-gpu-box")
    assert spec.argv == [
        sys.executable,
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
    assert spec.metadata == {"debugger": True}


def test_name_and_language_are_what_was_said():
    folder = kernelspec.install_kernelspec(Remote("r", "r"), "R – on the cluster", "R")
    spec = json.loads((folder / "kernel.json").read_text())
    assert spec["display_name"] == "R – on the cluster"
    assert spec["language"] == "R"
    assert spec["metadata"] == {}
    assert "kernel_protocol_version" not in spec


def test_the_logos_come_along():
    folder = kernelspec.install_kernelspec(Remote("a", "a"))
    assert {path.name for path in folder.iterdir()} == {"kernel.json", *kernelspec.LOGOS}


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
    spec = json.loads((Path(__file__).parents[2] / "kernelspec/kernel.json").read_text())
    assert spec == {
        "argv": ["python", "-m", "remoter_kernel", "-f", "{connection_file}"],
        "display_name": "Remote (host)",
        "language": "python",
        "interrupt_mode": "message",
    }
