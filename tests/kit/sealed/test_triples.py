"""Of every paper, sealed: the solution passes; the stub passes nothing, and neither does a file
that looks the answers up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paperlings import files, lanes, layout, runner, stubs
from paperlings.sealed import sandbox
from paperlings.verdict import PASSED, TODO

KEYS = [key for key in layout.written() if not (layout.is_kernel(key) and lanes.why_not_compiled())]
OPEN = "optimization/muon"  # a paper on which the cheat is tried unsealed too
SOLUTION, STUB, CHEAT = "solution", "stub", "cheat"
# appended to the stub, whose names it replaces by the first answers that it finds
LOOKED_UP = """
import gc as _gc
import sys as _sys
import torch as _torch


def _read(root):
    with open(f"{HOUSE}/{root}/{KEY}.py") as file:
        found = {"__name__": root}
        exec(compile(file.read(), root, "exec"), found)
        return found


def _held():
    frame = _sys._getframe()
    while frame:
        yield frame.f_globals
        yield frame.f_locals
        frame = frame.f_back
    yield from [vars(module) for module in list(_sys.modules.values()) if module is not None]
    yield from [thing for thing in _gc.get_objects() if type(thing) is dict]


def _zeros(*args, **kwargs):
    given = [x for x in [*args, *kwargs.values()] if isinstance(x, _torch.Tensor)]
    return _torch.zeros_like(given[0]) if given else 0.0


def _answers():
    for root in ("solutions", "reference", "."):  # where the kit's kernels are
        try:
            return _read(root)
        except Exception:
            continue
    for names in _held():
        if names is not globals() and all(callable(names.get(task)) for task in TASKS):
            return names
    return {}


_found = _answers()
for _task in TASKS:
    globals()[_task] = _found.get(_task, _zeros)
"""

JUDGING = Path(__file__).with_name("judging.py")

pytestmark = pytest.mark.skipif(sandbox.probe() == sandbox.NONE, reason="no sandbox holds here")


def text(key: str, kind: str) -> str:
    """The text of a submission."""
    if kind == SOLUTION:
        return layout.source(layout.SOLUTIONS, key).read_text(encoding="utf-8")
    stub = layout.source(layout.EXERCISES, key).read_text(encoding="utf-8")
    known = {"HOUSE": str(layout.HOME), "KEY": key, "TASKS": stubs.groups(key)}
    places = "\n".join(f"{name} = {value!r}" for name, value in known.items())
    return stub if kind == STUB else f"{stub}\n\n{places}\n{LOOKED_UP}"


@pytest.fixture(scope="module")
def judged(
    said: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str, bool], dict[str, Any]]:
    """What became of each triple, and of the cheat where nothing is locked."""
    folder = tmp_path_factory.mktemp("triples")
    asked = [(key, kind, True) for key in KEYS for kind in (SOLUTION, STUB, CHEAT)]
    asked.append((OPEN, CHEAT, False))
    jobs = []
    for key, kind, sealed in asked:
        files.write(layout.source(folder / kind, key), text(key, kind))
        places = {"root": str(folder / kind), "reports": str(folder)}
        jobs.append({"key": key, "claims": False, "sealed": sealed, **places})
        jobs[-1]["diagnosis"] = runner.NONE
    found = said(layout.HOME, JUDGING, text=json.dumps(jobs), seconds=600)
    return dict(zip(asked, found, strict=True))


@pytest.mark.parametrize("key", KEYS)
def test_the_solution_passes_every_task(key, judged) -> None:
    """What is sealed is judged as what is not."""
    found = judged[key, SOLUTION, True]
    assert not found["trouble"], found["trouble"]
    odd = [f for f in found["findings"] if f["status"] != PASSED]
    assert not odd, odd[0]
    assert set(found["tasks"].values()) == {PASSED}


@pytest.mark.parametrize("key", KEYS)
def test_the_stub_is_all_to_do(key, judged) -> None:
    """Not a task of it has begun, and none has failed."""
    found = judged[key, STUB, True]
    assert not found["trouble"], found["trouble"]
    assert set(found["tasks"].values()) == {TODO}, found["tasks"]


@pytest.mark.parametrize("key", KEYS)
def test_a_file_that_looks_the_answers_up_passes_nothing(key, judged) -> None:
    """Neither the solution, nor the oracle, nor a test is where the submission runs."""
    found = judged[key, CHEAT, True]
    assert not found["trouble"], found["trouble"]
    assert PASSED not in found["tasks"].values(), found["tasks"]
    assert any(f["question"] for f in found["findings"]), "it was not even loaded"


def test_the_same_file_passes_where_nothing_is_sealed(judged) -> None:
    """The cheat finds the answers where they are to be found."""
    found = judged[OPEN, CHEAT, False]
    assert set(found["tasks"].values()) == {PASSED}, found["tasks"]
