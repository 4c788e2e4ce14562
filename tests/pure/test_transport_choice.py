"""Which transport is taken, for each set of facts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from remoter_kernel.local.login.log_in import TransportFacts, choose_transport

CLEAR = TransportFacts(has_ssh=True)


@pytest.mark.parametrize(
    ("wish", "facts", "transport", "reason"),
    [
        ("auto", CLEAR, "paramiko", ""),
        ("auto", TransportFacts(has_ssh=True, has_master=True), "openssh", "ControlMaster"),
        ("auto", TransportFacts(has_ssh=True, has_ticket=True), "openssh", "Kerberos ticket"),
        (
            "auto",
            TransportFacts(has_ssh=True, has_only_security_keys=True),
            "openssh",
            "security key",
        ),
        ("auto", TransportFacts(has_ssh=True, is_known_by_authority=True), "openssh", "authority"),
        ("auto", TransportFacts(has_ssh=True, beyond_paramiko="it says X"), "openssh", "it says X"),
        ("auto", TransportFacts(beyond_paramiko="it says X"), "paramiko", ""),
        (
            "auto",
            TransportFacts(has_ssh=True, needs_proxy_on_windows=True),
            "openssh",
            "ProxyCommand",
        ),
        (
            "auto",
            TransportFacts(has_ssh=True, has_master=True, has_ticket=True),
            "openssh",
            "Master",
        ),
        ("auto", TransportFacts(has_ticket=True, has_only_security_keys=True), "paramiko", ""),
        ("paramiko", TransportFacts(has_ssh=True, has_master=True), "paramiko", ""),
        ("openssh", CLEAR, "openssh", ""),
        ("openssh", TransportFacts(), "openssh", ""),
    ],
)
def test_the_facts_decide(wish, facts, transport, reason):
    chosen, why = choose_transport(wish, facts)
    assert chosen == transport
    assert reason in why
    assert bool(why) == bool(reason)


def test_every_fact_counts():
    for fact in fields(TransportFacts):
        if fact.name != "has_ssh":
            value: Any = True if fact.type == "bool" else "a reason"
            assert (
                choose_transport("auto", TransportFacts(has_ssh=True, **{fact.name: value}))[0]
                == "openssh"
            )
