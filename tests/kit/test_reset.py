"""Putting a stub back and taking that back: no version of the learner's file is ever lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paperlings.learner import reset


def texts(exercise: Path) -> set[str]:
    """What the file and its backups hold."""
    return {path.read_text() for path in [exercise, *reset.backups(exercise)]}


def test_an_untouched_stub_is_nothing_to_reset(house) -> None:
    """It is said, and no backup is made."""
    exercise = house.file("exercises")
    before = exercise.read_text()
    status, said = house.says("reset", "softmax")
    assert status == 0
    assert "exercises/demo/softmax.py is the untouched stub; there is nothing to reset" in said
    assert texts(exercise) == {before}
    assert reset.backups(exercise) == []


def test_the_stub_comes_back_and_so_does_the_work(house) -> None:
    """The backup is named and so is the command that undoes; the backup stays."""
    exercise = house.file("exercises")
    stub = exercise.read_text()
    exercise.write_text("my work\n")
    status, said = house.says("reset", "exercises/demo/softmax.py")
    (copy,) = reset.backups(exercise)
    assert status == 0
    assert f"what was there is kept as {copy.name}" in said
    assert "to undo: nox -s reset -- demo/softmax --undo" in said
    assert exercise.read_text() == stub
    status, said = house.says("reset", "softmax", "--undo")
    assert (status, f"holds {copy.name} again" in said) == (0, True), said
    assert exercise.read_text() == "my work\n"
    assert texts(exercise) == {"my work\n"}, "a stub needs no backup"
    status, said = house.says("reset", "softmax", "--undo")
    assert (status, "has no backup that holds anything else" in said) == (1, True), said


def test_undoing_goes_to_the_newest_other_version_and_keeps_this_one(house) -> None:
    """Work done since the reset is kept, and undoing twice comes back to it."""
    exercise = house.file("exercises")
    for text in ("first\n", "second\n"):
        exercise.write_text(text)
        assert house.says("reset", "softmax")[0] == 0
    exercise.write_text("third\n")
    for expected in ("second\n", "third\n", "second\n"):
        assert house.says("reset", "softmax", "--undo")[0] == 0
        assert exercise.read_text() == expected
        assert texts(exercise) >= {"first\n", "second\n", "third\n"}


def test_a_file_that_is_gone_comes_back(house) -> None:
    """Reset writes the stub, undo the newest backup; neither needs the file."""
    exercise = house.file("exercises")
    stub = exercise.read_text()
    exercise.unlink()
    assert house.says("reset", "softmax")[0] == 0
    assert exercise.read_text() == stub
    exercise.write_text("my work\n")
    assert house.says("reset", "softmax")[0] == 0
    exercise.unlink()
    assert house.says("reset", "softmax", "--undo")[0] == 0
    assert exercise.read_text() == "my work\n"


def test_any_bytes_are_kept(house) -> None:
    """A file that is no text, or has another system's line ends, is kept to the byte."""
    exercise = house.file("exercises")
    work = b"x = 1\r\n\xff\x00"
    exercise.write_bytes(work)
    assert house.says("reset", "softmax")[0] == 0
    assert house.says("reset", "softmax", "--undo")[0] == 0
    assert exercise.read_bytes() == work


def test_backups_are_in_the_order_in_which_they_were_made(tmp_path: Path) -> None:
    """Within one second they are counted, and other files are none of them."""
    names = [
        "dpo.py.2026-08-01-120001.bak",
        "dpo.py.2026-08-01-120000-10.bak",
        "dpo.py.2026-08-01-120000-2.bak",
        "dpo.py.2026-08-01-120000.bak",
        "dpo.py.2025-12-31-235959.bak",
    ]
    others = ["dpo.py", "dpo.py.mine.bak", "other.py.2026-08-01-120000.bak", ".dpo.py.2026.bak.x1"]
    for name in [*sorted(names), *others]:
        (tmp_path / name).touch()
    assert [path.name for path in reset.backups(tmp_path / "dpo.py")] == names


@pytest.mark.parametrize("undo", [[], ["--undo"]])
def test_a_name_that_is_no_paper_is_refused(shared, undo) -> None:
    """With status 2, and the names that are close."""
    status, said = shared.says("reset", "sofmax", *undo)
    assert (status, "no paper or track is called 'sofmax'. Did you mean softmax" in said) == (
        2,
        True,
    ), said


def test_killed_at_any_instant_the_file_is_whole(house) -> None:
    """After each of 50 kills during resets and undos the file is the stub or the work, and the work
    is there whole, in the file or in a backup.
    """
    exercise = house.file("exercises")
    stub, work = exercise.read_bytes(), b"# my work\n" * 10_000
    exercise.write_bytes(work)
    loop = "from paperlings.learner.reset import reset, undo\nprint(flush=True)\n"
    loop += "while True:\n    reset('softmax'), undo('softmax')\n"
    environment = {**os.environ, "PYTHONPATH": str(house.home)}
    chance = random.Random(0)
    seen = set()
    for _ in range(50):
        process = subprocess.Popen(
            [sys.executable, "-c", loop],
            cwd=house.home,
            env=environment,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout
        process.stdout.readline()
        time.sleep(chance.uniform(0, 0.05))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        now, copies = exercise.read_bytes(), reset.backups(exercise)
        assert now in (stub, work)
        assert all(copy.read_bytes() == work for copy in copies)
        assert now == work or copies
        for copy in copies[1:]:
            copy.unlink()
        seen.add(now == work)
    assert len(seen) == 2, "the kills come too early or too late"
