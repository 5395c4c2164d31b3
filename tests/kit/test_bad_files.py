"""A learner's file may do anything: its own paper gets an honest verdict,
and the others are graded as if nothing were.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

HEAD = "import torch\n"
RAISE = '    raise NotImplementedError("{}")\n'


def _with(function: str, body: str) -> Any:
    """The solution with other code at the start of one function's body."""

    def change(text: str) -> str:
        mark = {"softmax": "    # Task: subtract", "entropy": "    # Task: what"}[function]
        assert text.count(mark) == 1
        return text.replace(mark, f"    {body}\n{mark}")

    return change


def _on_top(code: str) -> Any:
    return lambda text: text.replace("import torch\n", f"import torch\n{code}\n", 1)


# name: (change of the solution, verdict of softmax, verdict of entropy, words in what is found)
BAD: dict[str, tuple[Any, str, str, tuple[str, ...]]] = {
    "syntax_error": (
        lambda t: t.replace("z = x /", "z = x / /"),
        "failed",
        "failed",
        ("line", "invalid syntax"),
    ),
    "missing_package": (
        _on_top("import no_such_package"),
        "failed",
        "failed",
        ("no_such_package", "not installed"),
    ),
    "endless_import": (
        _on_top("while True:\n    pass"),
        "failed",
        "failed",
        ("come to an end", "imported"),
    ),
    "endless_function": (
        _with("entropy", "while True: pass"),
        "passed",
        "failed",
        ("come to an end",),
    ),
    "deaf_function": (
        _with("entropy", "any(iter(int, 1))"),
        "passed",
        "failed",
        ("come to an end",),
    ),
    "segfault": (
        _with("entropy", "import ctypes; ctypes.string_at(0)"),
        "passed",
        "failed",
        ("SIGSEGV",),
    ),
    "segfault_at_import": (
        _on_top("import ctypes; ctypes.string_at(0)"),
        "failed",
        "failed",
        ("SIGSEGV", "imported"),
    ),
    "exit_at_import": (
        _on_top("import sys; sys.exit(0)"),
        "failed",
        "failed",
        ("sys.exit(0)", "imported"),
    ),
    "hard_exit_at_import": (
        _on_top("import os; os._exit(0)"),
        "failed",
        "failed",
        ("exit status 0", "imported"),
    ),
    "hard_exit": (
        _with("entropy", "import os; os._exit(0)"),
        "passed",
        "failed",
        ("exit status 0",),
    ),
    "exit": (_with("entropy", "raise SystemExit(0)"), "passed", "failed", ("SystemExit",)),
    "interrupt": (
        _with("entropy", "raise KeyboardInterrupt"),
        "passed",
        "failed",
        ("ended by itself",),
    ),
    "deleted": (
        lambda t: t[: t.index("def entropy")],
        "passed",
        "failed",
        ("defines no 'entropy'",),
    ),
    "signature": (
        lambda t: t.replace("def entropy(p: Tensor)", "def entropy(p: Tensor, base: float)"),
        "passed",
        "failed",
        ("missing 1 required positional argument: 'base'",),
    ),
    "megabyte": (_with("entropy", "print('x' * 2**20)"), "passed", "passed", ()),
    "megabyte_and_wrong": (
        lambda t: _with("entropy", "print('x' * 2**20)")(t).replace("-torch.xlogy", "torch.xlogy"),
        "passed",
        "failed",
        ("expected",),
    ),
    "patched_torch": (
        lambda t: _on_top("torch.allclose = torch.equal = torch.isclose = lambda *a, **k: True")(
            t
        ).replace("-torch.xlogy", "torch.xlogy"),
        "passed",
        "failed",
        ("expected",),
    ),
    "skips": (
        _with("entropy", "import pytest; pytest.skip('fine')"),
        "passed",
        "failed",
        ("skipping",),
    ),
    "xfails": (
        _with("entropy", "import pytest; pytest.xfail('fine')"),
        "passed",
        "failed",
        ("skipping",),
    ),
    "leaves_pytest": (
        _with("entropy", "import pytest; pytest.exit('fine', 0)"),
        "passed",
        "failed",
        ("ended",),
    ),
    "none": (
        _with("entropy", "return None"),
        "passed",
        "failed",
        ("expected a Tensor", "got None"),
    ),
    "recursion": (_with("entropy", "return entropy(p)"), "passed", "failed", ("RecursionError",)),
    "subclass": (
        _with(
            "entropy", "return torch.nn.Parameter(p).as_subclass(type('Liar', (torch.Tensor,), {}))"
        ),
        "passed",
        "failed",
        ("expected a Tensor", "got a Liar"),
    ),
    "peeks": (
        _with(
            "entropy",
            "import reference.demo.peeks as r; return torch.as_tensor(r.entropy(p.numpy()))",
        ),
        "failed",  # the whole file is tainted
        "failed",
        ("the file imports reference",),
    ),
    "peeks_quietly": (
        _with("entropy", "__import__('reference.demo.peeks')"),
        "passed",
        "failed",
        ("the call imports reference",),
    ),
    "reads": (
        _with("entropy", "open(__file__).close()"),
        "passed",
        "failed",
        ("the call opens",),
    ),
    "half_done": (
        lambda t: t[: t.index("    # Task: what")] + RAISE.format("entropy"),
        "passed",
        "todo",
        (),
    ),
    "windows_lines": (lambda t: t.replace("\n", "\r\n"), "passed", "passed", ()),
    "tabs_and_unicode": (_on_top("größe = 'π'"), "passed", "passed", ()),
}
GOOD = "bystander"


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory, build: Any) -> dict[str, Any]:
    """All bad files and one good one, graded in one run."""
    house = build(tmp_path_factory.mktemp("bad") / "house", *BAD, GOOD)
    for name, (change, *_) in BAD.items():
        house.file("exercises", f"demo/{name}").write_bytes(change(house.solution()).encode())
    house.file("exercises", f"demo/{GOOD}").write_text(house.solution(), encoding="utf-8")
    return house.grade("--no-claims")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_its_honest_verdict(graded: dict[str, Any], name: str) -> None:
    """The broken task fails and says why; what is right stays passed."""
    _, softmax, entropy, words = BAD[name]
    row = graded[f"demo/{name}"]
    assert not row["trouble"], row["trouble"]
    assert {task["name"]: task["status"] for task in row["tasks"]} == {
        "softmax": softmax,
        "entropy": entropy,
    }
    failed = [test for test in row["tests"] if test["status"] == "failed"]
    said = " ".join(test["what"] for test in failed)
    assert all(word in said for word in words), said[:2000]
    assert "Traceback" not in said
    assert all(len(test["what"]) < 1500 for test in failed), "a verdict is short"


def test_other_papers_are_graded_as_if_nothing_had_happened(graded: dict[str, Any]) -> None:
    """The good file beside all the bad ones passes whole."""
    assert {task["status"] for task in graded[f"demo/{GOOD}"]["tasks"]} == {"passed"}


def test_a_missing_file_is_said(house: Any) -> None:
    """A deleted exercise fails, and the verdict says how to get it back."""
    house.file("exercises").unlink()
    row = house.grade()["demo/softmax"]
    assert {task["status"] for task in row["tasks"]} == {"failed"}
    assert "nox -s stubs" in row["tests"][0]["what"]


def test_a_loop_that_swallows_everything_is_stopped_from_outside(house: Any) -> None:
    """`except BaseException` around an endless loop does not hold up the grade for ever."""
    loop = (
        "while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass"
    )
    house.file("exercises").write_text(_with("entropy", loop)(house.solution()), encoding="utf-8")
    begun = time.monotonic()
    row = house.grade("--no-claims")["demo/softmax"]
    assert {task["name"]: task["status"] for task in row["tasks"]} == {
        "softmax": "passed",
        "entropy": "failed",
    }
    assert time.monotonic() - begun < 90
