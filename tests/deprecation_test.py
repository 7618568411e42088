"""A name that goes away warns for one minor release, and is gone in the next."""

import ast
import pathlib
import re

import pytest

import deel.lipdp

ROOT = pathlib.Path(deel.lipdp.__file__).parent


def complaints(source, version):
    """What is wrong with the deprecations in a source: list of str."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id == "DeprecationWarning":
            found.append(f"line {node.lineno}: warn by typing_extensions.deprecated, which type checkers see")
        if not (isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "deprecated"):
            continue
        message = re.fullmatch(r"since (\d+)\.(\d+); use .+", getattr(node.args[0], "value", "") if node.args else "")
        if not message:
            found.append(f"line {node.lineno}: say 'since X.Y; use ...'")
        elif version > tuple(map(int, message.groups())):
            found.append(f"line {node.lineno}: its time is over since {'.'.join(map(str, version))}: take it out")
    return found


@pytest.mark.parametrize(
    ("line", "version", "words"),
    [
        ("@deprecated('since 0.2; use new_name')", (0, 2), None),
        ("@typing_extensions.deprecated('since 0.2; use new_name')", (0, 3), "its time is over"),
        ("@deprecated('since 0.9; use new_name')", (0, 10), "its time is over"),
        ("@deprecated('since 0.9; use new_name')", (1, 0), "its time is over"),
        ("@deprecated('old')", (0, 2), "say 'since"),
        ("@deprecated(MESSAGE)", (0, 2), "say 'since"),
    ],
)
def test_the_check_itself(line, version, words):
    found = complaints(f"{line}\ndef old_name(): ...", version)
    assert (found == []) if words is None else (len(found) == 1 and words in found[0])


def test_the_check_sees_other_ways_to_warn():
    assert len(complaints("import warnings\nwarnings.warn('old', DeprecationWarning)", (0, 1))) == 1


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_deprecated_name_outlives_its_release(path):
    version = tuple(map(int, deel.lipdp.__version__.split(".")[:2]))
    assert complaints(path.read_text(encoding="utf-8"), version) == []
