"""What a cohort has come to, for other programs: tables for spreadsheets, results.json for
Gradescope, JUnit for build servers.

An infra_error is never a score: whoever has one has no total, and no results.json.
Names and texts come from strangers; nothing that they hold can break a file, or act in a reader.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from paperlings import expected, files, grade, verdict, words
from paperlings.cohort.intake import printable
from paperlings.cohort.units import INFRA_ERROR, REJECTED
from paperlings.verdict import FAILED, PASSED, TODO, UNVERIFIED

Result = dict[str, Any]  # of a unit; unit.schema.json describes it
# also after blanks and quotes, and after a semicolon, which starts a cell where commas are decimal
FORMULA = re.compile(r"""(^|;)(?=[\s"'`\u2018-\u201d]*[=+\-@\uff1d\uff0b\uff0d\uff20])""")
UNITS = ["submission", "paper", "outcome", "points", "max_points", "claim", "first_failed_test"]
UNITS += ["law", "behaves_like", "seconds", "attempts", "sandbox", "seed", "key", "reason"]


@dataclass
class Standing:
    """What one submission has come to.

    points: by paper, None of an infra_error; of what is not graded yet there is none.
    notes: why points are missing.
    """

    name: str
    points: dict[str, int | None]
    max_points: int
    notes: list[str] = field(default_factory=list)
    complete: bool = True

    @property
    def total(self) -> int | None:
        """All its points; None where some of its work could not be judged, or is not yet."""
        found = [points for points in self.points.values() if points is not None]
        return sum(found) if self.complete else None

    @property
    def percent(self) -> int | float | None:
        """Its points of all there are to get, to two digits where it is no integer."""
        if self.total is None or not self.max_points:
            return None
        percent = round(100 * self.total / self.max_points, 2)
        return int(percent) if percent.is_integer() else percent


def write(out: Path, results: Iterable[Result]) -> None:
    """Write grades.csv, units.csv, junit.xml, and a results.json a submission, into `out`.

    results: by submission and then paper; they are gone through twice, and never held.
    """
    papers = max_points(results)
    grades, units, suites = [], [], []
    seconds = 0.0
    for name, mine in by_submission(results):
        stands = standing(name, mine, papers)
        grades.append(_grade(stands, papers))
        said = [cases(result) for result in mine]
        for result, about in zip(mine, said, strict=True):
            units.append(_unit(result))
            suites.append(_suite(result, about))
            seconds += result["seconds"]
        file = out / "submissions" / folder(name) / "results.json"
        if stands.complete:
            files.write(file, json.dumps(_gradescope(stands, mine, said), indent=1) + "\n")
        else:
            # without this file Gradescope says that the autograder failed, and gives no score
            file.unlink(missing_ok=True)
    heading = ["submission", "points", "max_points", "percent", *papers, "notes"]
    files.write(out / "grades.csv", _csv(heading, grades))
    files.write(out / "units.csv", _csv(UNITS, units))
    files.write(out / "junit.xml", _junit(suites, seconds))


def max_points(results: Iterable[Result]) -> dict[str, int]:
    """Every paper that somebody has a result in, and the points there are to get."""
    return {result["paper"]: result["max_points"] for result in results}


def by_submission(results: Iterable[Result]) -> Iterator[tuple[str, list[Result]]]:
    """Each submission's name and results."""
    for name, mine in itertools.groupby(results, key=lambda result: str(result["submission"])):
        yield name, list(mine)


def standing(name: str, mine: list[Result], papers: dict[str, int]) -> Standing:
    """What a submission has come to, of all the papers of its cohort."""
    points = {result["paper"]: result["points"] for result in mine}
    missing = [paper for paper in papers if paper not in points]
    why: dict[str, list[str]] = {}
    for result in mine:
        if result["outcome"] in (REJECTED, INFRA_ERROR):
            why.setdefault(f"{result['outcome']}: {result['reason']}", []).append(result["paper"])
    if missing:
        why["not graded yet"] = missing
    notes = [f"{', '.join(which)} {what}" for what, which in why.items()]
    complete = not missing and None not in points.values()
    return Standing(name, points, sum(papers.values()), notes, complete)


def folder(name: str) -> str:
    """The folder of a submission: its name where that is one everywhere, else something like it
    and a hash, behind a sign that no such name has.
    """
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        return name
    like = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:40]
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{like or 'submission'}~{digest}"


def failures(result: Result) -> list[verdict.Finding]:
    """What failed in a unit."""
    tests = result["verdict"]["tests"] if result["verdict"] else []
    return [verdict.Finding(**test) for test in tests if test["status"] == FAILED]


def first_failure(result: Result) -> verdict.Finding | None:
    """What to look at first in a unit."""
    found = {finding.test: finding for finding in failures(result)}
    return verdict.PaperVerdict(result["paper"], [], "", found).first_failure


def law(paper: str, test: str) -> str:
    """What a test says, in words; its name where it says nothing."""
    known = expected.of(paper).get(test)
    return known.law if known and known.law else test


# ---- tables


def _grade(stands: Standing, papers: dict[str, int]) -> list[Any]:
    points = [stands.points.get(paper) for paper in papers]
    notes = "; ".join(stands.notes)
    return [stands.name, stands.total, stands.max_points, stands.percent, *points, notes]


