"""The roadmap: what to read next and how far the learner is, on one screen and two pages."""

from __future__ import annotations

import sys

from paperlings import catalogue, files, layout, pages
from paperlings.learner import graph, plan, portfolio, standing
from paperlings.learner.plan import DERIVE, Ask, Phase
from paperlings.learner.standing import (
    BEGUN,
    COMPLETE,
    EDITED,
    OPEN,
    UNWRITTEN,
    WAITING,
    Standing,
    Standings,
)
from paperlings.lines import labelled, wrapped

BAR = 20  # characters
LISTED = 2  # lines, at most, of names of one kind
LEGEND = {
    COMPLETE: "complete (a square: the solution was seen first)",
    EDITED: "edited since it was judged",
    BEGUN: "begun",
    OPEN: "open",
    WAITING: "another paper first",
    UNWRITTEN: "no exercise yet: read it, and log it",
}


def roadmap() -> int:
    """Print the roadmap, and write reports/roadmap.html and reports/portfolio.html;
    returns the exit status. Raises CatalogueError where the plan or the catalogue is wrong.
    """
    papers = catalogue.load()
    phases = plan.load(papers)
    standings = standing.load(papers)
    for note in standings.notes:
        print(note, file=sys.stderr)
    written = {"roadmap": page(standings, phases), "portfolio": portfolio.page(standings)}
    for name, text in written.items():
        files.write(layout.REPORTS / f"{name}.html", text)
    print("\n".join(screen(standings, phases)))
    return 0


def screen(standings: Standings, phases: list[Phase]) -> list[str]:
    """The roadmap in lines of 80 columns: the phases, the current month, and what opens next."""
    phase, month = standings.month(phases)
    months = sum(len(p.months) for p in phases)
    lines = [_headline(standings), ""]
    lines += [_row(p, standings, p == phase) for p in phases]
    if standings.kernels:
        done = sum(s.state == COMPLETE for s in standings.kernels)
        lines.append(f"    {'kernels':<20}{done:>2} of {len(standings.kernels)}")
    lines += ["", f"month {month.number} of {months}: {month.title}"]
    for ask in month.asks:
        mark = "x" if standings.is_done(ask) else " "
        lines += wrapped(f"{ask.says} ({_where(ask)})", f"  [{mark}] ")
    lines += ["", f"phase {phase.number}, {phase.name}"]
    lines += _listing(standings, phase)
    lines += labelled("pages", "reports/roadmap.html, reports/portfolio.html")
    return lines


def page(standings: Standings, phases: list[Phase]) -> str:
    """The roadmap as one self-contained HTML page."""
    phase, month = standings.month(phases)
    hours = {key: s.paper.hours for key, s in standings.items()}
    return pages.render(
        "roadmap.html.j2",
        standings=standings,
        phase=phase,
        month=month,
        months=[(p, m) for p in phases for m in p.months],
        complete=sum(s.state == COMPLETE for s in standings.papers),
        hours=_hours(standings.papers),
        hours_done=_hours([s for s in standings.papers if s.state == COMPLETE]),
        hours_of=lambda month: sum(hours[key] for key in month.papers),
        legend=LEGEND,
        short=_short,
        where=_where,
        wide=graph.draw(standings, phases, columns=6, width=1248, margin=34),
        narrow=graph.draw(standings, phases, columns=1, width=358, margin=110),
        logs=[s for s in standings.papers if s.log],
        first=month.papers[0].split("/")[1],
    )


def _where(ask: Ask) -> str:
    """The paper of which a checkpoint asks something, and who says whether it is done."""
    return ask.key.split("/")[1] + (", by hand" if ask.kind == DERIVE else "")


def _headline(standings: Standings) -> str:
    papers = standings.papers
    complete = [s for s in papers if s.state == COMPLETE]
    begun = sum(s.state in (BEGUN, EDITED) for s in papers)
    hours = f"{_hours(complete):g} of {_hours(papers):g} hours"
    return (
        f"{len(complete)} of {len(papers)} papers complete, {begun} begun, "
        f"{sum(s.logged for s in papers)} logged; {hours}"
    )


def _row(phase: Phase, standings: Standings, current: bool) -> str:
    mine = standings.of_phase(phase.number)
    complete = [s for s in mine if s.state == COMPLETE]
    filled = round(BAR * _hours(complete) / _hours(mine))
    bar = "#" * filled + "-" * (BAR - filled)
    hours = f"{_hours(complete):g} of {_hours(mine):g} h"
    numbers = sorted({phase.months[0].number, phase.months[-1].number})
    months = f"month {'-'.join(map(str, numbers))}"
    name = f"{'>' if current else ' '} {phase.number} {phase.name:<16}"
    return f"{name}{len(complete):>2} of {len(mine):<3} [{bar}] {hours:<14} {months}"


def _listing(standings: Standings, phase: Phase) -> list[str]:
    """The papers of a phase by state, and what is open or opens next elsewhere."""
    mine = standings.of_phase(phase.number)
    opened = [s for s in standings.values() if s.state == OPEN]
    parts = {
        "complete": [_named(s) for s in mine if s.state == COMPLETE],
        "begun": [_named(s, s.says) for s in standings.values() if s.state in (BEGUN, EDITED)],
        "open": [_named(s, ", ".join(_size(s))) for s in opened if s in mine],
        "elsewhere": [_named(s) for s in opened if s not in mine],
        "opens next": [_named(s, s.says) for s in standings.values() if s.state == WAITING],
    }
    lines = []
    for label, names in parts.items():
        if names:
            lines += _listed(label, names)
    if unwritten := sum(s.state == UNWRITTEN for s in mine):
        lines += labelled(
            "unwritten", f"{unwritten} more to read and log; they have no exercise yet"
        )
    return lines


def _listed(label: str, names: list[str]) -> list[str]:
    """As many names as fit in LISTED lines; the others are counted."""
    for count in range(len(names), 0, -1):
        more = f" and {len(names) - count} more" if count < len(names) else ""
        lines = labelled(label, ", ".join(names[:count]) + more)
        if len(lines) <= LISTED:
            break
    return lines


def _named(standing: Standing, detail: str = "") -> str:
    name = layout.called(standing.paper.key)
    return f"{name} ({detail})" if detail else name


def _short(standing: Standing) -> str:
    """The second line of a node: state, hours, difficulty, and whether there is a log."""
    words = {
        EDITED: "edited",
        WAITING: "waiting",
        UNWRITTEN: "no exercise",
        COMPLETE: "solution seen" if standing.done.gave_up else "complete",
    }
    parts = [words.get(standing.state, standing.says), *_size(standing)]
    if standing.log:
        parts.append("logged" if standing.logged else "log begun")
    return " \u00b7 ".join(parts)


def _size(standing: Standing) -> list[str]:
    """The hours, where they are known, and the difficulty."""
    paper = standing.paper
    hours = [f"{paper.hours:g} h"] if paper.hours else []
    return [*hours, f"{paper.difficulty}/{catalogue.HARDEST}"]


def _hours(standings: list[Standing]) -> float:
    return sum(s.paper.hours for s in standings)
