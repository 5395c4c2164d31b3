"""Your code beside the solution: the text of both, whether they agree, and what they do and cost.

The solution is shown to whom it can spoil nothing: after a pass, or to somebody who gives up,
which the record of progress keeps.
"""

from __future__ import annotations

import sys
from typing import Any

from paperlings import catalogue, files, layout, pages, progress, runner, verdict
from paperlings.catalogue import Paper
from paperlings.learner import pieces, trial
from paperlings.learner.pieces import Piece, Pieces
from paperlings.learner.trial import SOLUTION, YOURS, Trial
from paperlings.lines import labelled, waiting, wrapped
from paperlings.verdict import PASSED, WIDTH

SHOWN, REFUSED, BROKEN = 0, 1, 3  # exit statuses; the last where the kit itself is at fault
SIDES = {YOURS: "yours", SOLUTION: "the solution's"}
COUNTS = ("operators", "made", "largest")  # of a paper's task
TRAFFIC = ("launches", "bytes", "flops")  # of a kernel's
ALIKE = 0.1  # times that differ by less are the same
MOST = 6  # operators that are named

NOTE = (
    "Each task was called as in the example that its tests have; left of a colon are your "
    "numbers, right of it the solution's. operators: of torch, how many ran. made, largest: the "
    "elements of all tensors made, and of the largest. time: of the processor, yours in terms of "
    "the solution's."
)
KERNEL_NOTE = (
    "Each task was called as in the example that its tests have; left of a colon are your "
    "numbers, right of it the solution's. bytes: of the sectors that move. flops: of tl.dot. The "
    "kernels were interpreted, so their time would say nothing; nox -s gates measures it."
)


def compare(name: str, *, give_up: bool = False) -> int:
    """Show every task of a paper as the learner and as the solution has it, on the screen and as a
    page in reports/compare/; returns the exit status, 1 before all tasks pass unless `give_up`.

    Raises CatalogueError for a name that means no paper.
    """
    paper = catalogue.load().select_one(name)
    record = progress.load()
    for note in record.notes:
        print(note, file=sys.stderr)
    if not record.is_finished(paper.key) and not (give_up and record.is_current(paper.key)):
        status = _judge(paper.key, give_up)
        if status != SHOWN:
            return status
    state = _state(paper.key, give_up)
    found = pieces.of(paper.key)
    with waiting("trying both"):
        runner.warm()
        trials = trial.run(paper.key)
    _show(paper, state, found, trials)
    page = layout.REPORTS / "compare" / f"{paper.key}.html"
    files.write(page, _page(paper, state, found, trials))
    print(f"\npage: {layout.shown(page)}")
    return SHOWN


# ---- who may see it


def _judge(key: str, give_up: bool) -> int:
    """Judge the paper without its claim; returns SHOWN where the solution may be shown."""
    hashes = {key: progress.content_hash(key)}
    job = runner.Job(key, layout.EXERCISES, layout.reports(layout.EXERCISES), claims=False)
    with waiting("judging"):
        runner.warm()
        run = runner.run([job])[0]
    if run.trouble:
        print(f"{key} could not be judged; this is the kit's fault:\n{run.trouble}")
        return BROKEN
    found = run.verdict()
    for note in progress.record([found], hashes):
        print(note, file=sys.stderr)
    if give_up or found.count(PASSED) == len(found.tasks):
        return SHOWN
    print("\n".join([*verdict.screen(found), "", "The solution is shown when all tasks pass."]))
    print(f"To see it now, and have that noted: nox -s compare -- {key} --give-up")
    return REFUSED


def _state(key: str, give_up: bool) -> str:
    """When the paper passed or was given up, in words; giving up is noted before anything shows."""
    with progress.changing() as record:
        done = record.of(key)
        if give_up and not done.passed:
            done.gave_up = done.gave_up or progress.now()
    said = [f"All tasks passed on {done.passed}."] if done.passed else []
    said += ["Not all do now."] if done.passed and not record.is_finished(key) else []
    said += [f"You gave up on {done.gave_up}; progress.json keeps that."] if done.gave_up else []
    return " ".join(said)


# ---- what there is to say


def _facts(tried: Trial | None) -> list[tuple[str, str]]:
    """What came of a task, by label, besides its numbers."""
    if tried is None:
        return [("answer", "not tried: its tests have no example of it")]
    if tried.trouble:
        return [("answer", tried.trouble)]
    same = f"the same, to {tried.apart:.1e}" if tried.apart else "the same, to the last bit"
    only = [
        f"only {whose}: {_some(tried.alone[side])}"
        for side, whose in SIDES.items()
        if tried.alone.get(side)
    ]
    said = [("answer", tried.difference or same)]
    return said + ([("operators", "; ".join(only))] if only else [])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more


def _numbers(key: str, trials: dict[str, Trial]) -> list[list[str]]:
    """A row a task: its name, its answer in a word, its measures and its time."""
    rows = []
    for task, tried in trials.items():
        if tried.trouble:
            rows.append([task, "-"])
            continue
        answer = (
            "differs" if tried.difference else f"to {tried.apart:.0e}" if tried.apart else "same"
        )
        yours, solution = tried.measures[YOURS], tried.measures[SOLUTION]
        names = TRAFFIC if layout.is_kernel(key) else COUNTS
        cells = [_pair(f"{yours[name]:,.0f}", f"{solution[name]:,.0f}") for name in names]
        rows.append([task, answer, *cells, *([_times(tried)] if tried.ratio else [])])
    return rows


