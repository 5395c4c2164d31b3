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


Tasks = tuple[str, ...]


def between(before: str, after: str, tasks: Tasks) -> tuple[Tasks, Tasks] | None:
    """Which of the tasks an edit of a learner's file has changed, and which it can have changed
    because they use what was changed, in order.

    None where that cannot be told: something outside functions and classes changed, or a text
    does not parse. Comments, docstrings and where things stand change nothing.
    """
    try:
        old, new = _meaning(before), _meaning(after)
    except (SyntaxError, ValueError):
        return None
    reached = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    if "" in reached:
        return None
    edited = tuple(task for task in tasks if task in reached)
    uses = [_uses(text) for text in (before, after)]
    while more := {n for use in uses for n, used in use.items() if used & reached} - reached:
        reached |= more
    return edited, tuple(task for task in tasks if task in reached and task not in edited)


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


@functools.lru_cache(maxsize=4)
def _meaning(source: str) -> dict[str, str]:
    """What each function and class of a module says, and under "" what stands outside them."""
    said: dict[str, str] = {}
    rest = []
    for node in ast.parse(source).body:
        for inner in ast.walk(node):
            if isinstance(inner, Definition) and ast.get_docstring(inner, clean=False) is not None:
                inner.body = inner.body[1:]
        if isinstance(node, Definition) and node.name not in said:
            said[node.name] = ast.dump(node)
        else:
            rest.append(ast.dump(node))
    return {**said, "": "\n".join(rest)}


def _first(node: Definition) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
