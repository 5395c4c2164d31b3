"""The watcher, driven as a person would: files are saved, keys pressed, and the screen is read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paperlings import reach

PATIENCE = 60.0  # seconds to wait for what must appear, on a machine as busy as can be
MOMENT = 5.0  # seconds that a process may take to see that its parent is gone
WRONG = ("return e / e.sum(-1, keepdim=True)", "return e / e.sum(0, keepdim=True)")


class Session:
    """`paperlings watch` in a house: in a pipe, or with a terminal of 80 by 24."""

    def __init__(self, house, *arguments: str, tty: bool = False):
        self.house = house
        self.path: Path = house.file("exercises")
        self.heard = ""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
        environment |= {"PYTHONPATH": str(house.home), "NO_COLOR": "1", "TERM": "xterm"}
        self.tty = tty
        if tty:
            self.ours, theirs = pty.openpty()
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            self.before = termios.tcgetattr(theirs)
            streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
            self.theirs = theirs
        else:
            self.ours, theirs = os.pipe()
            streams = {"stdin": subprocess.DEVNULL, "stdout": theirs, "stderr": theirs}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "paperlings", "watch", *arguments],
            cwd=house.home,
            env=environment,
            start_new_session=True,
            preexec_fn=self._as_from_a_shell,
            **streams,
        )
        if not tty:
            os.close(theirs)

    def _as_from_a_shell(self) -> None:
        # what runs in the background, as these tests may, ignores Ctrl-C and hands that on
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self.tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C reaches whom the terminal controls

    def save(self, *edits: tuple[str, str], rename: bool = False) -> None:
        """Save the solution with some edits, as the learner's file."""
        text = self.house.solution()
        for before, after in edits:
            assert text.count(before) == 1
            text = text.replace(before, after)
        if rename:
            beside = self.path.with_suffix(".swp")
            beside.write_text(text, encoding="utf-8")
            beside.replace(self.path)
        else:
            self.path.write_text(text, encoding="utf-8")

    def press(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def hears(self, *texts: str) -> str:
        """Wait until all the texts were said since the last call, and return what was said."""
        end = time.monotonic() + PATIENCE
        while not all(text in self.heard for text in texts):
            left = end - time.monotonic()
            assert left > 0, f"waiting for {texts}, heard {self.heard!r}"
            assert self._read(min(left, 1.0)) or self.process.poll() is None, self.heard
        said, self.heard = self.heard, ""
        return said

    def _read(self, seconds: float) -> bool:
        if not select.select([self.ours], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.ours, 65536)
        except OSError:  # the other side of a terminal is gone
            data = b""
        text = data.decode().replace("\r\n", "\n")
        self.heard += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        return bool(data)

    def ends(self) -> int:
        """Wait for the end, and return the exit status."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < end:
            self._read(0.1)
        return self.process.wait(5)

    def left(self) -> list[int]:
        """The processes that the watcher has started and that do not end with it, given a moment:
        those of multiprocessing end when they see that it is gone.
        """
        end = time.monotonic() + MOMENT
        while (found := self.others()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def others(self) -> list[int]:
        """The processes that the watcher has started, dead ones left out."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                if f"PYTHONPATH={self.house.home}".encode() in (entry / "environ").read_bytes():
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    if int(entry.name) != self.process.pid and state != "Z":
                        found.append(int(entry.name))
        return found


@pytest.fixture
def watching(house) -> Iterator[object]:
    """`watching(*arguments, tty=False)` starts the watcher, and whatever happens it is ended."""
    sessions: list[Session] = []

    def start(*arguments: str, tty: bool = False) -> Session:
        sessions.append(Session(house, *arguments, tty=tty))
        return sessions[-1]

    yield start
    for session in sessions:
        for pid in [session.process.pid, *session.others()]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        session.process.wait()


def test_saves_are_judged_in_a_pipe(watching, house) -> None:
    """The stub is judged at once, then every save, with the claim where all passes; the record of
    progress is kept.
    """
    session = watching()
    said = session.hears("0 of 2 tasks pass", "softmax, entropy")
    assert "\x1b" not in said
    session.save()
    said = session.hears("2 of 2 tasks pass", "claim         passed")
    assert "nox -s compare -- demo/softmax" in said
    session.save(WRONG, rename=True)
    said = session.hears("1 of 2 tasks pass", "behaves like", "next")
    assert "failed        softmax (" in said
    assert "passed        entropy" in said
    session.process.send_signal(signal.SIGINT)
    assert session.ends() == 130
    assert '"entropy": "passed"' in (house.home / "progress.json").read_text()
    assert session.left() == []


def test_the_last_of_quick_saves_counts(watching) -> None:
    """Ten saves at once end in the verdict on the last, and so does a save during a run."""
    session = watching("softmax")
    session.hears("0 of 2 tasks pass")
    for i in range(10):
        session.save(*([WRONG] if i % 2 else []), rename=bool(i % 3))
        time.sleep(0.01)
    session.save(("z = x / temperature", "import time; time.sleep(0.5); z = x / temperature"))
    time.sleep(1.5)
    begun = time.monotonic()
    session.save(WRONG)
    assert "2 of 2" not in session.hears("failed        softmax (", "behaves like")
    assert time.monotonic() - begun < PATIENCE / 2


def test_a_file_that_hangs_crashes_or_goes_is_survived(watching) -> None:
    """A time-out is called so, a crash is told, a deleted file is waited for, and what comes after
    is judged as ever.
    """
    session = watching()
    session.hears("0 of 2 tasks pass")
    session.save(("z = x / temperature", "import os; os._exit(3)"))
    session.hears("failed        softmax", "ended by itself (exit status 3)")
    session.path.unlink()
    session.hears("is gone; waiting for it to come back")
    session.save(("z = x / temperature", "z = x / temperature  # the same"))
    session.hears("2 of 2 tasks pass")
    session.path.write_text("def softmax(:\n", encoding="utf-8")
    session.hears("line 1: invalid syntax")
    session.save(("z = x / temperature", "while True: pass"))
    session.hears("time-out", "did not come to an end")
    session.save()
    session.hears("2 of 2 tasks pass")


def test_a_killed_process_is_replaced(watching) -> None:
    """The process that holds the imports may be killed: the next save is judged by another."""
    session = watching()
    session.hears("0 of 2 tasks pass")
    for pid in session.others():
        os.kill(pid, signal.SIGKILL)
    session.save()
    session.hears("2 of 2 tasks pass")


def test_the_keys_do_what_the_menu_says(watching, build, tmp_path) -> None:
    """h shows hints, l lists and searches, n goes on, x resets after asking twice, q quits."""
    house = build(tmp_path / "two", "softmax", "other")
    session = Session(house, "softmax", tty=True)
    try:
        session.hears("0 of 2 tasks pass", "q:quit")
        session.press("h")
        session.hears("hint 1 of 3 for softmax")
        session.press("n")
        session.hears("Press n again")
        session.press("l")
        session.hears("2 of 2 papers", "> demo/softmax", "  demo/other")
        session.press("/oth")
        session.hears("1 of 2 papers /oth", "> demo/other")
        session.press("\r\r")
        session.hears("demo/other: 0 of 2 tasks pass")
        session.press("nn")
        session.hears("demo/softmax: 0 of 2 tasks pass")
        session.save()
        session.hears("2 of 2 tasks pass", "claim         passed", "2 of 4 tasks, 1 of 2 papers")
        session.press("x")
        session.hears("Press x again")
        session.press("x")
        session.hears("0 of 2 tasks pass", "is kept as softmax.py.")
        session.press("c")
        session.hears("4 tasks: 0 passed", "press a key to go back")
        session.press(" ")
        session.hears("q:quit")
        session.press("q")
        assert session.ends() == 0
        assert termios.tcgetattr(session.theirs) == session.before
    finally:
        session.process.kill()


@pytest.mark.parametrize("how", ["ctrl-c", "SIGTERM", "SIGHUP", "crash"])
def test_the_terminal_is_given_back(house, how) -> None:
    """However the watcher ends, the terminal is as it was and no process is left."""
    if how == "crash":
        listing = house.home / "paperlings" / "learner" / "listing.py"
        listing.write_text(listing.read_text().replace("def press(", "def pressed("))
    session = Session(house, tty=True)
    try:
        session.hears("q:quit")
        assert termios.tcgetattr(session.theirs) != session.before
        if how == "ctrl-c":
            session.press("\x03")
        elif how == "crash":
            session.press("lj")
        else:
            session.process.send_signal(getattr(signal, how))
        assert session.ends() == {"ctrl-c": 130, "crash": 1}.get(how, 130)
        assert termios.tcgetattr(session.theirs) == session.before
        assert session.left() == []
    finally:
        session.process.kill()


def test_runs_start_cold_where_forking_is_unsafe(watching, house) -> None:
    """Without fork every run is a process of its own, and the verdicts are the same."""
    runner = house.home / "paperlings" / "runner.py"
    text = runner.read_text()
    assert text.count('sys.platform == "linux" and') == 1
    runner.write_text(text.replace('sys.platform == "linux" and', 'sys.platform == "none" and'))
    session = watching()
    session.hears("0 of 2 tasks pass")
    session.save()
    session.hears("2 of 2 tasks pass", "claim         passed")


A = '''
"""Lesson."""
import math

SIZE = 3


def helper(x):
    """Helps."""
    return x + 1


def first(x):
    return helper(x)


def second(x):
    return x


class Third:
    def go(self):
        return second(2)
'''


@pytest.mark.parametrize(
    ("before", "after", "tasks"),
    [
        ("x + 1", "x + 2", ((), ("first",))),
        ("return x\n", "return -x\n", (("second",), ("Third",))),
        ("second(2)", "second(3)", (("Third",), ())),
        ("Helps.", "Does nothing.", ((), ())),
        ("    return x\n", "\n    # why\n    return x\n", ((), ())),
        ("SIZE = 3", "SIZE = 4", None),
        ("import math", "import cmath", None),
        ("def second(x)", "def second(x:", None),
        ("def helper(x)", "def helped(x)", ((), ("first",))),
    ],
)
def test_an_edit_reaches_what_uses_it(before, after, tasks) -> None:
    """A task is judged again where its code, or code that it uses, means something else."""
    assert A.count(before) == 1
    assert reach.between(A, A.replace(before, after), ("first", "second", "Third")) == tasks
