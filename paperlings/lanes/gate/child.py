"""The process that measures one kernel: `python -m paperlings.lanes.gate.child HANDLE`.

It has triton's compiler, not its interpreter, and one device to itself. The handle is a socket, on
which it is told its job, and says what it finds at once, a line an event, so that whoever started
it knows how far it came.

It needs nothing of the house but the package: what it measures against comes with the job, as text,
and is loaded before the candidate is. Yet the two share one memory. Whoever goes through it finds
the seed, the contests, the kit's compiled functions and the socket, and can hand in the kit's
kernel as his own, with the right values and its real speed, or say himself what is found.
`watch` and `guard` look for the ways that are known; no more is promised, sealed or not.
"""

from __future__ import annotations

import json
import linecache
import random
import socket
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from paperlings import layout, loading
from paperlings.sealed import sandbox, workshop

LEARNER = 0.85  # of the speed of the kit's own kernel is enough
LOADS = "Can the file be imported on a machine with a GPU?"


@dataclass(frozen=True)
class Job:
    """What to measure, and how long that may take.

    root: what is measured lies under it.  rules: of `protocol.Rules`, where they are not the usual
    ones.  contests: the text of the file of them.  kit: that of the kit's own kernel; "" where it
    is what is measured, and `bars` are what it must reach.
    """

    key: str
    root: str
    device: str
    seconds: float
    seed: int
    rules: dict[str, float]
    contests: str = ""
    kit: str = ""
    bars: dict[str, dict[str, float]] = field(default_factory=dict)

    def provided(self) -> Job:
        """With what the house has of the kernel. Raises OSError, ValueError."""
        job = replace(self, contests=contests_file(self.key).read_text(encoding="utf-8"))
        if Path(self.root) == layout.SOLUTIONS:
            return replace(job, bars=bars_of(self.key))
        kit = layout.source(layout.SOLUTIONS, self.key)
        return replace(job, kit=kit.read_text(encoding="utf-8"))


def contests_file(key: str) -> Path:
    """What the gate measures of a kernel."""
    return layout.tests(key).with_name(f"gate_{key.partition('/')[2]}.py")


def bars_of(key: str) -> dict[str, dict[str, float]]:
    """What the kit's own kernel must reach, by contest, from its .toml. Raises ValueError."""
    from paperlings.lanes.gate.results import ROOF

    path, bars = layout.knowledge(key), {}
    for name, table in tomllib.loads(path.read_text(encoding="utf-8")).get("gate", {}).items():
        if unknown := table.keys() - {"vs", "of_roof"}:
            raise ValueError(f"{layout.shown(path)}: gate.{name!r} has {min(unknown)!r}")
        bars[name] = dict(table.get("vs", {}))
        if "of_roof" in table:
            bars[name][ROOF] = table["of_roof"]
    return bars


def measure(job: Job, say: Callable[..., None]) -> None:
    """Judge every contest of the job's kernel, and say what is found."""
    import torch

    from paperlings.lanes import watch
    from paperlings.lanes.gate import devices, protocol
    from paperlings.lanes.gate.guard import Guard
    from paperlings.lanes.gate.results import KIT, Result
    from paperlings.lanes.gate.statistics import FAIL
    from paperlings.lanes.gate.values import Candidate
    from paperlings.testing.close import Mismatch

    launcher = None
    device: devices.Device
    if job.device == "cuda":
        import triton

        device, launcher = devices.Cuda(), triton.runtime.JITFunction
        triton.runtime.driver.active.get_current_device()  # what it sets up is not the candidate's
    else:
        device = devices.Processor()
        torch.set_num_threads(1)
    root = Path(job.root)
    kits = layout.source(layout.SOLUTIONS, job.key)
    name = "candidate." + job.key.replace("/", ".")  # which the candidate takes over
    kit = loading.load(kits, name, job.kit) if job.kit else None
    linecache.clearcache()  # which the kit's text would be handed out by
    contests = loading.load(contests_file(job.key), "contests." + job.key, job.contests).CONTESTS
    bars = {c.name: {KIT: LEARNER} for c in contests} if kit else job.bars
    say(machine=device.machine(), contests=[[c.name, c.task] for c in contests])
    if unknown := sorted(bars.keys() - {c.name for c in contests}):
        raise ValueError(f"{layout.shown(layout.knowledge(job.key))}: no contest {unknown[0]!r}")
    chance = random.Random(job.seed)
    deadline = device.now() + job.seconds
    with watch.held(layout.source(root, job.key)) as watched:
        guard = Guard(watched, launcher)
        say(inside=True)
        try:
            module = loading.load_candidate(root, job.key)
            guard.check()
        except (loading.Unloadable, Mismatch) as error:
            question = error.question if isinstance(error, Mismatch) else LOADS
            why = error.difference if isinstance(error, Mismatch) else str(error)
            for contest in contests:
                say(result=Result(contest.name, contest.task, FAIL, why, question).plain())
            return
        say(inside=False)
        for i, contest in enumerate(contests):
            candidate = Candidate(
                contest, _task(module, contest.task), device, guard, lambda now: say(inside=now)
            )
            result = protocol.judge(
                candidate,
                _task(kit, contest.task) if kit else None,
                bars.get(contest.name, {}),
                (deadline - device.now()) / (len(contests) - i),
                chance,
                protocol.Rules(**job.rules),  # type: ignore[arg-type]
            )
            say(result=result.plain())


def _task(module: ModuleType, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(module, name)(*args, **kwargs)

    return call


def main() -> None:
    end = socket.socket(fileno=int(sys.argv.pop()))
    if sandbox.is_contained():
        workshop.enter()
    with end.makefile(encoding="utf-8") as told:
        job = Job(**json.load(told))

    def say(**event: Any) -> None:
        end.sendall((json.dumps(event) + "\n").encode())

    measure(job, say)
    say(end=True)


if __name__ == "__main__":
    main()
