"""Answers of the right shape that know nothing: every task returns zeros, or its first input.

Only what the tests see is replaced; inside, the solution calls itself as before,
so each task is tried alone.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from paperlings import loading, stubs, teacher

KINDS = ("zeros", "identity")


def source(key: str, kind: str) -> str:
    """The text of a module whose tasks are degenerate. It holds the solution's, for where it runs
    there may be no other.
    """
    made = f"degenerate.module({teacher.source(key)!r}, {stubs.groups(key)!r}, {kind!r})"
    return f"from paperlings import degenerate\n\nglobals().update({made})\n"


def module(text: str, tasks: tuple[str, ...], kind: str) -> dict[str, Any]:
    """The names of the solution, with every task replaced."""
    solution = loading.load(Path("solution.py"), f"{kind}.solution", text)
    names = {name: value for name, value in vars(solution).items() if not name.startswith("__")}
    return {**names, **{task: replaced(names[task], kind) for task in tasks}}


def replaced(task: Any, kind: str) -> Any:
    """The task, answering with zeros or with its first input."""
    import torch

    if isinstance(task, type) and issubclass(task, torch.nn.Module):

        class Degenerate(task):  # type: ignore[misc]
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return _answer(super().forward(*args, **kwargs), (args, kwargs), kind)

        return Degenerate
    if isinstance(task, type) and issubclass(task, torch.optim.Optimizer):
        return _idle(task, kind)
    if isinstance(task, type) and issubclass(task, torch.autograd.Function):
        both = ("forward", "backward")
        return type(task.__name__, (task,), {name: _static(task, name, kind) for name in both})
    if isinstance(task, type):
        return task

    @functools.wraps(task)
    def degenerate(*args: Any, **kwargs: Any) -> Any:
        return _answer(task(*args, **kwargs), (args, kwargs), kind)

    return degenerate


def _idle(optimizer: Any, kind: str) -> Any:
    """An optimizer whose step moves nothing, or sets every parameter to zero."""
    import torch

    class Idle(optimizer):  # type: ignore[misc]
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            before = [p.clone() for group in self.param_groups for p in group["params"]]
            out = super().step(closure)
            after = [p for group in self.param_groups for p in group["params"]]
            for p, old in zip(after, before, strict=True):
                p.copy_(old if kind == "identity" else torch.zeros_like(p))
            return out

    return Idle


def _static(task: Any, name: str, kind: str) -> Any:
    def method(ctx: Any, *args: Any) -> Any:
        return _answer(getattr(task, name)(ctx, *args), args, kind)

    return staticmethod(method)


def _answer(out: Any, inputs: Any, kind: str) -> Any:
    import torch
    from torch.utils._pytree import tree_leaves, tree_map

    def nothing(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return torch.zeros_like(leaf)
        if isinstance(leaf, str):
            return ""
        return type(leaf)(0) if isinstance(leaf, bool | int | float) else leaf

    if kind == "identity":
        given = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
        return given[0].clone() if given else next(iter(tree_leaves(inputs)), None)
    return tree_map(nothing, out)
