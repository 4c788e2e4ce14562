"""The cases of *same as plain*: what people do in cells, and what front ends ask behind them.

Each case names the message types that plain ipykernel must have sent, so that a case which
no longer shows anything is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.whole.talk import Talk


@dataclass(frozen=True)
class Case:
    """What is said to the kernel, and which kinds of message it must answer with."""

    says: Callable[[Talk], None]
    shows: frozenset[str]


CASES: dict[str, Case] = {}


def cell(name: str, code: str, shows: str = "", **options: Any) -> None:
    """Add a case that is one cell."""
    CASES[name] = Case(lambda talk: talk.run(code, **options), frozenset(shows.split()))


def case(shows: str) -> Callable[[Callable[[Talk], None]], Callable[[Talk], None]]:
    """Add a case that is a function; its name is the case's name."""

    def add(says: Callable[[Talk], None]) -> Callable[[Talk], None]:
        name = says.__name__.replace("_", " ").strip()
        CASES[name] = Case(says, frozenset(shows.split()))
        return says

    return add


# --- streams ---

cell("stdout", "print('hello')", "stream execute_reply execute_input status")
cell("stderr", "import sys\nprint('oh', file=sys.stderr)", "stream")
cell(
    "stdout and stderr in turn",
    "for i in range(5):\n"
    "    print('out', i, flush=True)\n"
    "    print('err', i, file=sys.stderr, flush=True)",
    "stream",
)
cell("no newline", "print('a', end='')\nprint('b', end='')", "stream")
cell(
    "carriage returns", "for i in range(101):\n    print(f'\\r{i} %', end='', flush=True)", "stream"
)
cell("a hundred flushes", "for i in range(100):\n    print(i, 'x' * 50, flush=True)", "stream")
cell("two megabytes of text", "print(('0123456789' * 100 + '\\n') * 2000, end='')", "stream")
cell("five thousand lines", "for i in range(5000):\n    print('line', i)", "stream")
cell("unicode", "print('naïve Ελλάδα 日本語 🧪 é 👩\u200d👧 \u200fעברית')", "stream")
cell("control characters", r"print('\x00\x07\x1b[31mred\x1b[0m\x7f\u2028|')", "stream")
cell(
    "threads print",
    "import threading\n"
    "def work(n):\n"
    "    print('from thread', n, flush=True)\n"
    "for n in range(5):\n"
    "    t = threading.Thread(target=work, args=(n,)); t.start(); t.join()",
    "stream",
)
cell(
    "a subprocess writes to its stdout",
    "import subprocess, time\n_ = subprocess.run(['printf', 'from below\\\\n'])\ntime.sleep(0.5)",
    "stream",
)
cell("os.write", "import os\n_ = os.write(1, b'raw bytes\\n')\ntime.sleep(0.5)", "stream")
cell("logging", "import logging\nlogging.getLogger('a.b').error('mind %s', 'this')", "stream")
cell("warnings", "import warnings\nwarnings.warn('take care')", "stream")

# --- results ---

cell("a result", "1 + 1", "execute_result")
cell("the last result", "_ * 21", "execute_result")
cell("no result", "None", "execute_reply")
cell("a semicolon", "2 + 2;", "execute_reply")
cell("a long list", "list(range(2000))", "execute_result")
cell(
    "a pretty dictionary",
    "{str(i): {'a': [i] * 9, 'b': 'x' * 40} for i in range(9)}",
    "execute_result",
)
cell(
    "two results",
    "from IPython.core.interactiveshell import InteractiveShell\n3\n4",
    "execute_result",
)
cell("In and Out", "len(In) > 3, 2 in Out.values()", "execute_result")
cell("an empty cell", "", "execute_reply")
cell("only a comment", "# nothing", "execute_reply")
cell("output and result", "print('before')\n'result'", "stream execute_result")
cell("a megabyte of result", "'y' * 1_000_000", "execute_result")

# --- rich displays ---

