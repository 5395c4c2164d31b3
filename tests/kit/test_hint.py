"""Hints: the next of three for the task that is likely meant, counted and remembered."""

from __future__ import annotations

import json

import pytest

NUDGE = "What happens to exp(1000)?"
MIDDLE = "Subtract the same number from every score of a row: nothing changes."
NEARLY = "z = x / temperature; e = exp(z - max z); e / sum e."


def shown(house, *arguments: str) -> dict[str, dict[str, int]]:
    status, said = house.says("hint", *arguments)
    assert status == 0, said
    progress = json.loads((house.home / "progress.json").read_text())
    return progress["papers"]["demo/softmax"]["hints"]


def test_hints_come_one_at_a_time_and_are_counted(house) -> None:
    """From a nudge to nearly the code; what was shown is remembered from one day to the next."""
    for number, text in enumerate((NUDGE, MIDDLE, NEARLY), start=1):
        status, said = house.says("hint", "softmax")
        assert status == 0
        assert said.startswith(f"hint {number} of 3 for softmax (demo/softmax) {text}")
        for other in {NUDGE, MIDDLE, NEARLY} - {text}:
            assert other not in said, "the others are not given away"


def test_after_the_last_one_all_are_shown_again(house) -> None:
    """However often somebody asks."""
    for _ in range(3):
        house.says("hint", "softmax")
    for _ in range(2):
        status, said = house.says("hint", "softmax")
        assert status == 0
        assert "there are no more hints for softmax (demo/softmax); all 3 again:" in said
        assert said.index(f"1 {NUDGE}") < said.index(f"2 {MIDDLE}") < said.index(f"3 {NEARLY}")


def test_the_next_command_runs_the_tests_of_that_task(house) -> None:
    """A hint ends with what to type, and no line is too wide for a terminal."""
    done = house.run("paperlings", "hint", "exercises/demo/softmax.py", "entropy")
    assert "next          pytest exercises/demo/softmax.py --task entropy" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_the_task_is_the_first_that_is_not_finished(house) -> None:
    """Untouched stubs in order; what failed before an edit comes first; what passed does not."""
    exercise = house.file("exercises")
    stub, solution = exercise.read_text(), house.solution()
    assert shown(house, "softmax") == {"softmax": 1}
    exercise.write_text(stub.replace('raise NotImplementedError("softmax")', "return x + temp"))
    assert shown(house, "softmax") == {"softmax": 1, "entropy": 1}, "its stub is the first left"
    house.grade("--no-claims")
    assert shown(house, "softmax") == {"softmax": 2, "entropy": 1}, "softmax fails"
    exercise.write_text(exercise.read_text() + "# another attempt\n")
    _, said = house.says("hint", "softmax")
    assert "hint 3 of 3 for softmax" in said
    assert "last verdict failed, 20" in said
    assert "; the file has changed since" in said
    exercise.write_text(solution.replace("return -torch.xlogy(p, p).sum(-1)", "return p"))
    house.grade("--no-claims")
    _, said = house.says("hint", "softmax")
    assert "hint 2 of 3 for entropy" in said
    assert "the file has changed" not in said


def test_a_solved_paper_gives_the_hints_of_a_task_that_is_named(house) -> None:
    """Without a name it says that all pass, counts nothing, and names the tasks."""
    house.file("exercises").write_text(house.solution())
    house.grade("--no-claims")
    status, said = house.says("hint", "softmax")
    assert status == 0
    assert "demo/softmax: every task passes." in said
    assert "softmax, entropy." in said
    assert shown(house, "softmax", "entropy") == {"entropy": 1}
    assert "last verdict passed" in house.says("hint", "softmax", "entropy")[1]
    house.file("exercises").write_text(house.solution() + "# edited\n")
    assert "every task passed, and the file has changed since" in house.says("hint", "softmax")[1]


def test_a_file_that_is_broken_or_gone_is_no_obstacle(house) -> None:
    """Who cannot even import the file may need the hint most."""
    house.file("exercises").write_bytes(b"def (\xff")
    assert house.says("hint", "softmax")[0] == 0
    house.file("exercises").unlink()
    assert "hint 2 of 3 for softmax" in house.says("hint", "softmax")[1]


def test_a_method_is_hinted_at_with_its_class(house) -> None:
    """The name that the stub raises is accepted, though the class is what is judged."""
    solution = house.file("solutions")
    method = "\n\nclass Norm:\n    def forward(self):\n        # Task: x.\n        return 1\n"
    solution.write_text(solution.read_text() + method)
    hints = solution.with_suffix(".toml")
    hints.write_text(hints.read_text().replace("[hints]", '[hints]\nNorm = ["a", "b", "c"]'))
    assert "hint 1 of 3 for Norm" in house.says("hint", "softmax", "Norm.forward")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("softmax", "entropi"), "demo/softmax has no task 'entropi'; did you mean entropy?"),
        (("softmax", "MAX"), "has no task 'MAX'; did you mean softmax?"),
        (("softmax", "zz"), "has no task 'zz'; there are softmax, entropy"),
        (("sofmax",), "no paper or track is called 'sofmax'. Did you mean softmax"),
    ],
)
def test_a_wrong_name_is_refused_with_the_close_ones(shared, arguments, words) -> None:
    """In one line, with status 2."""
    status, said = shared.says("hint", *arguments)
    assert (status, words in said) == (2, True), said


def test_a_track_is_no_paper(build, tmp_path) -> None:
    """A name that means several papers is refused with theirs, unless it is a paper's own."""
    house = build(tmp_path / "house", "softmax", "demo")
    status, said = house.says("hint", "demo")
    assert (status, "hint 1 of 3 for softmax (demo/demo)" in said) == (0, True), said
    house.add("third")
    status, said = build(tmp_path / "other", "softmax", "third").says("hint", "demo")
    assert status == 2
    assert "'demo' means 2 papers; name one of demo/softmax, demo/third" in said


def test_a_damaged_record_is_kept_aside_and_said(house) -> None:
    """The hint is given all the same."""
    (house.home / "progress.json").write_text("{")
    status, said = house.says("hint", "softmax")
    assert status == 0
    assert "progress.json cannot be read" in said
    assert "hint 1 of 3" in said
