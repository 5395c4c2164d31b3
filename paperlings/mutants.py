"""Breaking the solutions by machine: an operator, a number, an argument, a call, a line at a time.

What no test notices is a hole in the tests, or as right as the solution;
the second is said in the paper's .toml, in one line, under [[survivors]].
"""

from __future__ import annotations

import ast
import contextlib
import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paperlings import catalogue, files, layout, reach, runner, stubs, tables, teacher
from paperlings.verdict import PASSED

SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
PAIRS = (
    *("min max", "amin amax", "minimum maximum", "argmin argmax", "sum mean", "zeros ones"),
    *("zeros_like ones_like", "sin cos", "floor ceil", "float32 float64", "exp expm1", "log log1p"),
    *("new_zeros new_ones", "any all", "triu tril", "log2 log"),
)
NAMES = dict(pair.split() for pair in PAIRS)
NAMES |= {there: here for here, there in NAMES.items()}
# their arguments may be exchanged
SYMMETRIC = (
    *("max", "min", "maximum", "minimum", "promote_types", "equal", "logaddexp"),
    *("transpose", "swapaxes"),
)
# text for people and for type checkers: no test should notice a change of it
SILENT = (ast.Raise, ast.JoinedStr, ast.Assert)


@dataclass(frozen=True)
class Mutant:
    """One change of a solution: what stands from `start` to `end` becomes `after`."""

    line: int
    start: int
    end: int
    after: str

    def apply(self, source: str) -> str:
        """The solution with the change made."""
        return source[: self.start] + self.after + source[self.end :]


@dataclass
class Tally:
    """Of one paper: how many mutants, how many of them the .toml explains, and which others live.
    `faults` say what is wrong in the .toml.
    """

    key: str
    mutants: int
    explained: int
    survivors: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def mutants(names: list[str]) -> int:
    """Try every mutant of the papers that `names` mean, print the tally,
    and return 1 where one lives unexplained.
    """
    keys = [paper.key for paper in catalogue.load().select_written(names)]
    runner.warm()
    tallies = [measure(key) for key in keys]
    show(tallies)
    return int(any(tally.survivors or tally.faults for tally in tallies))


def measure(key: str) -> Tally:
    """Run every mutant of one paper. Raises KnowledgeError where its .toml is wrong."""
    source, name = teacher.source(key), layout.shown(layout.knowledge(key))
    known = {}
    for edit in teacher.load(key).survivors:
        known[_tree(teacher.apply(source, [edit], f"{name}: survivor"))] = edit
    made = of(source)
    lived = _lived(key, source, made)
    tally = Tally(key, len(made), len(lived & known.keys()))
    tally.survivors = [_shown(made[tree], source) for tree in made if tree in lived - known.keys()]
    for tree, edit in known.items():
        if tree not in lived:
            why = "is noticed by a test" if tree in made else "is no mutant of the solution"
            tally.faults.append(f"{name}: the survivor {edit.after.strip()!r} {why}")
    return tally


