"""What the kernels of one call move and compute, measured where they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paperlings.testing.driver import driver, name_of


@dataclass(frozen=True)
class Traffic:
    """Of all kernels of one call: how many were launched; the bytes that they load, store and touch
    in sectors; the FLOPs of every tl.dot, and what these multiply (see paperlings.lanes.traffic).
    """

    launches: int
    loaded: int
    stored: int
    sectors: int
    flops: int
    dot_dtypes: frozenset[str]


def traffic(impl: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Traffic:
    """What a call of the host function, as read off `impl`, moves and computes in kernels.

    args, kwargs: plain data. Raises Unverified where kernels cannot be interpreted here.
    """
    found = _counted(impl, name_of(impl, function), args, kwargs)
    return Traffic(dot_dtypes=frozenset(found.pop("dot_dtypes")), **found)


@driver
def _counted(impl: Any, function: str, args: Any, kwargs: Any) -> dict[str, Any]:
    from paperlings.lanes.traffic import recorded

    with recorded() as record:
        getattr(impl, function)(*args, **kwargs)
    counts = {name: getattr(record, name) for name in ("loaded", "stored", "sectors", "flops")}
    return {**counts, "launches": len(record.launches), "dot_dtypes": sorted(record.dot_dtypes)}
