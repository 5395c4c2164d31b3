"""The files for other programs, read back as those would."""

from __future__ import annotations

import csv
import io
import json
import re
import string
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperlings import expected, loading, stubs, words
from paperlings.cohort import exports
from paperlings.cohort.intake import printable

made = loading.load(Path(__file__).with_name("made.py"), "cohort.made")
unit, DPO, LORA = made.unit, made.DPO, made.LORA
STARTS = "=+-@\t\r\uff1d\uff0b\uff0d\uff20"  # also in their full width
QUOTES = "\"'`\u2018\u2019\u201c\u201d"
# what means harm, and every character there is, with surrogates
strangers = st.text(st.sampled_from(f"=@\uff1d;,\n {QUOTES}"), max_size=8) | st.text(
    st.characters(exclude_categories=())
)


def table(out: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table, each with as many cells as the heading has."""
    with open(out / name, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, strict=True, restkey="more"))
    assert all("more" not in row and None not in row.values() for row in rows)
    return rows


def suites(out: Path) -> list[ElementTree.Element]:
    return list(ElementTree.parse(out / "junit.xml").getroot())


def gradescope(out: Path, name: str = "ada") -> dict[str, Any]:
    return json.loads((out / "submissions" / exports.folder(name) / "results.json").read_text())


def failing(task: str, paper: str = DPO) -> str:
    """The first test of a task."""
    return next(test.name for test in expected.of(paper).values() if task in test.tasks)


def test_what_the_tests_make_is_what_the_grader_writes() -> None:
    """The results made here keep to the schemas."""
    made.is_valid(unit())
    made.is_valid(unit(failing=[failing("dpo_loss")], todo=["dpo_step"]))
    made.is_valid(unit(outcome="rejected", reason="no file"))
    made.is_valid(unit(outcome="infra_error", reason="no memory"))


def test_a_line_a_submission(tmp_path: Path) -> None:
    """Points are integers, a column a paper, and what was rejected says why."""
    results = [
        unit("ada"),
        unit("ada", LORA, todo=stubs.groups(LORA)),
        unit("bob", outcome="rejected", reason="it has no dpo.py"),
        unit("bob", LORA),
    ]
    exports.write(tmp_path, results)
    ada, bob = table(tmp_path, "grades.csv")
    assert ada == {
        "submission": "ada",
        "points": "10",
        "max_points": "26",
        "percent": "38.46",
        DPO: "10",
        LORA: "0",
        "notes": "",
    }
    assert (bob["points"], bob[DPO], bob[LORA]) == ("16", "0", "16")
    assert bob["notes"] == f"{DPO} rejected: it has no dpo.py"
    assert (tmp_path / "grades.csv").read_bytes().startswith("\ufeff".encode())


@pytest.mark.parametrize("missing", [False, True])
def test_an_infra_error_is_never_a_score(tmp_path: Path, missing: bool) -> None:
    """Without all of its papers a submission has no total, and a results.json of before is gone."""
    whole = [unit("bob"), unit("bob", LORA)]
    exports.write(tmp_path, [unit(), unit(paper=LORA), *whole])
    assert gradescope(tmp_path)["score"] == 26
    half = [unit()] if missing else [unit(), unit(paper=LORA, outcome="infra_error", reason="OOM")]
    exports.write(tmp_path, [*half, *whole])
    ada, bob = table(tmp_path, "grades.csv")
    assert (ada["points"], ada["percent"], ada[LORA]) == ("", "", "")
    assert (ada[DPO], ada["max_points"]) == ("10", "26")
    assert ada["notes"] == f"{LORA} " + ("not graded yet" if missing else "infra_error: OOM")
    assert (bob["points"], bob["percent"]) == ("26", "100")
    assert not (tmp_path / "submissions" / "ada" / "results.json").exists()
    assert gradescope(tmp_path, "bob")["score"] == 26
    errors = [suite for suite in suites(tmp_path) if suite.get("errors") != "0"]
    assert [suite.get("name") for suite in errors] == ([] if missing else [f"ada {LORA}"])


def test_a_line_a_unit(tmp_path: Path) -> None:
    """With the first failed test, its law, and what it behaves like."""
    name = failing("optimal_policy")
    says = "The reward is not divided by beta."
    exports.write(tmp_path, [unit(failing=[name], behaves_like=[says]), unit("bob")])
    ada, bob = table(tmp_path, "units.csv")
    assert (ada["first_failed_test"], ada["behaves_like"]) == (name, says)
    assert ada["law"] == expected.of(DPO)[name].law
    assert (ada["outcome"], ada["claim"], ada["sandbox"]) == ("graded", "passed", "bubblewrap")
    assert (ada["seconds"], ada["attempts"], ada["seed"]) == ("1.5", "1", "5eed")
    assert (bob["points"], bob["first_failed_test"], bob["law"]) == ("10", "", "")


@settings(max_examples=200)
@given(name=strangers, text=strangers)
def test_nothing_in_a_name_or_a_text_breaks_a_file(name: str, text: str) -> None:
    """What was written is read back, no cell begins a formula, and every file is whole."""
    test = failing("optimal_policy")
    results = [
        unit(name, failing=[test], what=text, question=text, printed=text, behaves_like=[text]),
        unit(name, LORA, outcome="rejected", reason=text),
    ]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        exports.write(out, results)
        rows = [*table(out, "grades.csv"), *table(out, "units.csv")]
        assert len(rows) == 3
        for row in rows:
            assert without_guard(row["submission"]) == printable(name)
        for table_name in ("grades.csv", "units.csv"):
            raw = (out / table_name).read_text(encoding="utf-8-sig")
            for delimiter in ",;\t":
                read = csv.reader(io.StringIO(raw, newline=""), delimiter=delimiter)
                for cell in (cell for row in read for cell in row):
                    opens = cell.lstrip(string.whitespace + QUOTES)
                    assert not opens.startswith(tuple(STARTS)) or "'" in cell[: -len(opens)]
        assert without_guard(rows[2]["reason"]) == printable(text)
        first, second = suites(out)
        assert first.get("name") == printable(f"{name} {DPO}")
        assert second[0][0].get("message") == words.printable(text)
        found = gradescope(out, name)
        assert all(c == "\n" or c.isprintable() for t in found["tests"] for c in t["output"])
        assert [path.name for path in (out / "submissions").iterdir()] == [exports.folder(name)]


def without_guard(cell: str) -> str:
    """A cell without the apostrophes that keep it from being a formula."""
    return re.sub(rf"""(^|;)'(?=[\s{QUOTES}]*[{re.escape(STARTS)}])""", r"\1", cell)


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"),
        ('  "=1+1', "'  \"=1+1"),
        ("\uff1d1", "'\uff1d1"),
        ("\t=1", r"\x09=1"),
        ("a;=HYPERLINK(1);b", "a;'=HYPERLINK(1);b"),
        ("a\n=1", r"a\x0a=1"),
        ("Zoë, 3-1", "Zoë, 3-1"),
        ("'=1", "''=1"),
    ],
)
def test_a_formula_is_a_text(tmp_path: Path, name: str, cell: str) -> None:
    """A leading apostrophe is what spreadsheets understand; all else stays as it is."""
    exports.write(tmp_path, [unit(name)])
    assert table(tmp_path, "grades.csv")[0]["submission"] == cell


