"""What a call did, measured on the CPU: the tensors it made and the operators it used.

This is how an exercise whose point is structure is told from one that only gives the right values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paperlings.testing.close import Mismatch


@dataclass
class Measurement:
    """largest: elements of the largest tensor made.  made: elements of all tensors made.
    kept: elements of those that outlive the call while its answer is held: the answer, and what
    autograd keeps.
    operators: names of the functions called, as torch and as its dispatcher know them,
    with how often.
    """

    largest: int = 0
    made: int = 0
    kept: int = 0
    operators: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> int:
        """How often the dispatcher ran an operator: count("bmm"), count("addmm")."""
        return self.operators.get(f"aten.{name}", 0)


class _Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, measurement: Measurement):
        super().__init__()  # type: ignore[no-untyped-call]
        self.measurement = measurement
        self.storages: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        m = self.measurement
        m.operators[f"aten.{func.overloadpacket.__name__}"] = (
            m.operators.get(f"aten.{func.overloadpacket.__name__}", 0) + 1
        )
        given = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and id(leaf) not in given and not func.is_view:
                m.largest = max(m.largest, leaf.numel())
                m.made += leaf.numel()
                storage = StorageWeakRef(leaf.untyped_storage())  # type: ignore[no-untyped-call]
                self.storages[storage] = leaf.numel()
        return out


class _Called(TorchFunctionMode):
    def __init__(self, measurement: Measurement):
        super().__init__()
        self.measurement = measurement

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = f"torch.{getattr(func, '__name__', func)}"
        self.measurement.operators[name] = self.measurement.operators.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def measure(call: Callable[[], Any]) -> Measurement:
    """Run `call` once and say what it made and used. A backward pass inside the call counts too."""
    measurement = Measurement()
    with _Called(measurement), _Dispatched(measurement) as dispatched:
        answer = call()
    living = [count for storage, count in dispatched.storages.items() if not storage.expired()]
    measurement.kept = sum(living)
    del answer
    return measurement


def growth(
    call: Callable[[int], Callable[[], Any]], small: int, large: int, *, of: str = "largest"
) -> float:
    """The power p with which a measure grows, as n^p, from n = small to n = large.

    call: `call(n)` returns what is to be measured at size n, its inputs already made.
    of: "largest", "made" or "kept", or the name of an operator, whose count is taken.
    """

    def value(n: int) -> int:
        measurement = measure(call(n))
        return getattr(measurement, of) if hasattr(measurement, of) else measurement.count(of)

    first, last = value(small), value(large)
    if not first:
        raise Mismatch("Is anything computed at all?", f"at size {small} there is no {of!r}")
    return math.log(max(last, 1) / first) / math.log(large / small)


def assert_avoids(call: Callable[[], Any], *forbidden: str, question: str) -> None:
    """Check that `call` uses no operator whose name contains one of `forbidden`."""
    used = measure(call).operators
    found = sorted({f for f in forbidden for name in used if f in name})
    if found:
        raise Mismatch(question, f"the call uses {', '.join(found)}, which is the answer itself")
