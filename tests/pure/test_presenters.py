"""What a person sees of a cell while it waits, and that clients hear busy and idle once of each."""

from __future__ import annotations

import pytest

from remoter_kernel.errors import NoSuchSession, Unreachable
from remoter_kernel.local.proxy.presenters import BUSY_WITHIN, ERASE, NOTICE_AFTER
from remoter_kernel.local.session.link import LinkState
from tests.pure.a_proxy import ANOTHER, Proxy

CUT = Unreachable("The connection was cut.")
WAITING = "Waiting for the link to far …\n"


@pytest.fixture
def proxy(tmp_path, monkeypatch):
    return Proxy(tmp_path, monkeypatch)


def ask_as_a_console(proxy, code="1"):
    """A console asks whether a cell is complete, and runs it at once."""
    asked = proxy.ask("is_complete_request", {"code": code})
    proxy.state(asked, "busy", "idle")
    proxy.reply(asked, "is_complete_reply")
    return proxy.run(code)


def once(proxy, *names):
    """Is each busy once and idle once? Busy is said again only after another's idle."""
    known, last = dict.fromkeys(names, ""), ""
    for kind, whose, content in proxy.page.published:
        if kind != "status" or whose not in known:
            continue
        state = content["execution_state"]
        is_repeated = known[whose] == "busy" and last == "busy"
        if known[whose] == "idle" or (state == "busy" and is_repeated):
            return False
        known[whose] = last = state
    return set(known.values()) == {"idle"}


def test_no_page_shows_an_idle_kernel_while_a_cell_runs(proxy):
    """One cell said early that it is busy; the idle of the one before it came after that."""
    proxy.be_up()
    first = proxy.run()
    proxy.state(first, "busy")
    proxy.link.change(LinkState.WAITING, CUT)
    second = proxy.run()
    proxy.clock.let_pass(NOTICE_AFTER)
    proxy.link.change(LinkState.UP)
    proxy.link.keep_all()
    proxy.reply(first)
    proxy.state(first, "idle")
    proxy.state(second, "busy")
    states = [content for kind, _, content in proxy.page.published if kind == "status"]
    assert states[-1] == {"execution_state": "busy"}
    proxy.reply(second)
    proxy.state(second, "idle")
    assert once(proxy, first, second)


# Busy at once ---------------------------------------------------------------------------------


def test_a_console_hears_soon_that_its_cell_is_busy_and_hears_it_once(proxy):
    """Over a link that is slower than that: the kernel's own word comes later."""
    proxy.be_up()
    cell = ask_as_a_console(proxy)
    proxy.clock.let_pass(BUSY_WITHIN)
    assert proxy.page.states(cell) == ["busy"]
    assert proxy.stages() == {cell: "SENT"}  # that it runs, only the kernel knows
    proxy.answer(cell)
    assert once(proxy, cell)
    assert len(proxy.requests) == 0


def test_a_kernel_that_is_near_says_so_itself(proxy):
    proxy.be_up()
    cell = ask_as_a_console(proxy)
    proxy.state(cell, "busy")
    proxy.clock.let_pass(BUSY_WITHIN)
    assert proxy.page.states(cell) == ["busy"]
    proxy.reply(cell)
    proxy.state(cell, "idle")
    assert once(proxy, cell)


def test_a_cell_that_is_over_is_not_busy_any_more(proxy):
    proxy.be_up()
    cell = ask_as_a_console(proxy)
    proxy.reply(cell)
    proxy.clock.let_pass(BUSY_WITHIN)
    assert proxy.page.states(cell) == []


def test_other_clients_and_later_cells_wait_for_the_kernel(proxy):
    proxy.be_up()
    first = ask_as_a_console(proxy)
    proxy.answer(first)
    later, other = proxy.run(), proxy.run(client=ANOTHER)
    proxy.clock.let_pass(1)
    assert proxy.page.states(later) == proxy.page.states(other) == []


def test_a_cell_of_a_console_that_runs_on_this_side_is_busy_once(proxy, monkeypatch):
    monkeypatch.setattr("threading.Thread.start", lambda _thread: None)
    proxy.be_up()
    cell = ask_as_a_console(proxy, "%%local\n1")
    proxy.clock.let_pass(BUSY_WITHIN)
    assert proxy.page.states(cell) == ["busy"]


# The link is down -----------------------------------------------------------------------------


def test_a_cell_that_waits_for_the_link_says_so_and_takes_it_back(proxy):
    proxy.be_up()
    proxy.link.change(LinkState.WAITING, CUT)
    cells = [proxy.run(), proxy.run()]
    proxy.clock.let_pass(NOTICE_AFTER)
    proxy.link.change(LinkState.DIALLING)
    proxy.link.change(LinkState.WAITING)
    proxy.clock.let_pass(NOTICE_AFTER)
    assert [proxy.page.text(cell) for cell in cells] == [WAITING] * 2
    proxy.link.change(LinkState.UP)
    proxy.link.keep_all()
    for cell in cells:
        proxy.answer(cell)
    assert [proxy.page.text(cell) for cell in cells] == [WAITING + ERASE] * 2
    assert once(proxy, *cells)


