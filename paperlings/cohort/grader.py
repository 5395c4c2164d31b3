"""The process that grades units: torch is imported, the tests are collected, and the process from
which candidates come is started, once; then every unit is a fork.

It reads units from its standard input, a line each, and writes their results to its standard
output; when the input ends, so do it and all it has started.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paperlings import catalogue, diagnosis, expected, files, grade, lanes, layout, runner
from paperlings.cohort import units
from paperlings.cohort.units import GRADED, INFRA_ERROR, Unit
from paperlings.verdict import PASSED

SECONDS = 600.0  # that the tests of one unit may take together
CLAIM_SECONDS = 1200.0  # where its claim is run as well
KILLED = "ended by SIGKILL"  # what is said of a candidate which that has ended
AGAIN = 2  # times that it is tried again: perhaps somebody else did it, or memory ran out
FOLDER = "paperlings-cohort-"  # what a grader's temporary folder is called, and then its process


# ---- who asks


class Ended(Exception):
    """The grader's process has ended; the units it had are not graded."""


class Grader:
    """A grader's process, and what goes to and fro. workers: units it grades at a time."""

    def __init__(self, papers: list[str], workers: int):
        self.words = tempfile.TemporaryFile()  # noqa: SIM115, close() closes it
        self.process = subprocess.Popen(
            [sys.executable, "-m", "paperlings.cohort.grader", str(workers), *papers],
            cwd=layout.HOME,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.words,
            start_new_session=True,  # an interrupt is for the one who asks
        )
        self.receive()  # that it is ready

    def send(self, unit: Unit, text: str) -> None:
        """Hand over a unit and the text of its file. Raises Ended."""
        assert self.process.stdin is not None
        try:
            line = json.dumps({"unit": units.plain(unit), "text": text}).encode() + b"\n"
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except OSError:
            raise Ended(self._last_words()) from None

    def receive(self) -> dict[str, Any]:
        """Wait for the next result. Raises Ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise Ended(self._last_words())
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it, and all it has started."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.words.close()

    def _last_words(self) -> str:
        code = self.process.wait()
        self.words.seek(0)
        said = self.words.read().decode("utf-8", "replace").strip().splitlines()[-3:]
        return "\n".join([f"the grader's process failed: {runner.how_it_ended(code)}", *said])


# ---- who grades


def main(workers: int, papers: list[str]) -> None:
    """Grade what arrives at standard input, so many units at a time."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what else is printed does not go among the results
    _sweep()
    runner.warm()
    runner.prepare(papers)
    for paper in papers:
        diagnosis.mistakes(paper)
        expected.of(paper)
    options = ["-s", "--sealed", "--impl", str(layout.SOLUTIONS)]
    runner.collect(papers, options, lambda session: _Serving(session, workers, results).run())


def _sweep() -> None:
    """Remove what graders that were killed have left on the disk."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        number = folder.name.removeprefix(FOLDER).partition("-")[0]
        if not Path(f"/proc/{number}").exists():
            shutil.rmtree(folder, ignore_errors=True)


class _Serving:
    """Units that arrive, are graded, and go."""

    def __init__(self, session: Any, workers: int, results: Any):
        from paperlings.sealed import nursery

        self.workers = runner.Workers(workers, session)
        self.results = results
        self.nursery = nursery
        self.papers = catalogue.load()
        self.graded: dict[int, tuple[Unit, int]] = {}  # by its run, and how often it was killed
        self.lines = b""
        self.level = ""
        gc.collect()
        gc.freeze()

    def run(self) -> None:
        """Serve until the input ends."""
        os.set_blocking(0, False)
        self._write({"ready": True})
        folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
        folder.chmod(0o711)  # who reads machine code is another user, with a folder inside
        tempfile.tempdir = str(folder)
        try:
            while True:
                for unit, text in self._arrived():
                    self._begin(unit, text, folder)
                for run in self.workers.advance(0):
                    self._end(run)
        except EOFError:
            pass
        finally:
            self.workers.close()
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    def _arrived(self) -> Iterator[tuple[Unit, str]]:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(0, 1 << 16):
                self.lines += data
            raise EOFError
        *whole, self.lines = self.lines.split(b"\n")
        for line in whole:
            message = json.loads(line)
            yield units.from_plain(message["unit"]), message["text"]

    def _begin(self, unit: Unit, text: str, folder: Path) -> None:
        if unit.hashes | units.house(unit.paper) != unit.hashes:
            self._answer(unit, INFRA_ERROR, "who grades has another version of the kit")
            return
        if layout.is_kernel(unit.paper) and (why := lanes.why_not_compiled()):
            self._answer(unit, INFRA_ERROR, f"kernels cannot be judged here: {why}")
            return
        try:
            self.level = self.nursery.shared().level
        except Exception as error:
            self._answer(unit, INFRA_ERROR, f"{type(error).__name__}: {error}")
            return
        root = folder / unit.key
        root.mkdir(mode=0o700, exist_ok=True)
        files.write(layout.source(root, unit.paper), text)
        job = runner.Job(
            unit.paper,
            root,
            folder / f"{unit.key}.reports",
            unit.claims,
            sealed=True,
            seed=unit.seed,
            seconds=CLAIM_SECONDS if unit.claims else SECONDS,
        )
        self.graded[id(self.workers.add(job))] = unit, 0

    def _end(self, run: runner.Run) -> None:
        unit, killed = self.graded.pop(id(run))
        root = run.job.root
        if killed < AGAIN and any(KILLED in finding.what for finding in run.findings):
            self.graded[id(self.workers.add(run.job))] = unit, killed + 1
            return
        row = json.dumps(grade.row(run, self.papers[unit.paper], run.job.reports))
        # where it lay for a moment is nobody's business, nor the same the next time
        row = row.replace(f" --impl {root}", "").replace(f"{root}/", "")
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(run.job.reports, ignore_errors=True)
        if run.trouble:
            self._answer(unit, INFRA_ERROR, run.trouble)
            return
        points = run.verdict().count(PASSED)
        self._answer(
            unit,
            GRADED,
            points=points,
            sandbox=self.level,
            seconds=round(run.seconds, 3),
            verdict=json.loads(row),
        )

    def _answer(self, unit: Unit, outcome: str, reason: str = "", **more: Any) -> None:
        self._write(units.result(unit, outcome, reason, machine=grade.machine(), **more))

    def _write(self, answer: dict[str, Any]) -> None:
        self.results.write(json.dumps(answer).encode() + b"\n")
        self.results.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
