"""What a cohort has come to, for people: a page for the teacher, and one for each student."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paperlings import expected, files, pages, verdict, words
from paperlings.cohort import exports
from paperlings.cohort.exports import Result, Standing
from paperlings.cohort.units import GRADED, INFRA_ERROR, REJECTED
from paperlings.verdict import FAILED, PASSED, STATUSES, UNVERIFIED

UNFINISHED = "not finished"
HELP = 50  # who has fewer per cent of the points may need help
UNKNOWN = {"system": "unknown", "python": "unknown", "torch": "unknown", "gpu": None}


@dataclass
class Paper:
    """One paper, over all submissions. tasks, lanes: by name, how many have each verdict."""

    title: str
    max_points: int
    units: Counter[str] = field(default_factory=Counter)
    points: int = 0
    tasks: dict[str, Counter[str]] = field(default_factory=dict)
    lanes: dict[str, Counter[str]] = field(default_factory=dict)
    claims: Counter[str] = field(default_factory=Counter)

    @property
    def all(self) -> Counter[str]:
        """How many tasks have each verdict."""
        return sum(self.tasks.values(), Counter())


@dataclass
class Shared:
    """Something that several submissions have in common. first: the first few of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    papers: dict[str, None] = field(default_factory=dict)

    def add(self, name: str, paper: str) -> None:
        """One more."""
        self.count += 1
        self.papers[paper] = None
        if len(self.first) < 5 and name not in self.first:
            self.first.append(name)


@dataclass
class Cohort:
    """All that the teacher's page says."""

    papers: dict[str, Paper] = field(default_factory=dict)
    standings: list[Standing] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)  # of submissions
    units: Counter[str] = field(default_factory=Counter)
    stumbles: dict[str, str] = field(default_factory=dict)  # by submission, where it fails first
    failing: dict[tuple[str, str], Shared] = field(default_factory=dict)  # by paper and test
    mistakes: dict[tuple[str, str], Shared] = field(default_factory=dict)  # by paper and words
    reasons: dict[tuple[str, str], Shared] = field(default_factory=dict)  # by outcome and words
    sandboxes: Counter[str] = field(default_factory=Counter)
    machines: Counter[str] = field(default_factory=Counter)
    kits: Counter[str] = field(default_factory=Counter)
    dates: list[str] = field(default_factory=list)  # first and last
    seconds: float = 0.0
    again: int = 0  # units that were begun more than once


def write(out: Path, results: Iterable[Result]) -> None:
    """Write cohort.html, and a feedback.html a submission, into `out`.

    results: by submission and then paper; they are gone through twice, and never held.
    """
    most = exports.max_points(results)
    cohort = Cohort()
    for name, mine in exports.by_submission(results):
        stands = exports.standing(name, mine, most)
        _count(cohort, stands, mine)
        file = out / "submissions" / exports.folder(name) / "feedback.html"
        files.write(file, words.printable(_feedback(stands, mine)))
    files.write(out / "cohort.html", words.printable(_page(cohort)))


def _count(cohort: Cohort, stands: Standing, mine: list[Result]) -> None:
    """Add one submission."""
    cohort.standings.append(stands)
    outcomes = {result["outcome"] for result in mine}
    if INFRA_ERROR in outcomes:
        cohort.outcomes[INFRA_ERROR] += 1
    elif not stands.complete:
        cohort.outcomes[UNFINISHED] += 1
    else:
        cohort.outcomes[GRADED if GRADED in outcomes else REJECTED] += 1
    for result in mine:
        cohort.units[result["outcome"]] += 1
        cohort.seconds += result["seconds"]
        cohort.again += result["attempts"] > 1
        cohort.kits[result["hashes"].get("kit", "")] += 1
        dates = [*cohort.dates, result["date"]]
        cohort.dates = [min(dates), max(dates)]
        paper = cohort.papers.setdefault(
            result["paper"], Paper(result["paper"], result["max_points"])
        )
        paper.units[result["outcome"]] += 1
        paper.points += result["points"] or 0
        if row := result["verdict"]:
            cohort.sandboxes[result["sandbox"]] += 1
            cohort.machines[_machine(result)] += 1
            paper.title = row["title"]
            _add(cohort, paper, result)
        else:
            why = (result["outcome"], result["reason"])
            cohort.reasons.setdefault(why, Shared()).add(stands.name, result["paper"])


