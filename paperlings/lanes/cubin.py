"""Reading machine code: what the assembler made of a kernel, counted in the cubin itself.

The wheel of triton brings cuobjdump and, beside it, nvdisasm, which it calls.
Every count is of instructions in the program text: one in a loop counts once.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Chip:
    """Limits of a streaming multiprocessor.

    family: its fastest tensor-core instructions.  shared: bytes of shared memory; `block`: of which
    one block may have.  multiprocessors: of the usual card.
    """

    sm: int
    family: str
    multiprocessors: int
    shared: int
    block: int
    registers: int = 65536
    warps: int = 64
    blocks: int = 32
    columns: int = 512  # of tensor memory, where there is any

    @property
    def name(self) -> str:
        return f"sm_{self.sm}"


CHIPS = {
    80: Chip(80, "mma.sync", 108, shared=167936, block=166912),
    90: Chip(90, "wgmma", 132, shared=233472, block=232448),
    100: Chip(100, "tcgen05", 148, shared=233472, block=232448),
}
# names of machine instructions, by what PTX calls the family
FAMILIES = {
    "mma.sync": r"[HIDQO]MMA",
    "wgmma": r"[HIQ]GMMA",
    "tcgen05": r"UTC\w*MMA",
}
WIDE = 16  # bytes: the widest load that all chips have
RESERVED = 1024  # bytes of shared memory that the system keeps for itself in every block
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


@dataclass(frozen=True)
class Launched:
    """What the compiler knows of a kernel that was launched.

    shared: bytes of shared memory.  columns: of tensor memory.  dots: whether it has a tl.dot.
    seconds: what compiling took.
    """

    kernel: str
    warps: int
    shared: int
    columns: int
    dots: bool
    seconds: float


@dataclass(frozen=True)
class Compiled:
    """A kernel that was launched, compiled for one chip.

    registers, stack: of a thread, stack in bytes.  spills: loads and stores of what its registers
    do not hold.  shared, limit: bytes of shared memory, and how many a block may have.
    columns: of tensor memory.  dots: whether the kernel has a tl.dot.
    tensor_cores: how many such instructions, by family.  loaded, wide: bytes that the loads from
    global memory bring a thread, and of these the ones that come at least 16 at a time.
    copies: loads that go to shared memory on their own.  tiles: copies of whole tiles, by TMA.
    blocks: how many of its blocks a multiprocessor holds at a time.  seconds: what compiling took.
    """

    kernel: str
    chip: str
    warps: int
    registers: int
    stack: int
    spills: int
    shared: int
    limit: int
    columns: int
    dots: bool
    tensor_cores: dict[str, int]
    loaded: int
    wide: int
    copies: int
    tiles: int
    blocks: int
    instructions: int
    seconds: float


class Unreadable(Exception):
    """The machine code cannot be read here; the message says why."""


def combined(chip: Chip, launched: Launched, found: dict[str, Any]) -> Compiled:
    """A kernel that was launched, with the counts of its machine code."""
    registers, shared, columns = found["registers"], launched.shared, launched.columns
    return Compiled(
        chip=chip.name,
        limit=chip.block,
        blocks=blocks(chip, registers, launched.warps, shared, columns),
        **asdict(launched),
        **found,
    )


def counts(code: bytes, tools: Path) -> dict[str, Any]:
    """What the machine code of a kernel says: the fields of `Compiled` from registers to
    instructions that do not depend on the chip.

    tools: the folder of cuobjdump and nvdisasm. Raises Unreadable.
    """
    listing = _listing(code, tools)
    usage = re.findall(r"\bREG:(\d+) STACK:(\d+)", listing)
    names = Counter(_INSTRUCTION.findall(listing))
    if not usage or not names:
        raise Unreadable("cuobjdump shows no code")

    def count(pattern: str) -> int:
        return sum(times for name, times in names.items() if re.match(rf"(?:{pattern})\b", name))

    tiles = count("UTMALDG")
    widths = {name: _width(name) for name in names if re.match(r"(LDG|LDGSTS)\b", name)}
    wide = sum(width * names[name] for name, width in widths.items() if width >= WIDE)
    return {
        "registers": max(int(registers) for registers, _ in usage),
        "stack": max(int(stack) for _, stack in usage),
        "spills": count("LDL|STL"),
        "tensor_cores": {family: n for family, name in FAMILIES.items() if (n := count(name))},
        "loaded": sum(width * names[name] for name, width in widths.items()) + WIDE * tiles,
        "wide": wide + WIDE * tiles,
        "copies": count("LDGSTS"),
        "tiles": tiles,
        "instructions": names.total(),
    }


def _width(name: str) -> int:
    """The bytes that a load brings a thread: 16 for LDG.E.128, 4 where nothing is said."""
    said = re.search(r"\.[US]?(8|16|64|128|256)\b", name)
    return (int(said[1]) if said else 32) // 8


def _listing(code: bytes, tools: Path) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        try:
            done = subprocess.run(
                [tools / "cuobjdump", "-res-usage", "-sass", file.name],
                capture_output=True,
                text=True,
                env={
                    "PATH": os.pathsep.join((str(tools), os.environ.get("PATH", ""))),
                    "TMPDIR": tempfile.gettempdir(),
                },
            )
        except OSError as error:
            raise Unreadable(f"cuobjdump cannot be run: {error.strerror}") from None
    if done.returncode:
        raise Unreadable(f"cuobjdump fails: {done.stderr.strip()}")
    return done.stdout


def blocks(chip: Chip, registers: int, warps: int, shared: int, columns: int = 0) -> int:
    """How many blocks of a kernel one multiprocessor holds at a time."""
    of_warp = math.ceil(max(registers, 1) * 32 / 256) * 256
    by_registers = chip.registers // of_warp // 4 * 4 // warps
    by_shared = chip.shared // (shared + RESERVED)
    by_columns = chip.columns // columns if columns else chip.blocks
    return min(by_registers, by_shared, by_columns, chip.warps // warps, chip.blocks)