DISPLAY = "from IPython.display import *\n"
cell("html", DISPLAY + "display(HTML('<b>bold</b>'))", "display_data")
cell("html result", "HTML('<i>it</i>')", "execute_result")
cell(
    "png",
    "import base64\n"
    "png = base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')\n"
    "Image(png, width=7)",
    "execute_result",
)
cell("json", "display(JSON({'a': [1, {'b': None}]}, expanded=True))", "display_data")
cell("latex", "Latex(r'$\\frac{1}{2}$')", "execute_result")
cell("markdown", "Markdown('# head')", "execute_result")
cell(
    "svg",
    'SVG(\'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>\')',
    "execute_result",
)
cell("javascript", "Javascript('1+1')", "execute_result")
cell("code with colours", "Code('def f(): pass', language='python')", "execute_result")
cell(
    "a bundle of any type",
    "display({'application/x-own+json': {'n': 1}, 'text/plain': 'own'}, raw=True,\n"
    "        metadata={'application/x-own+json': {'isolated': True}})",
    "display_data",
)
cell(
    "a display that updates",
    "handle = display('first', display_id='the-one')\n"
    "handle.update('second')\n"
    "update_display('third', display_id='the-one')",
    "display_data update_display_data",
)
cell("an update of an earlier cell", "handle.update(HTML('<u>late</u>'))", "update_display_data")
cell(
    "a display handle without a name",
    "h = display(1, display_id=True); h.update(2)",
    "update_display_data",
)
cell(
    "clear output",
    "print('gone')\nclear_output()\nprint('kept')\nclear_output(wait=True)\nprint('last')",
    "clear_output stream",
)
cell(
    "displays and streams in turn",
    "for i in range(10):\n    print('s', i)\n    display(i)",
    "stream display_data",
)
cell(
    "objects that show themselves",
    "class Shown:\n"
    "    def _repr_mimebundle_(self, include=None, exclude=None):\n"
    "        return {'text/plain': 'shown', 'text/x-shown': '<s>'}, {'text/x-shown': {'m': 1}}\n"
    "Shown()",
    "execute_result",
)
cell(
    "objects that fail to show themselves",
    "class Broken:\n"
    "    def _repr_html_(self):\n"
    "        raise ValueError('no picture')\n"
    "    def __repr__(self):\n"
    "        return 'Broken()'\n"
    "display(Broken())",
    "error display_data",
)
cell(
    "objects without a repr",
    "class Worse:\n    def __repr__(self):\n        1 / 0\nWorse()",
    "error",
)
cell(
    "a figure",
    "%matplotlib inline\n"
    "import matplotlib.pyplot as plt\n"
    "_ = plt.plot([1, 4, 9])\n"
    "plt.title('squares')\n"
    "plt.show()",
    "display_data",
)
cell("a thousand displays", "for i in range(1000):\n    display(i)", "display_data")
cell(
    "a display with a progress bar",
    "bar = display(HTML('<progress>'), display_id='bar')\n"
    "for i in range(4):\n    bar.update(HTML(f'<progress value={i}>'))",
    "update_display_data",
)

# --- errors ---

cell("a division by zero", "def f(x):\n    return 1 / x\nf(0)", "error execute_reply")
cell("a syntax error", "a = = 1", "error")
cell("a bad indent", "if 1:\nprint(2)", "error")
cell("an unknown name", "undefined_name", "error")
cell(
    "an error with a cause",
    "try:\n    {}['key']\nexcept KeyError as e:\n    raise RuntimeError('outer') from e",
    "error",
)
cell("an error group", "raise ExceptionGroup('many', [ValueError('a'), TypeError('b')])", "stream")
cell("an error in unicode", "raise ValueError('ünï 🧪\\nsecond line')", "error")
cell("an endless recursion", "def r(n):\n    return r(n + 1)\nr(0)", "error")
cell(
    "an error with a traceback of its own",
    "class Own(Exception):\n"
    "    def _render_traceback_(self):\n"
    "        return ['my', 'own', 'lines']\n"
    "raise Own('x')",
    "error",
)
cell("sys.exit", "sys.exit(3)", "error")
cell("a raised KeyboardInterrupt", "raise KeyboardInterrupt", "error")
cell("output before an error", "print('so far')\nassert False, 'here'", "stream error")
cell("exit that keeps the kernel", "exit(keep_kernel=True)", "execute_reply")

