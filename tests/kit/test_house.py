"""The house as it stands: what every paper must have, and who may depend on whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from paperlings import catalogue, expected, layout, stubs, teacher
from paperlings.lanes import GATE

KEYS = layout.written()
HOME = layout.HOME


def imports(path: Path) -> set[str]:
    """The top-level names of everything a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_there_are_papers() -> None:
    """The checks below have something to check."""
    assert len(KEYS) >= 3


@pytest.mark.parametrize("key", KEYS)
def test_a_paper_is_whole(key: str) -> None:
    """Catalogue entry, exercise, oracle, hints, mistakes and equivalents are there."""
    assert key in catalogue.load()
    assert layout.source(layout.EXERCISES, key).exists()
    assert layout.source(layout.REFERENCE, key).exists()
    assert teacher.complaints(key) == []
    known, text = teacher.load(key), teacher.source(key)
    for edit in [*known.mistakes, *known.equivalents]:
        compile(teacher.apply(text, [edit], key), key, "exec", dont_inherit=True)


@pytest.mark.parametrize("key", KEYS)
def test_the_readme_gives_its_numbers(key: str) -> None:
    """The rates that are published are of the lists as they are; `nox -s mistakes` proves them."""
    known = teacher.load(key)
    mistakes, equivalents = len(known.mistakes), len(known.equivalents)
    row = f"| {mistakes} of {mistakes} | {equivalents} of {equivalents} | 0 |"
    assert row in (HOME / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", KEYS)
def test_dependencies_point_one_way(key: str) -> None:
    """Solutions and oracles import neither each other nor the kit; an oracle knows no torch."""
    ours = {"paperlings", "reference", "solutions", "exercises", "kernels", "tests"}
    assert not imports(layout.source(layout.SOLUTIONS, key)) & ours
    assert imports(layout.source(layout.REFERENCE, key)) <= {
        *sys.stdlib_module_names,
        "numpy",
        "scipy",
    }
    assert not imports(layout.tests(key)) & (ours - {"paperlings"})


@pytest.mark.parametrize("key", KEYS)
def test_every_task_is_tested_and_every_test_belongs_somewhere(key: str) -> None:
    """Each task has an example and tests of its own; each test reads a task, states its law,
    and one is the claim, or the gate of a kernel.
    """
    tests = expected.of(key)
    for task in stubs.groups(key):
        assert f"test_views_are_accepted[{task}]" in tests, f"{task} has no entry in EXAMPLES"
        own = [t for t in tests.values() if task in t.tasks and "[" not in t.name and not t.claim]
        assert own, f"no test reads impl.{task}"
    for test in tests.values():
        assert test.tasks or test.lane == GATE, f"{test.name} reads no task off impl"
        assert test.law, f"{test.name} has no docstring"
    assert sum(test.claim for test in tests.values()) == 1


@pytest.mark.parametrize("key", KEYS)
def test_every_assertion_asks_a_question(key: str) -> None:
    """No bare assert: a learner who fails is told what to ask themselves."""
    tree = ast.parse(layout.tests(key).read_text(encoding="utf-8"))
    bare = [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert) and node.msg is None
    ]
    assert not bare, f"asserts without a message in lines {bare}"


@pytest.mark.parametrize("key", KEYS)
def test_the_lesson_fits(key: str) -> None:
    """The module docstring is the lesson: its blocks, in at most 40 lines."""
    lesson = ast.get_docstring(ast.parse(teacher.source(key))) or ""
    assert len(lesson.splitlines()) <= 40
    fifth = "Cost" if layout.is_kernel(key) else "Differs"
    for block in ("Paper", "Why", "Names", "Tasks", fifth, "Limits"):
        assert f"\n*{block}*" in lesson, f"the lesson has no {block}"


@pytest.mark.parametrize("root", ["exercises", "solutions", "reference", "kernels"])
def test_roots_are_packages(root: str) -> None:
    """Packages of these names exist elsewhere, and a folder without __init__.py loses to them."""
    assert (HOME / root / "__init__.py").read_text().startswith('"""')


def test_importing_the_kit_costs_no_torch() -> None:
    """torch, rich and matplotlib load where they are used."""
    code = (
        "import sys, paperlings, paperlings.__main__, paperlings.plugin, paperlings.grade\n"
        "heavy = {'torch', 'triton', 'rich', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_tells_every_verb(shared) -> None:
    """`python -m paperlings --help` lists the verbs; no verb is a usage error."""
    done = shared.run("paperlings", "--help")
    assert all(verb in done.stdout for verb in ("grade", "mistakes", "stubs", "new"))
    assert shared.run("paperlings").returncode == 2


def test_a_new_paper_runs_at_once(house) -> None:
    """`new` makes five files that pass their own tests; what is missing is said;
    nothing is written over.
    """
    unknown = house.run("paperlings", "new", "demo/mean")
    assert unknown.returncode == 2
    assert "[demo.mean]" in unknown.stderr
    house.announce("mean")
    assert house.run("paperlings", "new", "demo/mean").stdout.count("wrote ") == 5
    assert house.run("paperlings", "stubs", "--check").returncode == 0
    solved = house.run("paperlings", "grade", "mean", "--impl", "solutions", "--fail-under", "100")
    assert solved.returncode == 0, solved.stdout
    assert "1 of 1 claims pass" in solved.stdout
    rates = house.run("paperlings", "mistakes", "mean")
    assert rates.returncode == 1
    assert "a paper has at least 8" in rates.stdout
    again = house.run("paperlings", "new", "demo/mean")
    assert again.returncode == 2
    assert "exists already; nothing was written" in again.stderr
    for wrong in ("demo", "demo/a b", "../demo/x", "demo/../x"):
        assert house.run("paperlings", "new", wrong).returncode == 2
