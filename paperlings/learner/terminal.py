"""The terminal while a program reads single keys: set so, and set back however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

KEYS = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b": "escape",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x03": "quit",
    "\x04": "quit",
}


class Resumed(Exception):
    """The program was stopped and goes on: what is on the screen is gone."""


class Ended(BaseException):
    """Somebody asked the program to end."""


def is_interactive() -> bool:
    """Whether a person sits there who can press keys and see a screen."""
    try:
        import termios
    except ImportError:  # on Windows verdicts are printed, and nothing is asked
        return False
    with contextlib.suppress(OSError, ValueError, termios.error):
        termios.tcgetattr(sys.stdin.fileno())
        return sys.stdout.isatty()
    return False


@contextlib.contextmanager
def single_keys() -> Iterator[int]:
    """Let keys come one by one, unseen, while the block runs; yields what they are read from."""
    import termios
    import tty

    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)

    def resume(number: int, frame: FrameType | None) -> None:
        tty.setcbreak(handle)
        raise Resumed

    kept = signal.signal(signal.SIGCONT, resume)
    try:
        tty.setcbreak(handle)
        yield handle
    finally:
        signal.signal(signal.SIGCONT, kept)
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


@contextlib.contextmanager
def ends_politely() -> Iterator[None]:
    """Make a request to end come out as Ended in the block, so that everything is cleaned up."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    kept = {name: signal.signal(getattr(signal, name), end) for name in names}
    try:
        yield
    finally:
        for name, handler in kept.items():
            signal.signal(getattr(signal, name), handler)


def read(handle: int) -> list[str]:
    """The keys that were pressed, by name or letter; "quit" where nobody sits there any more."""
    data = os.read(handle, 1024).decode("utf-8", errors="replace")
    if not data:
        return ["quit"]
    found = []
    while data:
        text = next((text for text in KEYS if data.startswith(text)), data[0])
        found.append(KEYS.get(text, text))
        data = data[len(text) :]
    return found