def of(source: str) -> dict[str, Mutant]:
    """Every mutant of what a learner writes in a solution, by its syntax tree; no two are alike."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = source.splitlines()

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    made: dict[str, Mutant] = {}
    written = [range(task.closes + 1, task.ends + 1) for task in stubs.tasks(source)]
    for node, after in _changes(ast.parse(source)):
        if not any(node.lineno in body for body in written):
            continue
        start = offset(node.lineno, node.col_offset)
        end = offset(node.end_lineno or 0, node.end_col_offset or 0)
        mutant = Mutant(node.lineno, start, end, after)
        with contextlib.suppress(SyntaxError):  # a part of a slice cannot stand everywhere
            made.setdefault(_tree(mutant.apply(source)), mutant)
    made.pop(_tree(source), None)
    return made


def _lived(key: str, source: str, made: dict[str, Mutant]) -> set[str]:
    """The mutants, by their trees, with which every test passes that can see them."""
    with tempfile.TemporaryDirectory(prefix="paperlings-", ignore_cleanup_errors=True) as folder:
        jobs = []
        for number, mutant in enumerate(made.values()):
            root = Path(folder) / str(number)
            files.write(layout.source(root, key), mutant.apply(source))
            tasks = reach.reached(source, range(mutant.line, mutant.line + 1))
            jobs.append(
                runner.Job(key, root, Path(folder), False, tasks, runner.UNTIL_FAILED, str(number))
            )
        runs = runner.run_many(jobs)
    return {
        tree
        for tree, run in zip(made, runs, strict=True)
        if run.trouble or all(task.status == PASSED for task in run.verdict().tasks)
    }


def show(tallies: list[Tally]) -> None:
    """Print the table, and every survivor as the .toml would explain it."""
    rows = []
    for tally in tallies:
        alive = len(tally.survivors)
        killed = tally.mutants - tally.explained - alive
        rate = f"{killed / max(killed + alive, 1):.1%}"
        numbers = (tally.mutants, killed, tally.explained, alive)
        rows.append([layout.called(tally.key), *map(str, numbers), rate])
    console = tables.show(["mutants", "killed", "explained", "alive", "rate"], rows)
    for text in [text for tally in tallies for text in (*tally.faults, *tally.survivors)]:
        console.print(text, markup=False, soft_wrap=True)


def _shown(mutant: Mutant, source: str) -> str:
    """The lines a mutant changes, before and after, ready for the .toml."""
    start = source.rfind("\n", 0, mutant.start) + 1
    end = source.find("\n", mutant.end)
    while source.count(source[start:end]) > 1:
        start = source.rfind("\n", 0, start - 1) + 1
    before = source[start:end]
    after = source[start : mutant.start] + mutant.after + source[mutant.end : end]
    lead = len(before) - len(before.lstrip())
    if source.count(before[lead:]) == 1 and "\n" not in before:
        before, after = before[lead:], after[lead:]
    quote = "'" if "\n" not in before and "'" not in before + after else "'''"
    return f"\n[[survivors]]  # line {mutant.line}\nin = {quote}{before}{quote}\n" + (
        f'as = {quote}{after}{quote}\nwhy = ""'
    )


def _tree(source: str) -> str:
    return ast.dump(ast.parse(source))


def _changes(tree: ast.AST) -> Iterator[tuple[Any, str]]:
    """Pairs of a node and the text that may stand in its place."""
    for parent in ast.walk(tree):
        if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in _statements(parent):
                yield from _of_statement(statement, parent)


def _statements(function: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a function and of its blocks, not those of functions inside it."""
    for child in ast.iter_child_nodes(function):
        if isinstance(child, ast.stmt):
            yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr):
            yield from _statements(child)


def _of_statement(
    statement: ast.stmt, function: ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[tuple[Any, str]]:
    if isinstance(statement, SILENT):
        return
    if _can_go(statement, function):
        yield statement, "pass"
    if isinstance(statement, ast.AugAssign):
        for kind in SWAPS.get(type(statement.op), ()):
            yield statement, ast.unparse(_with(statement, op=kind()))
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.expr) and child is not getattr(statement, "annotation", None):
            yield from _of_expression(child)
        elif isinstance(child, ast.withitem):
            yield from _of_expression(child.context_expr)


