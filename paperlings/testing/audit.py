"""Listening to Python's audit events: what code asks of the process it runs in."""

from __future__ import annotations

import contextlib
import functools
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

# told of an event, its arguments, and the frame in which it was raised
Listener = Callable[[str, tuple[Any, ...], FrameType], None]

# an audit hook cannot be taken out again, so one is put in once, and tells whoever listens
_listeners: list[Listener] = []


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of every audit event in the block."""
    _install()
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def is_library(path: str) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    return path.startswith(_libraries()) or str(Path(path).absolute()).startswith(_libraries())


@functools.cache
def _libraries() -> tuple[str, ...]:
    folders = (
        sys.prefix,
        sys.base_prefix,
        *site.getsitepackages(),
        *sysconfig.get_paths().values(),
    )
    return tuple({str(Path(folder).resolve()) for folder in folders})


@functools.cache
def _install() -> None:
    telling = False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal telling
        if telling or not _listeners:
            return
        telling = True  # what a listener does itself is no event
        try:
            for listener in list(_listeners):
                listener(event, args, sys._getframe(1))
        finally:
            telling = False

    sys.addaudithook(hook)
