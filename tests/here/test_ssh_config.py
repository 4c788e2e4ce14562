"""What a person calls a host becomes where, as whom and with which files to log in."""

from __future__ import annotations

import getpass
import pwd
import shutil
import socket
from functools import partial
from pathlib import Path

import pytest

from remoter_kernel.errors import BadConfiguration, Unreachable, Usage
from remoter_kernel.local.config.remotes import Remote, config_path, state_folder
from remoter_kernel.local.login import ssh_config
from remoter_kernel.local.login.destination import Destination
from remoter_kernel.local.login.ssh_config import resolve_destination


@pytest.fixture(params=["ssh -G", "paramiko's parser"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to read ssh_config."""
    if request.param == "ssh -G":
        if not shutil.which("ssh"):
            pytest.skip("no OpenSSH client here")
    else:
        monkeypatch.setattr(shutil, "which", lambda _name, **_options: None)
    return str(request.param)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ssh_config in a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "ssh_config"
    file.touch()
    return file


@pytest.mark.parametrize(
    ("typed", "host", "user", "port"),
    [
        ("example.org", "example.org", "", 22),
        ("ada@example.org", "example.org", "ada", 22),
        ("ada@example.org:2222", "example.org", "ada", 2222),
        ("example.org:2222", "example.org", "", 2222),
        ("ada@[2001:db8::1]:2222", "2001:db8::1", "ada", 2222),
        ("ada@2001:db8::1", "2001:db8::1", "ada", 22),
        ("ssh://ada@example.org:2222", "example.org", "ada", 2222),
        ("ada@realm@example.org", "example.org", "ada@realm", 22),
        ("CORP\\ada@example.org", "example.org", "CORP\\ada", 22),
    ],
)
def test_a_host_can_be_typed_with_user_and_port(reader, config, *, typed, host, user, port):
    found = resolve_destination(typed, config)
    assert (found.host_name, found.user, found.port) == (host, user or getpass.getuser(), port)
    assert found.identity_files == ()
    assert found.connect_timeout == 10.0


@pytest.mark.parametrize(
    "typed",
    ["", "-oProxyCommand=touch x", "a b", "ada@", "@host", "a:99999", "a:x", "a;b", "a\nb", "$(x)"],
)
def test_what_is_no_host_is_refused_before_anything_runs(reader, config, typed):
    with pytest.raises(Usage):
        resolve_destination(typed, config)


def test_an_alias_brings_its_settings(reader, config, tmp_path):
    config.write_text(
        "Host box\n HostName box.example.org\n User ada\n Port 2222\n"
        " IdentityFile ~/.ssh/for_%h\n IdentityFile /keys/%r\n IdentitiesOnly yes\n"
        " UserKnownHostsFile /tmp/known_%n ~/.ssh/known_hosts\n HostKeyAlias the-box\n"
        " ConnectTimeout 3\n IdentityAgent none\n"
    )
    found = resolve_destination("box", config)
    assert found.host_name == "box.example.org"
    assert (found.user, found.port) == ("ada", 2222)
    assert found.identity_files == (
        tmp_path / ".ssh" / "for_box.example.org",
        Path("/keys/ada"),
    )
    assert found.identities_only
    assert found.known_hosts_files[:2] == (
        Path("/tmp/known_box"),
        tmp_path / ".ssh" / "known_hosts",
    )
    assert found.host_key_alias == "the-box"
    assert found.connect_timeout == 3.0
    assert found.identity_agent == "none"
    assert found.label == "box (box.example.org:2222)"


def test_what_was_typed_beats_the_configuration(reader, config):
    config.write_text("Host box\n HostName box.example.org\n User ada\n Port 2222\n")
    found = resolve_destination("eve@box:22", config)
    assert (found.user, found.port) == ("eve", 22)


def test_default_files_are_in_the_home_that_HOME_names(reader, config, tmp_path):  # noqa: N802
    assert (
        resolve_destination("box", config).known_hosts_files[0] == tmp_path / ".ssh" / "known_hosts"
    )


def test_a_path_with_a_space_stays_one_path(config):
    config.write_text('Host box\n UserKnownHostsFile "/tmp/a b/known" /tmp/c\n')
    if shutil.which("ssh"):
        found = resolve_destination("box", config)
        assert found.known_hosts_files[:2] == (Path("/tmp/a b/known"), Path("/tmp/c"))


def test_include_is_followed_by_ssh(config, tmp_path):
    if not shutil.which("ssh"):
        pytest.skip("no OpenSSH client here")
    (tmp_path / "more").write_text("Host box\n HostName included.example.org\n")
    config.write_text(f"Include {tmp_path}/more\n")
    assert resolve_destination("box", config).host_name == "included.example.org"


def test_jump_hosts_come_nearest_first(reader, config):
    config.write_text(
        "Host far\n HostName far.example.org\n ProxyJump ada@near:2200,middle\n"
        "Host near\n HostName near.example.org\n ProxyJump gate\n"
        "Host middle\n HostName middle.example.org\n ProxyJump not-used\n"
        "Host gate\n HostName gate.example.org\n"
    )
    found = resolve_destination("far", config)
    assert [hop.host_name for hop in found.jumps] == [
        "gate.example.org",
        "near.example.org",
        "middle.example.org",
    ]
    assert (found.jumps[1].user, found.jumps[1].port) == ("ada", 2200)
    assert all(hop.jumps == () for hop in found.jumps)


def test_jump_hosts_in_a_circle_are_an_error(reader, config):
    config.write_text("Host a\n ProxyJump b\nHost b\n ProxyJump a\n")
    with pytest.raises(BadConfiguration, match="circle"):
        resolve_destination("a", config)


def test_a_proxy_command_keeps_its_place(reader, config):
    config.write_text("Host box\n ProxyCommand nc %h %p\n HostName box.example.org\n")
    assert resolve_destination("box", config).proxy_command == "nc box.example.org 22"


def test_proxyjump_none_is_no_jump(reader, config):
    config.write_text("Host box\n ProxyJump none\n ProxyCommand none\n")
    found = resolve_destination("box", config)
    assert (found.jumps, found.proxy_command) == ((), "")


def test_a_missing_file_is_an_error_unless_it_is_the_usual_one(reader, config, tmp_path):
    with pytest.raises(BadConfiguration, match="does not exist"):
        resolve_destination("box", tmp_path / "missing")
    assert resolve_destination("box", tmp_path / ".ssh" / "config").host_name == "box"


def test_a_broken_file_is_named(config):
    if not shutil.which("ssh"):
        pytest.skip("no OpenSSH client here")
    config.write_text("Host box\n Prot 22\n")
    with pytest.raises(BadConfiguration, match=r"ssh_config|configuration") as caught:
        resolve_destination("box", config)
    assert "Traceback" not in str(caught.value)


def test_a_slow_match_exec_ends_at_the_limit(config, monkeypatch):
    if not shutil.which("ssh"):
        pytest.skip("no OpenSSH client here")
    monkeypatch.setattr(ssh_config, "QUERY_WITHIN", 0.3)
    config.write_text('Match exec "exec sleep 3"\n User ada\n')
    with pytest.raises(Unreachable, match="did not answer"):
        resolve_destination("box", config)


def test_tokens_of_this_machine_are_filled_in(reader, config):
    config.write_text("Host box\n IdentityFile /k/%u-%L\n")
    short = socket.gethostname().partition(".")[0]
    assert resolve_destination("box", config).identity_files == (
        Path(f"/k/{getpass.getuser()}-{short}"),
    )


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """We are a user id that the system does not know, as in many containers."""

    def unknown(*_who: object) -> None:
        message = "getpwuid(): uid not found: 54321"
        raise KeyError(message)

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("getpwuid", "getpwnam"):
        monkeypatch.setattr(pwd, name, unknown)


CONDITIONS = """
Host box
 HostName %h.example.org
Match host other
 Port 99
Match localuser ada
 Port 98
"""


def test_without_a_name_of_ones_own_a_user_that_is_given_will_do(config, nobody):
    config.write_text(CONDITIONS)
    found = resolve_destination("ada@box", config)
    assert (found.user, found.host_name, found.port) == ("ada", "box.example.org", 22)
    assert resolve_destination("eve@other", config).port == 99


def test_without_any_name_that_is_a_sentence(config, nobody):
    config.write_text(CONDITIONS)
    with pytest.raises(BadConfiguration, match="nobody is named to log in as") as caught:
        resolve_destination("box", config)
    assert "user@host" in caught.value.advice


def test_without_a_home_that_is_a_sentence(config, nobody, monkeypatch):
    monkeypatch.delenv("HOME")
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "REMOTER_CONFIG", "REMOTER_STATE"):
        monkeypatch.delenv(name, raising=False)
    assert Remote(name="box", host="box").ssh_config == Path("~/.ssh/config")
    for need in (partial(resolve_destination, "ada@box", config), config_path, state_folder):
        with pytest.raises(BadConfiguration, match="HOME is not set"):
            need()


def test_a_destination_is_plain_and_comparable():
    assert Destination("h", 22, "u") == Destination("h", 22, "u")
    assert Destination("h", 22, "u").label == "h"
    assert Destination("h", 2222, "u").label == "h:2222"
