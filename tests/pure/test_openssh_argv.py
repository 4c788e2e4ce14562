"""What the system's ssh is told, and what its complaints become."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

from remoter_kernel.errors import (
    BadConfiguration,
    ForwardingRefused,
    HostKeyProblem,
    LoginRefused,
    Unreachable,
)
from remoter_kernel.local.login.destination import Destination, OpenSSHOptions
from remoter_kernel.local.login.login import HostKeyNotAsked
from remoter_kernel.local.login.login_errors import NoCommonAlgorithm
from remoter_kernel.local.login.openssh.openssh_argv import master_argv, ssh_argv, standalone_argv
from remoter_kernel.local.login.openssh.stderr_errors import error_from_stderr
from remoter_kernel.local.login.prompts import NeedsPerson

BOX = Destination("box.example.org", 2222, "ada", alias="box")


def options_of(words):
    return dict(word.split("=", 1) for before, word in itertools.pairwise(words) if before == "-o")


@pytest.mark.parametrize(
    ("may_ask", "batch", "strict"), [(True, "no", "ask"), (False, "yes", "yes")]
)
def test_where_nobody_may_be_asked_nothing_is(may_ask, batch, strict):
    options = options_of(ssh_argv(BOX, (), "ERROR", may_ask=may_ask))
    assert (options["BatchMode"], options["StrictHostKeyChecking"]) == (batch, strict)


def test_a_path_is_quoted_and_its_percents_are_no_tokens():
    options = options_of(ssh_argv(BOX, (Path("/a b/100%"), Path("/c")), "ERROR", may_ask=True))
    assert options["UserKnownHostsFile"] == '"/a b/100%%" "/c"'
    assert options["GlobalKnownHostsFile"] == "none"


def test_only_what_this_ssh_knows_is_overruled():
    old = options_of(ssh_argv(BOX, (), "ERROR", may_ask=True))
    assert "forkafterauthentication" not in old
    new = Destination("h", 22, "u", openssh=OpenSSHOptions(keywords=frozenset({"remotecommand"})))
    assert options_of(ssh_argv(new, (), "ERROR", may_ask=True))["remotecommand"] == "none"


def test_how_a_dead_connection_is_noticed_is_the_persons_choice_first():
    assert options_of(ssh_argv(BOX, (), "ERROR", may_ask=True))["ServerAliveInterval"] == "15"
    chosen = Destination("h", 22, "u", openssh=OpenSSHOptions(keeps_alive=True))
    assert "ServerAliveInterval" not in options_of(ssh_argv(chosen, (), "ERROR", may_ask=True))


def test_a_host_is_never_taken_for_an_option():
    assert master_argv(["ssh"], Path("/s"), "-oProxyCommand=x")[-2:] == ["--", "-oProxyCommand=x"]
    words = standalone_argv(["ssh"], "-W", "a:1", host="h", command="ls -l")
    assert words[-3:] == ["--", "h", "ls -l"]


@pytest.mark.parametrize(
    ("said", "kind", "sentence"),
    [
        ("ssh: Could not resolve hostname box.example.org: ?", Unreachable, "does not resolve"),
        ("ssh: connect to host h port 2222: Connection refused", Unreachable, "port 2222"),
        ("ssh: connect to host h port 2222: Connection timed out", Unreachable, "within 10 s"),
        ("Connection timed out during banner exchange", Unreachable, "within 10 s"),
        ("ssh: connect to host h port 22: No route to host", Unreachable, "no route to host"),
        ("Connection closed by 1.2.3.4 port 22", Unreachable, "during the step 'host key'"),
        (
            "kex_exchange_identification: read: Connection reset by peer",
            Unreachable,
            "ended the connection",
        ),
        (
            "REMOTE HOST IDENTIFICATION HAS CHANGED!\nOffending ED25519 key in /k/known:3\n",
            HostKeyProblem,
            "/k/known, line 3",
        ),
        (
            "@ WARNING: REVOKED HOST KEY DETECTED! @\nHost key verification failed.",
            HostKeyProblem,
            "revoked",
        ),
        ("Host key verification failed.", HostKeyNotAsked, "ssh-x SHA256:y"),
        ("ada@box: Permission denied (publickey,password).", NeedsPerson, "publickey, password"),
        ("Received disconnect: Too many authentication failures", LoginRefused, "too many keys"),
        ("Unable to negotiate: no matching cipher found. Their", NoCommonAlgorithm, "no cipher in"),
        ("channel 0: open failed: administratively prohibited", ForwardingRefused, "jump host"),
        ("stdio forwarding failed\nConnection closed by ?", Unreachable, "from its jump host"),
        ("/c: line 1: Bad configuration option: prot", BadConfiguration, "option: prot"),
        ("something new\x1b[31m", Unreachable, r': "something new"\. Try'),
        ("debug1: only this", Unreachable, "said nothing"),
    ],
)
def test_a_complaint_becomes_a_sentence(said, kind, sentence):
    box = replace(BOX, known_hosts_files=(Path("/k/known"),))
    error = error_from_stderr(box, said, "host key", "ssh-x SHA256:y", may_ask=False)
    assert type(error) is kind
    assert re.search(sentence, str(error)), str(error)


BEFORE_GREETING = (
    "debug1: kex_exchange_identification: banner line 0: Not allowed at this time\n"
    "kex_exchange_identification: Connection closed by remote host"
)
FAREWELL = (
    "Received disconnect from 10.0.0.1 port 22:11: Bye for today\n"
    "Disconnected from 10.0.0.1 port 22"
)
EXPIRED = (
    "debug1: SSH2_MSG_NEWKEYS received\nrules\nThe account has expired.\n"
    "Connection closed by 10.0.0.1 port 22"
)
GATE = (
    "debug1: Executing proxy command: exec gate\ngate: your token has expired\n"
    "kex_exchange_identification: Connection closed by remote host\n"
    "Connection closed by UNKNOWN port 65535"
)


@pytest.mark.parametrize(
    ("said", "step", "aside", "sentence"),
    [
        (
            BEFORE_GREETING,
            "connect",
            "",
            'and said: "Not allowed at this time"',
        ),
        (
            FAREWELL,
            "host key",
            "",
            'and said: "Bye for today"',
        ),
        (
            EXPIRED,
            "login",
            "rules\nThe account has expired.\n",
            'and said: "rules / The account has expired."',
        ),
        ("Connection closed by 10.0.0.1 port 22", "login", "", "step 'login'. Try again"),
    ],
)
def test_what_a_server_says_as_it_hangs_up_is_told(said, step, aside, sentence):
    error = error_from_stderr(BOX, said, step, "", may_ask=True, server_text=aside)
    assert sentence in str(error)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            GATE,
            f'the ProxyCommand of {BOX.label} gave no connection: "gate: your token has expired"',
        ),
        (
            "gate: to 10.9.9.9: Connection refused\nConnection closed by UNKNOWN port 65535",
            f'the ProxyCommand of {BOX.label} gave no connection: "gate: to 10.9.9.9: Conn',
        ),
        (
            "Connection closed by UNKNOWN port 65535",
            f"{BOX.label} ended the connection during the step",
        ),
        ("stdio forwarding failed\nConnection closed by UNKNOWN", "from its jump host"),
    ],
)
def test_a_proxy_command_says_itself_why_it_fails(said, sentence):
    box = replace(BOX, proxy_command="gate")
    error = error_from_stderr(box, said, "connect", "", may_ask=True)
    assert isinstance(error, Unreachable)
    assert sentence in str(error)


def test_where_nobody_could_be_asked_the_ways_without_a_question_are_named():
    said = "ada@box: Permission denied (password)."
    assert "agent" in error_from_stderr(BOX, said, "login", "", may_ask=False).advice
    assert "Nobody" not in error_from_stderr(BOX, said, "login", "", may_ask=True).advice
