"""Objects that are carried between Python here and R there."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests import same_values
from tests.objects_to_carry import r_values
from tests.real_jupyter import started_kernel
from tests.real_parts import real_part
from tests.whole.talk import Talk
from tests.whole.test_this_side import reply, run, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere

FEW = settings(
    max_examples=12,
    phases=[Phase.generate],  # to shrink takes too long with real kernels
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def talk(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[Talk]:
    """Somebody who talks to an R far away."""
    real_part("irkernel")
    spec = here.add_remote("r-carries", kernel="ir", language="R", local="allow", **python_remote)
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        run(talk, "1")
        run(talk, f"%%local\n{Path(same_values.__file__).read_text()}")
        run(talk, "%local import pickle, base64, numpy, pandas as pd")
        yield talk


def give(talk: Talk, name: str, value: Any) -> None:
    """Give an object of the test's to the kernel here."""
    text = base64.b64encode(pickle.dumps(value)).decode()
    said = run(talk, f"%local {name} = pickle.loads(base64.b64decode({text!r}))")
    assert reply(said)["status"] == "ok"


def carry(talk: Talk, words: str) -> str:
    """Carry something; return what was said."""
    said = run(talk, f"%remoter {words}")
    assert reply(said)["status"] == "ok", reply(said)
    return text_of(said)


@FEW
@given(st.lists(r_values(), max_size=25))
def test_what_goes_to_r_comes_back(talk: Talk, value: Any) -> None:
    """All kinds that R has a counterpart for."""
    give(talk, "x", value)
    carry(talk, "push x")
    carry(talk, "pull x as y")
    said = run(talk, "%local [(a, b) for a, b in zip(x, y, strict=True) if not same(a, b)]")
    assert text_of(said) == "[]", text_of(said)


OF_R = {
    "scalars": 'list(TRUE, 1L, 2.5, 1+2i, "é", as.raw(1:3), NULL, NA, NA_integer_ + 1.5, NaN, Inf)',
    "vectors": "list(c(TRUE, FALSE), 1:9, c(1.5, NA, NaN, -Inf), c(1i, 2), letters, character(0))",
    "missing": 'list(c(1L, NA), c(NA, TRUE), c("a", NA, "NA"), integer(0), NA_real_)',
    "named": 'list(c(a = 1, b = NA), c(x = "y", z = NA), c(d = as.Date("2024-02-29"), e = NA))',
    "lists": 'list(a = list(), b = list(c = list(1, "d")), e = setNames(list(), character()))',
    "factors": 'list(factor(c("b", "a", NA)), factor("x", levels = c("y", "x"), ordered = TRUE))',
    "times": 'list(as.Date(c("1600-01-01", NA)), .POSIXct(c(0.25, NA), tz = "Europe/Berlin"))',
    "spans": 'list(.POSIXct(1e9, tz = "GMT"), as.difftime(c(5, NA), units = "secs"))',
    "far dates": "list(.Date(6585000), .Date(c(6585000, 1)))",
    "repeated names": "list(c(a = 1, a = 2), c(b = TRUE, FALSE, NA))",
    "arrays of dates": "list(structure(.Date(1:4 + 0), dim = c(2L, 2L)))",
    "arrays": "list(matrix(1:6, 2), array(c(1.5, NA), c(1, 2, 1)), matrix(c('a', 'b'), 2))",
    "frame": (
        'data.frame(n = c(1.5, NA), i = c(1L, NA), s = c("a", NA), b = c(NA, TRUE), '
        'd = as.Date(c("2024-01-01", NA)), t = .POSIXct(c(1e9, NA), tz = "Asia/Tokyo"), '
        'f = factor(c("u", NA)), row.names = c("one", "two"))'
    ),
    "empty frames": "list(data.frame(), data.frame(a = numeric()), iris, mtcars)",
}


@pytest.mark.parametrize("code", OF_R.values(), ids=OF_R)
def test_what_comes_from_r_goes_back(talk: Talk, code: str) -> None:
    """Identical, attributes and all."""
    made = reply(run(talk, f"x <- {code}"))
    assert made["status"] == "ok", made
    carry(talk, "pull x")
    carry(talk, "push x as back")
    said = text_of(run(talk, "cat(identical(x, back), '\\n'); if (!identical(x, back)) str(back)"))
    assert said.startswith("TRUE"), said


