"""The table of requests: a stage only grows, busy and idle come once, nothing stays for ever."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.requests import (
    MOST_ENDED,
    MOST_ON_CONTROL,
    Request,
    Requests,
    Stage,
    has_idle,
)


def request(name: str, kind: str = "execute_request", **options) -> Request:
    channel = options.pop("channel", Channel.SHELL)
    header = {"msg_id": name, "msg_type": kind, **options.pop("header", {})}
    content = json.dumps(options.pop("content", {})).encode()
    return Request(channel, [b"", json.dumps(header).encode(), b"{}", b"{}", content], header)


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=1000.0)


@pytest.fixture
def requests(clock) -> Requests:
    return Requests(lambda: clock.now)


def sent(requests: Requests, name: str, kind: str = "execute_request", **options) -> Request:
    return requests.add(request(name, kind, **options), Stage.SENT)


def test_a_cell_is_done_with_its_reply_and_its_idle_in_either_order(requests):
    one, two = sent(requests, "one"), sent(requests, "two")
    requests.on_state("one", "busy")
    requests.on_reply("one")
    assert one.stage.name == "REPLIED"
    requests.on_state("one", "idle")
    assert one.stage.name == "DONE"
    requests.on_state("two", "busy")
    requests.on_state("two", "idle")
    assert two.stage.name == "RUNNING"
    assert requests.on_reply("two") is two
    assert two.stage.name == "DONE"
    assert len(requests) == 0


def test_a_stage_only_grows_and_each_move_is_told_once(requests):
    moves = []
    requests.observe(lambda each, before: moves.append((before, each.stage)))
    one = requests.add(request("one"))
    assert requests.move(one, Stage.SENT)
    assert not requests.move(one, Stage.QUEUED)
    assert not requests.move(one, Stage.SENT)
    assert requests.move(one, Stage.CANCELLED, "interrupted")
    assert not requests.move(one, Stage.DONE)
    assert moves == [(Stage.RECEIVED, Stage.SENT), (Stage.SENT, Stage.CANCELLED)]
    assert one.why == "interrupted"


def test_what_gets_no_reply_is_forgotten_with_its_idle(requests):
    for number in range(10_000):
        sent(requests, f"comm {number}", "comm_msg")
        requests.on_state(f"comm {number}", "busy")
        requests.on_state(f"comm {number}", "idle")
    assert len(requests) == 0
    assert len(requests._ended) == MOST_ENDED


def test_what_gets_no_reply_is_forgotten_where_the_kernel_gives_no_idle_either(requests):
    for number in range(100):
        sent(requests, f"comm {number}", "comm_msg")
    sent(requests, "cell")
    requests.on_state("cell", "busy")
    assert [each.id for each in requests] == ["cell"]


def test_what_a_kernel_never_answers_does_not_keep_it_busy(requests):
    """It is done with it (idle), and a reply to a later request shows that none will come."""
    odd = sent(requests, "odd", "usage_request")
    requests.on_state("odd", "busy")
    assert requests.is_busy
    requests.on_state("odd", "idle")
    assert (requests.is_busy, odd.is_over) == (False, False)
    sent(requests, "next")
    requests.on_reply("next")
    assert (odd.stage, odd.why) == (Stage.DONE, "the kernel gave no reply")


def test_what_a_kernel_passes_over_does_not_keep_it_busy_and_is_forgotten(clock, requests):
    """It says neither busy nor idle, and gives no reply."""
    odd = sent(requests, "odd", "connect_request")
    assert not requests.is_busy
    clock.now += 10
    later = sent(requests, "later", "connect_request")
    cell = sent(requests, "cell")
    assert requests.is_busy
    requests.on_reply("cell", is_from_kernel=True)
    assert (odd.stage, odd.why) == (Stage.DONE, "the kernel gave no reply")
    assert (cell.stage, later.stage) == (Stage.REPLIED, Stage.SENT)


def test_a_reply_in_the_kernels_place_tells_nothing_of_what_waits_there(clock, requests):
    waits = sent(requests, "waits", "complete_request")
    clock.now += 10
    sent(requests, "called off")
    requests.on_reply("called off")
    assert waits.stage is Stage.SENT


def test_a_reply_tells_nothing_of_what_the_kernel_was_given_later(requests):
    """Both were heard to be idle before the first reply came: the second is on its way."""
    sent(requests, "one")
    two = sent(requests, "two", "is_complete_request")
    for name in ("one", "two"):
        requests.on_state(name, "busy")
        requests.on_state(name, "idle")
    requests.on_reply("one")
    assert requests.on_reply("two") is two


def test_what_is_asked_on_control_keeps_no_kernel_busy(requests):
    sent(requests, "usage", "usage_request", channel=Channel.CONTROL)
    assert not requests.is_busy
    assert requests.running is None


def test_what_a_kernel_never_answers_on_control_is_bounded(requests):
    for number in range(MOST_ON_CONTROL + 100):
        sent(requests, f"usage {number}", "usage_request", channel=Channel.CONTROL)
    assert len(requests) == MOST_ON_CONTROL


def test_a_cell_that_an_asynchronous_kernel_is_at_is_not_forgotten(requests):
    """Its kernel answers who it is meanwhile: the cell has no idle yet."""
    cell = sent(requests, "cell")
    sent(requests, "info", "kernel_info_request")
    requests.on_reply("info")
    assert cell.stage is Stage.SENT
    assert requests.on_reply("cell") is cell


def test_the_idle_of_a_cell_with_a_reply_is_given_up_where_the_next_begins(requests):
    one = sent(requests, "one")
    sent(requests, "two")
    requests.on_reply("one")
    heard = requests.on_state("two", "busy")
    assert (heard.is_new, heard.finished_before, one.stage) == (True, [one], Stage.DONE)


def test_a_subshell_does_not_wait_for_the_cells_before_it(requests):
    one = sent(requests, "one")
    sent(requests, "two", header={"subshell_id": "s"})
    requests.on_reply("one")
    assert requests.on_state("two", "busy").finished_before == []
    assert one.stage is Stage.REPLIED


@pytest.mark.parametrize("end", [Stage.FAILED, Stage.CANCELLED])
def test_an_idle_that_this_side_has_said_is_not_heard_again(requests, end):
    """Its kernel may have been at it all the same, and says so when it is done."""
    cell = sent(requests, "cell")
    cell.states |= {"busy", "idle"}
    requests.move(cell, end)
    assert not requests.on_state("cell", "busy").is_new
    assert not requests.on_state("cell", "idle").is_new


def test_what_this_side_says_in_the_kernels_place_is_not_new_when_the_kernel_says_it(requests):
    """That it runs, and that the one before it is over, only the kernel knows."""
    before, cell = sent(requests, "before"), sent(requests, "cell")
    requests.on_reply("before")
    assert requests.on_local_state("cell", "busy")
    assert not requests.on_local_state("cell", "busy")
    assert (cell.stage, before.stage) == (Stage.SENT, Stage.REPLIED)
    heard = requests.on_state("cell", "busy")
    assert (heard.is_new, heard.finished_before) == (False, [before])
    assert (cell.stage, before.stage) == (Stage.RUNNING, Stage.DONE)


def test_a_request_with_its_reply_is_done_where_this_side_says_its_idle(requests):
    cell = sent(requests, "cell")
    requests.on_reply("cell")
    assert requests.on_local_state("cell", "idle")
    assert cell.stage is Stage.DONE
    assert not requests.on_local_state("cell", "idle")
    assert not requests.on_state("cell", "idle").is_new


def test_what_runs_on_the_proxys_side_is_not_at_the_kernel_there(requests):
    here = requests.add(request("here"))
    here.is_here = True
    requests.move(here, Stage.RUNNING)
    there = sent(requests, "there")
    assert requests.running is there
    requests.on_local_state("here", "idle")
    requests.on_reply("there")
    assert here.stage is Stage.RUNNING


def test_a_reply_that_says_aborted_and_no_more_has_no_idle():
    def reply(**content):
        return [b"", b"{}", b"{}", b"{}", json.dumps({"status": "aborted", **content}).encode()]

    assert not has_idle(reply())
    assert has_idle(reply(status="ok"))
    assert has_idle(reply(text="x" * 300))


def test_each_state_of_a_request_is_new_once(requests):
    sent(requests, "cell")
    for state in ("busy", "idle"):
        assert requests.on_state("cell", state).is_new
        assert not requests.on_state("cell", state).is_new
    requests.on_reply("cell")
    assert not requests.on_state("cell", "idle").is_new


def test_an_idle_of_control_comes_after_its_reply_and_is_new(requests):
    sent(requests, "info", "kernel_info_request", channel=Channel.CONTROL)
    requests.on_reply("info")
    assert requests.on_state("info", "idle").is_new
    assert not requests.on_state("info", "idle").is_new


def test_what_belongs_to_no_request_is_always_new(requests):
    """Many a message of a kernel's own has no parent, or that of somebody unknown."""
    for _ in range(2):
        assert requests.on_state("", "idle").is_new
        assert requests.on_state("unknown", "busy").is_new


