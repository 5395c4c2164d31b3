"""What the process that measures has said, taken for no more than it is.

A candidate runs in that process, so that from its import on each line may be the candidate's own.
Such a line can say that its contests were passed, and how fast; it cannot take back what was said
before, speak of other contests, nor bring whoever reads it to anything but a verdict on itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, is_dataclass
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from paperlings.lanes.gate.results import CANDIDATE, TODO, Result
from paperlings.lanes.gate.statistics import FAIL, PASS, UNDECIDED
from paperlings.words import printable

MOST, LINE = 16 << 20, 1 << 20  # bytes of a journal, and of a line
WORDS = 4000  # characters of a text
ROOFS = {"copy", "read", "matmul"}  # without which nothing can be drawn of what was timed


@dataclass
class Journal:
    """What has been said, line by line; a last one that was cut short is left out.

    contests: name and task of each.  inside: whether the candidate's code was running.
    loaded: whether it had been before.  done: whether all was said.
    forged: whether something was said that the gate never says.
    """

    machine: dict[str, str] = field(default_factory=dict)
    contests: list[list[str]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    inside: bool = False
    loaded: bool = False
    done: bool = False
    forged: bool = False

    @classmethod
    def of(cls, said: bytes) -> Journal:
        journal = cls(forged=len(said) > MOST)
        for line in said.split(b"\n")[:-1]:
            try:
                if len(line) > LINE:
                    raise ValueError
                journal._hear(json.loads(line, parse_constant=_refuse))
            except (ValueError, RecursionError):
                journal.forged = True
                break
        return journal

    def _hear(self, event: Any) -> None:
        """Raises ValueError."""
        match event:
            case _ if self.done or not isinstance(event, dict) or len(event) > 2:
                raise ValueError
            case {"machine": machine, "contests": contests} if not self.loaded:
                self.machine = _read(machine, dict[str, str])
                self.contests = _read(contests, list[list[str]])
            case {"inside": True | False as inside} if len(event) == 1:
                self.inside = inside
                self.loaded = True
            case {"result": plain} if len(event) == 1 and self.loaded:
                self.results.append(self._result(plain))
            case {"end": True} if len(event) == 1 and len(self.results) == len(self.contests):
                self.done = True
            case _:
                raise ValueError

    def _result(self, plain: Any) -> Result:
        result: Result = _read(plain, Result)
        expected = self.contests[len(self.results) :][:1]
        if [[result.name, result.task]] != expected:
            raise ValueError
        if result.verdict not in (PASS, FAIL, UNDECIDED, TODO):
            raise ValueError
        if result.samples and not (result.samples.get(CANDIDATE) and result.roofs.keys() >= ROOFS):
            raise ValueError
        return result


def _read(plain: Any, kind: Any) -> Any:
    """What JSON says, as a value of a kind: texts that can be shown, and numbers to reckon with.
    Raises ValueError.
    """
    whole, inner = get_origin(kind) or kind, get_args(kind)
    if NoneType in inner:
        return None if plain is None else _read(plain, inner[0])
    if is_dataclass(kind) and isinstance(plain, dict):
        kinds = get_type_hints(kind)
        if plain.keys() != {part.name for part in fields(kind)}:
            raise ValueError
        return whole(**{name: _read(value, kinds[name]) for name, value in plain.items()})
    if whole is dict and isinstance(plain, dict):
        return {_read(name, inner[0]): _read(value, inner[1]) for name, value in plain.items()}
    if whole is list and isinstance(plain, list):
        return [_read(value, inner[0]) for value in plain]
    if whole is str and isinstance(plain, str) and len(plain) <= WORDS:
        return printable(plain)
    if whole is int and type(plain) is int and 0 <= plain < 1 << 63:
        return plain
    # all that is measured is positive: a time, a ratio of times, bytes in a second
    if whole is float and type(plain) in (int, float) and 1e-12 < plain < 1e21:
        return float(plain)
    raise ValueError


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