def test_gradescope_gets_a_test_a_task(tmp_path: Path) -> None:
    """One point each; the student reads law, difference, question and likeness, and no source."""
    name, says = failing("optimal_policy"), "The reward is not divided by beta."
    results = [
        unit(failing=[name], todo=["dpo_step"], behaves_like=[says], printed="so far so good"),
        unit(paper=LORA, outcome="rejected", reason="lora.py is no UTF-8 text"),
    ]
    exports.write(tmp_path, results)
    found = gradescope(tmp_path)
    tests = {test["name"]: test for test in found["tests"]}
    assert list(tests)[:-1] == [f"{DPO}: {task}" for task in stubs.groups(DPO)]
    assert found["score"] == sum(test["score"] for test in tests.values()) == results[0]["points"]
    assert sum(test["max_score"] for test in tests.values()) == 26
    assert {test["status"] for test in tests.values()} == {"passed", "failed"}
    failed = tests[f"{DPO}: optimal_policy"]
    said = " ".join(failed["output"].split())
    for text in (expected.of(DPO)[name].law, "0.5 is not 0.25", "Which axis?", says):
        assert " ".join(text.split()) in said
    assert "Traceback" not in said
    assert "assert" not in said
    assert tests[f"{DPO}: dpo_step"]["output"] == "not written yet"
    assert tests[f"{LORA}: rejected"]["output"] == "lora.py is no UTF-8 text"
    assert {found[f"{kind}output_format"] for kind in ("", "test_")} == {"text"}
    assert (found["visibility"], found["stdout_visibility"]) == ("visible", "hidden")
    assert found["extra_data"][DPO]["seed"] == "5eed"
    assert found["execution_time"] == 3.0


