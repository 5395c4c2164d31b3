"""Where everything lies: one paper, `track/name`, has the same relative path in every root.

A kernel, `kernels/name`, lies as a paper of a track called kernels would,
but for its solution, which lies in kernels/ itself.
"""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
EXERCISES = HOME / "exercises"
SOLUTIONS = HOME / "solutions"
REFERENCE = HOME / "reference"
TESTS = HOME / "tests" / "papers"
REPORTS = HOME / "reports"
KERNELS = "kernels"  # the track of all kernels, and the root of their solutions
CATALOGUE = HOME / "papers.toml"


def is_kernel(key: str) -> bool:
    """Whether the key is that of a kernel."""
    return key.startswith(f"{KERNELS}/")


def called(key: str) -> str:
    """A paper's own name; a kernel may be called as its paper is, so it keeps its track."""
    return key if is_kernel(key) else key.split("/")[1]


def source(root: Path, key: str) -> Path:
    """The module of the paper `key` ("track/name") under a root such as EXERCISES."""
    if root == SOLUTIONS and is_kernel(key):
        root = HOME
    return root / f"{key}.py"


def knowledge(key: str) -> Path:
    """What a teacher knows of the paper: hints, mistakes, equivalents."""
    return source(SOLUTIONS, key).with_suffix(".toml")


def tests(key: str) -> Path:
    """What judges the paper."""
    track, name = key.split("/")
    return TESTS / track / f"test_{name}.py"


def reports(root: Path) -> Path:
    """Where reports on the code under `root` go: those of other roots do not meet the learner's."""
    return REPORTS if root == EXERCISES else REPORTS / root.name


def tested_by(path: Path) -> str | None:
    """The key of the paper that a test file judges; None for any other file."""
    if path.parent.parent != TESTS or not path.name.startswith("test_"):
        return None
    return f"{path.parent.name}/{path.stem.removeprefix('test_')}"


def written() -> list[str]:
    """The keys of all papers and kernels that have a solution and tests, in alphabetical order."""
    solutions = [*SOLUTIONS.glob("*/*.py"), *(HOME / KERNELS).glob("*.py")]
    keys = (f"{p.parent.name}/{p.stem}" for p in solutions)
    return sorted(key for key in keys if tests(key).exists())


def folder(name: str, here: Path) -> Path | None:
    """The folder called `name`, seen from `here` or else from the house."""
    for path in (here / name, HOME / name):
        if path.is_dir():
            return path.resolve()
    return None


def shown(path: Path) -> str:
    """A path as a person should read it: relative to the house where it lies inside."""
    try:
        return path.resolve().relative_to(HOME).as_posix()
    except ValueError:
        return str(path)
