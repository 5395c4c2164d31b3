"""One environment: made by whichever command comes first, reused,
made anew when what it should hold has changed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from paperlings import environment


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A house on a machine without torch; returns what pip is asked to install, call by call."""
    calls: list[list[str]] = []
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((environment.HOME / name).read_text())
    monkeypatch.setattr(environment, "HOME", tmp_path)
    monkeypatch.setattr(environment, "PYPROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(environment, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(environment, "installed", lambda name: False)
    monkeypatch.setattr(environment, "_pip", lambda python, arguments: calls.append(arguments))

    def create(home: Path, with_pip: bool) -> None:
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "python").touch()
        (home / "Scripts").mkdir()
        (home / "Scripts" / "python.exe").touch()

    monkeypatch.setattr(environment.venv, "create", create)
    return calls


def test_the_first_command_makes_it_and_the_others_use_it(bare, capsys) -> None:
    """torch is installed once, under the constraints, after a word on what is downloaded."""
    first = environment.python()
    assert Path(first).is_relative_to(environment.HOME / ".venv")
    assert environment.python() == environment.python() == first
    assert len(bare) == 1
    assert "-c" in bare[0]
    assert any(text.startswith("torch") for text in bare[0])
    said = capsys.readouterr().err
    assert "To download" in said
    assert "activate" in said


def test_a_group_is_added_once(bare) -> None:
    """What only some commands need comes on top, and torch is not asked for again."""
    environment.python()
    environment.python("lint")
    environment.python("lint", "tests")
    environment.python("lint", "tests")
    assert len(bare) == 3
    assert any(text.startswith("ruff") for text in bare[1])
    assert not any(text.startswith("ruff") for text in bare[2])


def test_an_extra_is_a_group_too(bare) -> None:
    """Who installs the package may name it, and so may a command."""
    environment.python("dask")
    assert any(text.startswith("distributed") for text in bare[1])


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_it_is_made_anew_when_its_contents_change(bare, name: str) -> None:
    """A new dependency or pin makes a new environment; another change of pyproject does not."""
    environment.python("lint")
    path = environment.HOME / name
    (environment.HOME / ".venv" / "old").touch()
    if name == "pyproject.toml":
        path.write_text(path.read_text().replace("line-length = 100", "line-length = 99"))
        environment.python()
        assert (environment.HOME / ".venv" / "old").exists()
        path.write_text(path.read_text().replace("numpy>=2.0", "numpy>=2.1"))
    else:
        path.write_text(path.read_text().replace("torch==2.13.0", "torch==2.13.1"))
    environment.python()
    assert not (environment.HOME / ".venv" / "old").exists()


def test_an_interrupted_set_up_starts_over(bare, monkeypatch) -> None:
    """Without its stamp an environment counts as none."""

    def stopped(python: str, arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "_pip", stopped)
    with pytest.raises(KeyboardInterrupt):
        environment.python()
    monkeypatch.setattr(environment, "_pip", lambda python, arguments: bare.append(arguments))
    environment.python()
    assert len(bare) == 1


def test_the_active_environment_is_used_if_it_has_torch(bare, monkeypatch) -> None:
    """What is missing is installed beside its torch, which stays as it is."""
    monkeypatch.setattr(environment, "installed", lambda name: True)
    monkeypatch.setattr(environment, "satisfied", lambda text: True)
    assert environment.python() == environment.sys.executable
    assert bare == []
    monkeypatch.setattr(environment, "satisfied", lambda text: not text.startswith("hypothesis"))
    environment.python()
    assert [text.split("==")[0].split(">=")[0] for text in bare[0]] == ["hypothesis", "torch"]
    assert not (environment.HOME / ".venv").exists()


def test_a_failed_installation_says_what_to_do(monkeypatch) -> None:
    """pip's failure is a sentence, not a traceback."""

    class Failed:
        returncode = 1

    monkeypatch.setattr(environment.subprocess, "run", lambda *a, **k: Failed())
    with pytest.raises(environment.SetupError, match="Is the network there"):
        environment._pip("python", ["x"])