def test_junit_has_a_suite_a_unit_and_a_case_a_task(tmp_path: Path) -> None:
    """A rejected unit is a failure, as any verdict; only what could not be judged is an error."""
    results = [
        unit(failing=[failing("optimal_policy")], todo=["dpo_step"]),
        unit("bob", outcome="rejected", reason="no file"),
        unit("cy", outcome="infra_error", reason="no memory"),
    ]
    exports.write(tmp_path, results)
    ada, bob, cy = suites(tmp_path)
    kinds = {case.get("name"): [child.tag for child in case] for case in ada}
    assert list(kinds) == list(stubs.groups(DPO))
    assert kinds["optimal_policy"] == ["failure"]
    assert kinds["dpo_step"] == ["skipped"]
    statuses = [task["status"] for task in results[0]["verdict"]["tasks"]]
    assert ada.get("failures") == str(statuses.count("failed"))
    assert ada.get("skipped") == str(statuses.count("todo"))
    spent = sum(float(case.get("time", "")) for case in ada)
    tests = [test for test in expected.of(DPO).values() if test.tasks and not test.claim]
    assert spent == pytest.approx(0.01 * len(tests)), "each test counts once"
    assert (bob.get("failures"), bob.get("errors"), bob[0][0].tag) == ("1", "0", "failure")
    assert (cy.get("failures"), cy.get("errors"), cy[0][0].tag) == ("0", "1", "error")


@settings(max_examples=200)
@given(strangers)
def test_every_submission_has_a_folder_of_its_own(name: str) -> None:
    """One part of a path that every file system takes, and nobody can take another's."""
    folder = exports.folder(name)
    assert re.fullmatch(r"[a-z0-9_~-]{1,64}", folder)
    assert folder == name or exports.folder(folder) != folder
    assert exports.folder(name + " ") != folder


def test_folders_differ_where_letters_do_not() -> None:
    """Ada and ada are two, on a disk that takes them for one as well."""
    assert exports.folder("ada") == "ada"
    assert exports.folder("Ada").startswith("ada~")
    assert exports.folder("..").startswith("submission~")


def test_results_are_read_one_at_a_time(tmp_path: Path) -> None:
    """A cohort that no memory holds can be exported, since results may come from their files."""

    class Files:
        def __iter__(self) -> Any:
            return iter([unit(), unit(paper=LORA), unit("bob"), unit("bob", LORA)])

    exports.write(tmp_path, Files())
    assert [row["points"] for row in table(tmp_path, "grades.csv")] == ["26", "26"]


def test_nothing_graded_is_an_empty_table(tmp_path: Path) -> None:
    """Files are there before the first result is."""
    exports.write(tmp_path, [])
    assert table(tmp_path, "grades.csv") == table(tmp_path, "units.csv") == suites(tmp_path) == []