def test_a_second_reply_is_nobodys(requests):
    sent(requests, "one")
    assert requests.on_reply("one")
    assert requests.on_reply("one") is None


def test_a_client_may_use_an_id_twice(requests):
    first, second = sent(requests, "same"), sent(requests, "same")
    for each in (first, second):
        assert requests.on_state("same", "busy").is_new
        assert requests.on_reply("same") is each
        assert requests.on_state("same", "idle").is_new
        assert each.stage is Stage.DONE
    assert len(requests) == 0


def test_the_cell_that_runs_is_the_first_that_the_kernel_was_given(requests):
    requests.add(request("held"), Stage.HELD)
    sent(requests, "info", "kernel_info_request")
    two, three = sent(requests, "two"), sent(requests, "three")
    assert requests.running is two
    requests.on_reply("two")
    assert requests.running is three
    assert [each.id for each in requests.cells()] == ["held", "three"]


def test_rows_tell_of_each_request_and_nothing_of_what_is_in_it(requests):
    requests.add(request("one", content={"code": "SECRET"}), Stage.HELD)
    (row,) = requests.describe()
    assert row == {
        "id": "one",
        "type": "execute_request",
        "channel": "shell",
        "stage": "held",
        "why": "",
        "seconds": 0.0,
    }


NAMES = st.sampled_from(["", "a", "b", "c"])
KINDS = st.sampled_from(["execute_request", "comm_msg", "odd_request", "input_reply"])
STEPS = st.one_of(
    st.tuples(st.just("add"), NAMES, KINDS, st.sampled_from(list(Channel))),
    st.tuples(st.sampled_from(["busy", "idle", "reply", "aborted"]), NAMES),
    st.tuples(st.just("move"), st.integers(0, 10), st.sampled_from(list(Stage))),
)


