"""What is said about a test, a task and a paper: the four verdicts,
and the one screen of text that shows them.

passed, failed, todo (a stub's own NotImplementedError) and unverified (this machine cannot tell)
are never blurred.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paperlings import expected, layout, stubs
from paperlings.lanes import LANES

PASSED, FAILED, TODO, UNVERIFIED = "passed", "failed", "todo", "unverified"
STATUSES = (PASSED, FAILED, TODO, UNVERIFIED)
SEVERITY = (FAILED, TODO, UNVERIFIED, PASSED)

WIDTH = 80
LABEL = 14  # columns of "behaves like", and a gap


@dataclass
class Finding:
    """What one test of a paper found out.

    test: the expected name (see `expected`).  what: the difference or the error, in words.
    question: what to ask
    yourself.  example: the smallest counterexample, a line a value.  behaves_like:
    known mistakes that give the very
    same answer.  printed: the end of what the code printed.  todo_of: the task whose stub was met.
    """

    key: str
    test: str
    status: str
    seconds: float = 0.0
    what: str = ""
    question: str = ""
    example: list[str] = field(default_factory=list)
    behaves_like: list[str] = field(default_factory=list)
    printed: str = ""
    todo_of: str = ""
    timed_out: bool = False

    def plain(self) -> dict[str, Any]:
        """As plain data, for a report that crosses processes or is written as JSON."""
        return asdict(self)


@dataclass
class TaskVerdict:
    """One task: its verdict, and how many of its tests passed of those expected."""

    name: str
    status: str
    passed: int
    expected: int
    behaves_like: list[str] = field(default_factory=list)


@dataclass
class PaperVerdict:
    """One paper: its tasks in order, the verdict of its claim ("" without one),
    and every finding by test. The claim of a kernel is its gate.
    """

    key: str
    tasks: list[TaskVerdict]
    claim: str
    findings: dict[str, Finding]
    partial: bool = False  # only some of its tests were asked for
    root: Path = layout.EXERCISES  # where the code lies that was judged

    def count(self, status: str) -> int:
        return sum(task.status == status for task in self.tasks)

    @property
    def lanes(self) -> dict[str, Finding]:
        """The worst finding of each lane of a kernel in which a test ran."""
        tests = expected.of(self.key) if layout.is_kernel(self.key) else {}
        found: dict[str, Finding] = {}
        for lane in LANES:
            mine = [f for f in self.findings.values() if f.test in tests]
            mine = [f for f in mine if tests[f.test].lane == lane]
            if mine:
                found[lane] = min(mine, key=lambda finding: SEVERITY.index(finding.status))
        return found

    @property
    def first_failure(self) -> Finding | None:
        """The failed finding to look at first: of the first failed task, in learning order;
        the claim comes last.
        """
        failed = [f for f in self.findings.values() if f.status == FAILED]
        if not failed:
            return None
        tests, names = expected.of(self.key), stubs.groups(self.key)
        known = [f for f in failed if f.test in tests]

        def rank(finding: Finding) -> tuple[bool, int, int]:
            test = tests[finding.test]
            first = min((names.index(t) for t in test.tasks), default=0)
            return test.claim, first, list(tests).index(finding.test)

        return min(known, key=rank) if known else failed[0]


def of_paper(
    key: str,
    findings: Iterable[Finding],
    partial: bool = False,
    root: Path = layout.EXERCISES,
) -> PaperVerdict:
    """The verdict of a paper from what its tests found.

    A task passes when every expected test of it ran and passed. partial:
    only some tests were asked for,
    so the missing ones are passed over (a learner's `-k`), which no grade does.
    """
    merged = _merged(findings)
    tests = expected.of(key)
    tasks = []
    for name in stubs.groups(key):
        mine = [test for test in tests.values() if name in test.tasks and not test.claim]
        ran = [merged[test.name] for test in mine if test.name in merged]
        missing = 0 if partial else len(mine) - len(ran)
        if ran or not partial:
            tasks.append(_task(name, ran, missing, len(ran) if partial else len(mine)))
    claims = [
        merged[t.name].status if t.name in merged else FAILED for t in tests.values() if t.claim
    ]
    if partial:
        claims = [merged[t.name].status for t in tests.values() if t.claim and t.name in merged]
    return PaperVerdict(key, tasks, _worst(claims) if claims else "", merged, partial, root)


def _task(name: str, ran: list[Finding], missing: int, total: int) -> TaskVerdict:
    passed = sum(f.status == PASSED for f in ran)
    like = list(dict.fromkeys(says for f in ran for says in f.behaves_like))
    if any(f.status == TODO and f.todo_of == name for f in ran):
        status = TODO
    elif any(f.status == FAILED for f in ran) or (
        missing and not any(f.status == TODO for f in ran)
    ):
        status = FAILED
    else:
        status = _worst([f.status for f in ran]) if ran else FAILED
    return TaskVerdict(name, status, passed, total, like)


def _worst(statuses: Iterable[str]) -> str:
    return min(statuses, key=SEVERITY.index)


def _merged(findings: Iterable[Finding]) -> dict[str, Finding]:
    """One finding an expected test: the worst of its parametrised cases, with the time of all."""
    merged: dict[str, Finding] = {}
    for finding in findings:
        other = merged.get(finding.test)
        if other is None:
            merged[finding.test] = finding
            continue
        worst = finding if _worst([finding.status, other.status]) != other.status else other
        seconds = finding.seconds + other.seconds
        merged[finding.test] = Finding(**{**worst.plain(), "seconds": seconds})
    return merged


def screen(verdict: PaperVerdict) -> list[str]:
    """The verdict of one paper in at most 25 lines of 80 columns: what passed,
    and the first failure whole.
    """
    lines = [headline(verdict), *standing(verdict)]
    if verdict.first_failure:
        lines += ["", *with_likeness(verdict)]
    # a command is for copying, so it is never wrapped
    return [*lines, f"  {'next':<{LABEL}}{following(verdict)}"]


def standing(verdict: PaperVerdict) -> list[str]:
    """The tasks by verdict, and the claim."""
    lines = []
    for status in STATUSES:
        names = [_named(task) for task in verdict.tasks if task.status == status]
        if names:
            lines += _listed(status, names, 4)
    for lane, finding in verdict.lanes.items():
        known = finding.status in (TODO, UNVERIFIED) and finding.what
        lines += _labelled(lane, finding.status + (f": {finding.what}" if known else ""), 2)
    if verdict.claim and not verdict.lanes:
        claim = next(
            (f for f in verdict.findings.values() if f.what and _is_claim(verdict.key, f)), None
        )
        detail = f": {claim.what}" if claim and verdict.claim in (TODO, UNVERIFIED) else ""
        picture = layout.reports(verdict.root) / "figures" / f"{verdict.key}.png"
        if verdict.claim == PASSED and picture.exists():
            detail = f": see {layout.shown(picture)}"
        lines += _labelled("claim", verdict.claim + detail, 2)
    return lines


def headline(verdict: PaperVerdict) -> str:
    """How many tasks of the paper pass."""
    if not verdict.tasks and verdict.claim:
        what = "gate" if layout.is_kernel(verdict.key) else "claim"
        return f"{verdict.key}: the {what} alone, {verdict.claim}"
    selected = ", as far as the tests selected tell" if verdict.partial else ""
    return f"{verdict.key}: {verdict.count(PASSED)} of {len(verdict.tasks)} tasks pass{selected}"


def with_likeness(verdict: PaperVerdict) -> list[str]:
    """The first failure whole, with the likeness that another test of its task showed where it
    shows none itself.
    """
    failure = verdict.first_failure
    if failure is None:
        return []
    return explain(failure) + (
        [] if failure.behaves_like else _likeness(_task_of(verdict, failure))
    )


def explain(finding: Finding) -> list[str]:
    """One failed test: the law in words, the counterexample, the difference, the question,
    the likely mistake.
    """
    test = expected.of(finding.key).get(finding.test)
    judged = ", ".join(test.tasks) if test else ""
    lines = [f"{judged}: {finding.test}" if judged and len(judged) < 40 else finding.test]
    if test and test.law:
        lines += _labelled("law", test.law, 3)
    shown, rest = finding.example[:5], finding.example[5:]
    if rest:
        shown = [*finding.example[:4], "; ".join(finding.example[4:])]
    for i, line in enumerate(shown):
        lines += _labelled("with" if i == 0 else "", line, 2)
    lines += _labelled("time-out" if finding.timed_out else "found", finding.what, 4)
    if finding.question:
        lines += _labelled("question", finding.question, 2)
    if finding.printed:
        lines += _labelled("printed", finding.printed, 2)
    for says in finding.behaves_like[:2]:
        lines += _labelled("behaves like", says, 3)
    return lines


def following(verdict: PaperVerdict) -> str:
    """The next command, or the next thing to do."""
    elsewhere = verdict.root != layout.EXERCISES
    command = f"pytest {layout.shown(layout.tests(verdict.key))}"
    command += f" --impl {layout.shown(verdict.root)}" if elsewhere else ""
    if failure := verdict.first_failure:
        return f"{command} -k {failure.test.partition('[')[0]}"
    todo = [task.name for task in verdict.tasks if task.status == TODO]
    if todo:
        return f"write {todo[0]} in {layout.shown(layout.source(verdict.root, verdict.key))}"
    if verdict.partial:
        return f"{command}   (all of its tests)"
    if verdict.count(UNVERIFIED):
        return "nox -s doctor   (what this machine can verify, and why not the rest)"
    if not elsewhere:
        return f"nox -s compare -- {verdict.key}"
    return f"compare with {layout.shown(layout.source(layout.SOLUTIONS, verdict.key))}"


def _likeness(task: TaskVerdict | None) -> list[str]:
    lines = []
    for says in task.behaves_like[:1] if task else []:
        lines += _labelled(
            "behaves like", f"{says} (seen in another test of {task.name if task else ''})", 3
        )
    return lines


def _task_of(verdict: PaperVerdict, finding: Finding) -> TaskVerdict | None:
    test = expected.of(verdict.key).get(finding.test)
    return next(
        (t for t in verdict.tasks if test and t.name in test.tasks and t.status == FAILED), None
    )


def _named(task: TaskVerdict) -> str:
    return (
        f"{task.name} ({task.passed} of {task.expected} tests)"
        if task.status == FAILED
        else task.name
    )


def _is_claim(key: str, finding: Finding) -> bool:
    test = expected.of(key).get(finding.test)
    return bool(test and test.claim)


def _listed(label: str, names: list[str], most: int) -> list[str]:
    """As _labelled, for a list of which as many are named as fit, and the others counted."""
    for count in range(len(names), 0, -1):
        more = f" and {len(names) - count} more" if count < len(names) else ""
        lines = _labelled(label, ", ".join(names[:count]) + more, most + 1)
        if len(lines) <= most:
            break
    return lines


def _labelled(label: str, text: str, most: int = 2) -> list[str]:
    """`label` in a column of its own and `text` wrapped beside it, at most so many lines."""
    indent = " " * (LABEL + 2)
    lines: list[str] = []
    for part in text.splitlines() or [""]:
        lines += textwrap.wrap(part, WIDTH - len(indent), break_on_hyphens=False) or [""]
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: WIDTH - len(indent) - 4] + " ..."]
    first = f"  {label:<{LABEL}}{lines[0]}"
    return [first.rstrip(), *(indent + line for line in lines[1:])]
