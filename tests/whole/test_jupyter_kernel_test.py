"""The whole jupyter_kernel_test suite through a real sshd, for Python and for R.

The samples are those that the two kernels pass when they run plainly. Of the suite's history
tests `range` is not asked for: ipykernel names its own session 0 there, and fails it plainly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import jupyter_kernel_test
import pytest

from tests import real_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide


@pytest.fixture(scope="module", autouse=True)
def _remotes(here: JupyterHere, far: FarSide, python_remote: dict[str, Any]) -> Iterator[None]:
    """Two remotes on the same host: one for Python, one for R."""
    # The suite asks for the history of its own cells: no other kernel's may be beside it.
    with far.folder() as folder:
        environment = {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "IPYTHONDIR": str(folder)}
        here.add_remote("py", env=environment, **python_remote)
        here.add_remote("r", language="R", kernel="ir", **python_remote)
        yield


class Python:
    """What a Python kernel is asked."""

    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples: ClassVar[list[dict[str, Any]]] = [
        {"text": "zi", "matches": {"zip"}},
        {"text": "frozens", "matches": {"frozenset"}},
    ]
    complete_code_samples: ClassVar[list[str]] = [
        "1",
        "print('hello, world')",
        "def f(x):\n  x\n\n",
    ]
    incomplete_code_samples: ClassVar[list[str]] = ["print('''hello", "def f(x):\n  x*2"]
    invalid_code_samples: ClassVar[list[str]] = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('no')"
    code_execute_result: ClassVar[list[dict[str, str]]] = [
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
        {"code": "from IPython.display import HTML; HTML('<b>')", "mime": "text/html"},
    ]
    code_display_data: ClassVar[list[dict[str, str]]] = [
        {
            "code": "from IPython.display import HTML, display; display(HTML('x'))",
            "mime": "text/html",
        },
        {
            "code": "from IPython.display import Math, display; display(Math('x^2'))",
            "mime": "text/latex",
        },
    ]
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"
    support_iopub_welcome = True


class R:
    """What an R kernel is asked; it has no results, only displays, and no history."""

    language_name = "R"
    file_extension = ".r"
    code_hello_world = 'print("hello, world")'
    code_stderr = 'message("test")'
    completion_samples: ClassVar[list[dict[str, Any]]] = [
        {"text": "zi", "matches": {"zip"}},
        {"text": "seq_len(", "matches": {"length.out = "}},
    ]
    complete_code_samples: ClassVar[list[str]] = [
        "1",
        "print('hello, world')",
        "f <- function(x) {\n x\n}",
    ]
    incomplete_code_samples: ClassVar[list[str]] = ["print('hello", "f <- function(x) {\n  x*2"]
    invalid_code_samples: ClassVar[list[str]] = ["x = = 7q"]
    code_page_something = "?cat"
    code_generate_error = 'stop("no")'
    code_display_data: ClassVar[list[dict[str, str]]] = [
        {"code": "1+2+3", "mime": "text/plain"},
        {"code": "data.frame(a = 1:2)", "mime": "text/html"},
        {"code": "options(jupyter.plot_mimetypes = 'image/png'); plot(1:3)", "mime": "image/png"},
    ]
    code_inspect_sample = "print"
    code_clear_output = "IRdisplay::clear_output()"


class TestPython(Python, jupyter_kernel_test.KernelTests):  # type: ignore[misc]
    """All of it, through remoter, in Python."""

    kernel_name = "remoter-py"


class TestPythonWelcome(Python, jupyter_kernel_test.IopubWelcomeTests):  # type: ignore[misc]
    """A subscriber is welcomed."""

    kernel_name = "remoter-py"


class TestR(R, jupyter_kernel_test.KernelTests):  # type: ignore[misc]
    """All of it, through remoter, in R."""

    kernel_name = "remoter-r"

    @classmethod
    def setUpClass(cls) -> None:
        """Start the kernel, if there is R."""
        real_parts.real_part("irkernel")
        super().setUpClass()
