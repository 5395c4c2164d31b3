"""Starting the process that measures a kernel, and hearing it to the end, however it ended.

A candidate that hangs or ends the process has failed the contest in which it did; what was not
reached is undecided.

Sealed, that process is in a workshop, and the candidate is what was handed in and nothing beside
it. So a submission can neither read nor harm what is outside, or last longer than its time. What is
said of it is still said from where it is (`child`): values and times are measured beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from paperlings import layout
from paperlings.lanes.gate.child import Job
from paperlings.lanes.gate.journal import MOST, Journal
from paperlings.lanes.gate.results import Report, Result, fingerprint
from paperlings.lanes.gate.statistics import FAIL, UNDECIDED
from paperlings.sealed import workshop
from paperlings.words import printable

PATIENCE, GRACE = 1.25, 90.0  # times its seconds, and seconds for tuning, after which it is ended
LAST = 4096  # bytes of what it prints that are kept
ENDS = "Does every call come to its end, and leave the process alone?"
FORGED = "Does the file compute, and leave it to the judge to say how well?"


def measure(
    key: str,
    root: Path,
    seconds: float,
    *,
    device: str = "cuda",
    seed: int | None = None,
    rules: dict[str, float] | None = None,
    sealed: bool = False,
) -> Report:
    """Measure the kernel `key` under `root` in a process of its own, in about so many seconds.

    device: "cuda", or "processor" for trying everything else where there is no GPU.
    seed: of the inputs and of chance; nobody can know it before.
    sealed: in a workshop. Raises then Unloadable, and Unlockable where there is none.
    """
    path = layout.source(root, key)
    seed = secrets.randbits(32) if seed is None else seed
    date = time.strftime("%Y-%m-%d", time.gmtime())
    with tempfile.TemporaryDirectory(prefix="paperlings-", ignore_cleanup_errors=True) as folder:
        home, file = Path(folder), path
        prefix: list[str] = []
        if sealed:
            file = _handed_in(key, root, home)
            prefix = workshop.command(device == "cuda", file, path)
        report = Report(key, layout.shown(path), fingerprint(file), date, seed)
        try:
            job = Job(key, str(root), device, seconds, seed, rules or {}).provided()
        except (OSError, ValueError) as error:
            report.trouble = str(error)
        else:
            environment = {} if sealed else _environment(home)
            _conclude(report, *_run(prefix, environment, job, seconds * PATIENCE + GRACE))
    return report


def _handed_in(key: str, root: Path, home: Path) -> Path:
    """A copy of a submission that nobody changes any more. Raises Unloadable."""
    from paperlings.sealed import nursery

    file = home / "candidate.py"
    file.write_text(nursery.source(root, key), encoding="utf-8")
    file.chmod(0o444)
    return file


def _environment(home: Path) -> dict[str, str]:
    """This process's own, with caches into which nobody has put anything before."""
    unwanted = ("TRITON_INTERPRET", "PYTEST")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    caches = {name: str(home / name) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    return kept | caches


def _run(
    prefix: list[str], environment: dict[str, str], job: Job, limit: float
) -> tuple[Journal, str, str]:
    """Run the child; what it says, what it prints last, and "" or how it ended."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            handle = theirs.fileno()
            child = subprocess.Popen(
                [*prefix, sys.executable, "-m", "paperlings.lanes.gate.child", str(handle)],
                cwd=layout.HOME,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[handle],
                start_new_session=True,
            )
        try:
            said, printed, late = _listen(child, ours, job, limit)
        finally:
            # with whatever it has started, also where this process is interrupted
            with contextlib.suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            assert child.stdout is not None
            child.stdout.close()  # which somebody may still hold at the other end
    if late:
        return Journal.of(said), printed, late
    code = child.returncode
    if prefix and code > 128:  # bubblewrap says a signal as a shell does
        code = 128 - code
    if code < 0:
        known = {each.value: each.name for each in signal.Signals}
        return Journal.of(said), printed, f"the process was ended by {known.get(-code, -code)}"
    how = f"the process ended by itself (exit status {code})" if code else ""
    return Journal.of(said), printed, how


def _listen(
    child: subprocess.Popen[bytes], line: socket.socket, job: Job, limit: float
) -> tuple[bytes, str, str]:
    """Tell the child its job; what it says and prints, and why it was not heard to its end."""
    assert child.stdout is not None
    said, printed = bytearray(), bytearray()
    streams = {line.fileno(): said, child.stdout.fileno(): printed}
    end = time.monotonic() + limit
    with contextlib.suppress(OSError):  # it has ended already
        line.settimeout(limit)
        line.sendall(json.dumps(asdict(job)).encode())
        line.shutdown(socket.SHUT_WR)
    late = f"it did not come to an end within {limit:.0f} s"
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select(streams, [], [], min(left, 0.1))
        for handle in ready:
            data = b""
            with contextlib.suppress(OSError):
                data = os.read(handle, 1 << 16)
            streams[handle] += data
            if not data:
                del streams[handle]
        del printed[:-LAST]
        if len(said) > MOST:
            late = "it says more than there is to say"
            break
        if not ready and child.poll() is not None:
            late = ""
            break
    return bytes(said), printed.decode("utf-8", "replace"), late


def _conclude(report: Report, journal: Journal, printed: str, ended: str) -> None:
    """Put into a report what came of it."""
    report.machine, report.results = journal.machine, journal.results
    if journal.forged and journal.loaded:
        why = "something has been said that the judge does not say"
        report.results = [Result(n, task, FAIL, why, FORGED) for n, task in journal.contests]
        return
    if journal.done:
        return
    ended = ended or "the process ended before it was done"
    if not journal.inside:
        report.trouble = "\n".join(printable(printed).strip().splitlines()[-8:]) or ended
    missing = journal.contests[len(report.results) :]
    for i, (name, task) in enumerate(missing):
        if journal.inside and i == 0:
            report.results.append(Result(name, task, FAIL, f"in the candidate, {ended}", ENDS))
        else:
            report.results.append(Result(name, task, UNDECIDED, f"not reached: {ended}"))
