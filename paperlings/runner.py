"""Running a paper's tests in a process of its own, so that no candidate can spoil more than its own
verdict.

On Linux the parent imports torch once, computes nothing, and forks;
elsewhere every paper starts cold.
A child that crashes or hangs is replaced by another that goes on with the tests not yet begun.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import itertools
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pytest

from paperlings import expected, layout, loading, stubs, verdict
from paperlings.judge import events, judge_of
from paperlings.outcomes import KitFault
from paperlings.verdict import FAILED, UNVERIFIED, Finding

GRACE = 5.0  # seconds beyond a test's own limit, after which its process is killed
ENOUGH = 6  # failed tests of which none is named, after which nobody will name it
USUAL, NONE = "usual", "none"
UNTIL_NAMED, UNTIL_FAILED = "until named", "until failed"  # and then stop
MOST_SHARES = 4  # more processes than this take longer to start than they save
OUTPUT = 64 << 20  # bytes a child may write into any one file
MEMORY = 4 << 30  # bytes that a sealed judge may take beyond what it begins with
_PARENT_DEATH = 1  # prctl: this process ends with the one that started it


@dataclass(frozen=True)
class Job:
    """One paper under one root. claims: its claim is run too. tasks: only their tests are run;
    all tests without. diagnosis: USUAL, NONE, UNTIL_NAMED, or UNTIL_FAILED, which has none either.
    share: (i, n), to run only the i-th of n shares of those tests.
    sealed: the code under test runs in a process of its own (see paperlings.sealed).
    seed: of the cases that are drawn; every job draws the same without.
    seconds: after which what is left of the job is not begun, but has failed.
    """

    key: str
    root: Path
    reports: Path = layout.REPORTS
    claims: bool = True
    tasks: tuple[str, ...] = ()
    diagnosis: str = USUAL
    label: str = ""
    share: tuple[int, int] = (0, 1)
    sealed: bool = False
    seed: str = ""
    seconds: float = math.inf


@dataclass
class Run:
    """What became of a job: its findings, and the seconds it took."""

    job: Job
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    trouble: str = ""  # of the kit, not of the candidate: nothing was judged

    def verdict(self) -> verdict.PaperVerdict:
        """The paper's verdict; where the kit itself failed, nothing is verified,
        and nothing is a score.
        """
        key = self.job.key
        if not self.trouble:
            left_out = (
                [] if self.job.claims else [t.name for t in expected.of(key).values() if t.claim]
            )
            unverified = [
                Finding(key, t, UNVERIFIED, what="claims were left out") for t in left_out
            ]
            found = [*self.findings, *unverified]
            return verdict.of_paper(key, found, bool(self.job.tasks), self.job.root)
        with contextlib.suppress(stubs.StubError, OSError):
            tasks = [verdict.TaskVerdict(name, UNVERIFIED, 0, 0) for name in stubs.groups(key)]
            return verdict.PaperVerdict(key, tasks, UNVERIFIED, {})
        return verdict.PaperVerdict(key, [], UNVERIFIED, {})


def warm() -> None:
    """Import what every child needs and compute nothing: a process of one thread may fork."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    if not forks():
        return
    import hypothesis.extra.numpy
    import torch

    import paperlings.plugin
    import paperlings.testing

    assert all((hypothesis, torch, paperlings.plugin, paperlings.testing))
    gc.collect()
    gc.freeze()


def prepare(keys: list[str]) -> None:
    """Import what the papers' tests and oracles would import in every process."""
    # half a second, which torch.broadcast_shapes would cost each
    importlib.import_module("torch.fx.experimental.symbolic_shapes")
    for key in keys:
        with contextlib.suppress(Exception):  # a broken oracle is the trouble of each job
            loading.load(layout.source(layout.REFERENCE, key), "oracle." + key)


def run_many(jobs: list[Job]) -> list[Run]:
    """As `run`, for many jobs of few papers: their tests are collected, and what their oracles
    import is imported, once, before the processes part.
    """
    runs: list[Run] = []
    if forks():
        keys = list(dict.fromkeys(job.key for job in jobs))
        prepare(keys)
        with contextlib.redirect_stdout(io.StringIO()):
            options = ["-s", "--impl", str(layout.SOLUTIONS)]
            options += ["--sealed"] if any(job.sealed for job in jobs) else []
            collect(keys, options, lambda session: runs.extend(run(jobs, session=session)))
    return runs or run(jobs)


def run(
    jobs: Iterable[Job],
    done: Callable[[Run], None] = lambda run: None,
    session: pytest.Session | None = None,
) -> list[Run]:
    """Run every job, some side by side, and call `done` as each ends.
    The runs come back in the order of the jobs.
    """
    workers = Workers(os.cpu_count() or 1, session)
    order = [workers.add(job) for job in jobs]
    try:
        while workers.busy:
            for ended in workers.advance():
                done(ended)
    finally:
        workers.close()
    return order


