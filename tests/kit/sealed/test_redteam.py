"""Every attack among redteam/sealed fails, for the reason it names, and touches nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paperlings import layout, loading
from paperlings.sealed import sandbox
from paperlings.verdict import FAILED, PASSED

TRIAL = Path(__file__).with_name("trial.py")
ATTACKS = Path(__file__).parents[1] / "redteam" / "sealed"
trial = loading.load(TRIAL, "redteam.sealed_trial")
NAMES = {attack.name: attack for attack in trial.attacks(ATTACKS)}

pytestmark = pytest.mark.skipif(sandbox.probe() == sandbox.NONE, reason="no sandbox holds here")


@pytest.fixture(scope="module")
def judged(
    build: Callable[..., Any], said: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What became of each attack, and of the honest solution."""
    folder = tmp_path_factory.mktemp("redteam")
    house = build(folder / "house", "softmax")
    (folder / "field").mkdir()
    places = (str(ATTACKS), str(folder / "field"))
    found: dict[str, dict[str, Any]] = said(house.home, TRIAL, *places, seconds=900)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_attack_fails_and_touches_nothing(
    name: str, judged: dict[str, dict[str, Any]]
) -> None:
    """No task of it passes; no file, process, memory or network outside was reached."""
    found = judged[name]
    assert not found["trouble"], found["trouble"]
    assert PASSED not in found["tasks"].values(), found["tasks"]
    assert found["claim"] != PASSED
    assert not found["touched"], found["touched"]
    said = " ".join(f["what"] for f in found["findings"] if f["status"] == FAILED)
    assert NAMES[name].says in " ".join(said.split()), said[:2000]


def test_the_honest_solution_passes(judged: dict[str, dict[str, Any]]) -> None:
    """What stops the attacks does not stop a solution."""
    assert set(judged[trial.HONEST]["tasks"].values()) == {PASSED}
    assert judged[trial.HONEST]["claim"] == PASSED


def test_attacks_are_many_and_differ() -> None:
    """No two files hold the same trick."""
    assert len(NAMES) >= 40
    assert len({attack.text for attack in NAMES.values()}) == len(NAMES)
    assert layout.HOME in ATTACKS.parents
