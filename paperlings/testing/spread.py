"""Tensors that lie far apart in memory, of which there is only what is near an element."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 16  # bytes: memory is made in whole ones, and a neighbour more on either side
MOST = 4096  # elements of a tensor, each of which may take three chunks
LOWEST = 1 << 44  # addresses from here on are free in every process
TRIES = 8
_NO_REPLACE = 0x100000  # MAP_FIXED_NOREPLACE


def spread(x: Tensor, strides: Sequence[int]) -> Tensor:
    """The values of `x` in memory of their own, with these strides: 2^31 places apart, say.

    Only what is near an element takes memory; elsewhere in the storage, whoever reads dies of it.
    Raises ValueError for more than MOST elements, and OSError.
    """
    if x.numel() > MOST:
        raise ValueError(f"{x.numel()} elements are too many to lie far apart")
    extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, strides, strict=True))
    places = torch.zeros(1, dtype=torch.int64)
    for n, step in zip(x.shape, strides, strict=True):
        places = (places[:, None] + step * torch.arange(n)).flatten()
    chunks = torch.unique(places * x.itemsize // CHUNK)
    chunks = torch.unique(torch.cat([chunks - 1, chunks, chunks + 1]).clamp(0)).tolist()
    memory = _memory(extent * x.itemsize, chunks)
    whole = torch.frombuffer(memory, dtype=x.dtype, count=extent)
    return whole.as_strided(tuple(x.shape), tuple(strides)).copy_(x.detach())


def _memory(size: int, chunks: list[int]) -> ctypes.Array[ctypes.c_char]:
    """So many bytes from an address that is free, of which these chunks are there."""
    for _ in range(TRIES):
        first = LOWEST + int.from_bytes(os.urandom(3), "big") * (1 << 20)
        made: list[int] = []
        try:
            for chunk in chunks:
                _map(first + chunk * CHUNK)
                made.append(first + chunk * CHUNK)
        except OSError as error:
            _unmap(made)
            if error.errno == errno.EEXIST:
                continue
            raise
        memory = (ctypes.c_char * size).from_address(first)
        weakref.finalize(memory, _unmap, made)
        return memory
    raise OSError(errno.EEXIST, "no addresses are free")


@functools.cache
def _libc() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


def _map(address: int) -> None:
    how = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_REPLACE
    found = _libc().mmap(address, CHUNK, mmap.PROT_READ | mmap.PROT_WRITE, how, -1, 0)
    if found != address:
        number = ctypes.get_errno() if found == ctypes.c_void_p(-1).value else errno.EEXIST
        raise OSError(number, f"memory at {address:#x}: {os.strerror(number)}")


def _unmap(addresses: list[int]) -> None:
    for address in addresses:
        _libc().munmap(address, CHUNK)
