"""Starting the process that measures a kernel, and reading its journal, however it ended.

A candidate that hangs or ends the process has failed the contest in which it did; what was not
reached is undecided.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from paperlings import layout
from paperlings.lanes.gate.child import Job
from paperlings.lanes.gate.results import Report, Result, fingerprint
from paperlings.lanes.gate.statistics import FAIL, UNDECIDED

PATIENCE, GRACE = 1.25, 90.0  # times its seconds, and seconds for tuning, after which it is ended
ENDS = "Does every call come to its end, and leave the process alone?"


def measure(
    key: str,
    root: Path,
    seconds: float,
    *,
    device: str = "cuda",
    seed: int | None = None,
    rules: dict[str, float] | None = None,
) -> Report:
    """Measure the kernel `key` under `root` in a process of its own, in about so many seconds.

    device: "cuda", or "processor" for trying everything else where there is no GPU.
    seed: of the inputs and of chance; nobody can know it before.
    """
    path = layout.source(root, key)
    seed = secrets.randbits(32) if seed is None else seed
    date = time.strftime("%Y-%m-%d", time.gmtime())
    report = Report(key, layout.shown(path), fingerprint(path), date, seed)
    with tempfile.TemporaryDirectory(prefix="paperlings-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        Job(key, str(root), device, seconds, seed, rules or {}).write(home / "job.json")
        ended = _run(home, seconds * PATIENCE + GRACE)
        _read(report, home, ended)
    return report


def _run(home: Path, limit: float) -> str:
    """Run the child; "" or how it ended."""
    unwanted = ("TRITON_INTERPRET", "PYTEST")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    # nobody has put anything into these before
    environment["TRITON_CACHE_DIR"] = str(home / "triton")
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(home / "inductor")
    files = [str(home / "job.json"), str(home / "journal")]
    command = [sys.executable, "-m", "paperlings.lanes.gate.child", *files]
    with open(home / "output", "wb") as output:
        child = subprocess.Popen(
            command,
            cwd=layout.HOME,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            return f"it did not come to an end within {limit:.0f} s"
        finally:
            # with whatever it has started, also where this process is interrupted
            with contextlib.suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended by itself (exit status {code})" if code else ""


def _read(report: Report, home: Path, ended: str) -> None:
    events = _events(home / "journal")
    named: list[list[str]] = []
    inside, done = False, False
    for event in events:
        report.machine = event.get("machine", report.machine)
        named = event.get("contests", named)
        inside = event.get("inside", inside)
        done = done or "end" in event
        if "result" in event:
            report.results.append(Result.of(event["result"]))
    if done:
        return
    ended = ended or "the process ended before it was done"
    if not inside:
        text = (home / "output").read_text(encoding="utf-8", errors="replace").strip()
        report.trouble = "\n".join(text.splitlines()[-8:]) or ended
    missing = named[len(report.results) :]
    for i, (name, task) in enumerate(missing):
        if inside and i == 0:
            report.results.append(Result(name, task, FAIL, f"in the candidate, {ended}", ENDS))
        else:
            report.results.append(Result(name, task, UNDECIDED, f"not reached: {ended}"))


def _events(journal: Path) -> list[dict[str, Any]]:
    """What the child has said; a last line that was cut short is left out."""
    if not journal.exists():
        return []
    events = []
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events
