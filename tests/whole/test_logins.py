"""Every way in that people have, through the program, with both of its transports."""

from __future__ import annotations

import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.at_terminal import Ended, at_terminal
from tests.real_bad_logins import BAD, CUTS, cut_after
from tests.real_logins import KINDS, PATHS, LoginGround, Way

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

    from tests.real_jupyter import JupyterHere

TRANSPORTS = ("paramiko", "openssh")
WHO = "import getpass; print('ran as', getpass.getuser())"
# Each kind, path and transport with two of the others at least; `make slow` takes all together.
QUICK = {
    *((kind, "direct", TRANSPORTS[place % 2]) for place, kind in enumerate(KINDS)),
    *((kind, "one jump", TRANSPORTS[place % 2 - 1]) for place, kind in enumerate(KINDS)),
    *(("ed25519", path, TRANSPORTS[place % 2]) for place, path in enumerate(PATHS)),
    *(("password and code", path, TRANSPORTS[place % 2 - 1]) for place, path in enumerate(PATHS)),
    *(("ed25519", "no forwarding", transport) for transport in TRANSPORTS),
}


def case(*words: str, is_quick: bool) -> ParameterSet:
    """Make one case; the many others wait for `make slow`."""
    marks = () if is_quick else (pytest.mark.slow,)
    return pytest.param(*words, id=", ".join(words), marks=marks)


CASES = [
    case(*each, is_quick=each in QUICK) for each in itertools.product(KINDS, PATHS, TRANSPORTS)
]
WRONG = [
    case(*each, is_quick=each in {("password and code", "paramiko"), ("encrypted key", "openssh")})
    for each in itertools.product(KINDS, TRANSPORTS)
]
# What the command makes of bad hosts: its exit code, and what it must speak of.
OUTCOMES = {
    "an expired certificate": (3, "key|certificate"),
    "a revoked host key": (3, "revoked"),
    "a changed host key": (3, "changed"),
    "fewer tries than keys": (3, "IdentitiesOnly|IdentityFile"),
    "a question that is answered too late": (3, "closed|ended|hung up|gone"),
    "a cut while somebody types": (3, "closed|ended|hung up|gone"),
    "one session per login": (0, "ran as"),
    "no terminal there": (0, "ran as"),
    "the shell csh": (0, "ran as"),
    "the shell tcsh": (0, "ran as"),
    "the shell fish": (0, "ran as"),
    "a noisy profile": (0, "ran as"),
    "a home that is full": (4, "No space left"),
    "a home that runs nothing": (0, "ran as"),
}


def run(here: JupyterHere, way: Way, transport: str) -> Ended:
    """Configure the remote, and run a line there from a terminal."""
    name = f"{way.alias}-{transport}"
    here.add_remote(
        name,
        way.alias,
        ssh_config=way.config,
        transport=transport,
        python=way.python,
        kernel="python3",
        login_lifetime=1.0,  # the next case is to log in by itself
    )
    command = [str(Path(sys.executable).with_name("remoter")), "run", name, "-c", WHO]
    return at_terminal(command, way.questions, environment=way.environment)


@pytest.mark.parametrize(("kind", "path", "transport"), CASES)
def test_a_login_of_this_kind_by_this_path(
    here: JupyterHere, ground: LoginGround, kind: str, path: str, transport: str
) -> None:
    """Every question is asked once, the code runs as the far user, after one login."""
    way = ground.way(kind, path)
    before = way.sshd.accepted()
    ended = run(here, way, transport)
    assert (ended.status, ended.asked) == (0, len(way.questions)), ended.text
    assert f"ran as {way.user}\n" in ended.text
    assert way.sshd.accepted() == before + 1
    assert not [one for one in ground.secrets if one in ended.text]


def test_a_certificate_that_lies_elsewhere_is_for_openssh(
    here: JupyterHere, ground: LoginGround
) -> None:
    """`auto` finds out, and `check` says why."""
    way = ground.way("certificate")
    folder = ground.new_folder()
    text = way.config.read_text()
    key = Path(re.search(rf"Host {way.alias}\n.*?IdentityFile (\S+)", text, re.DOTALL)[1])  # type: ignore[index]
    for name in (key.name, f"{key.name}-cert.pub"):
        (folder / name).write_bytes(key.with_name(name).read_bytes())
    (folder / key.name).chmod(0o600)
    (folder / f"{key.name}-cert.pub").rename(folder / "signed.pub")
    config = folder / "ssh_config"
    named = f"IdentityFile {folder / key.name}\n    CertificateFile {folder / 'signed.pub'}"
    config.write_text(text.replace(f"IdentityFile {key}", named))
    ended = run(here, replace(way, config=config), "auto")
    assert (ended.status, f"ran as {way.user}\n" in ended.text) == (0, True), ended.text
    checked = here.remoter("check", f"{way.alias}-auto", "--json")
    steps = {step["step"]: step for step in json.loads(checked.stdout)["steps"]}
    assert "CertificateFile" in steps["login"]["found"]


@pytest.mark.parametrize(("kind", "transport"), WRONG)
def test_the_wrong_answer_is_not_let_in(
    here: JupyterHere, ground: LoginGround, kind: str, transport: str
) -> None:
    """A sentence says so and what to do; the exit code is that of a login that failed."""
    way = ground.way(kind).wrong
    before = way.sshd.accepted()
    ended = run(here, way, transport)
    assert ended.status == 3, ended.text
    assert ended.asked <= 3, ended.text
    assert way.sshd.accepted() == before
    assert_ends_with_a_sentence(ended.text, way)


@pytest.fixture(scope="module", params=BAD)
def bad_host(ground: LoginGround, request: pytest.FixtureRequest) -> tuple[str, Way]:
    """A host on which something is the matter."""
    return request.param, BAD[request.param].way(ground)


@pytest.mark.parametrize("transport", ["paramiko", pytest.param("openssh", marks=pytest.mark.slow)])
def test_a_bad_host_is_told_or_does_no_harm(
    here: JupyterHere, bad_host: tuple[str, Way], transport: str
) -> None:
    """The code runs, or a sentence says what is the matter."""
    name, way = bad_host
    code, speaks_of = OUTCOMES[name]
    ended = run(here, way, transport)
    assert ended.status == code, ended.text
    assert re.search(speaks_of, ended.text), ended.text
    if code:
        assert_ends_with_a_sentence(ended.text, way)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("step", CUTS)
def test_a_cut_in_each_step_of_a_login_is_told(
    here: JupyterHere, ground: LoginGround, step: str, transport: str
) -> None:
    """The login failed, and so it is said."""
    way = cut_after(ground, ground.way("ed25519"), CUTS[step])
    ended = run(here, way, transport)
    assert ended.status == 3, ended.text
    assert_ends_with_a_sentence(ended.text, way)


def assert_ends_with_a_sentence(text: str, way: Way) -> None:
    """The last line is for a person, and names the remote."""
    # What was typed after the question had ended is seen below it, as at any terminal.
    last = text.rstrip().removesuffix("too late").rstrip().splitlines()[-1]
    assert last.startswith(f"remoter: {way.alias}-"), text
    assert last.endswith("."), text
    assert "Traceback" not in text
