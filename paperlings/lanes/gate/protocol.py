"""One contest from its first value to its verdict.

Values first, and no speed on a red check. Then rounds: each times every contender once, in random
order, on inputs refilled in place with values that nobody has seen, and the candidate's answers to
some of those very calls are checked when the clock has stopped.
"""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from paperlings.lanes.contest import Call
from paperlings.lanes.gate.devices import GIB, Probe, Timing
from paperlings.lanes.gate.guard import HONEST, OWN, refuse_shared, tensors
from paperlings.lanes.gate.results import (
    AGAIN,
    CANDIDATE,
    COMPILED,
    EAGER,
    KIT,
    ROOF,
    TODO,
    TWICE,
    Result,
)
from paperlings.lanes.gate.statistics import (
    FAIL,
    UNDECIDED,
    Bar,
    Controls,
    Ratio,
    Samples,
    overall,
    ratio,
    settle,
)
from paperlings.lanes.gate.values import (
    Arguments,
    Candidate,
    Unmeasurable,
    Unwritten,
    check_values,
    resembles,
    said,
)
from paperlings.testing.close import Mismatch

JUDGED = (CANDIDATE, AGAIN)
LEAST = 15  # rounds of which something can be said
COMPILING = 10.0  # seconds that must be left for torch.compile to be worth trying
HELD = 4 * GIB  # bytes of answers that wait to be checked
ROOFS = {"copy": ("copy", "read"), "matmul": ("matmul",)}  # the probes that show each roof
IMPOSSIBLE = 1.03  # of the measured roof: nobody is faster
# what the host may wait for, beside what the events saw: seconds, and a share of the call's own
LATENCY, ASIDE = 20e-6, 0.1
FASTER = (
    "What does the kernel wait for: narrow loads, a value that is read twice, too little in flight?"
)


@dataclass(frozen=True)
class Rules:
    """How much is measured: rounds at first, and how often they are doubled; sets of inputs;
    seconds of load before the first round; the share of rounds whose answers are checked.
    """

    rounds: int = 61
    doublings: int = 3
    sets: int = 4
    load: float = 0.3
    kept: float = 0.1


@dataclass(frozen=True)
class Turn:
    """One call made ready, and the arguments it has."""

    call: Callable[[], Any]
    arguments: Arguments | None = None


def judge(
    candidate: Candidate,
    kit: Call | None,
    bars: Mapping[str, float],
    seconds: float,
    chance: random.Random,
    rules: Rules = Rules(),
) -> Result:
    """What becomes of one contest in about so many seconds.

    kit: the kit's own answer to the task, unless that is the candidate.
    bars: what the time of a contender, or of the roof, over the candidate's must be at least.
    """
    contest = candidate.contest
    result = Result(contest.name, contest.task, UNDECIDED, bars=dict(bars))
    result.roof, result.bytes, result.flops = contest.roof, contest.bytes, contest.flops
    deadline = candidate.device.now() + seconds
    try:
        result.left_out |= check_values(candidate, chance)
        Race(candidate, kit, rules, chance, result).run(deadline)
    except Unwritten:
        result.verdict = TODO
    except Mismatch as error:
        result.verdict, result.why, result.question = FAIL, error.difference, error.question
    except Unmeasurable as error:
        result.why = str(error)
    except Exception as error:  # the candidate's own are mismatches: this one is of somebody else
        result.why = f"not measured: {said(error)}"
    return result


