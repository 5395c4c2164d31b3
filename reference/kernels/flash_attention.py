"""Oracle of the FlashAttention kernels: every row of scores whole, in float64.

A query's softmax runs over the keys it sees and no others; its gradient goes through the Jacobian
of that softmax, without delta. Costs are added up block by block.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def seen(i: int, nq: int, nk: int, causal: bool) -> int:
    """How many keys query i sees, the first ones: the last query sees them all."""
    return max(0, nk - (nq - 1 - i)) if causal else nk


def flash_attention_fwd(
    q: Array, k: Array, v: Array, *, causal: bool = False, scale: float | None = None
) -> tuple[Array, Array]:
    """o and lse, query by query."""
    (b, h, nq, d), (hkv, nk) = q.shape, k.shape[1:3]
    scale = d**-0.5 if scale is None else scale
    o, lse = np.zeros(q.shape), np.full((b, h, nq), -math.inf)
    for batch, head, i in np.ndindex(b, h, nq):
        n, shared = seen(i, nq, nk, causal), head * hkv // h
        if n:
            s = scale * (k[batch, shared, :n] @ q[batch, head, i])
            lse[batch, head, i] = np.logaddexp.reduce(s)
            o[batch, head, i] = np.exp(s - lse[batch, head, i]) @ v[batch, shared, :n]
    return o, lse


def flash_attention_bwd(
    do: Array, q: Array, k: Array, v: Array, *, causal: bool = False, scale: float | None = None
) -> tuple[Array, Array, Array]:
    """dq, dk and dv of sum(do * o), each row through the Jacobian diag(p) - p p^T."""
    (b, h, nq, d), (hkv, nk) = q.shape, k.shape[1:3]
    scale = d**-0.5 if scale is None else scale
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for batch, head, i in np.ndindex(b, h, nq):
        n, shared = seen(i, nq, nk, causal), head * hkv // h
        if n:
            row, keys = q[batch, head, i], k[batch, shared, :n]
            s = scale * (keys @ row)
            p = np.exp(s - np.logaddexp.reduce(s))
            dp = v[batch, shared, :n] @ do[batch, head, i]
            ds = scale * (p * dp - p * (p @ dp))
            dq[batch, head, i] = ds @ keys
            dk[batch, shared, :n] += np.outer(ds, row)
            dv[batch, shared, :n] += np.outer(p, do[batch, head, i])
    return dq, dk, dv


def pairs(nq: int, nk: int, causal: bool) -> int:
    """How many pairs of a query and a key that it sees there are in one head."""
    return sum(min(nk, seen(i, nq, nk, causal)) for i in range(nq))


def blocks(nq: int, nk: int, m: int, n: int, causal: bool) -> int:
    """How many blocks of m queries and n keys hold a pair that is seen."""
    return sum(
        seen(min(i + m, nq) - 1, nq, nk, causal) > j
        for i in range(0, nq, m)
        for j in range(0, nk, n)
    )


def flops(
    heads: int, nq: int, nk: int, d: int, *, causal: bool, products: int, m: int, n: int
) -> int:
    """What so many products cost, when every block that holds a pair that is seen is computed."""
    return heads * products * 2 * d * m * n * blocks(nq, nk, m, n, causal)


def traffic(
    heads: int, hkv: int, nq: int, nk: int, d: int, *, causal: bool, own: int, other: int
) -> dict[str, int]:
    """Bytes that cross, forward and backward, where a program owns a block of `own` queries, or
    keys, and loops over blocks of `other` keys, or queries.

    heads, hkv: heads of queries and of keys, of all batch elements together.
    """
    row, key, number = 2 * nq * d, 2 * nk * d, 4 * nq
    keys_again = blocks(nq, nk, own, other, causal) * other * 2 * 2 * d
    queries_again = blocks(nq, nk, other, own, causal) * other * (2 * 2 * d + 2 * 4)
    forward = 2 * row + number + keys_again  # q, o; lse; k, v
    delta = 2 * row + number  # do, o; delta
    dkdv = heads * queries_again + hkv * 4 * key  # q, do, lse, delta; k, v, dk, dv
    dq = 3 * row + 2 * number + keys_again  # q, do, dq; lse, delta; k, v
    return {"forward": heads * forward, "backward": heads * (delta + dq) + dkdv}
