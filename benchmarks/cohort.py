"""What a cohort costs: units a second against workers, CPU-seconds a unit, memory a worker.

    python benchmarks/cohort.py                       # the whole curve, on a quiet machine

The submissions to every paper are half right answers, a quarter known mistakes, a quarter stubs.
Every point is a cohort of its own, graded cold, in random order among the others. The start of the
processes is measured apart, by a cohort of one unit a worker. CPU time is that of the whole machine
while the cohort runs, less what it uses when idle. Writes benchmarks/cohort.json and cohort.png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOME))

from paperlings import catalogue, layout, teacher  # noqa: E402, the kit is beside this folder

RESULT = HOME / "benchmarks" / "cohort.json"
TICK = os.sysconf("SC_CLK_TCK")


def hand_in(folder: Path, papers: list[str], count: int) -> None:
    """So many submissions, each with an answer to every paper."""
    for paper in papers:
        known, text = teacher.load(paper), teacher.source(paper)
        for i in range(count):
            answer = text
            if i % 4 == 1:
                edit = known.mistakes[i // 4 % len(known.mistakes)]
                answer = teacher.apply(text, [edit], "")
            if i % 4 == 3:
                answer = layout.source(layout.EXERCISES, paper).read_text()
            path = folder / f"s{i:04}" / f"{paper}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(answer)


def busy() -> float:
    """CPU-seconds that this machine has spent on anything since it was started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / TICK


class Memory(threading.Thread):
    """The most memory that the descendants of a process had together, each page counted once."""

    def __init__(self, root: int):
        super().__init__(daemon=True)
        self.root, self.most, self.ended = root, 0.0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self.most = max(self.most, sum(map(_proportional, _descendants(self.root))))


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def _proportional(process: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def measure(submissions: Path, papers: list[str], engine: str, workers: int) -> dict[str, Any]:
    """Grade a cohort; wall and CPU seconds, MiB, and what became of it."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "paperlings", "cohort", str(submissions), "--out", out]
        command += ["--papers", *papers, "--workers", str(workers), "--engine", engine]
        begun, before = time.monotonic(), busy()
        running = subprocess.Popen(
            command, cwd=HOME, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        memory = Memory(running.pid)
        memory.start()
        status = running.wait()
        seconds, cpu = time.monotonic() - begun, busy() - before
        memory.ended.set()
        units = len(list(Path(out).glob("units/*.json")))
    assert status == 0, command
    return {"units": units, "seconds": seconds, "cpu": cpu, "mib": memory.most}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--papers", nargs="+", default=["dpo", "lora", "neural_scaling_laws"])
    parser.add_argument("--submissions", type=int, default=40)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 3, 4])
    parser.add_argument("--engines", nargs="+", default=["local", "dask"])
    options = parser.parse_args()
    papers = [paper.key for paper in catalogue.load().select_written(options.papers)]
    points = []
    folder = Path(tempfile.mkdtemp())
    hand_in(folder / "many", papers, options.submissions)
    hand_in(folder / "few", papers[:1], max(options.workers))
    plan = [(engine, workers) for engine in options.engines for workers in options.workers]
    random.shuffle(plan)
    idle = busy()
    time.sleep(5)
    idle = (busy() - idle) / 5
    for engine, workers in plan:
        start = measure(folder / "few", papers[:1], engine, workers)
        whole = measure(folder / "many", papers, engine, workers)
        units = whole["units"] - start["units"]
        seconds = whole["seconds"] - start["seconds"]
        cpu = whole["cpu"] - start["cpu"] - idle * seconds
        point = {
            "engine": engine,
            "workers": workers,
            "units": whole["units"],
            "units_per_second": round(units / seconds, 3),
            "cpu_seconds_per_unit": round(cpu / units, 3),
            "mib_per_worker": round(whole["mib"] / workers),
            "start_seconds": round(start["seconds"] - start["units"] * seconds / units, 1),
        }
        points.append(point)
        print(json.dumps(point), flush=True)
    shutil.rmtree(folder)
    points.sort(key=lambda point: (point["engine"] != "local", point["workers"]))
    import torch

    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "papers": papers,
        "submissions": options.submissions,
        "points": points,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    draw(result)


def draw(result: dict[str, Any]) -> None:
    """Three small pictures, a line an engine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    what = {
        "units_per_second": "units a second",
        "cpu_seconds_per_unit": "CPU-seconds a unit",
        "mib_per_worker": "MiB a worker",
    }
    for axes, (name, words) in zip(figure.subplots(1, 3), what.items(), strict=True):
        for engine in dict.fromkeys(point["engine"] for point in result["points"]):
            mine = [point for point in result["points"] if point["engine"] == engine]
            axes.plot([p["workers"] for p in mine], [p[name] for p in mine], "o-", label=engine)
        axes.set(xlabel="workers", ylabel=words, ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    figure.savefig(RESULT.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
