"""What `ssh -G` has answered is remembered where only dated files could have changed it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.errors import BadConfiguration
from remoter_kernel.local.login import ssh_config, ssh_config_cache
from remoter_kernel.local.login.ssh_config import resolve_destination
from tests.real_parts import real_part

if TYPE_CHECKING:
    from pathlib import Path

BOX = "Host box\n HostName box.example.org\n User ada\n"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What ssh is asked about a host, in a state folder of its own and a minute from now."""
    real_part("ssh")
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(
        ssh_config_cache, "time", SimpleNamespace(time=lambda: time.time() + 60.0)
    )  # all files of the test have had their time to settle
    calls: list[list[str]] = []
    run = subprocess.run

    def count(command: list[str], **options: Any) -> Any:
        if command[-1] != "host.invalid":
            calls.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", count)
    return calls


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "ssh_config"
    file.write_text(BOX)
    return file


def answers(tmp_path: Path) -> list[Any]:
    file = tmp_path / "state" / ssh_config_cache.CACHE_FILE
    return list(json.loads(file.read_text()).values()) if file.exists() else []


def test_the_same_question_is_answered_from_memory(asked, config, tmp_path):
    first = resolve_destination("box", config)
    assert resolve_destination("box", config) == first
    assert first.host_name == "box.example.org"
    assert len(asked) == 1
    assert (tmp_path / "state" / ssh_config_cache.CACHE_FILE).stat().st_mode & 0o777 == 0o600


def test_each_host_user_and_port_is_a_question_of_its_own(asked, config):
    for host in ("box", "eve@box", "box:99", "other"):
        resolve_destination(host, config)
    assert len(asked) == 4
    assert resolve_destination("eve@box", config).user == "eve"
    assert resolve_destination("box:99", config).port == 99
    assert len(asked) == 4


def test_each_jump_host_is_asked_about_once(asked, config):
    config.write_text(f"{BOX} ProxyJump one,two\n")
    for _ in range(3):
        assert len(resolve_destination("box", config).jumps) == 2
    assert [words[-1] for words in asked] == ["box", "one", "two"]


def test_a_file_that_has_changed_is_read_again(asked, config):
    resolve_destination("box", config)
    config.write_text(BOX.replace("ada", "eve"))
    assert resolve_destination("box", config).user == "eve"
    kept = config.stat()
    config.write_text(BOX.replace("ada", "bob"))
    os.utime(config, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # as a copy that keeps its date
    assert resolve_destination("box", config).user == "bob"
    assert len(asked) == 3


def test_a_file_that_is_included_counts_and_so_does_one_that_joins_it(asked, config, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "a.conf").write_text("Host other\n User x\n")
    config.write_text(f"Include {parts}/*.conf\n{BOX}")
    assert resolve_destination("box", config).user == "ada"
    assert resolve_destination("box", config).user == "ada"
    assert len(asked) == 1
    (parts / "b.conf").write_text("Host box\n User eve\n")
    assert resolve_destination("box", config).user == "eve"
    (parts / "b.conf").write_text("Host box\n User bob\n")
    assert resolve_destination("box", config).user == "bob"
    (parts / "b.conf").unlink()
    assert resolve_destination("box", config).user == "ada"


@pytest.mark.parametrize(
    "words",
    [
        'Match exec "true"\n User eve\n',
        'Match host box !exec "false"\n User eve\n',
        'Match host other exec "true"\n User eve\n',
        "CanonicalizeHostname yes\nCanonicalDomains example.org\n",
        "Host *\n CanonicalizeHostname=always\n",
        "Match canonical\n User eve\n",
        "Host *\n ControlPath ${HOME}/x\n",
        "Host *\n IdentityAgent $MY_AGENT\n",
        "Include %d/more\n",
        "Include more.d/[[:alpha:]]*\n",
        "Include more.d/[^.]*\n",
        'Match host gpu,a#b exec "true"\n User eve\n',
        "IgnoreUnknown NewWord\nNewWord yes\n",
    ],
)
def test_what_something_else_may_change_is_asked_each_time(asked, config, tmp_path, words):
    config.write_text(words + BOX)
    for _ in range(2):
        with_doubt = ssh_config._query_ssh(
            ssh_config._parse_host_spec("box"), config, dict(os.environ)
        )
        assert with_doubt["hostname"][0].startswith("box")
    assert len(asked) == 2
    assert answers(tmp_path) == []


@pytest.mark.parametrize("words", ["Match localnetwork 10.0.0.0/8\n User eve\n"])
def test_a_network_is_in_doubt_whatever_this_ssh_knows_of_it(config, words):
    config.write_text(words + BOX)
    ssh = shutil.which("ssh")
    assert ssh
    assert ssh_config_cache.ConfigFiles(ssh, ["-F", str(config)]).is_uncacheable


def test_what_words_and_files_alone_decide_is_remembered(asked, config):
    config.write_text(
        f"Match host box user ada\n Port 99\nMatch final all\n ConnectTimeout 3\n{BOX}"
    )
    for _ in range(3):
        assert resolve_destination("ada@box", config).port == 99
    assert len(asked) == 1


def test_a_file_that_was_written_just_now_is_not_believed(asked, config, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh_config_cache, "time", time)
    resolve_destination("box", config)
    assert answers(tmp_path) == []


def test_an_ssh_that_is_a_script_is_asked_each_time(asked, config, tmp_path, monkeypatch):
    script = tmp_path / "ssh"
    script.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for _ in range(2):
        resolve_destination("box", config)
    assert len(asked) == 2


def test_a_file_that_ssh_has_read_and_we_have_not_is_doubt(config):
    ssh = shutil.which("ssh")
    assert ssh
    files = ssh_config_cache.ConfigFiles(ssh, ["-F", str(config)])
    told = f"debug1: Reading configuration data {config}\r\n"
    assert files.covers(told)
    assert not files.covers(f"{told}debug1: Reading configuration data /opt/etc/more\n")
    elsewhere = ssh_config_cache.ConfigFiles(ssh, [])
    assert not elsewhere.covers("debug1: Reading configuration data /opt/etc/ssh/ssh_config\n")


def test_a_memory_that_is_damaged_or_cannot_be_written_is_none(asked, config, tmp_path):
    resolve_destination("box", config)
    file = tmp_path / "state" / ssh_config_cache.CACHE_FILE
    for damage in ("", "[]", "{", json.dumps({"x": 1})):
        file.write_text(damage)
        assert resolve_destination("box", config).user == "ada"
    assert len(asked) == 5
    known = json.loads(file.read_text())
    file.write_text(
        json.dumps({name: {**about, "answer": 5} for name, about in known.items() if about != 1})
    )
    assert resolve_destination("box", config).user == "ada"


def test_only_so_many_answers_are_kept(asked, config, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh_config_cache, "MOST_ANSWERS", 3)
    for number in range(5):
        resolve_destination(f"host{number}", config)
    assert len(answers(tmp_path)) == 3
    resolve_destination("host4", config)
    assert len(asked) == 5


def test_a_broken_file_is_named_in_ssh_s_own_last_words(asked, config, tmp_path):
    config.write_text("Nonsense yes\n")
    with pytest.raises(BadConfiguration, match="terminating, 1 bad configuration options"):
        resolve_destination("box", config)
    assert answers(tmp_path) == []
