"""What a GPU would do wrong, or differently each time, and an interpreter does quietly right.

Every launch is watched. A finding is raised when the launch ends, and kept in `findings`, because
a candidate could swallow the exception. `waived` lets one kind of them pass where that is right.

The programs of a launch are taken to run in any order and at once, the lanes of a program to be
different threads. What atomics guard is not followed: a lock needs a waiver.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from paperlings.lanes.history import NOBODY, History
from paperlings.lanes.memory import Argument, Memory, Part
from paperlings.lanes.rounding import Array
from paperlings.testing.close import Mismatch

KINDS = ("bounds", "alignment", "race", "barrier", "duplicate", "dot")

# by the bits of an operand, the least K of a tl.dot that not every known version of triton refuses
# (3.6 and 3.7 also refuse a K under 16 for 32 and 64 bits); M and N may be anything in all of them
LEAST_K = {8: 32, 16: 16, 32: 8, 64: 4}

findings: list[Mismatch] = []
_waived: list[str] = []


def clear() -> None:
    """Forget the findings so far."""
    findings.clear()


def raise_if_any() -> None:
    """Raise the first finding that is kept."""
    if findings:
        raise findings[0]


@contextlib.contextmanager
def waived(**why: str) -> Iterator[None]:
    """Let one of KINDS pass in the launches of the block: `waived(race="a lock guards it")`.

    Raises ValueError for a kind there is not, and where no reason is given.
    """
    for kind, reason in why.items():
        if kind not in KINDS or not reason:
            raise ValueError(f"{kind}={reason!r}: expected a reason for one of {', '.join(KINDS)}")
    before = list(_waived)
    _waived.extend(why)
    try:
        yield
    finally:
        _waived[:] = before


@dataclass
class _Finding:
    kind: str
    question: str
    first: str  # the first case, in words
    lanes: int


class Sanitizer:
    """Watches one launch."""

    def __init__(self, kernel: str, memory: Memory):
        self.kernel = kernel
        self.memory = memory
        self.reported: dict[tuple[str, ...], _Finding] = {}
        self.histories: dict[int, History] = {}
        self.programs: list[tuple[int, ...]] = []
        self.starts: list[int] = []  # of each program, the number of its first writing lane
        self.next = 0  # the number of the next writing lane
        self.barred = 0  # the number of the first one after the last barrier

    def begin(self, program: tuple[int, ...]) -> None:
        """The next program begins."""
        self.programs.append(program)
        self.starts.append(self.next)
        self.barred = self.next

    def barrier(self) -> None:
        """The threads of the program have waited for each other."""
        self.barred = self.next

    def dot(self, dtype: str, bits: int, k: int) -> None:
        """Blocks with `k` columns are multiplied with blocks of `k` rows."""
        least = LEAST_K.get(bits, 1)
        if k < least:
            self._report(
                ("dot", dtype),
                1,
                "Are the blocks wide enough for a tensor core?",
                lambda: f"tl.dot along K = {k} in {dtype}; a GPU takes no K under {least}",
            )

    def load(self, part: Part, itemsize: int) -> None:
        """Some lanes load through one argument."""
        history = self._history(part, itemsize, "loads", "tl.load")
        if history is None:
            return
        history.load(len(self.programs) - 1, part.addresses, itemsize)
        if history.stored is not None and history.latest >= self.barred:
            places = history.elements.numbers(part.addresses, itemsize)
            fresh = places[history.stored[places] >= self.barred]
            self._report(
                ("barrier", str(history.elements.first)),
                fresh.size,
                "Another thread may have stored it: can the value stay in a variable, "
                "or is a tl.debug_barrier() missing?",
                lambda: (
                    f"{self._here()} loads {history.elements.name(fresh[0])}, "
                    "which it has stored itself with no barrier between"
                ),
            )

    def store(self, part: Part, values: Array) -> None:
        """Some lanes store `values` through one argument."""
        history = self._history(part, values.itemsize, "stores to", "tl.store")
        if history is None:
            return
        places = history.elements.numbers(part.addresses, values.itemsize)
        self._alone(history, history.stored, places, "stores to")
        self._alone(history, history.swapped, places, "stores to")
        winners = history.store(places, self.next)
        self.next += places.size
        lost = winners != np.arange(places.size)
        if lost.any():
            # lanes that agree do not mind which of them wins
            bits = np.repeat(values.view(f"u{values.itemsize}"), places.size // values.size)
            differ = places[lost & (bits != bits[winners])]
            self._report(
                ("duplicate", str(history.elements.first)),
                differ.size,
                "Which of two lanes wins? Nothing promises an order.",
                lambda: (
                    f"{self._here()} stores different values in one tl.store to "
                    f"{history.elements.name(differ[0])}"
                ),
            )

    def atomic(self, part: Part, itemsize: int, *, writes: bool) -> None:
        """Some lanes load, store or do both in one step, as others may at the same time."""
        does = "atomically changes" if writes else "atomically loads"
        history = self._history(part, itemsize, does, "atomic operation")
        if history is None:
            return
        places = history.elements.numbers(part.addresses, itemsize)
        self._alone(history, history.stored, places, does)
        if writes:
            history.swap(places, self.next)
            self.next += places.size

    def close(self) -> list[Mismatch]:
        """The launch is over: what was found, which is kept in `findings`, too."""
        for history in self.histories.values():
            self._unread(history, history.stored)
            self._unread(history, history.swapped)
        found = [
            Mismatch(
                finding.question,
                f"kernel {self.kernel}: {finding.first}"
                + (f" ({finding.lanes} such lanes in this launch)" if finding.lanes > 1 else ""),
            )
            for finding in self.reported.values()
            if finding.kind not in _waived
        ]
        findings.extend(found)
        return found

    def _history(self, part: Part, itemsize: int, does: str, what: str) -> History | None:
        """The history of what is touched, unless that is nothing; what leaves the argument, or is
        askew, is reported.
        """
        argument = part.argument
        if part.astray is not None:
            self._strays(argument, part.astray, does, what)
        if argument is None or not part.addresses.size:
            return None
        if itemsize != argument.itemsize:
            askew = part.addresses[part.addresses & np.uint64(itemsize - 1) != 0]
            self._report(
                ("alignment", argument.name),
                askew.size,
                "Is the offset counted in elements of the pointer's type?",
                lambda: (
                    f"{self._here()} {does} {argument.element(int(askew[0]))} in {itemsize} "
                    f"bytes that begin at no multiple of {itemsize}"
                ),
            )
        if argument.storage not in self.histories:
            sharing = [a for a in self.memory.arguments if a.storage == argument.storage]
            self.histories[argument.storage] = History(sharing)
        return self.histories[argument.storage]

    def _strays(self, argument: Argument | None, astray: Array, does: str, what: str) -> None:
        first = int(astray[0])
        if argument is None:
            name, where = "", "an address that belongs to none of its tensors"
        else:
            shape = list(argument.tensor.shape)
            name, where = argument.name, f"{argument.element(first)}, whose shape is {shape}"
        question = f"Which lanes have nothing to do? Is there a {what} without a mask for them?"
        if argument and argument.first <= first < argument.end:
            question = "Where does a row's data end, and where does the next row begin?"
        self._report(
            ("bounds", name, does), astray.size, question, lambda: f"{self._here()} {does} {where}"
        )

    def _alone(self, history: History, written: Array | None, places: Array, does: str) -> None:
        """Report places that another program has written."""
        if written is None:
            return
        numbers = written[places]
        others = (numbers != NOBODY) & (numbers < self.starts[-1])
        self._report(
            ("race", str(history.elements.first), "write"),
            int(np.count_nonzero(others)),
            "Which program owns each element? Can one of them write it alone, "
            "or all of them with an atomic?",
            lambda: (
                f"{self._here()} {does} {history.elements.name(places[others][0])}, "
                f"which {self._writer(numbers[others][0])} writes, too"
            ),
        )

    def _unread(self, history: History, written: Array | None) -> None:
        """Report places that one program writes and another one loads."""
        if written is None:
            return
        reader, shared = history.enter()
        places = np.flatnonzero((written != NOBODY) & (reader != NOBODY))
        writers = np.searchsorted(self.starts, written[places], side="right") - 1
        wrong = (writers != reader[places]) | shared[places]
        places, writers = places[wrong], writers[wrong]

        def words() -> str:
            first = int(reader[places[0]])
            who = "another program" if first == writers[0] else self._named(first)
            writer = self._named(int(writers[0]))
            return f"{who} loads {history.elements.name(places[0])}, which {writer} writes"

        self._report(
            ("race", str(history.elements.first), "read"),
            places.size,
            "Programs run in any order and at once: what is loaded if the other one has not come "
            "that far? Does this need a second launch?",
            words,
        )

    def _report(
        self, key: tuple[str, ...], lanes: int, question: str, words: Callable[[], str]
    ) -> None:
        if key in self.reported:
            self.reported[key].lanes += lanes
        elif lanes:
            self.reported[key] = _Finding(key[0], question, words(), lanes)

    def _writer(self, number: int) -> str:
        return self._named(bisect.bisect_right(self.starts, number) - 1)

    def _here(self) -> str:
        return self._named(len(self.programs) - 1)

    def _named(self, ordinal: int) -> str:
        index = self.programs[ordinal]
        return f"program {index[0] if len(index) == 1 else index}"
