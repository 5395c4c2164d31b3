"""Ending processes of a sealed run at any moment, as whoever runs it may, or a machine that is
short of memory. Prints what became of every run.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from trial import HONEST, KEY, WRONG, innermost

from paperlings import files, layout, runner
from paperlings.sealed import nursery

NOBODY, CANDIDATE, KEEPER, ZYGOTE, JUDGE = VICTIMS = (
    *("nobody", "candidate", "keeper", "zygote", "judge"),
)
DISHONEST = "wrong"


def below(pid: int) -> list[int]:
    """The children of a process, theirs, and so on."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid for child in map(int, children) for pid in (child, *below(child))]


def strike(victim: str, delay: float, outer: int, zygote: int) -> tuple[int, int]:
    """Start a process that ends the victim after a while, and writes down whom it found."""
    runs = os.getpid()
    ear, mouth = os.pipe()
    killer = os.fork()
    if killer:
        os.close(mouth)
        return killer, ear
    time.sleep(delay)
    here = below(zygote)
    judges = set(below(runs)) - {os.getpid(), outer, *below(outer)}
    found = {CANDIDATE: here[1:2], KEEPER: here[:1], ZYGOTE: [zygote], JUDGE: list(judges)}
    struck = found.get(victim, [])
    for pid in struck:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    os.write(mouth, json.dumps({"struck": len(struck), "seen": here}).encode())
    os._exit(0)


def trial(root: Path, victim: str, delay: float, session: Any) -> dict[str, Any]:
    """One run, during which a process is ended."""
    outer = nursery.shared().process.pid
    zygote = innermost(outer)
    killer, ear = strike(victim, delay, outer, zygote)
    begun = time.monotonic()
    job = runner.Job(KEY, root, root / "reports", diagnosis=runner.NONE, sealed=True)
    [run] = runner.run([job], session=session)
    seconds = time.monotonic() - begun
    os.waitpid(killer, 0)
    while victim == ZYGOTE and nursery.shared().process.pid == outer and _lives(zygote):
        time.sleep(0.01)
    with open(ear) as file:
        told = json.load(file)
    return {
        **{"name": root.name, "victim": victim, "delay": delay, "seconds": seconds},
        **{"struck": told["struck"], "left": left(told["seen"]), "trouble": run.trouble},
        "tasks": {task.name: task.status for task in run.verdict().tasks},
        "failed": [finding.what for finding in run.findings if finding.status == "failed"],
    }


def left(seen: list[int]) -> list[int]:
    """Processes of candidates that are still there a moment after their run has ended."""
    there: list[int] = []
    for _ in range(200):
        there = [pid for pid in seen if _lives(pid)]
        there += below(innermost(nursery.shared().process.pid))
        if not there:
            break
        time.sleep(0.02)
    return there


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main(folder: Path, seed: int, times: int) -> list[dict[str, Any]]:
    """So many runs for each victim, honest and not, after one that says how long a run is."""
    chance, found = random.Random(seed), []
    honest = (layout.HOME / "solutions" / f"{KEY}.py").read_text()
    for name, text in ((HONEST, honest), (DISHONEST, WRONG)):
        files.write(layout.source(folder / name, KEY), text)

    def loop(session: Any) -> None:
        found.append(trial(folder / HONEST, NOBODY, 0.0, session))
        for victim in VICTIMS[1:] * times:
            for name in (HONEST, DISHONEST):
                delay = chance.uniform(0, found[0]["seconds"])
                found.append(trial(folder / name, victim, delay, session))
        found.append(trial(folder / HONEST, NOBODY, 0.0, session))

    runner.warm()
    nursery.shared()
    with contextlib.redirect_stdout(io.StringIO()):
        options = ["-s", "--sealed", "--impl", str(layout.SOLUTIONS)]
        runner.collect([KEY], options, loop)
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
