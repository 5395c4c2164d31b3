"""Right values first: what a contest's task answers, on every family of inputs, without a clock."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from paperlings.lanes.contest import Call, Contest, Inputs
from paperlings.lanes.gate.devices import Device
from paperlings.lanes.gate.guard import PLAIN, Guard, refuse_shared, tensors
from paperlings.testing.close import Mismatch
from paperlings.testing.rounding import excess

SEEDS = 2  # for every family
PIECE = 1 << 26  # elements that are compared at a time: in float64, with its errors, 4 GiB
RIGHT = "Is every value of the answer what the docstring says, on these inputs too?"
RUNS = "Does the call come to its end on a GPU, with inputs of every size and kind?"


class Unwritten(Exception):
    """The task is still a stub."""


class Unmeasurable(Exception):
    """Something other than the candidate keeps a contest from being measured; the message says
    what.
    """


@dataclass(eq=False)
class Arguments:
    """The arguments of a call on a device, which can be filled with fresh values in place."""

    inputs: Inputs
    device: Device
    seed: int

    def __post_init__(self) -> None:
        self.args = self.made()

    def made(self, seed: int | None = None) -> tuple[Any, ...]:
        """New tensors with the values of a seed, by default with those that are here now."""
        generator = torch.Generator(self.device.place)
        generator.manual_seed(self.seed if seed is None else seed)
        return self.inputs(generator, self.device.place)

    def refill(self, seed: int) -> None:
        for old, new in zip(tree_leaves(self.args), tree_leaves(self.made(seed)), strict=True):
            if isinstance(old, Tensor):
                _copy(old, new)
        self.seed = seed

    def changed(self) -> bool:
        """Whether a tensor no longer holds the values of its seed."""
        pairs = zip(tree_leaves(self.args), tree_leaves(self.made()), strict=True)
        return any(isinstance(a, Tensor) and not _same(a, b) for a, b in pairs)


@dataclass(frozen=True)
class Candidate:
    """A task as it is called at the gate: under guard, and whatever it raises is its own fault.

    entered: told True when the candidate's code takes over, and False when it has returned.
    """

    contest: Contest
    call: Call
    device: Device
    guard: Guard
    entered: Callable[[bool], None] = lambda inside: None

    def tried(self, run: Callable[[], Any]) -> Any:
        """What `run` returns, which calls the candidate and waits for the device.

        Raises Mismatch for whatever the candidate raises, and Unwritten where it is a stub.
        """
        self.entered(True)
        try:
            return run()
        except Mismatch:
            raise
        except (Exception, SystemExit) as error:
            if _is_stubs(error):
                raise Unwritten from None
            raise Mismatch(RUNS, said(error)) from None
        finally:
            self.entered(False)

    def check(self, out: Any, arguments: Arguments, seed: int, where: str = "") -> None:
        """Raise Mismatch unless `out` is right for the values of a seed. Raises Unmeasurable."""
        args = arguments.made(seed)
        try:
            eager = self.contest.eager(*args, **self.contest.kwargs)
            truth = self.contest.truth(*args, **self.contest.kwargs)
            difference = wrong(out, truth, eager)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise Unmeasurable(f"the truth cannot be computed{where}: {said(error)}") from error
        if difference:
            raise Mismatch(RIGHT, difference + where)


def check_values(candidate: Candidate, chance: random.Random) -> dict[str, str]:
    """Raise Mismatch unless the candidate is right on fresh values of every family, twice in place,
    and computes them with kernels of its own.

    Returns the families that do not fit the device with their truth, and what was said of that.
    """
    families = {"": candidate.contest.inputs, **candidate.contest.families}
    too_large = {}
    for family, inputs in families.items():
        where = f" on the inputs {family!r}" if family else ""
        try:
            for _ in range(SEEDS):
                _check_family(candidate, inputs, where, chance)
        except torch.OutOfMemoryError as error:  # not of the candidate, whose are mismatches
            if not family:
                raise
            too_large[f"the inputs {family!r}"] = said(error)
    candidate.guard.check()
    return too_large


def _check_family(candidate: Candidate, inputs: Inputs, where: str, chance: random.Random) -> None:
    device = candidate.device
    seeds = chance.getrandbits(60), chance.getrandbits(60)
    arguments = Arguments(inputs, device, seeds[0])

    def ask() -> Any:
        out = candidate.call(*arguments.args, **candidate.contest.kwargs)
        device.wait()
        return out

    def audited() -> Any:
        with candidate.guard.audited(candidate.contest.torch_may):
            return ask()

    answers: list[Any] = []
    # the first call may tune itself, which computes much else
    for run, seed in zip((ask, audited), seeds, strict=True):
        if answers:
            arguments.refill(seed)
        out = candidate.tried(run)
        tensors(out)
        refuse_shared(out, arguments.args, *answers)
        if arguments.changed():
            raise Mismatch(PLAIN, f"the call writes into its inputs{where}")
        answers.append(out)
    # the second call is over: what it has left of the first one's answer is looked at too
    for out, seed in zip(answers, seeds, strict=True):
        candidate.check(out, arguments, seed, where)


def wrong(out: Any, truth: Any, eager: Any) -> str:
    """What is wrong with an answer, in words; "" where nothing is."""
    wanted = [eager] if isinstance(eager, Tensor) else list(eager)
    truths = [truth] if isinstance(eager, Tensor) else list(truth)
    got = tensors(out)
    if isinstance(out, Tensor) != isinstance(eager, Tensor) or len(got) != len(wanted):
        return f"expected {_count(eager)}, got {_count(out)}"
    for i, (o, t, e) in enumerate(zip(got, truths, wanted, strict=True)):
        where = f" in item {i}" if len(wanted) > 1 else ""
        if difference := _wrong(o, t, e):
            return difference + where
    return ""


def resembles(out: Any, truth: Any) -> bool:
    """Whether somebody answers the same question, however he rounds: by the first tensor."""
    a, b = (x if isinstance(x, Tensor) else x[0] for x in (out, truth))
    return a.shape == b.shape and bool(torch.dist(a.double(), b.double()) <= 0.05 * b.norm())


def _wrong(out: Tensor, truth: Tensor, eager: Tensor) -> str:
    kinds = [(x.shape, x.dtype, x.device) for x in (out, eager)]
    if kinds[0] == kinds[1] and not eager.dtype.is_floating_point:
        different = int((out != truth).sum())
        return f"{different} of {out.numel()} values are not the right ones" if different else ""
    if kinds[0] != kinds[1] or out.dim() < 2:
        return excess(out, truth, eager)
    rows = max(1, PIECE * len(out) // max(1, out.numel()))
    for start in range(0, len(out), rows):
        parts = (x[start : start + rows] for x in (out, truth, eager))
        if difference := excess(*parts):
            return difference + (f", counted from row {start}" if start else "")
    return ""


def _copy(old: Tensor, new: Tensor) -> None:
    """Copy in place, into a tensor that may have been expanded, too."""
    for dim, stride in enumerate(old.stride()):
        if stride == 0 and old.shape[dim]:
            old, new = old.narrow(dim, 0, 1), new.narrow(dim, 0, 1)
    old.copy_(new)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _count(answer: Any) -> str:
    return "a tensor" if isinstance(answer, Tensor) else f"{len(answer)} tensors"


def said(error: BaseException) -> str:
    """An exception in few words."""
    text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-140:]}"


def _is_stubs(error: BaseException) -> bool:
    """Whether a stub raised it: as it is called, or, in a kernel, as it is compiled."""
    if isinstance(error, NotImplementedError):
        return str(error).isidentifier()  # torch's own say more
    link: BaseException | None = error
    while link is not None:
        # the compiler shows the text up to the line that it refuses
        if re.search(r"raise NotImplementedError\(.*\)\n *\^", str(link)):
            return True
        link = link.__cause__
    return False
