"""What waits on this side for a login: read in any shape, forgotten exactly once answered."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from remoter_kernel.local.launch.launcher import parse_command_results
from remoter_kernel.local.session import undelivered_commands

ODD = {
    "torn": '{"order": "stop", "kernel_',
    "empty": "",
    "a list": "[1]",
    "a number": "7",
    "too deep": "[" * 100_000,
    "too large": json.dumps({"order": "stop", "session": "a" * 100_000}),
    "no text": "\udcff",
    "of nobody": '{"order": "stop"}',
    "of a newer version": '{"order": "pause", "session": "7f3a9c"}',
    "with another kind of name": '{"order": "stop", "session": {"id": 1}}',
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path))
    folder = tmp_path / "orders/box"
    folder.mkdir(parents=True)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_what_makes_no_sense_is_told_once_and_goes(folder, text):
    """It is not sent, and the others are."""
    (folder / "odd.json").write_bytes(text.encode(errors="surrogateescape"))
    undelivered_commands.save_command("box", "k1", "7f3a9c", "stop")
    pending = undelivered_commands.load_commands("box")
    (good,) = [each.as_sent for each in pending if each.fields]
    assert good.pop("nonce")
    assert good == {"order": "stop", "kernel_id": "k1", "session": "7f3a9c", "name": "k1"}
    told = undelivered_commands.discard_answered(pending, [])
    assert len(told) == 1
    assert "makes no sense" in told[0]
    assert names(folder) == ["k1.json"]
    assert (
        undelivered_commands.discard_answered(undelivered_commands.load_commands("box"), []) == []
    )


def test_exactly_what_was_answered_is_forgotten(folder):
    """What was done goes without a word, what cannot be done with one; the rest stays."""
    for name in ("done", "failed", "elsewhere", "untried"):
        undelivered_commands.save_command("box", name, "7f3a9c", "restart")
    answers = [
        {"name": name, "became": name, "why": why}
        for name, why in (("done", ""), ("failed", "It crashes."), ("elsewhere", "On node7."))
    ]
    told = undelivered_commands.discard_answered(undelivered_commands.load_commands("box"), answers)
    assert len(told) == 1
    assert told[0].startswith("Session 7f3a9c could not be restarted")
    assert "It crashes." in told[0]
    assert names(folder) == ["elsewhere.json", "untried.json"]


def test_one_of_an_older_version_is_known_by_its_file(folder):
    """It names no kernel, only a session."""
    (folder / "old.json").write_text('{"order": "stop", "session": "7f3a9c"}')
    (pending,) = undelivered_commands.load_commands("box")
    assert pending.as_sent["name"] == "old"
    undelivered_commands.discard_answered(
        (pending,), [{"name": "old", "became": "done", "why": ""}]
    )
    assert names(folder) == []


def test_what_was_written_meanwhile_is_not_forgotten(folder):
    """A restart was carried out; the stop that came after it was not."""
    undelivered_commands.save_command("box", "k", "", "restart")
    pending = undelivered_commands.load_commands("box")
    undelivered_commands.save_command("box", "k", "", "stop")
    assert (
        undelivered_commands.discard_answered(pending, [{"name": "k", "became": "done", "why": ""}])
        == []
    )
    assert [each.fields["order"] for each in undelivered_commands.load_commands("box")] == ["stop"]


def test_what_waits_for_a_machine_that_is_never_met_goes_in_the_end(folder):
    """After a month it is told, and it is gone."""
    undelivered_commands.save_command("box", "k", "7f3a9c", "stop")
    long_ago = time.time() - undelivered_commands.DISCARD_AFTER - 60
    os.utime(folder / "k.json", (long_ago, long_ago))
    answer = {"name": "k", "became": "elsewhere", "why": ""}
    (told,) = undelivered_commands.discard_answered(
        undelivered_commands.load_commands("box"), [answer]
    )
    assert "not met for too long" in told
    assert names(folder) == []


def test_what_the_disk_does_not_give_just_now_is_read_the_next_time(folder, monkeypatch):
    """A home that is far away may fail once (ESTALE)."""
    undelivered_commands.save_command("box", "k", "7f3a9c", "stop")
    with monkeypatch.context() as stale:

        def fail(*_words, **_options):
            raise OSError(errno.ESTALE, "stale")

        for name in ("open", "read_text", "read_bytes"):
            stale.setattr(Path, name, fail)
        pending = undelivered_commands.load_commands("box")
    assert undelivered_commands.discard_answered(pending, []) == []
    assert [each.fields["order"] for each in undelivered_commands.load_commands("box")] == ["stop"]


def test_what_has_replaced_nonsense_meanwhile_stays(folder):
    (folder / "k.json").write_text("{")
    pending = undelivered_commands.load_commands("box")
    undelivered_commands.save_command("box", "k", "7f3a9c", "stop")
    undelivered_commands.discard_answered(pending, [])
    assert [each.fields["order"] for each in undelivered_commands.load_commands("box")] == ["stop"]


def test_each_has_a_name_of_its_own():
    """By that the remote knows it again, whatever login brings it."""
    undelivered_commands.save_command("box", "k", "", "restart")
    (first,) = undelivered_commands.load_commands("box")
    undelivered_commands.save_command("box", "k", "", "restart")
    (second,) = undelivered_commands.load_commands("box")
    assert first.as_sent["nonce"] != second.as_sent["nonce"]
    assert first.as_sent["nonce"] == json.loads(first.text)["nonce"]


@pytest.mark.parametrize(
    "line", [b"", b"lacks zip", b"[]", b"7", b'{"commands": 7}', b'{"commands": [7]}', b"[" * 9999]
)
def test_an_answer_without_commands_is_none(line):
    """Whatever a host says: nothing is forgotten for it."""
    assert parse_command_results(line) == []


def test_answers_are_read_whatever_became_of_the_start():
    """A start that failed has carried out what came before it."""
    line = b'{"lacks": "room", "commands": [{"name": "k", "became": "failed", "why": "x\\u001b"}]}'
    assert parse_command_results(line) == [{"name": "k", "became": "failed", "why": "x"}]
