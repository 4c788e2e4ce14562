"""The command `remoter` where no login is needed: its verbs, its words, its exit codes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from remoter_kernel.cli import main as command
from remoter_kernel.errors import Unreachable
from remoter_kernel.local.config import kernelspec, remotes
from remoter_kernel.local.config.remotes import Remote


@pytest.fixture(autouse=True)
def own_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REMOTER_CONFIG", str(tmp_path / "remotes.toml"))
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))


def remoter(*words):
    return CliRunner().invoke(command.remoter, words)


def configure(*names, default=None):
    for name in names:
        remote = Remote(name, f"me@{name}.example.org", env={"A": "1"})
        remotes.write_remote(remote, make_default=name == default, replace=False)


def verb_that_raises(monkeypatch, err):
    @click.command()
    def fails():
        raise err

    monkeypatch.setattr(command.LazyGroup, "get_command", lambda *_: fails)


# --------------------------------------------------------------- words and codes


def test_help_names_every_verb_and_imports_none():
    code = (
        "import sys; from remoter_kernel.cli.main import main; sys.argv = ['remoter', '--help']\n"
        "try: main()\n"
        "except SystemExit: print([m for m in ('paramiko', 'zmq', 'rich') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for verb in command.VERBS:
        assert f"  {verb} " in ran.stdout
    assert ran.stdout.endswith("[]\n")


def test_an_unknown_verb_is_answered_with_the_nearest():
    ran = remoter("chekc", "a")
    assert ran.exit_code == 2
    assert 'did you mean "check"?' in ran.stderr
    assert ran.stdout == ""


def test_an_error_is_sentences_on_stderr_and_its_exit_code(monkeypatch):
    verb_that_raises(monkeypatch, Unreachable("no answer.", "Look at the VPN.", remote="gpu"))
    ran = remoter("list")
    assert (ran.exit_code, ran.stdout) == (3, "")
    assert ran.stderr == "remoter: gpu: no answer. Look at the VPN.\n"


@pytest.mark.parametrize("words", [("--debug", "list"), ("list", "--debug")])
def test_debug_shows_where_it_came_from(words):
    remotes.config_path().write_text("[")
    ran = remoter(*words)
    assert ran.exit_code == 2
    assert "Traceback" in ran.stderr
    assert "line 1: this is not TOML" in ran.stderr.splitlines()[-1]


def test_a_fault_of_ours_is_called_one(monkeypatch):
    verb_that_raises(monkeypatch, KeyError("x"))
    ran = remoter("list")
    assert ran.exit_code == 1
    assert ran.stderr == (
        "remoter: This is a fault in remoter itself: KeyError: 'x'. "
        "With --debug it shows where; please report that.\n"
    )


def test_an_interrupt_exits_as_shells_expect(monkeypatch):
    verb_that_raises(monkeypatch, KeyboardInterrupt())
    ran = remoter("list")
    assert ran.exit_code == 130
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("words", [("remove",), ("list", "--nonsense"), ("remove", "a", "b")])
def test_wrong_words_exit_with_2(words):
    ran = remoter(*words)
    assert ran.exit_code == 2
    assert "Usage:" in ran.stderr
    assert ran.stdout == ""


# --------------------------------------------------------------- list


def test_list_shows_name_host_kernel_and_default():
    configure("a", "b", default="b")
    kernelspec.install_kernelspec(Remote("a", "x"))
    ran = remoter("list")
    header, a, b = ran.stdout.splitlines()
    assert header.split() == ["NAME", "HOST", "KERNEL", "PYTHON", "KERNELSPEC"]
    assert a.split() == ["a", "me@a.example.org", "python3", "-", "remoter-a"]
    assert b.split() == ["*", "b", "me@b.example.org", "python3", "-", "-"]
    assert ran.exit_code == 0


def test_list_as_json_is_one_document():
    configure("a", default="a")
    document = json.loads(remoter("list", "--json").stdout)
    assert document["default"] == "a"
    (remote,) = document["remotes"]
    assert remote["host"] == "me@a.example.org"
    assert remote["env"] == {"A": "1"}
    assert remote["idle_timeout"] == 259200.0
    assert remote["kernelspec"] is None


def test_list_without_remotes_says_how_to_add_one():
    ran = remoter("list")
    assert (ran.exit_code, ran.stdout) == (0, "")
    assert "remoter add NAME HOST" in ran.stderr
    assert json.loads(remoter("list", "--json").stdout)["remotes"] == []


def test_a_broken_file_is_named_with_its_line():
    remotes.config_path().write_text('[remotes.a]\nhsot = "a"\n')
    ran = remoter("list", "--json")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert f"{remotes.config_path()}, line 2" in ran.stderr
    assert 'did you mean "host"?' in ran.stderr


# --------------------------------------------------------------- remove


def test_remove_forgets_the_remote_and_its_kernelspec():
    configure("a", "b")
    kernelspec.install_kernelspec(Remote("a", "x"))
    ran = remoter("remove", "a")
    assert (ran.exit_code, ran.stdout) == (0, "Removed a and its kernelspec.\n")
    assert set(remotes.read_remotes().all) == {"b"}
    assert kernelspec.kernelspec_names() == ()


def test_removing_what_is_not_there_suggests_the_nearest():
    configure("gpu-box")
    ran = remoter("remove", "gpubox")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert 'did you mean "gpu-box"?' in ran.stderr


def test_a_kernelspec_without_its_remote_can_be_removed():
    kernelspec.install_kernelspec(Remote("a", "x"))
    assert remoter("remove", "a").stdout == "Removed the kernelspec remoter-a.\n"


@pytest.mark.parametrize("name", ["../x", "a b", "..", ""])
def test_a_name_that_climbs_removes_nothing(name, tmp_path):
    bystander = tmp_path / "jupyter" / "x"
    bystander.mkdir(parents=True)
    assert remoter("remove", name).exit_code == 2
    assert bystander.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_no_room_for_the_output_is_no_fault_of_ours():
    ran = in_shell("remoter list --json > /dev/full")
    assert (ran.stdout, ran.returncode) == ("", 1)
    assert (
        ran.stderr == "remoter: What is to be printed cannot be written: No space left on device.\n"
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_it_needs_no_streams(closed):
    """Whoever starts it without a console closes them."""
    assert in_shell(f"remoter run nowhere -c 1 {closed}").returncode == 2
    assert in_shell(f"remoter list {closed}").returncode == 0


def in_shell(line):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )


def test_where_no_log_can_be_written_the_command_runs_all_the_same(monkeypatch, capsys):
    """Without a home there is no place for it; what needs one says so in words."""

    def refuse(*_: object) -> None:
        raise Unreachable("HOME is not set.")

    monkeypatch.setattr(command, "_use_utf8", lambda: None)  # the streams are pytest's
    monkeypatch.setenv("REMOTER_LOG", "debug")
    monkeypatch.setattr(command, "begin_log", refuse)
    monkeypatch.setattr(sys, "argv", ["remoter", "list"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    assert "HOME" not in capsys.readouterr().err


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_where_a_report_cannot_be_written_nobody_is_asked_for_it(tmp_path, monkeypatch, force):
    asked: list[str] = []
    module = importlib.import_module("remoter_kernel.cli.report")
    monkeypatch.setattr(module, "make_report", lambda name, _questions: asked.append(name))
    configure("box")
    place = str(tmp_path / "no" / "where")
    ran = remoter("report", "box", "-o", place, *force)
    assert (ran.exit_code, type(ran.exception), asked) == (1, SystemExit, [])
    assert f"{place} cannot be written: No such file or directory." in ran.stderr
    made = tmp_path / "made"
    made.write_text("mine")
    made.chmod(0o444)
    ran = remoter("report", "box", "-o", str(made), *force)
    assert (ran.exit_code, asked, made.read_text()) == (1 if force else 2, [], "mine")
