"""Exercises are generated from solutions: one source a paper.

A function that is a task opens, after its docstring, with comment lines `# Task: ...`.
In the exercise its signature,
docstring and those lines stay, as `# TODO: ...`, and the rest of its body becomes `raise
NotImplementedError("name")`. A private function that is a task, such as the kernel that a function
launches, belongs to the first public task below it.
Everything else is given, and appears unchanged.
"""

from __future__ import annotations

import ast
import functools
import io
import subprocess
import tokenize
from dataclasses import dataclass, replace
from pathlib import Path

from paperlings import files, layout

Function = ast.FunctionDef | ast.AsyncFunctionDef


class StubError(ValueError):
    """A solution from which no stub can be made; the message names the file and the line."""


@dataclass(frozen=True)
class Task:
    """A function of a solution that the learner writes.

    name: dotted, `Class.method` for a method.  opens: the line of `# Task`.  closes:
    the last line of those comments.
    ends: the last line of the body.  indent: of the body.
    group: what a learner is judged by: the function, the class of the method,
    or the public task that a private one belongs to.
    """

    name: str
    opens: int
    closes: int
    ends: int
    indent: str
    group: str = ""


def tasks(source: str, name: str = "the solution") -> list[Task]:
    """Every task of a solution, in order. Raises StubError."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise StubError(f"{name}:{error.lineno}: {error.msg}") from None
    comments = _own_line_comments(source)
    marked = {
        line
        for line, (text, _) in comments.items()
        if text.removeprefix("#").lstrip().startswith("Task")
    }
    found: list[Task] = []
    used: set[int] = set()
    for qualified, function in _functions(tree, ""):
        if any(task.opens <= function.lineno <= task.ends for task in found):
            inner = [
                line for line in marked if function.lineno <= line <= (function.end_lineno or 0)
            ]
            if inner:
                raise StubError(f"{name}:{min(inner)}: a task inside the task {found[-1].name!r}")
            continue
        task = _task(qualified, function, source.splitlines(), comments, marked, name)
        if task:
            found.append(task)
            used |= set(range(task.opens, task.closes + 1))
    for line in sorted(marked - used):
        raise StubError(
            f"{name}:{line}: `# Task` opens a function's body, after its docstring; "
            "this one does not"
        )
    if not found:
        raise StubError(f"{name}: no function is marked `# Task`")
    return _grouped(found, name)


def _grouped(tasks: list[Task], name: str) -> list[Task]:
    grouped: list[Task] = []
    group = ""
    for task in reversed(tasks):
        own = task.name.split(".")[0]
        group = group if own.startswith("_") else own
        if not group:
            raise StubError(f"{name}:{task.opens}: no public task stands below {task.name!r}")
        grouped.append(replace(task, group=group))
    return grouped[::-1]


def stub(source: str, name: str = "the solution") -> str:
    """The exercise made from a solution, with the solution's own line ends. Raises StubError."""
    lines = source.splitlines(keepends=True)
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    for task in reversed(tasks(source, name)):
        comments = lines[task.opens - 1 : task.closes]
        todo = [line.replace("Task", "TODO", 1) if _marks(line) else line for line in comments]
        last = task.ends
        while last < len(lines) and _is_comment_of(lines, last, task.indent):
            last += 1
        name = task.group if task.name.startswith("_") else task.name
        body = f'{task.indent}raise NotImplementedError("{name}"){end}'
        lines[task.opens - 1 : last] = [*todo, body]
    return "".join(lines)


@functools.cache
def groups(key: str) -> tuple[str, ...]:
    """The names a learner is judged by in the paper `key`, in order."""
    path = layout.source(layout.SOLUTIONS, key)
    return tuple(dict.fromkeys(task.group for task in tasks(_read(path), layout.shown(path))))


