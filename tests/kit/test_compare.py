"""Comparing with the solution: who may, what is shown, and that code spoils only its own line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paperlings import lanes, progress
from paperlings.learner import pieces

HOME = Path(__file__).resolve().parents[2]

SUM = "return -torch.xlogy(p, p).sum(-1)"
OTHER = "return torch.special.entr(p).sum(-1)"


def solved(house, before: str = SUM, after: str = OTHER) -> None:
    """The paper written in other words than the solution's, in a file of a learner's making."""
    text = house.solution().replace(before, after)
    assert text != house.solution()
    house.file("exercises").write_text(text)


def page(house) -> str:
    return (house.home / "reports/compare/demo/softmax.html").read_text()


def record(house) -> dict:
    return json.loads((house.home / "progress.json").read_text())["papers"]["demo/softmax"]


def test_before_a_pass_the_verdict_is_all_there_is(house) -> None:
    """A stub is judged, its verdict shown and kept; the solution stays out of sight."""
    status, said = house.says("compare", "softmax")
    assert status == 1
    assert "demo/softmax: 0 of 2 tasks pass" in said
    assert "The solution is shown when all tasks pass." in said
    assert "nox -s compare -- demo/softmax --give-up" in said
    assert "amax" not in said
    assert record(house)["tasks"] == {"softmax": "todo", "entropy": "todo"}
    assert not (house.home / "reports/compare").exists()


def test_after_a_pass_both_are_shown(house) -> None:
    """Text, agreement, operators, tensors and time of both, in 80 columns and on a page."""
    solved(house)
    done = house.run("paperlings", "compare", "softmax")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    said = " ".join(done.stdout.split())
    assert "All tasks passed on 20" in said
    assert "softmax as the solution has it answer the same, to the last bit" in said
    assert OTHER in said
    assert SUM in said
    assert "only yours: special_entr; only the solution's: neg, xlogy" in said
    assert re.search(r"entropy (same|to \de-1\d) 2 : 3 \d+ : \d+ 6 (same|x \d)", said), said
    assert "page: reports/compare/demo/softmax.html" in said
    assert "gave_up" not in record(house)


def test_the_page_needs_nothing_beside_itself(house) -> None:
    """Lines that one version alone has are marked; no address, no script; it fits a phone."""
    solved(house)
    assert house.says("compare", "softmax")[0] == 0
    text = page(house)
    assert not re.search(r'(src|href)="(?!#)', text)
    assert "<script" not in text
    assert 'name="viewport"' in text
    plain = re.sub(r"<[^>]+>", "", text)
    assert OTHER in plain
    assert SUM in plain
    assert text.count('class="line alone"') == 2, "one line of either version"


def test_a_claim_need_not_pass(house) -> None:
    """It takes long, and is not run to see whether the tasks pass."""
    test = house.home / "tests/papers/demo/test_softmax.py"
    test.write_text(test.read_text().replace("assert entropies ==", "assert not entropies =="))
    solved(house)
    assert house.says("compare", "softmax")[0] == 0


def test_a_verdict_that_is_known_is_not_asked_for_again(house) -> None:
    """A current pass is enough, even where it could not be found out again; an edit ends it."""
    solved(house)
    house.grade("--no-claims")
    oracle = house.file("reference")
    text = oracle.read_text()
    oracle.write_text("broken(")
    assert house.says("compare", "softmax")[0] == 0
    oracle.write_text(text)
    solved(house, after="return p.sum(-1)")
    status, said = house.says("compare", "softmax")
    assert status == 1
    assert "demo/softmax: 1 of 2 tasks pass" in said
    status, said = house.says("compare", "softmax", "--give-up")
    assert status == 0
    assert "Not all do now." in said
    assert "gave_up" not in record(house), "who has passed gives nothing up"


def test_giving_up_is_kept_and_said(house) -> None:
    """The date stays, on the screen, on the page and in the record, even after a later pass."""
    status, said = house.says("compare", "softmax", "--give-up")
    assert status == 0, said
    date = record(house)["gave_up"]
    sentence = f"You gave up on {date}; progress.json keeps that."
    assert sentence in said
    assert sentence in page(house)
    assert "nothing yet" in said
    assert "softmax is not written yet" in said
    assert "amax" in said
    house.file("exercises").write_text(house.solution())
    status, said = house.says("compare", "softmax")
    assert status == 0
    assert record(house)["gave_up"] == date
    assert "All tasks passed on" in said
    assert sentence in said


def test_what_is_wrong_is_said(house) -> None:
    """An answer that differs, and an error, each in the line of its task."""
    text = house.solution().replace("/ temperature", "* temperature")
    house.file("exercises").write_text(text.replace(SUM, "return p.nothing"))
    status, said = house.says("compare", "softmax", "--give-up")
    assert status == 0
    assert re.search(r"answer actual [\d.]+, expected [\d.]+ at", said), said
    assert "answer AttributeError: 'Tensor' object has no attribute 'nothing'" in said
    assert re.search(r"softmax differs \d", said)
    assert "entropy - " in said


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os._exit(3)", "the process ended by itself (exit status 3)"),
        ("import os; os.kill(os.getpid(), 9)", "the process was ended by SIGKILL"),
        ("raise SystemExit(0)", "SystemExit"),
        ("while True: pass", "it does not come to an end"),
        ("print('x' * 100_000, flush=True); raise ValueError", "ValueError"),
    ],
)
def test_code_that_hangs_or_crashes_spoils_its_own_line(house, code: str, words: str) -> None:
    """The other task is tried all the same, and the command ends with status 0."""
    text = house.solution().replace("z = x / temperature", code + "\n    z = x / temperature")
    house.file("exercises").write_text(text)
    done = json.dumps(
        {
            "version": 1,
            "papers": {"demo/softmax": {"hash": hashed(house), "tasks": {"a": "failed"}}},
        }
    )
    (house.home / "progress.json").write_text(done)
    status, said = house.says("compare", "softmax", "--give-up")
    assert status == 0, said
    assert words in said.partition("entropy as the solution has it")[0]
    assert "entropy as the solution has it answer the same, to the last bit" in said
    assert "xxx" not in said


def hashed(house) -> str:
    return progress.hash_of(house.file("exercises").read_bytes())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def (", "is no Python as it is: invalid syntax"),
        ("import os; os._exit(3)", "the process ended by itself (exit status 3)"),
        (None, "exercises/demo/softmax.py is missing"),
    ],
)
def test_a_file_that_cannot_be_imported_is_no_obstacle(house, text, words: str) -> None:
    """Who gives up on it sees the solution, and why nothing was tried."""
    exercise = house.file("exercises")
    exercise.unlink() if text is None else exercise.write_text(text)
    status, said = house.says("compare", "softmax", "--give-up")
    assert status == 0, said
    assert words in said
    assert "amax" in said


def test_the_kits_own_fault_is_called_that(house) -> None:
    """A broken oracle refuses nobody as if the tasks failed."""
    house.file("reference").write_text("broken(")
    solved(house)
    status, said = house.says("compare", "softmax")
    assert status == 3
    assert "could not be judged; this is the kit's fault" in said


def test_a_name_that_is_no_paper_is_refused(shared) -> None:
    """With status 2, and the names that are close."""
    status, said = shared.says("compare", "sofmax")
    assert (status, "Did you mean softmax" in said) == (2, True), said


KERNEL = """
import json, sys
from paperlings import layout
from paperlings.learner import trial
layout.EXERCISES = layout.HOME  # the kit's own kernel as the learner's
done, *_ = trial.run("kernels/token_log_probs").values()
print(json.dumps([done.trouble, done.difference, done.apart, done.measures, done.ratio]))
"""


@pytest.mark.skipif(bool(lanes.why_not_compiled()), reason="no triton here")
def test_kernels_are_compared_by_what_they_move() -> None:
    """Interpreted, so launches and bytes are counted, and nothing is timed."""
    run = subprocess.run(
        [sys.executable, "-c", KERNEL], cwd=HOME, capture_output=True, text=True, check=True
    )
    trouble, difference, apart, measures, ratio = json.loads(run.stdout)
    assert (trouble, difference, apart, ratio) == ("", "", 0.0, [])
    assert measures["yours"] == measures["solution"]
    assert measures["yours"]["launches"] == 1
    assert measures["yours"]["bytes"] > 1000


SOLUTION = '''"""Lesson."""

SIDES = 2


def given(x):
    """Given."""
    return x


class Model:
    def forward(self, x):
        """Doc."""
        # Task: one,
        # and more.
        y = x + 1
        # why it is so
        return y

    @property
    def size(self):
        return 1


def task(x):
    """Doc."""
    # Task: two.
    return given(x)
'''


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`found(text)`: the pieces of a learner's file beside that solution."""
    for name in ("SOLUTIONS", "EXERCISES"):
        monkeypatch.setattr(pieces.layout, name, tmp_path / name)
        (tmp_path / name / "a").mkdir(parents=True)
    (tmp_path / "SOLUTIONS/a/b.py").write_text(SOLUTION)

    def of(text: str) -> pieces.Pieces:
        (tmp_path / "EXERCISES/a/b.py").write_text(text)
        return pieces.of("a/b")

    return of


