"""Judging a paper again whenever it is saved.

A save is judged in steps, and shown after each: the tasks that were edited; where one fails, what
it behaves like; then everything, with the claim where all the rest passes. What uses the edited
tasks is not shown until then. A save that comes meanwhile cancels what is going on.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import Any

from paperlings import catalogue, expected, layout, progress, reach, runner, stubs
from paperlings import verdict as verdicts
from paperlings.learner import listing, terminal
from paperlings.learner.warm import Warm
from paperlings.verdict import FAILED, PASSED, TODO, Finding, PaperVerdict

EDITED, NAMED, REST = "what was edited", "likely mistakes", "the rest"
MENU = "n:next  h:hint  l:list  c:check all  x:reset  q:quit"
INTERRUPTED = 130  # the exit status where somebody ended it


def watch(name: str | None = None) -> int:
    """Watch a paper, by default the first that is not finished; returns the exit status.

    Raises CatalogueError for a name that means no paper.
    """
    papers = catalogue.load()
    written = [paper.key for paper in papers.select_written([])]
    chosen = [paper.key for paper in papers.select_written([name] if name else [])]
    done = progress.load()
    key = next((key for key in chosen if not done.is_finished(key)), chosen[0])
    warm = Warm()
    try:
        with terminal.ends_politely():
            Watcher(written, key, warm).run()
    except (KeyboardInterrupt, terminal.Ended):
        return INTERRUPTED
    finally:
        warm.close()
    return 0


class Watcher:
    """What is watched, what is known of it, and what is on the screen."""

    def __init__(self, papers: list[str], key: str, warm: Warm):
        self.papers = papers
        self.warm = warm
        self.interactive = terminal.is_interactive()
        self.shown: list[str] = []
        self.listing: listing.Listing | None = None
        self.open(key)

    def open(self, key: str) -> None:
        """Begin with a paper."""
        self.key = key
        self.path = layout.source(layout.EXERCISES, key)
        self.text: str | None = None  # what is being judged, or was judged last
        self.known = ""  # the text that `findings` are about
        self.findings: dict[str, list[Finding]] = {}
        self.asked: tuple[int, str, tuple[str, ...]] | None = None  # number, step, tasks
        self.pending: tuple[str, ...] = ()  # tasks of which no test has seen that text
        self.whole = False  # whether every test has
        self.seconds = 0.0
        self.message: list[str] = []
        self.waits_for = ""  # a key that must be pressed twice, and was pressed once

    # ---- the loop

    def run(self) -> None:
        """Watch until somebody quits."""
        ours, theirs = Pipe()
        with ExitStack() as stack:
            keys = stack.enter_context(terminal.single_keys()) if self.interactive else None
            if self.interactive:
                stack.callback(print)  # what the shell says next begins a line
            while True:
                folder = self.path.parent
                with _saves(folder, theirs):
                    self.look()
                    while self.path.parent == folder:
                        try:
                            if not self._turn(ours, keys):
                                return
                        except terminal.Resumed:
                            self.shown = []

    def _turn(self, saves: connection.Connection, keys: int | None) -> bool:
        """Show what is known, and wait for what comes next; False where that is the end."""
        self.show()
        sources: list[Any] = [saves, self.warm.pipe, *([] if keys is None else [keys])]
        for ready in connection.wait(sources):
            if ready is saves:
                saves.recv()
                self.look()
            elif ready is self.warm.pipe:
                self._hear()
            elif keys is not None:
                for key in terminal.read(keys):
                    if not self.press(key):
                        return False
        return True

    # ---- judging

    def look(self) -> None:
        """Judge the file if it is another than before."""
        try:
            text = self.path.read_bytes().decode("utf-8", errors="surrogateescape")
        except OSError:
            self.text, self.asked = None, None
            self.message = [f"{layout.shown(self.path)} is gone; waiting for it to come back"]
            return
        if text == self.text:
            return
        self.text, self.message = text, []
        changed = None
        if self.findings:
            changed = reach.between(self.known, text, stubs.groups(self.key))
        edited, self.pending = changed or ((), ())
        if changed is None or (self.pending and not edited):
            self._ask(EDITED, self.pending)
        elif edited:
            self._ask(EDITED, edited)
        else:
            self._ask(REST)

    def _ask(self, step: str, tasks: tuple[str, ...] = ()) -> None:
        """Have the tests of some tasks run, or all."""
        job = runner.Job(
            self.key,
            layout.EXERCISES,
            layout.reports(layout.EXERCISES),
            claims=step == REST and self._finished(),
            tasks=tasks,
            diagnosis=runner.USUAL if step == NAMED else runner.NONE,
        )
        self.asked = (self.warm.ask(job), step, tasks)

    def _hear(self) -> None:
        """Take an answer, and go on to the next step."""
        heard = self.warm.answer()
        if heard is None:  # the process was killed: begin again
            self.text = None
            self.look()
            return
        number, run = heard
        if self.asked is None or number != self.asked[0]:
            return
        _, step, tasks = self.asked
        self.asked = None
        if run.trouble:
            self.message = [f"{self.key} cannot be judged; this is the kit's fault:", run.trouble]
            return
        self._take(run, step, tasks)
        self.whole = not tasks if step == EDITED else self.whole or step == REST
        if step == EDITED and self.failed():
            self._ask(NAMED, self.failed())
        elif not self.whole or (self._finished() and not self._claimed()):
            self._ask(REST)
        else:
            for note in progress.record([self.verdict()], {self.key: _hash(self.known)}):
                self.message = [note]

    def _take(self, run: runner.Run, step: str, tasks: tuple[str, ...]) -> None:
        """Put new findings in the place of old ones about the same tests."""
        tests = expected.of(self.key)
        like = {f.test: f.behaves_like for found in self.findings.values() for f in found}
        if not tasks:
            self.findings = {}
        for name in [n for n in self.findings if n in tests]:
            # the claim of an older text says nothing
            if tests[name].claim or set(tests[name].tasks) & {*tasks, *self.pending}:
                del self.findings[name]
        for finding in run.findings:
            if step == REST and finding.status == FAILED:
                finding.behaves_like = finding.behaves_like or like.get(finding.test, [])
            self.findings.setdefault(finding.test, []).append(finding)
        if step == EDITED:
            self.seconds = run.seconds
        self.pending = tuple(task for task in self.pending if tasks and task not in tasks)
        self.known = self.text or ""

    def verdict(self) -> PaperVerdict:
        """The verdict as far as it is known."""
        found = [finding for findings in self.findings.values() for finding in findings]
        for test in expected.of(self.key).values():
            if test.claim and test.name not in self.findings:
                what = "it waits until all other tests pass"
                found.append(Finding(self.key, test.name, TODO, what=what))
        return verdicts.of_paper(self.key, found, partial=bool(self.pending))

    def _finished(self) -> bool:
        passed = {task.status for task in self.verdict().tasks} == {PASSED}
        return passed and not self.pending

    def _claimed(self) -> bool:
        claims = [test.name for test in expected.of(self.key).values() if test.claim]
        return all(name in self.findings for name in claims)

    def failed(self) -> tuple[str, ...]:
        """The tasks that fail, as far as is known."""
        tasks = self.verdict().tasks if self.findings else []
        return tuple(task.name for task in tasks if task.status == FAILED)

    # ---- keys

    def press(self, key: str) -> bool:
        """Do what a key asks for; False where that is to quit."""
        if self.listing:
            return self._press_in_list(key)
        before, self.waits_for = self.waits_for, ""
        if key in ("q", "quit"):
            return False
        if key == "n":
            self._next(sure=before == "n")
        elif key == "h":
            self._hint()
        elif key == "l":
            self.listing = listing.Listing(self.papers, self.key)
        elif key == "c":
            self._check_all()
        elif key == "x":
            self._reset(sure=before == "x")
        return True

    def _next(self, sure: bool) -> None:
        done = progress.load()
        others = self.papers[self.papers.index(self.key) + 1 :] + self.papers
        following = next((k for k in others if k != self.key and not done.is_finished(k)), None)
        if not (done.is_finished(self.key) or sure):
            self.waits_for = "n"
            self.message = ["This paper is not finished. Press n again to go on all the same."]
        elif following is None:
            self.message = ["Every paper that is written passes. There is nothing left to do."]
        else:
            self.open(following)
            self.look()

    def _hint(self) -> None:
        from paperlings.learner import hint

        self.message = hint.next_hint(self.key)

    def _reset(self, sure: bool) -> None:
        from paperlings.learner import reset

        if not sure:
            self.waits_for = "x"
            self.message = [f"Press x again to put the stub of {self.key} back; a backup is made."]
            return
        said = reset.put_back(self.key)
        self.look()
        self.message = said

    def _check_all(self) -> None:
        """Grade everything, without the claims, on a screen of its own."""
        self._clear()
        command = [sys.executable, "-m", "paperlings", "grade", "--no-claims"]
        subprocess.run(command, cwd=layout.HOME, check=False, stdin=subprocess.DEVNULL)
        print("\npress a key to go back")
        terminal.read(sys.stdin.fileno())
        self.shown = []

    def _press_in_list(self, key: str) -> bool:
        assert self.listing is not None
        if key in ("q", "quit") and not self.listing.searching:
            return False
        done = self.listing.press(key)
        if done:
            self.listing = None
            if done != self.key and done in self.papers:
                self.open(done)
                self.look()
        return True

    # ---- the screen

    def show(self) -> None:
        """Put what is known on the screen, or print it where there is none."""
        if not self.interactive:
            lines = [*self._judged(), *self.message]
            if lines and lines != self.shown and not (self.asked and self.asked[1] == EDITED):
                print("\n".join([*lines, ""]), flush=True)
                self.shown = lines
            return
        lines = self.listing.lines() if self.listing else [*self._judged(), *self._below()]
        if lines != self.shown:
            self._clear()
            print("\n".join(lines), end="", flush=True)
            self.shown = lines

    def _judged(self) -> list[str]:
        """The verdict in the words that everybody uses, and how long it took."""
        if not self.findings:
            return [f"{self.key}: judging ..."] if self.asked and self.interactive else []
        return verdicts.screen(self.verdict())

    def _below(self) -> list[str]:
        """Under the verdict: what goes on, what there is to say, and the keys."""
        state = f"judged in {self.seconds:.2f} s"
        if self.asked:
            state = f"running {self.asked[1]} ..."
        elif self.text is None:
            state = "waiting"
        said = ["", *self.message] if self.message else []
        return [*said, "", f"  {state}", listing.bar(self.papers, self.verdict()), f"  {MENU}"]

    def _clear(self) -> None:
        print("\x1b[H\x1b[2J\x1b[3J", end="")


def _hash(text: str) -> str:
    return progress.hash_of(text.encode("utf-8", errors="surrogateescape"))


@contextmanager
def _saves(folder: Path, pipe: connection.Connection) -> Iterator[None]:
    """Send something through the pipe whenever a file in the folder changes, as the block runs."""
    from watchfiles import watch

    stop = threading.Event()
    ready = threading.Event()

    def listen() -> None:
        # editors save by renaming, so it is the folder that is watched
        watched = watch(
            folder,
            watch_filter=None,
            debounce=50,
            step=5,
            stop_event=stop,
            recursive=False,
            rust_timeout=100,
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        for changes in watched:
            ready.set()
            if changes:
                pipe.send(None)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    ready.wait(2.0)
    try:
        yield
    finally:
        stop.set()
        thread.join(2.0)
