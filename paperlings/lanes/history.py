"""What the programs of one launch did to each element of one storage.

Each lane that writes has a number, counted through the launch. So a number tells which program
wrote, and whether that was before the last barrier.
"""

from __future__ import annotations

import numpy as np

from paperlings.lanes.memory import Argument, Elements
from paperlings.lanes.rounding import Array

NOBODY = -1
_ENOUGH = 1 << 22  # so many loads wait to be entered


class History:
    """Arrays are made when they are needed: most storages are only read, and then none is."""

    def __init__(self, sharing: list[Argument]):
        self.elements = Elements(sharing)
        self.stored: Array | None = None  # the number of the lane that stored last
        self.swapped: Array | None = None  # of the one that changed it atomically last
        self.latest = NOBODY  # the highest number in `stored`
        self.reader: Array | None = None  # the first program that loaded it
        self.shared: Array | None = None  # whether another one did
        self.waiting: list[tuple[int, Array, int]] = []
        self.waiting_lanes = 0

    def store(self, places: Array, number: int) -> Array:
        """Enter a store whose first lane has that number: the lane that won each place."""
        self.stored = self._made(self.stored)
        self.stored[places] = np.arange(number, number + places.size)
        self.latest = number + places.size - 1
        return self.stored[places] - number

    def swap(self, places: Array, number: int) -> None:
        """Enter an atomic operation."""
        self.swapped = self._made(self.swapped)
        self.swapped[places] = np.arange(number, number + places.size)

    def load(self, program: int, addresses: Array, itemsize: int) -> None:
        """Remember a load."""
        self.waiting.append((program, addresses, itemsize))
        self.waiting_lanes += addresses.size
        if self.waiting_lanes > _ENOUGH:
            self.enter()

    def enter(self) -> tuple[Array, Array]:
        """Enter the loads that wait: who loaded first, and whether others did, too."""
        self.reader = self._made(self.reader)
        if self.shared is None:
            self.shared = np.zeros(self.elements.count, bool)
        for program, addresses, itemsize in self.waiting:
            places = self.elements.numbers(addresses, itemsize)
            before = self.reader[places]
            self.shared[places[(before != NOBODY) & (before != program)]] = True
            self.reader[places[before == NOBODY]] = program
        self.waiting, self.waiting_lanes = [], 0
        return self.reader, self.shared

    def _made(self, numbers: Array | None) -> Array:
        return np.full(self.elements.count, NOBODY, np.int64) if numbers is None else numbers
