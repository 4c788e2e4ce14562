"""How files are sent: in commands that any login shell passes on."""

from __future__ import annotations

import pytest

from remoter_kernel.errors import RemoteLacks
from remoter_kernel.local.launch import upload
from remoter_kernel.local.login.login import CompletedCommand


class Answers:
    """A login whose commands all end in the same way."""

    def __init__(self, status=0, stderr=b""):
        self.ran = CompletedCommand(b"", stderr, status)
        self.commands = []
        self.received = b""

    def run(self, command, stdin=b"", *, seconds=60.0):
        self.commands.append(command)
        self.received += stdin
        return self.ran


def sent(path, login):
    path.write_bytes(b"x" * (upload.CHUNK_SIZE + 1))
    sizes = []
    upload.upload_files(login, [path], "$HOME/f", "/p", sizes.append)
    return sizes


def test_commands_are_one_line_that_any_login_shell_passes_on(tmp_path):
    """No newline, no nested single quote, no `!`: csh and fish read them as sh does."""
    login = Answers()
    assert sent(tmp_path / "a-1.0+b.whl", login) == [upload.CHUNK_SIZE, 1]
    assert login.received == b"x" * (upload.CHUNK_SIZE + 1)
    first, second, admit = login.commands
    assert "cat > " in first
    assert "cat >> " in second
    assert "os.replace(part,whole)" in admit
    for command in login.commands:
        assert "\n" not in command
        assert "!" not in command
        assert command.count("'") == 2


def test_a_name_that_a_shell_would_act_on_is_not_sent(tmp_path):
    login = Answers()
    with pytest.raises(RemoteLacks, match="is no name"):
        sent(tmp_path / "a$(id).whl", login)
    assert login.commands == []


def test_what_does_not_arrive_as_it_was_sent_is_told(tmp_path, monkeypatch):
    full = Answers(1, b"cat: write error: No space left on device\n")
    with pytest.raises(RemoteLacks, match=r"a.whl could not be written there: .*No space left"):
        sent(tmp_path / "a.whl", full)
    damaged = Answers(upload.WRONG_DIGEST)
    damaged_at_the_end = [CompletedCommand(b"", b"", 0), CompletedCommand(b"", b"", 0), damaged.ran]
    monkeypatch.setattr(damaged, "run", lambda *_, **__: damaged_at_the_end.pop(0))
    with pytest.raises(RemoteLacks, match="did not arrive as it was sent"):
        sent(tmp_path / "a.whl", damaged)
