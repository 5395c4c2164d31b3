"""A cluster finds what one machine finds, whatever is killed meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from paperlings.sealed import sandbox

pytest.importorskip("distributed")
import psutil

pytestmark = pytest.mark.skipif(sandbox.probe() == sandbox.NONE, reason="no sandbox holds here")

PATIENCE = 120.0  # seconds to wait for what must happen, on a machine as busy as can be
COUNT = 6  # submissions
GRADER = "paperlings.cohort.grader"
VARIABLE = {"attempts", "date", "seconds", "verdict"}
PLANTS = {  # in the house's copy: who begins a unit writes it down, and one submission is poison
    "grader": (
        "    def _begin(self, unit: Unit, text: str, folder: Path) -> None:\n",
        '        with open(layout.HOME / "begun", "a") as log:\n'
        "            print(unit.submission, file=log)\n",
    ),
    "cluster": (
        "    unit, folder = units.from_plain(data), Path(out)\n",
        '    if unit.submission == "poison":\n'
        "        import os\n\n"
        "        os.kill(os.getpid(), 9)\n",
    ),
}

TIMED = 3  # submissions that need a GPU, in a house whose kernel is their paper
GPU = ("--resources", "GPU=1")
SPY = """

class Spy(Grader):
    def send(self, unit, text):
        self.log("begins", unit.submission)
        super().send(unit, text)

    def receive(self):
        found = super().receive()
        if "submission" in found:
            self.log("ends", found["submission"])
        return found

    def log(self, what, submission):
        import distributed

        try:
            offers = "GPU" in distributed.get_worker().state.total_resources
        except ValueError:
            offers = False
        with open(layout.HOME / "spied", "a") as log:
            print(what, submission, offers, os.getpid(), file=log)


Grader = Spy
"""


def plant(cohort: Any, name: str, line: str, other: str) -> None:
    """Replace a line in the house's copy of the kit."""
    path = cohort.house.home / "paperlings" / f"{name}.py"
    text = path.read_text()
    assert text.count(line) == 1
    path.write_text(text.replace(line, other))


@pytest.fixture
def cohort(cohort: Any) -> Any:
    """Some submissions, of which every other is right."""
    for name, (line, addition) in PLANTS.items():
        plant(cohort, f"cohort/{name}", line, line + addition)
    right = cohort.house.solution()
    for i in range(COUNT):
        cohort.hand_in(f"s{i}", right if i % 2 else right.replace("-torch.xlogy", "torch.xlogy"))
    return cohort


def begun(cohort: Any) -> Counter[str]:
    """How often the grading of each submission was begun."""
    log = cohort.house.home / "begun"
    return Counter(log.read_text().split() if log.exists() else [])


def until(happens: Callable[[], Any]) -> Any:
    """What comes true, as soon as it does."""
    deadline = time.monotonic() + PATIENCE
    while not (found := happens()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)
    return found


def grader() -> psutil.Process | None:
    """A grader that has candidates, or could have them at once; what it forks is none."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            above = process.parent()
            is_one = GRADER in process.cmdline() and above and GRADER not in above.cmdline()
            if is_one and process.children():
                return process
    return None


def kill(process: psutil.Process) -> None:
    """kill -9; all that it has started is gone a moment later."""
    family = process.children(recursive=True)
    process.kill()
    until(lambda: not any(map(lives, family)))


def lives(process: psutil.Process) -> bool:
    """Whether it is there, and not only its name."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def is_right(cohort: Any) -> bool:
    """Whether every verdict is the known one."""
    known = {"softmax": "passed", "entropy": "failed"}
    return cohort.tasks() == {
        f"s{i}": known | ({"entropy": "passed"} if i % 2 else {}) for i in range(COUNT)
    }


