"""Putting the stub of a paper back, and a backup: no version of the learner's file is ever lost.

Each file is replaced in one step, after the copy of the old one is whole. Who is stopped in
between finds the old file or the new one, and every backup made so far.
"""

from __future__ import annotations

import re
from pathlib import Path

from paperlings import UsageError, catalogue, files, layout, stubs

BACKUP = re.compile(r"\.(\d{4}-\d\d-\d\d-\d{6})(?:-(\d+))?\.bak$")  # see files.back_up


def reset(name: str) -> int:
    """Put the stub of a paper back, after a dated backup; returns the exit status.

    Raises CatalogueError for a name that means no paper, UsageError where a file cannot be written.
    """
    print("\n".join(put_back(catalogue.load().select_one(name).key)))
    return 0


def undo(name: str) -> int:
    """Put the newest backup back that holds another text than the file, which is backed up itself;
    returns the exit status, 1 where there is none. Raises as `reset` does.
    """
    key = catalogue.load().select_one(name).key
    path = layout.source(layout.EXERCISES, key)
    now = _read(path)
    other = next((copy for copy in backups(path) if copy.read_bytes() != now), None)
    if other is None:
        print(f"{layout.shown(path)} has no backup that holds anything else")
        return 1
    lines = _replace(path, other.read_bytes(), key, f"holds {other.name} again")
    print("\n".join(lines))
    return 0


def put_back(key: str) -> list[str]:
    """Put the stub of the paper `key` back, after a dated backup; returns what there is to say."""
    path = layout.source(layout.EXERCISES, key)
    if _read(path) == _stub(key):
        return [f"{layout.shown(path)} is the untouched stub; there is nothing to reset"]
    lines = _replace(path, _stub(key), key, "is the stub again")
    return [*lines, f"to undo: nox -s reset -- {key} --undo"]


def backups(path: Path) -> list[Path]:
    """The dated backups of a file, the newest first."""
    found = {}
    for copy in path.parent.glob(f"{path.name}.*.bak"):
        if match := BACKUP.fullmatch(copy.name.removeprefix(path.name)):
            found[copy] = (match[1], int(match[2] or 1))
    return sorted(found, key=found.__getitem__, reverse=True)


def _replace(path: Path, data: bytes, key: str, what: str) -> list[str]:
    """Put `data` at `path`, keeping what is there unless it is the stub, which can be made anew."""
    try:
        kept = files.back_up(path) if _read(path) not in (None, _stub(key)) else None
        files.write(path, data)
    except OSError as error:
        raise UsageError(f"{layout.shown(path)} cannot be replaced: {error.strerror}") from None
    lines = [f"{layout.shown(path)} {what}"]
    return [*lines, f"what was there is kept as {kept.name}"] if kept else lines


def _stub(key: str) -> bytes:
    path = layout.source(layout.SOLUTIONS, key)
    return stubs.stub(path.read_bytes().decode("utf-8"), layout.shown(path)).encode("utf-8")


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
