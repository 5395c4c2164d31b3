"""The doctor: every probe finds its planted fault, says how to mend it, and stops no other."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from paperlings import environment, lanes, layout, progress
from paperlings.learner import doctor, git
from paperlings.learner.doctor import BROKEN, OK, UNVERIFIED


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    doctor._begun.cache_clear()
    doctor._tried.cache_clear()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the kit's."""
    monkeypatch.setattr(layout, "HOME", tmp_path)
    for name in ("exercises", "solutions", "kernels", "reports"):
        monkeypatch.setattr(layout, name.upper(), tmp_path / name, raising=False)
    monkeypatch.setattr(layout, "KERNELS", "kernels")
    monkeypatch.setattr(layout, "TESTS", tmp_path / "tests" / "papers")
    monkeypatch.setattr(progress, "FILE", tmp_path / "progress.json")
    return tmp_path


def found(name: str, status: str, *words: str) -> None:
    """Assert what a probe finds."""
    finding = doctor.PROBES[name]()
    assert finding.status == status, finding
    assert all(word in f"{finding.says} {finding.mend}" for word in words), finding


def tries(monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
    """Another program in place of a trial."""
    monkeypatch.setitem(doctor.TRIALS, name, ("-c", code))


def commit(home: Path) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=home, check=True, capture_output=True)


# ---- the whole


def test_a_good_house_is_well_and_planted_faults_are_all_found(house) -> None:
    """Status 0 where nothing is broken, else 1; one fault hides no other."""
    commit(house.home)
    done = house.run("paperlings", "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    heads = [line.split()[:2] for line in lines[:-2] if line[:1].strip()]
    assert [name for _, name in heads] == list(doctor.PROBES)
    assert {status for status, _ in heads} <= {OK, UNVERIFIED}

    house.file("exercises").unlink()
    (house.home / "progress.json").write_text("{", encoding="utf-8")
    (house.home / "scipy.py").write_text("raise SystemError", encoding="utf-8")
    status, said = house.says("doctor")
    assert status == 1
    for words in ("exercises missing: demo/softmax", "progress.json cannot be read", "scipy.py in"):
        assert words in said
    assert "nox -s reset -- demo/softmax" in said
    assert (house.home / "progress.json").read_text(encoding="utf-8") == "{", "only looked at"


def test_a_probe_that_fails_is_broken_and_stops_no_other(monkeypatch, capsys) -> None:
    """The error is named; what comes after is still told."""

    def fails() -> doctor.Finding:
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "TRIALS", {})
    monkeypatch.setattr(doctor, "PROBES", {"one": fails, "two": doctor._cores})
    assert doctor.doctor() == 1
    said = capsys.readouterr().out
    assert "broken      one          cannot be told: OSError: no such thing\nok" in said
    assert said.endswith("1 of 2 broken, 0 unverified\n")


# ---- the environment


def test_another_python_is_found(home, monkeypatch) -> None:
    """The range is that of pyproject.toml."""
    text = '[project]\nrequires-python = ">=3.99"\n'
    (home / "pyproject.toml").write_text(text, encoding="utf-8")
    found("python", BROKEN, "the kit wants >=3.99", ".venv")
    text = text.replace("3.99", "3.11")
    (home / "pyproject.toml").write_text(text, encoding="utf-8")
    found("python", OK)