@dataclass
class Race:
    """The timing of one contest, which fills in a result."""

    candidate: Candidate
    kit: Call | None
    rules: Rules
    chance: random.Random
    result: Result
    contenders: dict[str, Callable[[], Turn]] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)
    # answers given while the clock ran, with their arguments and the seed of those
    kept: list[tuple[Any, Arguments, int]] = field(default_factory=list)
    # by contender, of calls that hid behind the flush and of bare ones
    asides: dict[tuple[str, bool], list[Timing]] = field(default_factory=dict)

    def run(self, deadline: float) -> None:
        """Measure and decide. Raises Mismatch and Unmeasurable."""
        device, guard = self.candidate.device, self.candidate.guard
        self.sets = [self._arguments() for _ in range(self.rules.sets)]
        base = self._line_up(deadline)
        self._load()
        with _no_collection():
            began = device.now()
            self._round()  # which nobody counts: refilling and flushing are warm now, too
            each = max(device.now() - began, 1e-9)
            rounds = int((deadline - device.now()) / each)
            self.result.clocks.append(device.state())
            samples, found, trouble = settle(
                self._draw,
                [Bar(name, least) for name, least in self.result.bars.items() if self._ran(name)],
                Controls(CANDIDATE, AGAIN, base, TWICE),
                max(LEAST, min(self.rules.rounds, rounds)),
                self.rules.doublings,
                lambda more: device.now() + more * each < deadline,
            )
            self.result.clocks.append(device.state())
        guard.check()
        self._check_asides()
        self._report(samples, base)
        self._check_roofs(samples, trouble)
        self._decide(found, trouble)

    # ---- who runs

    def _line_up(self, deadline: float) -> str:
        """Warm everybody up, leave out who cannot run; returns whose double is the control."""
        contest, candidate = self.candidate.contest, self.candidate
        own = candidate.call
        self._enter(CANDIDATE, own)
        candidate.guard.check()
        others: dict[str, Call] = {EAGER: contest.eager, **contest.peers}
        if self.kit is not None:
            others[KIT] = self.kit
        if candidate.device.gpu and candidate.device.now() + COMPILING < deadline:
            others[COMPILED] = torch.compile(contest.eager, dynamic=False)
        elif candidate.device.gpu:
            self.result.left_out[COMPILED] = "there was no time for it"
        shown = self._arguments().args
        truth = contest.truth(*shown, **contest.kwargs)
        for name, call in others.items():
            try:
                if not resembles(call(*shown, **contest.kwargs), truth):
                    raise ValueError("it answers something else")
                self._enter(name, call)
            except Exception as error:  # anything may be wrong with other people's code
                self.result.left_out[name] = said(error)
        del shown, truth
        candidate.guard.renew()
        if EAGER not in self.contenders:
            raise Unmeasurable(f"eager torch cannot run: {self.result.left_out[EAGER]}")
        base = CANDIDATE if self.kit is None else KIT if self._ran(KIT) else EAGER
        call = own if base == CANDIDATE else others[base]
        self.contenders[AGAIN] = self.contenders[CANDIDATE]
        self.contenders[TWICE] = lambda: self._twice(call)
        # as many bytes as the contest moves: what stays in the cache at the end is the same share
        size = min(max(contest.bytes or GIB, GIB // 16), 4 * GIB)
        self.probes = candidate.device.probes(size)
        for name, probe in self.probes.items():
            self.contenders[name] = lambda probe=probe: Turn(probe.call)  # type: ignore[misc]
        return base

    def _enter(self, name: str, call: Call) -> None:
        """Let a contender tune itself and get warm, and see how much memory it takes."""

        def prepare() -> Turn:
            return self._once(call)

        def warm() -> int:
            for _ in range(3):
                turn.call()
                self.candidate.device.wait()
            return self.candidate.device.peak(turn.call)[1]

        turn = prepare()
        self.result.peak[name] = self.candidate.tried(warm) if name == CANDIDATE else warm()
        self.contenders[name] = prepare

    def _load(self) -> None:
        """Work without a pause until clocks and heat are steady."""
        device = self.candidate.device
        turns = {name: prepare() for name, prepare in self.contenders.items()}
        end = device.now() + self.rules.load
        while device.now() < end:
            for name, turn in turns.items():
                self.candidate.tried(turn.call) if name in JUDGED else turn.call()
            device.wait()

    def _ran(self, name: str) -> bool:
        return name in self.contenders or (name == ROOF and self._amount(self.result.roof) > 0)

    # ---- one call

    def _arguments(self) -> Arguments:
        return Arguments(
            self.candidate.contest.inputs, self.candidate.device, self.chance.getrandbits(60)
        )

    def _refilled(self, *others: Arguments) -> Arguments:
        chosen = self.chance.choice([a for a in self.sets if a not in others])
        chosen.refill(self.chance.getrandbits(60))
        return chosen

    def _once(self, call: Call) -> Turn:
        arguments, kwargs = self._refilled(), self.candidate.contest.kwargs
        return Turn(lambda: call(*arguments.args, **kwargs), arguments)

    def _twice(self, call: Call) -> Turn:
        """The same work twice, on two sets: what the cache still holds helps neither."""
        first, kwargs = self._refilled(), self.candidate.contest.kwargs
        second = self._refilled(first)
        return Turn(lambda: (call(*first.args, **kwargs), call(*second.args, **kwargs)))

    def _timed(self, name: str, keep: bool = False, bare: bool = False) -> float:
        """The seconds of a contender's next call; of the candidate's, the answer may be kept."""
        turn, device = self.contenders[name](), self.candidate.device
        if name not in JUDGED:
            timing = device.time(turn.call, bare=bare)[1]
        else:
            answer, timing = self.candidate.tried(lambda: device.time(turn.call, bare=bare))
            tensors(answer)
            assert turn.arguments is not None
            refuse_shared(answer, turn.arguments.args, *(kept for kept, _, _ in self.kept))
            if keep:
                self.kept.append((answer, turn.arguments, turn.arguments.seed))
        self.asides.setdefault((name, bare), []).append(timing)
        return timing.seconds

    # ---- rounds

    def _draw(self, rounds: int) -> Samples:
        drawn = []
        for number in range(rounds):
            keep = number == rounds - 1 or self.chance.random() < self.rules.kept
            drawn.append(self._round(keep))
        self._check_kept()
        samples = {name: np.array([taken[name] for taken in drawn]) for name in drawn[0]}
        if (roof := self._roof(samples, self.result.roof)) is not None:
            samples[ROOF] = roof
        return samples

    def _round(self, keep: bool = False) -> dict[str, float]:
        """Everybody once, in random order."""
        order = list(self.contenders)
        self.chance.shuffle(order)
        taken = {name: self._timed(name, keep) for name in order}
        if keep:
            for name in (EAGER, CANDIDATE):
                self._timed(name, bare=True)
        if sum(x.nbytes for answer, _, _ in self.kept for x in tensors(answer)) > HELD:
            self._check_kept()
        return taken

    def _check_kept(self) -> None:
        """Raise Mismatch unless what was answered while the clock ran is right."""
        for answer, arguments, seed in self.kept:
            self.candidate.check(answer, arguments, seed, ", while it was timed")
        self.kept.clear()

    def _check_asides(self) -> None:
        """Raise Mismatch where the device was busy with more than the events saw."""
        for bare in (False, True):
            mine = self.asides[CANDIDATE, bare]
            usual = np.median([timing.aside for timing in self.asides[EAGER, bare]])
            more = np.median([timing.aside for timing in mine]) - usual
            seconds = np.median([timing.seconds for timing in mine])
            if more > LATENCY + ASIDE * seconds:
                raise Mismatch(
                    HONEST,
                    f"work outside the timed stream: the events saw {_time(seconds)}, "
                    f"and the device was busy for {_time(more)} beside them",
                )

    # ---- what it means

    def _amount(self, roof: str) -> int:
        return self.result.bytes if roof == "copy" else self.result.flops

    def _roof(self, samples: Samples, roof: str) -> np.ndarray | None:
        """The seconds that the contest takes at the measured roof, in every round."""
        amount = self._amount(roof)
        if not amount:
            return None
        shown = [samples[name] * amount / self.probes[name].amount for name in ROOFS[roof]]
        return np.asarray(np.min(shown, axis=0))

    def _report(self, samples: Samples, base: str) -> None:
        result, own = self.result, samples[CANDIDATE]
        shown = [name for name in self.contenders if name not in (CANDIDATE, TWICE, *self.probes)]
        result.ratios = {name: ratio(samples[name], own) for name in shown}
        result.twice = ratio(samples[TWICE], samples[base])
        result.of_roof = ratio(samples[ROOF], own) if ROOF in samples else None
        result.roofs = {
            name: probe.amount / float(np.median(samples[name]))
            for name, probe in self.probes.items()
        }
        result.samples = {
            name: [round(1e6 * float(s), 2) for s in samples[name]] for name in self.contenders
        }

    def _check_roofs(self, samples: Samples, trouble: str) -> None:
        """Raise Mismatch where the candidate is faster than this machine can be."""
        for name in ROOFS:
            roof = self._roof(samples, name)
            if roof is None or trouble:
                continue
            share = ratio(roof, samples[CANDIDATE])
            if share.low > IMPOSSIBLE:
                said = f"faster than the machine: {share} of the {name} measured in the same run"
                raise Mismatch(OWN, said)

    def _decide(self, found: list[tuple[Ratio, str]], trouble: str) -> None:
        result = self.result
        measured = [name for name in result.bars if self._ran(name)]
        lines = [trouble] if trouble else []
        verdicts = [verdict for _, verdict in found]
        for name, (value, verdict) in zip(measured, found, strict=True):
            if verdict == FAIL or (verdict == UNDECIDED and not trouble):
                asked = f"{result.bars[name]:g} is asked"
                lines.append(f"{value} of the speed of {called(name)}, where {asked}")
        for name in result.bars.keys() - set(measured):
            verdicts.append(UNDECIDED)
            reason = result.left_out.get(name, "nobody of that name runs here")
            lines.append(f"no comparison with {called(name)}: {reason}")
        result.verdict = overall(verdicts)
        result.why = "; ".join(lines) or ("" if result.bars else "no bar is set")
        if result.verdict == FAIL:
            result.question = FASTER


def called(name: str) -> str:
    """A contender as a sentence names it."""
    names = {KIT: "the kit's own kernel", ROOF: "the measured roof", EAGER: "eager torch"}
    return names.get(name, name)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Python collects no garbage while the clock runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