def test_each_kind_is_what_the_table_says(talk: Talk) -> None:
    """A vector of one is its value, a data frame is a frame, a factor is a categorical."""
    run(talk, 'x <- list(1L, 2.5, TRUE, "a", NULL, NA, c(1, 2), factor("u"), list(k = 1:2), cars)')
    carry(talk, "pull x")
    kinds = "int float bool str NoneType NAType ndarray Categorical dict DataFrame"
    assert text_of(run(talk, "%local print(*[type(each).__name__ for each in x])")).strip() == kinds
    give(talk, "y", {"n": 3, "big": 2**40, "l": [1, "a"]})
    carry(talk, "push y")
    said = text_of(run(talk, "cat(class(y), class(y$n), y$big == 2^40, class(y$l))"))
    assert said == "list integer TRUE list"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("x <- getClass('numeric')", "S4 object of class"),
        ("x <- function() 1", "of class function"),
        ("x <- globalenv()", "of class environment"),
        ("x <- list(1, quote(a + b))", r"x[[2]] is of class call"),
        ("x <- lm(dist ~ speed, cars)", "of class lm"),
        ("x <- structure(1, unit = 'm')", "attribute unit"),
        ("x <- list(a = 1, a = 2)", "not unique"),
        ("x <- data.frame(a = 1); x$l <- list(1)", "column l of x"),
        ("x <- structure(data.frame(a = 1), note = 'b')", "attribute note"),
        ("x <- as.pairlist(list(a = 1))", "of class pairlist"),
        ("x <- matrix(c(1L, NA), 1)", "an array with NA"),
        ("x <- structure(factor(c('a', 'b')), dim = 1:2)", "an array of class factor"),
        ("x <- factor(c('a', NA), exclude = NULL)", "NA among its levels"),
        ("x <- c(a = as.raw(1))", "raw and has names"),
        ("x <- '\\xff'", "not UTF-8"),
        ("x <- .Date(c(1, Inf))", "infinite"),
    ],
)
def test_what_r_cannot_send_is_named(talk: Talk, code: str, says: str) -> None:
    """By its class; nothing arrives here."""
    run(talk, "%local x = 'before'")
    assert reply(run(talk, code))["status"] == "ok"
    said = reply(run(talk, "%remoter pull x"))
    assert says in said["evalue"], said["evalue"]
    assert text_of(run(talk, "%local x")) == "'before'"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("x = {1, 2}", "a set, for which R"),
        ("x = (1, 2)", "a tuple, for which R"),
        ("x = 2**70", "too large a number"),
        ("x = {1: 2}", "keys that are no text"),
        ("x = pd.DataFrame({'m': [1, 'a']}, dtype=object)", "column 'm' of x mixes"),
        ("x = pd.DataFrame({'a': [1]}, index=pd.Index([5], name='id'))", "x.reset_index()"),
        ("x = pd.Series(pd.to_datetime(['2024-01-01 00:00:00.000000001']))", "nanoseconds"),
        ("x = 'a\\0b'", "NUL"),
        ("x = pd.Series(['a\\0b'])", "NUL"),
        ("x = pd.array(pd.interval_range(0, 3))", "interval[int64, right], for which R"),
        ("x = pd.Series([1]).set_flags(allows_duplicate_labels=False)", "flags"),
        ("x = [1]; x.append(x)", "x[1] contains itself"),
    ],
)
def test_what_r_has_no_counterpart_for_is_named(talk: Talk, code: str, says: str) -> None:
    """And stays here."""
    assert reply(run(talk, f"%local {code}"))["status"] == "ok"
    said = reply(run(talk, "%remoter push x as never"))
    assert says in said["evalue"], said["evalue"]
    assert text_of(run(talk, "exists('never')")).strip() == "[1] FALSE"


def test_a_name_that_is_locked_keeps_its_value(talk: Talk) -> None:
    """And those that were sent together with it keep theirs."""
    run(talk, "free <- 'before'; locked <- 1; lockBinding('locked', globalenv())")
    run(talk, "%%local\nfree = 'after'\nlocked = 2")
    said = reply(run(talk, "%remoter push free locked"))
    assert "'locked' cannot be given another value" in said["evalue"]
    assert text_of(run(talk, "cat(free, locked)")) == "before 1"
    run(talk, "unlockBinding('locked', globalenv()); rm(locked, free)")


def test_texts_arrive_from_an_r_without_a_language(talk: Talk) -> None:
    """In the locale C it knows no letters but those of ASCII: what came as UTF-8 is that."""
    run(talk, "before <- Sys.getlocale('LC_CTYPE'); invisible(Sys.setlocale('LC_CTYPE', 'C'))")
    try:
        run(talk, r"x <- '\xc3\xa9'")
        carry(talk, "pull x")
    finally:
        run(talk, "invisible(Sys.setlocale('LC_CTYPE', before))")
    assert text_of(run(talk, "%local x")) == "'é'"


def test_names_of_r_s_own(talk: Talk) -> None:
    """A name may have dots there, and needs another one here; pickles are not for R."""
    run(talk, "measured <- 1")
    said = reply(run(talk, "%remoter pull mesured"))
    assert "There is no 'mesured' (did you mean measured?)" in said["evalue"]
    run(talk, "my.data <- 1:3")
    assert "no name of Python's" in reply(run(talk, "%remoter pull my.data"))["evalue"]
    carry(talk, "pull my.data as mine")
    for name in ("_x", "...", "..1", "TRUE"):
        assert "no name of R's" in reply(run(talk, f"%remoter push mine as {name}"))["evalue"]
    assert "no pickles" in reply(run(talk, "%remoter push mine --pickle"))["evalue"]
    assert text_of(run(talk, "ls()")).count("carry_out") == 0
