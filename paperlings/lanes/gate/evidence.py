"""What has been measured of the kit's own kernels: a file a GPU, and the README's table of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from paperlings import files, layout
from paperlings.lanes.gate.results import AGAIN, COMPILED, EAGER, KIT, Report, Result, fingerprint

FOLDER = layout.HOME / layout.KERNELS / "evidence"
README = layout.HOME / "README.md"
BEGIN, END = "<!-- gates -->", "<!-- /gates -->"  # around what `readme` writes
NOTHING = "No GPU has been measured yet, so nothing is said here about how fast the kernels are."


def save(reports: list[Report], folder: Path = FOLDER) -> Path:
    """Put reports of one GPU into its file, in place of earlier ones of the same kernels."""
    gpu = next(report.machine["gpu"] for report in reports if report.machine)
    path = folder / (re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json")
    known = {report.kernel: report for report in _read(path)} if path.exists() else {}
    known |= {report.kernel: report for report in reports if report.machine}
    # a line a kernel: nobody reads samples, but a difference should show whose they are
    lines = [json.dumps(known[key].plain()) for key in sorted(known)]
    files.write(path, "[\n" + ",\n".join(lines) + "\n]\n")
    return path


def load(folder: Path = FOLDER) -> list[Report]:
    """All reports of all GPUs."""
    return [report for path in sorted(folder.glob("*.json")) for report in _read(path)]


def readme(folder: Path = FOLDER) -> str:
    """The README's table of what was measured, or one sentence that nothing was."""
    reports = load(folder)
    if not any(report.results for report in reports):
        return NOTHING
    lines = [
        "| contest | GPU | time | eager torch | torch.compile | best peer | roof | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(report, result) for report in reports for result in report.results]
    machines = {
        f"{m['gpu']}: torch {m['torch']}, triton {m['triton']}, driver {m.get('driver', 'none')}, "
        f"{r.date}"
        for r in reports
        if (m := r.machine)
    }
    words = (
        "Numbers of others are how many times as long they took in the same run: the median over "
        "the rounds."
    )
    return "\n".join([*lines, "", words, *(f"{machine}." for machine in sorted(machines))])


def write_readme(path: Path = README, folder: Path = FOLDER) -> bool:
    """Bring the README's table up to date; whether it has a place for one."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        return False
    new = f"{before}{begin}\n{readme(folder)}\n{end}{after}"
    if new != text:
        files.write(path, new)
    return True


def _read(path: Path) -> list[Report]:
    return [Report.of(plain) for plain in json.loads(path.read_text(encoding="utf-8"))]


def _row(report: Report, result: Result) -> str:
    peers = {
        name: ratio.median
        for name, ratio in result.ratios.items()
        if name not in (AGAIN, KIT, EAGER, COMPILED)
    }
    best = min(peers, key=lambda name: peers[name], default="")
    source = layout.source(layout.SOLUTIONS, report.kernel)
    old = not source.exists() or fingerprint(source) != report.source
    cells = [
        f"{report.kernel.partition('/')[2]}: {result.name}",
        report.machine["gpu"],
        f"{result.seconds * 1e3:.3g} ms" if result.seconds else "-",
        *(_times(result, name) for name in (EAGER, COMPILED)),
        f"{_times(result, best)} ({best})" if best else "-",
        f"{result.of_roof.median:.0%}" if result.of_roof else "-",
        result.verdict + (" (of an earlier version)" if old else ""),
    ]
    return f"| {' | '.join(cells)} |"


def _times(result: Result, name: str) -> str:
    return f"{result.ratios[name].median:.2f}" if name in result.ratios else "-"
