"""Whatever comes from an evaluator or a kernel: an error for a person, or harmless text."""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
import unicodedata
from functools import partial

import nbformat
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remoter_kernel.cli.renderers import (
    JsonLinesRenderer,
    JsonRenderer,
    RunResult,
    TerminalRenderer,
)
from remoter_kernel.errors import RemoterError
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.history.executions import (
    CellExecution,
    ExecutionHistory,
    build_notebook,
    plan_updates,
)
from remoter_kernel.local.history.remote_query import (
    JournalReader,
    RemoteQuery,
    SessionList,
    resolve_session,
)
from remoter_kernel.local.history.status_report import LinkStatus, format_status
from remoter_kernel.local.history.transcript import (
    SessionLogFormatter,
    Transcript,
    format_duration,
    iopub_output,
    log_line,
)
from remoter_kernel.local.launch import host_probe, launcher, remote_venv, wheelhouse
from remoter_kernel.local.launch.launcher import SessionInfo
from remoter_kernel.local.launch.remote_venv_script import ANSWER_MARK
from remoter_kernel.local.login.login import CompletedCommand
from remoter_kernel.local.proxy.presenters import joined_text, other_sessions_text
from remoter_kernel.local.run.code_to_run import CodeCell
from remoter_kernel.local.run.runner import ExitCodeTracker
from remoter_kernel.plain_text import is_session_id
from remoter_kernel.protocol.frames import Channel, pack_parts
from remoter_kernel.protocol.journal_entries import JournalEntry, encode_entry, split_entries
from remoter_kernel.protocol.output_backlog import OutputBacklog

