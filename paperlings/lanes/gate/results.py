"""What the gate has found, as plain data that goes between processes and into files."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paperlings.lanes.gate.statistics import Ratio

TODO = "TODO"  # the stub's own verdict
CANDIDATE, AGAIN, KIT, EAGER, COMPILED = "candidate", "again", "kit", "eager", "torch.compile"
TWICE, ROOF = "twice", "roof"


@dataclass
class Result:
    """One contest.

    why, question: of a FAIL, what was found and what to ask; why also says what left it UNDECIDED.
    ratios: how many times as long as the candidate each other took.  of_roof: the share of the
    measured roof.  samples: microseconds by contender, a number a round.  peak: bytes of memory.
    left_out: who could not run, or which inputs did not fit, and why.  roofs: bytes or FLOPs a
    second.
    """

    name: str
    task: str
    verdict: str
    why: str = ""
    question: str = ""
    bars: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    of_roof: Ratio | None = None
    twice: Ratio | None = None
    roof: str = ""
    bytes: int = 0
    flops: int = 0
    roofs: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    clocks: list[dict[str, str]] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The candidate's median; 0 where nothing was timed."""
        samples = sorted(self.samples.get(CANDIDATE, [0.0]))
        return samples[len(samples) // 2] * 1e-6

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Result:
        ratios = {name: Ratio(**ratio) for name, ratio in plain["ratios"].items()}
        single = {k: Ratio(**plain[k]) if plain[k] else None for k in ("of_roof", "twice")}
        return cls(**{**plain, "ratios": ratios, **single})


@dataclass
class Report:
    """All contests of one kernel.

    source: a hash of the candidate's file.  trouble: what kept the whole kernel from being
    measured.
    """

    kernel: str
    impl: str
    source: str
    date: str
    seed: int
    machine: dict[str, str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    trouble: str = ""

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Report:
        return cls(**{**plain, "results": [Result.of(result) for result in plain["results"]]})


def fingerprint(path: Path) -> str:
    """A short hash of a file's text, by which a measurement knows what it measured."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
