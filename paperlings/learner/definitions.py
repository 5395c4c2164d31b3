"""What a file of Python defines, found in its text."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef
LESSON = "the lesson"  # what a module's docstring is here


def of(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.stmt]]:
    """Functions, variables and docstrings of a module or a class, by dotted name."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from of(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.Assign):
            yield prefix + ast.unparse(node.targets[0]), node
        elif isinstance(node, ast.AnnAssign):
            yield prefix + ast.unparse(node.target), node
        elif isinstance(node, ast.Expr) and node is body[0]:
            yield prefix.removesuffix(".") or LESSON, node


def is_unwritten(node: ast.stmt) -> bool:
    """Whether it is a function as a stub has it."""
    last = node.body[-1] if isinstance(node, Function) else None
    return isinstance(last, ast.Raise) and "NotImplementedError(" in ast.unparse(last)


def code_of(function: Function) -> list[ast.stmt]:
    """What a function does: its body without the docstring."""
    return function.body[ast.get_docstring(function, clean=False) is not None :]


def promise(node: ast.stmt) -> str:
    """A definition in one spelling, of a function its signature and docstring alone."""
    if isinstance(node, Function):
        says = ast.Expr(ast.Constant(ast.get_docstring(node) or ""))
        node = copy.copy(node)
        node.body = [says]
    return ast.unparse(node)