def test_pieces_are_what_was_written_for_a_task(found) -> None:
    """Without signature, docstring and the words that asked for it, but with one's own comments."""
    text = SOLUTION.replace("# Task:", "# TODO:").replace("y = x + 1\n", "z = 2\n")
    both = found(text).tasks
    assert list(both) == ["Model", "task"]
    (forward,) = both["Model"]
    assert forward.name == "Model.forward"
    assert forward.yours == ["z = 2", "# why it is so", "return y"]
    assert forward.solution == ["y = x + 1", "# why it is so", "return y"]
    assert forward.in_both == ({1, 2}, {1, 2})
    assert not forward.is_same
    assert both["task"][0].is_same


@pytest.mark.parametrize(
    ("before", "after", "yours"),
    [
        ("    # Task: two.\n    return given(x)", "    return  given(x)  # so", None),
        ('    """Doc."""\n    # Task: two.\n', "", None),
        ('def task(x):\n    """Doc."""\n    # Task: two.\n    return', "def task(x): return", None),
        ("    return given(x)", '    raise NotImplementedError("task")', []),
        ("def task(x):", "def other(x):", []),
        (
            'def task(x):\n    """Doc."""\n    # Task: two.\n    return given(x)',
            "task = given",
            ["task = given"],
        ),
        (
            "    return given(x)",
            "    @given\n    def inner():\n        return x\n\n    return inner()",
            ["@given", "def inner():", "    return x", "", "return inner()"],
        ),
    ],
)
def test_however_a_task_is_written_its_piece_is_found(found, before, after, yours) -> None:
    """On one line, without docstring, as a variable, not at all; None: as the solution has it."""
    assert before in SOLUTION
    (piece,) = found(SOLUTION.replace(before, after)).tasks["task"]
    assert piece.is_same == (yours is None)
    if yours is not None:
        assert piece.yours == yours


def test_what_a_learner_added_or_changed_is_found(found) -> None:
    """Helpers, and given code that is not as it was given; imports and docstrings are neither."""
    text = SOLUTION.replace("    return x\n", "    return 2 * x\n").replace("Lesson", "Mine")
    own = found("import os\n" + text + "\n\ndef helper(x):\n    return x\n\n\nTWO = 2\n").own
    assert [(piece.name, piece.yours) for piece in own] == [
        ("given", ["def given(x):", '    """Given."""', "    return 2 * x"]),
        ("helper", ["def helper(x):", "    return x"]),
        ("TWO", ["TWO = 2"]),
    ]