BOX = Remote("box", "box.invalid")
EVIL = "\x1b]0;OWNED\x07\x9b31m\u202e\r\n\ud800"
texts = st.one_of(st.text(st.characters(), max_size=8), st.just(EVIL))
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([True, 10**400, -1, 2**63, 1e308, 7])
)
simple = st.one_of(st.none(), st.booleans(), numbers, texts)
anything = st.recursive(
    simple,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


def mostly(likely, other):
    """What is likely three times of four."""
    return st.integers(0, 3).flatmap(lambda number: likely if number else other)


def shaped(*keys, **likely):
    """An object with these keys, some missing, each with anything or with what is likely."""
    own = {key: st.one_of(anything, likely[key]) if key in likely else anything for key in keys}
    return st.fixed_dictionaries({}, optional=own)


ids = st.sampled_from(["7f3a9c", "7f3a9d", "7f3a9c;touch PWNED", EVIL])
sessions = shaped(
    "id",
    *launcher.TEXTS,
    *launcher.TIMES,
    *launcher.COUNTS,
    "pid",
    id=ids,
    created=st.just(1e9),
)


def does_no_harm(text):
    assert not [
        sign
        for sign in text
        if unicodedata.category(sign) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        and sign not in "\n\u200c\u200d"
    ], repr(text)


@contextlib.contextmanager
def errors_for_people():
    """Nothing but such errors comes out, and they can be shown."""
    try:
        yield
    except RemoterError as error:
        does_no_harm(str(error))


# --------------------------------------------------------------- the evaluator's program

answers = st.one_of(
    anything.map(lambda words: json.dumps(words).encode()),
    shaped(
        "lacks",
        "what",
        "why",
        "host",
        "ended",
        lacks=st.sampled_from(
            ["session", "host", "reader", "room", "new python", "packages", "luck", "x"]
        ),
    ).map(lambda words: json.dumps(words).encode()),
    st.binary(max_size=30),
    st.just(b"[" * 100_000),
)


@given(answers)
@example(b'{"lacks": "session", "ended": 1e999}')
def test_a_line_is_an_object_or_an_error(line_there):
    with errors_for_people():
        words = launcher.parse_answer(line_there, "box.invalid", BOX)
        assert isinstance(words, dict)


whole = {
    "session": "7f3a9c",
    "address": "127.0.0.1",
    "port": 7,
    "server_key": "a" * 40,
    "joined": False,
    "host": "h",
    "user": "u",
    "python": "3.11.2",
    "pyzmq": "26",
}
others = st.lists(st.one_of(anything, shaped("session", "notebook", session=ids)), max_size=3)
odd_fields = shaped(*whole, "begun", "others", session=ids, port=st.just(8), others=others)


@given(odd_fields)
def test_an_address_is_one_or_an_error(fields):
    with errors_for_people():
        address = SessionInfo(
            **launcher.session_info_fields({**whole, **fields}, "box.invalid", BOX)
        )
        assert is_session_id(address.session)
        assert 0 < address.port < 2**16
        for text in (address.host, address.user, address.python, address.pyzmq):
            does_no_harm(text)
        for news in (
            other_sessions_text(address, "n"),
            joined_text(address, "n", time.time(), is_busy=True),
        ):
            does_no_harm(news)


def test_an_address_as_it_should_be_is_read():
    fields = launcher.session_info_fields(whole, "box.invalid", BOX)
    assert SessionInfo(**fields).server_key == "a" * 40


@given(shaped("sessions", sessions=st.lists(st.one_of(sessions, anything), max_size=3)))
def test_sessions_have_ids_and_words_that_can_be_shown(words):
    with errors_for_people():
        found = launcher.parse_sessions(json.loads(json.dumps(words)), "box")
        assert all(is_session_id(each["id"]) for each in found)
        chronicle = SessionLogFormatter()
        for each in found:
            does_no_harm(chronicle.first_line(each))
            does_no_harm(chronicle.last_line(each) or "")
            does_no_harm(format_duration(each["seconds"]))
            for name in launcher.TEXTS:
                does_no_harm(each[name])
                assert "\n" not in each[name]
        resolve_session("7f3a", [SessionList(RemoteQuery(BOX), found, None)])


journal_words = shaped(
    "session",
    "is_over",
    "place",
    "bytes",
    "tails",
    session=sessions,
    is_over=st.just(True),
    tails=shaped("evaluator.log", "kernel.log"),
)


@given(journal_words, st.binary(max_size=60))
def test_an_answer_about_a_journal_is_read_or_refused(words, data):
    words["is_over"] = True
    told_once = iter([(words, data)])
    reading = JournalReader(lambda _words: next(told_once, ({**words}, b"")), "7f3a9c", "events")
    with errors_for_people():
        list(reading)
        for lines in reading.answer["tails"].values():
            for each in lines:
                does_no_harm(each)


@given(st.binary(max_size=80), st.binary(max_size=8))
def test_bytes_are_records_or_refused(data, more):
    with errors_for_people():
        records = JournalEntry(1, float("nan"), Channel.IOPUB, False, bytes(8), more)
        found, _ = split_entries(encode_entry(records) + data)
        chronicle = SessionLogFormatter()
        for said in found:
            does_no_harm(chronicle.line_of(said) or "")


# --------------------------------------------------------------- looking around there

probes = shaped(
    "path",
    "prefix",
    "version",
    "zmq",
    "jupyter_client",
    "ipykernel",
    "kernels",
    version=st.lists(st.one_of(numbers, st.sampled_from([3, 11])), max_size=4),
    kernels=st.lists(st.lists(texts, min_size=3, max_size=5), max_size=2),
)


@given(st.one_of(probes, anything), texts)
def test_a_python_there_is_one_or_an_error(probe, around):
    mark = host_probe.PROBE_MARK
    said = f"{mark} system {around}\n{mark} python {json.dumps(probe)}\n"
    with errors_for_people():
        found = host_probe.parse_probe(
            f"{said}{host_probe.PROBE_MARK} end .\n".encode(errors="replace")
        )
        does_no_harm(found.system)
        for python in found.pythons:
            assert re.fullmatch(r"\d+\.\d+(\.\d+)?", python.version)
            does_no_harm(python.path + "".join(each.name for each in python.kernelspecs))
        found.choose("", "python3")


facts = shaped(
    "environment",
    "python",
    "wheels",
    "state",
    "host",
    "pip",
    "running",
    "has_venv",
    "platform",
    platform=shaped(
        "python",
        "implementation",
        "machine",
        "libc",
        "bits",
        "is_free_threaded",
        "system",
        python=st.lists(st.one_of(numbers, st.just(3), st.just("../../x")), max_size=4),
        implementation=st.just("cpython"),
        machine=st.just("x86_64"),
        bits=st.just(64),
        libc=st.sampled_from([["glibc", "2.36"], ["musl", EVIL], ["macos", "99999999.1"]]),
        is_free_threaded=st.just(False),
    ),
)


whole_facts = {
    "environment": "/home/me/venv",
    "python": "/home/me/venv/bin/python",
    "wheels": "/home/me/wheels",
    "state": "none",
    "host": "h",
    "pip": "",
    "running": [7],
    "has_venv": True,
    "platform": {"python": [3, 11, 2], "implementation": "cpython"},
}


@given(facts)
def test_an_environment_there_is_told_or_an_error(told_there):
    line_there = f"{ANSWER_MARK} {json.dumps({**whole_facts, **told_there})}\n".encode()
    with errors_for_people():
        read = remote_venv.parse_venv_facts(
            remote_venv.parse_installer_answer(CompletedCommand(line_there, b"", 0)) or {}
        )
        assert re.fullmatch(r"\d+\.\d+(\.\d+)?", read["version"])
        does_no_harm(read["environment"])
        target = wheelhouse.parse_target(read["platform"])
        assert re.fullmatch(r"\d+\.\d+", target.python)
        assert len(target.tags) < 10_000


# --------------------------------------------------------------- what a kernel says

contents = shaped(
    "data",
    "metadata",
    "transient",
    "name",
    "text",
    "execution_count",
    "code",
    "ename",
    "evalue",
    "traceback",
    "wait",
    "execution_state",
    "status",
    "stop_on_error",
    "prompt",
    data=shaped("text/plain", "image/png", "application/json"),
    transient=shaped("display_id"),
    name=st.just("stdout"),
    text=st.just("a\rb"),
    ename=st.just("SystemExit"),
    execution_count=st.just(3),
    code=st.just("1"),
)
known_kinds = st.sampled_from(
    [
        "stream",
        "display_data",
        "execute_result",
        "update_display_data",
        "error",
        "clear_output",
        "status",
        "execute_input",
        "comm_msg",
        "execute_request",
        "execute_reply",
    ]
)
kinds = mostly(known_kinds, anything)


def a_message(kind, name, parent, content, metadata):
    header = {"msg_type": kind, "msg_id": name, "date": EVIL}
    words = (header, {"msg_id": parent} if parent != 7 else parent, metadata, content)
    return [b"", *(json.dumps(each).encode() for each in words)]


names = mostly(st.just("1"), anything)
messages = st.builds(
    a_message,
    kinds,
    names,
    names,
    mostly(contents, anything),
    shaped("cellId", "remoter_held_back"),
)
notes = shaped(
    "event",
    "order",
    "why",
    "kernel_info",
    "mark",
    "bytes",
    event=st.sampled_from(["ready", "died", "failed", "came"]),
    kernel_info=shaped("language_info", "implementation", language_info=shaped("name", "mimetype")),
).map(lambda words: [json.dumps(words).encode()])


def recorded(channels, bodies):
    """Records of a journal."""
    return st.builds(
        lambda channel, is_asked, parts, when, is_mark: JournalEntry(
            1, when, channel, is_asked, bytes(8), pack_parts(parts), is_mark
        ),
        st.sampled_from(channels),
        st.booleans(),
        bodies,
        st.floats(),
        mostly(st.just(False), st.just(True)),
    )


records = st.one_of(
    recorded([Channel.IOPUB], messages),
    recorded([Channel.SHELL], messages),
    recorded([Channel.EVENT, Channel.COMMAND], notes),
    recorded(list(Channel), st.one_of(messages, notes)),
)
ASKED = JournalEntry(
    0,
    0.0,
    Channel.SHELL,
    True,
    bytes(8),
    pack_parts(a_message("execute_request", "1", "", {"code": "1"}, {})),
)
a_few = st.lists(records, max_size=5)
DEEP = JournalEntry(
    2,
    0.0,
    Channel.IOPUB,
    False,
    bytes(8),
    pack_parts(
        [
            b"",
            b'{"msg_type": "display_data"}',
            b'{"msg_id": "1"}',
            b"{}",
            b'{"data": {"application/json": ' + b'{"a":' * 800 + b"1" + b"}" * 800 + b"}}",
        ]
    ),
)


@given(a_few)
@example([DEEP])
@settings(deadline=None, max_examples=200)
def test_no_message_makes_a_session_unreadable(said):
    """As text, as a notebook that is valid, and what became of its code."""
    story, verdict, chronicle, written = (
        ExecutionHistory(),
        ExitCodeTracker(),
        SessionLogFormatter(),
        io.StringIO(),
    )
    transcript = Transcript(partial(print, end="", file=written))
    for each in [ASKED, *said]:
        transcript.add_record(each)
        story.add_record(each)
        verdict.add_record(each)
        does_no_harm(chronicle.line_of(each) or "")
    transcript.finish()
    assert verdict.exit_code in {0, 1}
    notebook = build_notebook(story, "remoter-box", "Remote (box)")
    json.dumps(notebook, ensure_ascii=False, indent=1).encode()
    for cell in notebook["cells"]:
        for output in cell["outputs"]:
            if "application/json" in output.get("data", {}):
                del output["data"]["application/json"]  # nbformat wants an object there
    nbformat.validate(notebook)
    list(
        plan_updates(
            [{"cell_type": "code", "id": "x", "source": "1"}], story.executions.values(), 0.0
        )
    )


@given(a_few)
@example([DEEP])
@settings(deadline=None, max_examples=200)
def test_no_message_ends_who_shows_it(said):
    piece, story, run = CodeCell("1"), ExecutionHistory(), CellExecution("1", "1")
    shows = (TerminalRenderer(), JsonRenderer(), JsonLinesRenderer())
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for each in said:
            output = iopub_output(each)
            if output:
                story.add_output(run, *output)
                for show in shows:
                    show.show(piece, *output)
        for show in shows:
            show.finish(RunResult("box", "7f3a9c", "ok", 0))


@given(st.lists(messages, max_size=6))
def test_what_waits_comes_out_again(said):
    waiting = OutputBacklog(most=64)
    for number, parts in enumerate(said, 1):
        waiting.add(number, parts, parts)
    waiting.limit_text("1")
    taken = []
    while (item := waiting.pop()) is not None:
        taken.append(item.number)
    assert taken == sorted(taken)
    assert len(waiting) == waiting._size == 0


@given(texts, texts, texts)
def test_a_status_can_be_shown(host, user, error):
    shown = format_status(
        LinkStatus("up", 1.0, "box", host, user, "7f3a9c", last_error=error, cipher=host)
    )
    does_no_harm(shown)
    assert all(re.match(r"[a-z ]{13}", each) for each in shown.splitlines())


@pytest.mark.parametrize("moment", [float("nan"), float("inf"), -1e300, 1e300, 10**400, None, "x"])
def test_a_time_that_is_none_is_shown_as_one(moment):
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  x", log_line(moment, "x"))
    assert format_duration(moment) == "0.0 s"
