"""Who takes a client's request on this side, in which order, and what becomes of it."""

from __future__ import annotations

import contextlib
import threading

import pytest

from remoter_kernel.errors import NoSuchSession, ProtocolError, RemoterError, TooLarge, Unreachable
from remoter_kernel.local.login.prompts import NeedsPerson
from remoter_kernel.local.proxy import handlers
from remoter_kernel.local.proxy.failures import EXIT_AFTER_REPLY, RUN_A_CELL
from remoter_kernel.local.proxy.handlers import MOST_SENDERS, REPLY_WITHIN
from remoter_kernel.local.proxy.magics import completer
from remoter_kernel.local.session.link import LinkState
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.requests import Stage
from tests.pure.a_proxy import ANOTHER, CLIENT, CONSOLE, FAR_KERNEL, Proxy
from tests.real_jupyter import wait_for

SILENT = {"silent": True, "allow_stdin": False}
GONE = NoSuchSession("The session is gone.")
CUT = Unreachable("The connection was cut.")


@pytest.fixture
def proxy(tmp_path, monkeypatch):
    return Proxy(tmp_path, monkeypatch)


def test_the_handlers_are_asked_in_this_order():
    """Nothing else says it."""
    assert [each.__name__ for each in handlers.HANDLERS] == [
        "stdin_reply",
        "interrupt",
        "shutdown",
        "kernel_info",
        "magic_completion",
        "notebook_detection",
        "startup_code",
        "dead_kernel",
        "local_cell",
        "remoter_magic",
        "cell_queue",
        "relay",
    ]


def test_what_no_evaluator_knows_of_any_more_is_told_and_nothing_else(proxy):
    """It was confirmed, and then its evaluator was killed while the disk took nothing."""
    proxy.be_up()
    known, lost, widget = proxy.run(), proxy.run(), proxy.ask("comm_msg", {"comm_id": "c"})
    proxy.link.keep_all()
    proxy.link.lost_there = {2, 3}
    proxy.link.change(LinkState.WAITING, CUT)
    proxy.link.change(LinkState.UP)
    assert proxy.page.reply_to(lost)["ename"] == "OutputsMissing"
    assert "It was not run again" in proxy.page.reply_to(lost)["evalue"]
    assert proxy.page.states(lost) == ["busy", "idle"]
    assert (proxy.page.reply_to(known), proxy.page.reply_to(widget)) == (None, None)


def test_a_cell_goes_through_all_its_stages(proxy):
    proxy.be_up()
    proxy.link.is_flowing = False
    stages = []
    proxy.requests.observe(lambda each, _: stages.append(each.stage))
    cell = proxy.run()
    handlers.mark_sent(proxy.kernel._context)
    assert proxy.stages() == {cell: "QUEUED"}
    proxy.link._left.add(1)
    (row,) = proxy.kernel._describe_requests()
    assert (row["id"], row["stage"]) == (cell, "sent")
    proxy.link.keep_all()
    proxy.answer(cell)
    wanted = [Stage.QUEUED, Stage.SENT, Stage.ACCEPTED, Stage.RUNNING, Stage.REPLIED, Stage.DONE]
    assert stages == wanted
    assert len(proxy.requests) == 0
    assert proxy.page.states(cell) == ["busy", "idle"]
    assert proxy.page.reply_to(cell)["status"] == "ok"


@pytest.mark.parametrize(
    ("kind", "is_up", "reply"),
    [
        ("kernel_info_request", False, "status"),
        ("complete_request", True, None),
        ("history_request", True, None),
        ("kernel_info_request", True, None),
    ],
)
def test_what_is_known_here_is_answered_here_and_all_else_is_sent(proxy, kind, is_up, reply):
    if is_up:
        proxy.be_up()
    name = proxy.ask(kind)
    assert (proxy.link.kinds == [kind]) is (reply is None)
    assert (proxy.page.reply_to(name) is None) is (reply is None)
    assert (proxy.stages() == {}) is (reply is not None)


