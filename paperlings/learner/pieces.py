"""A learner's file and the solution, piece by piece: what both wrote for a task."""

from __future__ import annotations

import ast
import difflib
import itertools
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

from paperlings import layout, stubs, teacher
from paperlings.learner import definitions
from paperlings.learner.definitions import Function


@dataclass(frozen=True)
class Piece:
    """A definition in two versions, of a task without signature and docstring.

    No lines: it is not written in that version. is_same: but for its writing.
    """

    name: str
    yours: list[str]
    solution: list[str]
    is_same: bool = False

    @property
    def in_both(self) -> tuple[set[int], set[int]]:
        """Which lines of either version the other has as well, in the same order."""
        yours, solution = ([x.strip() for x in lines] for lines in (self.yours, self.solution))
        matcher = difflib.SequenceMatcher(None, yours, solution, autojunk=False)
        both = [
            (block.a + i, block.b + i)
            for block in matcher.get_matching_blocks()
            for i in range(block.size)
        ]
        return {a for a, _ in both}, {b for _, b in both}


@dataclass(frozen=True)
class Pieces:
    """tasks: by what a learner is judged by.  own: what the learner's file defines besides, or
    otherwise than it was given.  trouble: why the learner's file cannot be read, "" where it can.
    """

    tasks: dict[str, list[Piece]] = field(default_factory=dict)
    own: list[Piece] = field(default_factory=list)
    trouble: str = ""


def of(key: str) -> Pieces:
    """The pieces of a paper."""
    text, path = teacher.source(key), layout.source(layout.EXERCISES, key)
    raw = path.read_bytes() if path.is_file() else b""
    own = raw.decode("utf-8", errors="replace").replace("\r\n", "\n")
    wanted, found, trouble = dict(definitions.of(ast.parse(text).body)), {}, ""
    try:
        found = dict(definitions.of(ast.parse(own).body))
    except (SyntaxError, ValueError) as error:
        trouble = f"{layout.shown(path)} is no Python as it is: {error}"
    tasks = stubs.tasks(text)
    lines = text.splitlines()
    said = {line.strip() for task in tasks for line in lines[task.opens - 1 : task.closes]}
    said |= {line.replace("Task", "TODO", 1) for line in said}
    pieces: dict[str, list[Piece]] = {}
    for task in tasks:
        nodes = found.get(task.name), wanted[task.name]
        yours, solution = _written(own, nodes[0], said), _written(text, nodes[1], said)
        piece = Piece(task.name, yours, solution, _is_same(*nodes))
        pieces.setdefault(task.group, []).append(piece)
    others = {name: node for name, node in found.items() if name not in {t.name for t in tasks}}
    helpers = [
        Piece(name, _whole(own, node), [])
        for name, node in others.items()
        if not isinstance(node, ast.Expr)
        and (name not in wanted or ast.unparse(node) != ast.unparse(wanted[name]))
    ]
    return Pieces(pieces, helpers, trouble)


def _written(text: str, node: ast.stmt | None, said: set[str]) -> list[str]:
    """What somebody wrote for a task. said: the comments that asked for it."""
    if node is None or definitions.is_unwritten(node):
        return []
    if not isinstance(node, Function):  # as in task = functools.partial(...)
        return _whole(text, node)
    code = definitions.code_of(node)
    if not code or code[0].lineno == node.lineno:
        return _whole(text, node)
    start = _first(code[0]) - 1 if len(code) == len(node.body) else node.body[0].end_lineno
    lines = text.splitlines()[start : node.end_lineno]
    return _dedented(itertools.dropwhile(lambda x: not x.strip() or x.strip() in said, lines))


def _whole(text: str, node: ast.stmt) -> list[str]:
    return _dedented(text.splitlines()[_first(node) - 1 : node.end_lineno])


def _first(node: ast.stmt) -> int:
    """The line on which a statement begins, with its decorators."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _dedented(lines: Iterable[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).expandtabs(4).splitlines()


def _is_same(yours: ast.stmt | None, solution: ast.stmt) -> bool:
    """Whether two functions do the same in the same words."""
    if not isinstance(yours, Function) or not isinstance(solution, Function):
        return False
    ours, theirs = (map(ast.dump, definitions.code_of(node)) for node in (yours, solution))
    return list(ours) == list(theirs)
