"""All that reads what comes from elsewhere: small valid inputs, and the errors it may end with.

To add one, write a function that takes bytes and put a `Target` into `TARGETS`.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl

from remoter_kernel.errors import ProtocolError, RemoteLacks, RemoterError
from remoter_kernel.evaluator import records
from remoter_kernel.evaluator.kernel_output import split_stream
from remoter_kernel.local.history.executions import ExecutionHistory
from remoter_kernel.local.history.remote_query import JournalReader
from remoter_kernel.local.history.transcript import SessionLogFormatter, Transcript
from remoter_kernel.local.launch.host_probe import PROBE_MARK, parse_probe
from remoter_kernel.local.login.destination import Destination
from remoter_kernel.local.login.known_hosts import read_known_hosts
from remoter_kernel.local.login.openssh.stderr_errors import error_from_stderr
from remoter_kernel.local.objects.codecs.dataframes import check_arrow
from remoter_kernel.local.objects.codecs.from_r import RReader
from remoter_kernel.local.objects.codecs.values import CodecError, ObjectReader, ObjectWriter
from remoter_kernel.local.run.runner import ExitCodeTracker
from remoter_kernel.local.session.dealer_socket import parse_welcome
from remoter_kernel.protocol.frames import (
    Channel,
    FrameHeader,
    MessageType,
    decode_messages,
    encode_message,
    from_json,
    pack_parts,
    to_json,
    unpack_parts,
)
from remoter_kernel.protocol.journal_entries import JournalEntry, encode_entry, split_entries
from remoter_kernel.protocol.link_connection import LinkConnection
from remoter_kernel.protocol.messages import MessageSigner, content_of, header_of, parts_of
from remoter_kernel.protocol.output_backlog import OutputBacklog, collapse
from remoter_kernel.protocol.stream import MemoryOutbox, ReliableStream
from remoter_kernel.transfer.framed_stream import (
    FileEntry,
    FileTrouble,
    entry_from_dict,
    from_body,
    to_body,
)
from remoter_kernel.transfer.safe_paths import safe_names, safe_target

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Target:
    """A reader; `share`: how many of a thousand inputs it gets, more where it is quick."""

    name: str
    read: Callable[[bytes], Any]
    seeds: tuple[bytes, ...]
    errors: tuple[type[Exception], ...] = (ProtocolError,)
    share: int = 40


VOICE = MessageSigner(b"key")
ASKED = {"msg_id": "a1", "msg_type": "execute_request", "session": "s"}


def message(kind: str, **content: Any) -> bytes:
    return pack_parts(VOICE.compose(kind, content, ASKED, topic=b"t"))


MESSAGES = (
    message("stream", name="stdout", text="one\r\x1b[2Ktwo\n"),
    message("display_data", data={"text/plain": "x"}, metadata={}, transient={"display_id": "d"}),
    message("update_display_data", data={"text/html": "x"}, transient={"display_id": "d"}),
    message("execute_result", data={"text/plain": "4"}, execution_count=2, metadata={}),
    message("error", ename="E", evalue="v", traceback=["a", "b"]),
    message("clear_output", wait=True),
    message("status", execution_state="idle"),
    message("execute_input", code="1+1", execution_count=2),
    message("comm_msg", comm_id="c", data={}),
)
REQUEST = pack_parts(VOICE.compose("execute_request", {"code": "2+2", "silent": False}))
REPLY = message("execute_reply", status="ok", execution_count=2)
NOTES = (
    pack_parts(
        [to_json({"event": "ready", "kernel_info": {"implementation": "i"}, "session": "s"})]
    ),
    pack_parts([to_json({"mark": "missing", "bytes": 17, "before": 9})]),
    pack_parts([to_json({"order": "interrupt", "cells": ["a1"]})]),
)
ITEM = encode_message(FrameHeader(MessageType.ITEM, Channel.IOPUB, 1, 0, credit=99), MESSAGES[0])
PARTS = b"".join(
    (
        encode_message(FrameHeader(MessageType.PART, Channel.SHELL, 2, 0), REQUEST[:20]),
        encode_message(FrameHeader(MessageType.ITEM, Channel.SHELL, 2, 0, offset=20), REQUEST[20:]),
        encode_message(FrameHeader(MessageType.PING)),
        encode_message(FrameHeader(MessageType.ACK, acked_bulk=2, credit=1 << 20)),
    )
)
BYE = encode_message(FrameHeader(MessageType.BYE), to_json({"why": "It was stopped."}))
WELCOME = encode_message(
    FrameHeader(MessageType.WELCOME), to_json({"seen": [1, 2], "begin": [3, 4], "id": "x"})
)
SAID = b"".join(
    encode_entry(JournalEntry(number, 1e9, channel, is_front, b"frontone", body))
    for number, (channel, is_front, body) in enumerate(
        ((Channel.SHELL, True, REQUEST), (Channel.IOPUB, False, MESSAGES[0])), 1
    )
)


class Timers:
    """What a pump needs of a reactor: nothing is ever due."""

    def call_later(self, _seconds: float, _call: Any) -> Any:
        return self

    def cancel(self) -> None:
        """Be a timer, too."""


def converse(data: bytes) -> None:
    talk = ReliableStream(MemoryOutbox(), most_item=1 << 16)
    talk.begin()
    talk.open((0, 0))
    talk.head(MessageType.ACK)
    for head, body in decode_messages(data):
        talk.receive(head, body)


def pump(data: bytes) -> None:
    """Whatever comes ends a wire at most."""
    talk = ReliableStream(MemoryOutbox(), most_item=1 << 16)
    talk.begin()
    end = LinkConnection(Timers(), talk, lambda _frame: None)  # type: ignore[arg-type]
    end.start((0, 0))
    end.on_item = lambda head, body: list.clear(parts_of(head.channel, body))
    end.on_frame(data)


def item(data: bytes) -> None:
    for channel in (Channel.IOPUB, Channel.EVENT):
        parts = parts_of(channel, data)
        if channel is Channel.EVENT:
            from_json(parts[0])
        else:
            header_of(parts[1])
            content_of(parts)


def reading(data: bytes) -> None:
    about = {
        "session": {"journal": 1000, "id": "7f3a9c"},
        "is_over": True,
        "bytes": 1,
        "place": None,
    }
    left = [data]
    list(JournalReader(lambda _words: (dict(about), left.pop() if left else b""), "7f3a9c"))


def told(data: bytes) -> None:
    """All that reads the records of a session: what makes no sense is left out."""
    readers = Transcript(lambda _text: None), SessionLogFormatter(), ExitCodeTracker()
    story = ExecutionHistory()
    for channel, is_from_front in ((Channel.SHELL, True), (Channel.IOPUB, False)):
        for body in (REQUEST, data):
            said = JournalEntry(1, 0.0, channel, is_from_front, b"frontone", body)
            story.add_record(said)
            readers[0].add_record(said)
            readers[1].line_of(said)
            readers[2].add_record(said)
    for channel, is_mark in (
        (Channel.EVENT, True),
        (Channel.EVENT, False),
        (Channel.COMMAND, False),
    ):
        said = JournalEntry(2, 0.0, channel, False, b"frontone", data, is_mark)
        story.add_record(said)
        readers[0].add_record(said)
        readers[1].line_of(said)


def waiting(data: bytes) -> None:
    queue = OutputBacklog(100)
    for number, body in enumerate((MESSAGES[0], data, MESSAGES[0]), 1):
        queue.add(number, None, unpack_parts(body))
    queue.limit_text("a1")
    while queue.pop():
        pass


def known_hosts(data: bytes) -> None:
    file = SimpleNamespace(read_bytes=lambda: data)
    list(read_known_hosts(file))  # type: ignore[arg-type]


GPU = Destination(
    "gpu.example.org",
    22,
    "ada",
    known_hosts_files=(Path("/home/ada/.ssh/known_hosts"),),
    alias="gpu",
)


def complaints(data: bytes) -> None:
    said = data.decode("utf-8", "replace")
    str(error_from_stderr(GPU, said, "login", "ED25519 SHA256:x", may_ask=False))


def names(data: bytes) -> None:
    path = data.decode("utf-8", "surrogateescape")
    for is_windows in (False, True):
        parts = safe_names(path, is_windows=is_windows)
        assert not {"", ".", ".."} & set(parts)
        safe_target(path, 1, is_windows=is_windows)


def journal(data: bytes) -> None:
    list(records.Scan(io.BytesIO(data), until=len(data)))


def values(data: bytes, kind: type[ObjectReader] = ObjectReader) -> None:
    assert pd.DataFrame  # or the first of these inputs would be what takes its room
    reader = kind(io.BytesIO(data))
    for tree in reader.tree():
        reader.decode(tree)


def written(*values: Any) -> bytes:
    file = io.BytesIO()
    writer = ObjectWriter(file)
    writer.finish([writer.encode(value, "x") for value in values])
    return file.getvalue()


def of_r(**tree: Any) -> bytes:
    text = json.dumps([{"t": "vector", **tree}]).encode()
    return bytes(range(64)) + text + b"%020d" % len(text)


def arrow(**columns: Any) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(columns).write_ipc(file)
    return file.getvalue()


UNKNOWN_NAME = b"ssh: Could not resolve hostname gpu: Name or service not known\n"
NOTHING_IN_COMMON = (
    b"Unable to negotiate with 1.2.3.4 port 22: no matching host key type found. "
    b"Their offer: ssh-rsa\n"
)
KEY = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32))
SURVEY = (
    PROBE_MARK.encode()
    + b" home /home/ada\n"
    + PROBE_MARK.encode()
    + b" python "
    + json.dumps(
        {
            "prefix": "/usr",
            "path": "/usr/bin/python3",
            "version": [3, 11, 2],
            "zmq": True,
            "jupyter_client": True,
            "ipykernel": False,
            "kernels": [["python3", "Python 3", "python", True, "/usr/bin/python3"]],
        }
    ).encode()
    + b"\n"
    + PROBE_MARK.encode()
    + b" end\n"
)
JOURNAL = records.first_line() + b"".join(
    records.encode_record(records.Record(number, Channel.IOPUB, False, bytes(8), body, 1e9))
    for number, body in enumerate(MESSAGES[:3], 1)
)

TARGETS = (
    Target(
        "frames of the link",
        lambda data: list(decode_messages(data)),
        (ITEM, PARTS, BYE),
        share=120,
    ),
    Target("parts of a body", unpack_parts, (*MESSAGES, *NOTES), share=120),
    Target("words of our own", from_json, (to_json({"why": "x", "n": [1]}), b"{}"), share=80),
    Target("greetings", parse_welcome, (WELCOME, BYE), share=60),
    Target("the conversation", converse, (PARTS, ITEM), share=60),
    Target("the pump", pump, (PARTS, ITEM, BYE), (), share=30),
    Target("items", item, (*MESSAGES, *NOTES), share=40),
    Target(
        "signed messages",
        lambda data: VOICE.check(data.split(b"\n")),
        (
            b"id\n<IDS|MSG>\n"
            + b"\n".join(bytes(part) for part in VOICE.sign(unpack_parts(REPLY))[1:]),
        ),
        share=60,
    ),
    Target(
        "headers", header_of, tuple(bytes(unpack_parts(each)[4]) for each in MESSAGES), share=90
    ),
    Target("records on their way", split_entries, (SAID,), share=90),
    Target("answers of inquiries", reading, (SAID,), (RemoterError,), share=40),
    Target("transcript, story, log, verdict", told, (*MESSAGES, REPLY, *NOTES), (), share=10),
    Target("what waits", waiting, MESSAGES, share=10),
    Target(
        "pieces",
        lambda data: split_stream([b"", b"{}", b"{}", b"{}", data], 20),
        (b'{"name": "stdout", "text": "' + b"a b\\n" * 20 + b'"}',),
        (),
        share=30,
    ),
    Target(
        "what was overwritten",
        lambda data: collapse(data.decode("utf-8", "replace")),
        (b"10%\r20%\x1b[2K\r30%\x1b[1A\n", b"a\bb\x1b[31mred\x1b[0m\r\n"),
        (),
        share=30,
    ),
    Target(
        "known_hosts",
        known_hosts,
        (b"@revoked * ssh-ed25519 " + KEY + b"\n# c\n[h]:22,|1|a|b ssh-ed25519 " + KEY + b" x\n",),
        (),
        share=40,
    ),
    Target(
        "complaints of ssh",
        complaints,
        (
            b"debug1: x\nHost key verification failed.\r\n",
            b"ada@gpu: Permission denied (publickey,password).\n",
            UNKNOWN_NAME,
            NOTHING_IN_COMMON,
        ),
        (),
        share=10,
    ),
    Target(
        "names of files",
        names,
        (b"results/a b/c.csv", b"../x", b"a/../b", b"con.txt", b"\xff/x"),
        (FileTrouble,),
        share=60,
    ),
    Target(
        "entries of files",
        lambda data: entry_from_dict(from_body(data)),
        (to_body(FileEntry("a/b", size=9, mode=0o644).to_dict(1, asks=False)),),
        share=40,
    ),
    Target("survey", parse_probe, (SURVEY,), (RemoteLacks,), share=15),
    Target("journal", journal, (JOURNAL,), (RemoterError,), share=15),
    Target(
        "objects",
        values,
        (written([1, "a", 2.5, b"x", {"k": (1, 2)}]), written(b"abc", {1, 2})),
        (Exception,),
        share=15,
    ),
    Target(
        "arrays",
        values,
        (written(np.arange(5)), written(np.array(["a", "bc"]))),
        (Exception,),
        share=5,
    ),
    Target(
        "objects of R",
        lambda data: values(data, RReader),
        (of_r(type="double", n=8, at=[0, 64]), of_r(type="integer", n=1, at=[0, 4], of="Date")),
        (Exception,),
        share=2,
    ),
    Target(
        "frames of polars",
        check_arrow,
        (arrow(x=[1, 2, 3], y=["a", None, "b"]),),
        (CodecError,),
        share=15,
    ),
)
