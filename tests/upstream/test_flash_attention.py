"""The oracle of FlashAttention against torch's own attention: its plain kernel and its flash
kernel.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from reference.systems import flash_attention as oracle

SEEDS = [0, 1, 2]
SIZES = [(7, 7, 4), (5, 11, 3), (1, 9, 8), (24, 33, 16)]


def numbers(*shape, seed):
    """Standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(nq, nk, d, seed):
    """Queries, keys and values of two sequences and three heads."""
    return [numbers(2, 3, n, d, seed=10 * seed + i) for i, n in enumerate((nq, nk, nk))]


def arrays(tensors):
    return [x.detach().numpy() for x in tensors]


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", SEEDS)
def test_attention_and_gradients_are_those_of_sdpa(seed, size, causal, scale, agrees):
    """o, dq, dk and dv are those of SDPBackend.MATH, causal at the lower right, in float64."""
    nq, nk, d = size
    inputs, do = qkv(*size, seed), numbers(2, 3, nq, d, seed=seed + 99)
    mask = torch.ones(nq, nk, dtype=torch.bool).tril(nk - nq) if causal else None
    leaves = [x.clone().requires_grad_() for x in inputs]
    with sdpa_kernel(SDPBackend.MATH):
        theirs = F.scaled_dot_product_attention(*leaves, attn_mask=mask, scale=scale)
    options = {"causal": causal, "scale": scale}
    agrees(oracle.flash_forward(*arrays(inputs), **options)[0], theirs)
    grads = torch.autograd.grad(theirs, leaves, do)
    ours = oracle.flash_backward(do.numpy(), *arrays(inputs), **options)
    for a, b in zip(ours, grads, strict=True):
        agrees(a, b)


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_without_keys_are_those_of_sdpa(seed, agrees):
    """Where fewer keys than queries leave rows empty, o and all gradients are zero there."""
    inputs, do = qkv(6, 4, 3, seed), numbers(2, 3, 6, 3, seed=seed + 99)
    leaves = [x.clone().requires_grad_() for x in inputs]
    mask = torch.ones(6, 4, dtype=torch.bool).tril(-2)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = F.scaled_dot_product_attention(*leaves, attn_mask=mask)
    agrees(oracle.flash_attention(*arrays(inputs), causal=True), theirs)
    grads = torch.autograd.grad(theirs, leaves, do)
    ours = oracle.flash_backward(do.numpy(), *arrays(inputs), causal=True)
    for a, b in zip(ours, grads, strict=True):
        agrees(a, b)


@pytest.mark.parametrize("size", [(5, 11), (11, 11), (3, 3)])
def test_the_causal_mask_is_the_lower_right_one_of_torch(size, agrees):
    """The pairs seen, and counted in flops, are those of torch's causal_lower_right."""
    nq, nk = size
    theirs = causal_lower_right(nq, nk)._materialize().double()
    ours = oracle.visible(nq, nk, 4, sram=8, causal=True, block_mask=None)
    agrees(ours.astype(float), theirs)
    pairs = oracle.flops(nq, nk, 4, causal=True, pass_="forward") / 16
    agrees(np.float64(pairs), theirs.sum())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [3, 16, 40])
@pytest.mark.parametrize("seed", SEEDS)
def test_statistics_are_those_of_the_flash_kernel(seed, n, causal, agrees):
    """m + log l is the logsumexp that torch's CPU flash kernel returns, and o its output."""
    inputs = qkv(n, n, 8, seed)
    o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *inputs, 0.0, causal, scale=0.4
    )
    ours, m, l = oracle.flash_forward(*arrays(inputs), causal=causal, scale=0.4)
    agrees(ours, o)
    agrees(m + np.log(l), lse)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_flash_kernel_has_the_same_backward(seed, agrees):
    """The gradients of torch's CPU flash kernel, recomputed from o and logsumexp, are ours."""
    inputs, do = qkv(12, 12, 8, seed), numbers(2, 3, 12, 8, seed=seed + 99)
    aten = torch.ops.aten
    o, lse = aten._scaled_dot_product_flash_attention_for_cpu(*inputs, 0.0, True)
    grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        do, *inputs, o, lse, 0.0, True
    )
    for a, b in zip(
        oracle.flash_backward(do.numpy(), *arrays(inputs), causal=True), grads, strict=True
    ):
        agrees(a, b)


@pytest.mark.parametrize("seed", SEEDS)
def test_dropout_is_that_of_sdpa_with_the_same_mask(seed, agrees):
    """torch's plain kernel, handed the mask that our hash draws, gives our o and gradients."""
    inputs, do = qkv(6, 9, 4, seed), numbers(2, 3, 6, 4, seed=seed + 99)
    leaves = [x.clone().requires_grad_() for x in inputs]
    kept = [[oracle.keeps(seed, i, j, 0.3) for j in range(9)] for i in range(6)]
    theirs, _ = torch.ops.aten._scaled_dot_product_attention_math(
        *leaves, dropout_p=0.3, dropout_mask=torch.tensor(kept)
    )
    options = {"dropout_p": 0.3, "seed": seed}
    agrees(oracle.flash_attention(*arrays(inputs), **options), theirs)
    grads = torch.autograd.grad(theirs, leaves, do)
    ours = oracle.flash_backward(do.numpy(), *arrays(inputs), **options)
    for a, b in zip(ours, grads, strict=True):
        agrees(a, b)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_hash_keeps_its_share(p, agrees):
    """Of 40000 places a share of 1 - p is kept, as torch's Bernoulli draws would be."""
    kept = [oracle.keeps(7, i, j, p) for i in range(200) for j in range(200)]
    drawn = torch.rand(200, 200, generator=torch.Generator().manual_seed(0)) >= p
    # four standard deviations of a difference of two such shares
    agrees(np.float64(np.mean(kept)), drawn.double().mean(), 4 * (2 * p * (1 - p) / 40000) ** 0.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_merging_is_that_of_torchs_logaddexp(seed, agrees):
    """The merged l is e^(logaddexp - m), and o the mean with the softmax of both logsumexps."""
    m1, m2 = numbers(4, 5, seed=seed), numbers(4, 5, seed=seed + 9)
    l1, l2 = (1 + numbers(4, 5, seed=seed + i).square() for i in (18, 27))
    o1, o2 = numbers(4, 5, 3, seed=seed + 36), numbers(4, 5, 3, seed=seed + 45)
    lse = torch.stack([m1 + l1.log(), m2 + l2.log()])
    m, l, o = oracle.merge_stats(*arrays((m1, l1, o1, m2, l2, o2)))
    agrees(m + np.log(l), torch.logaddexp(*lse))
    shares = lse.softmax(0)[..., None]
    agrees(o, shares[0] * o1 + shares[1] * o2)
