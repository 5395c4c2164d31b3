"""The papers and their prerequisites as a drawing: where every node lies and how the lines run.

Columns from left to right, phases from top to bottom in them, tracks below phases. A phase begins
a column unless the rest of the last one holds it whole. Lines to other columns run from side to
side, those within a column in its left margin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from paperlings.learner.plan import Phase
from paperlings.learner.standing import Standing, Standings

NODE, NEED, GAP = 36, 12, 6  # the height of a node, of each need in it, and the space below
PHASE, TRACK = 34, 22  # the height of a heading
TOP = 4


@dataclass(frozen=True)
class Node:
    """A paper; x and y are its upper left corner."""

    standing: Standing
    x: float
    y: float

    @property
    def height(self) -> float:
        return _height(self.standing)


@dataclass(frozen=True)
class Heading:
    """The name of a phase or a track; x and y are where its base line begins."""

    text: str
    kind: str
    x: float
    y: float


@dataclass(frozen=True)
class Line:
    """From a paper to one that needs it, as an SVG path. done: the first is complete."""

    path: str
    done: bool


@dataclass(frozen=True)
class Drawing:
    width: float
    height: float
    node_width: float
    nodes: list[Node]
    headings: list[Heading]
    lines: list[Line]


@dataclass(frozen=True)
class _Group:
    """The papers of one track in one phase."""

    phase: Phase
    track: str
    papers: tuple[Standing, ...]

    @property
    def height(self) -> float:
        return TRACK + sum(_height(standing) + GAP for standing in self.papers)


def draw(
    standings: Standings, phases: list[Phase], columns: int, width: float, margin: float
) -> Drawing:
    """Draw all papers in so many columns; `margin` is the space to the left of each."""
    groups = list(_groups(standings, phases))
    capacity = max(PHASE + group.height for group in groups)
    while len(filled := _fill(groups, capacity)) > columns:
        capacity += NODE / 2
    step = (width - 1) / columns
    node_width = step - margin
    nodes: dict[str, Node] = {}
    headings: list[Heading] = []
    heights: list[float] = []
    for i, column in enumerate(filled):
        x, y = i * step + margin, float(TOP)
        before: Phase | None = None
        for group in column:
            if group.phase != before:
                text = f"{group.phase.number} {group.phase.name}"
                if any(heading.text == text for heading in headings):
                    text = f"{group.phase.number} continued"
                headings.append(Heading(text, "phase", x, y + 22))
                y += PHASE
            before = group.phase
            headings.append(Heading(group.track, "track", x, y + 14))
            y += TRACK
            for standing in group.papers:
                nodes[standing.paper.key] = Node(standing, x, y)
                y += _height(standing) + GAP
        heights.append(y)
    lines = [
        Line(_path(nodes[start], nodes[end], node_width, margin, max(heights)), done)
        for start, end, done in _needs(standings)
    ]
    return Drawing(width, max(heights), node_width, list(nodes.values()), headings, lines)


def _height(standing: Standing) -> float:
    return NODE + NEED * len(standing.paper.needs)


def _groups(standings: Standings, phases: list[Phase]) -> Iterator[_Group]:
    for phase in phases:
        mine = [s for s in standings.values() if s.paper.phase == phase.number]
        for track in dict.fromkeys(s.paper.track for s in mine):
            yield _Group(phase, track, tuple(s for s in mine if s.paper.track == track))


def _fill(groups: Iterable[_Group], capacity: float) -> list[list[_Group]]:
    """Deal the groups out to columns that hold so much."""
    columns: list[list[_Group]] = [[]]
    left = capacity
    groups = list(groups)
    for i, group in enumerate(groups):
        rest = [g for g in groups[i:] if g.phase == group.phase]
        begins = i == 0 or groups[i - 1].phase != group.phase
        needed = PHASE + sum(g.height for g in rest) if begins else group.height
        if needed > left and columns[-1]:
            columns.append([])
            left = capacity
        left -= group.height + (PHASE if begins or not columns[-1] else 0)
        columns[-1].append(group)
    return columns


def _needs(standings: Standings) -> Iterator[tuple[str, str, bool]]:
    """Every prerequisite: the keys of the two papers, and whether the first was complete once."""
    by_name = {s.paper.name: s for s in standings.papers}
    for key, standing in standings.items():
        for need in standing.paper.needs:
            yield by_name[need].paper.key, key, bool(by_name[need].done.passed)


def _path(start: Node, end: Node, node_width: float, margin: float, height: float) -> str:
    y1, y2 = start.y + start.height / 2, end.y + end.height / 2
    if start.x == end.x:
        # the longer, the farther out
        out = 8 + (margin - 12) * min(1.0, (abs(y2 - y1) / height) ** 0.5)
        x = start.x
        return f"M{x:.0f} {y1:.0f}C{x - out:.0f} {y1:.0f} {x - out:.0f} {y2:.0f} {x:.0f} {y2:.0f}"
    if start.x < end.x:
        x1, x2, bend = start.x + node_width, end.x, margin
    else:
        x1, x2, bend = start.x, end.x + node_width, -margin
    return f"M{x1:.0f} {y1:.0f}C{x1 + bend:.0f} {y1:.0f} {x2 - bend:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
