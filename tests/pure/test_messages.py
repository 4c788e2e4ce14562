"""What is read from a message at a glance."""

from __future__ import annotations

import json

import pytest

from remoter_kernel.protocol.messages import (
    execution_state,
    header_of,
    is_silent,
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, False),
        ({"silent": False, "store_history": True}, False),
        ({"silent": True}, True),
        ({"silent": False, "store_history": False}, True),
    ],
)
def test_what_a_client_runs_for_itself_is_no_cell(content, expected):
    """By either word: VS Code says only that its code is not to be remembered."""
    assert is_silent(content) is expected


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("status", {"execution_state": "restarting"}, True),
        ("status", {"execution_state": "idle"}, False),
        ("stream", {"name": "stdout", "text": '"restarting"'}, False),
        ("execute_result", {"data": {"text/plain": "restarting"}}, False),
    ],
)
def test_the_word_of_a_new_start_is_known_from_others(kind, content, expected):
    """Only a state says it, whatever a cell prints."""
    header = json.dumps({"msg_type": kind}).encode()
    parts = [b"", header, b"{}", b"{}", json.dumps(content).encode()]
    assert (execution_state(parts) == "restarting") is expected


IDLE = b'{"execution_state": "idle"}'
A_STATUS = b'{"msg_type": "status"}'


@pytest.mark.parametrize(
    ("header", "content", "expected"),
    [
        (A_STATUS, IDLE, "idle"),
        (A_STATUS, b'{"execution_state":"busy"}', "busy"),
        (A_STATUS, b'{"why": "a long word that comes first, as JSON may", ' + IDLE[1:], "idle"),
        (b'{"msg_type": "execute_result"}', b'{"data": {"text/plain": "\\"idle\\""}}', ""),
        (b'{"msg_type": "comm_msg"}', IDLE, ""),
        (b'{"msg_type": "stream", "username": "status"}', IDLE, ""),
        (A_STATUS, b'{"execution_state": ["idle"]}', ""),
        (A_STATUS, b'["idle"]', ""),
        (A_STATUS, b"\xff", ""),
        (b'{"msg_type": "status"', IDLE, ""),
        (b"[" * 100_000 + b'"status"', IDLE, ""),
    ],
)
def test_a_state_is_known_by_the_type_of_its_message(header, content, expected):
    """Not by what its content begins with: an output may say the same."""
    parts = [b"", header, b"{}", b"{}", content]
    assert execution_state(parts) == expected
    assert execution_state([memoryview(part) for part in parts]) == expected


def test_what_is_no_text_in_a_message_is_shown_as_such():
    """A kernel prints a file's name as it is: Jupyter's own clients read it so, too."""
    body = json.dumps({"text": "a \udcff"}, ensure_ascii=False).encode("utf-8", "surrogateescape")
    assert header_of(body) == {"text": "a �"}