class Workers:
    """Jobs that run side by side, at most so many, and those that wait for their turn."""

    def __init__(self, most: int, session: pytest.Session | None = None):
        self.most, self.session = most, session
        self.waiting: list[_Child] = []
        self.running: list[_Child] = []

    def add(self, job: Job) -> Run:
        """Run a job as soon as there is room; what is found out about it is added to its run."""
        child = _Child(job, self.session)
        self.waiting.append(child)
        return child.run

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def advance(self, *others: Any) -> list[Run]:
        """Wait for something to happen, at a job or at the `others`; the runs that have ended."""
        ended = []
        while self.waiting and len(self.running) < self.most:
            child = self.waiting.pop(0)
            if child.can_start():
                self.running.append(child)
                child.start()
            else:
                ended.append(child.run)
        if not ended:
            ends = [child.process.sentinel for child in self.running]
            connection.wait([*ends, *others], timeout=0.2)
        for child in list(self.running):
            if child.advance():
                self.running.remove(child)
                ended.append(child.run)
        return ended

    def close(self) -> None:
        """End whatever runs, and forget what waits."""
        for child in [*self.waiting, *self.running]:
            child.kill()
            child.clean()


def run_shared(job: Job, session: pytest.Session | None, stop: connection.Connection) -> Run | None:
    """As `run`, for one job, whose tests are shared out among the processors.

    None where something arrives at `stop` before it has ended.
    """
    shares = 1 if job.claims else min(os.cpu_count() or 1, MOST_SHARES)  # a claim sees the others
    children = [_Child(replace(job, share=(i, shares)), session) for i in range(shares)]
    running = [child for child in children if child.can_start()]
    try:
        for child in running:
            child.start()
        while running := [child for child in running if not child.advance()]:
            ends = [child.process.sentinel for child in running]
            if stop in connection.wait([*ends, stop], timeout=0.2):
                return None
    finally:
        for child in children:
            child.kill()
            child.clean()
    runs = [child.run for child in children]
    findings = [finding for run in runs for finding in run.findings]
    trouble = next((run.trouble for run in runs if run.trouble), "")
    return Run(job, findings, max(run.seconds for run in runs), trouble)


class _Child:
    """The processes of one job, one after another until every test has begun."""

    def __init__(self, job: Job, session: pytest.Session | None):
        self.run = Run(job)
        self.session = session
        self.process: Any = None
        self.folder = tempfile.TemporaryDirectory(prefix="paperlings-", ignore_cleanup_errors=True)
        self.log = Path(self.folder.name) / "findings.jsonl"
        self.output = Path(self.folder.name) / "output.txt"
        self.begun = 0.0
        self.heard = 0.0  # when the log last grew
        self.size = 0
        self.seen = 0  # events when the process was started

    def can_start(self) -> bool:
        """Whether the kit's own files of the paper can be read;
        otherwise that is the job's trouble.
        """
        try:
            expected.of(self.run.job.key)
        except (SyntaxError, ValueError, OSError) as error:
            self.run.trouble = f"{type(error).__name__}: {error}"
            self.clean()
        return not self.run.trouble

    def start(self) -> None:
        self.begun = self.begun or time.monotonic()
        self.heard = time.monotonic()
        self.seen = len(events(self.log))
        if self.run.job.sealed:
            from paperlings.sealed import nursery

            with contextlib.suppress(KitFault):  # which is what the child will say
                nursery.shared()  # a child cannot replace one that has ended
        self.process = context().Process(
            target=_judge, args=(self.run.job, str(self.log), str(self.output), self.session)
        )
        self.process.start()

    def advance(self) -> bool:
        """Look after the process; True when the job has ended."""
        now = time.monotonic()
        size = self.log.stat().st_size if self.log.exists() else 0
        if size != self.size:
            self.size, self.heard = size, now
        silent = now - self.heard
        if self.process.is_alive():
            if now - self.begun > self.run.job.seconds:
                self.kill()
                self._blame(f"stopped: all tests together took {now - self.begun:.0f} s", True)
                return self._end()
            if silent <= GRACE:
                return False
            limit = next((e["limit"] for e in reversed(events(self.log)) if "limit" in e), 60.0)
            if silent <= limit + GRACE:
                return False
            self.kill()
            self._blame(f"stopped after {silent:.0f} s: it does not come to an end", True)
            return self._go_on()
        self.process.join()
        if any(event.get("finished") for event in events(self.log)[self.seen :]):
            return self._end()
        if self.run.job.sealed:  # nothing in that process is the candidate's
            self.run.trouble = f"the judge's process failed: {self._last_words()}"
            return self._end()
        self._blame(how_it_ended(self.process.exitcode), False)
        return self._go_on()

    def _go_on(self) -> bool:
        """Start another process for the tests not yet begun, if the last one began any."""
        if len(events(self.log)) == self.seen:
            self.run.trouble = self._last_words()
            return self._end()
        self.start()
        return False

    def _end(self) -> bool:
        seen = events(self.log)
        self.run.trouble = self.run.trouble or next(
            (e["trouble"] for e in seen if "trouble" in e), ""
        )
        self.run.findings = [Finding(**e) for e in seen if "status" in e]
        self.run.seconds = time.monotonic() - self.begun
        self.clean()
        return True

    def _blame(self, what: str, timed_out: bool) -> None:
        """Put down what ended the process: to the test that was running,
        or to all where it was the import.
        """
        seen = events(self.log)[self.seen :]
        key = self.run.job.key
        begun = next((e["started"] for e in reversed(seen) if "started" in e), None)
        if begun is None:
            return
        importing = sum("importing" in e for e in seen) > sum("imported" in e for e in seen)
        path = layout.shown(layout.source(self.run.job.root, key))
        if importing:
            names = list(expected.of(key))
            what = f"{path} ends the process while it is imported: {what}"
        else:
            judged = {e["test"] for e in seen if "status" in e}
            names = [begun] if begun not in judged else []
        with open(self.log, "a", encoding="utf-8") as file:
            for name in names:
                finding = Finding(key, name, FAILED, what=what, timed_out=timed_out)
                file.write(f"\n{json.dumps(finding.plain())}\n")
                how = "did not come to an end" if timed_out else "ended the process"
                file.write(json.dumps({"stuck": name, "key": key, "how": how}) + "\n")

    def _last_words(self) -> str:
        text = (
            self.output.read_text(encoding="utf-8", errors="replace")
            if self.output.exists()
            else ""
        )
        return "\n".join(text.strip().splitlines()[-15:]) or how_it_ended(self.process.exitcode)

    def kill(self) -> None:
        """End the process and whatever it started."""
        if self.process is not None and self.process.pid is not None:
            end(self.process)

    def clean(self) -> None:
        self.folder.cleanup()


