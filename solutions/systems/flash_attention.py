"""FlashAttention: exact attention that never stores its scores.

*Paper*  Dao, Fu, Ermon, Rudra, Ré (2022), FlashAttention: Fast and Memory-Efficient Exact
Attention with IO-Awareness, arXiv:2205.14135. Read sections 2 and 3.1 first, then 3.2 and 3.3,
then appendix B. Attention Is All You Need comes before it.

*Why*  A GPU computes faster than it can fetch: large slow memory (HBM), small fast memory on the
chip (SRAM). Plain attention writes N x N scores to HBM and reads them back, twice. Here blocks of
Q, K and V that fit the chip meet there, and a softmax over all keys grows block by block from two
numbers a row. Backward computes the scores again instead of keeping them: more arithmetic, and
still less time. The paper's GPT-2 medium (Fig. 2, left): GFLOPs 66.6 -> 75.2, HBM 40.3 -> 4.4 GB,
41.7 -> 7.3 ms.

*Names*
    Q, K, V, O      q (..., Nq, d), k, v (..., Nk, d), o (..., Nq, d); leading axes broadcast
    S, P            scores and weights of one block                                      (Br, Bc)
    m, l            a row's largest score, and its sum of exp(score - m)                 (..., Nq)
    tau             `scale`, 1 / sqrt(d) unless given
    M               `sram`, the elements that fit the chip
    Br, Bc          rows and columns of a block, of Q and of K and V; i and j count such blocks
    Tc              ceil(Nk / Bc), the number of blocks of K and V
    Z               the dropout mask, 0 or 1 / (1 - dropout_p)
    D               `delta`, rowsum(dO * O)                                              (..., Nq)
    causal          query i sees key j iff j <= i + (Nk - Nq): the last query sees every key

*Tasks*  merge_stats, block_sizes, flash_forward, flash_backward, FlashAttention, flash_attention,
hbm_accesses, flops.

*Differs*  The paper draws dropout from a random generator and rewinds it; here a hash of the seed,
the row and the column decides, so that any tiling draws the same mask. One mask serves all leading
axes. On paper, queries and keys are equally many.

*Limits*  float32 and float64, one thread, loops in Python: this shows what is moved, not how fast.
Counting HBM, we take the starting values of o, m and l as given.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ALGORITHMS = ("standard", "flash", "block_sparse")


class HBM:
    """The large memory, which counts the elements that leave it and come back (given)."""

    def __init__(self) -> None:
        self.reads = 0
        self.writes = 0

    def load(self, t: Tensor) -> Tensor:
        """A copy of t, on the chip."""
        self.reads += t.numel()
        return t.clone()

    def store(self, dst: Tensor, v: Tensor) -> None:
        """Write v over dst, a tensor in HBM or a slice of one."""
        self.writes += dst.numel()
        dst.copy_(v)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, hbm: HBM) -> Tensor:
    """What the paper starts from, (N, d) three times -> (N, d)  [Alg. 0] (given, to be compared)"""
    s, p, o = q.new_empty(len(q), len(k)), q.new_empty(len(q), len(k)), torch.empty_like(q)
    hbm.store(s, hbm.load(q) @ hbm.load(k).T / math.sqrt(q.shape[-1]))
    hbm.store(p, torch.softmax(hbm.load(s), dim=-1))
    hbm.store(o, hbm.load(p) @ hbm.load(v))
    return o


def keep_mask(seed: int, rows: Tensor, cols: Tensor, p: float) -> Tensor:
    """Which weights dropout keeps: row numbers (r,), column numbers (c,) -> (r, c) bool (given).

    Each is kept with probability 1 - p, and that of one place depends on seed, row and column only.
    """

    def mix(x):  # a 32-bit mixer, for an integer as for a tensor of them
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = (x ^ (x >> shift)) * factor & 0xFFFFFFFF
        return x

    start = mix(seed + 0x9E3779B9 & 0xFFFFFFFF)
    return mix(mix(start ^ rows[:, None]) ^ cols) >= int(p * 2**32)


def tiles(n: int, size: int, like: Tensor) -> list[tuple[slice, Tensor]]:
    """Cut 0 ... n - 1 into blocks of `size`, the last perhaps shorter (given).

    Each block as a slice and as its numbers, int64 on the device of `like`.
    """
    cuts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    return [(cut, torch.arange(cut.start, cut.stop, device=like.device)) for cut in cuts]


def check(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> None:
    """Refuse no keys, shapes that do not fit, and a dropout_p outside [0, 1) (given)."""
    if k.shape[-2] == 0:
        raise ValueError("there are no keys to attend to")
    if k.shape[-1] != q.shape[-1] or v.shape[-2:] != k.shape[-2:]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"the shapes of q, k and v do not fit: {shapes}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must lie in [0, 1), got {dropout_p}")


def merge_stats(
    m1: Tensor, l1: Tensor, o1: Tensor, m2: Tensor, l2: Tensor, o2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The softmax over two sets of keys from that over each: (..., N), (..., N), (..., N, d) twice.

    m = max(m1, m2),  l = e^(m1 - m) l1 + e^(m2 - m) l2
    o = (e^(m1 - m) l1 o1 + e^(m2 - m) l2 o2) / l            [Sec. 3.1; Alg. 1, lines 11 and 12]

    o1 and o2 are normalised: each is a weighted mean of values already, and so is o.
    Returns (m, l, o). (-inf, 0, 0), what a row has before its first key, is the identity on either
    side; two of them give (-inf, 0, 0), never NaN. Right for maxima that are 1e4 apart.
    """
    # Task: measure both sums from the larger maximum, add, and divide once. What is -inf - -inf?
    m = torch.maximum(m1, m2)
    base = m.masked_fill(m == -math.inf, 0.0)
    w1, w2 = torch.exp(m1 - base) * l1, torch.exp(m2 - base) * l2
    l = w1 + w2
    total = l.masked_fill(l == 0, 1.0)
    return m, l, (w1[..., None] * o1 + w2[..., None] * o2) / total[..., None]


