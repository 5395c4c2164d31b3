"""Grading on many machines with Dask.distributed: every thread of a worker has a grader's process.

What crosses is a unit, the text of its file, and its result; workers need the kit, not the folders.
Where they see the cohort's folder all the same, they write the result there at once, so that not
even a scheduler's end loses it.

Every unit is sent to one worker and to no other, so that it is known which were under way where a
worker died. Dask would try those again by itself, beside others, which a poisonous one takes along.
One that needs a GPU is sent to a worker that offers it, which has one of them at a time.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from paperlings import UsageError
from paperlings.cohort import intake, local, units
from paperlings.cohort.grader import Ended, Grader
from paperlings.cohort.local import RETRIES, CannotStart, Done
from paperlings.cohort.units import INFRA_ERROR, REJECTED, Unit, result

GPU = {"GPU": 1}  # the resource of Dask that a worker offers, and a unit that needs a GPU takes
START = 30.0  # seconds to wait for a scheduler, the first time, or for a worker that offers a GPU
PATIENCE = 600.0  # seconds to wait for a scheduler that has gone, or for a worker
TICK = 1.0  # seconds to wait for a result before we look again which workers there are
# in a worker of our own: an interrupt ends it without a word
QUIET = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)"


class Worker(NamedTuple):
    """What a worker has."""

    threads: int
    has_gpu: bool

    def may_have(self, unit: Unit) -> bool:
        """Whether the unit can be graded there."""
        return self.has_gpu or not unit.needs_gpu


class Lost(Exception):
    """The scheduler has gone, and with it what it knew."""


def grade(
    todo: Iterable[Unit], papers: list[str], workers: int, scheduler: str, out: Path, done: Done
) -> None:
    """Grade the units on the cluster of `scheduler`, or on one of our own; calls `done` as each
    ends. Raises UsageError, CannotStart.
    """
    try:
        import distributed
    except ImportError:
        raise UsageError("--engine dask needs Dask: pip install distributed") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters, we say ourselves
    (out / "units").mkdir(parents=True, exist_ok=True)  # by which a worker knows that it sees it
    # workers of our own are all on this machine
    beside, alone = ([*todo], []) if scheduler else local.apart(todo)
    grading = _Grading(beside, papers, out.absolute(), done)
    patience = START
    with _address(workers, scheduler) as address:
        while grading.is_left():
            try:
                client = distributed.Client(address, timeout=patience, set_as_default=False)
            except OSError:
                raise CannotStart(f"there is no scheduler at {address}") from None
            patience = PATIENCE
            try:
                grading.go_on(client)
            except Lost:
                grading.take_back()
            finally:
                with contextlib.suppress(Exception):  # from one that has gone there is no farewell
                    client.close(timeout=TICK)
    local.grade(alone, papers, 1, done)


@contextlib.contextmanager
def _address(workers: int, scheduler: str) -> Iterator[str]:
    import distributed

    if scheduler:
        try:
            distributed.comm.get_address_host_port(scheduler)
        except ValueError as error:
            raise UsageError(f"--scheduler {scheduler}: {error}") from None
        yield scheduler
        return
    with distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
        preload=[QUIET],
        resources=GPU,  # where there is none, nobody has to wait for it
    ) as cluster:
        yield str(cluster.scheduler_address)


class _Grading:
    """Units on their way.

    A unit that has failed, or was under way where a worker died, is a suspect: it is tried again
    alone on a worker, and on another one if there is any, so that no other's dies with it.
    """

    def __init__(self, todo: Iterable[Unit], papers: list[str], out: Path, done: Done):
        self.fresh: dict[bool, deque[Unit]] = {True: deque(), False: deque()}  # that need a GPU
        for unit in todo:
            self.fresh[unit.needs_gpu].append(unit)
        self.suspects = deque[Unit]()
        self.papers, self.out, self.done = papers, out, done
        self.under_way: dict[str, tuple[Unit, str, Any]] = {}  # at which worker, as which future
        self.begun: Counter[str] = Counter()
        self.failed_at: defaultdict[str, list[str]] = defaultdict(list)  # which workers
        self.seen = self.seen_gpu = time.monotonic()  # a worker, and one that offers a GPU

    def is_left(self) -> bool:
        """Whether anything is not graded yet."""
        return bool(any(self.fresh.values()) or self.suspects or self.under_way)

    def go_on(self, client: Any) -> None:
        """Have the units graded until none is left. Raises Lost, CannotStart."""
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        while self.is_left():
            workers = self._workers(client)
            here: dict[str, list[Unit]] = {address: [] for address in workers}
            for unit, address, future in list(self.under_way.values()):
                if address in here:
                    here[address].append(unit)
                else:
                    why = f"the worker at {address} has gone"
                    self._settle(future, result(unit, INFRA_ERROR, why))
            for address, mine in here.items():
                while following := self._next(address, mine, workers):
                    if self._send(client, following, address, ended):
                        mine.append(following)
            with contextlib.suppress(queue.Empty):
                ended.put(ended.get(timeout=TICK))
            for _ in range(ended.qsize()):
                self._receive(ended.get(), ended)

    def take_back(self) -> None:
        """Nobody has what was under way any more; it is no fault of the units."""
        for unit, _, _ in self.under_way.values():
            failed = self.failed_at[unit.key]
            (self.suspects if failed else self.fresh[unit.needs_gpu]).appendleft(unit)
        self.under_way.clear()

    def _workers(self, client: Any) -> dict[str, Worker]:
        """The workers there are."""
        if client.status != "running":
            raise Lost
        try:
            scheduler = client.sync(client.scheduler.identity, n_workers=-1)
        except OSError:
            raise Lost from None
        workers = {
            address: Worker(worker["nthreads"], worker["resources"].get("GPU", 0) >= 1)
            for address, worker in scheduler["workers"].items()
        }
        now = time.monotonic()
        if workers:
            self.seen = now
        elif now - self.seen > PATIENCE:
            raise CannotStart(f"the scheduler has had no worker for {PATIENCE:.0f} s")
        if any(worker.has_gpu for worker in workers.values()):
            self.seen_gpu = now
        elif workers and now - self.seen_gpu > START and (count := self._wait_for_gpu()):
            raise CannotStart(
                f"no worker offers a GPU, which {count} units of kernels need: start one where "
                f"there is one, with dask worker {scheduler['address']} --nthreads 1 "
                '--resources "GPU=1", or leave out --claims'
            )
        return workers

    def _wait_for_gpu(self) -> int:
        """How many units are left, where all of them need a GPU and none has one."""
        if self.fresh[False] or self.under_way or not all(unit.needs_gpu for unit in self.suspects):
            return 0
        return len(self.fresh[True]) + len(self.suspects)

    def _next(self, address: str, here: list[Unit], workers: dict[str, Worker]) -> Unit | None:
        """What the worker that has those units shall grade besides."""
        if not here:
            for unit in self.suspects:
                failed = self.failed_at[unit.key]
                able = (a for a, worker in workers.items() if worker.may_have(unit))
                is_best = address not in failed or all(other in failed for other in able)
                if is_best and workers[address].may_have(unit):
                    self.suspects.remove(unit)
                    return unit
        is_alone = any(self.failed_at[unit.key] for unit in here)
        if is_alone or len(here) >= workers[address].threads:
            return None
        is_free = workers[address].has_gpu and not any(unit.needs_gpu for unit in here)
        following = self.fresh[True] if is_free and self.fresh[True] else self.fresh[False]
        return following.popleft() if following else None

    def _send(self, client: Any, unit: Unit, address: str, ended: Any) -> bool:
        """Whether there is anything to grade; that has been sent now."""
        try:
            text = unit.text()
        except intake.Refused as why:
            self.done(unit, result(unit, REJECTED, str(why)))
            return False
        self.begun[unit.key] += 1
        future = client.submit(
            _grade,
            *(units.plain(unit), text, self.papers, str(self.out), self.begun[unit.key]),
            workers=[address],
            resources=GPU if unit.needs_gpu else None,
            pure=False,
        )
        self.under_way[future.key] = unit, address, future
        future.add_done_callback(ended.put)
        return True

    def _receive(self, future: Any, ended: Any) -> None:
        if future.key not in self.under_way:
            return
        if future.cancelled():
            raise Lost
        try:
            found = future.result(timeout=TICK)
        except Exception as error:
            if future.status != "error":  # who has the result is slow, or has gone, as we shall see
                ended.put(future)
                return
            unit, _, _ = self.under_way[future.key]
            found = result(unit, INFRA_ERROR, f"{type(error).__name__}: {error}")
        self._settle(future, found)

    def _settle(self, future: Any, found: dict[str, Any]) -> None:
        unit, address, _ = self.under_way.pop(future.key)
        future.release()
        if found["outcome"] == INFRA_ERROR:
            self.failed_at[unit.key].append(address)
            saved = units.load(self.out, unit)  # before the worker died
            if saved and units.is_settled(saved):
                found = saved
            elif len(self.failed_at[unit.key]) <= RETRIES:
                self.suspects.append(unit)
                return
        self.done(unit, {**found, "attempts": self.begun[unit.key]})


# ---- in a worker

_mine = threading.local()  # the grader of this thread, and the papers it knows


def _grade(
    data: dict[str, Any], text: str, papers: list[str], out: str, attempt: int
) -> dict[str, Any]:
    """The result of a unit: what the cohort's folder has already, where that is seen from here,
    or else what this thread's grader finds.
    """
    unit, folder = units.from_plain(data), Path(out)
    saved = units.load(folder, unit)
    if saved and units.is_settled(saved):
        return saved
    try:
        if getattr(_mine, "papers", None) != papers:
            _close()
            _mine.grader, _mine.papers = Grader(papers, workers=1), papers
        _mine.grader.send(unit, text)
        found = {**_mine.grader.receive(), "attempts": attempt}
    except Ended as why:
        found = result(unit, INFRA_ERROR, str(why))
    if not units.is_settled(found):
        _close()  # the next one reads anew what this one may have read too early
    elif (folder / "units").is_dir():
        units.save(folder, unit, found)
    return found


def _close() -> None:
    if grader := getattr(_mine, "grader", None):
        grader.close()
    _mine.grader = _mine.papers = None
