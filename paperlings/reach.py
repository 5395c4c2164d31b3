"""How far a change of a solution reaches: the tasks that use what was changed."""

from __future__ import annotations

import ast
import functools

from paperlings import stubs

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def reached(source: str, lines: range) -> tuple[str, ...]:
    """The tasks, in order, whose code holds one of the lines, or uses code that does.

    All of them where the lines stand outside every function and class.
    """
    inside = definitions(source, lines)
    if not inside:
        return _groups(source)
    while more := {name for name, used in _uses(source).items() if used & inside} - inside:
        inside |= more
    return tuple(group for group in _groups(source) if group in inside)


def definitions(source: str, lines: range) -> set[str]:
    """The functions and classes of the module that hold one of the lines."""
    return {
        name
        for name, node in _definitions(source).items()
        if any(_first(node) <= line <= (node.end_lineno or 0) for line in lines)
    }


def lines_of(source: str, place: str) -> range:
    """The lines, counted from 1, that hold the text `place`."""
    start = source[: source.index(place)].count("\n") + 1
    return range(start, start + place.count("\n") + 1)


# one solution is asked about hundreds of times
@functools.cache
def _groups(source: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(task.group for task in stubs.tasks(source)))


@functools.cache
def _definitions(source: str) -> dict[str, Definition]:
    return {node.name: node for node in ast.parse(source).body if isinstance(node, Definition)}


@functools.cache
def _uses(source: str) -> dict[str, set[str]]:
    """The functions and classes of the module, and which of the others each of them names."""
    nodes = _definitions(source)
    return {
        name: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & nodes.keys()
        for name, node in nodes.items()
    }


def _first(node: Definition) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
