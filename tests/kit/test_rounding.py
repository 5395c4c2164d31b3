"""The rule for answers in a short dtype: as near the truth as torch, and no further away."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paperlings.testing import Mismatch, assert_as_exact_as_torch

TYPES = [torch.bfloat16, torch.float16, torch.float32]


def product(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix product as a good kernel gives it, in float64, and as torch gives it."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(7, 48, generator=generator).to(dtype)
    y = torch.randn(48, 5, generator=generator).to(dtype)
    y[:, 3] *= 1e-3  # a column of another size
    x[4] *= 1e-3  # a row too
    truth = x.double() @ y.double()
    return (x.float() @ y.float()).to(dtype), truth, x @ y


def refused(out: Tensor, truth: Tensor, eager: Tensor) -> str:
    with pytest.raises(Mismatch) as caught:
        assert_as_exact_as_torch(out, truth, eager, "why?")
    return caught.value.difference


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_as_exact_as_torch_is_accepted(dtype: torch.dtype) -> None:
    """A sum in float32 passes, and so does torch itself, tuples and arrays included."""
    good, truth, eager = product(dtype)
    assert_as_exact_as_torch(good, truth, eager, "why?")
    assert_as_exact_as_torch((eager, good), (truth.numpy(), truth), (eager, eager), "why?")


@pytest.mark.parametrize("dtype", TYPES)
def test_a_small_row_has_a_bound_of_its_own(dtype: torch.dtype) -> None:
    """Six per cent too much are seen in the largest row, and in one a thousand times smaller."""
    good, truth, eager = product(dtype)
    for row in (4, int(truth.abs().max(1).values.argmax())):
        wrong = good.clone()
        wrong[row] *= 1.06
        assert "actual" in refused(wrong, truth, eager)


def test_what_is_no_such_tensor_is_refused() -> None:
    """Type, shape, dtype and number of answers are exact."""
    good, truth, eager = product(torch.bfloat16)
    assert "exactly a Tensor" in refused(torch.nn.Parameter(good), truth, eager)
    assert "shape [7, 5], got [5, 7]" in refused(good.T, truth, eager)
    assert "dtype bfloat16, got float32" in refused(good.float(), truth, eager)
    assert "expected 2 tensors, got 1" in refused((good,), (truth, truth), (eager, eager))
    assert "no tuple" in refused(good, (truth,), (eager,))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_must_be_so(bad: float) -> None:
    """NaN and infinity are wrong where the truth is finite; infinity wants the same one."""
    good, truth, eager = product(torch.float32)
    wrong = good.clone()
    wrong[2, 1] = bad
    assert "1 of 35 values" in refused(wrong, truth, eager)
    infinite = truth.clone()
    infinite[2, 1] = -float("inf")
    assert "[2, 1]" in refused(good, infinite, eager)
    good[2, 1] = -float("inf")
    assert_as_exact_as_torch(good, infinite, eager, "why?")
