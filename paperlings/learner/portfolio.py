"""The portfolio: what a learner has done and thought, on one page to show, help owned up to."""

from __future__ import annotations

from dataclasses import dataclass

from paperlings import expected, layout, pages
from paperlings.learner import reading
from paperlings.learner.standing import COMPLETE, EDITED, Standing, Standings, is_begun
from paperlings.verdict import PASSED


@dataclass(frozen=True)
class Entry:
    """What there is to show of one paper.

    facts: in words, by label.  figure: of the claim, "" where it did not pass.  law: what the
    figure shows.  log: as HTML.
    """

    standing: Standing
    facts: dict[str, str]
    figure: str
    law: str
    log: str


def page(standings: Standings) -> str:
    """The portfolio as one self-contained HTML page."""
    entries = [_entry(standing) for standing in standings.values() if _is_begun(standing)]
    dones = [standing.done for standing in standings.values()]
    tasks = [status for s in standings.values() for status in _verdicts(s).values()]
    return pages.render(
        "portfolio.html.j2",
        entries=entries,
        totals={
            "papers complete": sum(s.state == COMPLETE for s in standings.papers),
            "tasks passed": tasks.count(PASSED),
            "papers logged": sum(s.logged for s in standings.papers),
            "hints taken": sum(sum(done.hints.values()) for done in dones),
            "solutions seen before passing": sum(bool(done.gave_up) for done in dones),
        },
    )


def _is_begun(standing: Standing) -> bool:
    done = standing.done
    return bool(is_begun(done) or done.hints or done.gave_up or standing.log)


def _verdicts(standing: Standing) -> dict[str, str]:
    """Those on the exercise as it is now."""
    return {} if standing.state == EDITED else standing.done.tasks


def _entry(standing: Standing) -> Entry:
    key, log = standing.paper.key, standing.log
    picture = layout.REPORTS / "figures" / f"{key}.png"
    shown = _passes_claim(standing) and picture.exists()
    laws = [test.law for test in expected.of(key).values() if test.claim] if shown else []
    return Entry(
        standing,
        _facts(standing),
        pages.inside(picture) if shown else "",
        " ".join(laws),
        reading.as_html(log, standing.paper) if log else "",
    )


def _passes_claim(standing: Standing) -> bool:
    return standing.state != EDITED and standing.done.claim == PASSED


def _facts(standing: Standing) -> dict[str, str]:
    done, log = standing.done, standing.log
    statuses = list(done.tasks.values())
    facts = {}
    if is_begun(done):
        facts["tasks"] = f"{statuses.count(PASSED)} of {len(statuses)} pass, judged {done.judged}"
        if standing.state == EDITED:
            facts["tasks"] += "; the file has been edited since"
    if done.claim and facts:
        name = "gate" if layout.is_kernel(standing.paper.key) else "claim"
        facts[name] = done.claim + ("; of an older file" if standing.state == EDITED else "")
    if done.passed:
        facts["complete"] = f"for the first time {done.passed}"
    hints = [f"{count} for {task}" for task, count in done.hints.items() if count]
    if facts or hints:
        facts["hints"] = ", ".join(hints) or "none"
    if done.gave_up:
        facts["solution"] = f"seen {done.gave_up}, before all tasks passed"
    if log:
        count = sum(log.passes)
        sentences = f"{log.sentences} sentence{'s' * (log.sentences != 1)}"
        facts["log"] = f"{sentences}, {count} of {len(log.passes)} passes"
        if log.empty:
            facts["log"] += f"; still empty: {', '.join(log.empty)}"
    return facts
