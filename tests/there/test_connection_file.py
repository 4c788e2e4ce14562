"""The file that leads to the kernel is there for as long as the session is."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import TYPE_CHECKING

from remoter_kernel.evaluator.kernel_process import KernelProcess

if TYPE_CHECKING:
    from pathlib import Path


def test_a_kernel_that_is_gone_does_not_take_its_successors_file_along(tmp_path: Path) -> None:
    """Both use one file; a new evaluator needs it to take the kernel over."""
    file, reactor = tmp_path / "connection.json", SimpleNamespace(call_soon_threadsafe=None)
    first, second = (
        KernelProcess(reactor, tmp_path, "python3", b"session")  # type: ignore[arg-type]
        for _ in range(2)
    )
    for child in (first, second):
        child.manager.connection_file = str(file)
        child.manager.write_connection_file()
    first.close()
    del first
    gc.collect()
    assert file.exists()
    second.close()