def block_sizes(sram: int, d: int) -> tuple[int, int]:
    """How much of Q, and of K and V, is on the chip at a time: elements, width -> (Br, Bc).

    Bc = ceil(sram / (4 d)),  Br = min(Bc, d)                                    [Alg. 1, line 1]

    ValueError: d < 1 ("d must be at least 1"), sram < d ("sram must be at least d"), with the
    value.
    """
    # Task: two checks and two integers.
    if d < 1:
        raise ValueError(f"d must be at least 1, got {d}")
    if sram < d:
        raise ValueError(f"sram must be at least d = {d}, got {sram}")
    bc = -(-sram // (4 * d))
    return min(bc, d), bc


def flash_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sram: int,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    block_mask: Tensor | None = None,
    hbm: HBM | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(..., Nq, d), (..., Nk, d) twice -> o (..., Nq, d), m, l (..., Nq)  [Alg. 1, 2 and 5]

    s_ij = scale q_i . k_j, or -inf where i may not see j;  m_i = max_j s_ij
    l_i = sum_j exp(s_ij - m_i),  o_i = sum_j exp(s_ij - m_i) Z_ij v_j / l_i

    Blocks are those of block_sizes(sram, d). o stays normalised, and m, l never see dropout:
    Z = keep_mask(seed, rows, cols, dropout_p) / (1 - dropout_p) only weighs the values.
    block_mask: bool (ceil(Nq/Br), ceil(Nk/Bc)); where it is False the block's scores are -inf.
    Blocks that block_mask hides, or that lie wholly above the causal diagonal, are not computed.
    A row that sees no key has o = 0, m = -inf, l = 0.

    What crosses is handed to `hbm`, a block of rows at a time: q_i and the o_i, m_i, l_i of before
    are loaded, and the new ones stored, for every block (i, j) computed; k_j and v_j are loaded
    once for every j, or not at all where no block is computed. So j is the outer loop; either loop
    may run backwards. Starting values are not counted. Besides tensors that are an input's or an
    answer's size, none made is larger than k_j and v_j together, 2 Bc d elements a head: neither
    the scores of a block of queries against all keys, nor of all queries against a block of keys.

    ValueError: Nk = 0 ("no keys"); q, k and v of different widths, or k and v of different lengths
    ("shapes", with all three); dropout_p outside [0, 1) ("dropout_p", with its value); a block_mask
    that is not of its shape ("block_mask", with the right shape); sram as in block_sizes.
    """
    # Task: for each j load K and V; for each i score, take the block's own m, l and o, and merge.
    check(q, k, v, dropout_p)
    nq, nk, d = q.shape[-2], k.shape[-2], q.shape[-1]
    br, bc = block_sizes(sram, d)
    wanted = (-(-nq // br), -(-nk // bc))
    if block_mask is not None and block_mask.shape != wanted:
        raise ValueError(f"block_mask must have the shape {wanted}, not {tuple(block_mask.shape)}")
    tau = 1 / math.sqrt(d) if scale is None else scale
    hbm = HBM() if hbm is None else hbm
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    o, l = q.new_zeros(*lead, nq, d), q.new_zeros(*lead, nq)
    m = q.new_full((*lead, nq), -math.inf)
    for j, (keys, cols) in enumerate(tiles(nk, bc, q)):
        k_j, v_j = hbm.load(k[..., keys, :]), hbm.load(v[..., keys, :])
        for i, (here, rows) in enumerate(tiles(nq, br, q)):
            if block_mask is not None and not block_mask[i, j]:
                continue
            if causal and keys.start > here.stop - 1 + nk - nq:
                continue
            s = tau * (hbm.load(q[..., here, :]) @ k_j.mT).expand(*lead, -1, -1)  # (..., Br, Bc)
            if causal:
                s = s.masked_fill(cols > rows[:, None] + (nk - nq), -math.inf)
            m_ij = s.amax(-1)
            p = torch.exp(s - m_ij.masked_fill(m_ij == -math.inf, 0.0)[..., None])
            l_ij = p.sum(-1)
            if dropout_p > 0:
                p = p * keep_mask(seed, rows, cols, dropout_p) / (1 - dropout_p)
            o_ij = p @ v_j / l_ij.masked_fill(l_ij == 0, 1.0)[..., None]
            slow = (m[..., here], l[..., here], o[..., here, :])
            merged = merge_stats(*(hbm.load(x) for x in slow), m_ij, l_ij, o_ij)
            for x, new in zip(slow, merged, strict=True):
                hbm.store(x, new)
    return o, m, l


def flash_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    m: Tensor,
    l: Tensor,
    *,
    sram: int,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    block_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of sum(do * o): do and o (..., Nq, d) -> dq, dk, dv as q, k, v  [Alg. 4]

    D = rowsum(do * o), once;  then for every block P = exp(S - m) / l,  Z from the seed again,
    dV_j += (P * Z)^T dO_i,  dS = P * ((dO_i V_j^T) * Z - D_i)
    dQ_i += scale dS K_j,  dK_j += scale dS^T Q_i

    o, m and l are as flash_forward returned them, the keywords as it was given them, and blocks
    that it did not compute are left out here too. Where leading axes were broadcast, gradients add
    up. Rows without keys have the gradient 0 and give none. The limit on the size of tensors is
    that of flash_forward; autograd is not used, and works neither inside nor through it.
    """
    # Task: D, then the same two loops; the scores are made again, and m and l are known.
    nq, nk, d = q.shape[-2], k.shape[-2], q.shape[-1]
    br, bc = block_sizes(sram, d)
    tau = 1 / math.sqrt(d) if scale is None else scale
    delta = (do * o).sum(-1, keepdim=True)  # (..., Nq, 1)
    base = m.masked_fill(m == -math.inf, 0.0)[..., None]
    total = l.masked_fill(l == 0, 1.0)[..., None]
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for j, (keys, cols) in enumerate(tiles(nk, bc, q)):
        k_j, v_j = k[..., keys, :], v[..., keys, :]
        for i, (here, rows) in enumerate(tiles(nq, br, q)):
            if block_mask is not None and not block_mask[i, j]:
                continue
            if causal and keys.start > here.stop - 1 + nk - nq:
                continue
            q_i, do_i = q[..., here, :], do[..., here, :]
            s = tau * (q_i @ k_j.mT)  # (..., Br, Bc)
            if causal:
                s = s.masked_fill(cols > rows[:, None] + (nk - nq), -math.inf)
            p = torch.exp(s - base[..., here, :]) / total[..., here, :]
            z = torch.ones_like(p)
            if dropout_p > 0:
                z = z * keep_mask(seed, rows, cols, dropout_p) / (1 - dropout_p)
            dv[..., keys, :] += ((p * z).mT @ do_i).sum_to_size(v_j.shape)
            ds = tau * p * (do_i @ v_j.mT * z - delta[..., here, :])
            dq[..., here, :] += (ds @ k_j).sum_to_size(q_i.shape)
            dk[..., keys, :] += (ds.mT @ q_i).sum_to_size(k_j.shape)
    return dq, dk, dv


class FlashAttention(torch.autograd.Function):
    """The two functions above as one that autograd can use, through `apply(q, k, v, sram, causal,
    scale, dropout_p, seed)`, which takes no keywords and gives o alone.

    Between the passes it keeps q, k, v, o, m and l, and numbers: no weights, no dropout mask.
    """

    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sram: int,
        causal: bool,
        scale: float | None,
        dropout_p: float,
        seed: int,
    ) -> Tensor:
        """o of flash_forward; keeps what the backward pass needs."""
        # Task: call flash_forward, save six tensors, remember the other arguments.
        ctx.options = {
            "sram": sram,
            "causal": causal,
            "scale": scale,
            "dropout_p": dropout_p,
            "seed": seed,
        }
        o, m, l = flash_forward(q, k, v, **ctx.options)
        ctx.save_for_backward(q, k, v, o, m, l)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx, do: Tensor) -> tuple[Tensor | None, ...]:
        """One gradient for each argument of forward, None for those that are no tensors.

        A second derivative is refused, which the decorator sees to.
        """
        # Task: call flash_backward with what was kept.
        return *flash_backward(do, *ctx.saved_tensors, **ctx.options), *[None] * 5


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sram: int = 16384,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Attention, differentiable: (..., Nq, d), (..., Nk, d) twice -> (..., Nq, d).

    The o of flash_forward for the same arguments, which says what they mean and what is refused;
    gradients flow to q, k and v. Neither pass makes a tensor with Nq x Nk elements, nor is one
    kept.
    """
    # Task: one line.
    return FlashAttention.apply(q, k, v, sram, causal, scale, dropout_p, seed)


def hbm_accesses(
    n: int, d: int, *, sram: int, algorithm: str, sparsity: float = 1.0
) -> dict[str, int]:
    """Elements that cross between HBM and the chip in one forward pass  [Theorem 2, Prop. 4]

    One head, n queries and n keys, nothing masked; returns {"reads": ..., "writes": ...}.
    "standard" is Alg. 0, which does not look at sram: Q, K and V are read and O is written once,
    S and P, n x n each, are written once and read once.
    "flash" is flash_forward: K and V are read once, and for each of the Tc blocks of them Q, O, m
    and l are read and O, m and l written.
    "block_sparse": that which "flash" does Tc times is done sparsity Tc times, sparsity being the
    share of blocks computed, and O is written once more, n d zeros, to begin with. Both numbers
    are rounded to the nearest integer.

    ValueError: another algorithm ("algorithm", with all valid ones), sparsity outside (0, 1]
    ("sparsity", with its value); sram as in block_sizes.
    """
    # Task: add up what the two algorithms read and write. How often does Q go by?
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, not {algorithm!r}")
    if not 0 < sparsity <= 1:
        raise ValueError(f"sparsity must lie in (0, 1], got {sparsity}")
    if algorithm == "standard":
        return {"reads": 3 * n * d + 2 * n * n, "writes": 2 * n * n + n * d}
    _, bc = block_sizes(sram, d)
    passes: float = -(-n // bc)
    start = 0
    if algorithm == "block_sparse":
        passes, start = passes * sparsity, n * d
    return {
        "reads": 2 * n * d + round(passes * (2 * n * d + 2 * n)),
        "writes": start + round(passes * (n * d + 2 * n)),
    }


def flops(nq: int, nk: int, d: int, *, causal: bool, pass_: str) -> int:
    """Floating-point operations of the matrix products of one pass: sizes -> an integer.

    A pass is a number of products, each of 2 d operations for every pair (i, j) of a query and a
    key that it sees: "forward" has 2 of them, S and O; "backward" 4, dV, dP, dQ and dK;
    "backward_recompute" S as well. Pairs are counted one by one: neither blocks nor half of N^2.

    ValueError: another pass ("pass_", with all valid ones).
    """
    # Task: count the pairs. How many keys does query i see?
    products = {"forward": 2, "backward": 4, "backward_recompute": 5}
    if pass_ not in products:
        raise ValueError(f"pass_ must be one of {', '.join(products)}, not {pass_!r}")
    pairs = nq * nk
    if causal:
        pairs = sum(max(0, min(nk, i + 1 + nk - nq)) for i in range(nq))
    return 2 * products[pass_] * pairs * d
