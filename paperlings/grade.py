"""Grading: every selected paper in a process of its own, then one table, one JSON,
one page and one JUnit file.

Exit status: 0 graded, whatever the verdicts; 1 fewer tasks pass than --fail-under asks;
2 a wrong argument;
3 something of the kit itself is broken, so that a paper could not be judged.
"""

from __future__ import annotations

import functools
import json
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from paperlings import catalogue, expected, files, layout, pages, progress, runner, verdict
from paperlings.lanes import LANES
from paperlings.verdict import FAILED, PASSED, STATUSES, TODO, UNVERIFIED

GRADED, BELOW, USAGE, BROKEN = 0, 1, 2, 3
ROWS = 24  # more papers than this are shown a line a track, where nothing in the track was begun
ERROR = "error"  # in JUnit: of what could not be judged, which is no verdict
JUNIT = {FAILED: "failure", TODO: "skipped", UNVERIFIED: "skipped", ERROR: "error"}
COLOUR = {PASSED: "green", FAILED: "red", TODO: "yellow", UNVERIFIED: "cyan"}


def grade(
    names: list[str],
    root: Path,
    reports: Path,
    *,
    claims: bool = True,
    fail_under: float = 0.0,
    as_json: bool = False,
    sealed: bool = False,
) -> int:
    """Grade the papers that `names` mean (all without) under `root`; returns the exit status.

    Raises CatalogueError for a name that means nothing.
    """
    papers = catalogue.load()
    todo = papers.select_written(names)
    begun = time.monotonic()
    isolation = _seal() if sealed else ""
    runner.warm()
    jobs = [runner.Job(paper.key, root, reports, claims, sealed=sealed) for paper in todo]
    hashes = {paper.key: progress.content_hash(paper.key) for paper in todo}
    runs = _run(jobs, quiet=as_json)
    result = summary(runs, papers, root, reports, time.monotonic() - begun, isolation)
    save(result, reports)
    judged = [run.verdict() for run in runs if not run.trouble]
    for note in progress.record(judged, hashes):
        print(note, file=sys.stderr)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        show(result, runs, len(papers.select(names)) - len(todo), reports)
    if any(run.trouble for run in runs):
        return BROKEN
    return BELOW if result["totals"]["percent"] < fail_under else GRADED


def _seal() -> str:
    """Start the process from which candidates come; the level of its sandbox."""
    from paperlings.sealed import nursery

    return nursery.shared().level