# --- input ---

cell("input", "input('name? ')", "input_request execute_result", answers=["ünï"])
cell("two inputs", "print(input('a'), input('b'))", "input_request stream", answers=["1", "2"])
cell(
    "getpass",
    "import getpass\nlen(getpass.getpass('secret: '))",
    "input_request execute_result",
    answers=["hunter2"],
)
cell(
    "input between prints",
    "for i in range(3):\n    print(i, input('> '))",
    "input_request",
    answers="xyz",
)
cell("input that is not allowed", "input('?')", "error", allow_stdin=False)

# --- comms and widgets ---


@case("comm_open comm_msg comm_close")
def a_comm_of_the_kernel(talk: Talk) -> None:
    talk.run(
        "from comm import create_comm\n"
        "c = create_comm(target_name='t', data={'a': 1}, metadata={'m': 2},\n"
        "                buffers=[b'\\x00\\xff'])\n"
        "c.send({'b': [1, 2]}, buffers=[b'one', bytes(range(256)) * 400])\n"
        "c.close({'bye': True})"
    )


@case("comm_msg stream")
def a_comm_of_the_client(talk: Talk) -> None:
    talk.run(
        "def opened(comm, message):\n"
        "    def said(message):\n"
        "        data = message['content']['data']\n"
        "        print('got', data, [bytes(b)[:9] for b in message['buffers']])\n"
        "        comm.send({'echo': data}, buffers=message['buffers'][::-1])\n"
        "    comm.on_msg(said)\n"
        "    comm.send({'hello': message['content']['data']})\n"
        "get_ipython().kernel.comm_manager.register_target('mine', opened)"
    )
    talk.tell("comm_open", {"comm_id": "c1", "target_name": "mine", "data": {"x": 1}})
    for i in range(5):
        content = {"comm_id": "c1", "data": {"i": i}}
        talk.tell("comm_msg", content, buffers=[b"b%d" % i, bytes(100_000)])
    talk.ask("comm_info_request", {"target_name": "mine"})
    talk.tell("comm_close", {"comm_id": "c1", "data": {}})
    talk.ask("comm_info_request", {})


@case("comm_close")
def a_comm_without_a_target(talk: Talk) -> None:
    talk.tell("comm_open", {"comm_id": "c2", "target_name": "nobody", "data": {}})


@case("comm_open comm_msg display_data")
def a_slider(talk: Talk) -> None:
    talk.run(
        "import ipywidgets as w\n"
        "slider = w.IntSlider(3, description='n')\n"
        "slider.observe(lambda change: print('now', change.new), 'value')\n"
        "display(slider)"
    )
    comm = talk.comm_id()
    for value in (4, 5, 6):
        data = {"method": "update", "state": {"value": value}, "buffer_paths": []}
        talk.tell("comm_msg", {"comm_id": comm, "data": data})
    talk.run("slider.value, slider.max")
    talk.tell("comm_msg", {"comm_id": comm, "data": {"method": "request_state"}})


@case("comm_open comm_msg")
def a_widget_with_bytes(talk: Talk) -> None:
    talk.run("image = w.Image(value=png, format='png')\nimage.value = png[::-1]\nimage")


@case("comm_msg")
def an_output_widget(talk: Talk) -> None:
    talk.run("out = w.Output()\nwith out:\n    print('inside')\n    display(7)\nout.outputs")


@case("comm_msg display_data")
def interact(talk: Talk) -> None:
    talk.run("@w.interact(n=(0, 9))\ndef show(n=2):\n    return n * n")


# --- magics and the shell ---

