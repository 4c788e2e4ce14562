"""Cells that need this side hear when those before them there have ended, and of nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from remoter_kernel.local.proxy.here.local_cells import LocalCells
from tests.pure.test_output_backlog import said


@pytest.mark.parametrize(
    ("parts", "heard"),
    [
        (said("status", {"execution_state": "idle"}, cell="before"), ["before"]),
        (said("status", {"execution_state": "busy"}, cell="before"), []),
        (said("comm_msg", {"state": "idle"}, cell="before"), []),
        (said("execute_result", {"data": {"text/plain": '"idle"'}}, cell="before"), []),
    ],
)
def test_only_a_status_says_that_a_cell_there_is_over(parts, heard):
    """An output that shows the same word does not let the next cell begin."""
    ended: list[str] = []
    turns = SimpleNamespace(is_active=True, running_local=None, on_idle=ended.append)
    internal_exec = SimpleNamespace(local_kernel=SimpleNamespace())
    context = SimpleNamespace(replies=None, internal_exec=internal_exec)
    cells = LocalCells(context, turns)  # type: ignore[arg-type]
    cells.on_remote_output(parts)
    assert ended == heard
