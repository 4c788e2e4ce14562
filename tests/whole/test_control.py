"""What front ends do beside cells, through remoter and with a plain kernel: the same facts.

Debugger, subshells, usage, buffers both ways, and what is asked while a cell runs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.real_jupyter import plain_kernel, started_kernel
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

pytestmark = pytest.mark.timeout(240)

Facts = dict[str, Any]
FACTS: dict[str, Callable[[Talk], Facts]] = {}
CODE = "def double(n):\n    twice = n * 2\n    return twice\nresult = double(21)\n"


def fact(tells: Callable[[Talk], Facts]) -> Callable[[Talk], Facts]:
    """Add a conversation; what it tells must be the same on both sides."""
    FACTS[tells.__name__] = tells
    return tells


def said_in(talk: Talk, request: str, kind: str) -> list[dict[str, Any]]:
    """List the contents of a kind of message under a request."""
    return [
        message["content"]
        for _, message in talk.heard
        if message["msg_type"] == kind and message["parent_header"].get("msg_id") == request
    ]


def events(talk: Talk, name: str = "") -> list[dict[str, Any]]:
    """List the debugger's events so far."""
    told = [m["content"] for _, m in talk.heard if m["msg_type"] == "debug_event"]
    return [each for each in told if name in {"", each["event"]}]


class Debugger:
    """The debugger's side of a conversation: numbers its requests, as front ends do."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.number = 0
        self.told: list[Any] = []

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask, and write down what is comparable in the reply."""
        self.number += 1
        content = {
            "type": "request",
            "command": command,
            "seq": self.number,
            "arguments": arguments,
        }
        reply = self.talk.ask("debug_request", content, channel="control")
        body = reply.get("body") or {}
        keys = sorted(body) if isinstance(body, dict) else body
        self.told.append([command, reply.get("success"), reply.get("request_seq"), keys])
        return dict(body)

    def stopped(self, times: int) -> int:
        """Wait until it has stopped so many times; return the thread."""
        self.talk.listen(lambda: len(events(self.talk, "stopped")) >= times)
        body = events(self.talk, "stopped")[times - 1]["body"]
        self.told.append(["stopped", body["reason"]])
        return int(body["threadId"])

    def frame(self, thread: int) -> int:
        """Ask where it has stopped."""
        (top, *_) = self.ask("stackTrace", threadId=thread)["stackFrames"]
        self.told.append([top["name"], top["line"]])
        return int(top["id"])


@fact
def usage(talk: Talk) -> Facts:
    """What Jupyter's resource view asks for."""
    reply = talk.ask("usage_request", channel="control")
    reply.pop("host_cpu_percent", None)  # there only if the machine was at work
    return {"keys": sorted(reply), "is_a_process": reply["pid"] > 1}


@fact
def buffers_of_any_size(talk: Talk) -> Facts:
    """Empty ones, many, large: to the kernel, and back in the other order."""
    talk.run(
        "def opened(comm, _):\n"
        "    comm.on_msg(lambda m: comm.send({'n': len(m['buffers'])},\n"
        "                                    buffers=m['buffers'][::-1]))\n"
        "get_ipython().kernel.comm_manager.register_target('mirror', opened)"
    )
    talk.tell("comm_open", {"comm_id": "m", "target_name": "mirror", "data": {}})
    told = []
    for sent in ([], [b""], [b"", b"\x00", b""], [b"%d" % n for n in range(300)], [bytes(9**7)]):
        talk.tell("comm_msg", {"comm_id": "m", "data": {}}, buffers=sent)
        (*_, answer) = [m for _, m in talk.heard if m["msg_type"] == "comm_msg"]
        back = [bytes(each) for each in answer["buffers"]]
        told.append((answer["content"]["data"], back == sent[::-1]))
    return {"told": told}


@fact
def linked_widgets(talk: Talk) -> Facts:
    """A link in the browser, an output with a cell inside, interact."""
    talk.run(
        "import ipywidgets as w\n"
        "a, b, out = w.IntSlider(), w.IntText(), w.Output()\n"
        "w.jslink((a, 'value'), (b, 'value'))\n"
        "shown = w.interactive(lambda n: print('n is', n), n=(0, 9))\n"
        "with out:\n    print('inside')\n"
        "display(a, b, out, shown)"
    )
    opened = [m["content"]["data"] for _, m in talk.heard if m["msg_type"] == "comm_open"]
    talk.run("out.outputs, a.value")
    models = [each["state"].get("_model_name") for each in opened]
    return {"models": models, "links": "LinkModel" in models}