cell("%who", "one_variable = 1\n%who_ls int", "execute_result")
cell("%whos", "%whos int", "stream")
cell("%%time", "%%time\nsum(range(10))", "stream execute_result")
cell("%timeit", "t = %timeit -n1 -r1 -q -o pass\nt.loops", "execute_result")
cell("%%capture", "%%capture kept\nprint('hidden')\ndisplay(1)", "execute_reply")
cell("what was captured", "kept.stdout, len(kept.outputs)\nkept.show()", "stream display_data")
cell("%%writefile", "%%writefile written.py\nprint('written and run')", "stream")
cell("%run", "%run written.py", "stream")
cell("%load", "%load written.py", "execute_reply")
cell("a question mark", "len?", "execute_reply")
cell("two question marks", "f??", "execute_reply")
cell("%pwd and %cd", "%cd /\n%pwd", "stream execute_result")
cell("!command", "!echo from the shell; echo oh >&2; exit 3", "stream")
cell("lines = !command", "lines = !printf 'a\\nb\\n'\nlines", "execute_result")
cell("%%bash", "%%bash\nfor i in 1 2 3; do echo $i; done", "stream")
cell("%%bash that fails", "%%bash\necho so far\nexit 4", "stream error")
cell("%%html", "%%html\n<p>para</p>", "display_data")
cell("%%latex", "%%latex\n$x$", "display_data")
cell("%lsmagic", "%lsmagic", "execute_result")
cell("%env", "%env REMOTER_OWN=5\nimport os\nos.environ['REMOTER_OWN']", "stream execute_result")
cell("%xmode", "%xmode Plain\n1/0", "stream error")
cell("%xmode back", "%xmode Context", "stream")
cell("%history", "%history -n 1-3", "stream")
cell("an unknown magic", "%no_such_magic", "stream")
cell(
    "%reset_selective",
    "%reset_selective -f one_variable\n'one_variable' in globals()",
    "execute_result",
)

# --- async ---

cell("await", "import asyncio\nawait asyncio.sleep(0, result='slept')", "execute_result")
cell(
    "async for and with",
    "from contextlib import asynccontextmanager\n"
    "@asynccontextmanager\n"
    "async def room():\n    print('in')\n    yield 5\n    print('out')\n"
    "async def count(n):\n    for i in range(n):\n        await asyncio.sleep(0)\n        yield i\n"
    "async with room() as size:\n    async for i in count(size):\n        print(i)",
    "stream",
)
cell("gather", "await asyncio.gather(*(asyncio.sleep(0, i) for i in range(5)))", "execute_result")
cell("an error in a task", "async def fail():\n    raise OSError(5, 'io')\nawait fail()", "error")


# --- what front ends ask ---


# jedi gives up types after 0.4 s, sooner or later on a busy machine.
cell("%config", "%config Completer.use_jedi = False", "execute_reply")


@case("complete_reply")
def completion(talk: Talk) -> None:
    for code, cursor in (("sli", 3), ("os.pa", 5), ("plt.plot(", 9), ("é = 1; é.re", 11), ("", 0)):
        talk.ask("complete_request", {"code": code, "cursor_pos": cursor})


@case("inspect_reply")
def inspection(talk: Talk) -> None:
    for code, level in (("f", 0), ("f", 1), ("len(", 0), ("nothing_here", 0)):
        content = {"code": code, "cursor_pos": len(code), "detail_level": level}
        talk.ask("inspect_request", content)


@case("history_reply")
def history(talk: Talk) -> None:
    common = {"output": False, "raw": True, "session": 0}
    talk.ask("history_request", {**common, "hist_access_type": "tail", "n": 5})
    content = {**common, "hist_access_type": "range", "start": 1, "stop": 4, "output": True}
    talk.ask("history_request", content)
    content = {**common, "hist_access_type": "search", "pattern": "*1 +*", "n": 2, "unique": True}
    talk.ask("history_request", content)


@case("is_complete_reply")
def is_complete(talk: Talk) -> None:
    for code in ("1 + 1", "for i in x:", "a = = 1", "'''", "%%bash\nls", "def f():\n    pass\n"):
        talk.ask("is_complete_request", {"code": code})


