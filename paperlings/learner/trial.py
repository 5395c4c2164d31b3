"""A learner's code and the solution, tried side by side on the examples of a paper's tests.

They share one process of their own, in which their calls are timed in turns: what disturbs one
disturbs the other. A call that hangs or crashes costs its own task, and no other.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing import connection
from pathlib import Path
from types import ModuleType
from typing import Any

from paperlings import layout, loading, runner, stubs, words
from paperlings.judge import events
from paperlings.limits import TimeLimit, time_limit
from paperlings.outcomes import Unverified
from paperlings.spare import spare_the_compiler

SECONDS = 10.0  # after which a task is given up
BUDGET = 0.5  # seconds in which a task is timed
SAMPLE = 0.0003  # seconds that a sample lasts, of as many calls as that takes
FEWEST, MOST = 5, 101  # rounds
YOURS, SOLUTION = "yours", "solution"
Calls = dict[str, Callable[[], Callable[[], Any]]]  # what makes each side's call ready


@dataclass
class Trial:
    """What came of one task.

    trouble: why nothing did.  difference: between the answers, in words, "" where they agree.
    apart: the largest distance between two numbers of answers that agree.
    measures: of both sides, by name.  alone: operators that only one side uses.
    ratio: of the learner's time to the solution's in every round: the lower quartile, the median,
    the upper quartile.
    """

    task: str
    trouble: str = ""
    difference: str = ""
    apart: float = 0.0
    measures: dict[str, dict[str, float]] = field(default_factory=dict)
    alone: dict[str, list[str]] = field(default_factory=dict)
    ratio: list[float] = field(default_factory=list)


def run(key: str) -> dict[str, Trial]:
    """Try every task of a paper that its tests have an example of."""
    trials: dict[str, Trial] = {}
    with tempfile.TemporaryDirectory(prefix="paperlings-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "trials.jsonl"
        while missing := [task for task in stubs.groups(key) if task not in trials]:
            seen = len(events(log))
            ending = _run(key, missing, log)
            found = events(log)[seen:]
            trials |= {event["task"]: Trial(**event) for event in found if "task" in event}
            if any("finished" in event for event in found):
                break
            begun = [event["begun"] for event in found if "begun" in event]
            # what ends the process before the first task would end it before every other
            for task in begun[-1:] or missing:
                trials.setdefault(task, Trial(task, trouble=ending))
    return trials


def _run(key: str, tasks: list[str], log: Path) -> str:
    """Try tasks in a process of its own; returns how that ended, in words."""
    process = runner.context().Process(target=_serve, args=(key, tasks, str(log)))
    process.start()
    size, heard, limit = 0, time.monotonic(), 2 * SECONDS
    try:
        while process.is_alive():
            connection.wait([process.sentinel], timeout=0.2)
            now = log.stat().st_size if log.exists() else 0
            if now != size:
                size, heard = now, time.monotonic()
            elif time.monotonic() - heard > limit:
                return f"stopped after {limit:g} s: it does not come to an end"
    finally:
        runner.end(process)
    return str(runner.how_it_ended(process.exitcode))


# ---- in that process


def _serve(key: str, tasks: list[str], log: str) -> None:
    """Try tasks one after another, and write what comes of each to `log`."""
    if hasattr(os, "setsid"):
        os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):  # what the code under test prints is for no one here
        os.dup2(nothing, handle)
    os.chdir(layout.HOME)
    with open(log, "a", encoding="utf-8") as file:

        def write(event: dict[str, Any]) -> None:
            file.write(f"\n{json.dumps(event)}\n")  # a killed process may have left half a line
            file.flush()

        try:
            _try_all(key, tasks, write)
        except (loading.Unloadable, Unverified) as error:
            for task in tasks:
                write(asdict(Trial(task, trouble=str(error))))
        write({"finished": True})
    os._exit(0)  # whatever threads the code under test has left


def _try_all(key: str, tasks: list[str], write: Callable[[dict[str, Any]], None]) -> None:
    import torch

    torch.set_num_threads(1)
    spare_the_compiler()
    with _lane(key):
        examples = loading.load(layout.tests(key), f"tests.{key}").EXAMPLES
        solution = loading.load(layout.source(layout.SOLUTIONS, key), f"solution.{key}")
        with time_limit(SECONDS):
            yours = loading.load_candidate(layout.EXERCISES, key)
        for task in tasks:
            if task in examples:
                write({"begun": task})
                write(asdict(_tried(key, task, examples[task], yours, solution)))


def _lane(key: str) -> contextlib.AbstractContextManager[None]:
    """What kernels run in."""
    if not layout.is_kernel(key):
        return contextlib.nullcontext()
    os.environ["TRITON_INTERPRET"] = "1"  # triton asks when it is imported, and never again
    from paperlings.lanes import interpreter

    return interpreter.faithful()


def _tried(key: str, task: str, example: Any, yours: ModuleType, solution: ModuleType) -> Trial:
    trial = Trial(task)
    calls: Calls = {
        side: lambda impl=impl: example.ready(impl, task, example.arguments())  # type: ignore[misc]
        for side, impl in ((YOURS, yours), (SOLUTION, solution))
    }
    try:
        with time_limit(SECONDS):
            trial.difference, trial.apart = _compared(calls[YOURS]()(), calls[SOLUTION]()())
            if layout.is_kernel(key):
                _count_traffic(trial, calls)
            else:
                _count_tensors(trial, calls)
                _time(trial, calls)
    except TimeLimit as error:
        trial.trouble = f"{error}: it does not come to an end"
    except NotImplementedError as error:
        trial.trouble = f"{error} is not written yet"
    except BaseException as error:  # sys.exit is none of Exception's
        trial.trouble = words.in_words(error, yours, layout.EXERCISES)
    return trial


def _compared(answer: Any, wanted: Any) -> tuple[str, float]:
    """The difference between two answers in words, or the largest distance of their numbers."""
    import torch
    from torch.utils._pytree import tree_leaves

    from paperlings.testing.close import Mismatch, assert_close

    try:
        assert_close(answer, wanted, "")
    except Mismatch as mismatch:
        return mismatch.difference, 0.0
    apart = 0.0
    for pair in zip(tree_leaves(answer), tree_leaves(wanted), strict=True):
        if isinstance(pair[0], torch.Tensor | int | float):
            a, b = (torch.as_tensor(leaf).detach().to(torch.complex128) for leaf in pair)
            gaps = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
            apart = max(apart, float(gaps.max()) if gaps.numel() else 0.0)
    return "", apart


def _count_tensors(trial: Trial, calls: Calls) -> None:
    """The operators of both sides, and the tensors they make."""
    from paperlings.testing.meter import measure

    operators = {}
    for side, ready in calls.items():
        found = measure(ready())
        operators[side] = {
            name.removeprefix("aten."): count
            for name, count in found.operators.items()
            if name.startswith("aten.")
        }
        trial.measures[side] = {
            "operators": sum(operators[side].values()),
            "made": found.made,
            "largest": found.largest,
        }
    for side, other in ((YOURS, SOLUTION), (SOLUTION, YOURS)):
        trial.alone[side] = sorted(operators[side].keys() - operators[other].keys())


def _count_traffic(trial: Trial, calls: Calls) -> None:
    """What the kernels of both sides move and compute; interpreted, their time says nothing."""
    from paperlings.lanes.traffic import traffic

    for side, ready in calls.items():
        found = traffic(ready())
        trial.measures[side] = {
            "launches": len(found.launches),
            "bytes": found.sectors,
            "flops": found.flops,
        }


def _time(trial: Trial, calls: Calls) -> None:
    """The processor's time for a call of both sides, in rounds in which they take turns in any
    order.
    """
    slowest = max(min(_seconds(ready, 1) for _ in range(2)) for ready in calls.values())
    count = min(max(int(SAMPLE / max(slowest, 1e-9)), 1), 200)
    samples: dict[str, list[float]] = {side: [] for side in calls}
    chance, begun = random.Random(0), time.monotonic()
    for i in range(MOST):
        if i >= FEWEST and time.monotonic() - begun > BUDGET:
            break
        for side in chance.sample(list(calls), k=len(calls)):
            samples[side].append(_seconds(calls[side], count))
    for side, seconds in samples.items():
        trial.measures[side]["seconds"] = statistics.median(seconds)
    ratios = [y / max(s, 1e-9) for y, s in zip(samples[YOURS], samples[SOLUTION], strict=True)]
    trial.ratio = statistics.quantiles(ratios, n=4, method="inclusive")


def _seconds(ready: Callable[[], Callable[[], Any]], count: int) -> float:
    """The mean time of `count` calls, each on fresh arguments."""
    calls = [ready() for _ in range(count)]
    # what else the machine does is not counted, where a clock that knows is fine enough
    fine = time.get_clock_info("process_time").resolution < 1e-6
    clock = time.process_time if fine else time.perf_counter
    gc.disable()
    begun = clock()
    for call in calls:
        call()
    seconds = clock() - begun
    gc.enable()
    return seconds / count
