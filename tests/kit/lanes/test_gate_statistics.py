"""The gate's verdicts on clocks that are simulated, where the truth is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from paperlings.lanes.gate.statistics import (
    CONFIDENCE,
    FAIL,
    PASS,
    UNDECIDED,
    Bar,
    Controls,
    Samples,
    overall,
    ratio,
    settle,
)

CONTROLS = Controls("candidate", "again", "kit", "twice")
GATES = 200


def clock(
    seed: int, speed: float, *, bimodal: float = 0.0, again: float = 1.0, twice: float = 2.0
) -> Callable[[int], Samples]:
    """Rounds of a GPU whose clock drifts by a tenth, with 1 % of noise and 3 % of outliers.

    speed: the candidate's, in units of the kit's kernel.  bimodal: how much longer two calls in
    five take.
    """
    chance = np.random.default_rng(seed)
    costs = {"candidate": 1 / speed, "again": again / speed, "kit": 1.0, "twice": twice}
    done = 0

    def draw(rounds: int) -> Samples:
        nonlocal done
        when = np.arange(done, done + rounds)
        done += rounds
        drift = 1 + 0.05 * np.sin(when / 37) + 0.05 * when / 400

        def times(cost: float) -> np.ndarray:
            noise = 1 + 0.01 * chance.standard_normal(rounds)
            late = (chance.random(rounds) < 0.03) * chance.exponential(1.0, rounds)
            mode = (chance.random(rounds) < 0.4) * bimodal
            return cost * drift * noise * (1 + late) * (1 + mode)

        return {name: times(cost) for name, cost in costs.items()}

    return draw


def verdicts(
    speed: float,
    bar: float,
    *,
    bimodal: float = 0.0,
    again: float = 1.0,
    twice: float = 2.0,
    gates: int = GATES,
) -> Counter[str]:
    found: Counter[str] = Counter()
    for seed in range(gates):
        draw = clock(seed, speed, bimodal=bimodal, again=again, twice=twice)
        _, [(_, verdict)], _ = settle(draw, [Bar("kit", bar)], CONTROLS, 61, 3)
        found[verdict] += 1
    return found


def test_the_interval_is_that_of_endless_resampling() -> None:
    """The bootstrap percentiles of a median follow from the binomial distribution alone."""
    for n in (15, 61, 244):
        ratios = np.random.default_rng(n).lognormal(0.0, 0.05, n)
        resampled = np.median(np.random.default_rng(1).choice(ratios, (40_000, n)), axis=1)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        found = ratio(ratios, np.ones(n))
        assert found.low == pytest.approx(low, abs=2e-3)
        assert found.high == pytest.approx(high, abs=2e-3)


@pytest.mark.parametrize("bar", [1.0, 0.85])
def test_two_percent_too_slow_never_passes(bar: float) -> None:
    """A kernel that is 2 % slower than its bar is failed every time, under drift and outliers."""
    assert verdicts(0.98 * bar, bar) == {FAIL: GATES}


@pytest.mark.parametrize("bar", [1.0, 0.85])
def test_exactly_at_the_bar_is_mostly_undecided(bar: float) -> None:
    """A kernel exactly at its bar passes by luck one time in twenty at most."""
    found = verdicts(bar, bar, gates=1000)
    assert found[PASS] <= 0.05 * 1000
    assert found[UNDECIDED] >= 0.9 * 1000


@pytest.mark.parametrize(("speed", "bar"), [(2.0, 1.0), (1.1, 1.0), (0.9, 0.85), (0.87, 0.85)])
def test_a_little_faster_than_the_bar_passes(speed: float, bar: float) -> None:
    """A kernel that is 2 % faster than its bar, or more, passes 99 times in 100 and more."""
    assert verdicts(speed, bar)[PASS] >= 0.99 * GATES


@pytest.mark.parametrize("bimodal", [0.05, 0.3])
def test_two_modes_of_the_clock_change_no_verdict(bimodal: float) -> None:
    """Calls that take longer now and then, whoever makes them, pass nobody and fail nobody."""
    assert verdicts(0.96, 1.0, bimodal=bimodal)[PASS] == 0
    assert verdicts(1.1, 1.0, bimodal=bimodal)[FAIL] == 0
    assert verdicts(1.0, 1.0, bimodal=bimodal)[PASS] <= 0.05 * GATES


@pytest.mark.parametrize(
    "control", [{"again": 1.04}, {"again": 0.96}, {"twice": 1.8}, {"twice": 1.0}]
)
def test_nothing_is_decided_where_the_controls_are_off(control: dict[str, float]) -> None:
    """Where the same work reads as other work, or twice the work not as twice, nobody passes."""
    assert verdicts(2.0, 1.0, **control) == {UNDECIDED: GATES}
    assert verdicts(0.5, 1.0, **control) == {UNDECIDED: GATES}


def test_rounds_are_doubled_until_the_bar_is_decided() -> None:
    """A clear case takes the first rounds only, an open one eight times as many, in time."""
    for speed, rounds in ((1.1, 61), (1.0, 488)):
        samples, _, _ = settle(clock(1, speed), [Bar("kit", 1.0)], CONTROLS, 61, 3)
        assert len(samples["kit"]) == rounds
    samples, _, _ = settle(
        clock(1, 1.0), [Bar("kit", 1.0)], CONTROLS, 61, 3, lambda more: more < 99
    )
    assert len(samples["kit"]) == 122


def test_one_fail_fails_and_only_all_passes_pass() -> None:
    """A contest without a bar, or with an open one, is undecided."""
    assert overall([PASS, FAIL, UNDECIDED]) == FAIL
    assert overall([PASS, PASS]) == PASS
    assert overall([PASS, UNDECIDED]) == overall([]) == UNDECIDED
