"""`remoter add` and `remoter check` against a real sshd, and against hosts that are in trouble."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from click.testing import CliRunner

from remoter_kernel.cli.main import remoter as command
from remoter_kernel.local.config import kernelspec, remotes
from remoter_kernel.local.login.keeper.endpoint import end_logins
from remoter_kernel.local.run.checkup import STEPS
from tests.real_parts import real_part
from tests.real_sshd import RealSshd

NO_PYTHON = "/nowhere/python"
PROGRAM = "from remoter_kernel.cli.main import main; main()"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REMOTER_CONFIG", str(tmp_path / "remotes.toml"))
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    yield
    end_logins()


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    real_part("sshd")
    with RealSshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def ssh_config(host, tmp_path):
    path = tmp_path / "ssh_config"
    host.ssh_config(path, "box")
    return path


def remoter(*words):
    return CliRunner().invoke(command, [str(word) for word in words])


def whole_command(*words):
    """Run the command as a process of its own: where a kernel is started, all of it counts."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
    )


def add(ssh_config, *words, name="box"):
    return remoter("add", name, "--ssh-config", ssh_config, *words)


# --------------------------------------------------------------- add


def test_add_says_what_it_found_and_writes_remote_and_kernelspec(ssh_config, host):
    words = ["--python", sys.executable, "--default", "--env", "A=b=c"]
    ran = whole_command("add", "box", "--ssh-config", ssh_config, *words)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"as {host.user}" in ran.stdout
    assert "SHA256:" in ran.stdout
    assert f"{sys.executable}  " in ran.stdout
    assert "jupyter console --kernel remoter-box" in ran.stdout
    known = remotes.read_remotes()
    assert known.default == "box"
    box = known.all["box"]
    assert (box.host, box.python, box.env) == ("box", sys.executable, {"A": "b=c"})
    assert box.ssh_config == ssh_config
    assert kernelspec.kernelspec_names() == ("remoter-box",)
    info = remotes.last_kernel_info(box) or {}
    assert info["language_info"]["name"] == "python"


def test_without_a_python_an_able_one_is_looked_for(sshd, far, another_user, tmp_path):
    sshd.ssh_config(tmp_path / "far_config", "there")
    ran = whole_command("add", "there", "--ssh-config", tmp_path / "far_config")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"home {far.home}" in ran.stdout
    assert remotes.read_remotes().all["there"].python == str(far.python)


def test_every_option_arrives_in_the_file():
    words = "--python P --kernel ir --init a --init b --env A=1 --cwd ~/x --on-shutdown keep"
    rest = "--idle-timeout 2d --transport paramiko --ssh-config c --default --no-check"
    ran = remoter("add", "r", "me@h:22", *words.split(), *rest.split(), "--display-name", "My R")
    assert ran.exit_code == 0, ran.stderr
    assert remotes.read_remotes().all["r"] == remotes.Remote(
        name="r",
        host="me@h:22",
        python="P",
        kernel="ir",
        init=("a", "b"),
        env={"A": "1"},
        cwd="~/x",
        on_shutdown="keep",
        idle_timeout=172800.0,
        transport="paramiko",
        ssh_config=Path("c").absolute(),
    )
    spec = Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels/remoter-r/kernel.json"
    assert json.loads(spec.read_text())["display_name"] == "My R"


def test_a_display_name_that_another_kernel_has_is_refused_before_any_login():
    assert remoter("add", "a", "h", "--no-check", "--display-name", "Lab").exit_code == 0
    ran = remoter("add", "b", "no-such-host.invalid", "--display-name", "Lab")
    assert ran.exit_code == 2
    assert "already: it is the kernelspec remoter-a" in ran.stderr
    assert list(remotes.read_remotes().all) == ["a"]
    again = remoter("add", "a", "h", "--no-check", "--replace", "--display-name", "Lab")
    assert again.exit_code == 0


