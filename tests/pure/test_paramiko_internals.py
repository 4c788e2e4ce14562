"""What is used of paramiko's insides stands in one file alone, and paramiko still has it."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

from remoter_kernel.local.login.paramiko import paramiko_internals

INTERNALS = Path(paramiko_internals.__file__)
LOGIN = INTERNALS.parents[1]
FILES = sorted(path for path in LOGIN.rglob("*.py") if path != INTERNALS)
# Where paramiko defines what those classes have of which ours derive, or that ours replace.
PARAMIKO = ("agent", "auth_handler", "channel", "config", "packet", "transport")


def used(tree: ast.AST) -> set[str]:
    """Private attributes that are read or set, and private methods and fields of classes."""
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    names = {node.attr for node in found if ast.unparse(node) != "os._exit"}
    return {name for name in names | defined(tree) if is_private(name)}


def defined(tree: ast.AST) -> set[str]:
    """What classes define, and what methods set on `self`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                targets = getattr(part, "targets", [getattr(part, "target", None)])
                found |= {each.id for each in targets if isinstance(each, ast.Name)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def tree_of(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


def used_in(*modules: str) -> set[str]:
    sources = [inspect.getsource(importlib.import_module(name)) for name in modules]
    return set().union(*(used(ast.parse(source)) for source in sources))


@pytest.fixture(scope="module")
def theirs() -> set[str]:
    return used_in(*(f"paramiko.{name}" for name in PARAMIKO))


def test_whatever_is_used_of_paramikos_insides_is_still_there(theirs):
    names = used(tree_of(INTERNALS)) | set(paramiko_internals.ALGORITHMS.values())
    assert {"_send_user_message", "_channels", "_unlink"} <= names
    assert names - theirs == set()


def test_no_other_file_reaches_into_paramiko(theirs):
    """`openssh` and `keeper` meet no object of paramiko: a name that is the same is their own."""
    apart = [path for path in FILES if path.parent.name in ("openssh", "keeper")]
    for files in (apart, [path for path in FILES if path not in apart]):
        ours = set().union(*(defined(tree_of(path)) for path in files))
        shared = set().union(*(defined(tree_of(path)) for path in LOGIN.glob("*.py")))
        for path in files:
            assert used(tree_of(path)) & theirs - ours - shared == set(), path


def test_no_class_of_ours_that_derives_from_paramikos_uses_a_private_name_of_it():
    """There, a name that is ours elsewhere would be paramiko's."""
    found = {}
    for path in FILES:
        name = ".".join(path.relative_to(LOGIN.parents[2]).with_suffix("").parts)
        for kind in vars(importlib.import_module(name)).values():
            if inspect.isclass(kind) and kind.__module__ == name:
                bases = {base.__module__ for base in kind.__mro__}
                if modules := {base for base in bases if base.startswith("paramiko.")}:
                    own = used(ast.parse(inspect.getsource(kind)))
                    found[kind.__name__] = own & used_in(*modules)
    assert len(found) >= 4
    assert {name: names for name, names in found.items() if names} == {}
