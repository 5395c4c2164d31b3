"""Newton-Schulz: Muon's orthogonalisation in three products, two of which are symmetric.

*Paper*  Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein (2024), Muon: An optimizer for
hidden layers in neural networks, https://kellerjordan.github.io/posts/muon/ (a post, no arXiv id),
"Definition" and "Runtime analysis". Do optimization/muon first.

*Why*  Muon spends its time in X <- a X + (b A + c A A) X with A = X X^T. A library multiplies as
if A had m^2 numbers of its own, but A and A A are symmetric: the tiles above the diagonal are all
of them, and those below are copies. For square matrices that is 4 r^3 operations a step instead of
6 r^3. What else a step does, two sums and their factors, costs a pass over memory each where torch
does it, and nothing where a tile is still in registers.

*Names*
    G                a gradient, or the momentum that is orthogonalised          (..., m, n)
    X, A, P          G on its way, X X^T, and b A + c A A                        (b, m, n) (b, m, m)
    a, b, c          the coefficients of the quintic, COEFFS
    r, k             min(m, n) and max(m, n); r rows are what the iteration sees
    tile             a block of an answer, which one program makes               [BLOCK, BLOCK]
    T                tiles along an axis, ceil(r / BLOCK)

*Tasks*  xxt with its parts _product, _store_symmetric and _xxt; polynomial with _polynomial;
combine with _combine; newton_schulz with _normalise.

*Cost*  In operations of tl.dot, a matrix, where the sizes are multiples of the blocks:
    xxt              r^2 k (1 + 1 / T)                                           of 2 r^2 k
    polynomial       r^3 (1 + 1 / T)                                             of 2 r^3
    combine          2 r^2 k
    newton_schulz    steps times their sum
Each product is one launch that stores each number of its answer once, and loads no more than tiles
of 64 x 64 take: 64 rows and 64 columns each. A step makes A, P and the new X, and nothing else.

*Differs*  The post has the norm in bfloat16; here it is taken in float32.

*Limits*  A matrix whose squares overflow in float32 comes out as zeros. Up to 65535 matrices a
batch. Rows that do not start at a multiple of 16 bytes are loaded in narrow pieces.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

COEFFS = (3.4445, -4.7750, 2.0315)
EPS = tl.constexpr(1e-7)
GROUP = tl.constexpr(8)


def _tuned(names: str, *choices: tuple[int, ...]) -> dict[str, Any]:
    """For triton.autotune (given): the values of `names`, the warps and the stages of each choice.

    A GPU takes the fastest of those whose tiles are no higher than the matrix; of 64 rows any may.
    """
    configs = []
    for *blocks, warps, stages in choices:
        values = dict(zip(names.split(), blocks, strict=True))
        configs.append(triton.Config(values, num_warps=warps, num_stages=stages))
    height = names.split()[0]

    def low(configs: list[triton.Config], sizes: dict[str, Any], **_: Any) -> list[triton.Config]:
        return [config for config in configs if config.kwargs[height] <= max(sizes["m"], 64)]

    return {"configs": configs, "prune_configs_by": {"early_config_prune": low}}


SQUARE = _tuned("BLOCK BLOCK_K", (128, 64, 8, 4), (128, 64, 4, 3), (64, 64, 4, 4))
OBLONG = _tuned(
    "BLOCK_M BLOCK_N BLOCK_K",
    *((128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (128, 256, 64, 8, 3), (64, 128, 64, 4, 4)),
)


@triton.jit
def _place(number, high, wide):
    """The tile (row, col) of a program (given): GROUP rows of tiles at a time, column by column, so
    that programs which run together share what they load.
    """
    group = number // (GROUP * wide)
    rows = tl.minimum(high - group * GROUP, GROUP)
    within = number % (GROUP * wide)
    return group * GROUP + within % rows, within // rows


@triton.jit
def _product(
    LEFT,
    RIGHT,
    rows,
    cols,
    m,
    n,
    k,
    left_row,
    left_inner,
    right_inner,
    right_col,
    BLOCK_K: tl.constexpr,
):
    """The tile [rows, cols] of LEFT RIGHT, (m, k) @ (k, n), in float32.

    Each is followed by its strides: left_row and left_inner, right_inner and right_col. What lies
    beyond m, n and k counts as 0.
    """
    # Task: both blocks of BLOCK_K, their product added to the tile, and on along k.
    inner = tl.arange(0, BLOCK_K).to(tl.int64)
    LEFT += rows[:, None] * left_row + inner[None, :] * left_inner
    RIGHT += inner[:, None] * right_inner + cols[None, :] * right_col
    tile = tl.zeros([rows.shape[0], cols.shape[0]], tl.float32)
    for start in range(0, k, BLOCK_K):
        inside = inner < k - start
        left = tl.load(LEFT, mask=(rows[:, None] < m) & inside[None, :], other=0.0)
        right = tl.load(RIGHT, mask=inside[:, None] & (cols[None, :] < n), other=0.0)
        tile = tl.dot(left, right, tile)
        LEFT += BLOCK_K * tl.cast(left_inner, tl.int64)
        RIGHT += BLOCK_K * tl.cast(right_inner, tl.int64)
    return tile


@triton.jit
def _store_symmetric(OUT, tile, rows, cols, m, row, col):
    """Store a tile of a symmetric matrix, m x m and contiguous, and off the diagonal its mirror."""
    # Task: the tile, and where row < col its transpose at [cols, rows].
    tile = tile.to(OUT.dtype.element_ty)
    inside = (rows[:, None] < m) & (cols[None, :] < m)
    tl.store(OUT + rows[:, None] * m + cols[None, :], tile, mask=inside)
    if row < col:
        MIRROR = OUT + cols[:, None] * m + rows[None, :]
        tl.store(MIRROR, tl.trans(tile), mask=tl.trans(inside))


@triton.autotune(**SQUARE, key=["m", "n"])
@triton.jit
def _xxt(
    X,
    A,
    m,
    n,
    batch_stride,
    row_stride,
    col_stride,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: one tile of one X X^T and its mirror, or nothing below the diagonal."""
    # Task: your place; nothing below the diagonal; the product of rows with rows; store both.
    tiles = tl.cdiv(m, BLOCK)
    row, col = _place(tl.program_id(0), tiles, tiles)
    if row > col:
        return
    batch = tl.program_id(1).to(tl.int64)
    X += batch * batch_stride
    rows = row * BLOCK + tl.arange(0, BLOCK).to(tl.int64)  # [BLOCK]
    cols = col * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    strides = row_stride, col_stride, col_stride, row_stride
    tile = _product(X, X, rows, cols, m, m, n, *strides, BLOCK_K)
    _store_symmetric(A + batch * m * m, tile, rows, cols, m, row, col)


