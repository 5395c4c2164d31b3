"""The gate on a simulated device: honest candidates of known speed, and every way to cheat it."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paperlings.lanes import watch
from paperlings.lanes.contest import Contest
from paperlings.lanes.gate.devices import Simulated
from paperlings.lanes.gate.guard import Guard
from paperlings.lanes.gate.protocol import Rules, judge
from paperlings.lanes.gate.results import AGAIN, CANDIDATE, EAGER, KIT, ROOF, TODO, Result
from paperlings.lanes.gate.statistics import FAIL, PASS, UNDECIDED
from paperlings.lanes.gate.values import Candidate

LEARNER = {KIT: 0.85}
RULES = Rules(rounds=21, doublings=1, sets=3, load=0.01, kept=0.2)
Work = Callable[..., None]
Task = Callable[[Tensor], Any]


def inputs(generator: torch.Generator, device: torch.device) -> tuple[Tensor]:
    return (torch.randn(4, 8, generator=generator, device=device),)


def contest(work: Work, **changes: Any) -> Contest:
    """y = 2 x + 1, which takes eager torch 4 ms."""

    def eager(x: Tensor) -> Tensor:
        work(4e-3)
        return 2 * x + 1

    known = Contest(
        name="simulated",
        task="double",
        inputs=inputs,
        truth=lambda x: 2 * x.double() + 1,
        eager=eager,
        families={"tiny": lambda g, d: (1e-6 * torch.randn(3, 5, generator=g, device=d),)},
        torch_may=("mul", "add"),
    )
    return replace(known, **changes)


def at_the_gate(
    make: Callable[[Work], Task],
    *,
    bars: dict[str, float] = LEARNER,
    trusted: bool = False,
    rules: Rules = RULES,
    seed: int = 0,
    **changes: Any,
) -> Result:
    """The result of the candidate that `make` makes, beside a kit kernel of 1 ms.

    trusted: the candidate is the kit's own kernel.
    """
    device = Simulated(seed)

    def kit(x: Tensor) -> Tensor:
        device.work(1e-3)
        return 2 * x + 1

    with watch.held(Path(__file__)) as watched:
        guard = Guard(watched)
        candidate = Candidate(contest(device.work, **changes), make(device.work), device, guard)
        own = None if trusted else kit
        return judge(candidate, own, bars, 100.0, random.Random(seed), rules)


def honest(seconds: float) -> Callable[[Work], Task]:
    """A right candidate that takes so long."""

    def make(work: Work) -> Task:
        def double(x: Tensor) -> Tensor:
            work(seconds)
            return 2 * x + 1

        return double

    return make


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(0.5e-3, PASS), (1e-3, PASS), (1.1e-3, PASS), (1.3e-3, FAIL)]
)
def test_the_bar_is_a_share_of_the_kits_speed(seconds: float, verdict: str) -> None:
    """Who is as fast as 0.85 of the kit's kernel passes, in the same run."""
    result = at_the_gate(honest(seconds))
    assert result.verdict == verdict, result.why
    assert result.ratios[KIT].median == pytest.approx(1e-3 / seconds, rel=0.02)
    assert result.ratios[AGAIN].median == pytest.approx(1, rel=0.02)
    assert result.ratios[EAGER].median == pytest.approx(4e-3 / seconds, rel=0.02)
    assert result.twice is not None
    assert result.twice.median == pytest.approx(2, rel=0.02)
    assert len(result.samples[CANDIDATE]) >= RULES.rounds


def test_exactly_at_the_bar_is_undecided_and_says_how_near_it_was() -> None:
    """What could not be told is said in numbers, and is not passed."""
    result = at_the_gate(honest(1e-3 / 0.85))
    assert result.verdict == UNDECIDED
    assert "of the speed of the kit's own kernel, where 0.85 is asked" in result.why


def test_the_kits_own_kernel_is_held_to_peers_and_to_the_roof() -> None:
    """The bars of the .toml are about other people's code and the measured roof."""

    def peer(x: Tensor) -> Tensor:
        raise ImportError("No module named 'peer'")

    bars = {EAGER: 3.5, ROOF: 0.45}
    result = at_the_gate(honest(1e-3), bars=bars, trusted=True, bytes=5 * 10**8)
    assert result.verdict == PASS, result.why
    assert result.of_roof is not None
    assert result.of_roof.median == pytest.approx(0.5, rel=0.02)
    slow = at_the_gate(honest(1e-3), bars={**bars, ROOF: 0.6}, trusted=True, bytes=5 * 10**8)
    assert slow.verdict == FAIL
    assert "of the speed of the measured roof, where 0.6 is asked" in slow.why
    alone = at_the_gate(honest(1e-3), bars={"peer": 1.0}, trusted=True, peers={"peer": peer})
    assert alone.verdict == UNDECIDED, "a bar that was not measured is not passed"
    assert "no comparison with peer: ImportError: No module named 'peer'" in alone.why
    assert at_the_gate(honest(1e-3), bars={}, trusted=True).why == "no bar is set"


