"""The roofline: what was measured of the machine, and where every contender stands under it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paperlings.lanes.gate.results import AGAIN, Report, Result


def roofline(reports: list[Report], path: Path) -> bool:
    """Draw the measured roofs and every contest whose bytes and FLOPs are known; whether there was
    anything to draw.
    """
    from matplotlib.figure import Figure

    results = [(report, r) for report in reports for r in report.results if r.samples]
    placed = [(report, r) for report, r in results if r.bytes and r.flops]
    if not placed:
        return False
    memory = float(np.median([max(r.roofs["copy"], r.roofs["read"]) for _, r in results]))
    product = float(np.median([r.roofs["matmul"] for _, r in results]))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    intensities = [_intensity(r) for _, r in placed]
    x = np.geomspace(min(intensities) / 4, max(*intensities, product / memory) * 4, 200)
    axes.loglog(x, np.minimum(x * memory, product) / 1e12, color="black", lw=1)
    for number, (report, result) in enumerate(placed):
        others = [name for name in result.ratios if name != AGAIN]
        speeds = [result.flops / result.seconds / 1e12 / result.ratios[n].median for n in others]
        at, colour = _intensity(result), f"C{number}"
        axes.plot([at] * len(speeds), speeds, "_", color=colour, ms=10)
        label = f"{report.kernel.partition('/')[2]}: {result.name}"
        axes.plot(at, result.flops / result.seconds / 1e12, "o", color=colour, label=label)
    machine = placed[0][0].machine
    axes.set_xlabel("FLOPs a byte that must be moved")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(
        f"{machine['gpu']}: {memory / 1e12:.3g} TB/s and {product / 1e12:.3g} TFLOP/s measured"
    )
    axes.legend(title="dots; dashes are the others in the same run", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True


def _intensity(result: Result) -> float:
    return result.flops / result.bytes
