"""Naming the mistake: the failing example is run through every known mistake,
and an equal answer is a likeness.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from paperlings import lanes, layout, loading, reach, teacher
from paperlings.limits import TimeLimit, time_limit

SECONDS = 2.0  # of CPU time: a failing test is diagnosed for no longer
KERNEL_SECONDS = 10.0  # where launches are interpreted
NAMED = 2  # more likenesses than this say nothing


def behaves_like(
    key: str,
    tasks: tuple[str, ...],
    test: Callable[..., Any],
    failures: list[tuple[dict[str, Any], BaseException]],
) -> list[str]:
    """What the known mistakes say that answer each failing example as the candidate did.

    tasks: what the test judges; mistakes that do not reach them are passed over.
    test: the plain function.  failures: its arguments, without `impl`, and what it raised.
    """
    alike, known = [], mistakes(key)  # loaded before the clock starts
    deadline = time.process_time() + (KERNEL_SECONDS if layout.is_kernel(key) else SECONDS)
    for edit, module, reached in known:
        if time.process_time() > deadline:
            break
        if not set(tasks) & set(reached):
            continue
        if all(_alike(raised, _replay(test, arguments, module)) for arguments, raised in failures):
            alike.append(edit.says)
    return alike if len(alike) <= NAMED else []


@functools.cache
def mistakes(key: str) -> list[tuple[teacher.Edit, ModuleType, tuple[str, ...]]]:
    """Every known mistake of the paper as a module, with the tasks it can change.

    None where solutions/ has been taken away.
    """
    try:
        known, text = teacher.load(key), teacher.source(key)
    except (teacher.KnowledgeError, OSError):
        return []
    if layout.is_kernel(key):
        lanes.switch_on_interpreter()
    found = []
    for i, edit in enumerate(known.mistakes):
        path = layout.source(layout.SOLUTIONS, key)
        try:
            wrong = teacher.apply(text, [edit], str(i))
            module = loading.load(path, f"mistake_{i}." + key.replace("/", "."), wrong)
        except Exception:  # nobody's likeness; `nox -s mistakes` reports it
            continue
        found.append((edit, module, reach.reached(text, reach.lines_of(text, edit.before))))
    return found


def _replay(
    test: Callable[..., Any], arguments: dict[str, Any], module: ModuleType
) -> BaseException | None:
    try:
        with time_limit(SECONDS):
            test(**fresh(arguments), impl=module)
    except (TimeLimit, Exception) as error:
        return error
    return None


def _alike(raised: BaseException, replayed: BaseException | None) -> bool:
    from paperlings.testing.close import Mismatch, close

    if type(raised) is not type(replayed) or replayed is None:
        return False
    if not isinstance(raised, Mismatch) or not isinstance(replayed, Mismatch):
        return str(raised) == str(replayed)
    if raised.question != replayed.question:
        return False
    if raised.actual is None or replayed.actual is None:
        return raised.difference == replayed.difference
    try:
        return close(raised.actual, _detached(replayed.actual))
    except Exception:  # answers of kinds that cannot be compared are not alike
        return False


def fresh(arguments: Any) -> Any:
    """A copy of a test's arguments that nothing done to the original can reach;
    what is no plain data stays.
    """
    import torch
    from torch.utils._pytree import tree_map

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.detach().clone().requires_grad_(leaf.requires_grad)
        if isinstance(leaf, torch.Generator):
            return torch.Generator(leaf.device).set_state(leaf.get_state())
        return leaf

    return tree_map(copy, arguments)


def _detached(answer: Any) -> Any:
    import torch
    from torch.utils._pytree import tree_map

    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, answer)
