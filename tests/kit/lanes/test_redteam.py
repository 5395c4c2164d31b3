"""Every cheat among redteam/kernels is rejected, by the test and with the words that it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from paperlings import layout, loading
from paperlings.sealed import sandbox
from paperlings.verdict import FAILED, PASSED

TRIAL = layout.HOME / "tests" / "kit" / "redteam" / "trial.py"
trial = loading.load(TRIAL, "redteam.trial")
CHEATS = {cheat.name: cheat for cheat in trial.cheats()}


HERE, SEALED = "here", trial.SEALED
needs_a_lock = pytest.mark.skipif(sandbox.probe() == sandbox.NONE, reason="no sandbox holds here")
PLACES = [HERE, pytest.param(SEALED, marks=needs_a_lock)]


@pytest.fixture(scope="module", params=PLACES)
def where(request: pytest.FixtureRequest) -> str:
    """Whether kernels run beside their judge, or locked."""
    return str(request.param)


@pytest.fixture(scope="module")
def findings(
    where: str, said: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """What was found of each cheat, and of the honest solution, by name."""
    folder = tmp_path_factory.mktemp("cheats")
    found: dict[str, list[dict[str, Any]]] = said(
        layout.HOME, TRIAL, str(folder), where, seconds=300
    )
    return found


@pytest.mark.parametrize("name", CHEATS)
def test_every_cheat_is_rejected_for_what_it_does(
    name: str, where: str, findings: dict[str, list[dict[str, Any]]]
) -> None:
    """The test that a cheat names fails, and says what the cheat says will be found."""
    cheat = CHEATS[name]
    if not cheat.shows:
        pytest.skip(f"unverified: only {cheat.test} could find {cheat.says!r}")
    failed = [finding["what"] for finding in findings[name] if finding["status"] == FAILED]
    assert failed, f"{cheat.test} does not reject it"
    says = cheat.says if where == HERE else cheat.sealed
    assert any(says in what for what in failed), failed[0]


def test_the_honest_solution_is_accepted(findings: dict[str, list[dict[str, Any]]]) -> None:
    """No law rejects the kit's own kernel, which every cheat is made from."""
    wrong = [finding for finding in findings[trial.HONEST] if finding["status"] != PASSED]
    assert findings[trial.HONEST]
    assert not wrong, wrong[0]


def test_cheats_are_many_and_differ() -> None:
    """No two files hold the same trick, and each names a reason."""
    assert len(CHEATS) >= 40
    assert len({cheat.text for cheat in CHEATS.values()}) == len(CHEATS)
    assert all(cheat.says for cheat in CHEATS.values()), "a cheat names no reason"
