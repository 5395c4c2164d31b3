"""What kernels move and compute, counted while they are interpreted.

Bytes are those of the lanes that a mask lets through. A sector is 32 bytes, the least a GPU's
memory moves; of an instruction, each sector counts once. So `loaded` is what was asked for,
`sectors` what moves without a cache, `distinct` what would move with an endless one.
An atomic operation that changes anything counts as a store.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from paperlings.lanes.memory import Argument, Elements, Memory, Part
from paperlings.lanes.rounding import Array

SECTOR = 32


class Access:
    """What one launch did with one tensor, in bytes."""

    def __init__(self, argument: Argument):
        self.name = argument.name
        self.argument = argument
        self.elements = Elements([argument])
        self.loaded = 0
        self.stored = 0
        self.sectors_loaded = 0
        self.sectors_stored = 0
        self.was_loaded = np.zeros(self.elements.count, bool)
        self.was_stored = np.zeros(self.elements.count, bool)

    @property
    def distinct_loaded(self) -> int:
        """Bytes loaded at least once."""
        return int(np.count_nonzero(self.was_loaded)) * self.argument.itemsize

    @property
    def distinct_stored(self) -> int:
        """Bytes stored at least once."""
        return int(np.count_nonzero(self.was_stored)) * self.argument.itemsize

    def load(self, addresses: Array, itemsize: int) -> None:
        """Enter one load."""
        self.loaded += addresses.size * itemsize
        self.sectors_loaded += SECTOR * _sectors(addresses)
        self.was_loaded[self.elements.numbers(addresses, itemsize)] = True

    def store(self, addresses: Array, itemsize: int) -> None:
        """Enter one store."""
        self.stored += addresses.size * itemsize
        self.sectors_stored += SECTOR * _sectors(addresses)
        self.was_stored[self.elements.numbers(addresses, itemsize)] = True

    def plain(self) -> dict[str, Any]:
        """For a report."""
        return {
            "name": self.name,
            "loaded": self.loaded,
            "stored": self.stored,
            "sectors_loaded": self.sectors_loaded,
            "sectors_stored": self.sectors_stored,
            "distinct_loaded": self.distinct_loaded,
            "distinct_stored": self.distinct_stored,
        }


@dataclass
class Launch:
    """One launch. flops: of tl.dot, by the dtype it multiplies: "bf16", "fp16", "int8", "fp64";
    of float32, "tf32", "tf32x3" or, with input_precision="ieee", "fp32".
    """

    kernel: str
    programs: int = 0
    tensors: list[Access] = field(default_factory=list)
    flops: dict[str, int] = field(default_factory=dict)

    def tensor(self, name: str) -> Access:
        """What was done with the argument of that name. Raises KeyError."""
        for access in self.tensors:
            if access.name == name:
                return access
        raise KeyError(name)


@dataclass(eq=False)  # of two that hold the same, each is itself
class Record:
    """The launches of a call, in order, and the operators of torch it ran beside them."""

    launches: list[Launch] = field(default_factory=list)
    torch_ops: dict[str, int] = field(default_factory=dict)

    @property
    def accesses(self) -> list[Access]:
        """Every tensor of every launch."""
        return [access for launch in self.launches for access in launch.tensors]

    @property
    def loaded(self) -> int:
        """Bytes loaded."""
        return sum(access.loaded for access in self.accesses)

    @property
    def stored(self) -> int:
        """Bytes stored."""
        return sum(access.stored for access in self.accesses)

    @property
    def sectors(self) -> int:
        """Bytes of the sectors touched."""
        return sum(access.sectors_loaded + access.sectors_stored for access in self.accesses)

    @property
    def distinct(self) -> int:
        """Bytes touched at least once in a launch."""
        return sum(access.distinct_loaded + access.distinct_stored for access in self.accesses)

    @property
    def flops(self) -> int:
        """Floating-point operations of every tl.dot."""
        return sum(sum(launch.flops.values()) for launch in self.launches)

    @property
    def dot_dtypes(self) -> set[str]:
        """What every tl.dot multiplies."""
        return {dtype for launch in self.launches for dtype in launch.flops}

    def has_read(self, tensor: torch.Tensor) -> bool:
        """Whether kernels have loaded every element of a tensor."""
        return _covered(tensor, [(a.argument, a.elements, a.was_loaded) for a in self.accesses])

    def has_written(self, tensor: torch.Tensor) -> bool:
        """Whether kernels have stored to every element of a tensor."""
        return _covered(tensor, [(a.argument, a.elements, a.was_stored) for a in self.accesses])

    def plain(self) -> dict[str, Any]:
        """For a report: numbers, strings, lists and dicts only."""
        return {
            "loaded": self.loaded,
            "stored": self.stored,
            "sectors": self.sectors,
            "distinct": self.distinct,
            "flops": self.flops,
            "launches": [
                {
                    "kernel": launch.kernel,
                    "programs": launch.programs,
                    "flops": dict(launch.flops),
                    "tensors": [access.plain() for access in launch.tensors],
                }
                for launch in self.launches
            ],
            "torch_ops": dict(self.torch_ops),
        }


def _covered(tensor: torch.Tensor, seen_of: list[tuple[Argument, Elements, Array]]) -> bool:
    """Whether every byte of a tensor has been seen in one of some arguments."""
    wanted = Argument("", tensor, 0)
    seen = np.zeros((wanted.places.size, wanted.itemsize), bool)
    bytes_ = (wanted.first + (wanted.places << wanted.shift))[:, None] + np.arange(wanted.itemsize)
    for argument, elements, flags in seen_of:
        tagged = bytes_.view(np.uint64) | np.uint64(argument.tag)
        held = argument.holds(tagged, 1)
        seen[held] |= flags[elements.numbers(tagged[held], 1)]
    return bool(seen.all())


_recording: list[Record] = []


@contextlib.contextmanager
def recorded() -> Iterator[Record]:
    """Count what the block launches; of two of these, one in the other, both count.

    Raises Unverified where kernels cannot be interpreted here.
    """
    from paperlings.lanes.interpreter import faithful

    record = Record()
    with faithful(), _Operators(record):
        _recording.append(record)
        try:
            yield record
        finally:
            _recording.remove(record)


def traffic(call: Callable[[], Any]) -> Record:
    """What `call` moves and computes in kernels."""
    with recorded() as record:
        call()
    return record


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, record: Record):
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = f"aten.{func.overloadpacket.__name__}"
        self.record.torch_ops[name] = self.record.torch_ops.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


class Meter:
    """Counts one launch."""

    def __init__(self, kernel: str, memory: Memory):
        self.kernel = kernel
        self.memory = memory
        self.accesses: dict[int, Access] = {}
        self.flops: Counter[str] = Counter()

    def load(self, part: Part, itemsize: int) -> None:
        """Some lanes load through one argument."""
        if part.argument and part.addresses.size:
            self._access(part.argument).load(part.addresses, itemsize)

    def store(self, part: Part, itemsize: int) -> None:
        """Some lanes store through one argument, or change it atomically."""
        if part.argument and part.addresses.size:
            self._access(part.argument).store(part.addresses, itemsize)

    def dot(self, dtype: str, flops: int) -> None:
        """Two blocks are multiplied."""
        self.flops[dtype] += flops

    def close(self, programs: int) -> None:
        """The launch is over: every record that is open gets it."""
        tensors = [self._access(argument) for argument in self.memory.arguments]
        launch = Launch(self.kernel, programs, tensors, dict(self.flops))
        for record in _recording:
            record.launches.append(launch)

    def _access(self, argument: Argument) -> Access:
        if argument.tag not in self.accesses:
            self.accesses[argument.tag] = Access(argument)
        return self.accesses[argument.tag]


def meter(kernel: str, memory: Memory) -> Meter | None:
    """A meter for the launch that begins, if anybody records."""
    return Meter(kernel, memory) if _recording else None


def _sectors(addresses: Array) -> int:
    """How many sectors one instruction touches."""
    sectors = addresses // np.uint64(SECTOR)
    lowest = sectors.min()
    span = int(sectors.max() - lowest) + 1
    if span > 16 * sectors.size:
        return int(np.unique(sectors).size)
    touched = np.zeros(span, bool)
    touched[sectors - lowest] = True
    return int(np.count_nonzero(touched))
