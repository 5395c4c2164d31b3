"""Testing the tests: every known mistake must be caught and named, every equivalent accepted,
and knowing nothing pass nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from paperlings import (
    catalogue,
    degenerate,
    diagnosis,
    files,
    layout,
    reach,
    runner,
    stubs,
    teacher,
    verdict,
)
from paperlings.verdict import FAILED, PASSED


@dataclass
class Rates:
    """Of one paper: how many mistakes were caught and named, equivalents accepted;
    `faults` say what went wrong.
    """

    key: str
    caught: int = 0
    named: int = 0
    mistakes: int = 0
    accepted: int = 0
    equivalents: int = 0
    vacuous: int = 0  # tasks that a stub, zeros or the input pass
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def mistakes(names: list[str]) -> int:
    """Try every variant of the papers that `names` mean, print the rates,
    and return 1 if anything is at fault.
    """
    written = set(layout.written())
    keys = [paper.key for paper in catalogue.load().select(names) if paper.key in written]
    if not keys:
        raise catalogue.CatalogueError("none of these papers is written yet")
    runner.warm()
    rates = measure(keys)
    show(rates)
    return int(any(rate.faults for rate in rates))


def measure(keys: list[str]) -> list[Rates]:
    """The rates of each paper. Raises KnowledgeError where a .toml is wrong."""
    with tempfile.TemporaryDirectory(prefix="paperlings-", ignore_cleanup_errors=True) as folder:
        rates = {key: Rates(key, faults=teacher.complaints(key)) for key in keys}
        jobs = [job for key in keys for job in _jobs(key, Path(folder))]
        for key in keys:
            diagnosis.mistakes(key)  # once, before the processes part
        for run in runner.run_many(jobs):
            _judge(run, rates[run.job.key])
    return list(rates.values())


def variants(key: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Every variant of a paper's solution by label, "mistake 3", "equivalent 1", "stub":
    its text, and the tasks whose tests it can change.
    """
    text, known, name = teacher.source(key), teacher.load(key), layout.shown(layout.knowledge(key))
    whole = {"solution": text, "stub": stubs.stub(text)}
    whole |= {kind: degenerate.source(key, kind) for kind in degenerate.KINDS}
    found: dict[str, tuple[str, tuple[str, ...]]] = {label: (x, ()) for label, x in whole.items()}
    for kind, edits in (("equivalent", known.equivalents), ("mistake", known.mistakes)):
        for i, edit in enumerate(edits, start=1):
            changed = teacher.apply(text, edit, f"{name}: {kind} {i}")
            found[f"{kind} {i}"] = changed, reach.reached(text, reach.lines_of(text, edit.before))
    return found


def _jobs(key: str, folder: Path) -> list[runner.Job]:
    jobs = []
    for label, (text, tasks) in variants(key).items():
        root = folder / key / label.replace(" ", "-")
        files.write(layout.source(root, key), text)
        diagnosis = runner.UNTIL_NAMED if label.startswith("mistake") else runner.NONE
        jobs.append(runner.Job(key, root, folder, False, tasks, diagnosis, label))
    return jobs


def _judge(run: runner.Run, rates: Rates) -> None:
    key, label = run.job.key, run.job.label
    rates.seconds += run.seconds
    if run.trouble:
        rates.faults.append(f"{key}: {label} could not be run: {run.trouble}")
        return
    found = run.verdict()
    failed = [finding for finding in run.findings if finding.status == FAILED]
    kind, _, number = label.partition(" ")
    if kind == "mistake":
        edit = teacher.load(key).mistakes[int(number) - 1]
        rates.mistakes += 1
        rates.caught += bool(failed)
        named = any(edit.says in finding.behaves_like for finding in failed)
        rates.named += named
        if not failed:
            rates.faults.append(f"{key}: {label} is not caught: {edit.says}")
        elif not named:
            rates.faults.append(
                f"{key}: {label} is caught by {failed[0].test}, but not named: {edit.says}"
            )
    elif kind in ("equivalent", "solution"):
        accepted = all(task.status == PASSED for task in found.tasks)
        rates.equivalents += kind == "equivalent"
        rates.accepted += kind == "equivalent" and accepted
        if not accepted:
            worst = found.first_failure
            why = f"{worst.test}: {worst.what}" if worst else "a task has no verdict"
            rates.faults.append(f"{key}: {label} is rejected by {why}")
    else:
        passing = [task.name for task in found.tasks if task.status == PASSED]
        rates.vacuous += len(passing)
        if passing:
            rates.faults.append(f"{key}: {', '.join(passing)} pass with the {label}")
        if kind == "stub" and any(f.status != verdict.TODO for f in run.findings):
            odd = next(f for f in run.findings if f.status != verdict.TODO)
            rates.faults.append(
                f"{key}: on the untouched stub {odd.test} is {odd.status}, not todo {odd.what}"
            )


def show(rates: list[Rates]) -> None:
    """Print the table of rates, and every fault."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("paper")
    for heading in ("caught", "named", "accepted", "vacuous", "seconds"):
        table.add_column(heading, justify="right")
    for rate in rates:
        table.add_row(
            rate.key.split("/")[1],
            f"{rate.caught} of {rate.mistakes}",
            f"{rate.named} of {rate.mistakes}",
            f"{rate.accepted} of {rate.equivalents}",
            str(rate.vacuous),
            f"{rate.seconds:.1f}",
        )
    console.print(table)
    caught, all_mistakes = sum(r.caught for r in rates), sum(r.mistakes for r in rates)
    accepted, all_equivalents = sum(r.accepted for r in rates), sum(r.equivalents for r in rates)
    console.print(
        f"{caught} of {all_mistakes} mistakes caught, "
        f"{accepted} of {all_equivalents} equivalents accepted.",
        style="bold",
    )
    for fault in (fault for rate in rates for fault in rate.faults):
        console.print(fault, style="red", markup=False, soft_wrap=True)