@fact
def asked_while_a_cell_runs(talk: Talk) -> Facts:
    """On the main shell it waits for the cell; through a subshell it does not."""
    talk.run("import threading, time")
    subshell = talk.ask("create_subshell_request", channel="control")["subshell_id"]
    busy = talk.queue("print('busy', flush=True)\ngate = threading.Event()\ngate.wait(20)")
    talk.until_said("busy")
    waits = talk.send("is_complete_request", {"code": "for i in x:"})
    aside = {"subshell_id": subshell}
    completed = talk.send("complete_request", {"code": "thr", "cursor_pos": 3}, header=aside)
    talk.done(completed)
    early = [bool(said_in(talk, waits, "is_complete_reply")), bool(said_in(talk, busy, "error"))]
    matches = "threading" in said_in(talk, completed, "complete_reply")[0]["matches"]
    talk.done(talk.queue("gate.set()", header=aside))
    talk.done(busy, waits)
    talk.ask("delete_subshell_request", {"subshell_id": subshell}, channel="control")
    return {"early": early, "matches": matches, "late": said_in(talk, waits, "is_complete_reply")}


@fact
def interrupt_beside_a_subshell(talk: Talk) -> Facts:
    """The cell of the main shell ends; that of the subshell goes on and ends by itself."""
    subshell = talk.ask("create_subshell_request", channel="control")["subshell_id"]
    talk.run("import threading, time\ngate = threading.Event()")
    main = talk.queue("print('main', flush=True)\ntime.sleep(60)")
    talk.until_said("main")
    code = "print('aside', flush=True)\ngate.wait(20)\nprint('on')"
    aside = talk.queue(code, header={"subshell_id": subshell})
    talk.until_said("aside")
    talk.ask("interrupt_request", channel="control")
    talk.done(main)
    ended = said_in(talk, main, "execute_reply")[0]
    was_running = not said_in(talk, aside, "execute_reply")
    talk.run("gate.set()")
    talk.done(aside)
    other = said_in(talk, aside, "execute_reply")[0]
    talk.ask("delete_subshell_request", {"subshell_id": subshell}, channel="control")
    return {
        "main": (ended["status"], ended.get("ename")),
        "was running": was_running,
        "aside": (other["status"], "".join(s["text"] for s in said_in(talk, aside, "stream"))),
    }


@fact
def debugger(talk: Talk) -> Facts:
    """Stop at a line, look around, go on step by step, and leave."""
    debugging = Debugger(talk)
    ask = debugging.ask
    ask("debugInfo")
    ask("initialize", clientID="test", adapterID="python", pathFormat="path", linesStartAt1=True)
    ask("attach")
    source = ask("dumpCell", code=CODE)["sourcePath"]
    debugging.told.append(re.sub(r"ipykernel_\d+", "ipykernel", source))
    at = ask("setBreakpoints", source={"path": source}, breakpoints=[{"line": 2}], lines=[2])
    debugging.told.append([(each["line"], each["verified"]) for each in at["breakpoints"]])
    ask("configurationDone")
    cell = talk.queue(CODE)
    thread = debugging.stopped(1)
    debugging.frame(thread)
    ask("next", threadId=thread)
    frame = debugging.frame(debugging.stopped(2))
    (scope, *_) = ask("scopes", frameId=frame)["scopes"]
    seen = ask("variables", variablesReference=scope["variablesReference"])["variables"]
    debugging.told.append([(v["name"], v["value"]) for v in seen if v["name"] in {"n", "twice"}])
    rich = ask("richInspectVariables", variableName="twice", frameId=frame)
    debugging.told.append(rich.get("data"))
    ask("continue", threadId=thread)
    talk.done(cell)
    names = {each["name"] for each in ask("inspectVariables")["variables"]}
    debugging.told.append({"double", "result"} <= names)
    ask("debugInfo")
    ask("disconnect", restart=False, terminateDebuggee=False)
    kinds = {each["event"] for each in events(talk)}
    talk.run("result")
    return {"told": debugging.told, "events": {"initialized", "stopped", "continued"} & kinds}


def tell_all(talk: Talk) -> dict[str, Facts]:
    """Go through all conversations."""
    told: dict[str, Facts] = {}
    for name, tells in FACTS.items():

        def one(talk: Talk, name: str = name, tells: Callable[[Talk], Facts] = tells) -> None:
            told[name] = tells(talk)

        said = talk.case(one)
        told.setdefault(name, {"gave up": said})
    return told


@pytest.fixture(scope="module")
def both(
    here: JupyterHere, far: FarSide, python_remote: dict[str, Any]
) -> dict[str, dict[str, Facts]]:
    """Talk to a plain kernel, then to a remote one."""
    with far.folder() as folder:
        environment = {"IPYTHONDIR": f"{folder}/ipython"}
        with plain_kernel(far, folder, environment=environment) as client:
            plain = tell_all(Talk(client))
        spec = here.add_remote("aside", env=environment, cwd=str(folder), **python_remote)
        with started_kernel(spec) as kernel:
            return {"plain": plain, "remote": tell_all(Talk(kernel.client))}


@pytest.mark.parametrize("name", FACTS)
def test_the_same_facts(both: dict[str, dict[str, Facts]], name: str) -> None:
    """Each conversation has the same course on both sides."""
    plain, remote = both["plain"][name], both["remote"][name]
    assert "gave up" not in plain, plain
    assert remote == plain