def _can_go(statement: ast.stmt, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the function still makes sense without the statement."""
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.If):
        return all(isinstance(inner, ast.Raise) for inner in statement.body)
    if isinstance(statement, ast.Assign):
        # a name that had a value before, or a part of something that has
        known = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                known |= {node.id} if node.lineno < statement.lineno else set()
        names = [n for target in statement.targets for n in ast.walk(target)]
        return all(n.id in known for n in names if isinstance(n, ast.Name))
    return isinstance(statement, ast.AugAssign | ast.Delete)


def _of_expression(node: ast.expr) -> Iterator[tuple[Any, str]]:
    if isinstance(node, SILENT):
        return
    for new in _replacements(node):
        text = ast.unparse(new)
        compound = ast.BinOp | ast.BoolOp | ast.Compare | ast.UnaryOp | ast.IfExp | ast.Lambda
        yield node, f"({text})" if isinstance(new, compound) else text
    if _negative(node) is not None:
        return
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
        return  # the order of what is looked through
    for child in ast.iter_child_nodes(node):
        parts = (
            [child, *ast.iter_child_nodes(child)] if not isinstance(child, ast.expr) else [child]
        )
        for part in parts:
            if isinstance(part, ast.expr):
                yield from _of_expression(part)


def _replacements(node: ast.expr) -> Iterator[ast.expr]:
    """What may stand in the place of an expression."""
    if isinstance(node, ast.BinOp):
        yield from (_with(node, op=kind()) for kind in SWAPS.get(type(node.op), ()))
        if isinstance(node.op, ast.Sub | ast.Div | ast.MatMult | ast.Pow | ast.FloorDiv):
            yield _with(node, left=node.right, right=node.left)
        if not isinstance(node.op, ast.MatMult):
            yield from (node.left, node.right)
    elif isinstance(node, ast.BoolOp):
        yield from (_with(node, op=kind()) for kind in SWAPS[type(node.op)])
        yield from node.values
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for kind in SWAPS.get(type(op), ()):
                yield _with(node, ops=[*node.ops[:i], kind(), *node.ops[i + 1 :]])
    elif isinstance(node, ast.UnaryOp):
        if (number := _negative(node)) is None:
            yield node.operand
        else:  # -1 is no mistake for 1 where an axis is meant
            yield from (ast.Constant(number + 1), ast.Constant(number - 1))
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse, _with(node, body=node.orelse, orelse=node.body))
    elif isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in _other_values(node.value))
    elif isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and len(node.elts) > 1:
        first, second, *others = node.elts
        if not isinstance(first, ast.Slice) and not isinstance(second, ast.Slice):
            yield ast.Tuple([second, first, *others], ast.Load())
    elif isinstance(node, ast.Slice):
        yield from (_with(node, **{end: None}) for end in ("lower", "upper") if getattr(node, end))
    elif isinstance(node, ast.Name | ast.Attribute):
        word = "id" if isinstance(node, ast.Name) else "attr"
        if getattr(node, word) in NAMES:
            yield _with(node, **{word: NAMES[getattr(node, word)]})
    elif isinstance(node, ast.Call):
        yield from _other_calls(node)


def _other_calls(node: ast.Call) -> Iterator[ast.expr]:
    """The call without its last argument or a named one, with two exchanged,
    and what it was called on or with.
    """
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    for i in range(len(node.args) - 1 if name not in SYMMETRIC else 0):
        swapped = [*node.args]
        swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
        yield _with(node, args=swapped)
    if node.args:
        yield _with(node, args=node.args[:-1])
    for keyword in node.keywords:
        if keyword.arg != "device":  # one machine has one
            yield _with(node, keywords=[k for k in node.keywords if k is not keyword])
    if isinstance(node.func, ast.Attribute):
        yield node.func.value
    if node.args and not isinstance(node.args[0], ast.Starred):
        yield node.args[0]


def _other_values(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1] if value > 0 else [value + 1]
    if isinstance(value, float):
        return [2.0 * value if value else 1.0]
    return []


def _negative(node: ast.expr) -> int | None:
    """The integer that `-n` stands for."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = getattr(node.operand, "value", None)
        return -value if type(value) is int else None
    return None


def _with(node: Any, **changes: Any) -> Any:
    """A copy of a node with some of its fields replaced."""
    new = copy.copy(node)
    for name, value in changes.items():
        setattr(new, name, value)
    return new
