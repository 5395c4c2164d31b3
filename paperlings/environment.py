"""The Python that runs the kit: the active one if it has torch,
else one shared .venv that the first command makes.

Standard library only, and `packaging`, which nox brings: nox imports this before anything is
installed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

HOME = Path(__file__).resolve().parents[1]
PYPROJECT = HOME / "pyproject.toml"
CONSTRAINTS = HOME / "constraints.txt"
# in the environment's folder, written last: without it the set-up did not end
STAMP = "paperlings.json"


class SetupError(RuntimeError):
    """The environment could not be made; the message says what to do."""


def python(*groups: str, folder: str = ".venv") -> str:
    """An interpreter with what a learner needs, and the dependency groups or extras named;
    made or mended first.

    Only the default folder may be replaced by the active environment. Raises SetupError.
    """
    wanted = requirements(*groups)
    if folder == ".venv" and installed("torch"):
        missing = [text for text in wanted if not satisfied(text)]
        if missing:
            _say(f"Installing {', '.join(missing)} into the active environment; its torch stays.")
            torch = importlib.metadata.version("torch")
            _pip(sys.executable, [*missing, f"torch=={torch}"])
        return sys.executable
    home = HOME / folder
    executable = str(home / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    stamp = _read(home / STAMP)
    if stamp.get("base") != _fingerprint() or not Path(executable).exists():
        _make(home, executable)
        stamp = {"base": _fingerprint(), "groups": []}
        (home / STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    new = [group for group in groups if group not in stamp["groups"]]
    if new:
        _say(f"Adding {', '.join(new)} to {folder}.")
        _pip(executable, ["-c", str(CONSTRAINTS), *requirements(*new)])
        stamp["groups"] += new
        (home / STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    return executable


def requirements(*groups: str) -> list[str]:
    """What pyproject.toml asks for: the learner's dependencies, and those of the groups; an extra
    is a group too.
    """
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    extras = project["project"].get("optional-dependencies", {})
    known = extras | project.get("dependency-groups", {})
    return [
        *project["project"]["dependencies"],
        *(requirement for group in groups for requirement in known[group]),
    ]


def installed(name: str) -> bool:
    """Whether the active environment has the package."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def satisfied(text: str) -> bool:
    """Whether the active environment meets a requirement such as "numpy>=2.0"."""
    requirement = Requirement(text)
    if requirement.marker and not requirement.marker.evaluate():
        return True
    return installed(requirement.name) and requirement.specifier.contains(
        importlib.metadata.version(requirement.name), prereleases=True
    )


def _make(home: Path, executable: str) -> None:
    _say(
        f"Setting up {home.name} with torch and its friends. This happens once.\n"
        "To download: about 300 MB where pip finds torch's CPU wheel (as on macOS and Windows),\n"
        "several GB where it finds only the CUDA build. Ctrl-C stops; the next run starts over."
    )
    if home.exists():
        shutil.rmtree(home)
    venv.create(home, with_pip=True)
    _pip(executable, ["-c", str(CONSTRAINTS), *requirements()])
    activate = (
        f"{home.name}\\Scripts\\activate" if os.name == "nt" else f"source {home.name}/bin/activate"
    )
    _say(f"{home.name} is ready. To run pytest in it yourself: {activate}")


def _pip(executable: str, arguments: list[str]) -> None:
    command = [
        executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *arguments,
    ]
    if subprocess.run(command, check=False).returncode:
        raise SetupError(
            "pip could not install what the kit needs (its words are above).\n"
            "Is the network there, and Python between 3.11 and 3.13? The same command tries again."
        )


def _fingerprint() -> str:
    """Changes when the environment must be made anew."""
    parts = [sys.version.split()[0], *requirements(), CONSTRAINTS.read_text(encoding="utf-8")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