def test_a_missing_or_old_package_is_found(home, monkeypatch) -> None:
    """Each is named as pyproject.toml asks for it."""
    text = '[project]\ndependencies = ["numpy>=1", "numpy>=99", "nosuch-package"]\n'
    (home / "pyproject.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(environment, "PYPROJECT", home / "pyproject.toml")
    found("packages", BROKEN, ": numpy>=99, nosuch-package", "pip install 'numpy>=99'")


def test_a_torch_that_cannot_be_imported_is_found(monkeypatch) -> None:
    """Its last complaint is told; even one that takes its process with it."""
    tries(monkeypatch, "torch", "import sys; sys.exit('libtorch.so: not found')")
    found("torch", BROKEN, "libtorch.so: not found", ".venv")
    found("gate", UNVERIFIED, "torch cannot be imported")
    found("fork", UNVERIFIED, "starts cold")
    doctor._begun.cache_clear()
    doctor._tried.cache_clear()
    tries(monkeypatch, "torch", "import os; os.abort()")
    found("torch", BROKEN, "status -6")


def test_a_trial_that_hangs_is_stopped(monkeypatch) -> None:
    """A time-out is called a time-out."""
    tries(monkeypatch, "torch", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "PATIENCE", 0.2)
    begun = time.monotonic()
    found("torch", BROKEN, "does not come to an end within 0.2 s")
    assert time.monotonic() - begun < 30


def test_a_plugin_that_stops_pytest_is_found(tmp_path, monkeypatch) -> None:
    """A package may bring a plugin that fails, or warns where warnings are errors."""
    info = tmp_path / "rude-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: rude\nVersion: 1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[pytest11]\nrude = rude\n", encoding="utf-8")
    code = "import warnings\ndef pytest_configure():\n    warnings.warn('mind me')\n"
    (tmp_path / "rude.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found("pytest", BROKEN, "mind me", "nox -s grade")


def test_options_from_outside_are_found(monkeypatch) -> None:
    """PYTEST_ADDOPTS changes what a learner's pytest does."""
    tries(monkeypatch, "pytest", "")
    found("pytest", OK)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-x")
    found("pytest", UNVERIFIED, "PYTEST_ADDOPTS=-x", "unset")


# ---- the machine


@pytest.mark.parametrize("lane", ["interpreter", "compiled"])
def test_why_a_lane_is_closed_is_told(monkeypatch, lane: str) -> None:
    """In the words of the lane itself."""
    monkeypatch.setattr(lanes, f"why_not_{lane}", lambda: "")
    found(lane, OK)
    monkeypatch.setattr(lanes, f"why_not_{lane}", lambda: "no triton")
    found(lane, UNVERIFIED, "no triton; kernels")


@pytest.mark.parametrize(
    ("seen", "gate", "fork"),
    [
        ({"gate": "", "gpu": "H200", "forks": True, "threads": 1}, (OK, "H200"), (OK, "forks")),
        (
            {"gate": "no NVIDIA GPU", "gpu": "", "forks": False, "threads": 0},
            (UNVERIFIED, "no NVIDIA GPU"),
            (UNVERIFIED, "starts cold"),
        ),
        (
            {"gate": "", "gpu": "H200", "forks": True, "threads": 5},
            (OK, "H200"),
            (UNVERIFIED, "5 threads"),
        ),
    ],
)
def test_a_gpu_and_the_fork_are_told_as_torch_sees_them(monkeypatch, seen, gate, fork) -> None:
    """From the process in which torch was imported."""
    tries(monkeypatch, "torch", f"print({json.dumps(seen)!r})")
    found("gate", *gate)
    found("fork", *fork)


@pytest.mark.parametrize(
    ("tried", "status", "says"),
    [
        ("print('bubblewrap')", OK, "a bubblewrap container"),
        ("print('landlock')", OK, "Landlock"),
        ("print('none')", UNVERIFIED, "unlocked"),
        ("raise SystemExit('it does not start')", UNVERIFIED, "it does not start"),
    ],
)
def test_the_lock_that_holds_is_told(monkeypatch, tried: str, status: str, says: str) -> None:
    """As the process found that was locked in and tried to get out."""
    tries(monkeypatch, "sandbox", tried)
    found("sandbox", status, says)


@pytest.mark.parametrize(("free", "status"), [(5e6, BROKEN), (1e9, UNVERIFIED), (50e9, OK)])
def test_a_full_disk_is_found(monkeypatch, free: float, status: str) -> None:
    """Too full for reports, or for another environment."""
    usage = shutil.disk_usage(layout.HOME)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    found("disk", status, "GB free")


# ---- the folder


def test_reports_that_cannot_be_written_are_found(home) -> None:
    """A file where the folder should be; and the folder is made where there is none."""
    found("reports", OK)
    (home / "reports").rmdir()
    (home / "reports").write_text("mine", encoding="utf-8")
    found("reports", BROKEN, "cannot be written")


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        (None, OK, "nothing"),
        ('{"version": 1, "papers": {"a/b": {"tasks": {"c": "passed"}}}}', OK, "1 complete"),
        ("{", BROKEN, "cannot be read"),
        ('{"version": 99, "papers": {}}', BROKEN, "newer"),
        ("[]", BROKEN, "dated name"),
    ],
)
def test_a_damaged_record_is_found_and_left_alone(home, text, status: str, words: str) -> None:
    """The doctor only looks; grading keeps it aside."""
    if text is not None:
        progress.FILE.write_text(text, encoding="utf-8")
    found("progress", status, words)
    assert [path.name for path in home.iterdir()] == ["progress.json"] * (text is not None)


def test_an_old_stub_is_told_from_an_edited_one(house, home, monkeypatch) -> None:
    """An exercise that is as committed but not what the solution gives is stale; one that was
    edited is somebody's work; without git nobody can tell.
    """
    shutil.copytree(house.home, home, dirs_exist_ok=True)
    exercise = home / "exercises" / "demo" / "softmax.py"
    exercise.write_bytes(exercise.read_bytes() + b"# old\n")
    commit(home)
    found("exercises", BROKEN, "not edited, and not the stub", "nox -s reset -- demo/softmax")
    exercise.write_bytes(exercise.read_bytes() + b"# mine\n")
    found("exercises", OK, "1, of which 1 are edited")

    def refuses(*arguments: str) -> str:
        raise git.GitError("fatal: no git\nmore")

    monkeypatch.setattr(git, "ask", refuses)
    found("exercises", UNVERIFIED, "git would tell (no git)")
    found("git", UNVERIFIED, "no git; `nox -s update` cannot work")
    exercise.unlink()
    found("exercises", BROKEN, "missing: demo/softmax")


def test_a_name_that_hides_a_package_is_found(home, monkeypatch) -> None:
    """A file called torch.py, a folder that would lose to an installed package of its name; one
    that is merely called like it and comes later does no harm.
    """
    (home / "mine.py").write_text("", encoding="utf-8")
    (home / "site").mkdir()
    monkeypatch.syspath_prepend(str(home / "site"))
    for path in (home / "kernels", home / "site" / "kernels"):
        path.mkdir()
        (path / "__init__.py").write_text("", encoding="utf-8")
    found("names", OK)
    (home / "torch.py").write_text("", encoding="utf-8")
    found("names", BROKEN, "torch.py in the kit's folder hides", "rename torch.py")
    (home / "torch.py").unlink()
    (home / "kernels" / "__init__.py").unlink()
    found("names", BROKEN, "kernels/__init__.py is missing", "git checkout kernels/__init__.py")


def test_a_clone_inside_another_is_told(home, monkeypatch) -> None:
    """An update would be of the other one."""
    (home / "kit").mkdir()
    (home / "file").write_text("", encoding="utf-8")
    commit(home)
    found("git", OK)
    monkeypatch.setattr(layout, "HOME", home / "kit")
    found("git", UNVERIFIED, "inside another clone")
