"""Trying cheats: each is put into the place of a kernel's solution and judged by the test that it
says will reject it.

A cheat is the solution's text with its own after it, so that what it defines replaces what is
there. What it imports from the solution by another name is the one that was replaced.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from paperlings import expected, files, layout, runner, teacher
from paperlings.verdict import Finding

KEY = "kernels/token_log_probs"
CHEATS = Path(__file__).parent / "kernels"
HONEST = "honest"
SEALED = "--sealed"


@dataclass(frozen=True)
class Cheat:
    """One file of CHEATS. test: what must reject it.  says: and what must be said.
    sealed: what is said where the lock stops it before.
    """

    name: str
    test: str
    says: str
    sealed: str
    text: str

    @property
    def shows(self) -> bool:
        """Whether a test of this machine can find it out."""
        return self.test.startswith("test_")


def cheats() -> list[Cheat]:
    """All of them, by name."""
    return [_cheat(path) for path in sorted(CHEATS.glob("*.py"))]


def _cheat(path: Path) -> Cheat:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    docstring = ast.get_docstring(tree) or ""
    marks = re.search(r"\nRejected by: (.+)\nSays: ?(.*)(?:\nSealed: (.+))?\Z", docstring)
    assert marks, f"{path.name} says neither what rejects it nor how"
    lines = text.splitlines(keepends=True)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == KEY.replace("/", "."):
            names = [f"{a.asname} = {a.name}" for a in node.names if a.asname]
            lines[node.lineno - 1 : node.end_lineno] = ["\n".join(names) + "\n"]
            break
    return Cheat(path.stem, marks[1], marks[2], marks[3] or marks[2], "".join(lines))


def judge(folder: Path, sealed: bool) -> dict[str, list[Finding]]:
    """What is found of every cheat that shows, by its own test, and of the solution by all tests
    of the interpreter's lane. sealed: each in a locked process.
    """
    found: dict[str, list[Finding]] = {}

    def loop(session: pytest.Session) -> None:
        items = list(session.items)
        for cheat in [Cheat(HONEST, "", "", "", ""), *(c for c in cheats() if c.shows)]:
            root = folder / cheat.name
            files.write(layout.source(root, KEY), teacher.source(KEY) + "\n\n" + cheat.text)
            session.items = [item for item in items if _judges(item, cheat)]
            job = runner.Job(KEY, root, folder, diagnosis=runner.NONE, sealed=sealed)
            [run] = runner.run([job], session=session)
            assert not run.trouble, f"{cheat.name}: {run.trouble}"
            found[cheat.name] = run.findings

    runner.warm()
    with contextlib.redirect_stdout(io.StringIO()):
        options = ["-s", "--impl", str(layout.SOLUTIONS), *(["--sealed"] if sealed else [])]
        runner.collect([KEY], options, loop)
    return found


def _judges(item: pytest.Item, cheat: Cheat) -> bool:
    name = expected.base(KEY, item.name)
    if cheat.name == HONEST:
        return name.startswith(tuple(expected.conformance(KEY)))
    return name == cheat.test


if __name__ == "__main__":
    judged = judge(Path(sys.argv[1]), SEALED in sys.argv)
    plain = {name: [finding.plain() for finding in mine] for name, mine in judged.items()}
    print(json.dumps(plain))
