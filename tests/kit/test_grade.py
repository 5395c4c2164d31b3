"""The grader as a person, a course and a build server meet it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

HOME = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((HOME / "paperlings" / "grade.schema.json").read_text())


def test_a_pristine_house_passes_nothing(shared) -> None:
    """At most 40 lines, no traceback, every task todo, and the next thing to do."""
    done = shared.run("paperlings", "grade")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) <= 40
    assert "Traceback" not in done.stdout + done.stderr
    assert "2 tasks: 0 passed, 0 failed, 2 todo, 0 unverified. 0 of 1 claims pass." in done.stdout
    assert "write softmax in exercises/demo/softmax.py" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_many_untouched_papers_are_a_line_a_track(build, tmp_path: Path) -> None:
    """However many papers there are, a pristine grade is one screen."""
    house = build(tmp_path / "house", *(f"paper_{i}" for i in range(30)))
    done = house.run("paperlings", "grade")
    assert len(done.stdout.splitlines()) <= 40
    assert "30 papers, none begun" in done.stdout


def test_a_right_answer_gets_everything(house) -> None:
    """The reports of a solved paper: JSON by its schema, a page that holds its figure, JUnit."""
    house.file("exercises").write_text(house.solution())
    done = house.run("paperlings", "grade", "softmax", "--fail-under", "100")
    assert done.returncode == 0
    result = json.loads((house.home / "reports/grade.json").read_text())
    jsonschema.validate(result, SCHEMA)
    assert result["totals"]["percent"] == 100
    assert result["papers"][0]["claim"] == "passed"
    page = (house.home / "reports/grade.html").read_text()
    assert "data:image/png;base64," in page
    assert not re.search(r'(src|href)="(?!data:|#)', page), "the page needs nothing beside itself"
    assert 'name="viewport"' in page
    suite = ElementTree.parse(house.home / "reports/grade.xml").getroot()[0]
    assert suite.get("failures") == suite.get("skipped") == "0"
    assert int(suite.get("tests", "0")) > 20


def test_a_claim_left_out_is_unverified(house) -> None:
    """--no-claims says nothing about the claim, neither good nor bad."""
    house.file("exercises").write_text(house.solution())
    done = house.run("paperlings", "grade", "--no-claims")
    assert "2 passed, 0 failed, 0 todo, 0 unverified. 0 of 1 claims pass." in done.stdout
    assert (
        json.loads((house.home / "reports/grade.json").read_text())["papers"][0]["claim"]
        == "unverified"
    )


def test_a_failure_is_in_every_report(house) -> None:
    """Table, JSON, page and JUnit tell the same, and the JSON keeps to its schema."""
    house.file("exercises").write_text(house.solution().replace("-torch.xlogy", "torch.xlogy"))
    done = house.run("paperlings", "grade")
    assert done.returncode == 0
    assert "1 passed, 1 failed" in done.stdout
    assert "Entropy has a minus sign." in done.stdout
    result = json.loads((house.home / "reports/grade.json").read_text())
    jsonschema.validate(result, SCHEMA)
    tasks = {task["name"]: task for task in result["papers"][0]["tasks"]}
    assert tasks["entropy"]["status"] == "failed"
    assert tasks["entropy"]["behaves_like"] == ["Entropy has a minus sign."]
    assert "Entropy has a minus sign." in (house.home / "reports/grade.html").read_text()
    assert "Entropy has a minus sign." in (house.home / "reports/grade.xml").read_text()


def test_control_characters_do_not_spoil_the_reports(house) -> None:
    """Whatever a candidate prints or raises, the reports stay readable."""
    body = "raise RuntimeError('\\x1b[31m \\x00 <script>alert(1)</script> \\ud800')"
    text = house.solution().replace("    # Task: what", f"    {body}\n    # Task: what")
    house.file("exercises").write_text(text)
    done = house.run("paperlings", "grade")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    ElementTree.parse(house.home / "reports/grade.xml")
    assert "<script>" not in (house.home / "reports/grade.html").read_text()
    json.loads((house.home / "reports/grade.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("sofmax",), 2, "Did you mean softmax"),
        (("--impl", "nowhere"), 2, "no such folder"),
        (("--fail-under", "1"), 1, ""),
        (("--fail-under", "0"), 0, ""),
        (("demo", "--no-claims"), 0, ""),
    ],
)
def test_the_exit_status_is_documented(
    shared, arguments: tuple[str, ...], status: int, words: str
) -> None:
    """0 graded, 1 below --fail-under, 2 a wrong argument."""
    done = shared.run("paperlings", "grade", *arguments)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("root", ["reference", "tests/papers", "solutions"])
def test_the_kits_own_fault_is_never_a_score(house, root: str) -> None:
    """Where oracle, tests or solution are broken, nothing is scored, the status is 3,
    and the reason is shown.
    """
    house.file("exercises").write_text(house.solution())
    name = "demo/test_softmax" if root == "tests/papers" else "demo/softmax"
    house.file(root, name).write_text("this is no Python\n")
    done = house.run("paperlings", "grade")
    assert done.returncode == 3, done.stderr
    assert "the kit's fault" in done.stdout
    assert "0 passed, 0 failed" in done.stdout
    jsonschema.validate(json.loads((house.home / "reports/grade.json").read_text()), SCHEMA)


def test_a_test_that_vanishes_is_missed(house) -> None:
    """What is expected is read from the file: a candidate that unmakes a test at run time gains
    nothing.
    """
    trick = (
        "import sys\nfor name, module in list(sys.modules.items()):\n"
        "    for test in [n for n in vars(module) if n.startswith('test_entropy')]:\n"
        "        setattr(module, test, lambda: None)\n"
    )
    wrong = house.solution().replace("-torch.xlogy", "torch.xlogy")
    house.file("exercises").write_text(wrong.replace("import torch\n", f"import torch\n{trick}", 1))
    row = house.grade("--no-claims")["demo/softmax"]
    assert {task["name"]: task["status"] for task in row["tasks"]}["entropy"] == "failed"


def test_a_paper_not_written_yet_is_said(house) -> None:
    """A paper of the catalogue without files is no error of the learner's."""
    house.announce("later")
    done = house.run("paperlings", "grade", "later")
    assert done.returncode == 2
    assert "demo/later is in the catalogue, but not written yet" in done.stderr
    assert (
        "1 more papers of the catalogue are not written yet"
        in house.run("paperlings", "grade").stdout
    )


def test_submissions_do_not_touch_the_learners_reports(house) -> None:
    """Grading another folder leaves reports/grade.json alone."""
    house.run("paperlings", "grade", "--impl", "solutions", "--no-claims")
    assert not (house.home / "reports/grade.json").exists()
    assert (house.home / "reports/solutions/grade.json").exists()