def _headings(key: str) -> list[str]:
    return ["answer", *TRAFFIC] if layout.is_kernel(key) else ["answer", *COUNTS, "time"]


def _note(key: str) -> str:
    return KERNEL_NOTE if layout.is_kernel(key) else NOTE


def _pair(yours: str, solution: str) -> str:
    return yours if yours == solution else f"{yours} : {solution}"


def _times(tried: Trial) -> str:
    """The ratio of the times, where it is another than 1 and not by chance."""
    low, middle, high = tried.ratio
    if low <= 1 <= high or abs(middle - 1) < ALIKE:
        return "same"
    return f"x {middle:.2g}"


# ---- the screen


def _show(paper: Paper, state: str, found: Pieces, trials: dict[str, Trial]) -> None:
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    for text in filter(None, (f"{paper.key}: {paper.title}", state, found.trouble)):
        console.print("\n".join(wrapped(text)), markup=False)
    for task, both in found.tasks.items():
        console.print(f"\n{task}", style="bold")
        for piece in both:
            if len(both) > 1:
                console.print(f"  {piece.name}")
            _show_piece(console, piece)
        for label, text in _facts(trials.get(task)):
            console.print("\n".join(labelled(label, text)), markup=False)
    for piece in found.own:
        console.print(f"\n{piece.name}, only in your file", style="bold")
        console.print(
            Padding(_block(console, piece.yours, console.width - 4), (0, 0, 0, 4), expand=False)
        )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold")
    for heading in _headings(paper.key):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in _numbers(paper.key, trials):
        table.add_row(*row)
    console.print()
    console.print(table)
    console.print("\n".join(wrapped(_note(paper.key))), style="dim", markup=False)


def _show_piece(console: Any, piece: Piece) -> None:
    """Both versions side by side where there is room, else one below the other: half a narrow
    terminal is too little for code.
    """
    from rich import box
    from rich.padding import Padding
    from rich.table import Table

    if piece.is_same:
        console.print("  as the solution has it", style="dim")
        return
    sides = {"yours": piece.yours, "solution": piece.solution}
    wide = [max(map(len, [label, *lines])) for label, lines in sides.items()]
    if sum(wide) + 7 <= console.width:
        table = Table(*sides, box=box.MINIMAL, show_edge=False, header_style="dim")
        table.add_row(*(_block(console, lines, console.width) for lines in sides.values()))
        console.print(Padding(table, (0, 0, 0, 2), expand=False))
        return
    for label, lines in sides.items():
        console.print(f"  {label}", style="dim")
        console.print(
            Padding(_block(console, lines, console.width - 4), (0, 0, 0, 4), expand=False)
        )


def _block(console: Any, lines: list[str], width: int) -> Any:
    """Code in colour; a line that does not fit goes on below, further in."""
    from rich.syntax import Syntax
    from rich.text import Text

    if not lines:
        return Text("nothing yet", style="dim")
    syntax = Syntax("", "python", theme="ansi_dark", background_color="default")
    rows = []
    for line in syntax.highlight("\n".join(lines)).split():
        lead = len(line.plain) - len(line.plain.lstrip())
        if len(line) > width:
            first, *others = line[lead:].wrap(console, max(width - lead - 4, 20))
            rows += [Text(" " * lead) + first, *(Text(" " * (lead + 4)) + row for row in others)]
        else:
            rows.append(line)
    return Text("\n").join(rows)


# ---- the page


def _page(paper: Paper, state: str, found: Pieces, trials: dict[str, Trial]) -> str:
    return pages.render(
        "compare.html.j2",
        paper=paper,
        state=state,
        date=progress.now(),
        trouble=found.trouble,
        tasks={
            task: {"pieces": [_marked(piece) for piece in both], "facts": _facts(trials.get(task))}
            for task, both in found.tasks.items()
        },
        own=[_marked(piece) for piece in found.own],
        headings=_headings(paper.key),
        rows=_numbers(paper.key, trials),
        note=_note(paper.key),
    )


def _marked(piece: Piece) -> dict[str, Any]:
    """A piece for the page: of every line its depth, whether the other version has it, and its
    tokens.
    """
    versions = [
        [
            {
                "depth": len(line) - len(line.lstrip()),
                "both": piece.is_same or i in same,
                "tokens": tokens,
            }
            for i, (line, tokens) in enumerate(zip(lines, _tokens(lines), strict=True))
        ]
        for lines, same in zip((piece.yours, piece.solution), piece.in_both, strict=True)
    ]
    return {
        "name": piece.name,
        "same": piece.is_same,
        "yours": versions[0],
        "solution": versions[1],
    }


def _tokens(lines: list[str]) -> list[list[tuple[str, str]]]:
    """The kind and the text of every token, by line."""
    from pygments import token as tokens  # type: ignore[import-untyped]
    from pygments.lexers.python import PythonLexer  # type: ignore[import-untyped]

    kinds = {
        tokens.Comment: "comment",
        tokens.Keyword: "keyword",
        tokens.Number: "number",
        tokens.Operator.Word: "keyword",
        tokens.String: "string",
    }
    found: list[list[tuple[str, str]]] = [[]]
    for token, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens("\n".join(lines)):
        kind = next((name for known, name in kinds.items() if token in known), "")
        for i, part in enumerate(text.split("\n")):
            if i:
                found.append([])
            if part:
                found[-1].append((kind, part))
    return found[: len(lines)]
