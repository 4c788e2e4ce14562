"""OpenSSH's own client goes in by each way with the right answers, and not with wrong ones."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import pytest

from tests.at_terminal import Ended, at_terminal
from tests.real_bad_logins import BAD, CUTS, cut_after
from tests.real_logins import KINDS, PATHS, LoginGround, Way


def go(way: Way, *options: str, command: str = "id -un") -> Ended:
    """Log in as a person would, with OpenSSH."""
    options = ("-o", "BatchMode=yes", *options) if not way.questions else options
    words = way.ssh(*options, command=command)
    return at_terminal(words, way.questions, environment=way.environment, seconds=20)


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_answers_are_let_in_once_each_and_wrong_ones_not(
    ground: LoginGround, kind: str
) -> None:
    """All questions are asked; the server counts one login for each that it lets in."""
    way = ground.way(kind)
    for times in (1, 2):
        ended = go(way)
        assert (ended.status, ended.asked) == (0, len(way.questions)), ended.text
        assert way.user in ended.text.split()
        assert way.sshd.accepted() == times
    ended = go(way.wrong)
    assert ended.status == 255, ended.text
    assert way.sshd.accepted() == 2
    assert not [one for one in ground.secrets if one in ended.text]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["ed25519", "password and code"])
def test_each_path_leads_there(ground: LoginGround, kind: str, path: str) -> None:
    """By every path, with a key and with questions."""
    way = ground.way(kind, path)
    ended = go(way)
    assert ended.status == 0, ended.text
    assert way.user in ended.text.split()  # ssh may complain of its end behind it


def test_there_is_no_way_but_the_jumps(ground: LoginGround) -> None:
    """What is behind a jump host cannot be reached without it, nor the next with one only."""
    for path, jump in (("one jump", "none"), ("two jumps", "none"), ("two jumps", "jump-gate")):
        way = ground.way("ed25519", path)
        ended = go(way, "-o", f"ProxyJump={jump}", "-o", "ConnectTimeout=1")
        assert ended.status == 255, ended.text


def test_forwarding_is_forbidden_where_it_is_said_to_be(ground: LoginGround) -> None:
    """A command runs, a tunnel does not open."""
    way = ground.way("ed25519", "no forwarding")
    assert go(way).status == 0
    port = way.sshd.port
    tried = subprocess.run(
        ["ssh", "-F", way.config, "-W", f"127.0.0.1:{port}", way.alias],
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert tried.returncode == 255
    assert b"prohibited" in tried.stderr


def test_a_code_works_once(ground: LoginGround) -> None:
    """Whoever types it again is not let in."""
    way = ground.way("code")
    code = way.questions[0].answer()
    typed = [replaced(way, code), replaced(way, code)]
    assert [go(one).status for one in typed] == [0, 255]


def replaced(way: Way, answer: str) -> Way:
    """Give the way with this answer to its question."""
    (question,) = way.questions
    return replace(way, questions=(replace(question, answer=lambda: answer),))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_host_is_as_bad_as_it_says(ground: LoginGround, name: str) -> None:
    """It lets in or refuses, and one sees why."""
    host = BAD[name]
    way = host.way(ground)
    ended = go(way, "-t", command=host.command)
    assert way.sshd.accepted() == host.lets_in, ended.text
    assert host.lets_in or ended.status == 255
    assert re.search(host.shows, ended.text, re.MULTILINE), ended.text


@pytest.mark.parametrize("step", CUTS)
def test_a_path_that_is_cut_in_each_step(ground: LoginGround, step: str) -> None:
    """The login ends, and was not accepted."""
    way = ground.way("ed25519")
    before = way.sshd.accepted()
    assert go(cut_after(ground, way, CUTS[step])).status == 255
    assert way.sshd.accepted() == before
