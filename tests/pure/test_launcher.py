"""What travels: exactly the list, the same bytes each time, named by its hash."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import remoter_kernel
from remoter_kernel.errors import RemoteLacks
from remoter_kernel.local.launch import launcher as bootstrap
from remoter_kernel.local.launch.launcher import ENTRY, SHIPPED, pack_evaluator, shell_path

DATA = ".local/share/remoter-kernel"
PACKAGE = Path(remoter_kernel.__file__).parent


def test_every_module_of_the_far_side_travels_and_nothing_else():
    """The shipped list is the folders evaluator/ and protocol/, plus what both sides share."""
    there = {
        path.relative_to(PACKAGE).as_posix()
        for folder in ("evaluator", "protocol", "transfer")
        for path in (PACKAGE / folder).glob("*.py")
    }
    assert {ENTRY, *SHIPPED} == there | {"__init__.py", "errors.py", "logs.py", "plain_text.py"}
    _, content = pack_evaluator()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name.removeprefix("remoter_kernel/") for name in archive.namelist()]
    assert names == ["__main__.py", *SHIPPED]


def test_each_build_gives_the_same_bytes_under_the_name_of_their_hash():
    """A second process builds the same zip; its name is the hash of its bytes."""
    name, content = pack_evaluator()
    assert name == f"{hashlib.sha256(content).hexdigest()}.pyz"
    code = (
        "from remoter_kernel.local.launch.launcher import pack_evaluator\n"
        "print(pack_evaluator()[0])"
    )
    again = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert again.stdout.strip() == name


def test_a_home_in_the_path_is_the_far_home():
    """`~/` is expanded there; characters that a shell would act on are refused."""
    assert shell_path("~/venvs/a b/bin/python") == "$HOME/venvs/a b/bin/python"
    for path in ("/bin/$(id)", "/bin/`id`", 'a"b', "a'b", "a;b", "a\nb", "a\\b"):
        with pytest.raises(RemoteLacks):
            shell_path(path)


@pytest.mark.parametrize("command", [bootstrap._LAUNCH_COMMAND, bootstrap._UPLOAD_COMMAND])
def test_commands_are_one_line_that_any_login_shell_passes_on(command):
    """No newline, no nested single quote, no `!`: csh and fish read them as sh does."""
    text = command.format(python="python3", folder="x", name="x.pyz", size=1)
    assert "\n" not in text
    assert text.count("'") == 2
    assert "!" not in text


def test_the_entry_is_read_by_a_python_2_too():
    """A Python that is too old says so itself: the entry's syntax has no age."""
    text = (PACKAGE / ENTRY).read_text(encoding="utf-8")
    assert 'f"' not in text
    assert "->" not in text


@pytest.mark.parametrize(("content", "came"), [(b"12345", b"took it"), (b"1234", b"refused it")])
def test_what_was_cut_while_it_was_sent_is_not_taken(content, came, tmp_path):
    """The shell of a dead connection reads an end, and must not think that this was all."""
    ran = subprocess.run(
        bootstrap._UPLOAD_COMMAND.format(folder="x", name="x.pyz", size=5),
        shell=True,
        input=content,
        capture_output=True,
        env={"HOME": str(tmp_path), "PATH": os.defpath},
        check=True,
    )
    assert b"REMOTER " + came in ran.stdout
    there = [path.name for path in (tmp_path / DATA / "programs/x").iterdir()]
    assert there == ["x.pyz"] * (came == b"took it")
