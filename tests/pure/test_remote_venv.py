"""What an environment needs, what it stands on, and what is said of each trouble."""

from __future__ import annotations

import pytest

from remoter_kernel.errors import RemoteLacks, Usage
from remoter_kernel.local.launch import remote_venv as environment_there
from remoter_kernel.local.launch.host_probe import FoundPython, HostProbeResult
from remoter_kernel.local.launch.remote_venv import (
    choose_base_python,
    parse_installer_answer,
    sessions_using,
    venv_contents,
)
from remoter_kernel.local.launch.remote_venv_script import ANSWER_MARK
from remoter_kernel.local.login.login import CompletedCommand
from remoter_kernel.plain_text import plain_text


def around(*versions):
    pythons = (FoundPython(f"/p{each}", each, False, False, False) for each in versions)
    return HostProbeResult(tuple(pythons), "/home/me", "Linux x86_64")


def test_a_kernel_of_another_language_gets_what_the_evaluator_needs_alone():
    assert venv_contents("ir").packages == ("pyzmq", "jupyter_client")
    assert "ipykernel" in venv_contents("python3").packages


def test_it_stands_on_the_likeliest_python_that_is_new_enough():
    assert choose_base_python(around("3.8.1", "3.10.2", "3.13.0"), "").version == "3.10.2"


NO_BASE = {
    "none": ((), "", "no Python was found", "no root"),
    "not the named one": ((), "/x", "there is no Python /x that runs", "--python"),
    "too old": (("2.7.18", "3.6.8", "3.4.0"), "", "/p3.6.8 is Python 3.6.8", "--python"),
}


@pytest.mark.parametrize(("versions", "named", "what", "advice"), NO_BASE.values(), ids=NO_BASE)
def test_where_there_is_nothing_to_stand_on_it_says_so(versions, named, what, advice):
    with pytest.raises(RemoteLacks) as caught:
        choose_base_python(around(*versions), named)
    assert what in caught.value.what
    assert "3.9 or newer" in caught.value.what
    assert advice in caught.value.advice


RETRIES = "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError'"
TROUBLES = {
    "no index": (
        "pip",
        f"{RETRIES}\nERROR: No matching distribution found for pip\n",
        "does not reach a package index: No matching distribution found for pip.",
        "--offline",
    ),
    "no package": (
        "pip",
        "ERROR: No matching distribution found for ipykernel\n\n[notice] x\n",
        "pip failed there: No matching distribution found for ipykernel.",
        "--python",
    ),
    "a crash": ("pip", "Collecting x\nits Python died of signal 11", "died of signal 11", ""),
    "a full disk": ("pip", "OSError: [Errno 28] No space left on device", "no room", "Make room"),
    "a quota": ("file", "Disk quota exceeded: /home/me/x", "Disk quota exceeded", "Make room"),
    "a home of another": ("file", "Permission denied: /home/me/x", "could not be written", "home"),
    "noexec": ("import", "ImportError: x.so: failed to map segment", "executed", "noexec"),
    "a broken package": ("import", "ImportError: bad\x1b[2J", "does not work there: Imp", ""),
    "another one at it": ("busy", "/home/me/venv", "still at work in /home/me/venv", "Wait"),
}


@pytest.mark.parametrize(("kind", "said", "what", "advice"), TROUBLES.values(), ids=TROUBLES)
def test_each_trouble_is_told_with_what_to_do(kind, said, what, advice):
    with pytest.raises(RemoteLacks) as caught:
        environment_there._raise_install_error(kind, said)
    assert what in caught.value.what
    assert advice in caught.value.advice
    assert plain_text(caught.value) == str(caught.value)


def test_only_the_line_for_us_is_read():
    assert parse_installer_answer(CompletedCommand(b'banner\n\n@x {"a": 1}\n', b"", 0)) is None
    line = f"{ANSWER_MARK} ".encode()
    assert parse_installer_answer(
        CompletedCommand(b"motd\n\n" + line + b'{"a": 1}\nlogout\n', b"", 0)
    ) == {"a": 1}
    assert parse_installer_answer(CompletedCommand(line + b'{"a": ', b"", 0)) is None


def session(name, **facts):
    about = {"id": name, "remote": "box", "host": "here", "state": "idle", "pid": 1}
    return {**about, **facts}


def test_sessions_in_an_environment_are_known_by_process_host_and_remote():
    facts = {"host": "here", "running": [7]}
    told = [
        session("ours", pid=7),
        session("another-remote-in-it", pid=7, remote="b"),
        session("outside", pid=8),
        session("elsewhere", host="there", pid=9),
        session("elsewhere-and-not-ours", host="there", pid=9, remote="b"),
        session("orphan", state="dead", pid=None),
        session("over", state="ended", pid=None),
    ]
    names = ["ours", "another-remote-in-it", "elsewhere", "orphan"]
    assert sessions_using(told, facts, "box") == names
    assert sessions_using([told[5]], {"host": "here", "running": []}, "box") == []


def test_who_is_in_the_way_is_named():
    facts = {"environment": "/v", "running": [7, 8]}
    with pytest.raises(Usage, match=r"processes 7, 8 there still run in /v"):
        environment_there._raise_in_use(facts)
    with pytest.raises(Usage, match=r"sessions a, b still run in /v\. .*remoter stop a b"):
        environment_there._raise_in_use(facts, ["a", "b"])
    with pytest.raises(Usage, match="session a still runs in /v"):
        environment_there._raise_in_use(facts, ["a"])
