"""Answers that know nothing: whatever kind of task is replaced, it runs and says nothing."""

from __future__ import annotations

import pytest
import torch

from paperlings import degenerate


class Descent(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad)
        return None if closure is None else closure()


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad * ctx.saved_tensors[0] ** 2


@pytest.mark.parametrize(("kind", "left"), [("identity", [1.5, -2.0]), ("zeros", [0.0, 0.0])])
def test_an_optimizer_moves_nothing_or_forgets_everything(kind: str, left: list[float]) -> None:
    """Its step runs, with what a closure returns, and the parameters learn nothing."""
    p = torch.nn.Parameter(torch.tensor([1.5, -2.0]))
    p.grad = torch.ones(2)
    optimizer = degenerate.replaced(Descent, kind)([p], lr=0.5)
    assert isinstance(optimizer, Descent)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert p.tolist() == left


@pytest.mark.parametrize(
    ("kind", "answer", "slope"), [("identity", [2.0], [5.0]), ("zeros", [0.0], [0.0])]
)
def test_an_autograd_function_answers_with_nothing_both_ways(kind, answer, slope) -> None:
    """Forward gives its input or zeros, and so does backward."""
    x = torch.tensor([2.0], requires_grad=True)
    y = degenerate.replaced(Cube, kind).apply(x)
    assert y.tolist() == answer
    (5.0 * y).sum().backward()
    assert x.grad.tolist() == slope


@pytest.mark.parametrize(("kind", "answer"), [("identity", 3.0), ("zeros", 0.0)])
def test_a_module_runs_and_knows_nothing(kind: str, answer: float) -> None:
    """Its weights are there, its answer is its input or zero."""
    module = degenerate.replaced(torch.nn.Linear, kind)(1, 1)
    assert module(torch.tensor([3.0])).tolist() == [answer]
    assert len(list(module.parameters())) == 2
