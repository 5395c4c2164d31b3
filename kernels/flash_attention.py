"""FlashAttention, forward and backward, as Triton kernels.

*Paper*  Dao et al. (2022), FlashAttention, arXiv:2205.14135, in the order of loops of Dao (2023),
FlashAttention-2, arXiv:2307.08691: read its section 3.1. The paper's exercise,
systems/flash_attention, comes first: a block there is a round of two loops, here it is a program.

*Why*  A program owns one block of queries and loops over the keys. Its output and its softmax stay
in registers until they are whole, each is written once, and no score ever leaves the chip. What is
left is arithmetic, so products go to the tensor cores, and only blocks that need a mask pay for it.

*Names*
    q, o; k, v      (B, H, Nq, D); (B, Hkv, Nk, D), bfloat16 or float16, with any strides
    lse             log sum exp of a row's scores, float32                              (B, H, Nq)
    delta           rowsum(do * o), float32                                             (B, H, Nq)
    group           H / Hkv, how many heads of queries share one head of keys
    M, N            `BLOCK_M`, `BLOCK_N`, the queries and the keys of a block
    s, p            scores and weights of one block                                         (M, N)
    top, total      a row's largest score, in base 2, and its sum of 2^(score - top)          (M,)
    causal          query i sees key j iff j <= i + (Nk - Nq): the last query sees every key

*Tasks*  flash_attention_fwd, with `_reach`, `_attend` and `_forward`; flash_attention_bwd, with
`_delta`, `_gather_queries`, `_key_gradients`, `_gather_keys` and `_query_gradients`.
What the private ones are is your affair: the two public functions are judged.

*Differs*  o is normalised once, at the end. A GPU has 2^x and no e^x, so scores are in base 2.
dq gets a kernel of its own, instead of atomic additions: seven products where five would do, but
the same answer every time.

*Cost*  of one head, when C blocks (i, j) hold a pair that is seen: ceil(Nq / M) ceil(Nk / N) of
them, and about half as many if causal. A block may have 64 to 128 queries and keys.
    forward     4 D M N C FLOPs      4 Nq D + 4 Nq + 4 N D C bytes
    delta                            4 Nq D + 4 Nq
    dk, dv      8 D M N C            8 Nk D + (4 D + 8) M C, the first term shared by a group
    dq          6 D M N C            6 Nq D + 8 Nq + 4 N D C

*Limits*  D is 16, 32, 64 or 128; scale is positive; no dropout, no bias, no second derivative.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDTHS = (16, 32, 64, 128)
DTYPES = (torch.bfloat16, torch.float16)
LOG2E = tl.constexpr(math.log2(math.e))


def configs(*rows: tuple[int, int, int, int]) -> list[triton.Config]:
    """What autotuning tries: (BLOCK_M, BLOCK_N, num_warps, num_stages) (given)."""
    return [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
        for m, n, warps, stages in rows
    ]


def check(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> float:
    """Refuse what the kernels do not take, and return the scale (given)."""
    shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or 0 in (*q.shape, *k.shape):
        raise ValueError(f"the shapes of q, k and v do not fit: {shapes}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(f"the shapes of q, k and v do not fit: {shapes}")
    if q.shape[3] not in WIDTHS:
        raise ValueError(f"D must be one of {WIDTHS}, got {q.shape[3]}")
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must share a 16-bit dtype: {q.dtype}, {k.dtype}, {v.dtype}")
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    return scale


def check_answers(do: Tensor, q: Tensor, o: Tensor, lse: Tensor) -> None:
    """Refuse do, o and lse that belong to no such q (given)."""
    if not do.shape == o.shape == q.shape or lse.shape != q.shape[:3]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (do, o, lse))
        raise ValueError(f"the shapes of do, o and lse do not fit q: {shapes}")
    if not do.dtype == o.dtype == q.dtype or lse.dtype != torch.float32:
        raise ValueError(f"do, o and lse have a wrong dtype: {do.dtype}, {o.dtype}, {lse.dtype}")


@triton.jit
def _place(n, heads, BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr):
    """The block of this program: its first row of n, its batch element and its head (given).

    Programs of one head are neighbours, and so are heads that share keys, which then stay in cache.
    LAST_FIRST: blocks with the most work go first where rows at the end have more of it.
    """
    blocks = tl.cdiv(n, BLOCK)
    block, pair = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    if LAST_FIRST:
        block = blocks - 1 - block
    return block * BLOCK, pair // heads, pair % heads


@triton.jit
def _tile(X, strides, batch, head, rows, DIM: tl.constexpr):
    """The addresses of some rows of one head, [ROWS, DIM], in 64 bits (given)."""
    X += tl.cast(batch, tl.int64) * strides[0] + tl.cast(head, tl.int64) * strides[1]
    X += tl.cast(rows, tl.int64)[:, None] * strides[2]
    return X + tl.cast(tl.arange(0, DIM), tl.int64)[None, :] * strides[3]


@triton.jit
def _load(X, rows, n, MASKED: tl.constexpr):
    """The tile at X, [ROWS, DIM]; if MASKED, zeros for rows from n on (given)."""
    return tl.load(X, mask=rows[:, None] < n, other=0.0) if MASKED else tl.load(X)


@triton.jit
def _reach(row, nq, nk, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which keys the queries row ... row + BLOCK_M - 1 see: (last, whole, stop).

    last [BLOCK_M]: the last key that each sees, -1 or less for none.  whole: below it every query
    sees every key, a multiple of BLOCK_N.  stop: from it on none sees any; neither exceeds nk.
    """
    # Task: last from the rule of `causal`; whole from the first query, stop from the last one.
    last = tl.zeros([BLOCK_M], tl.int32) + nk - 1
    whole, stop = nk, nk
    if CAUSAL:
        last = row + tl.arange(0, BLOCK_M) + nk - nq
        whole = tl.minimum(nk, tl.maximum(0, row + 1 + nk - nq))
        stop = tl.minimum(nk, tl.maximum(0, row + BLOCK_M + nk - nq))
    return last, whole // BLOCK_N * BLOCK_N, stop


