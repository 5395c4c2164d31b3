"""Oracle of FlashAttention: every row of scores whole, in float64.

Rows are softmaxed one by one with math.fsum; gradients multiply by the Jacobian of each row's
softmax; the dropout hash is evaluated place by place on Python integers; traffic is added up along
the loops, and pairs are counted one at a time.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def merge_stats(
    m1: Array, l1: Array, o1: Array, m2: Array, l2: Array, o2: Array
) -> tuple[Array, Array, Array]:
    """Row by row: both sides as one set of terms exp(m) l, each with its value o."""
    m, l, o = np.empty_like(m1), np.empty_like(l1), np.empty_like(o1)
    for row in np.ndindex(m1.shape):
        m[row] = max(m1[row], m2[row])
        sides = [(m1[row], l1[row], o1[row]), (m2[row], l2[row], o2[row])]
        terms = [(lx * math.exp(mx - m[row]), ox) for mx, lx, ox in sides if lx > 0]
        l[row] = math.fsum(weight for weight, _ in terms)
        o[row] = sum((weight / l[row] * ox for weight, ox in terms), start=np.zeros(o.shape[-1]))
    return m, l, o


def block_sizes(sram: int, d: int) -> tuple[int, int]:
    """The smallest Bc whose four blocks of width d fill the chip, and Br, no larger than d."""
    bc = math.ceil(Fraction(sram, 4 * d))
    return (d if d < bc else bc), bc


def keeps(seed: int, row: int, col: int, p: float) -> bool:
    """Whether dropout keeps the weight of one place: three rounds of a 32-bit mixer."""
    low = 2**32

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D % low
        x = (x ^ x >> 15) * 0x846CA68B % low
        return x ^ x >> 16

    return mix(mix(mix((seed + 0x9E3779B9) % low) ^ row) ^ col) >= math.floor(p * low)


def visible(
    nq: int, nk: int, d: int, *, sram: int, causal: bool, block_mask: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """Which query sees which key, (nq, nk): the last query sees the last key."""
    br, bc = block_sizes(sram, d)
    seen = np.ones((nq, nk), dtype=bool)
    if not causal and block_mask is None:
        return seen
    for i, j in np.ndindex(nq, nk):
        if causal and nk - 1 - j < nq - 1 - i:
            seen[i, j] = False
        if block_mask is not None and not block_mask[i // br, j // bc]:
            seen[i, j] = False
    return seen


def dropped(nq: int, nk: int, dropout_p: float, seed: int) -> Array:
    """Z: 0 where a weight is dropped, 1 / (1 - p) where it is kept."""
    if dropout_p == 0:
        return np.ones((nq, nk))
    kept = [[keeps(seed, i, j, dropout_p) for j in range(nk)] for i in range(nq)]
    return np.array(kept, dtype=np.float64).reshape(nq, nk) / (1 - dropout_p)


def scores(q: Array, k: Array, seen: NDArray[np.bool_], tau: float) -> Array:
    """S of one head, -inf where a key is not seen."""
    return np.where(seen, tau * np.einsum("id,jd->ij", q, k), -math.inf)


def row_softmax(row: Array) -> tuple[float, float, Array]:
    """The maximum, the sum and the weights of one row of scores; (-inf, 0, 0) without keys."""
    m = float(row.max())
    if m == -math.inf:
        return m, 0.0, np.zeros_like(row)
    terms = [math.exp(s - m) for s in row]
    l = math.fsum(terms)
    return m, l, np.array(terms) / l


def heads(*inputs: Array) -> tuple[tuple[int, ...], list[Array]]:
    """The common leading axes, and every input broadcast to them."""
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in inputs))
    return lead, [np.broadcast_to(x, lead + x.shape[-2:]) for x in inputs]


def flash_forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    sram: int = 16384,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    block_mask: NDArray[np.bool_] | None = None,
) -> tuple[Array, Array, Array]:
    """o, m and l; sram only says how large the blocks of block_mask are."""
    (nq, d), nk = q.shape[-2:], k.shape[-2]
    tau = d**-0.5 if scale is None else scale
    seen = visible(nq, nk, d, sram=sram, causal=causal, block_mask=block_mask)
    z = dropped(nq, nk, dropout_p, seed)
    lead, (q, k, v) = heads(q, k, v)
    o, m, l = np.zeros((*lead, nq, d)), np.zeros((*lead, nq)), np.zeros((*lead, nq))
    for head in np.ndindex(lead):
        for i, row in enumerate(scores(q[head], k[head], seen, tau)):
            m[*head, i], l[*head, i], p = row_softmax(row)
            o[*head, i] = (p * z[i]) @ v[head]
    return o, m, l


def flash_attention(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """The first of the three."""
    return flash_forward(q, k, v, **options)[0]


def flash_backward(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    sram: int = 16384,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    block_mask: NDArray[np.bool_] | None = None,
) -> tuple[Array, Array, Array]:
    """The gradients of sum(do * o), through the Jacobian diag(P) - P P^T of each row's softmax."""
    shapes = [x.shape for x in (q, k, v)]
    (nq, d), nk = q.shape[-2:], k.shape[-2]
    tau = d**-0.5 if scale is None else scale
    seen = visible(nq, nk, d, sram=sram, causal=causal, block_mask=block_mask)
    z = dropped(nq, nk, dropout_p, seed)
    lead, (do, q, k, v) = heads(do, q, k, v)
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for head in np.ndindex(lead):
        for i, row in enumerate(scores(q[head], k[head], seen, tau)):
            p = row_softmax(row)[2]
            ds = (np.diag(p) - np.outer(p, p)) @ (z[i] * (v[head] @ do[*head, i]))
            dq[*head, i] = tau * ds @ k[head]
            dk[head] += tau * np.outer(ds, q[*head, i])
            dv[head] += np.outer(p * z[i], do[*head, i])
    dq, dk, dv = (unbroadcast(x, s) for x, s in zip((dq, dk, dv), shapes, strict=True))
    return dq, dk, dv


