"""Cohorts of the small paper: submissions whose verdicts are known beforehand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PAPER = "demo/softmax"


@dataclass
class Cohort:
    """A folder of submissions to one house, and the folder of its results."""

    house: Any
    submissions: Path
    out: Path

    def hand_in(self, name: str, text: str) -> Path:
        path = self.submissions / name / f"{PAPER}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def command(self, *more: str) -> list[str]:
        return ["paperlings", "cohort", str(self.submissions), "--out", str(self.out), *more]

    def run(self, *more: str) -> str:
        """Grade, and return all that was said."""
        done = self.house.run(*self.command(*more))
        assert "Traceback" not in done.stderr, done.stderr
        return " ".join((done.stdout + done.stderr).split())

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Grade, without waiting for the end."""
        environment = {**os.environ, "PYTHONPATH": str(self.house.home), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", *self.command(*more)],
            cwd=self.house.home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def results(self) -> dict[str, dict[str, Any]]:
        """Every result by its submission; each file is whole, and there is one a submission."""
        found = [json.loads(p.read_text()) for p in sorted((self.out / "units").glob("*.json"))]
        by_name = {result["submission"]: result for result in found}
        assert len(by_name) == len(found), "a unit has two results"
        return by_name

    def tasks(self) -> dict[str, dict[str, str]]:
        """The verdict of every task of every graded submission."""
        return {
            name: {task["name"]: task["status"] for task in result["verdict"]["tasks"]}
            for name, result in self.results().items()
            if result["verdict"]
        }

    def processes(self) -> list[int]:
        """Those that were started for this house: they have its path among their arguments, their
        environment or as their folder.
        """
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            if int(folder.name) != os.getpid() and self._belongs(folder):
                found.append(int(folder.name))
        return found

    def _belongs(self, folder: Path) -> bool:
        mark = str(self.house.home).encode()
        try:
            if (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
            place = os.readlink(folder / "cwd").encode()
            return mark in (folder / "cmdline").read_bytes() or place.startswith(mark)
        except OSError:
            return False

    def wait_until_gone(self, seconds: float = 20) -> list[int]:
        """The processes that are left after so long at most."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def kill(self, what: str) -> int:
        """Kill one process whose command line has `what` in it; its number, or 0."""
        for number in self.processes():
            try:
                if what.encode() in Path(f"/proc/{number}/cmdline").read_bytes():
                    os.kill(number, signal.SIGKILL)
                    return number
            except OSError:
                continue
        return 0

    @staticmethod
    def candidates(root: int) -> list[int]:
        """Those among what a process has started: three forks of the clean process deep."""
        found, waiting = [], [(root, 0)]
        while waiting:
            process, depth = waiting.pop()
            try:
                text = Path(f"/proc/{process}/cmdline").read_bytes()
                children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
            except OSError:
                continue
            depth += b"paperlings.sealed.zygote" in text and b"bwrap" not in text.split(b"\0")[0]
            found += [process] if depth == 3 else []
            waiting += [(int(child), depth) for child in children]
        return found


@pytest.fixture
def cohort(house: Any, tmp_path: Path) -> Cohort:
    """An empty cohort of the small paper."""
    (tmp_path / "submissions").mkdir()
    return Cohort(house, tmp_path / "submissions", tmp_path / "graded")


@pytest.fixture
def mistakes(shared: Any) -> dict[str, str]:
    """Every known mistake of the small paper, as a submission: what it says, and its text."""
    text = shared.solution()
    known = tomllib.loads(shared.file("solutions").with_suffix(".toml").read_text())["mistakes"]
    return {edit["says"]: text.replace(edit["in"], edit["as"]) for edit in known}
