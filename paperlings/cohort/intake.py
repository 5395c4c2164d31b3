"""What was handed in: folders, zips and tarballs, or a CSV that names them.

Nothing is ever extracted. Of a submission only those files are read that it is asked for, by name;
links, pipes, bombs and whatever else it holds are never opened.
"""

from __future__ import annotations

import bz2
import csv
import functools
import gzip
import hashlib
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from paperlings import UsageError, files, layout
from paperlings.limits import TimeLimit, time_limit
from paperlings.loading import LARGEST

ARCHIVE = 64 << 20  # bytes of a zip or a tarball
STREAM = 256 << 20  # bytes that a tarball unpacks to, as far as it is looked through
MEMBERS = 10_000  # files in an archive, or in a folder that is looked through
SECONDS = 20.0  # that one submission may take to read; some archives take Python's readers hours
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
EXERCISES = layout.EXERCISES.name  # the folder of answers, should all of this project be handed in
# its folders that hold none; a track is called kernels as well, whose answers may lie by themselves
OTHERS = {"solutions", "reference", "tests", "kernels", "paperlings", "__MACOSX"}


class Refused(Exception):
    """There is no file to grade, or none that is safe to read; the message says why."""


@dataclass(frozen=True)
class Submission:
    """What one person or program handed in. name: unique among all that are graded together."""

    name: str
    path: Path


def submissions(source: Path) -> list[Submission]:
    """All submissions at `source`: the rows of a CSV, one archive, or a folder, which is either a
    submission itself or holds submissions. Raises UsageError.
    """
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder")
    if source.suffix.lower() == ".csv":
        return _listed(source)
    if source.is_file():
        if _is_archive(source.name):
            return [Submission(name_of(source), source)]
        raise UsageError(f"{source}: neither a folder, nor a CSV, nor one of {', '.join(ARCHIVES)}")
    inside = sorted(p for p in source.iterdir() if not p.name.startswith("."))
    if _is_submission(source):
        return [Submission(name_of(source), source)]
    found = [p for p in inside if _is_archive(p.name) or (p.is_dir() and p.name not in OTHERS)]
    if not found:
        raise UsageError(
            f"{source} holds no submissions: folders with <track>/<paper>.py in them, or archives "
            f"({', '.join(ARCHIVES)})"
        )
    names = [printable(_stem(p.name)) for p in found]
    # dpo.zip beside a folder dpo: both keep their whole names, and then, if need be, dpo.zip.zip
    # too; what looks alike in print gets a sign as well
    for longer in (_whole_name, _whole_name, _signed_name):
        count = Counter(names)
        names = [longer(p) if count[n] > 1 else n for p, n in zip(found, names, strict=True)]
    return [Submission(n, p) for n, p in zip(names, found, strict=True)]


def _whole_name(path: Path) -> str:
    return printable(path.name)


def _signed_name(path: Path) -> str:
    return f"{printable(path.name)}~{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}"


def name_of(path: Path) -> str:
    """The name of a submission that nobody has named."""
    return printable(_stem(path.absolute().name))


def _listed(source: Path) -> list[Submission]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{source} is no UTF-8 text") from None
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if not {"submission", "path"} <= set(rows.fieldnames or []):
        raise UsageError(f"{source}: its first line must name the columns submission and path")
    found: dict[str, Submission] = {}
    try:
        for row in rows:
            name = printable((row["submission"] or "").strip())
            path = (row["path"] or "").strip()
            if not name or not path:
                raise ValueError("it needs a submission and a path")
            if name in found:
                raise ValueError(f"{name} is there twice")
            found[name] = Submission(name, source.parent / path)
    except (csv.Error, ValueError) as error:
        raise UsageError(f"{source}, line {rows.line_num}: {error}") from None
    if not found:
        raise UsageError(f"{source} names no submissions")
    return list(found.values())


def printable(name: str) -> str:
    """A name of a stranger's file, as it can be shown, kept and compared anywhere."""
    shown = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)


