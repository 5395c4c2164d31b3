"""What the laws of kernels allow: many ways to be honest, of which none is rejected.

How they are broken is told by the cheats of test_redteam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from paperlings import loading
from paperlings.lanes import interpreter, sanitizer, watch
from paperlings.spare import spare_the_compiler
from paperlings.testing import kernel_laws
from paperlings.testing.kernel_laws import KernelExample

HONEST = """
import functools
import torch, triton, triton.language as tl

@triton.jit
def _scale(X, OUT, n, stride, factor, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    x = tl.load(X + i * stride, mask=inside, other=0.0)
    tl.store(OUT + i, x * factor, mask=inside)

def a_new_tensor(x):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _scale[(triton.cdiv(len(x), 16),)](x, out, len(x), x.stride(0), 2.0, BLOCK=16)
    return out

def views_are_copied(x):
    x = x.contiguous()
    out = x.new_empty(x.shape)
    _scale[(triton.cdiv(len(x), 16),)](x, out, len(x), 1, 2.0, BLOCK=16)
    return out

def two_answers_in_one_allocation(x):
    out = x.new_empty(2, len(x))
    for i, factor in enumerate((2.0, 3.0)):
        _scale[(triton.cdiv(len(x), 16),)](x, out[i], len(x), x.stride(0), factor, BLOCK=16)
    return {"double": out[0], "triple": out[1]}

def two_launches_and_what_lies_between(x):
    between = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _scale[(triton.cdiv(len(x), 16),)](x, between, len(x), x.stride(0), 2.0, BLOCK=16)
    out = torch.empty_like(between)
    _scale[(triton.cdiv(len(x), 16),)](between, out, len(x), 1, 2.0, BLOCK=16)
    return out.view(1, -1), None, len(x)

@triton.jit
def _sum(X, OUT, n, stride, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(OUT, tl.sum(tl.load(X + i * stride, mask=i < n, other=0.0), 0))

def atomics_into_zeros(x):
    out = torch.zeros((), device=x.device)
    _sum[(triton.cdiv(len(x), 16),)](x, out, len(x), x.stride(0), BLOCK=16)
    return out

TABLE = torch.tensor([2.0, 0.5])

@functools.cache
def _block(n):
    return min(32, triton.next_power_of_2(n))

@triton.jit
def _alternate(X, TABLE, OUT, n, stride, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(TABLE + i % 2)
    tl.store(OUT + i, tl.load(X + i * stride, mask=i < n, other=0.0) * factor, mask=i < n)

def a_table_that_is_made_once(x):
    out = torch.empty(len(x), device=x.device)
    block = _block(len(x))
    _alternate[(triton.cdiv(len(x), block),)](x, TABLE, out, len(x), x.stride(0), BLOCK=block)
    return out

_tuned = triton.autotune([triton.Config({"BLOCK": n}) for n in (32, 16)], key=["n"])(_scale)

@torch.no_grad()
def tuned_and_guarded(x):
    with torch.cuda.device_of(x):
        out = torch.empty(len(x), dtype=x.dtype, device=x.device)
        _tuned[lambda meta: (triton.cdiv(len(x), meta["BLOCK"]),)](x, out, len(x), x.stride(0), 2)
    return [out]

def the_last_is_left_out(x):
    out = torch.empty_like(x)
    _scale[(triton.cdiv(len(x), 16),)](x, out, len(x) - 1, x.stride(0), 2.0, BLOCK=16)
    return out

def a_stub(x):
    raise NotImplementedError("a_stub")
"""
TASKS = (
    *("a_new_tensor", "views_are_copied", "two_answers_in_one_allocation", "atomics_into_zeros"),
    *("two_launches_and_what_lies_between", "a_table_that_is_made_once", "tuned_and_guarded"),
)
X = torch.linspace(-1.0, 2.0, 37)
EXAMPLE = KernelExample((X,), torch_may=("zeros",))


@pytest.fixture(scope="module")
def impl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The kernels above, watched and interpreted as those of a learner are."""
    path = tmp_path_factory.mktemp("kernels") / "honest.py"
    path.write_text(HONEST, encoding="utf-8")
    spare_the_compiler()
    with interpreter.faithful(), watch.held(path):
        yield loading.load(path, "candidate.kernels.honest")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("law", kernel_laws.TESTS)
def test_no_honest_kernel_is_rejected(
    impl: ModuleType, law: Callable[..., None], task: str
) -> None:
    """Each law accepts every way above to write a kernel and its host function."""
    sanitizer.clear()
    law(impl, task, EXAMPLE)
    sanitizer.raise_if_any()


@pytest.mark.parametrize("law", kernel_laws.TESTS)
def test_a_stub_is_met_as_itself(impl: ModuleType, law: Callable[..., None]) -> None:
    """What a stub raises comes through every law, so that it is todo and nothing else."""
    with pytest.raises(NotImplementedError, match="a_stub"):
        law(impl, "a_stub", EXAMPLE)


def test_what_torch_may_is_said_by_the_example(impl: ModuleType) -> None:
    """Zeros cost a pass over memory: whoever does not grant them finds them."""
    with pytest.raises(AssertionError, match="torch computes beside kernels: zeros"):
        kernel_laws.test_kernels_do_all_the_work(impl, "atomics_into_zeros", KernelExample((X,)))


def test_every_value_is_to_be_read(impl: ModuleType) -> None:
    """One element that is left out is missed."""
    with pytest.raises(AssertionError, match="no kernel reads all of input tensor 0"):
        kernel_laws.test_kernels_do_all_the_work(impl, "the_last_is_left_out", EXAMPLE)


def test_arguments_keep_their_dtypes() -> None:
    """A kernel's example is called in the dtype it is written in, with tensors of its own."""
    whole = torch.tensor([3, 1])
    example = KernelExample(args=(X.bfloat16(), [whole, 2.5], None))
    brain, (copy, number), nothing = example.arguments()
    assert (brain.dtype, copy.dtype, number, nothing) == (torch.bfloat16, torch.int64, 2.5, None)
    copy.zero_()
    assert whole.tolist() == [3, 1]
    assert example.arguments(torch.float32)[0].dtype == torch.float32


def test_fresh_values_are_as_good_as_the_old_ones() -> None:
    """Labels are shuffled, offsets stay, -inf stays -inf, and the rest is scaled a little."""
    generator = torch.Generator().manual_seed(0)
    labels, offsets = torch.tensor([4, 0, 2, 9, 7, 1]), torch.tensor([[0, 3, 9], [1, 1, 2]])
    fresh: Callable[[Any], Any] = lambda x: kernel_laws._fresh(x, generator)  # noqa: E731
    assert sorted(fresh(labels).tolist()) == sorted(labels.tolist())
    assert fresh(labels).tolist() != labels.tolist()
    assert fresh(offsets).tolist() == offsets.tolist()
    scaled = fresh(torch.tensor([1.0, -math.inf, -2.0, 0.0], dtype=torch.float16))
    assert scaled.dtype == torch.float16
    assert scaled[1] == -math.inf
    assert 0.5 <= scaled[0] <= 1.5
    assert fresh("text") == "text"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_spread_view_holds_the_same_values_among_others(dtype: torch.dtype) -> None:
    """It starts at an odd place, and what lies between is none of its values."""
    x = torch.arange(6).reshape(2, 3).to(dtype)
    view = kernel_laws._spread(x)
    assert torch.equal(view, x)
    assert view.storage_offset() % 2 == 1
    assert view.stride() == (6, 2)
    assert kernel_laws._spread(torch.tensor(1.0)).item() == 1.0
