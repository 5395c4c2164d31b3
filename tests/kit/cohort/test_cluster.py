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


@pytest.fixture
def cohort(cohort: Any) -> Any:
    """Some submissions, of which every other is right."""
    for name, (line, addition) in PLANTS.items():
        path = cohort.house.home / "paperlings" / "cohort" / f"{name}.py"
        text = path.read_text()
        assert text.count(line) == 1
        path.write_text(text.replace(line, line + addition))
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
        self._run("dask_worker", self.address, *worker)
        return scheduler

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