def test_a_line_of_ours_is_completed_here(proxy):
    proxy.be_up()
    name = proxy.ask("complete_request", {"code": "%remoter sta", "cursor_pos": 12})
    assert proxy.page.reply_to(name)["matches"] == ["status"]
    assert proxy.link.said == []
    assert len(proxy.requests) == 0


def test_a_folder_that_hangs_holds_up_nothing(proxy, monkeypatch):
    """Tab at a path of this side: without an answer in time there is nothing to offer."""
    hangs = threading.Event()
    monkeypatch.setattr(completer, "local_paths", lambda _begin: ["late"] * hangs.wait(10))
    try:
        name = proxy.ask("complete_request", {"code": "%remoter put da", "cursor_pos": 15})
        assert proxy.stages() == {name: "SENT"}
        proxy.clock.let_pass(completer.COMPLETE_WITHIN)
        assert proxy.page.reply_to(name)["matches"] == []
    finally:
        hangs.set()
    wait_for(lambda: "completion" not in [each.name for each in threading.enumerate()])
    assert proxy.page.reply_to(name)["matches"] == []
    assert len(proxy.requests) == 0


def test_a_verb_is_answered_here_with_one_busy_and_one_idle(proxy):
    name = proxy.run("%remoter help")
    assert proxy.page.states(name) == ["busy", "idle"]
    assert "%remoter status" in proxy.page.text(name)
    assert (len(proxy.requests), proxy.link.said) == (0, [])


# What has no reply ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["comm_open", "comm_msg", "comm_close"])
def test_what_has_no_reply_is_forgotten_once_it_is_on_its_way(proxy, kind):
    proxy.be_up()
    names = [proxy.ask(kind, {"comm_id": "c"}) for _ in range(300)]
    assert (len(proxy.link.said), len(proxy.requests)) == (300, 0)
    proxy.state(names[0], "busy", "idle")
    proxy.link.fail(GONE)
    assert proxy.page.replies == []
    assert [proxy.page.states(name) for name in names[:2]] == [["busy", "idle"], []]


def test_an_answer_to_a_question_is_passed_on_and_forgotten(proxy):
    proxy.be_up()
    proxy.ask("input_reply", {"value": "x"}, channel=Channel.STDIN)
    assert (proxy.link.kinds, len(proxy.requests)) == (["input_reply"], 0)


def test_a_widgets_message_out_of_reach_is_left_out_without_a_word(proxy):
    proxy.be_up()
    proxy.link.fail(CUT)
    proxy.ask("comm_msg", {"comm_id": "c"})
    assert (len(proxy.requests), proxy.page.replies, proxy.link.said) == (0, [], [])


def test_what_a_kernel_never_answers_does_not_stay(proxy):
    """It was done with it when it replied to a later one."""
    proxy.be_up()
    odd = proxy.ask("usage_request")
    proxy.state(odd, "busy", "idle")
    assert proxy.stages() == {odd: "RUNNING"}
    proxy.answer(proxy.run())
    assert len(proxy.requests) == 0


