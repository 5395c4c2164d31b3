"""The clone that the kit is, as git sees it: its commits, its index, its files."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from paperlings import layout

Tree = dict[str, tuple[str, str]]  # mode and blob of every file, by its path


class GitError(Exception):
    """git refuses, or is not there; the message is its own."""


def run(*arguments: str, data: bytes = b"", index: str = "", may_fail: bool = False) -> bytes:
    """What git prints. data: its input.  index: used in place of the clone's own.

    Raises GitError.
    """
    environment = {**os.environ, **({"GIT_INDEX_FILE": index} if index else {})}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=layout.HOME,
            env=environment,
            input=data,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise GitError(f"git cannot be run: {error.strerror}") from None
    if done.returncode and not may_fail:
        words = done.stderr.decode("utf-8", errors="replace").strip()
        raise GitError(words or f"git {arguments[0]} failed")
    return done.stdout


def ask(*arguments: str) -> str:
    """What git prints, as text. Raises GitError."""
    return os.fsdecode(run(*arguments)).strip()


def setting(name: str) -> str:
    """A setting of git's; "" where there is none."""
    return ask("config", "--default", "", "--get", name)


def tree(commit: str) -> Tree:
    """The files of a commit."""
    return _entries(run("ls-tree", "-r", "-z", commit), blob=2)


def staged(paths: Iterable[str]) -> Tree:
    """Some files as they are staged."""
    found = _entries(run("ls-files", "--stage", "-z"), blob=1)
    return {path: found[path] for path in paths if path in found}


def stage(paths: Iterable[str], files: Tree, index: str = "") -> None:
    """Stage some files as they are in a tree; what it lacks, as deleted."""
    gone = ("0", "0" * 40)
    lines = [f"{' '.join(files.get(path, gone))}\t{path}\0" for path in paths]
    run("update-index", "-z", "--index-info", data=os.fsencode("".join(lines)), index=index)


def stored(files: Tree) -> str:
    """The name under which git keeps a tree."""
    with tempfile.TemporaryDirectory() as folder:
        index = str(Path(folder, "index"))
        stage(files, files, index)
        return run("write-tree", index=index).decode().strip()


def on_disk(paths: Iterable[str]) -> dict[str, str]:
    """The blobs of those files that are there, as git would store them."""
    there = [path for path in sorted(paths) if (layout.HOME / path).is_file()]
    names = "".join(f"{path}\n" for path in there)
    blobs = run("hash-object", "--stdin-paths", data=os.fsencode(names)).decode().split()
    return dict(zip(there, blobs, strict=True))


def blob(files: Tree, path: str) -> str | None:
    """The blob of a file in a tree."""
    return files[path][1] if path in files else None


def content(files: Tree, path: str) -> bytes | None:
    """A file of a tree, as git would check it out."""
    name = blob(files, path)
    return run("cat-file", "--filters", f"--path={path}", name) if name else None


def between(base: str, new: str) -> set[str]:
    """The blobs of everything that files have been after `base`, up to `new`."""
    listing = ask("rev-list", "--objects", f"{base}..{new}")
    return {line.partition(" ")[0] for line in listing.splitlines()}


def _entries(listing: bytes, blob: int) -> Tree:
    """What git lists as "mode ... blob ... <tab> path"; `blob` says which word is the blob."""
    lines = (line.split("\t", 1) for line in os.fsdecode(listing).split("\0")[:-1])
    return {path: (said.split()[0], said.split()[blob]) for said, path in lines}
