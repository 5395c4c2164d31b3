"""`mutants` breaks every part of a solution, and tells a hole in the tests from what is right."""

from __future__ import annotations

import re

import pytest

from paperlings import mutants

SOLUTION = '''"""A lesson: 1 + 1."""

import torch


def given(x):
    return x + 1


def task(x, n, *, scale=2.0):
    """Not x * 3."""
    # Task: all of it.
    if n < 1:
        raise ValueError(f"n must be at least {1}, got {n + 1}")
    total: torch.Tensor = x * scale
    total += given(x)
    y, z = torch.maximum(x, total), -total
    z = z.clone()
    best = y.sum(-1, keepdim=True) if n > 3 else torch.sub(y, z).max()
    return best @ total[1:], not n
'''


def made() -> list[str]:
    """What each mutant's changed line says, with its leading blanks cut."""
    found = []
    for mutant in mutants.of(SOLUTION).values():
        changed = mutant.apply(SOLUTION)
        assert changed != SOLUTION
        compile(changed, "mutant", "exec")
        found.append(changed.splitlines()[mutant.line - 1].strip())
    return found


@pytest.mark.parametrize(
    "line",
    [
        "if (n <= 1):",
        "if (n >= 1):",
        "if n < 2:",
        "pass",
        "total: torch.Tensor = (x / scale)",
        "total: torch.Tensor = x",
        "total: torch.Tensor = scale",
        "total -= given(x)",
        "total += x",
        "y, z = (-total, torch.maximum(x, total))",
        "y, z = torch.minimum(x, total), -total",
        "y, z = torch.maximum(x, total), total",
        "z = z",
        "best = y.mean(-1, keepdim=True) if n > 3 else torch.sub(y, z).max()",
        "best = y.sum(-1) if n > 3 else torch.sub(y, z).max()",
        "best = y.sum(keepdim=True) if n > 3 else torch.sub(y, z).max()",
        "best = y.sum(0, keepdim=True) if n > 3 else torch.sub(y, z).max()",
        "best = y.sum(-2, keepdim=True) if n > 3 else torch.sub(y, z).max()",
        "best = y.sum(-1, keepdim=False) if n > 3 else torch.sub(y, z).max()",
        "best = y.sum(-1, keepdim=True) if n > 3 else torch.sub(z, y).max()",
        "best = y.sum(-1, keepdim=True) if n > 3 else torch.sub(y, z).min()",
        "best = y.sum(-1, keepdim=True)",
        "best = torch.sub(y, z).max()",
        "return (total[1:] @ best), not n",
        "return best @ total[:], not n",
        "return best @ total[1:], n",
    ],
)
def test_every_kind_of_change_is_made(line: str) -> None:
    """Operators, comparisons, numbers, terms, axes, arguments, calls and whole lines."""
    assert line in made()


def test_only_what_a_learner_writes_is_changed() -> None:
    """Given code, docstrings, types, messages and the order of symmetric arguments stay."""
    lines = made()
    assert len(lines) == len(mutants.of(SOLUTION)) > 40
    for mutant in mutants.of(SOLUTION).values():
        assert mutant.line > SOLUTION[: SOLUTION.index("# Task")].count("\n")
    joined = "\n".join(lines)
    for never in ("torch.maximum(total, x)", "at least {2}", "n - 1", "total: x", "1 - 1"):
        assert never not in joined


def tried(house) -> tuple[int, str]:
    return house.says("mutants", "softmax")


def explain(house, before: str, after: str) -> None:
    path = house.file("solutions").with_suffix(".toml")
    text = f"\n[[survivors]]\nin = '{before}'\nas = '{after}'\nwhy = 'Because.'\n"
    path.write_text(path.read_text() + text)


def test_a_hole_in_the_tests_is_found_and_can_be_explained(house) -> None:
    """Where no test looks, a mutant lives and fails the session, until its .toml says why."""
    path = house.file("tests/papers", "demo/test_softmax")
    text = path.read_text()
    # nobody asks any more whether a temperature of 0 is refused
    assert text.count('parametrize("temperature", [0.0, -1.5])') == 1
    path.write_text(text.replace("[0.0, -1.5]", "[-1.5]"))
    status, said = tried(house)
    assert status == 1
    assert "in = 'if temperature <= 0:' as = 'if (temperature < 0):'" in said
    assert re.search(r"softmax (\d+) \d+ 0 1 9\d\.\d%", said)
    explain(house, "if temperature <= 0:", "if temperature < 0:")
    status, said = tried(house)
    assert (status, bool(re.search(r"softmax (\d+) \d+ 1 0 100\.0%", said))) == (0, True), said


def test_an_explanation_that_holds_no_more_is_reported(house) -> None:
    """A survivor that a test notices, and one that is no mutant at all, fail the session."""
    explain(house, "z = x / temperature", "z = x * temperature")
    explain(house, "z = x / temperature", "z = x / temperature + 7")
    status, said = tried(house)
    assert status == 1
    assert "the survivor 'z = x * temperature' is noticed by a test" in said
    assert "the survivor 'z = x / temperature + 7' is no mutant of the solution" in said


def test_an_explanation_without_a_reason_is_refused(house) -> None:
    """`why` is a line, not an empty one."""
    path = house.file("solutions").with_suffix(".toml")
    path.write_text(path.read_text() + "\n[[survivors]]\nin = 'x'\nas = 'y'\nwhy = ' '\n")
    status, said = tried(house)
    assert (status, "survivor 1: a text is empty" in said) == (2, True), said