def xxt(X: Tensor) -> Tensor:
    """A = X X^T: (b, m, n) -> (b, m, m)  [Definition].

    X is bfloat16 with any strides, and so is A, which is contiguous. Sums are taken in float32, and
    rounded once. Tiles below the diagonal are copies of those above.

    Raises ValueError: another number of axes (names the shape), another dtype (names it).
    """
    # Task: check, make room for A, as many programs as A has tiles, for each matrix.
    _check(X)
    batch, m, n = X.shape
    A = torch.empty(batch, m, m, dtype=X.dtype, device=X.device)
    _xxt[_square(batch, m)](X, A, m, n, *X.stride())
    return A


@triton.autotune(**SQUARE, key=["m"])
@triton.jit
def _polynomial(
    A,
    P,
    m,
    b,
    c,
    batch_stride,
    row_stride,
    col_stride,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: one tile of one b A + c A A and its mirror, or nothing below the diagonal."""
    # Task: as _xxt, since A A = A A^T; before it is stored, the tile times c, and b A.
    tiles = tl.cdiv(m, BLOCK)
    row, col = _place(tl.program_id(0), tiles, tiles)
    if row > col:
        return
    batch = tl.program_id(1).to(tl.int64)
    A += batch * batch_stride
    rows = row * BLOCK + tl.arange(0, BLOCK).to(tl.int64)  # [BLOCK]
    cols = col * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    strides = row_stride, col_stride, col_stride, row_stride
    tile = _product(A, A, rows, cols, m, m, m, *strides, BLOCK_K)
    A += rows[:, None] * row_stride + cols[None, :] * col_stride
    inside = (rows[:, None] < m) & (cols[None, :] < m)
    tile = c * tile + b * tl.load(A, mask=inside, other=0.0).to(tl.float32)  # [BLOCK, BLOCK]
    _store_symmetric(P + batch * m * m, tile, rows, cols, m, row, col)


def polynomial(A: Tensor, *, b: float, c: float) -> Tensor:
    """P = b A + c A A for symmetric A: (b, m, m) -> (b, m, m)  [Definition].

    A is bfloat16 with any strides, and so is P, which is contiguous. It is computed in float32 and
    rounded once: there is no A A in memory. That A is symmetric is not checked.

    Raises ValueError: matrices that are not square, or another number of axes (names the shape);
    another dtype (names it).
    """
    # Task: check, make room for P, as many programs as P has tiles, for each matrix.
    _check(A)
    batch, m, n = A.shape
    if m != n:
        raise ValueError(f"expected square matrices, got the shape {tuple(A.shape)}")
    P = torch.empty(batch, m, m, dtype=A.dtype, device=A.device)
    _polynomial[_square(batch, m)](A, P, m, b, c, *A.stride())
    return P


@triton.autotune(**OBLONG, key=["m", "n"])
@triton.jit
def _combine(
    X,
    P,
    OUT,
    m,
    n,
    a,
    x_batch,
    x_row,
    x_col,
    p_batch,
    p_row,
    p_col,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: one tile of one a X + P X."""
    # Task: your place; the product; a X added to it; store.
    row, col = _place(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N))
    batch = tl.program_id(1).to(tl.int64)
    X += batch * x_batch
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)  # [BLOCK_M]
    cols = col * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)  # [BLOCK_N]
    tile = _product(
        P + batch * p_batch, X, rows, cols, m, n, m, p_row, p_col, x_row, x_col, BLOCK_K
    )
    inside = (rows[:, None] < m) & (cols[None, :] < n)
    at = rows[:, None] * x_row + cols[None, :] * x_col
    tile += a * tl.load(X + at, mask=inside, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_N]
    OUT += batch * m * n + rows[:, None] * n + cols[None, :]
    tl.store(OUT, tile.to(OUT.dtype.element_ty), mask=inside)