def test_an_r_remote_is_one_of_r_and_the_python_one_is_not(ssh_config):
    """The picker's words and Jupyter's list say so; `remove` takes it out of that list."""
    real_part("irkernel")
    words = ["--ssh-config", ssh_config, "--python", sys.executable, "--kernel", "ir"]
    ran = whole_command("add", "r-box", "box", *words)
    assert (ran.returncode, ran.stderr) == (0, "")
    spec = listed()["remoter-r-box"]["spec"]
    assert (spec["language"], spec["display_name"]) == ("R", "Remote (r-box)")
    assert "debugger" not in spec["metadata"]
    info = remotes.last_kernel_info(remotes.read_remotes().all["r-box"]) or {}
    assert info["language_info"]["name"] == "R"
    assert not info.get("debugger")
    assert "kernel subshells" not in info.get("supported_features", [])
    assert remoter("add", "py", "box", "--no-check").exit_code == 0
    assert listed()["remoter-py"]["spec"]["language"] == "python"
    assert remoter("remove", "r-box").exit_code == 0
    assert "remoter-r-box" not in listed()


def listed():
    """Ask Jupyter which kernels there are."""
    command = [sys.executable, "-m", "jupyter_client.kernelspecapp", "list", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)["kernelspecs"]


WRONG = {
    "a name with a space": (["a b"], "use only a-z"),
    "a name that climbs": (["../x"], "use only a-z"),
    "a bad duration": (["a", "--idle-timeout", "3 days"], "not '3 days'"),
    "a wrong word": (["a", "--transport", "opensh"], 'did you mean "openssh"?'),
    "no pair": (["a", "--env", "A"], "NAME=VALUE"),
    "no variable": (["a", "--env", "A B=1"], "'A B' is not"),
    "an empty kernel": (["a", "--kernel", ""], "a word is empty where"),
}


