"""The commands `cohort`, for many submissions, and `unit`, for one answer to one paper.

Exit status: 0 every unit is graded or rejected; 2 a wrong argument; 3 an infra_error is left.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paperlings import UsageError, catalogue, layout
from paperlings.cohort import intake, local, units
from paperlings.cohort.units import GRADED, INFRA_ERROR, REJECTED, Unit

DONE, FAILED = 0, 3
EVERY = 10.0  # seconds between two lines on how far it is, where there is no terminal


def cohort(
    source: Path,
    out: Path,
    names: list[str],
    *,
    claims: bool = False,
    workers: int = 0,
    engine: str = "local",
    scheduler: str = "",
    secret: Path | None = None,
    only_list: bool = False,
) -> int:
    """Grade all submissions at `source` into the folder `out`; returns the exit status.

    names: of papers or tracks; without, every paper that some submission has.
    workers: units graded at a time; as many as there are processors without.
    only_list: print what is not graded yet, as arguments of `unit`, a line each, and grade nothing.
    """
    handed_in = intake.submissions(source)
    papers = _papers(names, handed_in)
    plan = units.plan(handed_in, papers, units.secret(secret or out / "secret"), claims)
    todo = [unit for unit in plan if not units.is_settled(units.load(out, unit))]
    if only_list:
        for unit in todo:
            options = [f"--name={unit.submission}", *(["--claims"] if unit.claims else [])]
            print(shlex.join([*options, str(unit.where), unit.paper]))
        return DONE
    with _alone(out), _progress(len(plan), len(plan) - len(todo)) as step:

        def done(unit: Unit, found: dict[str, Any]) -> None:
            units.save(out, unit, found)
            step()

        for unit in todo:
            if unit.refused:
                done(unit, units.result(unit, REJECTED, unit.refused))
        left = [unit for unit in todo if not unit.refused]
        count = workers or os.cpu_count() or 1
        try:
            if left and engine == "dask":
                from paperlings.cohort import cluster

                cluster.grade(left, papers, count, scheduler, out, done)
            elif left:
                local.grade(left, papers, count, done)
        except local.CannotStart as why:
            return _cannot_start(why)
    from paperlings.cohort import exports, page

    results = _Results(out, plan)
    exports.write(out, results)
    page.write(out, results)
    return _show(out, results, len(handed_in), len(plan) - len(todo))


@dataclass
class _Results:
    """The results of a plan, read whenever they are gone through: a large cohort's are many."""

    out: Path
    plan: list[Unit]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for unit in self.plan:
            if found := units.load(self.out, unit):
                yield found


def unit(
    path: Path,
    name: str,
    paper: str,
    out: Path,
    *,
    claims: bool = False,
    secret: Path | None = None,
    seed: str = "",
) -> int:
    """Grade one submission's answer to one paper into the folder `out`; returns the exit status.

    seed: of the cases, as an earlier result names it, to see that result again.
    """
    submission = intake.Submission(intake.printable(name) or intake.name_of(path), path)
    key = catalogue.load().select_one(paper).key
    [text] = intake.take(submission, [key]).values()
    chosen = seed or units.secret(secret or out / "secret")
    mine = units.unit(submission, key, text, chosen, claims)
    found = units.load(out, mine)
    if not units.is_settled(found):
        if mine.refused:
            units.save(out, mine, units.result(mine, REJECTED, mine.refused))
        else:
            try:
                local.grade([mine], [key], 1, lambda unit, found: units.save(out, unit, found))
            except local.CannotStart as why:
                return _cannot_start(why)
        found = units.load(out, mine)
    assert found is not None
    print(f"{_words(found)}: {layout.shown(units.file(out, mine))}")
    return FAILED if found["outcome"] == INFRA_ERROR else DONE


def _cannot_start(why: Exception) -> int:
    print(f"nothing more can be graded, which is no score:\n{why}", file=sys.stderr)
    return FAILED


def _papers(names: list[str], handed_in: list[intake.Submission]) -> list[str]:
    """The keys of the papers to grade. Raises UsageError, CatalogueError."""
    keys = [paper.key for paper in catalogue.load().select_written(names)]
    if names:
        return keys
    answered: set[str] = set()
    for submission in handed_in:
        if len(answered) < len(keys):
            texts = intake.take(submission, keys)
            answered |= {key for key, text in texts.items() if isinstance(text, str)}
    if not answered:
        raise UsageError("no submission holds an answer to any paper: <track>/<paper>.py")
    return [key for key in keys if key in answered]


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the cohort's folder: two that write there would grade everything twice."""
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another cohort is being graded into {out}") from None
        yield


@contextlib.contextmanager
def _progress(total: int, before: int) -> Iterator[Any]:
    """Say how far it is, how fast it goes and how long it will take; `step` counts a result."""
    begun = time.monotonic()
    state = {"done": 0, "said": begun}

    def words() -> str:
        done, seconds = state["done"], time.monotonic() - begun
        rate = done / seconds if seconds else 0.0
        left = f", {_duration((total - before - done) / rate)} left" if rate else ""
        return f"{before + done:.0f} of {total} units, {3600 * rate:,.0f} an hour{left}"

    if not sys.stderr.isatty():

        def step() -> None:
            state["done"] += 1
            if time.monotonic() - state["said"] > EVERY:
                state["said"] = time.monotonic()
                print(words(), file=sys.stderr, flush=True)

        yield step
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("grading"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task("", total=total, completed=before)

        def step() -> None:
            state["done"] += 1
            shown.update(bar, advance=1, description=words())

        yield step


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else "a minute"


def _show(out: Path, results: _Results, submissions: int, before: int) -> int:
    """Say what became of the cohort, in a few lines; returns the exit status."""
    from rich.console import Console

    from paperlings.sealed import sandbox

    count: Counter[str] = Counter()
    levels: set[str] = set()
    trouble = ""
    for found in results:
        count[found["outcome"]] += 1
        levels |= {found["sandbox"]} - {""}
        if found["outcome"] == INFRA_ERROR and not trouble:
            trouble = f"{found['submission']}, {found['paper']}: {found['reason']}"
    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False)
    console.print(
        f"{submissions} submissions, {count.total()} units: {count[GRADED]} graded, "
        f"{count[REJECTED]} rejected, {count[INFRA_ERROR]} infra errors"
        + (f"; {before} were graded before." if before else "."),
        style="bold",
    )
    for level in sorted(levels):
        style = "bold red" if level == sandbox.NONE else None
        console.print(f"sandbox: {sandbox.WORDS[level]}", style=style)
    if trouble:
        said = "Infra errors are no scores; the same command tries them again. The first:"
        console.print(said, style="red")
        console.print(f"  {trouble}", markup=False)
    for name, what in (
        ("cohort.html", "what fails most, and why"),
        ("grades.csv", "a row a submission"),
        ("units/", "a JSON a unit"),
    ):
        console.print(f"{layout.shown(out / name)}{'/' if name.endswith('/') else ''}: {what}")
    return FAILED if trouble else DONE


def _words(found: dict[str, Any]) -> str:
    if found["outcome"] == GRADED:
        return f"graded, {found['points']} of {found['max_points']} tasks pass"
    return f"{found['outcome'].replace('_', ' ')}: {found['reason']}"