def _add(cohort: Cohort, paper: Paper, result: Result) -> None:
    """Add what one graded unit says about its paper."""
    name, key = result["submission"], result["paper"]
    for task in result["verdict"]["tasks"]:
        paper.tasks.setdefault(task["name"], Counter())[task["status"]] += 1
    for lane, status in result["verdict"]["lanes"].items():
        paper.lanes.setdefault(lane, Counter())[status] += 1
    paper.claims[result["verdict"]["claim"]] += not paper.lanes  # a kernel's is its gate
    failed = [t["test"] for t in result["verdict"]["tests"] if t["status"] == FAILED]
    for test in failed:
        cohort.failing.setdefault((key, test), Shared()).add(name, key)
    for says in exports.likenesses(result):
        cohort.mistakes.setdefault((key, says), Shared()).add(name, key)
    if failed and name not in cohort.stumbles:
        first = exports.first_failure(result)
        cohort.stumbles[name] = f"{key}: {exports.law(key, first.test)}" if first else ""


def _machine(result: Result) -> str:
    machine = UNKNOWN | result["machine"]
    gpu = machine["gpu"] or "no GPU"
    return f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}, {gpu}"


def _page(cohort: Cohort) -> str:
    percents = [s.percent for s in cohort.standings if s.percent is not None]
    below = [s for s in cohort.standings if s.percent is not None and s.percent < HELP]
    laws = []
    for (key, test), shared in _most(cohort.failing):
        known = expected.of(key).get(test)
        tasks = ", ".join(known.tasks) if known else ""
        laws.append((exports.law(key, test), key, tasks, shared))
    return pages.render(
        "cohort.html.j2",
        cohort=cohort,
        bins=_bins(percents),
        median=round(statistics.median(percents)) if percents else 0,
        # of a handful, quartiles say nothing
        quartiles=[round(q) for q in statistics.quantiles(percents)[::2]]
        if len(percents) > 9
        else [],
        below=sorted(below, key=lambda s: s.percent or 0),
        help_below=HELP,
        laws=laws,
        mistakes=[(says, key, shared) for (key, says), shared in _most(cohort.mistakes)],
        reasons={
            outcome: [(said, s) for (kind, said), s in _most(cohort.reasons) if kind == outcome]
            for outcome in (INFRA_ERROR, REJECTED)
        },
        folder=exports.folder,
        statuses=STATUSES,
    )


def _most(found: dict[Any, Shared]) -> list[tuple[Any, Shared]]:
    """The commonest first; of those as common, the first met."""
    return sorted(found.items(), key=lambda item: -item[1].count)


def _bins(percents: list[int | float]) -> list[tuple[str, int]]:
    """Submissions by per cent of the points, in tens; 100 is a bin of its own."""
    found = Counter(int(percent // 10) for percent in percents)
    return [(f"{10 * i}" if i == 10 else f"{10 * i}-{10 * i + 9}", found[i]) for i in range(11)]


def _feedback(stands: Standing, mine: list[Result]) -> str:
    """The page of one student: what they would see of their own work, and what was not judged."""
    judged = [result for result in mine if result["verdict"]]
    rows, first, laws = [], {}, {}
    for result in judged:
        key, failure = result["paper"], exports.first_failure(result)
        first[key] = failure
        if failure:
            laws[f"{key}:{failure.test}"] = exports.law(key, failure.test)
        # the next thing to do is said of the student's own copy, not of a folder of the grader's
        again = verdict.of_paper(key, [verdict.Finding(**t) for t in result["verdict"]["tests"]])
        rows.append(result["verdict"] | {"figure": None, "next": verdict.following(again)})
    tasks = Counter(task["status"] for row in rows for task in row["tasks"])
    claims = Counter(row["claim"] for row in rows if row["claim"] and not row["lanes"])
    counted = [result for result in mine if result["points"] is not None]
    result = {
        "impl": stands.name,
        "date": max(result["date"] for result in mine),
        "machine": UNKNOWN | next((result["machine"] for result in judged), {}),
        "seconds": sum(result["seconds"] for result in mine),
        "totals": {
            "tasks": {
                **{status: tasks[status] for status in STATUSES},
                "all": sum(result["max_points"] for result in counted),
            },
            "claims": {PASSED: claims[PASSED], "all": claims.total()},
        },
        "papers": rows,
    }
    return pages.render(
        "feedback.html.j2",
        result=result,
        images={},
        failures=first,
        laws=laws,
        statuses=STATUSES,
        unverified={result["paper"]: _unverified(result) for result in judged},
        others=[result for result in mine if not result["verdict"]],
    )


def _unverified(result: Result) -> dict[str, str]:
    """What could not be verified in a judged unit, and why: a kernel's lanes, a claim, or tasks."""
    known, found = expected.of(result["paper"]), dict[str, str]()
    for test in result["verdict"]["tests"]:
        if test["status"] == UNVERIFIED and (of := known.get(test["test"])):
            what = of.lane or ("claim" if of.claim else ", ".join(of.tasks))
            found.setdefault(what, test["what"])
    return found
