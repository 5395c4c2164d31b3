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
    # TODO: both blocks of BLOCK_K, their product added to the tile, and on along k.
    raise NotImplementedError("xxt")


@triton.jit
def _store_symmetric(OUT, tile, rows, cols, m, row, col):
    """Store a tile of a symmetric matrix, m x m and contiguous, and off the diagonal its mirror."""
    # TODO: the tile, and where row < col its transpose at [cols, rows].
    raise NotImplementedError("xxt")


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
    # TODO: your place; nothing below the diagonal; the product of rows with rows; store both.
    raise NotImplementedError("xxt")


def xxt(X: Tensor) -> Tensor:
    """A = X X^T: (b, m, n) -> (b, m, m)  [Definition].

    X is bfloat16 with any strides, and so is A, which is contiguous. Sums are taken in float32, and
    rounded once. Tiles below the diagonal are copies of those above.

    Raises ValueError: another number of axes (names the shape), another dtype (names it).
    """
    # TODO: check, make room for A, as many programs as A has tiles, for each matrix.
    raise NotImplementedError("xxt")


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
    # TODO: as _xxt, since A A = A A^T; before it is stored, the tile times c, and b A.
    raise NotImplementedError("polynomial")


def polynomial(A: Tensor, *, b: float, c: float) -> Tensor:
    """P = b A + c A A for symmetric A: (b, m, m) -> (b, m, m)  [Definition].

    A is bfloat16 with any strides, and so is P, which is contiguous. It is computed in float32 and
    rounded once: there is no A A in memory. That A is symmetric is not checked.

    Raises ValueError: matrices that are not square, or another number of axes (names the shape);
    another dtype (names it).
    """
    # TODO: check, make room for P, as many programs as P has tiles, for each matrix.
    raise NotImplementedError("polynomial")


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
    # TODO: your place; the product; a X added to it; store.
    raise NotImplementedError("combine")


def combine(X: Tensor, P: Tensor, *, a: float) -> Tensor:
    """a X + P X: (b, m, n), (b, m, m) -> (b, m, n)  [Definition].

    Both are bfloat16 with any strides, and so is the answer, which is contiguous. It is computed in
    float32 and rounded once.

    Raises ValueError: P that is not (b, m, m) for X (b, m, n) (names both shapes); another number
    of axes (names the shape) or another dtype (names it) of either.
    """
    # TODO: check, make room for the answer, as many programs as it has tiles, for each matrix.
    raise NotImplementedError("combine")


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
    # TODO: your place; G in float32, divided; store.
    raise NotImplementedError("newton_schulz")


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
    # TODO: check, the smaller side first, norms, _normalise, iterate, undo the transpose.
    raise NotImplementedError("newton_schulz")


def _square(batch: int, m: int) -> Any:
    """The grid of a symmetric product (given): every tile a program, and every matrix a row."""
    return lambda config: (triton.cdiv(m, config["BLOCK"]) ** 2, batch)


def _check(X: Tensor) -> None:
    """Refuse what the kernels cannot multiply (given)."""
    if X.dim() != 3:
        raise ValueError(f"expected a batch of matrices, got the shape {tuple(X.shape)}")
    if X.dtype != torch.bfloat16:
        raise ValueError(f"expected bfloat16, got {X.dtype}")
