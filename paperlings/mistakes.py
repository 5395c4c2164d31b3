"""Testing the tests: every known mistake must be caught and named, every equivalent accepted,
and knowing nothing pass nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
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
    tables,
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


def mistakes(names: list[str], sealed: bool = False) -> int:
    """Try every variant of the papers that `names` mean, print the rates,
    and return 1 if anything is at fault. sealed: each in a locked process.
    """
    keys = [paper.key for paper in catalogue.load().select_written(names)]
    runner.warm()
    rates = measure(keys, sealed)
    show(rates)
    return int(any(rate.faults for rate in rates))


def measure(keys: list[str], sealed: bool = False) -> list[Rates]:
    """The rates of each paper. Raises KnowledgeError where a .toml is wrong."""
    rates = {key: Rates(key, faults=teacher.complaints(key)) for key in keys}
    variants = [variant for key in keys for variant in variants_of(key)]
    for key in keys:
        diagnosis.mistakes(key)  # once, before the processes part
    with tempfile.TemporaryDirectory(prefix="paperlings-", ignore_cleanup_errors=True) as folder:
        while variants:
            jobs = [replace(variant.job(Path(folder)), sealed=sealed) for variant in variants]
            runs = list(zip(variants, runner.run_many(jobs), strict=True))
            # of equivalents that are rejected together, each is tried alone
            rejected = [v for v, run in runs if len(v.parts) > 1 and not _accepted(run)]
            variants = [part for variant in rejected for part in variant.parts]
            for variant, run in runs:
                rates[variant.key].seconds += run.seconds
                if variant not in rejected:
                    _judge(variant, run, rates[variant.key])
    return list(rates.values())


@dataclass(frozen=True)
class Variant:
    """A variant of a paper's solution: its text, and the tasks whose tests it can change.

    kind: "mistake", "equivalent", "solution", "stub", or one of degenerate.KINDS.
    number: which of its kind, from 1.  parts: the equivalents it is made of, where it is several.
    """

    key: str
    kind: str
    text: str
    tasks: tuple[str, ...] = ()
    number: int = 0
    parts: tuple[Variant, ...] = ()

    @property
    def label(self) -> str:
        """What it is called: "mistake 3", "stub"."""
        numbers = [part.number for part in self.parts] or [self.number]
        return " ".join([self.kind, *(str(n) for n in numbers if n)])

    def job(self, folder: Path) -> runner.Job:
        """Put the text where it can be run, and say how."""
        root = folder / self.key / self.label.replace(" ", "-")
        files.write(layout.source(root, self.key), self.text)
        diagnosis = runner.UNTIL_NAMED if self.kind == "mistake" else runner.NONE
        return runner.Job(self.key, root, folder, False, self.tasks, diagnosis, self.label)


def variants_of(key: str) -> list[Variant]:
    """Every variant of a paper's solution. Equivalents of different functions and classes are one
    variant: where that is accepted, they all are.
    """
    text, known, name = teacher.source(key), teacher.load(key), layout.shown(layout.knowledge(key))
    found = [Variant(key, "solution", text), Variant(key, "stub", stubs.stub(text))]
    found += [Variant(key, kind, degenerate.source(key, kind)) for kind in degenerate.KINDS]
    for number, edit in enumerate(known.mistakes, start=1):
        changed = teacher.apply(text, [edit], f"{name}: mistake {number}")
        tasks = reach.reached(text, reach.lines_of(text, edit.before))
        found.append(Variant(key, "mistake", changed, tasks, number))
    groups: list[tuple[set[str], list[int]]] = []
    for number, edit in enumerate(known.equivalents):
        teacher.apply(text, [edit], f"{name}: equivalent {number + 1}")
        places = reach.definitions(text, reach.lines_of(text, edit.before)) or {""}
        group = next((group for group in groups if not group[0] & places), None)
        if group is None:
            groups.append((places, [number]))
        else:
            group[0].update(places)
            group[1].append(number)
    return found + [_equivalents(key, text, numbers) for _, numbers in groups]


def _equivalents(key: str, text: str, numbers: list[int]) -> Variant:
    edits = [teacher.load(key).equivalents[number] for number in numbers]
    changed = teacher.apply(text, edits, "equivalents")
    lines = [reach.lines_of(text, edit.before) for edit in edits]
    tasks = tuple(dict.fromkeys(task for place in lines for task in reach.reached(text, place)))
    alone = [_equivalents(key, text, [number]) for number in numbers] if len(numbers) > 1 else []
    number = numbers[0] + 1 if len(numbers) == 1 else 0
    return Variant(key, "equivalent", changed, tasks, number, tuple(alone))


def _accepted(run: runner.Run) -> bool:
    return not run.trouble and all(task.status == PASSED for task in run.verdict().tasks)


def _judge(variant: Variant, run: runner.Run, rates: Rates) -> None:
    key, label, kind = variant.key, variant.label, variant.kind
    if run.trouble:
        rates.faults.append(f"{key}: {label} could not be run: {run.trouble}")
        return
    found = run.verdict()
    failed = [finding for finding in run.findings if finding.status == FAILED]
    if kind == "mistake":
        edit = teacher.load(key).mistakes[variant.number - 1]
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
        count = max(len(variant.parts), 1) if kind == "equivalent" else 0
        rates.equivalents += count
        rates.accepted += count if _accepted(run) else 0
        if not _accepted(run):
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
    rows = [
        [
            layout.called(rate.key),
            f"{rate.caught} of {rate.mistakes}",
            f"{rate.named} of {rate.mistakes}",
            f"{rate.accepted} of {rate.equivalents}",
            str(rate.vacuous),
            f"{rate.seconds:.1f}",
        ]
        for rate in rates
    ]
    console = tables.show(["caught", "named", "accepted", "vacuous", "seconds"], rows)
    caught, all_mistakes = sum(r.caught for r in rates), sum(r.mistakes for r in rates)
    accepted, all_equivalents = sum(r.accepted for r in rates), sum(r.equivalents for r in rates)
    console.print(
        f"{caught} of {all_mistakes} mistakes caught, "
        f"{accepted} of {all_equivalents} equivalents accepted.",
        style="bold",
    )
    for fault in (fault for rate in rates for fault in rate.faults):
        console.print(fault, style="red", markup=False, soft_wrap=True)
