"""Ratios of times that were measured in rounds, and what chance leaves open of them.

A round times every contender once, within a few milliseconds: clocks and heat are the same for
all, and drop out of its ratios. A verdict is about the median of the ratios of all rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

PASS, FAIL, UNDECIDED = "PASS", "FAIL", "UNDECIDED"
# a run looks at its rounds up to four times and may stop at each: so that all its intervals hold
# together with 95 %, each holds with a little more (Pocock 1977, table 1)
CONFIDENCE = 0.982
NOISE = 0.03  # how far the interval of a contender against itself may reach from 1
TWICE = 0.05  # how far, relatively, what is twice the work may read from twice the time

# seconds of every round by contender
Samples = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Ratio:
    """The median of a ratio over the rounds, and its bootstrap interval."""

    median: float
    low: float
    high: float

    def against(self, bar: float) -> str:
        """PASS where the whole interval reaches the bar, FAIL where none of it does."""
        return PASS if self.low >= bar else FAIL if self.high < bar else UNDECIDED

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> Ratio:
    """How many times the denominator the numerator is, round by round."""
    ratios = np.sort(numerator / denominator)
    low, high = _ranks(len(ratios))
    return Ratio(float(np.median(ratios)), float(ratios[low]), float(ratios[high]))


@functools.cache
def _ranks(n: int) -> tuple[int, int]:
    """Which two of n sorted values bound the bootstrap interval of their median.

    The median of a resample is at most the k-th value when more than half of the resample is, and
    of that the number is binomial: no resampling is needed to know the percentiles.
    """
    k, j = np.arange(1, n)[:, None], np.arange(n + 1)
    log = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    chance = np.exp(
        log[n] - log[j] - log[n - j] + j * np.log(k / n) + (n - j) * np.log1p(-k / n)
    )  # of j values of a resample among the first k

    def rank(most: float, half: int) -> int:
        return int(np.searchsorted(chance[:, half:].sum(1), most))

    tail = (1 - CONFIDENCE) / 2
    # for an even n the median lies between two values: the outer one is taken
    return rank(tail, n // 2 if n % 2 == 0 else n // 2 + 1), rank(1 - tail, n // 2 + 1)


@dataclass(frozen=True)
class Bar:
    """What the time of `against` over the candidate's must be at least."""

    against: str
    at_least: float


@dataclass(frozen=True)
class Controls:
    """Pairs of contenders whose ratio is known: 1 for the candidate and itself, 2 for the base and
    twice the base.
    """

    candidate: str
    again: str
    base: str
    twice: str

    def trouble(self, samples: Samples) -> str:
        """Why this run cannot tell anything; "" where it can."""
        same = ratio(samples[self.again], samples[self.candidate])
        if max(same.high - 1, 1 - same.low) > NOISE:
            return f"the candidate against itself reads {same}, where it should read 1"
        double = ratio(samples[self.twice], samples[self.base])
        if abs(double.median / 2 - 1) > TWICE:
            return f"twice the work reads {double}, where it should read 2"
        return ""


def settle(
    draw: Callable[[int], Samples],
    bars: list[Bar],
    controls: Controls,
    rounds: int,
    doublings: int,
    in_time: Callable[[int], bool] = lambda more: True,
) -> tuple[Samples, list[tuple[Ratio, str]], str]:
    """Draw rounds, and twice as many, until every bar is decided or `doublings` are used up.

    draw: measures so many more rounds. in_time: whether there is time for so many more.
    Returns all samples, each bar's ratio and verdict, and the controls' trouble, under which
    nothing is decided.
    """
    samples = draw(rounds)
    while True:
        trouble = controls.trouble(samples)
        found = []
        for bar in bars:
            measured = ratio(samples[bar.against], samples[controls.candidate])
            found.append((measured, UNDECIDED if trouble else measured.against(bar.at_least)))
        more = len(samples[controls.candidate])
        open_ = trouble or any(verdict == UNDECIDED for _, verdict in found)
        if not open_ or doublings == 0 or not in_time(more):
            return samples, found, trouble
        drawn = draw(more)
        samples = {name: np.concatenate([samples[name], drawn[name]]) for name in samples}
        doublings -= 1


def overall(verdicts: list[str]) -> str:
    """FAIL if any is, PASS if all are, and UNDECIDED of nothing."""
    if FAIL in verdicts:
        return FAIL
    return PASS if verdicts and set(verdicts) == {PASS} else UNDECIDED
