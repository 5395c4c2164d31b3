"""What a paper's tests are given: the code under test, the oracle, and a place for a figure."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from paperlings import lanes, layout, loading
from paperlings.judge import STATUS, Judge, judge_of
from paperlings.outcomes import KitFault, unverified
from paperlings.spare import spare_the_compiler
from paperlings.verdict import FAILED, PASSED


@pytest.fixture(scope="module")
def impl(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The module under test, freshly loaded from --impl; a kernel's launches are interpreted."""
    import torch

    torch.set_num_threads(1)  # tiny tensors, and the same sums on every machine
    spare_the_compiler()
    gc.freeze()  # what has been imported stays; looking through it again costs half a second
    judge = judge_of(request.config)
    key = _key(request)
    load = _sealed if request.config.getoption("--sealed") else _here
    with (
        _interpreted() if layout.is_kernel(key) else contextlib.nullcontext(),
        load(judge, key) as module,
    ):
        yield module


@contextlib.contextmanager
def _here(judge: Judge, key: str) -> Iterator[ModuleType]:
    """The module under test in this process; what a kernel does is watched."""
    with contextlib.ExitStack() as stack:
        watching = None
        if layout.is_kernel(key):
            from paperlings.lanes import watch

            watching = stack.enter_context(watch.held(layout.source(judge.root, key)))
        with _importing(judge, key):
            module = loading.load_candidate(judge.root, key)
        if watching:
            watching.changed()  # what the import has replaced of the judge is put back at once
        yield module


@contextlib.contextmanager
def _sealed(judge: Judge, key: str) -> Iterator[ModuleType]:
    """The module under test in a process of its own, in which there is nothing to find."""
    from paperlings.sealed import nursery

    with _importing(judge, key):
        module = nursery.load(judge.root, key)
    try:
        yield module
    finally:
        module.close()


@contextlib.contextmanager
def _importing(judge: Judge, key: str) -> Iterator[None]:
    """Whoever ends the process in the block has ended it by being imported."""
    judge.write({"importing": key})
    try:
        yield
    finally:
        judge.write({"imported": key})


@contextlib.contextmanager
def _interpreted() -> Iterator[None]:
    """Interpret kernels in the block; where they run elsewhere, those of known mistakes."""
    if reason := lanes.why_not_interpreter():
        unverified(reason)
    from paperlings.lanes import interpreter

    with interpreter.faithful():
        yield


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest) -> Oracle:
    """The oracle of the paper; tensors passed to it become NumPy arrays."""
    key = _key(request)
    path = layout.source(layout.REFERENCE, key)
    try:
        return Oracle(loading.load(path, "oracle." + key.replace("/", ".")))
    except Exception as error:
        trouble = f"{layout.shown(path)} cannot be loaded: {type(error).__name__}: {error}"
        judge_of(request.config).write({"trouble": trouble})
        raise KitFault(trouble) from error


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """`figure(caption)` makes a matplotlib Figure, which is saved among the reports when the test
    passes.
    """
    judge = judge_of(request.config)
    path = judge.figures / f"{_key(request)}.png"
    made: list[tuple[str, Any]] = []

    def make(caption: str) -> Any:
        from matplotlib.figure import Figure

        made.append((caption, Figure(figsize=(9, 4), layout="constrained")))
        return made[-1][1]

    path.unlink(missing_ok=True)
    yield make
    if made and request.node.stash.get(STATUS, FAILED) == PASSED:
        path.parent.mkdir(parents=True, exist_ok=True)
        caption, drawn = made[-1]
        drawn.savefig(path, dpi=120, metadata={"Description": caption})


def _key(request: pytest.FixtureRequest) -> str:
    key = layout.tested_by(request.path)
    if key is None:
        raise pytest.UsageError(f"{request.path} is no paper's test file")
    return key


class Oracle:
    """The reference module of a paper; tensors in its arguments become NumPy arrays first."""

    def __init__(self, module: ModuleType):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if not callable(value):
            return value

        @functools.wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = _as_numpy((args, kwargs))
            return value(*args, **kwargs)

        return call


def _as_numpy(tree: Any) -> Any:
    import torch

    if isinstance(tree, torch.Tensor):
        array = tree.detach().cpu()
        return (array.double() if array.is_floating_point() else array).numpy().copy()
    if isinstance(tree, dict):
        return {key: _as_numpy(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(_as_numpy(value) for value in tree)
    return tree
