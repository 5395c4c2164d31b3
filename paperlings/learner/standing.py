"""Where a learner stands with every paper: what is complete, what is open, what waits for what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from paperlings import UsageError, layout, progress
from paperlings.catalogue import Catalogue, Paper
from paperlings.learner import reading
from paperlings.learner.plan import BUILD, DERIVE, Ask, Month, Phase
from paperlings.learner.reading import Log
from paperlings.progress import Done, Progress
from paperlings.verdict import FAILED, PASSED

COMPLETE, EDITED, BEGUN, OPEN, WAITING, UNWRITTEN = STATES = (
    "complete",
    "edited",
    "begun",
    "open",
    "waiting",
    "unwritten",
)


@dataclass(frozen=True)
class Standing:
    """One paper, and how far the learner is with it.

    state: COMPLETE, all tasks pass; EDITED, since it was judged; BEGUN, some task was judged and
    was no stub; OPEN; WAITING, for the papers `after`; UNWRITTEN, it has no exercise yet.
    """

    paper: Paper
    state: str
    done: Done
    log: Log | None
    after: tuple[str, ...]

    @property
    def says(self) -> str:
        """The state in a few words."""
        if self.state == COMPLETE:
            return "complete, solution seen" if self.done.gave_up else "complete"
        if self.state == EDITED:
            return "edited since it passed" if self.done.passed else "edited since it was judged"
        if self.state == BEGUN:
            statuses = list(self.done.tasks.values())
            return f"{statuses.count(PASSED)} of {len(statuses)} tasks"
        if self.state == WAITING:
            return f"after {', '.join(self.after)}"
        return "not written yet" if self.state == UNWRITTEN else "open"

    @property
    def logged(self) -> bool:
        """Whether the log answers all four questions."""
        return self.log is not None and not self.log.empty


class Standings(dict[str, Standing]):
    """Standings by key, in learning order. notes: what there is to say about the files."""

    notes: list[str]

    def of_phase(self, number: int) -> list[Standing]:
        """The papers of a phase, without kernels."""
        return [s for s in self.papers if s.paper.phase == number]

    @property
    def papers(self) -> list[Standing]:
        return [s for key, s in self.items() if not layout.is_kernel(key)]

    @property
    def kernels(self) -> list[Standing]:
        return [s for key, s in self.items() if layout.is_kernel(key)]

    def is_done(self, ask: Ask) -> bool:
        """Whether the learner can do what a checkpoint asks, as far as the kit sees,
        or as they say themselves where only they can tell.
        """
        standing = self[ask.key]
        if ask.kind == DERIVE:
            return standing.log is not None and standing.log.passes[-1]
        if standing.state not in (COMPLETE, BEGUN):  # there is no verdict on the file as it is
            return False
        if ask.kind == BUILD:
            tasks = ask.tasks or tuple(standing.done.tasks)
            return all(standing.done.tasks.get(task) == PASSED for task in tasks)
        return standing.done.claim == PASSED

    def month(self, phases: Iterable[Phase]) -> tuple[Phase, Month]:
        """The month of the paper that was judged last and is not complete, else of the first paper
        that is open, else of the first that is neither complete nor logged, else the last month.
        """
        begun = [s for s in self.papers if s.state in (BEGUN, EDITED)]
        begun.sort(key=lambda s: s.done.judged, reverse=True)
        opened = [s for s in self.papers if s.state == OPEN]
        unread = [s for s in self.papers if s.state != COMPLETE and not s.logged]
        months = {key: (p, m) for p in phases for m in p.months for key in m.papers}
        found = [*begun, *opened, *unread, *self.papers[-1:]]
        return months[found[0].paper.key]


def load(papers: Catalogue) -> Standings:
    """Put together what progress.json and the logs say."""
    record = progress.load()
    written = set(layout.written())
    standings = Standings()
    standings.notes = list(record.notes)
    by_name = {paper.name: paper for key, paper in papers.items() if not layout.is_kernel(key)}
    for key, paper in papers.items():
        done = record.get(key, Done())
        after = _unfinished(paper, by_name, written, record)
        state = _state(key, done, written, record, bool(after))
        standings[key] = Standing(paper, state, done, _log(key, standings.notes), after)
    known = {reading.path_of(key) for key in papers}
    strays = sorted(set(reading.LOGS.glob("*/*.md")) - known)
    standings.notes += [f"{layout.shown(path)} is the log of no paper" for path in strays]
    return standings


def is_begun(done: Done) -> bool:
    """Whether some task was judged and was no stub; one that no machine verified says nothing."""
    return bool({PASSED, FAILED} & set(done.tasks.values()))


def _state(key: str, done: Done, written: set[str], record: Progress, waits: bool) -> str:
    if key not in written:
        return UNWRITTEN
    if record.is_finished(key):
        return COMPLETE
    if is_begun(done):
        return BEGUN if record.is_current(key) else EDITED
    return WAITING if waits else OPEN


def _log(key: str, notes: list[str]) -> Log | None:
    path = reading.path_of(key)
    if layout.is_kernel(key) or not path.exists():
        return None
    try:
        return reading.read(path)
    except UsageError as error:
        notes.append(str(error))
        return None


def _unfinished(
    paper: Paper, by_name: dict[str, Paper], written: set[str], record: Progress
) -> tuple[str, ...]:
    """The papers to complete first, by name. What was complete once stays so, and one without an
    exercise holds nothing up: what counts in its place is what it needs itself.
    """
    found: dict[str, None] = {}
    for need in (by_name[name] for name in paper.needs):
        if need.key not in written:
            found |= dict.fromkeys(_unfinished(need, by_name, written, record))
        elif not record.get(need.key, Done()).passed:
            found[need.name] = None
    return tuple(found)
