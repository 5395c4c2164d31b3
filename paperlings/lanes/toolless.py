"""Compiling where there are neither files nor programs: what triton writes stays in memory, and
somebody else assembles. For a process of its own, since triton is changed for good.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

# triton asks for a home, in which it then keeps nothing
os.environ.setdefault("HOME", "/")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton.backends.nvidia.compiler as nvidia
import triton.compiler.compiler as compiler
from triton import knobs
from triton.runtime import cache
from triton.runtime.errors import PTXASError

# (PTX, whether products and sums are fused) -> the number of the machine code, or what is wrong
Assemble = Callable[[bytes, bool], int | str]
_written: dict[str, str | bytes] = {}


def install(cuda: str, assemble: Assemble) -> None:
    """Change triton. cuda: the version of the assembler, which decides the version of the PTX.

    The machine code of a kernel is then the number that `assemble` gave it, as text.
    """

    def make_cubin(backend: Any, ptx: str, metadata: Any, options: Any, capability: int) -> bytes:
        found = assemble(ptx.encode(), bool(options.enable_fp_fusion))
        if isinstance(found, str):
            raise PTXASError(found)
        return str(found).encode()

    vars(knobs.cache)["manager_class"] = _Cache
    cache.triton_key = lambda: ""  # reads a hundred megabytes
    compiler.Path = _File
    nvidia.get_ptxas = lambda arch: SimpleNamespace(path="", version=cuda)
    nvidia.get_ptxas_version = lambda arch=80: cuda
    nvidia.CUDABackend.make_cubin = make_cubin


class _Cache(cache.CacheManager):  # type: ignore[misc]
    """Knows nothing, and keeps what it is given until the process ends."""

    def __init__(self, key: str, override: bool = False, dump: bool = False):
        self.key = key

    def get_file(self, filename: str) -> None:
        return None

    def put(self, data: Any, filename: str, binary: bool = True) -> str:
        name = f"{self.key}/{filename}"
        _written[name] = data if isinstance(data, bytes) else str(data)
        return name

    def get_group(self, filename: str) -> None:
        return None

    def put_group(self, filename: str, group: dict[str, str]) -> None:
        pass


class _File:
    """A path that leads to what was kept."""

    def __init__(self, name: str):
        self.name = name
        self.suffix = name[name.rfind(".") :]

    def read_text(self) -> str | bytes:
        return _written[self.name]

    read_bytes = read_text
