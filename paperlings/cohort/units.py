"""What there is to grade: a unit is one submission's answer to one paper, and its result one file,
named by a hash of all that the verdict depends on.

So whatever is interrupted goes on where it was, and only what has changed is graded again.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paperlings import UsageError, files, layout, stubs
from paperlings.cohort import intake
from paperlings.lanes.gate.child import contests_file

GRADED, REJECTED, INFRA_ERROR = "graded", "rejected", "infra_error"
PACKAGES = ("torch", "numpy", "scipy", "hypothesis", "pytest")  # on which a verdict may depend
COMPILER = "triton"  # on which a kernel's does as well


@dataclass(frozen=True)
class Unit:
    """One submission's answer to one paper.

    where: the submission.  hashes: of all that the verdict depends on.  seed: of the cases drawn.
    refused: why there is nothing to grade.  key: names the result.
    """

    submission: str
    paper: str
    where: Path
    seed: str
    claims: bool
    refused: str
    hashes: dict[str, str] = field(hash=False)
    key: str = ""

    @property
    def needs_gpu(self) -> bool:
        """Whether it takes a GPU to verify all that is asked for: the gate of a kernel does."""
        return self.claims and layout.is_kernel(self.paper)

    def text(self) -> str:
        """The submission's file, as it was planned. Raises Refused where it has changed since."""
        [text] = intake.take(intake.Submission(self.submission, self.where), [self.paper]).values()
        if isinstance(text, intake.Refused):
            raise text
        if _sha(text) != self.hashes["submission"]:
            raise intake.Refused("it has changed since the cohort was begun; grade it again")
        return text


def plan(
    submissions: Iterable[intake.Submission], papers: list[str], secret: bytes, claims: bool
) -> list[Unit]:
    """Every unit, by submission and then paper. Reads each submission once."""
    found = []
    for submission in submissions:
        for paper, text in intake.take(submission, papers).items():
            found.append(unit(submission, paper, text, secret, claims))
    return found


def unit(
    submission: intake.Submission,
    paper: str,
    text: str | intake.Refused,
    secret: bytes | str,
    claims: bool,
) -> Unit:
    """A unit whose cases are drawn from a seed that only the holder of the secret can tell:
    whoever hands in another file is asked about other cases. A str is the seed itself.
    """
    refused = str(text) if isinstance(text, intake.Refused) else ""
    digest = _sha(refused or str(text))
    seed = secret
    if isinstance(secret, bytes):
        message = "\0".join((submission.name, paper, digest)).encode()
        seed = hmac.new(secret, message, hashlib.sha256).hexdigest()[:32]
    hashes = {"submission": digest, **house(paper)}
    everything = [submission.name, paper, hashes, seed, claims, refused]
    key = _sha(json.dumps(everything, sort_keys=True))[:32]
    where = submission.path.absolute()
    return Unit(submission.name, paper, where, str(seed), claims, refused, hashes, key)


@functools.cache
def house(paper: str) -> dict[str, str]:
    """Hashes of what judges a paper, and of what it is judged with."""
    tests, packages = layout.tests(paper).read_bytes(), [*PACKAGES]
    if layout.is_kernel(paper):
        packages.append(COMPILER)
        tests += contests.read_bytes() if (contests := contests_file(paper)).exists() else b""
    return {
        "tests": _sha(tests),
        "oracle": _sha(layout.source(layout.REFERENCE, paper).read_bytes()),
        "solution": _sha(layout.source(layout.SOLUTIONS, paper).read_bytes()),
        "knowledge": _sha(layout.knowledge(paper).read_bytes()),
        "kit": _kit(),
        "lock": _lock(*packages),
    }


@functools.cache
def _kit() -> str:
    whole = hashlib.sha256()
    for path in sorted((layout.HOME / "paperlings").rglob("*.py")):
        whole.update(path.relative_to(layout.HOME).as_posix().encode() + b"\0")
        whole.update(path.read_bytes() + b"\0")
    return whole.hexdigest()


@functools.cache
def _lock(*packages: str) -> str:
    versions = [platform.python_version()]
    for name in packages:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # triton is for Linux only
            versions.append(f"no {name}")
    return _sha("\n".join(versions))


def _sha(data: str | bytes) -> str:
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return hashlib.sha256(raw).hexdigest()


def secret(file: Path) -> bytes:
    """The secret from which seeds are made: that of the file, which is written where it is missing,
    for its owner's eyes only. Raises UsageError.
    """
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
                new.write(secrets.token_hex(32) + "\n")
        found = file.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"{file} cannot be written or read: {error.strerror}") from None
    if len(found) < 16:
        raise UsageError(f"{file}: a secret has at least 16 characters; delete it for a new one")
    return found


# ---- results


def result(unit: Unit, outcome: str, reason: str = "", **more: Any) -> dict[str, Any]:
    """What became of a unit; unit.schema.json describes it."""
    points = {GRADED: None, REJECTED: 0, INFRA_ERROR: None}[outcome]
    return {
        "schema": 1,
        "key": unit.key,
        "submission": unit.submission,
        "paper": unit.paper,
        "outcome": outcome,
        "reason": reason,
        "points": points,
        "max_points": len(stubs.groups(unit.paper)),
        "claims": unit.claims,
        "sandbox": "",
        "seed": unit.seed,
        "attempts": 0,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "hashes": unit.hashes,
        "machine": {},
        "verdict": None,
        **more,
    }


def file(out: Path, unit: Unit) -> Path:
    """Where the result of a unit lies in the folder of a cohort."""
    return out / "units" / f"{unit.key}.json"


def save(out: Path, unit: Unit, found: dict[str, Any]) -> None:
    """Write a result, whole or not at all."""
    files.write(file(out, unit), json.dumps(found, indent=1) + "\n")


def load(out: Path, unit: Unit) -> dict[str, Any] | None:
    """The result of a unit, as far as there is one that can be read."""
    try:
        found = json.loads(file(out, unit).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and found.get("key") == unit.key and "verdict" in found
    return found if whole else None


def is_settled(found: dict[str, Any] | None) -> bool:
    """Whether a result stands; what the machine has failed at is tried again."""
    return found is not None and found["outcome"] != INFRA_ERROR


def plain(unit: Unit) -> dict[str, Any]:
    """A unit as it crosses to who grades it."""
    return {**asdict(unit), "where": str(unit.where)}


def from_plain(data: dict[str, Any]) -> Unit:
    """The unit that `plain` made the data of."""
    return Unit(**{**data, "where": Path(data["where"])})