def unbroadcast(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an input of this shape was repeated."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    repeated = tuple(a for a in range(x.ndim) if shape[a] == 1 and x.shape[a] > 1)
    return x.sum(axis=repeated, keepdims=True)


def logsumexp(q: Array, k: Array, *, causal: bool, scale: float) -> Array:
    """log sum exp of each row of masked scores of one head, from its largest term."""
    seen = visible(len(q), len(k), 1, sram=1, causal=causal, block_mask=None)
    return np.array([np.logaddexp.reduce(row) for row in scores(q, k, seen, scale)])


def walk(
    nq: int,
    nk: int,
    d: int,
    *,
    sram: int,
    causal: bool = False,
    block_mask: NDArray[np.bool_] | None = None,
) -> dict[str, int]:
    """What Alg. 1 moves, along its loops; `least` leaves out the keys that no block needs.

    `blocks` counts those computed, `all_blocks` all.
    """
    br, bc = block_sizes(sram, d)
    whole = not causal and block_mask is None
    seen = visible(nq, nk, d, sram=sram, causal=causal, block_mask=block_mask)
    moved = dict.fromkeys(("reads", "least", "writes", "blocks", "all_blocks"), 0)
    for j in range(0, nk, bc):
        used = False
        for i in range(0, nq, br):
            moved["all_blocks"] += 1
            if whole or seen[i : i + br, j : j + bc].any():
                used = True
                rows = min(br, nq - i)
                moved["blocks"] += 1
                moved["least"] += rows * (2 * d + 2)
                moved["writes"] += rows * (d + 2)
        moved["least"] += 2 * d * min(bc, nk - j) * used
        moved["reads"] += 2 * d * min(bc, nk - j) * (not used)
    moved["reads"] += moved["least"]
    return moved


def hbm_accesses(
    n: int, d: int, *, sram: int, algorithm: str, sparsity: float = 1.0
) -> dict[str, int]:
    """Each tensor that crosses, added up; of a sparse run a share of what the inner loop moves."""
    if algorithm == "standard":
        steps = (((n * d, n * d), n * n), ((n * n,), n * n), ((n * n, n * d), n * d))
        return {
            "reads": sum(sum(inputs) for inputs, _ in steps),
            "writes": sum(output for _, output in steps),
        }
    path = walk(n, n, d, sram=sram)
    keys = 2 * n * d
    if algorithm == "flash":
        return {"reads": path["reads"], "writes": path["writes"]}
    share = Fraction(sparsity)
    return {
        "reads": round(keys + share * (path["reads"] - keys)),
        "writes": round(n * d + share * path["writes"]),
    }


def flops(nq: int, nk: int, d: int, *, causal: bool, pass_: str) -> int:
    """Product by product, pair by pair: a multiplication and an addition a feature."""
    products = {
        "forward": ("S", "O"),
        "backward": ("dV", "dP", "dQ", "dK"),
        "backward_recompute": ("S", "dV", "dP", "dQ", "dK"),
    }
    count = 0
    for _ in products[pass_]:
        for i in range(nq):
            for j in range(nk):
                if not causal or nk - 1 - j >= nq - 1 - i:
                    count += 2 * d
    return count