@pytest.fixture
def timed(cohort: Any) -> Any:
    """Some more submissions, which need a GPU where claims are asked for."""
    for i in range(TIMED):
        cohort.hand_in(f"gpu{i}", cohort.house.solution())
    kernel = "layout.is_kernel(self.paper)"
    plant(cohort, "cohort/units", kernel, 'self.submission.startswith("gpu")')
    last = "    main(int(sys.argv[1]), sys.argv[2:])\n"
    plant(cohort, "cohort/grader", last, last + SPY)
    return cohort


def spied(cohort: Any) -> list[tuple[str, str, bool, str]]:
    """What began and ended, whether where a GPU is offered, and in which process."""
    log = cohort.house.home / "spied"
    lines = log.read_text().splitlines() if log.exists() else []
    return [(a, b, offers == "True", d) for a, b, offers, d in map(str.split, lines)]


def are_timed(cohort: Any) -> bool:
    """Whether every submission has been graded, those that need a GPU too."""
    tasks, timed = cohort.tasks(), {f"gpu{i}" for i in range(TIMED)}
    return tasks.keys() == timed | {f"s{i}" for i in range(COUNT)} and all(
        set(tasks[name].values()) == {"passed"} for name in timed
    )


class Machines:
    """A scheduler and a worker, which start in the house as often as they are asked to."""

    def __init__(self, cohort: Any):
        self.cohort = cohort
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.started: list[psutil.Popen] = []

    def start(self, *worker: str) -> psutil.Process:
        """Start both; returns the scheduler."""
        scheduler = self._run("dask_scheduler", "--host", "127.0.0.1", "--port", self.port)
        self.work(*worker)
        return scheduler

    def work(self, *worker: str) -> psutil.Process:
        """Start a worker."""
        return self._run("dask_worker", self.address, *worker)

    def _run(self, name: str, *arguments: str) -> psutil.Process:
        process = psutil.Popen(
            [sys.executable, "-m", f"distributed.cli.{name}", *arguments, "--no-dashboard"],
            cwd=self.cohort.house.home,
            env={**os.environ, "PYTHONPATH": str(self.cohort.house.home), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.started.append(process)
        return process


@pytest.fixture
def machines(cohort: Any) -> Iterator[Machines]:
    """None yet; what has been started is gone when the test ends."""
    made = Machines(cohort)
    yield made
    for process in made.started:
        process.kill()
        process.wait()
    assert not cohort.wait_until_gone()


def test_killed_workers_and_graders_cost_an_attempt(cohort) -> None:
    """A cluster says what this machine says, though a worker and a grader are killed; who has
    ended is not graded again.
    """
    alone = replace(cohort, out=cohort.out.with_name("alone"))
    secret = ("--secret", str(alone.out / "secret"), "--workers", "2")
    alone.run(*secret)
    truth = alone.results()
    assert begun(cohort) == Counter(truth.keys())

    running = cohort.start(*secret, "--engine", "dask")
    until(lambda: begun(cohort).total() > COUNT + 1)
    kill(until(grader).parent())
    until(lambda: begun(cohort).total() > COUNT + 3)
    kill(until(grader))
    assert running.wait(PATIENCE) == 0
    assert is_right(cohort)
    for name, result in cohort.results().items():
        same = truth[name].keys() - VARIABLE
        assert {k: result[k] for k in same} == {k: truth[name][k] for k in same}
        assert result["verdict"]["tasks"] == truth[name]["verdict"]["tasks"]
    assert begun(cohort).total() <= COUNT + COUNT + 2
    assert not cohort.wait_until_gone()


def test_a_scheduler_may_start_again(cohort, machines) -> None:
    """Killed with a scheduler is nothing but what was under way; what had been found stays found,
    and the rest goes on with the next scheduler and its workers.
    """
    scheduler = machines.start("--nthreads", "1")
    running = cohort.start("--engine", "dask", "--scheduler", machines.address)
    until(lambda: begun(cohort).total() > 2)
    scheduler.kill()
    machines.start("--nthreads", "1")
    assert running.wait(PATIENCE) == 0
    assert is_right(cohort)
    assert begun(cohort).total() <= COUNT + 1


def test_who_kills_a_worker_kills_no_other(cohort, machines) -> None:
    """A unit that no worker survives is an infra_error in the end, and no score; what was under way
    beside it is tried again without it.
    """
    cohort.hand_in("poison", cohort.house.solution())
    machines.start("--nthreads", "2")
    running = cohort.start("--engine", "dask", "--scheduler", machines.address)
    assert running.wait(PATIENCE) == 3
    results = cohort.results()
    poison = results.pop("poison")
    assert (poison["outcome"], poison["points"], poison["attempts"]) == ("infra_error", None, 3)
    assert is_right(cohort)
    assert sorted(result["attempts"] for result in results.values()) == [1] * (COUNT - 1) + [2]


@pytest.mark.parametrize("engine", [(), ("--engine", "dask")], ids=["local", "dask"])
def test_a_gpu_of_this_machine_is_used_last_and_alone(timed, engine: tuple[str, ...]) -> None:
    """Whoever runs beside a unit that needs it would disturb its clock."""
    plant(timed, "lanes/__init__", "    return _why_no_gpu()\n", '    return ""\n')
    timed.run("--claims", "--workers", "2", *engine)
    assert are_timed(timed)
    last = [(what, name) for what, name, *_ in spied(timed)][-2 * TIMED :]
    assert last == [(what, f"gpu{i}") for i in range(TIMED) for what in ("begins", "ends")]


def test_without_a_gpu_nobody_waits_for_one(timed) -> None:
    """Workers of our own grade what needs one too, as any machine without does."""
    timed.run("--claims", "--workers", "2", "--engine", "dask")
    assert are_timed(timed)
    first = [name for what, name, *_ in spied(timed) if what == "begins"]
    assert {name for name in first[:3] if name.startswith("gpu")}


def test_units_that_need_a_gpu_are_graded_where_one_is_offered(timed, machines) -> None:
    """One at a time, and nowhere else, though its worker is killed and another takes its place;
    all others are graded anywhere.
    """
    machines.start("--nthreads", "1")
    worker = machines.work("--nthreads", "2", *GPU)
    running = timed.start("--claims", "--engine", "dask", "--scheduler", machines.address)
    until(lambda: ("ends", True) in {(what, offers) for what, _, offers, _ in spied(timed)})
    for process in (worker, *worker.children(recursive=True)):
        process.kill()
    machines.work("--nthreads", "2", *GPU)
    assert running.wait(PATIENCE) == 0
    assert are_timed(timed)
    seen = spied(timed)
    under_way: set[tuple[str, str]] = set()
    for what, name, offers, process in seen:
        if name.startswith("gpu"):
            assert offers
            (under_way.add if what == "begins" else under_way.discard)((process, name))
            assert len({unit for unit in under_way if unit[0] == process}) <= 1
    others = {offers for _, name, offers, _ in seen if name.startswith("s")}
    assert others == {True, False}
    ends = Counter(name for what, name, *_ in seen if what == "ends")
    assert set(ends.values()) == {1}
    assert len(seen) - 2 * ends.total() <= 2


def test_without_a_worker_that_offers_a_gpu_all_others_are_graded(timed, machines) -> None:
    """It is said how to start one; when one is there, the rest is graded."""
    plant(timed, "cohort/cluster", "START = 30.0", "START = 10.0")
    machines.start("--nthreads", "2")
    command = timed.command("--claims", "--engine", "dask", "--scheduler", machines.address)
    done = timed.house.run(*command)
    assert done.returncode == 3
    said = " ".join(done.stderr.split())
    assert f"no worker offers a GPU, which {TIMED} units of kernels need" in said
    assert f'dask worker {machines.address} --nthreads 1 --resources "GPU=1"' in said
    assert "Traceback" not in said
    assert is_right(timed)
    machines.work("--nthreads", "1", *GPU)
    assert timed.house.run(*command).returncode == 0
    assert are_timed(timed)
    assert {name for _, name, offers, _ in spied(timed) if offers} == {"gpu0", "gpu1", "gpu2"}
    assert set(begun(timed).values()) == {1}
