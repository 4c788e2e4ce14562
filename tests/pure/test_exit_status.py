"""How a process ended, in words a person can act on."""

from __future__ import annotations

import pytest

from remoter_kernel.evaluator.processes import describe_exit, format_memory


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"status": -9, "peak_kib": 3 * 1024 * 1024}, "signal 9 (SIGKILL)"),
        ({"status": -9, "peak_kib": 3 * 1024 * 1024}, "3.0 GiB"),
        ({"status": -9}, "runs out of memory"),
        ({"status": -11}, "signal 11 (SIGSEGV)"),
        ({"status": -200}, "signal 200 (unknown)"),
        ({"status": 3, "peak_kib": 2048}, "exit code 3, having used up to 2.0 MiB"),
        ({"failed": "No such file or directory", "file": "/gone"}, "directory: /gone."),
    ],
)
def test_an_end_is_named(words, expected):
    """Signal, exit code and memory are in the sentence."""
    assert expected in describe_exit(words)


def test_amounts_read_well():
    """The unit is the one that reads best."""
    assert format_memory(5) == "5 KiB"
    assert format_memory(1536) == "1.5 MiB"
    assert format_memory(5 * 1024**3) == "5.0 TiB"
