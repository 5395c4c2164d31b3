"""Whatever is ended in the middle of a sealed run, it comes to an end, and says nothing false."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paperlings.sealed import sandbox
from paperlings.verdict import FAILED, PASSED, UNVERIFIED

KILLS = Path(__file__).with_name("kills.py")
TIMES = 2  # that each kind of process is ended, in the middle of a right and of a wrong solution

pytestmark = pytest.mark.skipif(sandbox.probe() == sandbox.NONE, reason="no sandbox holds here")


@pytest.fixture(scope="module")
def runs(
    build: Callable[..., Any], said: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What became of the runs; they are ended elsewhere every time, so the moment is told."""
    folder = tmp_path_factory.mktemp("kills")
    house = build(folder / "house", "softmax")
    seed = int.from_bytes(os.urandom(4), "big")
    arguments = (str(folder / "field"), str(seed), str(TIMES))
    found: list[dict[str, Any]] = said(house.home, KILLS, *arguments, seconds=600)
    assert len(found) == 2 + 8 * TIMES
    return found


def test_every_run_ends_soon_and_leaves_no_process(runs: list[dict[str, Any]]) -> None:
    """Whoever is missed, nobody waits for it, and nobody is forgotten."""
    for run in runs:
        assert run["seconds"] < 60, run
        assert not run["left"], run


def test_nothing_wrong_passes(runs: list[dict[str, Any]]) -> None:
    """A process that is missing is no reason to pass."""
    for run in runs:
        if run["name"] == "wrong":
            assert PASSED not in run["tasks"].values(), run


def test_only_the_end_of_its_own_process_is_held_against_a_solution(
    runs: list[dict[str, Any]],
) -> None:
    """Where another has ended, either it was too late to matter, or the kit is in trouble."""
    for run in runs:
        if run["name"] == "wrong":
            continue
        found = set(run["tasks"].values())
        if run["victim"] == "candidate":
            assert not run["trouble"], run
            assert found <= {PASSED, FAILED}, run
            assert all("ended by SIGKILL" in said for said in run["failed"]), run
        else:
            assert not run["failed"], run
            assert found == {UNVERIFIED if run["trouble"] else PASSED}, run


def test_what_has_ended_is_replaced(runs: list[dict[str, Any]]) -> None:
    """The run that follows finds everything as it was."""
    assert set(runs[-1]["tasks"].values()) == {PASSED}, runs[-1]