@triton.jit
def _attend(
    acc, total, top, q, K, V, k_stride, v_stride, last, start, stop, nk, scale,
    MASKED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Let a block of queries meet the keys start ... stop - 1, and return (acc, total, top).

    acc [BLOCK_M, DIM]: sum of 2^(score - top) v so far, float32; total and top [BLOCK_M] as above.
    K, V: the addresses of the first BLOCK_N keys, [BLOCK_N, DIM]; the next are `stride` further.
    last: as in `_reach`.  scale: times log2(e).  MASKED: look at `last` and nk.
    """
    # Task: for every block of keys: scores, a new maximum, weights; rescale, add.
    for first in range(start, stop, BLOCK_N):
        cols = first + tl.arange(0, BLOCK_N)
        k = _load(K + tl.cast(first, tl.int64) * k_stride, cols, nk, MASKED)
        s = tl.dot(q, tl.trans(k))  # [BLOCK_M, BLOCK_N]
        if MASKED:
            s = tl.where(cols[None, :] <= last[:, None], s, float("-inf"))
        new = tl.maximum(top, tl.max(s, 1) * scale)
        base = new
        if MASKED:  # a row that has seen no key yet: -inf - -inf is nan
            base = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp2(s * scale - base[:, None])
        keep = tl.exp2(top - base)
        total = total * keep + tl.sum(p, 1)
        v = _load(V + tl.cast(first, tl.int64) * v_stride, cols, nk, MASKED)
        acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None])
        top = new
    return acc, total, top


@triton.autotune(
    configs((128, 64, 8, 3), (128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 4, 3), (64, 64, 4, 3)),
    key=["CAUSAL", "DIM"],
)
@triton.jit
def _forward(
    Q, K, V, O, LSE, q_strides, k_strides, v_strides, o_strides, heads, group, nq, nk, scale,
    CAUSAL: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_M queries of one head, and writes their o and lse.

    Strides have four numbers each, LSE is contiguous. The grid is one axis: see `_place`.
    """
    # Task: load q; `_attend` to whole blocks, then to masked ones; normalise, store o and lse.
    row, batch, head = _place(nq, heads, BLOCK_M, True)
    rows = row + tl.arange(0, BLOCK_M)
    q = _load(_tile(Q, q_strides, batch, head, rows, DIM), rows, nq, True)  # [BLOCK_M, DIM]
    K = _tile(K, k_strides, batch, head // group, tl.arange(0, BLOCK_N), DIM)
    V = _tile(V, v_strides, batch, head // group, tl.arange(0, BLOCK_N), DIM)
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    last, whole, stop = _reach(row, nq, nk, CAUSAL, BLOCK_M, BLOCK_N)
    acc, total, top = _attend(
        acc, total, top, q, K, V, k_strides[2], v_strides[2], last, 0, whole, nk, scale * LOG2E,
        False, BLOCK_N,
    )  # fmt: skip
    acc, total, top = _attend(
        acc, total, top, q, K, V, k_strides[2], v_strides[2], last, whole, stop, nk, scale * LOG2E,
        True, BLOCK_N,
    )  # fmt: skip
    total = tl.where(total == 0.0, 1.0, total)  # of a row that sees no key
    o = (acc / total[:, None]).to(O.dtype.element_ty)  # [BLOCK_M, DIM]
    inside = rows < nq
    tl.store(_tile(O, o_strides, batch, head, rows, DIM), o, mask=inside[:, None])
    LSE += (tl.cast(batch, tl.int64) * heads + head) * nq
    tl.store(LSE + rows, (top + tl.log2(total)) / LOG2E, mask=inside)


def flash_attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """(B, H, Nq, D), (B, Hkv, Nk, D) twice -> o (B, H, Nq, D) as q, lse (B, H, Nq) float32.

    s_ij = scale q_i . k_j where i sees j,  lse_i = log sum_j exp(s_ij)
    o_i = sum_j exp(s_ij - lse_i) v_j                                 [arXiv:2307.08691, Alg. 1]

    Head h attends to head h // group of k and v. A row that sees no key has o = 0 and lse = -inf.
    Scores, weights until they meet v, and sums are float32; both products take 16-bit tiles.
    Nothing is made besides the answers, but for 8 bytes a row.

    ValueError: shapes ("shapes", with all three), D ("D must be"), dtypes ("dtype"), and a scale
    that is not positive and finite ("scale"), each with the value.
    """
    # Task: check; make the answers; one launch, of a program for every block of queries and head.
    scale = check(q, k, v, scale)
    (b, h, nq, d), (_, hkv, nk, _) = q.shape, k.shape
    o, lse = torch.empty_like(q), q.new_empty(b, h, nq, dtype=torch.float32)
    strides = [x.stride() for x in (q, k, v, o)]
    _forward[lambda meta: (b * h * triton.cdiv(nq, meta["BLOCK_M"]),)](
        q, k, v, o, lse, *strides, h, h // hkv, nq, nk, scale, CAUSAL=causal, DIM=d
    )
    return o, lse


@triton.jit
def _delta(
    DO, O, DELTA, do_strides, o_strides, heads, nq, DIM: tl.constexpr, BLOCK_M: tl.constexpr
):
    """A program owns BLOCK_M rows of one head, and writes their delta, rowsum(do * o)."""
    # Task: two tiles, multiplied in float32 and summed along a row.
    row, batch, head = _place(nq, heads, BLOCK_M, False)
    rows = row + tl.arange(0, BLOCK_M)
    do = _load(_tile(DO, do_strides, batch, head, rows, DIM), rows, nq, True).to(tl.float32)
    o = _load(_tile(O, o_strides, batch, head, rows, DIM), rows, nq, True).to(tl.float32)
    DELTA += (tl.cast(batch, tl.int64) * heads + head) * nq
    tl.store(DELTA + rows, tl.sum(do * o, 1), mask=rows < nq)


@triton.jit
def _gather_queries(
    dk, dv, k, v, Q, DO, LSE, DELTA, q_stride, do_stride, earliest, start, stop, nq, scale,
    MASKED: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Let a block of keys meet the queries start ... stop - 1 of one head, and return (dk, dv).

    dk, dv [BLOCK_N, DIM]: sums so far, float32, dk without its scale.  Q, DO: as K and V in
    `_attend`.  LSE, DELTA: of that head.  earliest [BLOCK_N]: the first query that sees each key.
    scale: times log2(e).  MASKED: look at `earliest`; at nq always.
    """
    # Task: s^T = k q^T, so that keys stay in rows; p^T; dv += p^T do; dp^T; ds^T; dk += ds^T q.
    for first in range(start, stop, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        inside = rows < nq
        q = _load(Q + tl.cast(first, tl.int64) * q_stride, rows, nq, True)  # [BLOCK_M, DIM]
        do = _load(DO + tl.cast(first, tl.int64) * do_stride, rows, nq, True)
        s = tl.dot(k, tl.trans(q)) * scale  # [BLOCK_N, BLOCK_M]
        # loaded where it is needed, so that no registers hold it before
        lse = tl.load(LSE + rows, mask=inside, other=float("inf")) * LOG2E
        s -= lse[None, :]
        if MASKED:
            s = tl.where(rows[None, :] >= earliest[:, None], s, float("-inf"))
        p = tl.exp2(s)
        dv = tl.dot(p.to(do.dtype), do, dv)
        dp = tl.dot(v, tl.trans(do))
        delta = tl.load(DELTA + rows, mask=inside, other=0.0)
        dk = tl.dot((p * (dp - delta[None, :])).to(q.dtype), q, dk)
    return dk, dv


@triton.autotune(configs((32, 128, 8, 3), (64, 128, 8, 2), (64, 64, 4, 2)), key=["CAUSAL", "DIM"])
@triton.jit
def _key_gradients(
    DO, Q, K, V, LSE, DELTA, DK, DV, do_strides, q_strides, k_strides, v_strides, dk_strides,
    dv_strides, heads, group, nq, nk, scale,
    CAUSAL: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_N keys of one head of keys, and writes their dk and dv.

    heads: of queries. It loops over the group of them that shares the keys.
    """
    # Task: load k, v; `earliest`, and the queries from which on every key is seen; for every head
    # of the group the masked queries, then the others; store dk, with its scale, and dv.
    col, batch, shared = _place(nk, heads // group, BLOCK_N, False)
    cols = col + tl.arange(0, BLOCK_N)
    k = _load(_tile(K, k_strides, batch, shared, cols, DIM), cols, nk, True)  # [BLOCK_N, DIM]
    v = _load(_tile(V, v_strides, batch, shared, cols, DIM), cols, nk, True)
    dk = tl.zeros([BLOCK_N, DIM], tl.float32)
    dv = tl.zeros([BLOCK_N, DIM], tl.float32)
    earliest, start, whole = tl.zeros([BLOCK_N], tl.int32), 0, 0
    if CAUSAL:
        earliest = cols + nq - nk
        start = tl.maximum(0, col + nq - nk) // BLOCK_M * BLOCK_M
        whole = tl.cdiv(tl.maximum(0, col + BLOCK_N - 1 + nq - nk), BLOCK_M) * BLOCK_M
    for head in range(shared * group, shared * group + group):
        q_tile = _tile(Q, q_strides, batch, head, tl.arange(0, BLOCK_M), DIM)
        do_tile = _tile(DO, do_strides, batch, head, tl.arange(0, BLOCK_M), DIM)
        skip = (tl.cast(batch, tl.int64) * heads + head) * nq
        dk, dv = _gather_queries(
            dk, dv, k, v, q_tile, do_tile, LSE + skip, DELTA + skip, q_strides[2], do_strides[2],
            earliest, start, tl.minimum(whole, nq), nq, scale * LOG2E, True, BLOCK_M,
        )  # fmt: skip
        dk, dv = _gather_queries(
            dk, dv, k, v, q_tile, do_tile, LSE + skip, DELTA + skip, q_strides[2], do_strides[2],
            earliest, whole, nq, nq, scale * LOG2E, False, BLOCK_M,
        )  # fmt: skip
    dk, dv = (dk * scale).to(DK.dtype.element_ty), dv.to(DV.dtype.element_ty)
    inside = cols[:, None] < nk
    tl.store(_tile(DK, dk_strides, batch, shared, cols, DIM), dk, mask=inside)
    tl.store(_tile(DV, dv_strides, batch, shared, cols, DIM), dv, mask=inside)


@triton.jit
def _gather_keys(
    dq, q, do, lse, delta, K, V, k_stride, v_stride, last, start, stop, nk, scale,
    MASKED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Let a block of queries meet the keys start ... stop - 1 again, and return dq.

    dq [BLOCK_M, DIM]: the sum so far, float32, without its scale.  lse [BLOCK_M]: in base 2.
    The others as in `_attend`.
    """
    # Task: scores once more; p; dp = do v^T; ds; dq += ds k.
    for first in range(start, stop, BLOCK_N):
        cols = first + tl.arange(0, BLOCK_N)
        k = _load(K + tl.cast(first, tl.int64) * k_stride, cols, nk, MASKED)
        v = _load(V + tl.cast(first, tl.int64) * v_stride, cols, nk, MASKED)
        s = tl.dot(q, tl.trans(k)) * scale - lse[:, None]  # [BLOCK_M, BLOCK_N]
        if MASKED:
            s = tl.where(cols[None, :] <= last[:, None], s, float("-inf"))
        ds = tl.exp2(s) * (tl.dot(do, tl.trans(v)) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq)
    return dq


@triton.autotune(configs((128, 64, 8, 2), (64, 64, 4, 2), (128, 32, 8, 3)), key=["CAUSAL", "DIM"])
@triton.jit
def _query_gradients(
    DO, Q, K, V, LSE, DELTA, DQ, do_strides, q_strides, k_strides, v_strides, dq_strides,
    heads, group, nq, nk, scale,
    CAUSAL: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_M queries of one head, and writes their dq."""
    # Task: load q, do, lse and delta; the two loops of `_forward`; store dq, with its scale.
    row, batch, head = _place(nq, heads, BLOCK_M, True)
    rows = row + tl.arange(0, BLOCK_M)
    inside = rows < nq
    q = _load(_tile(Q, q_strides, batch, head, rows, DIM), rows, nq, True)  # [BLOCK_M, DIM]
    do = _load(_tile(DO, do_strides, batch, head, rows, DIM), rows, nq, True)
    skip = (tl.cast(batch, tl.int64) * heads + head) * nq
    lse = tl.load(LSE + skip + rows, mask=inside, other=float("inf")) * LOG2E  # [BLOCK_M]
    delta = tl.load(DELTA + skip + rows, mask=inside, other=0.0)
    K = _tile(K, k_strides, batch, head // group, tl.arange(0, BLOCK_N), DIM)
    V = _tile(V, v_strides, batch, head // group, tl.arange(0, BLOCK_N), DIM)
    dq = tl.zeros([BLOCK_M, DIM], tl.float32)
    last, whole, stop = _reach(row, nq, nk, CAUSAL, BLOCK_M, BLOCK_N)
    dq = _gather_keys(
        dq, q, do, lse, delta, K, V, k_strides[2], v_strides[2], last, 0, whole, nk,
        scale * LOG2E, False, BLOCK_N,
    )  # fmt: skip
    dq = _gather_keys(
        dq, q, do, lse, delta, K, V, k_strides[2], v_strides[2], last, whole, stop, nk,
        scale * LOG2E, True, BLOCK_N,
    )  # fmt: skip
    dq = (dq * scale).to(DQ.dtype.element_ty)
    tl.store(_tile(DQ, dq_strides, batch, head, rows, DIM), dq, mask=inside[:, None])


def flash_attention_bwd(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of sum(do * o): do and o (B, H, Nq, D) -> dq, dk, dv as q, k, v.

    p_ij = exp(s_ij - lse_i),  dv_j = sum_i p_ij do_i,  ds_ij = p_ij (do_i . v_j - delta_i)
    dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i       [arXiv:2307.08691, Alg. 2]

    o and lse are as flash_attention_fwd returned them, the keywords as it was given them. Sums over
    i go over all heads that share the key. Rows that see no key have the gradient 0 and give none.
    p and ds are float32 until they meet a 16-bit tile. Besides the answers 8 bytes a row may be
    made, and a float32 sum of the size of dq.

    ValueError: as flash_attention_fwd; and do or o of another shape or dtype than q, or an lse that
    is not float32 (B, H, Nq) ("do, o and lse", with their shapes or dtypes).
    """
    # Task: check; delta; then dk and dv, and dq, each a launch.
    scale = check(q, k, v, scale)
    check_answers(do, q, o, lse)
    (b, h, nq, d), (_, hkv, nk, _) = q.shape, k.shape
    lse = lse.contiguous()
    dq, dk, dv, delta = (torch.empty_like(x) for x in (q, k, v, lse))
    _delta[(b * h * triton.cdiv(nq, 128),)](
        do, o, delta, do.stride(), o.stride(), h, nq, DIM=d, BLOCK_M=128, num_warps=8
    )
    strides = [x.stride() for x in (do, q, k, v)]
    sizes = (h, h // hkv, nq, nk, scale)
    _key_gradients[lambda meta: (b * hkv * triton.cdiv(nk, meta["BLOCK_N"]),)](
        do, q, k, v, lse, delta, dk, dv, *strides, dk.stride(), dv.stride(), *sizes,
        CAUSAL=causal, DIM=d,
    )  # fmt: skip
    _query_gradients[lambda meta: (b * h * triton.cdiv(nq, meta["BLOCK_M"]),)](
        do, q, k, v, lse, delta, dq, *strides, dq.stride(), *sizes, CAUSAL=causal, DIM=d
    )
    return dq, dk, dv


class FlashAttention(torch.autograd.Function):
    """The two as one that autograd can use (given)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None
    ) -> Tensor:
        o, lse = flash_attention_fwd(q, k, v, causal=causal, scale=scale)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.options = {"causal": causal, "scale": scale}
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        return *flash_attention_bwd(do, *ctx.saved_tensors, **ctx.options), None, None


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """Attention, differentiable once: the o of flash_attention_fwd (given)."""
    return FlashAttention.apply(q, k, v, causal, scale)