def _unit(result: Result) -> list[Any]:
    first = first_failure(result)
    like = [*first.behaves_like, *likenesses(result)] if first else []
    found = {
        **result,
        "claim": result["verdict"]["claim"] if result["verdict"] else "",
        "first_failed_test": first.test if first else "",
        "law": law(result["paper"], first.test) if first else "",
        "behaves_like": like[0] if like else "",
    }
    return [found[column] for column in UNITS]


def likenesses(result: Result) -> list[str]:
    """The known mistakes that a unit behaves like, each once."""
    return list(dict.fromkeys(says for found in failures(result) for says in found.behaves_like))


def _csv(heading: list[str], rows: Iterable[list[Any]]) -> str:
    """A table that every reader reads alike.

    It opens with a byte order mark: without one Excel takes UTF-8 for the code page of the machine
    and spoils names, while LibreOffice and pandas skip it (in Python: encoding="utf-8-sig").
    """
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow([_cell(name) for name in heading])
    table.writerows([_cell(value) for value in row] for row in rows)
    return "\ufeff" + text.getvalue()


def _cell(value: Any) -> Any:
    """A number as it is; a text on one line, and with an apostrophe where it could be taken for a
    formula.
    """
    return FORMULA.sub(r"\1'", printable(value)) if isinstance(value, str) else value


# ---- Gradescope and JUnit


def cases(result: Result) -> list[tuple[str, str, float, str]]:
    """A unit's tasks as JUnit counts: name, verdict, seconds, and what its author should know.

    A rejected unit is one failure, since it is a verdict on what was handed in; an infra_error is
    the only error.
    """
    if not result["verdict"]:
        status = FAILED if result["outcome"] == REJECTED else grade.ERROR
        return [(result["outcome"], status, 0.0, words.printable(result["reason"]))]
    tests, row = expected.of(result["paper"]), result["verdict"]
    mine: dict[str, list[verdict.Finding]] = {}
    spent: dict[str, float] = {}
    for test in row["tests"]:
        known = tests.get(test["test"])
        if known and known.tasks and not known.claim:
            # a test of several tasks takes its time once
            first = known.tasks[0]
            spent[first] = spent.get(first, 0.0) + test["seconds"]
            if test["status"] != PASSED:
                for task in known.tasks:
                    mine.setdefault(task, []).append(verdict.Finding(**test))
    return [
        (
            task["name"],
            task["status"],
            round(spent.get(task["name"], 0.0), 4),
            words.printable(_said(result["paper"], task, mine.get(task["name"], []))),
        )
        for task in row["tasks"]
    ]


def _said(paper: str, task: dict[str, Any], findings: list[verdict.Finding]) -> str:
    """What there is to say about a task: of a failed one its first failure, whole."""
    status, counted = task["status"], f"{task['passed']} of {task['expected']} tests passed"
    if status == TODO:
        return "not written yet"
    if status == UNVERIFIED:
        why = next((f.what for f in findings if f.status == UNVERIFIED and f.what), "")
        return f"unverified: {why or 'the machine that graded it cannot tell'}"
    failed = {finding.test: finding for finding in findings if finding.status == FAILED}
    if status == FAILED and failed:
        judged = verdict.PaperVerdict(paper, [verdict.TaskVerdict(**task)], "", failed)
        return "\n".join([counted, "", *verdict.with_likeness(judged)])
    return counted if status == PASSED else f"{counted}; the others did not run"


def _gradescope(
    stands: Standing, mine: list[Result], said: list[list[tuple[str, str, float, str]]]
) -> dict[str, Any]:
    """In the format of gradescope-autograders.readthedocs.io/en/latest/specs: a test a task."""
    tests = []
    for result, about in zip(mine, said, strict=True):
        for name, status, _, text in about:
            passed = status == PASSED
            most = result["max_points"] if result["outcome"] == REJECTED else 1
            tests.append(
                {
                    "name": f"{result['paper']}: {name}",
                    "score": int(passed),
                    "max_score": most,
                    "status": PASSED if passed else FAILED,
                    "output": text,
                    "visibility": "visible",
                    "tags": [result["paper"], status],
                }
            )
    keep = ("key", "seed", "sandbox", "date")
    return {
        "score": stands.total,
        "execution_time": round(sum(result["seconds"] for result in mine), 2),
        "output": f"{stands.total} of {stands.max_points} tasks pass.",
        "output_format": "text",  # without it, this one would be taken for HTML
        "test_output_format": "text",
        "test_name_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
        "extra_data": {result["paper"]: {key: result[key] for key in keep} for result in mine},
    }


def _suite(result: Result, about: list[tuple[str, str, float, str]]) -> str:
    name = printable(f"{result['submission']} {result['paper']}")
    suite = grade.suite(name, result["seconds"], about)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode")


def _junit(suites: list[str], seconds: float) -> str:
    """One at a time became text, since a large cohort has a million cases."""
    opens = f'<?xml version="1.0" encoding="utf-8"?>\n<testsuites time="{round(seconds, 2)}">'
    return "\n".join([opens, *suites, "</testsuites>"]) + "\n"