def _judge(job: Job, log: str, output: str, session: pytest.Session | None) -> None:
    """In the child: run the job's tests, of `session` if that has collected them already."""
    if hasattr(os, "setsid"):
        os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent and os.getppid() != parent.pid:  # it has gone already
            os._exit(0)
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if job.sealed:
        from paperlings.sealed import sandbox

        sandbox.bound_memory(MEMORY)  # a candidate could give it ever more to hold
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.chdir(layout.HOME)
    if session is None:
        options = ["--impl", str(job.root), "--reports", str(job.reports)]
        options += ["--sealed"] if job.sealed else []
        collect([job.key], options, lambda collected: _loop(collected, job, log))
    else:
        _loop(session, job, log)
    sys.stdout.flush()
    os._exit(0)


def collect(keys: list[str], options: list[str], loop: Callable[[pytest.Session], None]) -> None:
    """Collect the tests of papers and hand them to `loop`, in place of pytest's own."""

    class Plugin:
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop(self, session: pytest.Session) -> bool:
            if session.testsfailed:
                raise session.Interrupted("the tests cannot be collected")
            loop(session)
            return True

    # plugins of other packages in the environment have no say in a grade
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.pop("PYTEST_ADDOPTS", None)
    common = [
        *("-c", str(layout.HOME / "pyproject.toml"), "--rootdir", str(layout.HOME)),
        *("-p", "_hypothesis_pytestplugin", "--hypothesis-profile=grade"),
        *("-p", "no:cacheprovider"),
    ]
    if any(layout.is_kernel(key) for key in keys):
        common += ["-p", "pytest_benchmark.plugin"]
    paths = [str(layout.tests(key)) for key in keys]
    pytest.main([*paths, *common, *options], plugins=[Plugin()])


def _loop(session: pytest.Session, job: Job, log: str) -> None:
    """Run the tests that the job asks for, and write what they find to `log`."""
    judge = judge_of(session.config)
    judge.take_over(job.root, log, job.diagnosis in (USUAL, UNTIL_NAMED), job.seed)
    share, shares = job.share
    items = [
        item
        for i, item in enumerate(session.items)
        if i % shares == share and judge.is_to_run(item, job.key, job.tasks, job.claims)
    ]
    for item, following in itertools.zip_longest(items, items[1:]):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        failed = [f for f in judge.findings.get(job.key, []) if f.status == FAILED]
        named = any(finding.behaves_like for finding in failed)
        if job.diagnosis == UNTIL_NAMED and (named or len(failed) >= ENOUGH):
            break
        if job.diagnosis == UNTIL_FAILED and failed:
            break
    # where the code under test ends the session, this line is not reached
    judge.write({"finished": True})


def end(process: Any) -> None:
    """End a process and whatever it started."""
    with contextlib.suppress(OSError, AttributeError):
        # it leads a group of its own where the system has groups
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def how_it_ended(code: int | None) -> str:
    """How a process with that exit status ended, in words."""
    if code is not None and code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended by itself (exit status {code})"


def forks() -> bool:
    """Whether a process of this machine may go on as two: not where threads or a GPU are in use."""
    torch = sys.modules.get("torch")
    return sys.platform == "linux" and not (torch and torch.cuda.is_initialized())


def context() -> Any:
    """How processes are started here."""
    return multiprocessing.get_context("fork" if forks() else "spawn")
