"""What a learner has done, in one file that a person can read: progress.json.

Verdicts are kept with a hash of the exercise they are about, so an edited file never shows an old
verdict as its own. The file is written whole or not at all; one that cannot be read is kept aside.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from paperlings import files, layout
from paperlings.verdict import PASSED, PaperVerdict

FILE = layout.HOME / "progress.json"
VERSION = 1


@dataclass
class Done:
    """What was done of one paper.

    hash: of the exercise that was judged last.  judged: when.  tasks: their verdicts.
    claim: its verdict, "" without one.  hints: how many of a task's hints were shown.
    passed: when all tasks first passed.  gave_up: when the solution was first shown without that.
    """

    hash: str = ""
    judged: str = ""
    tasks: dict[str, str] = field(default_factory=dict)
    claim: str = ""
    hints: dict[str, int] = field(default_factory=dict)
    passed: str = ""
    gave_up: str = ""

    @property
    def complete(self) -> bool:
        """Whether every task passed when it was judged last."""
        return bool(self.tasks) and set(self.tasks.values()) == {PASSED}


class Progress(dict[str, Done]):
    """What was done, by a paper's key. notes: what there is to say about the file itself."""

    notes: list[str]

    def of(self, key: str) -> Done:
        """What was done of a paper; nothing yet is as good as an entry."""
        return self.setdefault(key, Done())

    def is_current(self, key: str) -> bool:
        """Whether the exercise is as it was when it was judged last."""
        return key in self and self[key].hash == content_hash(key)

    def is_finished(self, key: str) -> bool:
        """Whether every task of the exercise, as it is now, passed."""
        return self.is_current(key) and self[key].complete


def load(file: Path | None = None) -> Progress:
    """Read the file. One that is damaged, or of a newer kit, is kept aside under a dated name,
    `notes` says so, and the record begins anew.
    """
    file = file or FILE
    progress = Progress()
    progress.notes = []
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return progress
    try:
        read(text, progress)
    except ValueError as error:
        kept = files.back_up(file)
        file.unlink()
        progress.clear()
        progress.notes.append(
            f"{file.name} {error}. It is kept as {kept.name}, and a new one begun: "
            "`nox -s grade` fills it again."
        )
    return progress


def read(text: bytes, into: Progress) -> None:
    """Take over what a progress file says. Raises ValueError, which says what is wrong with it."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"cannot be read ({error})") from None
    version = data.get("version") if isinstance(data, dict) else None
    if not isinstance(version, int) or not isinstance(data.get("papers"), dict):
        raise ValueError("is no record of progress")
    if version > VERSION:
        raise ValueError(f"was written by a newer version of the kit ({version}, not {VERSION})")
    for key, entry in data["papers"].items():
        if not _makes_sense(entry):
            raise ValueError(f"has an entry for {key!r} that makes no sense")
        into[key] = Done(**entry)


def _makes_sense(entry: Any) -> bool:
    """Whether an entry has the fields of Done, and in each what belongs there."""
    kinds = {f.name: type(getattr(Done(), f.name)) for f in fields(Done)}
    if not isinstance(entry, dict) or any(
        not isinstance(value, kinds.get(name, type(None))) for name, value in entry.items()
    ):
        return False
    texts, numbers = entry.get("tasks", {}).values(), entry.get("hints", {}).values()
    return all(isinstance(x, str) for x in texts) and all(isinstance(x, int) for x in numbers)


@contextlib.contextmanager
def changing(file: Path | None = None) -> Iterator[Progress]:
    """The record, to be changed in the block and written after it. Two that change it at once
    wait for each other.
    """
    file = file or FILE
    with _locked(file.with_name(f".{file.name}.lock")):
        progress = load(file)
        yield progress
        papers = {key: _plain(progress[key]) for key in sorted(progress)}
        papers = {key: entry for key, entry in papers.items() if entry}
        files.write(file, json.dumps({"version": VERSION, "papers": papers}, indent=2) + "\n")


def record(verdicts: list[PaperVerdict], hashes: dict[str, str]) -> list[str]:
    """Keep the verdicts on exercises; those of other code are none of the learner's progress.

    hashes: of the exercises as they were when they were judged.
    Returns what there is to say about the file itself.
    """
    verdicts = [v for v in verdicts if v.root == layout.EXERCISES and not v.partial]
    if not verdicts:
        return []
    with changing() as progress:
        for verdict in verdicts:
            done = progress.of(verdict.key)
            done.hash, done.judged = hashes[verdict.key], now()
            done.tasks = {task.name: task.status for task in verdict.tasks}
            done.claim = verdict.claim
            if done.complete:
                done.passed = done.passed or done.judged
    return progress.notes


def content_hash(key: str) -> str:
    """Of the learner's file of a paper; "" where there is none."""
    try:
        return hash_of(layout.source(layout.EXERCISES, key).read_bytes())
    except OSError:
        return ""


def hash_of(text: bytes) -> str:
    """The hash that the record keeps of an exercise."""
    return hashlib.sha256(text).hexdigest()[:16]


def now() -> str:
    """The date and time here, to the minute."""
    return datetime.now().isoformat(sep=" ", timespec="minutes")


def _plain(done: Done) -> dict[str, Any]:
    return {name: value for name, value in asdict(done).items() if value}


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Hold a lock file while the block runs, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # on Windows the last one to write wins
        yield
        return
    with open(lock, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
