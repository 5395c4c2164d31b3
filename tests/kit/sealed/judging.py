"""Judging many jobs in a process of its own: they come in as JSON, what is found goes out so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from paperlings import runner


def judged(home: Path, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What became of each job of the house `home`. jobs: the arguments of runner.Job."""
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"},
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _judge(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    paths = ("root", "reports")
    jobs = [
        runner.Job(**{k: Path(v) if k in paths else v for k, v in job.items()}) for job in asked
    ]
    runner.warm()
    # one collection knows one kind
    runs = {
        run.job: run
        for sealed in (False, True)
        if (kind := [job for job in jobs if job.sealed == sealed])
        for run in runner.run_many(kind)
    }
    return [_plain(runs[job]) for job in jobs]


def _plain(run: runner.Run) -> dict[str, Any]:
    found = run.verdict()
    return {
        "trouble": run.trouble,
        "tasks": {task.name: task.status for task in found.tasks},
        "claim": found.claim,
        "findings": [finding.plain() for finding in run.findings],
    }


if __name__ == "__main__":
    print(json.dumps(_judge(json.load(sys.stdin))))
