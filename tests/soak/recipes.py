"""The cells that a soak runs, in Python and in R, and how many marks each is to show (pure).

Every cell first writes its token and its process into the list of runs there. An R kernel
says what a whole expression printed when that expression has ended, so cells in R pause
between expressions and not within one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

WIDTH = 980  # bytes of padding in a burst's line
SLEEP = 300  # seconds that an interrupted cell would sleep


@dataclass(frozen=True)
class Recipe:
    """One cell."""

    token: str
    name: str
    code: str
    marks: int
    optional: frozenset[int] = frozenset()
    answer: str = ""  # to its question
    is_interrupted: bool = False  # once its first mark is there


def begin(token: str, runs: str, language: str) -> str:
    """Return the lines that each cell begins with."""
    if language == "R":
        return f"cat('{token} ', Sys.getpid(), '\\n', sep='', file='{runs}', append=TRUE)\n"
    return (
        f"import os, time\nwith open({runs!r}, 'a') as file:\n"
        f"    file.write('{token} ' + str(os.getpid()) + '\\n')\n"
    )


# --- Python ---


def _lines(token: str, dice: random.Random) -> Recipe:
    count, pause = dice.randint(5, 80), dice.choice((0.0, 0.02, 0.1, 0.3))
    code = f"for i in range({count}):\n    print(f'<{token}:{{i}}>', flush=True)\n"
    return Recipe(token, "lines", code + f"    time.sleep({pause})", count)


def _result(token: str, _dice: random.Random) -> Recipe:
    return Recipe(token, "result", f"print('<{token}:0>')\n'<{token}:1>'", 2)


def _error(token: str, _dice: random.Random) -> Recipe:
    return Recipe(token, "error", f"print('<{token}:0>')\nraise ValueError('<{token}:1>')", 2)


def _displays(token: str, dice: random.Random) -> Recipe:
    count = dice.randint(3, 40)
    code = f"from IPython.display import display\nfor i in range({count}):\n"
    show = f"    display({{'text/plain': f'<{token}:{{i}}>'}}, raw=True)"
    return Recipe(token, "displays", code + show, count)


def _updates(token: str, dice: random.Random) -> Recipe:
    """The last update of a display takes the place of those before it, in a notebook for good."""
    count = dice.randint(3, 30)
    code = (
        "from IPython.display import display\n"
        f"shown = display({{'text/plain': '<{token}:0>'}}, raw=True, display_id=True)\n"
        f"for i in range(1, {count}):\n    time.sleep(0.05)\n"
        f"    shown.update({{'text/plain': f'<{token}:{{i}}>'}}, raw=True)\n"
        f"print('<{token}:{count}>')"
    )
    return Recipe(token, "updates", code, count + 1, frozenset(range(count - 1)))


def _question(token: str, _dice: random.Random) -> Recipe:
    code = f"print('<{token}:0>')\nprint('<{token}:' + input('? ') + '>')"
    return Recipe(token, "question", code, 2, answer="1")


def _sleeper(token: str, _dice: random.Random) -> Recipe:
    code = f"print('<{token}:0>', flush=True)\ntime.sleep({SLEEP})\nprint('<{token}:9>')"
    return Recipe(token, "interrupt", code, 1, is_interrupted=True)


def _burst(token: str, dice: random.Random) -> Recipe:
    count = dice.choice((2, 2, 3, 5, 8, 20)) * 1000
    code = f"for i in range({count}):\n    print(f'<{token}:{{i}}>', 'x' * {WIDTH})"
    return Recipe(token, "burst", code, count)


# --- R ---


def _r_lines(token: str, dice: random.Random) -> Recipe:
    count, pause = dice.randint(3, 20), dice.choice((0.0, 0.05, 0.3))
    lines = [f"cat('<{token}:{i}>\\n')\nSys.sleep({pause})" for i in range(count)]
    return Recipe(token, "lines", "\n".join(lines), count)


def _r_result(token: str, _dice: random.Random) -> Recipe:
    return Recipe(token, "result", f"cat('<{token}:0>\\n')\n'<{token}:1>'", 2)


def _r_error(token: str, _dice: random.Random) -> Recipe:
    return Recipe(token, "error", f"cat('<{token}:0>\\n')\nstop('<{token}:1>')", 2)


def _r_displays(token: str, dice: random.Random) -> Recipe:
    count = dice.randint(3, 20)
    show = f"list('text/plain' = paste0('<{token}:', i, '>'))"
    code = f"for (i in 0:{count - 1}) IRdisplay::publish_mimebundle({show})"
    return Recipe(token, "displays", code, count)


def _r_question(token: str, _dice: random.Random) -> Recipe:
    code = f"cat('<{token}:0>\\n')\ncat(paste0('<{token}:', readline('? '), '>\\n'))"
    return Recipe(token, "question", code, 2, answer="1")


def _r_sleeper(token: str, _dice: random.Random) -> Recipe:
    code = f"cat('<{token}:0>\\n')\nSys.sleep({SLEEP})\ncat('<{token}:9>\\n')"
    return Recipe(token, "interrupt", code, 1, is_interrupted=True)


def _r_burst(token: str, dice: random.Random) -> Recipe:
    count = dice.choice((2, 2, 3, 5)) * 1000
    text = f"paste0('<{token}:', 0:{count - 1}, '> ', strrep('x', {WIDTH}), '\\n')"
    return Recipe(token, "burst", f"cat({text}, sep='')", count)


PYTHON: dict[Callable[[str, random.Random], Recipe], int] = {  # and how often
    _lines: 8,
    _result: 3,
    _error: 2,
    _displays: 3,
    _updates: 3,
    _question: 2,
    _sleeper: 2,
    _burst: 1,
}
R: dict[Callable[[str, random.Random], Recipe], int] = {
    _r_lines: 8,
    _r_result: 3,
    _r_error: 2,
    _r_displays: 3,
    _r_question: 2,
    _r_sleeper: 2,
    _r_burst: 1,
}


def any_cell(token: str, language: str, dice: random.Random) -> Recipe:
    """Throw the dice for a cell."""
    makers = R if language == "R" else PYTHON
    (maker,) = dice.choices(list(makers), list(makers.values()))
    return maker(token, dice)


def first_cell(token: str, language: str) -> Recipe:
    """Return a cell that begins a kernel's life: where there was one before, a wrong mark."""
    if language == "R":
        code = f"cat(if (exists('life')) '<{token}:8>\\n' else '<{token}:0>\\n')\nlife <- 1"
    else:
        code = f"print('<{token}:8>' if 'life' in globals() else '<{token}:0>')\nlife = 1"
    return Recipe(token, "first", code, 1)


def plain_cell(token: str, language: str) -> Recipe:
    """Return a cell that only shows that somebody is there."""
    say = "cat" if language == "R" else "print"
    return Recipe(token, "is it free?", f"{say}('<{token}:0>\\n')", 1)


def echo_cell(token: str) -> Recipe:
    """Return a cell (Python) after which what is said to the comm `echo` is said back."""
    code = (
        "def opened(comm, _):\n"
        "    comm.on_msg(lambda said: comm.send(said['content']['data']))\n"
        "get_ipython().kernel.comm_manager.register_target('echo', opened)\n"
        f"print('<{token}:0>')"
    )
    return Recipe(token, "comm target", code, 1)
