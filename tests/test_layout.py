"""Limits on size, and on who prints: files and functions that one person can take in at once."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "steer").rglob("*.py"))
}

LONGEST_BODY = 40
LONGEST_FILE = 300

Function = ast.FunctionDef | ast.AsyncFunctionDef


@pytest.fixture(scope="module")
def nodes() -> dict[str, list[ast.AST]]:
    return {name: list(ast.walk(ast.parse(text))) for name, text in FILES.items()}


def functions(nodes: Sequence[ast.AST]) -> Iterator[Function]:
    return (node for node in nodes if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def print_calls(nodes: Sequence[ast.AST]) -> list[int]:
    """Line numbers of calls of the built-in `print`; one imported from rich is not that."""
    imported = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "rich"
        for alias in node.names
    }
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name)]
    return [call.lineno for call in named if call.func.id == "print" and "print" not in imported]


def test_a_function_fits_on_a_screen(nodes: dict[str, list[ast.AST]]):
    sizes = {(n, f.name): body_lines(f) for n, of_file in nodes.items() for f in functions(of_file)}
    assert len(sizes) > 1000
    assert {place: size for place, size in sizes.items() if size > LONGEST_BODY} == {}


def test_a_file_is_about_one_thing():
    lines = {name: len(text.splitlines()) for name, text in FILES.items()}
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}


def test_only_commands_print(nodes: dict[str, list[ast.AST]]):
    assert {name: lines for name, of_file in nodes.items() if (lines := print_calls(of_file))} == {}


def test_the_docstring_is_not_counted():
    code = 'def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n\n    return a\n'
    (function,) = functions(list(ast.walk(ast.parse(code))))
    assert body_lines(function) == 3
