"""How far a change of a solution reaches: the tasks that use what was changed."""

from __future__ import annotations

import ast

from paperlings import stubs

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def reached(source: str, lines: range) -> tuple[str, ...]:
    """The tasks, in order, whose code holds one of the lines, or uses code that does.

    All of them where the lines stand outside every function and class.
    """
    groups = tuple(dict.fromkeys(task.group for task in stubs.tasks(source)))
    nodes = _definitions(source)
    inside = definitions(source, lines)
    if not inside:
        return groups
    uses = {
        name: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & nodes.keys()
        for name, node in nodes.items()
    }
    while more := {name for name, used in uses.items() if used & inside} - inside:
        inside |= more
    return tuple(group for group in groups if group in inside)


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


def _definitions(source: str) -> dict[str, Definition]:
    return {node.name: node for node in ast.parse(source).body if isinstance(node, Definition)}


def _first(node: Definition) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
