"""Which kernel runs where a person has several of one name."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.errors import RemoteLacks
from remoter_kernel.evaluator.kernel_process import KernelProcess

if TYPE_CHECKING:
    from pathlib import Path

OTHER = "/other/bin/python"


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a person's own kernelspecs, where Jupyter looks first."""
    folder = tmp_path / "person"
    monkeypatch.setenv("JUPYTER_PATH", str(folder))
    for name in ("python3", "mine"):
        spec = {"argv": [OTHER], "display_name": "Other", "language": "python"}
        (folder / "kernels" / name).mkdir(parents=True)
        (folder / "kernels" / name / "kernel.json").write_text(json.dumps(spec))
    return folder / "kernels"


def argv(folder: Path, name: str, *, is_own: bool) -> list[str]:
    """Return what would be started."""
    reactor: Any = SimpleNamespace(call_soon_threadsafe=lambda call: call())
    child = KernelProcess(reactor, folder, name, b"session", is_own=is_own)
    return list(child._spec().argv)


@pytest.mark.usefixtures("people")
def test_the_default_kernel_of_a_configured_python_is_its_own(tmp_path: Path) -> None:
    """Whatever `ipykernel install --user` of another environment has written."""
    first, *rest = argv(tmp_path, "python3", is_own=True)
    assert first in {"python", sys.executable}  # Jupyter puts the same in for "python"
    assert "ipykernel_launcher" in rest


@pytest.mark.usefixtures("people")
@pytest.mark.parametrize(("name", "is_own"), [("python3", False), ("mine", True)])
def test_else_jupyter_says_which(tmp_path: Path, name, is_own):
    """A name of its own means that kernel; without a configured Python Jupyter's order counts."""
    assert argv(tmp_path, name, is_own=is_own) == [OTHER]


def test_a_kernelspec_whose_program_is_gone_is_named(tmp_path: Path, people: Path) -> None:
    """With what to do about it, before anything is started."""
    reactor: Any = SimpleNamespace(call_soon_threadsafe=lambda call: call())
    child = KernelProcess(reactor, tmp_path, "mine", b"session")
    with pytest.raises(RemoteLacks) as error:
        child.start(env={}, cwd="/", init=(), umask=0o077)
    assert OTHER in error.value.what
    assert str(people / "mine") in error.value.advice
    assert not (tmp_path / "child.json").exists()