@pytest.mark.parametrize(("words", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_meant_is_refused_before_any_login(words, sentence):
    ran = remoter("add", *words)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert sentence.lower() in " ".join(ran.stderr.lower().split())
    assert not remotes.config_path().exists()


def test_a_remote_that_is_there_is_replaced_only_when_asked():
    assert remoter("add", "a", "one", "--no-check").exit_code == 0
    again = remoter("add", "a", "two", "--no-check")
    assert again.exit_code == 2
    assert "--replace" in again.stderr
    assert remotes.read_remotes().all["a"].host == "one"
    assert remoter("add", "a", "two", "--no-check", "--replace").exit_code == 0
    assert remotes.read_remotes().all["a"].host == "two"


def test_a_kernel_that_is_not_there_is_named_with_those_that_are(ssh_config):
    ran = add(ssh_config, "--python", sys.executable, "--kernel", "pyhton3")
    assert ran.exit_code == 4
    assert 'no kernel there is called "pyhton3" (did you mean "python3"?)' in ran.stderr
    assert not remotes.config_path().exists()


# --------------------------------------------------------------- check


def test_check_goes_all_the_way_and_says_what_it_saw(ssh_config, host):
    add(ssh_config, "--python", sys.executable, "--no-check")
    ran = whole_command("check", "box")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "✗" not in ran.stdout
    document = json.loads(whole_command("check", "box", "--json").stdout)
    assert document["ok"]
    found = {step["step"]: step["found"] for step in document["steps"]}
    assert tuple(found) == STEPS
    assert "ipython" in found["versions"]
    assert found["name"] == f"{host.user}@127.0.0.1:{host.port}"
    assert "SHA256:" in found["host key"]
    assert sys.executable in found["Python"]


def refused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def failing_step(name="box"):
    ran = remoter("check", name, "--json")
    document = json.loads(ran.stdout)
    assert not document["ok"]
    assert ran.stderr.startswith(f"remoter: {name}: ")
    return document["steps"][-1]["step"], ran.exit_code, ran.stderr


def test_check_stops_at_a_host_that_refuses(ssh_config):
    remoter("add", "box", f"127.0.0.1:{refused_port()}", "--no-check")
    step, code, said = failing_step()
    assert (step, code) == ("connect", 3)
    assert "Traceback" not in said


def test_check_stops_at_a_name_that_does_not_resolve():
    remoter("add", "box", "no-such-host.invalid", "--no-check")
    assert failing_step()[:2] == ("connect", 3)


def test_check_stops_at_an_unknown_host_key_and_asks_nobody(host, tmp_path):
    config = tmp_path / "strange_config"
    (tmp_path / "empty").write_text("")
    host.ssh_config(config, "box")
    config.write_text(config.read_text().replace(str(host.known_hosts), str(tmp_path / "empty")))
    remoter("add", "box", "--ssh-config", config, "--no-check")
    step, code, _ = failing_step()
    assert (step, code) == ("host key", 3)
    assert (tmp_path / "empty").read_text() == ""


def test_check_stops_at_a_python_that_is_not_there(ssh_config):
    add(ssh_config, "--python", NO_PYTHON, "--no-check")
    step, code, said = failing_step()
    assert (step, code) == ("Python", 4)
    assert NO_PYTHON in said


def test_check_stops_at_a_python_without_pyzmq(ssh_config, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    add(ssh_config, "--python", str(bare / "bin/python"), "--no-check")
    step, code, said = failing_step()
    assert (step, code) == ("packages", 4)
    assert "pip install ipykernel" in said


def test_check_says_that_sessions_will_not_outlive_the_login(ssh_config):
    """And what to ask the administrator for, where systemd ends what a login leaves running."""
    real_part("root")
    add(ssh_config, "--python", sys.executable, "--no-check")
    folder = Path("/run/systemd/logind.conf.d")
    folder.mkdir(parents=True, exist_ok=True)
    setting = folder / "remoter-tests.conf"
    setting.write_text("[Login]\nKillUserProcesses=yes\n")
    try:
        told = {step["step"]: step["found"] for step in checked()["steps"]}
    finally:
        setting.unlink()
    assert "loginctl enable-linger" in told["lifetime"]
    assert "outlive" in {step["step"]: step["found"] for step in checked()["steps"]}["lifetime"]


def checked():
    return json.loads(whole_command("check", "box", "--json").stdout)


def test_check_recognises_a_forced_command(tmp_path):
    with RealSshd(tmp_path, force_command="echo This account moves files only") as server:
        server.ssh_config(tmp_path / "config", "box")
        add(tmp_path / "config", "--no-check")
        step, code, said = failing_step()
    assert (step, code) == ("Python", 4)
    assert "This account moves files only" in said


def test_check_of_an_unknown_remote_is_a_usage_error():
    ran = remoter("check", "nobody")
    assert ran.exit_code == 2
    assert 'No remote is called "nobody"' in ran.stderr


# --------------------------------------------------------------- at a terminal


@pytest.mark.parametrize("answer", ["yes", "once", "no"])
def test_at_a_terminal_an_unknown_host_key_is_shown_and_asked_about(answer, host, tmp_path):
    learned = tmp_path / "learned"
    config = tmp_path / "strange_config"
    host.ssh_config(config, "box")
    config.write_text(config.read_text().replace(str(host.known_hosts), str(learned)))
    words = ["add", "box", "--ssh-config", str(config), "--python", sys.executable]
    terminal = pexpect.spawn(
        sys.executable,
        ["-c", PROGRAM, *words],
        timeout=30,
        encoding="utf-8",
        dimensions=(24, 200),
    )
    with contextlib.closing(terminal):
        terminal.expect("SHA256:[A-Za-z0-9+/]{43}")
        fingerprint = terminal.after
        shown = subprocess.run(
            ["ssh-keygen", "-lf", host.known_hosts], capture_output=True, text=True, check=True
        ).stdout
        assert fingerprint in shown
        terminal.expect("yes, once, no")
        terminal.sendline(answer)
        terminal.expect(pexpect.EOF)
        terminal.wait()
    assert terminal.exitstatus == (3 if answer == "no" else 0)
    assert learned.exists() == (answer == "yes")
    assert remotes.config_path().exists() == (answer != "no")
