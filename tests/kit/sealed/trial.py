"""Trying attacks on the sealed judge: each is a submission to the small paper, graded as any is.

An attack is a text that follows the wrong answers below, and may replace them. What it imports
from `targets` is put in front of it: places that are worth reaching, and `reached(what)`, by which
it says that it got there. Names in capitals say what lies in the place of a plain file.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paperlings.judge
from paperlings import files, layout, runner
from paperlings.sealed import nursery, sandbox

KEY = "demo/softmax"
HONEST = "honest"
SECRET = "token-8f2c41d7"
SECONDS = 3.0  # that a test may take here
WRONG = """
import torch


def softmax(x, *, temperature=1.0):
    return torch.zeros_like(x)


def entropy(p):
    return torch.zeros_like(p[..., 0])
"""


@dataclass
class Attack:
    """One file. says: what the judge must say of it, somewhere.  options: names in capitals."""

    name: str
    text: str
    says: str
    options: dict[str, Any] = field(default_factory=dict)


def attacks(folder: Path) -> list[Attack]:
    """All attacks in a folder, by name."""
    return [_attack(path) for path in sorted(folder.glob("*.py"))]


def _attack(path: Path) -> Attack:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    must, _, says = (ast.get_docstring(tree) or "").partition("\nMust: ")[2].partition("\nSays: ")
    assert must.startswith("no task passes"), f"{path.name} does not say what must happen"
    options = {}
    lines = text.splitlines(keepends=True)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "targets":
            lines[node.lineno - 1 : node.end_lineno] = ["\n"]
        if isinstance(node, ast.Assign) and len(tree.body) == 2:
            with contextlib.suppress(ValueError):
                options[ast.unparse(node.targets[0])] = _value(node.value)
    return Attack(path.stem, "".join(lines), says.strip(), options)


def _value(node: ast.expr) -> Any:
    """What a constant expression says: literals, sums and products of them, comprehensions."""
    return eval(compile(ast.Expression(node), "<attack>", "eval"), {"__builtins__": {}})


class Field:
    """Where attacks are tried: what they may try to reach, and what shows that they did."""

    def __init__(self, folder: Path):
        self.folder, self.others = folder, folder / "submissions"
        self.drop, self.canary = folder / "drop", folder / "canary"
        self.ear = f"\0paperlings-redteam-{os.getpid()}"  # as another may be tried beside it
        self.drop.mkdir()
        self.drop.chmod(0o777)
        self.canary.write_text("alive")
        self.canary.chmod(0o666)
        self.ears = [
            self._ear(socket.SOCK_STREAM, ("127.0.0.1", 0)),
            self._ear(socket.SOCK_STREAM, str(folder / "listening"), socket.AF_UNIX),
            self._ear(socket.SOCK_STREAM, self.ear, socket.AF_UNIX),
        ]
        self.port = self.ears[0].getsockname()[1]
        self.ears.append(self._ear(socket.SOCK_DGRAM, ("127.0.0.1", self.port)))

    @staticmethod
    def _ear(kind: int, address: Any, family: int = socket.AF_INET) -> socket.socket:
        ear = socket.socket(family, kind)
        ear.bind(address)
        if kind == socket.SOCK_STREAM:
            ear.listen()
        ear.setblocking(False)
        return ear

    def targets(self) -> str:
        places = {
            **{"HOUSE": str(layout.HOME), "OTHERS": str(self.others), "DROP": str(self.drop)},
            **{"CANARY": str(self.canary), "PORT": self.port, "JUDGE": os.getpid()},
            **{"SECRET": SECRET, "TMP": tempfile.gettempdir(), "EAR": self.ear},
            "OWNER": str(Path.home()),
        }
        lines = [f"{name} = {value!r}" for name, value in places.items()]
        return "\n".join(
            [*lines, "\n\ndef reached(what):\n    raise SystemError('REACHED ' + what)\n"]
        )

    def put(self, attack: Attack) -> Path:
        """Lay the submission down; the root it lies under."""
        root = self.others / attack.name
        path, options = layout.source(root, KEY), attack.options
        text = "\n\n".join([WRONG, self.targets(), attack.text])
        if "LINKED_FOLDER" in options:
            root.mkdir(parents=True)
            path.parent.symlink_to(layout.HOME / options["LINKED_FOLDER"])
            return root
        path.parent.mkdir(parents=True)
        if "LINK" in options:
            path.symlink_to(layout.HOME / options["LINK"])
        elif "HARD_LINK" in options:
            copy = self.folder / "linked.py"
            copy.write_bytes((layout.HOME / options["HARD_LINK"]).read_bytes())
            os.link(copy, path)
        elif "PIPE" in options:
            os.mkfifo(path)
        elif "PADDING" in options:
            path.write_text(text + "\n#" + "x" * options["PADDING"])
        elif "TEXT" in options:
            path.write_bytes(options["TEXT"].encode("utf-8", "surrogateescape"))
        else:
            path.write_text(text)
        for name, content in options.get("FILES", {}).items():
            files.write(root / name, content)
        return root

    def touched(self, zygote: int, said: str) -> list[str]:
        """What an attack has reached, in words, now that it is judged."""
        found = [f"wrote {path.name}" for path in self.drop.iterdir()]
        if not self.canary.exists() or self.canary.read_text() != "alive":
            found.append("changed the canary")
        beside = {path.name for path in self.folder.iterdir()}
        found += sorted(beside - {"canary", "drop", "submissions", "listening", "linked.py"})
        for ear in self.ears:
            with contextlib.suppress(BlockingIOError):
                if ear.type == socket.SOCK_STREAM:
                    ear.accept()
                else:
                    ear.recv(64)
                found.append("reached the network")
        for place in ("/tmp", "/dev/shm", "/var/tmp", str(layout.HOME)):
            found += [str(path) for path in Path(place).glob("paperlings-fill*")]
        if "REACHED " in said or SECRET in said:
            found.append(said[said.find("REACHED") :][:100])
        if "\x1b" in said or "\r" in said:
            found.append("an escape sequence in the words of the judge")
        return found + _left(zygote)


def _left(zygote: int) -> list[str]:
    """Processes that are left of candidates, a moment after the last was judged."""
    for _ in range(200):
        children = Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
        if not children:
            return []
        time.sleep(0.02)
    return [f"left {len(children)} processes"]


def judge(folder: Path, chosen: list[Attack]) -> dict[str, dict[str, Any]]:
    """What became of the honest solution and of every attack: tasks, findings, what was touched."""
    field_ = Field(folder)
    os.environ["GRADER_TOKEN"] = SECRET
    kindergarten = nursery.shared()
    assert kindergarten.level != sandbox.NONE, "attacks are tried in a sandbox only"
    zygote = innermost(kindergarten.process.pid)
    paperlings.judge.SECONDS = SECONDS
    found: dict[str, dict[str, Any]] = {"level": {"level": kindergarten.level}}
    honest = (layout.HOME / "solutions" / f"{KEY}.py").read_text()
    files.write(layout.source(field_.others / HONEST, KEY), honest)

    def loop(session: Any) -> None:
        for attack in [Attack(HONEST, "", ""), *chosen]:
            root = field_.others / HONEST if attack.name == HONEST else field_.put(attack)
            job = runner.Job(KEY, root, folder / "reports", diagnosis=runner.NONE, sealed=True)
            [run] = runner.run([job], session=session)
            findings = [finding.plain() for finding in run.findings]
            verdict = run.verdict()
            found[attack.name] = {
                "trouble": run.trouble,
                "tasks": {task.name: task.status for task in verdict.tasks},
                "claim": verdict.claim,
                "seconds": round(run.seconds, 2),
                "findings": findings,
                "touched": field_.touched(zygote, json.dumps(findings, ensure_ascii=False)),
            }

    runner.warm()
    with contextlib.redirect_stdout(io.StringIO()):
        options = ["-s", "--sealed", "--impl", str(layout.SOLUTIONS)]
        runner.collect([KEY], options, loop)
    return found


def innermost(pid: int) -> int:
    """The process that bubblewrap runs, or this one where there is no container."""
    while re.match(rb"\S*bwrap\0", Path(f"/proc/{pid}/cmdline").read_bytes()):
        pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return pid


if __name__ == "__main__":
    place, where, *names = sys.argv[1:]
    asked = [a for a in attacks(Path(place)) if not names or a.name in names]
    print(json.dumps(judge(Path(where), asked)))
