"""Which kernelspec is meant where several have its name.

Jupyter looks into a person's own folder first, and a kernelspec there may start any Python.
Whoever has named a Python means that one's kernel.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from remoter_kernel.errors import RemoteLacks

if TYPE_CHECKING:
    from jupyter_client.kernelspec import KernelSpec

DEFAULT = "python3"  # the name that the kernel of any Python has
OWN = Path(sys.prefix, "share", "jupyter", "kernels")


def specs_for(kernel: str, *, is_own: bool) -> KernelSpecManager:
    """Return who knows the kernelspecs; `is_own`: the default kernel is this Python's.

    The look around a remote (local/launch/survey.sh) decides in the same way.
    """
    if is_own and kernel.lower() == DEFAULT:
        # Nothing but this environment's, or what ipykernel itself says where it has none.
        client_number = KernelSpecManager(kernel_dirs=[str(OWN)])
        try:
            client_number.get_kernel_spec(kernel)
        except (NoSuchKernel, OSError, ValueError):
            pass  # it has none, or a broken one
        else:
            return client_number
    return KernelSpecManager()


def check_argv(spec: KernelSpec, argv: list[str]) -> None:
    """Say so if a kernelspec starts a program that is gone, such as a removed environment's."""
    program = Path(argv[0])
    if program.is_absolute() and not program.exists():
        raise RemoteLacks(
            f"The kernelspec in {spec.resource_dir} starts {program}, which is not there.",
            f"Install its kernel anew, or remove it there: rm -r {spec.resource_dir}",
        )
