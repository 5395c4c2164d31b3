"""Results of units as the grader would write them, made without grading anything."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema

from paperlings import expected, stubs, verdict
from paperlings.verdict import FAILED, PASSED, TODO, UNVERIFIED

PAPERLINGS = Path(verdict.__file__).parent
SCHEMA = json.loads((PAPERLINGS / "cohort" / "unit.schema.json").read_text())
ROW = json.loads((PAPERLINGS / "grade.schema.json").read_text())
DPO, LORA, KERNEL = "alignment/dpo", "compression/lora", "kernels/newton_schulz"


def unit(
    submission: str = "ada",
    paper: str = DPO,
    *,
    failing: Iterable[str] = (),
    todo: Iterable[str] = (),
    unverified: Iterable[str] = (),
    outcome: str = "graded",
    reason: str = "",
    sandbox: str = "bubblewrap",
    **said: Any,
) -> dict[str, Any]:
    """A result. failing, unverified: tests.  todo: tasks.  said: what each failing test says."""
    known = set(failing), set(todo), set(unverified)
    row = _row(paper, *known, said) if outcome == "graded" else None
    passed = sum(task["status"] == PASSED for task in row["tasks"]) if row else 0
    return {
        "schema": 1,
        "key": "0123456789abcdef",
        "submission": submission,
        "paper": paper,
        "outcome": outcome,
        "reason": reason,
        "points": None if outcome == "infra_error" else passed,
        "max_points": len(stubs.groups(paper)),
        "claims": True,
        "sandbox": sandbox if row else "",
        "seed": "5eed",
        "attempts": 1,
        "date": "2026-11-20T17:00:00+00:00",
        "seconds": 1.5,
        "hashes": {"kit": "c0ffee" * 8},
        "machine": {"system": "Linux", "python": "3.11.7", "torch": "2.13.0", "gpu": None},
        "verdict": row,
    }


def is_valid(result: dict[str, Any]) -> None:
    """Raises where a result is not as the schemas say."""
    jsonschema.validate(result, SCHEMA)
    if result["verdict"]:
        jsonschema.validate(result["verdict"], ROW["$defs"]["paper"] | {"$defs": ROW["$defs"]})


def _row(
    paper: str, failing: set[str], todo: set[str], unverified: set[str], said: dict[str, Any]
) -> dict[str, Any]:
    findings = []
    for test in expected.of(paper).values():
        waits = next((task for task in test.tasks if task in todo), "")
        status = FAILED if test.name in failing else TODO if waits else PASSED
        words = {"what": "0.5 is not 0.25", "question": "Which axis?", **said}
        more = words if status == FAILED else {"todo_of": waits} if waits else {}
        if test.name in unverified:
            status, more = UNVERIFIED, {"what": "no NVIDIA GPU"}
        findings.append(verdict.Finding(paper, test.name, status, 0.01, **more))
    found = verdict.of_paper(paper, findings)
    return {
        "track": paper.split("/")[0],
        "name": paper.split("/")[1],
        "title": f"The paper {paper}",
        "identifier": "arXiv:0000.00000",
        "trouble": "",
        "tasks": [vars(task) for task in found.tasks],
        "claim": found.claim,
        "lanes": {lane: finding.status for lane, finding in found.lanes.items()},
        "claim_law": "",
        "figure": None,
        "seconds": 1.5,
        "next": "pytest /somewhere/of/the/grader",
        "tests": [finding.plain() for finding in findings],
    }