@given(st.lists(STEPS))
def test_whatever_a_kernel_says_nothing_breaks_and_nobody_hears_a_state_twice(steps):
    requests = Requests()
    added: list[Request] = []
    for step in steps:
        if step[0] == "add":
            added.append(requests.add(request(step[1], step[2], channel=step[3]), Stage.SENT))
        elif step[0] == "move":
            if added:
                requests.move(added[step[1] % len(added)], step[2])
        elif step[0] in {"reply", "aborted"}:
            requests.on_reply(step[1], has_idle=step[0] == "reply")
        else:
            is_there = [each for each in added if each.id == step[1] and step[0] not in each.states]
            is_new = requests.on_state(step[1], step[0]).is_new
            if step[1] in {each.id for each in added}:
                assert is_new >= bool(set(is_there) & set(requests))
    assert all(not each.is_over for each in requests)
    assert set(requests) == {each for each in added if not each.is_over}


@given(st.lists(st.booleans(), max_size=12), st.randoms(use_true_random=False))
def test_no_reply_of_a_kernel_that_answers_in_order_is_lost(is_cell, random):
    """Its two sockets are each in order, and come in any order to each other."""
    requests = Requests()
    names = [str(number) for number in range(len(is_cell))]
    for name, cell in zip(names, is_cell, strict=True):
        sent(requests, name, "execute_request" if cell else "complete_request")
    iopub = [(name, state) for name in names for state in ("busy", "idle")]
    shell = list(names)
    answered = []
    while iopub or shell:
        if iopub and (not shell or random.random() < 0.7):
            requests.on_state(*iopub.pop(0))
        else:
            request = requests.on_reply(shell.pop(0))
            answered.append(request.id if request else None)
    assert answered == names
    assert len(requests) == 0
