"""The gate inside pytest: `gate(impl)` in a test that is marked `gate`, and its samples handed to
pytest-benchmark, which stores, compares and shows them as if it had measured them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from paperlings import lanes, layout
from paperlings.judge import judge_of
from paperlings.outcomes import unverified

if TYPE_CHECKING:  # the plugin is loaded for every session, and few sessions measure
    from paperlings.lanes.gate.results import Report, Result

DEVICE = "cuda"
SECONDS = 150.0  # a kernel, beside what its compilers take
REPORTS = pytest.StashKey["dict[str, Report]"]()


class ReplayClock:
    """A timer by which exactly the time passes that was measured before."""

    def __init__(self) -> None:
        self.load([])

    def load(self, seconds: list[float]) -> None:
        self.now, self.seconds = 0.0, iter(seconds)

    def __call__(self) -> float:
        return self.now

    def tick(self) -> None:
        """Stands for the call that was timed."""
        self.now += next(self.seconds)


CLOCK = ReplayClock()


@pytest.fixture
def gate(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`gate(impl)` measures the kernel of this test file, once a session, and passes where every
    contest does; `gate(impl, "contest")` looks at one contest, which then has its own benchmark.

    Raises Mismatch on a FAIL, NotImplementedError on a stub, and is unverified on anything else.
    """

    def passes(impl: Any, contest: str = "") -> None:
        key = layout.tested_by(request.path)
        assert key is not None, f"{request.path} is no kernel's test file"
        if reason := lanes.why_not_gate():
            unverified(reason)
        benchmark = _benchmark(request)
        report = _report(request.config, key)
        results = [r for r in report.results if contest in ("", r.name)]
        _replay(benchmark, report, results)
        _conclude(report, results)

    return passes


def _benchmark(request: pytest.FixtureRequest) -> Any:
    """pytest-benchmark's fixture, with our clock. Unverified where it is off."""
    if not request.config.pluginmanager.hasplugin("pytest-benchmark"):
        unverified("not measured: pytest-benchmark is not loaded")
    request.node.add_marker(pytest.mark.benchmark(timer=CLOCK))
    try:
        benchmark = request.getfixturevalue("benchmark")
    except pytest.skip.Exception as skipped:
        unverified(f"not measured: {skipped}")
    if not benchmark.enabled:
        unverified("not measured: benchmarks are disabled, as they are under xdist")
    return benchmark


def _report(config: pytest.Config, key: str) -> Report:
    from paperlings.lanes.gate import process
    from paperlings.sealed.sandbox import Unlockable

    reports = config.stash.setdefault(REPORTS, {})
    if key not in reports:
        root, sealed = judge_of(config).root, config.getoption("--sealed")
        try:
            reports[key] = process.measure(key, root, SECONDS, device=DEVICE, sealed=sealed)
        except Unlockable as error:
            unverified(str(error))
    return reports[key]


def _replay(benchmark: Any, report: Report, results: list[Result]) -> None:
    """Give pytest-benchmark the candidate's samples in the first contest that was timed, and what
    else was measured as extra information.
    """
    from paperlings.lanes.gate.results import CANDIDATE

    timed = next((r for r in results if r.samples), None)
    benchmark.extra_info.update(
        kernel=report.kernel,
        machine=report.machine,
        seed=report.seed,
        contests={r.name: numbers(r) for r in results},
    )
    if timed is not None:
        benchmark.extra_info["contest"] = timed.name
        CLOCK.load([microseconds * 1e-6 for microseconds in timed.samples[CANDIDATE]])
        benchmark.pedantic(CLOCK.tick, rounds=len(timed.samples[CANDIDATE]))


def numbers(result: Result) -> dict[str, Any]:
    """What was measured in a contest, without the samples."""

    from paperlings.lanes.gate.results import AGAIN

    def interval(ratio: Any) -> list[float] | None:
        return ratio and [ratio.median, ratio.low, ratio.high]

    seconds = result.seconds
    return {
        "verdict": result.verdict,
        "why": result.why,
        "ratios": {name: interval(ratio) for name, ratio in result.ratios.items()},
        "noise_floor": interval(result.ratios.get(AGAIN)),
        "of_roof": interval(result.of_roof),
        "GB/s": result.bytes / seconds / 1e9 if seconds else None,
        "TFLOP/s": result.flops / seconds / 1e12 if seconds else None,
        "roofs": result.roofs,
        "peak_bytes": result.peak,
        "left_out": result.left_out,
    }


def _conclude(report: Report, results: list[Result]) -> None:
    from paperlings.lanes.gate.results import TODO
    from paperlings.lanes.gate.statistics import FAIL, UNDECIDED
    from paperlings.testing.close import Mismatch

    for result in _of(results, FAIL):
        raise Mismatch(result.question, f"{result.name}: {result.why}")
    for result in _of(results, TODO):
        raise NotImplementedError(result.task)
    if report.trouble:
        unverified(f"not measured: {report.trouble.splitlines()[-1]}")
    for result in _of(results, UNDECIDED):
        unverified(f"{result.name}: {result.why}")
    if not results:
        unverified("not measured: there is no such contest")


def _of(results: list[Result], verdict: str) -> Iterator[Result]:
    return (result for result in results if result.verdict == verdict)
