"""What follows from the words of ssh_config."""

from __future__ import annotations

import pytest

from remoter_kernel.local.login.ssh_keywords import METHODS, filter_algorithms, login_rules

OWN = ("a-gcm", "a-ctr", "b-ctr")


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("b-ctr,a-gcm", ("b-ctr", "a-gcm")),
        ("strange,a-ctr", ("a-ctr",)),
        ("strange", ()),
        ("+strange", OWN),
        ("-a-*", ("b-ctr",)),
        ("^b-ctr,strange", ("b-ctr", "a-gcm", "a-ctr")),
        ("*-ctr", ("a-ctr", "b-ctr")),
        ("a-ctr, a-ctr", ("a-ctr",)),
    ],
)
def test_a_list_leaves_what_it_names_of_our_own(wanted, offered):
    assert filter_algorithms(OWN, wanted) == offered


@pytest.mark.parametrize(
    ("said", "methods", "forbids"),
    [
        ({}, tuple(METHODS), ""),
        ({"pubkeyauthentication": ["false"]}, tuple(METHODS)[1:], "PubkeyAuthentication no"),
        (
            {"preferredauthentications": ["gssapi-with-mic,password,publickey"]},
            ("password", "publickey"),
            "PreferredAuthentications gssapi-with-mic,password,publickey",
        ),
        (
            {"preferredauthentications": ["password"], "passwordauthentication": ["no"]},
            (),
            "PreferredAuthentications password, PasswordAuthentication no",
        ),
        ({"numberofpasswordprompts": ["0"]}, ("publickey",), "NumberOfPasswordPrompts 0"),
    ],
)
def test_what_may_be_tried_is_what_no_word_forbids(said, methods, forbids):
    rules = login_rules(said, None)
    assert rules.methods == methods
    assert rules.forbidden_by(tuple(METHODS)) == forbids


def test_what_is_as_usual_says_nothing():
    usual = {"ciphers": ["a,b"], "checkhostip": ["yes"], "hostname": ["x"]}
    assert login_rules({**usual, "hostname": ["y"]}, usual) == login_rules({}, None)
    rules = login_rules({**usual, "ciphers": ["a"]}, usual)
    assert (rules.algorithms, rules.unsupported) == ((("ciphers", "a"),), ())


def test_the_weightiest_word_is_named_first():
    said = {"bindaddress": ["::1"], "rekeylimit": ["1 1"], "revokedhostkeys": ["/x"]}
    rules = login_rules(said, {"rekeylimit": ["0 0"]})
    assert rules.unsupported == ("RevokedHostKeys", "BindAddress", "RekeyLimit")
    assert rules.unsafe_to_ignore == ("RevokedHostKeys",)