@case("execute_reply status")
def silent(talk: Talk) -> None:
    talk.run("print('unseen')\nhidden = 5\nhidden", silent=True)
    talk.run("1/0", silent=True)
    talk.run("hidden")


@case("execute_result")
def no_history(talk: Talk) -> None:
    talk.run("'not stored'", store_history=False)
    talk.run("'stored'")


@case("execute_reply")
def user_expressions(talk: Talk) -> None:
    wanted = {"good": "1 + 1", "rich": "HTML('<b>')", "bad": "1/0", "wrong": "= ="}
    talk.run("x = 1", user_expressions=wanted)
    talk.run("", user_expressions=wanted, silent=True)


@case("error execute_reply")
def queued_cells_stop_at_an_error(talk: Talk) -> None:
    cells = ["print('runs')", "import time; time.sleep(0.5); 1/0", "print('must not')", "2"]
    talk.done(*[talk.queue(code) for code in cells])
    talk.run("print('runs again')")


@case("error execute_result")
def queued_cells_go_on_after_an_error(talk: Talk) -> None:
    cells = ["time.sleep(0.3); 1/0", "print('runs too')", "2"]
    talk.done(*[talk.queue(code, stop_on_error=False) for code in cells])


@case("execute_result")
def fifty_queued_cells(talk: Talk) -> None:
    talk.done(*[talk.queue(f"print({i})\n{i}") for i in range(50)])


@case("execute_result")
def metadata_of_a_request(talk: Talk) -> None:
    talk.run("1", metadata={"cellId": "a-b", "deletedCells": [], "recordTiming": True, "ünï": None})


@case("execute_reply")
def a_request_with_unknown_fields(talk: Talk) -> None:
    talk.run("get_ipython().kernel.get_parent()['content'].get('own_field')", own_field=[1])


@case("kernel_info_reply")
def kernel_info_on_control(talk: Talk) -> None:
    talk.ask("kernel_info_request", channel="control")


@case("connect_reply")
def connect(talk: Talk) -> None:
    request = talk.send("connect_request", {})
    talk.done(request)


@case("debug_reply")
def debugger(talk: Talk) -> None:
    talk.ask(
        "debug_request", {"type": "request", "command": "debugInfo", "seq": 1}, channel="control"
    )


@case("interrupt_reply error")
def interrupt(talk: Talk) -> None:
    cell = talk.queue("print('started', flush=True)\ntime.sleep(60)")
    talk.until_said("started")
    talk.ask("interrupt_request", channel="control")
    talk.done(cell)


@case("interrupt_reply error")
def interrupt_with_cells_queued(talk: Talk) -> None:
    cells = [
        talk.queue("print('going', flush=True)\ntime.sleep(60)"),
        talk.queue("1"),
        talk.queue("2"),
    ]
    talk.until_said("going")
    talk.ask("interrupt_request", channel="control")
    talk.done(*cells)
    talk.run("print('fine')")


@case("create_subshell_reply list_subshell_reply delete_subshell_reply stream")
def subshells(talk: Talk) -> None:
    subshell = talk.ask("create_subshell_request", channel="control")["subshell_id"]
    busy = talk.queue("print('busy', flush=True)\ngate = threading.Event()\ngate.wait(20)")
    talk.until_said("busy")
    talk.done(talk.queue("gate.set()\nprint('meanwhile')", header={"subshell_id": subshell}))
    talk.done(busy)
    talk.ask("list_subshell_request", channel="control")
    talk.ask("delete_subshell_request", {"subshell_id": subshell}, channel="control")


@case("comm_msg")
def eight_megabytes_of_buffers(talk: Talk) -> None:
    talk.run("c = create_comm(target_name='big')\nc.send({}, buffers=[bytes(4_000_000)] * 2)")


@case("stream")
def a_background_task_prints_later(talk: Talk) -> None:
    talk.run(
        "async def later():\n    await asyncio.sleep(0.2)\n    print('later', flush=True)\n"
        "task = asyncio.create_task(later())"
    )
    talk.until_said("later")
