"""Writing files so that nothing is lost: whole or not at all, and never over somebody's work."""

from __future__ import annotations

import os
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