def test_a_short_cut_is_not_told(proxy):
    proxy.be_up()
    proxy.link.change(LinkState.WAITING, CUT)
    cell = proxy.run()
    proxy.link.change(LinkState.UP)
    proxy.clock.let_pass(NOTICE_AFTER)
    assert proxy.page.text(cell) == ""


def test_what_is_there_already_and_what_nobody_sees_says_nothing(proxy):
    proxy.be_up()
    kept = proxy.run()
    proxy.link.keep_all()
    sent = proxy.run()
    proxy.link.change(LinkState.WAITING, CUT)
    silent = proxy.run(silent=True)
    proxy.clock.let_pass(NOTICE_AFTER)
    assert [proxy.page.text(cell) for cell in (kept, sent, silent)] == ["", WAITING, ""]


def test_a_host_that_takes_long_is_told_in_the_first_cell_that_waits(proxy):
    proxy.link.change(LinkState.DIALLING)
    silent, cell, other = proxy.run(silent=True), proxy.run(), proxy.run()
    proxy.kernel.dialer.on_slow_host("its login shell has taken 8 s so far.")
    assert proxy.page.text(cell) == "[remoter] far: its login shell has taken 8 s so far.\n"
    assert proxy.page.text(silent) + proxy.page.text(other) == ""
    proxy.be_up()
    for each in (silent, cell, other):
        proxy.answer(each)
    assert once(proxy, silent, cell, other)


def test_a_first_login_is_no_link_that_was_lost(proxy):
    proxy.link.change(LinkState.DIALLING)
    cell = proxy.run()
    proxy.clock.let_pass(NOTICE_AFTER)
    assert proxy.page.text(cell) == ""


def test_a_notice_is_taken_back_before_the_cell_is_given_up(proxy):
    proxy.be_up()
    proxy.link.change(LinkState.WAITING, CUT)
    cell = proxy.run()
    proxy.clock.let_pass(NOTICE_AFTER)
    proxy.link.fail(NoSuchSession("The session is gone."))
    assert proxy.page.text(cell) == WAITING + ERASE
    assert once(proxy, cell)


# Which session it is --------------------------------------------------------------------------


def test_a_session_that_was_joined_is_told_once_in_the_first_cell_that_shows_something(proxy):
    proxy.be_found(begun=1.0)
    silent, cell, other = proxy.run(silent=True), proxy.run(), proxy.run()
    proxy.be_up()
    assert proxy.page.text(cell).startswith("[remoter] Joined session abcd")
    assert proxy.page.text(silent) + proxy.page.text(other) == ""
    proxy.answer(silent)
    proxy.answer(cell)
    proxy.answer(other)
    assert once(proxy, silent, cell, other)


def test_a_cell_that_comes_after_the_kernel_is_told_too(proxy):
    proxy.be_found(begun=1.0)
    proxy.be_up()
    cell = proxy.run()
    assert proxy.page.text(cell).startswith("[remoter] Joined session abcd")
    proxy.answer(cell)
    assert once(proxy, cell)


def test_a_session_that_is_fresh_is_no_news(proxy):
    proxy.be_found()
    cell = proxy.run()
    proxy.be_up()
    assert proxy.page.text(cell) == ""


def test_without_a_remote_the_first_cell_says_where_it_runs(proxy):
    silent, cell = proxy.run(silent=True), proxy.run()
    proxy.kernel.dialer.is_this_machine = True
    proxy.be_up()
    other = proxy.run()
    assert proxy.page.text(cell).startswith("[remoter] No remote is configured")
    assert proxy.page.text(silent) + proxy.page.text(other) == ""
    proxy.answer(cell)
    assert once(proxy, cell)


# What clients hear ----------------------------------------------------------------------------


def test_a_cell_at_work_is_called_busy_again_after_the_idle_of_something_else(proxy):
    """Clients take any idle for the kernel's; of the cell itself it is not said twice."""
    proxy.be_up()
    cell = proxy.run()
    proxy.state(cell, "busy")
    verb = proxy.run("%remoter help")
    assert once(proxy, verb)
    assert proxy.page.states(cell) == ["busy", "busy"]
    proxy.reply(cell)
    proxy.state(cell, "idle")
    assert proxy.page.states(cell) == ["busy", "busy", "idle"]


def test_what_a_kernel_says_twice_is_heard_once(proxy):
    proxy.be_up()
    cell = proxy.run()
    proxy.state(cell, "busy", "busy")
    proxy.reply(cell)
    proxy.state(cell, "idle", "idle")
    assert once(proxy, cell)


def test_an_output_that_says_idle_is_no_state(proxy):
    proxy.be_up()
    cell = proxy.run()
    for _ in range(2):
        proxy.publish("execute_result", {"execution_state": "idle"}, cell)
    kinds = [kind for kind, whose, _ in proxy.page.published if whose == cell]
    assert kinds == ["execute_result"] * 2
    assert proxy.stages() == {cell: "SENT"}


def test_states_of_cells_that_this_side_does_not_know_are_passed_on(proxy):
    """Another proxy has asked, or the one before this."""
    proxy.be_up()
    proxy.state("unknown", "busy", "idle")
    assert once(proxy, "unknown")