def generate(check: bool = False) -> list[str]:
    """Write every exercise, or with `check` only compare; returns what changed, or is out of date,
    one line each.

    An exercise that is not as committed, so perhaps somebody's work,
    is backed up before it is written over.
    """
    changed = []
    for key in layout.written():
        path = layout.source(layout.SOLUTIONS, key)
        fresh = stub(_read(path), layout.shown(path))
        exercise = layout.source(layout.EXERCISES, key)
        if exercise.exists() and _read(exercise) == fresh:
            continue
        if check:
            changed.append(f"{layout.shown(exercise)} is not the stub of its solution")
            continue
        note = layout.shown(exercise)
        if exercise.exists() and not _is_committed(exercise):
            note += f" (your version is kept as {files.back_up(exercise).name})"
        files.write(exercise, fresh)
        changed.append(note)
    known = {layout.source(layout.EXERCISES, key) for key in layout.written()}
    orphans = sorted(set(layout.EXERCISES.glob("*/*.py")) - known)
    return changed + [f"{layout.shown(path)} has no solution" for path in orphans if check]


def _is_committed(path: Path) -> bool:
    """Whether git's last commit holds the file just as it is,
    so that nothing is lost by writing over it.
    """
    relative = layout.shown(path)
    try:
        show = subprocess.run(
            ["git", "show", f"HEAD:{relative}"], cwd=layout.HOME, capture_output=True, check=False
        )
    except OSError:
        return False
    return show.returncode == 0 and show.stdout == path.read_bytes()


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8")


def _functions(node: ast.AST, prefix: str) -> list[tuple[str, Function]]:
    """Every function below `node` with its dotted name, outer ones first, in source order."""
    found: list[tuple[str, Function]] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            name = prefix + child.name
            if isinstance(child, Function):
                found.append((name, child))
            found += _functions(child, f"{name}.")
        else:
            found += _functions(child, prefix)
    return found


def _own_line_comments(source: str) -> dict[int, tuple[str, int]]:
    """Comments that stand alone on their line: line -> (text, column).
    Strings that look like one do not count.
    """
    lines = source.splitlines()
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source, newline="").readline):
        line, column = token.start
        if token.type == tokenize.COMMENT and not lines[line - 1][:column].strip():
            found[line] = (token.string, column)
    return found


def _task(
    name: str,
    function: Function,
    lines: list[str],
    comments: dict[int, tuple[str, int]],
    marked: set[int],
    file: str,
) -> Task | None:
    first = function.body[0]
    has_docstring = ast.get_docstring(function, clean=False) is not None
    code = function.body[1:] if has_docstring else function.body
    start = (first.end_lineno or 0) + 1 if has_docstring else function.lineno + 1
    stop = code[0].lineno if code else _end_of_comments(start, lines)
    if code and isinstance(code[0], Function | ast.ClassDef) and code[0].decorator_list:
        stop = code[0].decorator_list[0].lineno
    opening = [line for line in sorted(marked) if start <= line < stop]
    if not opening:
        return None
    if not code:
        raise StubError(
            f"{file}:{opening[0]}: the task {name!r} has no code after its `# Task` lines"
        )
    closes = opening[-1]
    while closes + 1 in comments and closes + 1 < stop:
        closes += 1
    indent = lines[opening[0] - 1][: comments[opening[0]][1]]
    return Task(name, opening[0], closes, function.end_lineno or 0, indent)


def _end_of_comments(start: int, lines: list[str]) -> int:
    """One past the last line from `start` on that is blank or a comment."""
    line = start
    while line <= len(lines) and (
        not lines[line - 1].strip() or lines[line - 1].lstrip().startswith("#")
    ):
        line += 1
    return line


def _marks(line: str) -> bool:
    return line.lstrip().removeprefix("#").lstrip().startswith("Task")


def _is_comment_of(lines: list[str], at: int, indent: str) -> bool:
    """Whether the line, or after blank lines the next one, is a comment that still belongs to the
    body.
    """
    while at < len(lines) and not lines[at].strip():
        at += 1
    return at < len(lines) and lines[at].startswith(f"{indent}#")