def combine(X: Tensor, P: Tensor, *, a: float) -> Tensor:
    """a X + P X: (b, m, n), (b, m, m) -> (b, m, n)  [Definition].

    Both are bfloat16 with any strides, and so is the answer, which is contiguous. It is computed in
    float32 and rounded once.

    Raises ValueError: P that is not (b, m, m) for X (b, m, n) (names both shapes); another number
    of axes (names the shape) or another dtype (names it) of either.
    """
    # Task: check, make room for the answer, as many programs as it has tiles, for each matrix.
    _check(X)
    _check(P)
    batch, m, n = X.shape
    if P.shape != (batch, m, m):
        raise ValueError(f"shapes do not fit: X {tuple(X.shape)}, P {tuple(P.shape)}")
    out = torch.empty(batch, m, n, dtype=X.dtype, device=X.device)

    def grid(config: dict[str, Any]) -> tuple[int, int]:
        tiles = triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"])
        return tiles, batch

    _combine[grid](X, P, out, m, n, a, *X.stride(), *P.stride())
    return out


@triton.jit
def _normalise(
    G,
    NORM,
    X,
    m,
    n,
    batch_stride,
    row_stride,
    col_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: one block of one G / (norm + EPS), rounded to X's dtype."""
    # Task: your place; G in float32, divided; store.
    batch = tl.program_id(1).to(tl.int64)
    wide = tl.cdiv(n, BLOCK_N)
    rows = tl.program_id(0) // wide * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)  # [BLOCK_M]
    cols = tl.program_id(0) % wide * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)  # [BLOCK_N]
    inside = (rows[:, None] < m) & (cols[None, :] < n)
    at = rows[:, None] * row_stride + cols[None, :] * col_stride
    x = tl.load(G + batch * batch_stride + at, mask=inside).to(tl.float32)  # [BLOCK_M, BLOCK_N]
    x = x / (tl.load(NORM + batch) + EPS)
    X += batch * m * n + rows[:, None] * n + cols[None, :]
    tl.store(X, x.to(X.dtype.element_ty), mask=inside)


def newton_schulz(G: Tensor, *, steps: int = 5) -> Tensor:
    """Orthogonalise without an SVD: (..., m, n) -> (..., m, n)  [Definition].

    X_0 = G / (||G||_F + 1e-7)
    A = X X^T,  X <- a X + (b A + c A A) X,  `steps` times, with a, b, c = COEFFS

    G is bfloat16, float16 or float32 with any strides, and the answer bfloat16. ||G||_F is each
    matrix's own, taken in float32 from G as it is; X is rounded to bfloat16 after the division, and
    then after every step, A and P when they are made. Where m > n the iteration runs on the
    transpose, so that A is r x r. Singular values that are no less than 0.0052 ||G||_F end in
    [0.63, 1.26] after five steps. Rows of zeros stay zeros. One step makes three launches.

    Raises ValueError: fewer than two axes (names the shape), steps < 1 ("steps"), another dtype
    (names it).
    """
    # Task: check, the smaller side first, norms, _normalise, iterate, undo the transpose.
    if G.dim() < 2:
        raise ValueError(f"expected a matrix or a batch of them, got the shape {tuple(G.shape)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if G.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"cannot take {G.dtype}")
    a, b, c = COEFFS
    tall = G.shape[-2] > G.shape[-1]
    wide = G.mT if tall else G
    flat = wide.reshape(-1, *wide.shape[-2:])  # (b, r, k)
    norm = torch.linalg.vector_norm(flat, dim=(-2, -1), dtype=torch.float32)
    X = torch.empty(flat.shape, dtype=torch.bfloat16, device=G.device)
    batch, m, n = flat.shape
    grid = (triton.cdiv(m, 32) * triton.cdiv(n, 128), batch)
    _normalise[grid](flat, norm, X, m, n, *flat.stride(), BLOCK_M=32, BLOCK_N=128)
    for _ in range(steps):
        A = xxt(X)
        X = combine(X, polynomial(A, b=b, c=c), a=a)
    X = X.view(wide.shape)
    return X.mT if tall else X


def _square(batch: int, m: int) -> Any:
    """The grid of a symmetric product (given): every tile a program, and every matrix a row."""
    return lambda config: (triton.cdiv(m, config["BLOCK"]) ** 2, batch)


def _check(X: Tensor) -> None:
    """Refuse what the kernels cannot multiply (given)."""
    if X.dim() != 3:
        raise ValueError(f"expected a batch of matrices, got the shape {tuple(X.shape)}")
    if X.dtype != torch.bfloat16:
        raise ValueError(f"expected bfloat16, got {X.dtype}")
