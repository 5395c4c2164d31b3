"""The tensors a kernel is launched with, and which of them an access goes through.

A pointer carries the number of the argument it was made from in its upper 16 bits, which no
address uses. So an access through `x` is known as one even where it lands in `y`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch

from paperlings.lanes.rounding import Array

_BITS = 48
_TAG = np.uint64(_BITS)
ADDRESS = np.uint64((1 << _BITS) - 1)


class Argument:
    """A tensor as a kernel sees it: the bytes from `first` up to `end`, tagged.

    A view may skip some of these: `whole` says whether it does not, `inside` which it has.
    The storage it lies in reaches from `storage_first` to `storage_end`.
    """

    def __init__(self, name: str, tensor: torch.Tensor, number: int):
        self.name = name
        self.tensor = tensor
        self.tag = number << _BITS
        self.itemsize = tensor.element_size()
        self.shift = self.itemsize.bit_length() - 1
        storage = tensor.untyped_storage()
        self.storage = storage.data_ptr()
        self.storage_first = self.tag | self.storage
        self.storage_end = self.storage_first + storage.nbytes()
        steps = list(zip(tensor.shape, tensor.stride(), strict=True))
        self.extent = 1 + sum((size - 1) * step for size, step in steps) if tensor.numel() else 0
        self.first = self.tag | tensor.data_ptr()
        self.end = self.first + self.extent * self.itemsize
        self.whole = int(np.prod([size for size, step in steps if step])) == self.extent

    @functools.cached_property
    def places(self) -> Array:
        """The elements of the view, counted from its first, in order."""
        places = np.zeros(1, np.int64)
        for size, step in zip(self.tensor.shape, self.tensor.stride(), strict=True):
            steps = step * np.arange(size if step else min(size, 1))
            places = (places[:, None] + steps).reshape(-1)
        return np.unique(places)

    @functools.cached_property
    def inside(self) -> Array:
        """Which elements between `first` and `end` belong to the view."""
        flags = np.zeros(self.extent, bool)
        view = np.lib.stride_tricks.as_strided(flags, self.tensor.shape, self.tensor.stride())
        view[...] = True
        return flags

    def has(self, addresses: Array) -> Array:
        """Which addresses between `first` and `end` belong to the view."""
        elements = (addresses - np.uint64(self.first)).view(np.int64) >> self.shift
        if not _few(self.tensor.numel(), self.extent):
            found: Array = self.inside[elements]
            return found
        nearest = np.searchsorted(self.places, elements)
        there: Array = self.places[np.minimum(nearest, self.places.size - 1)] == elements
        return there

    def holds(self, addresses: Array, itemsize: int) -> Array:
        """Which accesses lie in the view."""
        last = np.uint64(self.end - itemsize)
        within = (addresses >= np.uint64(self.first)) & (addresses <= last)
        if not self.whole:
            within[within] = self.has(addresses[within])
        return within

    def reaches(self, addresses: Array, itemsize: int) -> Array:
        """Which accesses lie in the storage, where they reach nothing of anybody else's."""
        last = np.uint64(self.storage_end - itemsize)
        return (addresses >= np.uint64(self.storage_first)) & (addresses <= last)

    def element(self, address: int) -> str:
        """An address in words: "element 7 of `x`", "element [1, 20] of `x`"."""
        offset = (address - self.first) >> self.shift
        steps = self.tensor.stride()
        if offset < 0 or sum(step > 0 for step in steps) < 2:
            return f"element {offset} of `{self.name}`"
        index = [0] * len(steps)
        for axis in sorted(range(len(steps)), key=lambda axis: -steps[axis]):
            if steps[axis]:
                index[axis], offset = divmod(offset, steps[axis])
        return f"element {index} of `{self.name}`"


