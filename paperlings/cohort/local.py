"""Grading on this machine: one warm process, which grades several units at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from paperlings import lanes
from paperlings.cohort import intake
from paperlings.cohort.grader import Ended, Grader
from paperlings.cohort.units import INFRA_ERROR, REJECTED, Unit, result

RETRIES = 2  # of a unit at which the machine or the kit failed
STARTS = 3  # of a grader that ends before it is ready
KILLED = 20  # of one that is killed before: by somebody else, or for want of memory

Done = Callable[[Unit, dict[str, Any]], None]


class CannotStart(RuntimeError):
    """No grader can be started here; the message holds its last words."""


def grade(units: Iterable[Unit], papers: list[str], workers: int, done: Done) -> None:
    """Grade the units, and call `done` as each ends. Raises CannotStart.

    What was under way when a grader died is tried again alone: who killed it, kills no other's.
    """
    waiting, alone = map(deque, apart(units))
    suspects = deque[Unit]()
    under_way: dict[str, Unit] = {}
    attempts: Counter[str] = Counter()
    grader = None

    def settle(unit: Unit, found: dict[str, Any]) -> None:
        if found["outcome"] == INFRA_ERROR and attempts[unit.key] <= RETRIES:
            suspects.append(unit)
        else:
            done(unit, {**found, "attempts": attempts[unit.key]})

    try:
        while waiting or alone or suspects or under_way:
            grader = grader or _start(papers, workers)
            try:
                queue, room = (waiting, workers) if waiting else (alone, 1)
                queue, room = (suspects, 1) if suspects else (queue, room)
                while queue and len(under_way) < room:
                    unit = queue.popleft()
                    try:
                        text = unit.text()
                    except intake.Refused as why:
                        done(unit, result(unit, REJECTED, str(why)))
                        continue
                    under_way[unit.key] = unit
                    attempts[unit.key] += 1
                    grader.send(unit, text)
                if under_way:
                    found = grader.receive()
                    settle(under_way.pop(found["key"]), found)
            except Ended as why:
                grader.close()
                grader = None
                for unit in under_way.values():
                    settle(unit, result(unit, INFRA_ERROR, str(why)))
                under_way.clear()
    finally:
        if grader:
            grader.close()


def apart(units: Iterable[Unit]) -> tuple[list[Unit], list[Unit]]:
    """The units that may run side by side on this machine, and those that use its GPU: whoever runs
    beside them disturbs the clock, so they come last, one at a time.
    """
    found: tuple[list[Unit], list[Unit]] = [], []
    for unit in units:
        found[unit.needs_gpu and not lanes.why_not_gate()].append(unit)
    return found


def _start(papers: list[str], workers: int) -> Grader:
    ended: Counter[bool] = Counter()
    while True:
        try:
            return Grader(papers, workers)
        except Ended as why:
            ended["SIGKILL" in str(why)] += 1
            if ended[False] >= STARTS or ended[True] >= KILLED:
                raise CannotStart(str(why)) from None
