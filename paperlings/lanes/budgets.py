"""Budgets: what the machine code of a task's kernels may cost, from its kernel's .toml.

    [compiled.attention]
    spills = 0            # at most: loads and stores of what registers do not hold, of any kernel
    registers = 168       # at most: registers of a thread, of any kernel
    kernels = 3           # at most: different kernels launched
    blocks = 2            # at least: blocks of any kernel that a multiprocessor holds at a time
    wide_loads = 0.5      # at least: share of the bytes loaded from global memory, by all kernels
                          # together, that comes 16 or more at a time, or by TMA
    tensor_cores = true   # some kernel has a tl.dot, and every kernel that has one runs it on the
                          # chip's own tensor-core instructions: mma.sync, wgmma, tcgen05
    tensor_cores = "any"  # ... or on those of an older chip, as blocks of few rows must

Every budget may be a table by chip, and then binds the chips it names:
`spills = { sm_80 = 0, sm_90 = 0 }`; and `tensor_cores` a list of the chips for which it is true.
A kernel without a tl.dot, such as one that prepares sums, needs no tensor cores.
That kernels compile and fit the memories of each chip is asked without a budget.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

from paperlings import layout
from paperlings.lanes.cubin import CHIPS, Chip, Compiled
from paperlings.teacher import KnowledgeError
from paperlings.testing.close import Mismatch

Budget = dict[str, Any]
CHIP = {chip.name: chip for chip in CHIPS.values()}
NUMBERS = ("spills", "registers", "kernels", "blocks", "wide_loads")
FIT = "What does a block keep in fast memory: its tiles, times num_stages, times their bytes?"
REGISTERS = "What does a thread keep alive at a time? num_warps * 32 of them share a block."
KERNELS = "Which of these kernels could do the work of another on its way?"
NARROW = (
    "What does the compiler know of neighbouring addresses? Lanes that read side by side, where "
    "the stride between them is 1 for all it can see, load 16 bytes at a time."
)
TENSOR_CORES = (
    "Is each product of tiles a tl.dot, of a dtype and a size that tensor cores take? "
    "wgmma and tcgen05 want 64 rows or more for every 4 warps."
)


def of(key: str, function: str) -> Budget:
    """The budget of a host function of the kernel `key`. Raises KnowledgeError."""
    path = layout.knowledge(key)
    name = layout.shown(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("compiled", {})
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise KnowledgeError(f"{name} cannot be read: {error}") from None
    for task, budget in tables.items():
        if complaint := _complaint(budget):
            raise KnowledgeError(f"{name}: [compiled.{task}]: {complaint}")
    return dict(tables.get(function, {}))


def check(kernels: Sequence[Compiled], budget: Budget) -> None:
    """Look for breaches of a budget, chip by chip. Raises Mismatch at the first."""
    for name in dict.fromkeys(kernel.chip for kernel in kernels):
        own = [kernel for kernel in kernels if kernel.chip == name]
        bound = {key: _bound(value, name) for key, value in budget.items()}
        bound = {key: value for key, value in bound.items() if value is not None}
        for question, difference in _breaches(own, CHIP[name], bound):
            raise Mismatch(question, difference)


def _bound(value: Any, chip: str) -> Any:
    """What a budget says for one chip; None where it says nothing."""
    if isinstance(value, dict):
        return value.get(chip)
    if isinstance(value, list):
        return True if chip in value else None
    return value


def _breaches(kernels: Sequence[Compiled], chip: Chip, bound: Budget) -> Iterator[tuple[str, str]]:
    """Every breach on one chip: the question, and what was found."""
    for kernel in kernels:
        for question, difference in _breaches_of(kernel, chip, bound):
            yield question, f"{kernel.kernel} on {chip.name} {difference}"
    if len(kernels) > bound.get("kernels", len(kernels)):
        names = ", ".join(kernel.kernel for kernel in kernels)
        number = f"{len(kernels)} kernels are launched on {chip.name}"
        yield KERNELS, f"{number}, more than {bound['kernels']}: {names}"
    if "tensor_cores" in bound and not any(kernel.dots for kernel in kernels):
        yield TENSOR_CORES, "no kernel has a tl.dot"
    loaded, wide = sum(k.loaded for k in kernels), sum(k.wide for k in kernels)
    if wide < bound.get("wide_loads", 0.0) * loaded:
        worst = max(kernels, key=lambda kernel: kernel.loaded - kernel.wide)
        yield (
            NARROW,
            f"on {chip.name} {wide / loaded:.0%} of the bytes that are loaded come 16 at a time, "
            f"less than {bound['wide_loads']:.0%}; most of the others in {worst.kernel}",
        )


def _breaches_of(kernel: Compiled, chip: Chip, bound: Budget) -> Iterator[tuple[str, str]]:
    """The breaches of one kernel: what it does, as the rest of a sentence."""
    if kernel.shared > kernel.limit:
        yield FIT, f"takes {kernel.shared} bytes of shared memory; a block may have {kernel.limit}"
    if kernel.columns > chip.columns:
        yield FIT, f"takes {kernel.columns} columns of tensor memory; there are {chip.columns}"
    for name, found, does in (
        ("spills", kernel.spills, "loads and stores what its registers do not hold {} times"),
        ("registers", kernel.registers, "takes {} registers a thread"),
    ):
        if found > bound.get(name, found):
            yield REGISTERS, f"{does.format(found)}, more than {bound[name]}"
    least = bound.get("blocks", 1)
    if kernel.blocks < least:
        yield (
            FIT if kernel.shared * least > kernel.limit else REGISTERS,
            f"fits a multiprocessor {kernel.blocks} times, not {least}: "
            f"{kernel.warps} warps, {kernel.registers} registers a thread, "
            f"{kernel.shared} bytes of shared memory",
        )
    wanted = bound.get("tensor_cores")
    if wanted and kernel.dots:
        used = kernel.tensor_cores
        if not (used if wanted == "any" else chip.family in used):
            names = "no tensor cores" if not used else f"{' and '.join(used)} only"
            own = "" if wanted == "any" else f", not {chip.family}"
            yield TENSOR_CORES, f"runs its tl.dot on {names}{own}"


def _complaint(budget: Any) -> str:
    """What is wrong with a table of budgets; "" where nothing is."""
    if not isinstance(budget, dict):
        return "is no table"
    for name, value in budget.items():
        if name not in (*NUMBERS, "tensor_cores"):
            return f"unknown budget {name!r}; known are {', '.join(NUMBERS)}, tensor_cores"
        chips = value if isinstance(value, (dict, list)) else ()
        if unknown := [chip for chip in chips if chip not in CHIP]:
            return f"{name}: unknown chip {unknown[0]!r}; known are {', '.join(CHIP)}"
        if not all(_sensible(name, _bound(value, chip)) for chip in CHIP):
            return f"{name} = {value!r} is no budget"
    return ""


def _sensible(name: str, value: Any) -> bool:
    if value is None:
        return True
    if name == "tensor_cores":
        return value is True or value == "any"
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