def test_a_kit_kernel_that_cannot_run_decides_nothing() -> None:
    """Without the kit's kernel there is no bar, and twice of eager torch is the control."""
    device = Simulated()

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("needs another GPU")

    with watch.held(Path(__file__)) as watched:
        make = honest(1e-3)(device.work)
        candidate = Candidate(contest(device.work), make, device, Guard(watched))
        result = judge(candidate, broken, LEARNER, 100.0, random.Random(0), RULES)
    assert result.verdict == UNDECIDED
    assert result.left_out == {KIT: "RuntimeError: needs another GPU"}


def test_a_peer_that_answers_something_else_is_left_out() -> None:
    """A ratio to other work would mean nothing."""
    peers = {"triple": lambda x: 3 * x + 1, "in bfloat16": lambda x: (2 * x + 1).bfloat16()}
    result = at_the_gate(honest(1e-3), peers=peers)
    assert result.left_out == {"triple": "ValueError: it answers something else"}
    assert "in bfloat16" in result.ratios


def test_a_stub_is_a_stub() -> None:
    """Neither the exception of a stub is a failure, nor the compiler's, which sees it first."""

    def host(work: Work) -> Task:
        def double(x: Tensor) -> Tensor:
            raise NotImplementedError("double")

        return double

    def kernel(work: Work) -> Task:
        def double(x: Tensor) -> Tensor:
            text = 'at 4:4:\ndef _double(X):\n    raise NotImplementedError("_double")\n    ^'
            raise RuntimeError("at 2:4:") from SyntaxError(f"{text}\nunsupported: Raise")

        return double

    def refused(work: Work) -> Task:
        def double(x: Tensor) -> Tensor:
            raise NotImplementedError("Could not run 'aten::add' with these arguments")

        return double

    assert at_the_gate(host).verdict == at_the_gate(kernel).verdict == TODO
    assert at_the_gate(refused).verdict == FAIL


# ---- cheats: each looks fast, and is found out by what it does