def _run(jobs: list[runner.Job], quiet: bool) -> list[runner.Run]:
    if quiet or not sys.stderr.isatty():
        return runner.run(jobs)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("grading"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task("", total=len(jobs))
        return runner.run(jobs, lambda run: shown.update(bar, advance=1, description=run.job.key))


def summary(
    runs: list[runner.Run],
    papers: catalogue.Catalogue,
    root: Path,
    reports: Path,
    seconds: float,
    isolation: str = "",
) -> dict[str, Any]:
    """Everything that was found out, as plain data; grade.schema.json describes it."""
    rows = [row(run, papers[run.job.key], reports) for run in runs]
    tasks = [task["status"] for mine in rows for task in mine["tasks"]]
    claims = [mine["claim"] for mine in rows if mine["claim"] and not mine["lanes"]]
    count = {status: tasks.count(status) for status in STATUSES}
    return {
        "schema": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "impl": layout.shown(root),
        "sandbox": isolation or None,
        "machine": machine(),
        "seconds": round(seconds, 2),
        "totals": {
            "papers": len(rows),
            "tasks": {**count, "all": len(tasks)},
            "claims": {**{status: claims.count(status) for status in STATUSES}, "all": len(claims)},
            "percent": round(100 * count[PASSED] / len(tasks), 2) if tasks else 0.0,
        },
        "papers": rows,
    }


def row(run: runner.Run, paper: catalogue.Paper, reports: Path) -> dict[str, Any]:
    """What was found out about one paper, as plain data."""
    found = run.verdict()
    figure = reports / "figures" / f"{paper.key}.png"
    tests = {} if run.trouble else expected.of(paper.key)
    return {
        "track": paper.track,
        "name": paper.name,
        "title": paper.title,
        "identifier": paper.identifier,
        "trouble": run.trouble,
        "tasks": [vars(task) for task in found.tasks],
        "claim": found.claim,
        "lanes": {lane: finding.status for lane, finding in found.lanes.items()},
        "claim_law": next((test.law for test in tests.values() if test.claim), ""),
        "figure": f"figures/{paper.key}.png" if found.claim == PASSED and figure.exists() else None,
        "seconds": round(run.seconds, 2),
        "next": verdict.following(found),
        "tests": [finding.plain() for finding in found.findings.values()],
    }


@functools.cache
def machine() -> dict[str, Any]:
    """What the code ran on."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "gpu": _gpu(),
    }


def _gpu() -> str | None:
    """The name of the first NVIDIA GPU. torch would take it into use, after which no process of
    ours may fork.
    """
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(said.stdout.strip().splitlines()), None)


def save(result: dict[str, Any], reports: Path) -> None:
    """Write grade.json, grade.html and grade.xml (JUnit) into the folder `reports`."""
    files.write(reports / "grade.json", json.dumps(result, indent=2) + "\n")
    files.write(reports / "grade.html", page(result, reports))
    files.write(reports / "grade.xml", junit(result))


def page(result: dict[str, Any], reports: Path) -> str:
    """The grade as one self-contained HTML page, figures of passed claims inside."""
    figures = [row["figure"] for row in result["papers"] if row["figure"]]
    images = {figure: pages.inside(reports / figure) for figure in figures}
    failures = {}
    for row in result["papers"]:
        findings = [verdict.Finding(**test) for test in row["tests"]]
        found = None if row["trouble"] else verdict.of_paper(_key(row), findings)
        failures[_key(row)] = found.first_failure if found else None
    return pages.render(
        "grade.html.j2",
        result=result,
        images=images,
        failures=failures,
        statuses=STATUSES,
        laws=_laws(result),
    )


def _laws(result: dict[str, Any]) -> dict[str, str]:
    return {
        f"{_key(row)}:{name}": test.law
        for row in result["papers"]
        if not row["trouble"]
        for name, test in expected.of(_key(row)).items()
    }


def junit(result: dict[str, Any]) -> bytes:
    """The grade in the format that build servers read: a suite a paper,
    todo and unverified as skipped.
    """
    suites = ElementTree.Element("testsuites", name="paperlings", time=str(result["seconds"]))
    for row in result["papers"]:
        cases = [
            (test["test"], test["status"], test["seconds"], _message(test)) for test in row["tests"]
        ]
        if row["trouble"]:
            cases = [("trouble", ERROR, 0.0, row["trouble"])]
        suites.append(suite(_key(row), row["seconds"], cases))
    ElementTree.indent(suites)
    text: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return text


def _message(test: dict[str, Any]) -> str:
    if test["status"] == FAILED:
        return " ".join([test["what"], test["question"], *test["behaves_like"]])
    return f"{test['status']}: {test['todo_of'] or test['what']}"


def suite(
    name: str, seconds: float, cases: list[tuple[str, str, float, str]]
) -> ElementTree.Element:
    """A suite of JUnit. cases: of each its name, its verdict or ERROR, seconds, and a message that
    only those get that did not pass.
    """
    kinds = [JUNIT.get(status, "") for _, status, _, _ in cases]
    made = ElementTree.Element(
        "testsuite",
        name=name,
        tests=str(len(cases)),
        failures=str(kinds.count("failure")),
        errors=str(kinds.count("error")),
        skipped=str(kinds.count("skipped")),
        time=str(seconds),
    )
    for (called, _, took, message), kind in zip(cases, kinds, strict=True):
        case = ElementTree.SubElement(made, "testcase", classname=name, name=called, time=str(took))
        if kind:
            ElementTree.SubElement(case, kind, message=message)
    return made


def show(result: dict[str, Any], runs: list[runner.Run], unwritten: int, reports: Path) -> None:
    """Print the table, the totals, the first failure and what to do next: one screen."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False)
    papers = [row for row in result["papers"] if row["track"] != layout.KERNELS]
    kernels = [row for row in result["papers"] if row["track"] == layout.KERNELS]
    if papers:
        console.print(_table(["track", "paper", *STATUSES, "claim"], _lines(papers)))
    if kernels:
        console.print(_table(["kernel", "tasks", *LANES], [_kernel(row) for row in kernels]))
    totals, claims = result["totals"]["tasks"], result["totals"]["claims"]
    words = ", ".join(f"{totals[status]} {status}" for status in STATUSES)
    proved = f" {claims[PASSED]} of {claims['all']} claims pass." if claims["all"] else ""
    console.print(f"{totals['all']} tasks: {words}.{proved}", style="bold")
    if level := result["sandbox"]:
        from paperlings.sealed import sandbox

        loose = level == sandbox.NONE
        console.print(f"sealed: {sandbox.WORDS[level]}", style="bold red" if loose else None)
    for run in runs:
        if run.trouble:
            console.print(
                f"\n{run.job.key} could not be judged; this is the kit's fault:", style="red"
            )
            console.print(run.trouble, markup=False)
    verdicts = [run.verdict() for run in runs if not run.trouble]
    if len(verdicts) == 1:
        for line in verdict.standing(verdicts[0]):
            console.print(line, markup=False)
    failing = next((v for v in verdicts if v.first_failure), None)
    if failing and failing.first_failure:
        console.print()
        heading = f"{failing.key}, " if len(verdicts) > 1 else ""
        for line in verdict.with_likeness(failing):
            console.print(heading + line, markup=False, soft_wrap=True)
            heading = ""
    current = failing or next(
        (v for v in verdicts if v.count(TODO)), verdicts[0] if verdicts else None
    )
    if current:
        console.print(f"\nnext:   {verdict.following(current)}", markup=False, soft_wrap=True)
    console.print(f"report: {layout.shown(reports / 'grade.html')}", markup=False)
    if unwritten:
        console.print(f"{unwritten} more papers of the catalogue are not written yet.")


def _table(headings: list[str], lines: list[list[str]]) -> Any:
    from rich import box
    from rich.table import Table

    padding = 0 if STATUSES[0] in headings else (0, 2, 0, 0)  # eighty columns are few
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding)
    for heading in headings:
        kind: Any = "right" if heading in STATUSES else "left"
        table.add_column(heading, justify=kind, no_wrap=heading != "paper")
    for line in lines:
        table.add_row(*line)
    return table