class Elements:
    """The elements of arguments that share a storage, each with a number.

    Counted from the first to the last, or, where few of these belong to any, only those that do.
    """

    def __init__(self, sharing: list[Argument]):
        self.sharing = sharing
        self.shift = min(argument.shift for argument in sharing)
        self.first = min(argument.first - argument.tag for argument in sharing)
        end = max(argument.end - argument.tag for argument in sharing)
        self.count = (end - self.first) >> self.shift
        self.known: Array | None = None
        if _few(sum(argument.tensor.numel() for argument in sharing), self.count):
            self.known = np.unique(np.concatenate([self._of(argument) for argument in sharing]))
            self.count = self.known.size

    def numbers(self, addresses: Array, itemsize: int) -> Array:
        """The numbers of what accesses touch."""
        found = ((addresses & ADDRESS) - np.uint64(self.first)).view(np.int64) >> self.shift
        if itemsize >> self.shift > 1:
            found = (found[:, None] + np.arange(itemsize >> self.shift)).reshape(-1)
        return found if self.known is None else np.searchsorted(self.known, found)

    def name(self, number: int) -> str:
        """One of them in words: "element 7 of `x`"."""
        found = int(number) if self.known is None else int(self.known[number])
        address = self.first + (found << self.shift)
        for argument in self.sharing:
            tagged = argument.tag | address
            if argument.holds(np.array([tagged], np.uint64), 1).all():
                break
        return argument.element(tagged)

    def _of(self, argument: Argument) -> Array:
        addresses = argument.first + (argument.places << argument.shift)
        return self.numbers(addresses.view(np.uint64), argument.itemsize)


class Part(NamedTuple):
    """The lanes of one access that go through one argument.

    argument: None where no argument has anything to do with the addresses.
    addresses: those inside the view.
    lanes: the places of `addresses` in the block; None where these are all of its lanes.
    astray: the addresses outside the view; None where there is none.
    """

    argument: Argument | None
    addresses: Array
    lanes: Array | None
    astray: Array | None


class Memory:
    """The arguments of one launch."""

    def __init__(self) -> None:
        self.arguments: list[Argument] = []

    def add(self, name: str, tensor: torch.Tensor) -> Argument:
        """Make a tensor an argument. Its pointer is the argument's `first`."""
        argument = Argument(name, tensor, len(self.arguments) + 1)
        self.arguments.append(argument)
        return argument

    def share(self, addresses: Array, mask: Array, itemsize: int) -> tuple[list[Part], Array]:
        """Share out one access among the arguments, and say which lanes may touch memory.

        Those may that stay in the storage: what they reach is nobody else's.
        """
        lanes = None if mask.all() else np.flatnonzero(mask)
        flat = addresses.reshape(-1) if lanes is None else addresses.reshape(-1)[lanes]
        if not flat.size:
            return [], mask
        low, high = int(flat.min()), int(flat.max())
        argument = self._numbered(low >> _BITS)
        if (
            argument
            and argument.first <= low
            and high + itemsize <= argument.end
            and (argument.whole or argument.has(flat).all())
        ):
            return [Part(argument, flat, lanes, None)], mask
        lanes, flat = np.flatnonzero(mask), self._recognized(flat)
        allowed = np.zeros(mask.shape, bool)
        parts = []
        numbers = flat >> _TAG
        for number in np.unique(numbers).tolist():
            argument, chosen = self._numbered(number), numbers == number
            found, places = flat[chosen], lanes[chosen]
            if argument is None:
                parts.append(Part(None, found[:0], places[:0], found))
                continue
            within = argument.holds(found, itemsize)
            astray = None if within.all() else found[~within]
            parts.append(Part(argument, found[within], places[within], astray))
            allowed.reshape(-1)[places[argument.reaches(found, itemsize)]] = True
        return parts, allowed

    def _recognized(self, addresses: Array) -> Array:
        """Addresses that came as plain numbers get the tag of the tensor they lie in."""
        plain = addresses >> _TAG == 0
        if not plain.any():
            return addresses
        addresses = addresses.copy()
        for argument in self.arguments:
            tagged = addresses | np.uint64(argument.tag)
            found = plain & argument.holds(tagged, 1)
            addresses[found] = tagged[found]
        return addresses

    def _numbered(self, number: int) -> Argument | None:
        return self.arguments[number - 1] if 0 < number <= len(self.arguments) else None


def _few(elements: int, extent: int) -> bool:
    """Whether arrays over the whole extent would hold little else than gaps."""
    return extent > 64 * elements
