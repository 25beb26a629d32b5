"""Limits on size, and on who prints: files and functions that one person can take in at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "steer").rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]

LONGEST_BODY = 40
LONGEST_FILE = 300
MAY_PRINT = {"steer/cli.py", "steer/evaluate/evaluate.py"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def print_calls(tree: ast.Module) -> list[int]:
    """Line numbers of calls of the built-in `print`; one imported from rich is not that."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "rich"
        for alias in node.names
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name)]
    return [call.lineno for call in named if call.func.id == "print" and "print" not in imported]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_function_fits_on_a_screen(path: Path):
    sizes = {function.name: body_lines(function) for function in functions(parsed(path))}
    assert {name: size for name, size in sizes.items() if size > LONGEST_BODY} == {}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_is_about_one_thing(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_only_commands_print(path: Path):
    if path.relative_to(ROOT).as_posix() not in MAY_PRINT:
        assert print_calls(parsed(path)) == []


def test_the_docstring_is_not_counted():
    code = 'def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n\n    return a\n'
    (function,) = functions(ast.parse(code))
    assert body_lines(function) == 3
