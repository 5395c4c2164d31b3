"""Sealed or not, a submission is told the same: each verdict, and the words that explain it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paperlings import files
from paperlings.sealed import sandbox
from paperlings.verdict import FAILED, PASSED, TODO

KEY = "demo/softmax"
SMALL = Path(__file__).parents[1] / "house"
SOLUTION, STUB = "solution", "stub"
MISTAKES = tomllib.loads((SMALL / "solutions" / f"{KEY}.toml").read_text())["mistakes"]
MINE = [SOLUTION, STUB, *(f"mistake-{i}" for i in range(1, len(MISTAKES) + 1))]
# sealed, it writes into copies, which only the test that asks for it hears of
WRITES = "mistake-6"
WORDS = ("test", "status", "what", "question", "example", "behaves_like", "todo_of", "timed_out")

JUDGING = Path(__file__).with_name("judging.py")

pytestmark = pytest.mark.skipif(sandbox.probe() == sandbox.NONE, reason="no sandbox holds here")


@pytest.fixture(scope="module")
def judged(
    build: Callable[..., Any], said: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, bool], dict[str, Any]]:
    """What became of each submission, open and sealed."""
    folder = tmp_path_factory.mktemp("equal")
    house = build(folder / "house", "softmax")
    solution = house.solution()
    texts = [solution, house.file("exercises").read_text()]
    texts += [solution.replace(edit["in"], edit["as"]) for edit in MISTAKES]
    jobs = {}
    for name, text in zip(MINE, texts, strict=True):
        files.write(folder / name / f"{KEY}.py", text)
        for sealed in (False, True):
            places = {"root": str(folder / name), "reports": str(folder / "reports")}
            jobs[name, sealed] = {"key": KEY, "sealed": sealed, **places}
    found = said(house.home, JUDGING, text=json.dumps(list(jobs.values())), seconds=600)
    return dict(zip(jobs, found, strict=True))


@pytest.mark.parametrize("name", MINE)
def test_every_task_and_the_claim_have_the_same_verdict(name: str, judged) -> None:
    """Where the code runs is no part of the grade."""
    kept, sealed = judged[name, False], judged[name, True]
    assert not kept["trouble"], kept["trouble"]
    assert not sealed["trouble"], sealed["trouble"]
    assert sealed["tasks"] == kept["tasks"]
    assert sealed["claim"] == kept["claim"]
    # a pair that is equal says little where nothing was judged
    wanted = {SOLUTION: {PASSED}, STUB: {TODO}}.get(name, {PASSED, FAILED})
    assert set(sealed["tasks"].values()) == wanted


@pytest.mark.parametrize("name", [name for name in MINE if name != WRITES])
def test_every_test_says_the_same_words(name: str, judged) -> None:
    """What went wrong, for which example, the question, and the mistake that it behaves like."""
    kept, sealed = (
        [{word: finding[word] for word in WORDS} for finding in judged[name, where]["findings"]]
        for where in (False, True)
    )
    assert sealed == kept


@pytest.mark.parametrize("number", range(1, len(MISTAKES) + 1))
def test_every_mistake_is_named_by_the_same_words(number: int, judged) -> None:
    """A learner is told which mistake it is, wherever the code runs."""
    for where in (False, True):
        findings = judged[f"mistake-{number}", where]["findings"]
        named = [says for finding in findings for says in finding["behaves_like"]]
        assert MISTAKES[number - 1]["says"] in named


def test_every_mistake_is_caught_and_every_equivalent_accepted(shared) -> None:
    """`mistakes --sealed` finds what `mistakes` does."""
    status, said = shared.says("mistakes", "softmax", "--sealed")
    assert status == 0, said
    assert "10 of 10 mistakes caught, 2 of 2 equivalents accepted." in said
