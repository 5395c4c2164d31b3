"""The list of papers on the watcher's screen, and the line that says how far the learner is."""

from __future__ import annotations

import shutil

from paperlings import progress, stubs
from paperlings.verdict import PASSED, PaperVerdict

MENU = "arrows or j k: move   / search   enter or c: continue here   l: back   q: quit"
BAR = 30  # characters


class Listing:
    """The papers, one of them chosen, of which a search shows only some."""

    def __init__(self, papers: list[str], current: str):
        self.papers = papers
        self.current = current
        self.chosen = current
        self.search = ""
        self.searching = False
        self.done = progress.load()

    @property
    def found(self) -> list[str]:
        """The papers that the search leaves."""
        return [key for key in self.papers if self.search.lower() in key.lower()]

    def press(self, key: str) -> str:
        """Do what a key asks for; returns the paper to go on with, or ""."""
        if self.searching and self._type(key):
            return ""
        found = self.found
        if key in ("l", "escape"):
            return self.current
        if key in ("enter", "c") and found:
            return self.chosen
        if key == "/":
            self.searching, self.search = True, ""
        elif key in ("down", "j", "up", "k") and found:
            step = 1 if key in ("down", "j") else -1
            at = found.index(self.chosen) if self.chosen in found else 0
            self.chosen = found[max(0, min(len(found) - 1, at + step))]
        return ""

    def _type(self, key: str) -> bool:
        """Take a key as part of the search; False where it is for the list."""
        if key == "backspace":
            self.search = self.search[:-1]
        elif key == "escape":
            self.searching, self.search = False, ""
        elif key == "enter":
            self.searching = False
        elif len(key) == 1:
            self.search += key
        else:
            return False
        if self.found and self.chosen not in self.found:
            self.chosen = self.found[0]
        return True

    def lines(self) -> list[str]:
        """What the screen shows: the papers around the chosen one."""
        room = max(shutil.get_terminal_size().lines - 6, 3)
        found = self.found
        at = found.index(self.chosen) if self.chosen in found else 0
        first = max(0, min(at - room // 2, len(found) - room))
        rows = [self._row(key) for key in found[first : first + room]]
        search = f"/{self.search}" if self.searching or self.search else ""
        head = f"{len(found)} of {len(self.papers)} papers {search}".rstrip()
        return [head, "", *(rows or ["  none is called so"]), "", f"  {MENU}"]

    def _row(self, key: str) -> str:
        mark = ">" if key == self.chosen else " "
        tasks = stubs.groups(key)
        verdicts = self.done[key].tasks if key in self.done else {}
        passed = sum(verdicts.get(task) == PASSED for task in tasks)
        state = "done" if self.done.is_finished(key) else f"{passed} of {len(tasks)}"
        if verdicts and not self.done.is_current(key):
            state += ", edited since"
        here = "  (here)" if key == self.current else ""
        return f"{mark} {key:<44}{state}{here}"


def bar(papers: list[str], current: PaperVerdict) -> str:
    """How many tasks of the whole kit pass, as far as is known; the current paper as it is now."""
    done = progress.load()
    passed = total = 0
    for key in papers:
        tasks = {task.name: task.status for task in current.tasks}
        known = done[key].tasks if done.is_current(key) else {}
        verdicts = tasks if key == current.key else known
        total += len(stubs.groups(key))
        passed += sum(status == PASSED for status in verdicts.values())
    full = round(BAR * passed / max(total, 1))
    finished = sum(done.is_finished(key) for key in papers)
    filled = "#" * full + "-" * (BAR - full)
    return f"  [{filled}] {passed} of {total} tasks, {finished} of {len(papers)} papers"