def test_what_fails_in_a_handler_does_not_stay(proxy, monkeypatch):
    with pytest.raises(ProtocolError):
        proxy.kernel._on_client_message(
            Channel.SHELL, [b"c"], [b"", b'{"msg_type": "execute_request"}', b"{}", b"{}", b"odd"]
        )
    monkeypatch.setattr(proxy.kernel._context.completer, "handle", lambda _request: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        proxy.ask("complete_request")
    assert len(proxy.requests) == 0


def test_what_is_too_large_is_refused_and_does_not_stay(proxy, monkeypatch, capsys):
    def refuse(*_):
        raise TooLarge("It is too large.")

    proxy.be_up()
    monkeypatch.setattr(proxy.link, "send", refuse)
    cell, widget = proxy.run(), proxy.ask("comm_msg", {"comm_id": "c"})
    assert proxy.page.reply_to(cell)["ename"] == "TooLarge"
    assert proxy.page.reply_to(widget) is None
    assert "It is too large." in capsys.readouterr().err
    assert [proxy.page.states(each) for each in (cell, widget)] == [["busy", "idle"]] * 2
    assert len(proxy.requests) == 0


# From the kernel there ---------------------------------------------------------------------


def test_a_reply_to_what_was_not_sent_is_nobodys(proxy):
    """The kernel guesses the id of a cell that waits on this side."""
    proxy.be_up()
    proxy.run()
    proxy.run("%%local\n1")
    held = proxy.run()
    proxy.reply(held)
    assert proxy.page.reply_to(held) is None
    assert proxy.stages()[held] == "HELD"


@pytest.mark.parametrize("is_looked_at", [True, False])
def test_cells_that_leave_late_get_their_replies_too(proxy, monkeypatch, is_looked_at):
    """There was no credit for some; and what a kernel publishes may come before its replies."""
    monkeypatch.setattr("threading.Thread.start", lambda _thread: None)
    proxy.be_up()
    proxy.run("%%local\n1", stop_on_error=False)
    names = [proxy.run() for _ in range(2)]  # they wait for that
    typed = proxy.ask("history_request")
    proxy.link.is_flowing = False
    proxy.kernel._context.cell_queue.running_local.fail(CUT)
    proxy.link.is_flowing = True
    names = [typed, *names, proxy.run()]
    if is_looked_at:
        proxy.link._left |= {1, 2, 3, 4}
        proxy.stages()
    proxy.link.keep_all()
    for name in names:
        proxy.state(name, "busy", "idle")
    for name in names:
        proxy.reply(name)
    assert all(proxy.page.reply_to(name) for name in names)
    assert len(proxy.requests) == 0


def test_a_second_reply_is_nobodys(proxy):
    proxy.be_up()
    cell = proxy.run()
    proxy.answer(cell)
    proxy.reply(cell)
    assert proxy.page.reply_to(cell)


def test_a_cell_that_was_called_off_there_needs_no_idle(proxy):
    """R's kernel gives none."""
    proxy.be_up()
    cell = proxy.run()
    proxy.reply(cell, status="aborted")
    assert len(proxy.requests) == 0
    proxy.state(cell, "busy", "idle")  # others do, later
    assert proxy.page.states(cell) == ["busy", "idle"]


def test_an_interrupt_names_the_cells_that_are_there(proxy):
    proxy.be_up()
    one, two = proxy.run(), proxy.run()
    proxy.reply(one)
    proxy.ask("interrupt_request", channel=Channel.CONTROL)
    (order,) = proxy.link.orders
    assert two.encode() in order
    assert one.encode() not in order


def test_a_cell_behind_one_of_this_side_waits_for_its_turn(proxy, monkeypatch):
    proxy.be_up()
    monkeypatch.setattr("threading.Thread.start", lambda _thread: None)
    there = proxy.run()
    here, behind = proxy.run("%%local\n1"), proxy.run("2")
    assert proxy.stages() == {there: "SENT", here: "HELD", behind: "HELD"}
    proxy.answer(there)
    assert proxy.stages() == {here: "RUNNING", behind: "HELD"}
    proxy.ask("interrupt_request", channel=Channel.CONTROL)  # before it may run
    assert proxy.page.reply_to(here)["ename"] == "CalledOff"
    assert proxy.page.reply_to(behind)["status"] == "aborted"
    assert [proxy.page.states(each) for each in (here, behind)] == [["busy", "idle"]] * 2
    assert len(proxy.requests) == 0
    assert proxy.link.orders == []


# A person who types ------------------------------------------------------------------------


def test_a_late_answer_to_what_is_typed_is_an_empty_one(proxy):
    name = proxy.ask("is_complete_request", {"code": "1"})
    assert proxy.stages() == {name: "HELD"}
    proxy.clock.let_pass(REPLY_WITHIN)
    assert proxy.page.reply_to(name) == {"status": "unknown"}
    proxy.be_up()
    assert (len(proxy.requests), proxy.link.said) == (0, [])


def test_what_is_typed_is_sent_as_soon_as_the_kernel_is_there(proxy):
    name = proxy.ask("is_complete_request", {"code": "1"})
    proxy.be_up()
    proxy.clock.let_pass(REPLY_WITHIN)
    assert proxy.link.kinds == ["is_complete_request"]
    assert proxy.page.reply_to(name) is None
    assert proxy.stages() == {name: "SENT"}


# A link that failed, and a kernel that died ---------------------------------------------------


def test_what_never_left_is_answered_and_what_may_run_is_told(proxy):
    proxy.be_up()
    running = proxy.run()
    proxy.link.change(LinkState.WAITING, CUT)
    unsaid = proxy.run()
    proxy.link.fail(CUT)
    assert proxy.page.reply_to(unsaid)["ename"] == "Unreachable"
    assert proxy.page.reply_to(running) is None
    assert "The connection was cut." in proxy.page.text(running)
    assert proxy.stages() == {running: "SENT"}


def test_a_session_that_is_gone_ends_all_that_was_asked_of_it_once(proxy):
    proxy.be_up()
    one, two, three = proxy.run(), proxy.run(), proxy.ask("complete_request", {"cursor_pos": 3})
    proxy.state(one, "busy")
    proxy.reply(one)
    proxy.link.fail(GONE)
    assert proxy.page.reply_to(two)["ename"] == "NoSuchSession"
    assert proxy.page.reply_to(three)["cursor_start"] == 3
    assert [proxy.page.states(each) for each in (one, two, three)] == [["busy", "idle"]] * 3
    assert len(proxy.requests) == 0
    proxy.state(two, "busy", "idle")  # what is late is not heard any more
    assert proxy.page.states(two) == ["busy", "idle"]


def test_a_kernel_that_cannot_start_is_told_in_the_cell_and_the_next_one_tries_anew(proxy):
    cell = proxy.run()
    proxy.be_up(is_ready=False)
    proxy.note(event="failed", why="There is no ipykernel.")
    assert "There is no ipykernel." in proxy.page.reply_to(cell)["evalue"]
    proxy.run()
    assert (proxy.link.wakes, proxy.link.ever_connected) == (1, False)


def test_a_login_that_needs_somebody_puts_start_up_code_off(proxy):
    own = proxy.run("import x", **SILENT)
    asked = proxy.ask("comm_info_request")
    proxy.link.fail(NeedsPerson("a password is needed."))
    assert proxy.page.reply_to(own)["status"] == "ok"
    assert proxy.page.reply_to(asked)["comms"] == {}
    assert proxy.stages() == {own: "HELD"}
    cell = proxy.run()
    assert proxy.link.kinds[-2:] == ["execute_request", "execute_request"]
    assert proxy.stages() == {cell: "QUEUED"}
    proxy.state(own, "busy", "idle")
    assert proxy.page.states(own) == ["busy", "idle"]


def test_where_nobody_may_be_asked_all_that_waits_hears_why(proxy):
    cell = proxy.run(allow_stdin=False)
    proxy.link.fail(NeedsPerson("a password is needed."))
    assert "a password is needed" in proxy.page.reply_to(cell)["evalue"]
    assert (proxy.link.wakes, len(proxy.requests)) == (0, 0)


def test_what_may_run_there_stays_and_hears_that_a_cell_is_needed(proxy):
    """A person was there before: the login of a lost link needs one again."""
    proxy.be_up()
    running = proxy.run()
    proxy.kernel._context.prompter._open_cells = list  # nobody is there just now
    proxy.link.change(LinkState.WAITING, CUT)
    proxy.link.fail(NeedsPerson("a password is needed."))
    assert proxy.page.text(running).startswith(f"[remoter] far: a password is needed. {RUN_A_CELL}")
    assert proxy.stages() == {running: "SENT"}


def test_a_cell_that_was_run_while_nobody_could_be_asked_lets_it_try_again(proxy):
    cell = proxy.run()
    proxy.link.fail(NeedsPerson("a password is needed."))
    assert proxy.link.wakes == 1
    assert proxy.page.reply_to(cell) is None


def test_a_client_that_never_allows_questions_sees_its_kernel_die(proxy):
    proxy.be_up()
    proxy.run(allow_stdin=False)
    proxy.note(event="died", why="It was killed.")
    info = proxy.ask("kernel_info_request")
    assert proxy.page.reply_to(info)["status"] == "ok"
    cell = proxy.run(allow_stdin=False)
    assert "It was killed." in proxy.page.reply_to(cell)["evalue"]
    assert cell not in proxy.stages()
    proxy.clock.let_pass(EXIT_AFTER_REPLY)
    assert proxy.kernel._context.shutdown.is_exiting


def test_one_that_allows_them_goes_on_with_the_next_kernel(proxy):
    proxy.be_up()
    proxy.run()
    proxy.note(event="died", why="It was killed.")
    cell = proxy.run(allow_stdin=False)
    assert proxy.stages()[cell] == "SENT"


# %remoter status --requests -----------------------------------------------------------------


def test_the_open_requests_of_this_side_are_listed_without_the_question_itself(proxy):
    proxy.be_up()
    cell = proxy.run()
    proxy.link.change(LinkState.WAITING, CUT)
    asked = proxy.run("%remoter status --requests", client=ANOTHER)
    wait_for(lambda: proxy.page.reply_to(asked))
    text = proxy.page.text(asked)
    assert f"Here:\n  {cell}" in text
    assert "execute_request" in text
    assert "sent" in text
    assert asked not in text
    assert "There: not known, as the link is down\n" in text


def test_where_nothing_is_open_that_is_said(proxy):
    asked = proxy.run("%remoter status --requests")
    wait_for(lambda: proxy.page.reply_to(asked))
    assert proxy.page.text(asked).startswith("Here: no requests are open\n")
    assert len(proxy.requests) == 0


def test_an_error_of_any_kind_has_a_name(proxy):
    """A stage says which error it was, and not what is in it."""
    proxy.run("SECRET")
    ends = []
    proxy.requests.observe(lambda each, _: ends.append((each.stage, each.why)))
    proxy.link.fail(RemoterError("SECRET"))
    assert (Stage.FAILED, "RemoterError") in ends


def test_code_that_a_widget_runs_may_ask_whoever_has_sent_the_message(proxy):
    """Such a message has no reply, and is not in the table any more."""
    proxy.be_up()
    name = proxy.ask("comm_msg", {"comm_id": "c", "data": {}})
    assert len(proxy.requests) == 0
    asked = FAR_KERNEL.compose("input_request", {"prompt": "? "}, {"msg_id": name})
    proxy.hear(Channel.STDIN, asked)
    assert proxy.page.replies[-1] == ("input_request", name, {"prompt": "? "})


def test_how_many_senders_of_widgets_messages_are_known_is_bounded(proxy):
    proxy.be_up()
    for _ in range(MOST_SENDERS + 10):
        proxy.ask("comm_msg", {"comm_id": "c", "data": {}})
    assert len(proxy.kernel._context._senders) == MOST_SENDERS


def test_an_odd_question_of_one_who_types_is_answered_with_nothing(proxy):
    parts = CLIENT.compose("complete_request", {})
    parts[4] = b"no JSON"
    with contextlib.suppress(ProtocolError):
        proxy.kernel._on_client_message(Channel.SHELL, CONSOLE, parts)
    proxy.clock.let_pass(REPLY_WITHIN)
    assert len(proxy.requests) == 0


def test_a_question_does_not_move_to_a_cell_that_ends_at_once(proxy, monkeypatch):
    """It would be gone with that cell."""
    monkeypatch.setattr("threading.Thread.start", lambda _thread: None)
    proxy.be_up()
    noted = []

    def note(route, is_over):
        noted.append((route.content["code"], is_over(route.id)))

    monkeypatch.setattr(proxy.kernel._context.prompter, "on_cell", note)
    proxy.run("%remoter log")
    proxy.run("1")
    assert noted == [("%remoter log", True), ("1", False)]
