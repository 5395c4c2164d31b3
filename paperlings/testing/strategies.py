"""Hypothesis strategies for tensors, and weights that are never neutral.

A tensor is one draw of bytes, a small integer a value: cheap to draw, and shrunk by hypothesis
towards zeros and ones in the smallest shape, so that a person can compute with the counterexample.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

FAMILIES = ("plain", "tiny", "large", "ties", "spike", "rows")


def sizes(count: int, low: int = 1, high: int = 5) -> st.SearchStrategy[tuple[int, ...]]:
    """`count` sizes in [low, high]; independent, so equal ones,
    all different ones and ones all occur.
    """
    return st.tuples(*[st.integers(low, high)] * count)


def distinct(count: int, low: int = 1, high: int = 6) -> st.SearchStrategy[tuple[int, ...]]:
    """`count` sizes in [low, high], no two equal: an axis mistaken for another cannot hide.

    One draw from all of them, the smallest first, which costs less than to draw until they differ.
    """
    every = itertools.permutations(range(low, high + 1), count)
    return st.sampled_from(sorted(every, key=sum))


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: Sequence[int],
    families: Sequence[str] = ("plain",),
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """A tensor of small integers in [-4, 4], changed by one of `families` (see FAMILIES).

    plain: as drawn.  tiny: times 2^-20.  large: times 2^12.  ties: all values equal.
    spike: a 50 added at the first or last index of the last axis.  rows:
    rows of very different size, 4^row.
    """
    x = _small_integers(draw, shape).to(dtype)
    family = draw(st.sampled_from(list(families)))
    if family == "tiny":
        return x * 2.0**-20
    if family == "large":
        return x * 2.0**12
    if family == "ties" and x.numel():
        return torch.full_like(x, x.flatten()[0].item())
    if family == "spike" and x.dim():
        x[..., draw(st.sampled_from([0, -1]))] += 50.0
        return x
    if family == "rows" and x.dim() >= 2:
        return x * 4.0 ** torch.arange(x.shape[-2], dtype=dtype)[:, None]
    return x


@st.composite
def logits(draw: st.DrawFn, shape: Sequence[int]) -> Tensor:
    """Unnormalised log-probabilities of every family, in float64."""
    return draw(tensors(shape, ("plain", "ties", "spike", "rows")))


@st.composite
def indices(draw: st.DrawFn, shape: Sequence[int], below: int) -> Tensor:
    """An int64 tensor of values in [0, below)."""
    count = _numel(shape)
    data = draw(st.binary(min_size=count, max_size=count))
    return torch.tensor([b % below for b in data], dtype=torch.int64).reshape(tuple(shape))


@st.composite
def masks(draw: st.DrawFn, shape: Sequence[int]) -> Tensor:
    """A boolean tensor; the first row is wholly True or wholly False now and then.
    Shrinks to all True.
    """
    count = _numel(shape)
    data = draw(st.binary(min_size=count, max_size=count))
    mask = torch.tensor([b % 3 != 1 for b in data], dtype=torch.bool).reshape(tuple(shape))
    first = draw(st.sampled_from(["keep", "all", "none"])) if mask.dim() >= 2 else "keep"
    if first != "keep" and mask.numel():
        mask.flatten(0, -2)[0] = first == "all"
    return mask


def fill(
    module: nn.Module, seed: int = 0, like: Tensor | None = None, scale: float = 0.5
) -> nn.Module:
    """Give every parameter distinct random values, no weight 1, no bias 0; buffers stay.
    Returns the module.

    Values depend on the parameters' names and shapes only, so two modules with one state_dict
    layout come out equal.
    like: the tensor whose dtype and device the module takes; float64 without it.
    """
    module.to(torch.float64 if like is None else like.dtype)
    if like is not None:
        module.to(like.device)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            mixed = sum(ord(c) * (i + 1) for i, c in enumerate(name)) + 7919 * seed
            generator = torch.Generator().manual_seed(mixed)
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
            parameter.copy_(values + 0.1 * scale)
    return module


def _small_integers(draw: st.DrawFn, shape: Sequence[int]) -> Tensor:
    count = _numel(shape)
    data = draw(st.binary(min_size=count, max_size=count))
    # 0, 1, -1, 2, -2, ...: the simplest byte is the simplest number
    values = [(b % 9 + 1) // 2 * (1 if b % 9 % 2 else -1) for b in data]
    return torch.tensor(values, dtype=torch.float64).reshape(tuple(shape))


def _numel(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
