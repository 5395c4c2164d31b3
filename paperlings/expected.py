"""Which tests judge which task, found in the text of a test file, before anything runs.

A test belongs to the tasks whose names it reads off `impl`,
itself or through helpers of its file that take `impl`.
What is expected is known without the candidate's help, so a test that vanishes is missed.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass

from paperlings import layout, stubs
from paperlings.lanes import COMPILED, GATE, INTERPRETER

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Expected:
    """One test function, or a conformance test of one task: `test_views_are_accepted[dpo_loss]`.

    tasks: what it judges, in the paper's order.  law: the first sentence of its docstring.
    claim: whether it is the paper's claim or the kernel's gate, which no task waits for.
    lane: of a kernel's test, one of lanes.LANES.
    """

    name: str
    tasks: tuple[str, ...]
    law: str
    claim: bool
    lane: str = ""


@functools.cache
def of(key: str) -> dict[str, Expected]:
    """Every expected test of the paper, in learning order, by name."""
    path = layout.tests(key)
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    functions = {node.name: node for node in tree.body if isinstance(node, Function)}
    tasks = stubs.groups(key)
    found = {}
    for name, function in functions.items():
        if name.startswith("test"):
            read = _reads(function, functions, frozenset())
            mine = tuple(task for task in tasks if task in read)
            lane = _lane(function) if layout.is_kernel(key) else ""
            claim = lane == GATE or "claim" in _marks(function)
            found[name] = Expected(name, mine, law_of(ast.get_docstring(function)), claim, lane)
    own, claims = [e for e in found.values() if not e.claim], [e for e in found.values() if e.claim]
    for task in tasks if examples(tree) else []:
        if task in examples(tree):
            lane = INTERPRETER if layout.is_kernel(key) else ""
            own += [
                Expected(f"{name}[{task}]", (task,), law, False, lane)
                for name, law in conformance(key).items()
            ]
    return {e.name: e for e in [*own, *claims]}


def examples(tree: ast.Module) -> list[str]:
    """The tasks that have an entry in EXAMPLES, which is a dict literal."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == "EXAMPLES" for t in targets):
                keys = [k.value for k in node.value.keys if isinstance(k, ast.Constant)]
                return [key for key in keys if isinstance(key, str)]
    return []


@functools.cache
def conformance(key: str) -> dict[str, str]:
    """The names of the conformance tests of a paper or a kernel, and their laws, without importing
    torch.
    """
    laws = "kernel_laws.py" if layout.is_kernel(key) else "conformance.py"
    path = layout.HOME / "paperlings" / "testing" / laws
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name: law_of(ast.get_docstring(node))
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    }


def base(key: str, name: str) -> str:
    """The expected test of a paper that a collected item's name stands for:
    parameters of a paper's own tests do not count.
    """
    function = name.partition("[")[0]
    return name if function in conformance(key) else function


def law_of(docstring: str | None) -> str:
    """The first paragraph of a test's docstring, on one line."""
    return " ".join((docstring or "").split("\n\n")[0].split())


def _reads(function: Function, functions: dict[str, Function], seen: frozenset[str]) -> set[str]:
    """Names read off `impl` in the function and in the helpers of its file that take `impl`."""
    found: set[str] = set()
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "impl"
        ):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and node.id in functions and node.id not in seen:
            helper = functions[node.id]
            arguments = [
                a.arg
                for a in (*helper.args.posonlyargs, *helper.args.args, *helper.args.kwonlyargs)
            ]
            if "impl" in arguments:
                found |= _reads(helper, functions, seen | {node.id})
    return found


def _lane(function: Function) -> str:
    return next((lane for lane in (COMPILED, GATE) if lane in _marks(function)), INTERPRETER)


def _marks(function: Function) -> set[str]:
    """The names of the marks that a test carries."""
    texts = [ast.unparse(decorator) for decorator in function.decorator_list]
    marks = [text for text in texts if text.startswith("pytest.mark.")]
    return {mark.removeprefix("pytest.mark.").partition("(")[0] for mark in marks}