def take(submission: Submission, keys: Iterable[str]) -> dict[str, str | Refused]:
    """The text of each paper's file, or why it cannot be graded."""
    keys = list(keys)
    try:
        with time_limit(SECONDS):
            found = _found(submission.path, keys)
        return {key: _one(key, mine) for key, mine in found.items()}
    except Refused as why:
        return dict.fromkeys(keys, why)
    except TimeLimit:
        return dict.fromkeys(keys, Refused(f"it takes more than {SECONDS:g} s to read"))
    except Exception as error:  # what a broken archive makes its library raise has no end
        return dict.fromkeys(keys, Refused(f"it cannot be read: {_words(error)}"))


def _words(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(said)[:200] or type(error).__name__


def _one(key: str, found: dict[str, bytes | Refused]) -> str | Refused:
    """The text for `key` among the files that may be meant by it: the best place wins."""
    best = min((_rank(key, name) for name in found), default=9)
    names = [name for name in found if _rank(key, name) == best]
    if not names:
        return Refused(f"it has no {key}.py")
    if len(names) > 1:
        return Refused(f"it has several files for {key}: {', '.join(map(printable, names[:3]))}")
    data = found[names[0]]
    if isinstance(data, Refused):
        return data
    try:
        return data.decode("utf-8-sig")  # Windows' editors begin it with a byte order mark
    except UnicodeDecodeError:
        return Refused(f"{key}.py is no UTF-8 text")


@functools.lru_cache(maxsize=1 << 14)
def _rank(key: str, name: str) -> int:
    """How good a place `name` is for the paper's file; 9 for none.

    The layout of exercises/, with that folder or without, and inside one more folder or not.
    """
    parts = PurePosixPath(name).parts
    wanted = PurePosixPath(f"{key}.py").parts
    if parts[-2:] != wanted or {"..", "/"} & set(parts) or set(parts[:-2]) & OTHERS:
        return 9
    before = parts[:-2]
    if before[-1:] == (EXERCISES,):
        return len(before) - 1 if len(before) <= 2 else 9
    return 2 + len(before) if len(before) <= 1 else 9


def _found(path: Path, keys: list[str]) -> dict[str, dict[str, bytes | Refused]]:
    """For each key, the files that may be meant by it."""
    found: dict[str, dict[str, bytes | Refused]] = {key: {} for key in keys}
    clones: set[tuple[str, ...]] = set()  # folders with exercises/ in them

    def offer(name: str, read: Callable[[], bytes | Refused]) -> None:
        parts = PurePosixPath(name).parts
        if EXERCISES in parts:
            clones.add(parts[: parts.index(EXERCISES)])
        for key in keys:
            if _rank(key, name) < 9:
                twice = name in found[key]  # whoever unpacks it would see only the last
                found[key][name] = Refused(f"it has {printable(name)} twice") if twice else read()

    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        _from_folder(path, keys, offer)
    elif not stat.S_ISREG(mode):
        raise Refused("it is neither a folder nor a file, but a link or a device")
    elif path.suffix == ".py":
        for key in _meant(path, keys):
            found[key][f"{key}.py"] = _read(path.parent, path.name)
    elif path.stat().st_size > ARCHIVE:
        raise Refused(f"it is larger than {ARCHIVE >> 20} MiB")
    elif zipfile.is_zipfile(path):
        _from_zip(path, offer)
    elif _is_archive(path.name):
        _from_tar(path, offer)
    else:
        raise Refused("it is neither a folder, nor a zip, nor a tarball")
    for key in filter(layout.is_kernel, keys):
        for name in found[key]:
            if PurePosixPath(name).parts[:-2] in clones:
                found[key][name] = Refused(f"it has no {EXERCISES}/{key}.py; {key}.py is the kit's")
    return found


def _meant(path: Path, keys: list[str]) -> list[str]:
    """Which paper a file by itself answers: its name says it, unless only one is asked for."""
    if len(keys) == 1:
        return keys
    mine = [key for key in keys if key.split("/")[1] == path.stem]
    if len(mine) > 1:  # a paper, and a kernel that is called alike
        is_kernel = path.parent.name == layout.KERNELS
        mine = [key for key in mine if layout.is_kernel(key) == is_kernel]
    return mine


Offer = Callable[[str, Callable[[], bytes | Refused]], None]


def _from_folder(root: Path, keys: list[str], offer: Offer) -> None:
    """Look at the few places where a file may lie. No link is followed, on no part of the way."""
    tops = [""]
    for count, entry in enumerate(os.scandir(root)):
        if count >= MEMBERS:
            raise Refused(f"it holds more than {MEMBERS} files")
        if entry.is_dir(follow_symlinks=False):
            tops.append(entry.name)
    places = {"/".join(filter(None, (top, i))) for top in tops for i in (EXERCISES, "")}
    for place in sorted(places):
        if (root / place).name == EXERCISES and os.path.lexists(root / place):
            offer(place, lambda: b"")  # which no file is called
        for key in keys:
            name = "/".join(filter(None, (place, f"{key}.py")))
            if _rank(key, name) < 9 and os.path.lexists(root / name):
                offer(name, functools.partial(_read, root, name))


def _read(root: Path, name: str) -> bytes | Refused:
    """One regular file under `root`, that no link leads to."""
    try:
        return files.read_own(root, name, LARGEST)
    except ValueError as why:
        return Refused(f"{printable(name)} {why}")


def _bounded(name: str, data: bytes) -> bytes | Refused:
    if len(data) > LARGEST:
        return Refused(f"{printable(name)} is larger than {LARGEST >> 10} KiB")
    return data


def _from_zip(path: Path, offer: Offer) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MEMBERS:
            raise Refused(f"it holds more than {MEMBERS} files")
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir() or kind not in (0, stat.S_IFREG):
                continue

            def read(member: zipfile.ZipInfo = member) -> bytes | Refused:
                if member.flag_bits & 1:
                    return Refused(f"{printable(member.filename)} is encrypted")
                with archive.open(member) as file:
                    return _bounded(member.filename, file.read(LARGEST + 1))

            offer(member.filename.removeprefix("./"), read)


def _from_tar(path: Path, offer: Offer) -> None:
    with (
        _unpacked(path) as raw,
        tarfile.open(fileobj=cast(IO[bytes], _Limited(raw)), mode="r|") as archive,
    ):
        for count, member in enumerate(archive):
            if count >= MEMBERS:
                raise Refused(f"it holds more than {MEMBERS} files")
            if not member.isreg() or member.issparse():
                continue

            def read(member: tarfile.TarInfo = member) -> bytes | Refused:
                file = archive.extractfile(member)
                return _bounded(member.name, file.read(LARGEST + 1) if file else b"")

            offer(member.name.removeprefix("./"), read)


def _unpacked(path: Path) -> IO[bytes]:
    """The bytes of a tarball, whatever it is packed with."""
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, opener in (
        (b"\x1f\x8b", gzip.open),
        (b"BZh", bz2.open),
        (b"\xfd7zXZ\x00", lzma.open),
    ):
        if start.startswith(magic):
            return cast(IO[bytes], opener(path, "rb"))
    return open(path, "rb")


class _Limited:
    """A file of which no more than STREAM bytes are read."""

    def __init__(self, file: IO[bytes]):
        self.file, self.left = file, STREAM

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise Refused(f"it unpacks to more than {STREAM >> 20} MiB")
        data = self.file.read(size)
        self.left -= len(data)
        return data


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)


def _stem(name: str) -> str:
    """The name of a submission's file or folder without what says how it is packed."""
    ending = max((e for e in ARCHIVES if name.lower().endswith(e)), key=len, default="")
    return name[: len(name) - len(ending)]


def _is_submission(folder: Path) -> bool:
    """Whether a folder has the layout of exercises/, with that folder or without."""
    keys = layout.written()
    return any((folder / top / f"{key}.py").exists() for key in keys for top in ("", EXERCISES))
