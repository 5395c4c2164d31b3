"""Writing files so that nothing is lost: whole or not at all, and never over somebody's work."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from datetime import datetime
from pathlib import Path


def write(path: Path, data: str | bytes) -> None:
    """Put `data` at `path`, whole or not at all, whatever happens meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_own(root: Path, name: str, most: int) -> bytes:
    """The file `name` under `root`: a regular one, with no other name, that no link leads to.

    It is opened folder by folder, so that none is put in the way meanwhile. Raises ValueError,
    which says what it is instead, or that it has more than so many bytes.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    handle = -1
    try:
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        *folders, last = name.split("/")
        for folder in folders:
            inner = os.open(folder, flags | os.O_DIRECTORY, dir_fd=handle)
            os.close(handle)
            handle = inner
        file = os.open(last, flags, dir_fd=handle)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ValueError("is reached by a link, or by what is no folder") from None
        raise ValueError(f"cannot be read: {error.strerror}") from None
    finally:
        if handle >= 0:
            os.close(handle)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(file)
        raise ValueError("is no file of its own")
    with open(file, "rb") as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise ValueError(f"is larger than {most >> 10} KiB")
    return data


def back_up(path: Path) -> Path:
    """Copy `path` to a dated name beside it, which nothing overwrites, and return that name."""
    stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    for count in range(1, 1000):
        suffix = "" if count == 1 else f"-{count}"
        copy = path.with_name(f"{path.name}.{stamp}{suffix}.bak")
        if not copy.exists():
            write(copy, path.read_bytes())
            return copy
    raise FileExistsError(f"no free name for a backup of {path}")
