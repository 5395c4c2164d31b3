"""What this machine can verify, and why not the rest: one line a probe, and how to mend it.

Everything is imported where it is used, so that one broken part is one broken line. What may take
the process with it, torch and the plugins of pytest, is tried in processes of their own meanwhile.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from paperlings import layout

OK, UNVERIFIED, BROKEN = "ok", "unverified", "broken"
PATIENCE = 120  # seconds for a process that tries something out
ROOM, LITTLE = 2.0, 0.1  # GB: for a new environment, for reports
OURS = ("paperlings", "exercises", "solutions", "reference", "kernels")

WARM = """
import json, os
from paperlings import lanes, runner
runner.warm()
import torch
tasks = "/proc/self/task"
print(json.dumps({
    "torch": torch.__version__,
    "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    "gate": lanes.why_not_gate(),
    "forks": runner.forks(),
    "threads": len(os.listdir(tasks)) if os.path.isdir(tasks) else 0,
}))
"""
SEALED = "from paperlings.sealed import nursery; print(nursery.Nursery().level)"
TRIALS = {
    "torch": ("-c", WARM),
    "pytest": ("-m", "pytest", "--markers"),
    "sandbox": ("-c", SEALED),
}


@dataclass(frozen=True)
class Finding:
    """What a probe found. mend: what to do about it."""

    status: str
    says: str
    mend: str = ""


def doctor() -> int:
    """Print what every probe finds; returns the exit status, 1 where something is broken."""
    for name in TRIALS:
        _begun(name)
    statuses = []
    for name, probe in PROBES.items():
        try:
            found = probe()
        except Exception as error:  # whatever it is, the other probes go on
            found = Finding(BROKEN, f"cannot be told: {type(error).__name__}: {error}")
        statuses.append(found.status)
        print("\n".join(_lines(name, found)), flush=True)
    broken, unverified = statuses.count(BROKEN), statuses.count(UNVERIFIED)
    if broken:
        print(f"\n{broken} of {len(statuses)} broken, {unverified} unverified")
    else:
        rest = f"; {unverified} cannot be verified on this machine" if unverified else ""
        print(f"\nnothing is broken{rest}")
    return 1 if broken else 0


def _lines(name: str, found: Finding) -> list[str]:
    lead = f"{found.status:<12}{name:<13}"
    space = " " * len(lead)
    lines = textwrap.wrap(
        found.says, 80, initial_indent=lead, subsequent_indent=space, break_on_hyphens=False
    )
    return [*lines, f"{space}mend: {found.mend}"] if found.mend else lines


# ---- the environment


def _python() -> Finding:
    from packaging.specifiers import SpecifierSet

    project = tomllib.loads((layout.HOME / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = project["project"]["requires-python"]
    version = ".".join(map(str, sys.version_info[:3]))
    if version not in SpecifierSet(wanted):
        return Finding(BROKEN, f"{version}, and the kit wants {wanted}", _remade())
    return Finding(OK, f"{version} in {layout.shown(Path(sys.prefix))}")


def _packages() -> Finding:
    from paperlings import environment

    wanted = environment.requirements()
    missing = [text for text in wanted if not environment.satisfied(text)]
    if missing:
        mend = f"{sys.executable} -m pip install {' '.join(map(repr, missing))}"
        return Finding(BROKEN, f"missing or too old: {', '.join(missing)}", mend)
    return Finding(OK, f"all {len(wanted)} that pyproject.toml asks for")


def _remade() -> str:
    """How to begin again with the environment."""
    if Path(sys.prefix) == layout.HOME / ".venv":
        return "delete .venv; the next nox command makes it anew"
    return "deactivate it; the next nox command makes .venv"


def _torch() -> Finding:
    status, said, trouble = _tried("torch")
    if status:
        return Finding(BROKEN, f"cannot be imported: {trouble}", _remade())
    return Finding(OK, json.loads(said)["torch"])


def _pytest() -> Finding:
    status, _, trouble = _tried("pytest")
    if status:
        says = f"does not start, perhaps for a plugin of another package: {trouble}"
        return Finding(BROKEN, says, "uninstall it; `nox -s grade` does without")
    if options := os.environ.get("PYTEST_ADDOPTS"):
        return Finding(UNVERIFIED, f"PYTEST_ADDOPTS={options} is set", "unset PYTEST_ADDOPTS")
    return Finding(OK, "starts with all its plugins")


# ---- the machine


def _interpreter() -> Finding:
    from paperlings import lanes

    if reason := lanes.why_not_interpreter():
        return Finding(UNVERIFIED, f"{reason}; kernels are not run here")
    return Finding(OK, "kernels are run and metered on the CPU")


def _compiled() -> Finding:
    from paperlings import lanes

    if reason := lanes.why_not_compiled():
        return Finding(UNVERIFIED, f"{reason}; kernels are not compiled here")
    return Finding(OK, "kernels are compiled for GPUs that need not be here")


def _gate() -> Finding:
    status, said, _ = _tried("torch")
    reason = "torch cannot be imported" if status else json.loads(said)["gate"]
    if reason:
        return Finding(UNVERIFIED, f"{reason}; kernels are not timed here")
    return Finding(OK, f"kernels are timed on {json.loads(said)['gpu']}")


def _cores() -> Finding:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding(OK, f"{count}; so many papers are graded side by side")


def _forks() -> Finding:
    status, said, _ = _tried("torch")
    found = {} if status else json.loads(said)
    if found.get("threads", 0) > 1:
        says = f"torch starts {found['threads']} threads as it is imported; a fork may hang"
        return Finding(UNVERIFIED, says)
    if not found.get("forks"):
        return Finding(UNVERIFIED, "no safe fork here; every paper starts cold, in seconds")
    return Finding(OK, "papers are judged in forks of one warm process")


def _sandbox() -> Finding:
    if sys.platform != "linux":
        return Finding(UNVERIFIED, "none on this system; `grade --sealed` works on Linux only")
    from paperlings.sealed import sandbox

    status, said, trouble = _tried("sandbox")
    level = sandbox.NONE if status else said.strip()
    if level == sandbox.NONE:
        why = f" ({trouble})" if status else ""
        return Finding(UNVERIFIED, f"none holds here{why}; other people's code would run unlocked")
    return Finding(OK, f"other people's code is locked in by {sandbox.WORDS[level]}")


def _disk() -> Finding:
    free = shutil.disk_usage(layout.HOME).free / 1e9
    if free < LITTLE:
        return Finding(BROKEN, f"{free:.2f} GB free; reports cannot be written", "make room")
    if free < ROOM:
        return Finding(UNVERIFIED, f"{free:.1f} GB free; a new environment takes {ROOM:g}")
    return Finding(OK, f"{free:.0f} GB free")


# ---- the folder


def _reports() -> Finding:
    folder = layout.REPORTS
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        name = layout.shown(folder)
        return Finding(BROKEN, f"{name} cannot be written: {error.strerror}", f"chmod u+w {name}")
    return Finding(OK, "can be written")


def _progress() -> Finding:
    from paperlings import progress

    try:
        text = progress.FILE.read_bytes()
    except FileNotFoundError:
        return Finding(OK, "nothing is recorded yet")
    record = progress.Progress()
    try:
        progress.read(text, record)
    except ValueError as error:
        mend = "nox -s grade (it keeps the old file under a dated name)"
        return Finding(BROKEN, f"{progress.FILE.name} {error}", mend)
    finished = sum(done.complete for done in record.values())
    return Finding(OK, f"{len(record)} papers judged, {finished} complete")


def _exercises() -> Finding:
    from paperlings.learner import git

    keys = layout.written()
    paths = {key: layout.source(layout.EXERCISES, key) for key in keys}
    missing = [key for key, path in paths.items() if not path.exists()]
    if missing:
        return Finding(BROKEN, f"missing: {', '.join(missing)}", f"nox -s reset -- {missing[0]}")
    other = [key for key, path in paths.items() if path.read_bytes() != _stub(key)]
    try:
        listing = git.ask("diff", "--name-only", "HEAD", "--", "exercises") if other else ""
    except git.GitError as error:
        says = f"{', '.join(other)}: edited, or an old stub; git would tell ({_first(error)})"
        return Finding(UNVERIFIED, says)
    edited = [key for key in other if layout.shown(paths[key]) in listing.splitlines()]
    stale = [key for key in other if key not in edited]
    if stale:
        says = f"not edited, and not the stub of the solution: {', '.join(stale)}"
        return Finding(BROKEN, says, f"nox -s reset -- {stale[0]}")
    return Finding(OK, f"{len(keys)}, of which {len(edited)} are edited")


def _stub(key: str) -> bytes:
    from paperlings import stubs

    path = layout.source(layout.SOLUTIONS, key)
    return stubs.stub(path.read_bytes().decode("utf-8"), layout.shown(path)).encode("utf-8")


def _names() -> Finding:
    elsewhere = [p for p in sys.path if Path(p or ".").resolve() != layout.HOME]
    for path in sorted(layout.HOME.iterdir()):
        name = path.stem if path.suffix == ".py" else path.name
        here = PathFinder.find_spec(name, [str(layout.HOME)]) if name.isidentifier() else None
        twin = PathFinder.find_spec(name, elsewhere) if here else None
        if name in OURS and here and here.origin is None:
            return Finding(
                BROKEN,
                f"{name}/__init__.py is missing, so an installed package {name} would win",
                f"git checkout {name}/__init__.py",
            )
        if name not in OURS and here and here.origin and twin and twin.origin:
            says = f"{path.name} in the kit's folder hides the package {name}"
            return Finding(BROKEN, says, f"rename {path.name}")
    return Finding(OK, "no file here hides a package, and none is hidden")


def _git() -> Finding:
    from paperlings.learner import git

    try:
        inside = git.ask("rev-parse", "--show-prefix")
    except git.GitError as error:
        return Finding(UNVERIFIED, f"{_first(error)}; `nox -s update` cannot work")
    if inside:
        return Finding(UNVERIFIED, "the kit lies inside another clone; `nox -s update` cannot work")
    return Finding(OK, git.ask("--version").removeprefix("git version "))


def _first(error: Exception) -> str:
    """The first line of what git says."""
    return (str(error).splitlines() or [""])[0].removeprefix("fatal: ")


# ---- trials


@functools.cache
def _begun(name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *TRIALS[name]],
        cwd=layout.HOME,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )


@functools.cache
def _tried(name: str) -> tuple[int, str, str]:
    """How a trial ended: its exit status, what it printed, and its last complaint."""
    process = _begun(name)
    try:
        said, complaints = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return 1, "", f"it does not come to an end within {PATIENCE} s"
    lines = [line for line in complaints.splitlines() if line.strip()]
    ended = f"it ended with status {process.returncode}"
    return process.returncode, said, lines[-1].strip() if lines else ended


# those that wait for a trial come last
PROBES: dict[str, Callable[[], Finding]] = {
    "python": _python,
    "packages": _packages,
    "names": _names,
    "git": _git,
    "exercises": _exercises,
    "progress": _progress,
    "reports": _reports,
    "disk": _disk,
    "cores": _cores,
    "interpreter": _interpreter,
    "compiled": _compiled,
    "pytest": _pytest,
    "torch": _torch,
    "fork": _forks,
    "sandbox": _sandbox,
    "gate": _gate,
}
