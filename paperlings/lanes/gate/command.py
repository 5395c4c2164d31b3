"""`paperlings gates`: kernels through the gate of this machine, and what came of it on paper."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from paperlings import catalogue, files, lanes, layout
from paperlings.lanes.gate import evidence, figures, process
from paperlings.lanes.gate.child import contests_file
from paperlings.lanes.gate.devices import GIB
from paperlings.lanes.gate.protocol import called
from paperlings.lanes.gate.results import AGAIN, ROOF, TODO, Report, Result
from paperlings.lanes.gate.statistics import FAIL, PASS, UNDECIDED

SECONDS = 540.0  # for everything
LEAST = 15.0  # with less left, a kernel is not begun
FAILED, BROKEN = 1, 3
COLOUR = {PASS: "green", FAIL: "red", TODO: "yellow", UNDECIDED: "cyan"}


def gates(
    names: list[str],
    root: Path,
    out: Path | None = None,
    seconds: float = SECONDS,
    device: str = "cuda",
) -> int:
    """Measure the kernels that `names` mean (all without) under `root`, and print a table of each.

    out: a folder for everything that is written, in place of reports/ and kernels/evidence/.
    Exit status: 1 where a contest failed, 3 where the kit did, else 0, also where this machine
    cannot tell.
    Raises CatalogueError for a name that means nothing.
    """
    keys = _selected(names)
    kits = root == layout.SOLUTIONS
    console = _console()
    reason = lanes.why_not_gate() if device == "cuda" else ""
    reports: list[Report] = []
    if reason:
        console.print(f"unverified: {reason}")
    end = time.monotonic() + seconds
    for number, key in enumerate([] if reason else keys):
        share = (end - time.monotonic()) / (len(keys) - number)
        if share < LEAST:
            console.print(f"{key}: not measured, no time was left")
            continue
        reports.append(process.measure(key, root, share, device=device))
        show(reports[-1], console)
        # at once: whatever ends the command, what was measured is there
        _save(reports, kits, out or layout.reports(root), out or evidence.FOLDER)
    if kits and out is None:
        evidence.write_readme()
    if any(report.trouble for report in reports):
        return BROKEN
    return FAILED if any(r.verdict == FAIL for report in reports for r in report.results) else 0


def _selected(names: list[str]) -> list[str]:
    known = [
        key for key in filter(layout.is_kernel, layout.written()) if contests_file(key).exists()
    ]
    short = {key.partition("/")[2]: key for key in known}
    wanted = [Path(name).stem for name in names if name not in ("", layout.KERNELS)]
    for name in wanted:
        if name not in short:
            there = ", ".join(short) or "none"
            raise catalogue.CatalogueError(f"no kernel {name!r} with a gate; there are: {there}")
    return [short[name] for name in wanted] if wanted else known


def _save(reports: list[Report], kits: bool, folder: Path, proof: Path) -> None:
    plain = [report.plain() for report in reports]
    files.write(folder / "gates.json", json.dumps(plain) + "\n")
    figures.roofline(reports, folder / "roofline.png")
    if kits and any(report.machine for report in reports):
        evidence.save(reports, proof)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 80, highlight=False)


def show(report: Report, console: Any) -> None:
    """Print the table of a kernel, and of what did not pass, why."""
    from rich import box
    from rich.table import Table

    console.print(f"\n{report.impl} on {report.machine.get('gpu', 'no device')}", markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("contest", "time", "how many times as long others took", "roof", "verdict"):
        table.add_column(heading)
    for result in report.results:
        table.add_row(*_cells(result))
    console.print(table)
    for result in report.results:
        if result.why:
            console.print(f"{result.name}: {result.why}", markup=False)
        if result.question:
            console.print(f"  {result.question}", markup=False)
        if any(result.peak.values()):
            peaks = (f"{name} {peak / GIB:.3g}" for name, peak in result.peak.items())
            console.print(f"{result.name}: GiB of memory: {', '.join(peaks)}", markup=False)
        for name, reason in result.left_out.items():
            console.print(f"{result.name}: {called(name)} is left out: {reason}", markup=False)
    if report.trouble:
        console.print(report.trouble, markup=False, style="red")


def _cells(result: Result) -> list[str]:
    bars, shown = result.bars, {n: r for n, r in result.ratios.items() if n != AGAIN}
    others = [f"{n} {r}, bar {bars[n]:g}" for n, r in shown.items() if n in bars]
    others += [f"{n} {r.median:.3g}" for n, r in shown.items() if n not in bars]
    verdict = f"[{COLOUR[result.verdict]}]{result.verdict}[/]"
    time_ = f"{result.seconds * 1e3:.3g} ms" if result.seconds else "-"
    roof = f"{result.of_roof.median:.0%}" if result.of_roof else "-"
    roof += f", bar {bars[ROOF]:.0%}" if ROOF in bars else ""
    return [result.name, time_, "\n".join(others) or "-", roof, verdict]
