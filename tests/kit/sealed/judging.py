"""Judging many jobs in a process of its own: they come in as JSON, the arguments of runner.Job, and
what is found goes out so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from paperlings import runner


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