def _lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The cells of the table, a line a paper; a track in which nothing was begun is one line where
    space is short.
    """
    lines = []
    for track in dict.fromkeys(row["track"] for row in rows):
        mine = [row for row in rows if row["track"] == track]
        untouched = all(task["status"] == TODO for row in mine for task in row["tasks"])
        if len(rows) > ROWS and untouched and len(mine) > 1:
            count = sum(len(row["tasks"]) for row in mine)
            lines.append(
                [track, f"{len(mine)} papers, none begun", "", "", _number(count, TODO), "", "-"]
            )
            continue
        for row in mine:
            lines.append([track, row["name"], *_counts(row), _status(row["claim"])])
    return lines


def _kernel(row: dict[str, Any]) -> list[str]:
    passed = sum(task["status"] == PASSED for task in row["tasks"])
    lanes = [_status(row["lanes"].get(lane, "")) for lane in LANES]
    return [row["name"], f"{passed} of {len(row['tasks'])} pass", *lanes]


def _counts(row: dict[str, Any]) -> list[str]:
    statuses = [task["status"] for task in row["tasks"]]
    return [_number(statuses.count(status), status) for status in STATUSES]


def _status(status: str) -> str:
    return f"[{COLOUR[status]}]{status}[/]" if status else "-"


def _number(count: int, status: str) -> str:
    return f"[{COLOUR[status]}]{count}[/]" if count else "[dim]-[/]"


def _key(row: dict[str, Any]) -> str:
    return f"{row['track']}/{row['name']}"
