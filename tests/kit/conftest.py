"""A house of its own for the kit's tests: the tools as they are,
and one small paper on which everything is tried.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).resolve().parents[2]
SMALL = Path(__file__).parent / "house"
PAPER = "demo/softmax"

collect_ignore = ["house"]


@dataclass
class House:
    """A copy of the kit in a folder, in which nothing is shared with this one."""

    home: Path

    def file(self, root: str, key: str = PAPER) -> Path:
        return self.home / root / f"{key}.py"

    def solution(self) -> str:
        return (SMALL / "solutions" / f"{PAPER}.py").read_text(encoding="utf-8")

    def add(self, name: str) -> str:
        """The small paper again under another name."""
        key = f"demo/{name}"
        for old in SMALL.rglob("*softmax*"):
            new = self.home / old.relative_to(SMALL).with_name(old.name.replace("softmax", name))
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(old, new)
        self.announce(name)
        return key

    def announce(self, name: str) -> None:
        """A paper of the catalogue, without any file."""
        table = f'[demo.{name}]\ntitle = "{name}"\nauthors = "A"\nyear = 2000\nurl = "none"\n'
        table += 'phase = 1\ndifficulty = 1\nhours = 1\nlists = ["demo"]\nneeds = []\n\n'
        with open(self.home / "papers.toml", "a", encoding="utf-8") as file:
            file.write(table)

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """`python -m <arguments>` in this house."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
        environment |= {"PYTHONPATH": str(self.home), "COLUMNS": "80", "NO_COLOR": "1"}
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=cwd or self.home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def says(self, *arguments: str) -> tuple[int, str]:
        """The exit status of `paperlings <arguments>`, and all it says, on one line."""
        done = self.run("paperlings", *arguments)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def grade(self, *arguments: str) -> dict[str, Any]:
        """What `paperlings grade --json` says."""
        done = self.run("paperlings", "grade", "--json", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return {f"{row['track']}/{row['name']}": row for row in json.loads(done.stdout)["papers"]}


def _build(home: Path, *names: str) -> House:
    """A house with the small paper under each of the names, and its stubs."""
    home.mkdir(parents=True, exist_ok=True)
    for name in ("paperlings", "pyproject.toml", "noxfile.py", "constraints.txt"):
        source = HOME / name
        if source.is_dir():
            shutil.copytree(source, home / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, home / name)
    for root in ("exercises", "solutions", "reference", "kernels"):
        (home / root).mkdir()
        shutil.copy(HOME / root / "__init__.py", home / root)
    house = House(home)
    for name in names:
        house.add(name)
    done = house.run("paperlings", "stubs")
    assert done.returncode == 0, done.stderr
    return house


def _said(home: Path, program: Path, *arguments: str, seconds: float, text: str = "") -> Any:
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"},
        input=text,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def said() -> Callable[..., Any]:
    """`said(home, program, *arguments, seconds=...)`: what a program of the tests prints last, as
    JSON, after so long at most; it runs in a process of its own, in the house `home`.
    """
    return _said


@pytest.fixture(scope="session")
def build() -> Callable[..., House]:
    """`build(folder, *names)` makes a house."""
    return _build


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A fresh house with one paper, demo/softmax, untouched."""
    return _build(tmp_path / "house", "softmax")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> House:
    """One house for tests that only read."""
    return _build(tmp_path_factory.mktemp("shared") / "house", "softmax")