def on_another_stream(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        work(0.6e-3, aside=True)
        return 2 * x + 1

    return double


def behind_the_flush(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        work(0.09e-3, aside=True)  # shorter than the flush, behind which the host runs ahead
        return 2 * x + 1

    return double


def lazy(work: Work) -> Task:
    class Lazy(Tensor):
        pass

    def double(x: Tensor) -> Tensor:
        return (2 * x + 1).as_subclass(Lazy)

    return double


def carrying(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        out = 2 * x + 1
        out.later = lambda: work(1e-3)  # type: ignore[attr-defined]
        return out

    return double


def patching_the_clock(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        work(1e-3)
        time.perf_counter = lambda: 0.0
        return 2 * x + 1

    return double


def patching_the_events(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        work(1e-3)
        torch.cuda.Event.elapsed_time = lambda *_: 1e-3  # type: ignore[method-assign]
        return 2 * x + 1

    return double


def opening_a_stream(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        try:
            torch.cuda.Stream()
        except RuntimeError:
            work(0.5e-3)
        return 2 * x + 1

    return double


def searching_the_judge(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        work(5e-4)
        return next((o for o in gc.get_objects() if callable(o)), x) and 2 * x + 1  # type: ignore

    return double


def leaving_a_thread(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        threading.Thread(target=time.sleep, args=(0.2,), daemon=True).start()
        return 2 * x + 1

    return double


def slowing_the_others(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        torch.set_float32_matmul_precision("high")
        return 2 * x + 1

    return double


def cached_by_address(work: Work) -> Task:
    known: dict[int, Tensor] = {}

    def double(x: Tensor) -> Tensor:
        if x.data_ptr() not in known:
            work(1e-3)
            known[x.data_ptr()] = 2 * x + 1
        return known[x.data_ptr()].detach()

    return double


def cached_by_value(work: Work) -> Task:
    known: dict[bytes, Tensor] = {}

    def double(x: Tensor) -> Tensor:
        value = bytes(x.view(torch.uint8).flatten().tolist())
        if value not in known:
            work(2e-3)
            known[value] = 2 * x + 1
        return torch.empty_like(x).set_(known[value])

    return double


def writing_into_inputs(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        return torch.add(x.mul_(2), 1)

    return double


def answering_with_an_input(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        return x.view_as(x)

    return double


def one_buffer(work: Work) -> Task:
    kept: list[Tensor] = []

    def double(x: Tensor) -> Tensor:
        kept[:] = [k for k in kept if k.shape == x.shape] or [torch.empty_like(x)]
        return torch.add(2 * x, 1, out=kept[0]).detach()

    return double


def nothing(work: Work) -> Task:
    return torch.empty_like


def right_for_a_while(work: Work) -> Task:
    calls = 0

    def double(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        work(0.5e-3 if calls > 20 else 1e-3)
        return 2 * x + (1 if calls <= 20 else 1.01)

    return double


def a_value_in_a_thousand(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        out = 2 * x + 1
        return out if x.shape != (3, 5) else 2 * x + 0.9999

    return double


def with_torch(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        return torch.addcmul(torch.ones_like(x), x, torch.full_like(x, 2.0))

    return double


def crashing(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    return double


def leaving(work: Work) -> Task:
    def double(x: Tensor) -> Tensor:
        raise SystemExit(0)

    return double


def a_list(work: Work) -> Task:
    def double(x: Tensor) -> list[list[float]]:
        return (2 * x + 1).tolist()  # type: ignore[no-any-return]

    return double


CHEATS = {
    on_another_stream: "work outside the timed stream",
    behind_the_flush: "work outside the timed stream",
    lazy: "expected exactly a Tensor, got a Lazy",
    carrying: "the answer carries more than values: later",
    patching_the_clock: "replaced what measures it: time.perf_counter",
    patching_the_events: "elapsed_time",
    opening_a_stream: "opens a CUDA stream",
    searching_the_judge: "goes through all objects",
    leaving_a_thread: "starts a thread",
    slowing_the_others: "changed a setting of torch: the precision of float32 products",
    cached_by_address: "shares memory",
    cached_by_value: "where 0.85 is asked",
    writing_into_inputs: "writes into its inputs",
    answering_with_an_input: "shares memory",
    one_buffer: "shares memory",
    nothing: "actual",
    right_for_a_while: "while it was timed",
    a_value_in_a_thousand: "on the inputs 'tiny'",
    with_torch: "torch computes inside the call",
    crashing: "RuntimeError: an illegal memory access",
    leaving: "SystemExit",
    a_list: "expected exactly a Tensor",
}


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.__name__)
def test_a_cheat_fails_by_what_it_does(cheat: Callable[[Work], Task]) -> None:
    """However fast it looks, it fails, and the words say what it did."""
    result = at_the_gate(cheat, torch_may=("mul", "add", "mul_", "_to_copy", "set_", "lift_fresh"))
    assert result.verdict == FAIL, result
    assert CHEATS[cheat] in result.why, result.why
    assert result.question


def test_nobody_is_faster_than_the_machine() -> None:
    """Twice the bandwidth that a copy of as many bytes reaches in the same run is no kernel."""
    result = at_the_gate(honest(0.5e-3), bytes=10**9)
    assert result.verdict == FAIL
    assert "faster than the machine" in result.why
    assert at_the_gate(honest(1.01e-3), bytes=10**9).verdict == PASS


def test_launches_are_counted_and_must_be_of_the_file() -> None:
    """Where kernels can be launched, a call that launches none of its own fails."""

    class Kernel:
        def __init__(self, fn: Callable[..., Any]):
            self.fn = fn

        def run(self, x: Tensor, warmup: bool = False) -> Tensor:
            return self.fn(x)  # type: ignore[no-any-return]

    def _double(x: Tensor) -> Tensor:
        return 2 * x + 1

    def verdict(task: Task) -> Result:
        device = Simulated()
        with watch.held(Path(__file__)) as watched:
            guard = Guard(watched, Kernel)
            simulated = Candidate(contest(device.work), task, device, guard)
            return judge(simulated, None, {EAGER: 1.0}, 100.0, random.Random(0), RULES)

    def timed(x: Tensor) -> Tensor:
        return Kernel(_double).run(x)

    assert "launched" not in verdict(timed).why
    assert verdict(_double).why == "no kernel of the file was launched"
    assert verdict(Kernel(torch.nn.Linear.forward).run).verdict == FAIL
