"""Products and attention, launched well and badly: what the tests of the compiled lane compile."""

import triton
import triton.language as tl


@triton.jit
def _product(
    A, B, C, m, n, k, STEP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):
    rows = tl.program_id(0) * M + tl.arange(0, M)
    columns = tl.program_id(1) * N + tl.arange(0, N)
    inner = tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, k, K):
        a = tl.load(A + rows[:, None] * k + (start + inner)[None, :] * STEP)
        b = tl.load(B + (start + inner)[:, None] * n + columns[None, :])
        total = tl.dot(a, b, total)
    tl.store(C + rows[:, None] * n + columns[None, :], total.to(C.dtype.element_ty))


def product(a, b, m=128, n=128, k=64, warps=8, stages=3):
    """a @ b in blocks of [m, n], k columns of a at a time."""
    c = a.new_empty(a.shape[0], b.shape[1])
    grid = (triton.cdiv(a.shape[0], m), triton.cdiv(b.shape[1], n))
    sizes = (a.shape[0], b.shape[1], a.shape[1])
    _product[grid](a, b, c, *sizes, 1, m, n, k, num_warps=warps, num_stages=stages)
    return c


@triton.autotune(
    [
        triton.Config({"M": 64, "N": 64, "K": 64}, num_warps=4, num_stages=18),
        triton.Config({"M": 64, "N": 64, "K": 64}, num_warps=4, num_stages=12),
        triton.Config({"M": 64, "N": 64, "K": 64}, num_warps=4, num_stages=3),
    ],
    key=["k"],
)
@triton.heuristics({"STEP": lambda arguments: 1})
@triton.jit
def _tuned(A, B, C, m, n, k, STEP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows = tl.program_id(0) * M + tl.arange(0, M)
    columns = tl.program_id(1) * N + tl.arange(0, N)
    inner = tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, k, K):
        a = tl.load(A + rows[:, None] * k + (start + inner)[None, :] * STEP)
        b = tl.load(B + (start + inner)[:, None] * n + columns[None, :])
        total = tl.dot(a, b, total)
    tl.store(C + rows[:, None] * n + columns[None, :], total.to(C.dtype.element_ty))


def tuned(a, b):
    """a @ b, whose first config fits no chip, and the second only the newer ones."""
    c = a.new_empty(a.shape[0], b.shape[1])

    def grid(meta):
        return triton.cdiv(a.shape[0], meta["M"]), triton.cdiv(b.shape[1], meta["N"])

    _tuned[grid](a, b, c, a.shape[0], b.shape[1], a.shape[1])
    return c


@triton.jit
def _attend(Q, K, V, O, n, scale, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    rows, inner = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, D)
    start = tl.program_id(1).to(tl.int64) * n * D
    q = tl.load(Q + start + rows[:, None] * D + inner[None, :], mask=rows[:, None] < n, other=0.0)
    top, total = tl.full((M,), float("-inf"), tl.float32), tl.zeros((M,), tl.float32)
    out = tl.zeros((M, D), tl.float32)
    for first in range(0, n, N):
        keys = first + tl.arange(0, N)
        here = start + keys[:, None] * D + inner[None, :]
        k = tl.load(K + here, mask=keys[:, None] < n, other=0.0)
        v = tl.load(V + here, mask=keys[:, None] < n, other=0.0)
        s = tl.where(keys[None, :] < n, tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        p, shrink = tl.exp(s - higher[:, None]), tl.exp(top - higher)
        total = total * shrink + tl.sum(p, 1)
        out = out * shrink[:, None] + tl.dot(p.to(v.dtype), v)
        top = higher
    out = (out / total[:, None]).to(O.dtype.element_ty)
    tl.store(O + start + rows[:, None] * D + inner[None, :], out, mask=rows[:, None] < n)


@triton.jit
def _scale(X, Y, factor, SIZE: tl.constexpr):
    here = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(Y + here, tl.load(X + here) * factor)


def attention(q, k, v, m=128, n=64, warps=8, stages=3):
    """Attention, and before it a kernel without a product."""
    batch, heads, length, dim = q.shape
    scaled, o = q.new_empty(q.shape), q.new_empty(q.shape)
    _scale[(q.numel() // 1024,)](q, scaled, dim**-0.5, 1024)
    grid = (triton.cdiv(length, m), batch * heads)
    options = {"num_warps": warps, "num_stages": stages}
    _attend[grid](scaled, k, v, o, length, 1.0, dim, m, n, **options)
    return o


@triton.jit
def _multiply(A, B, C, k, n, SIZE: tl.constexpr):
    rows, columns = tl.program_id(0) * SIZE + tl.arange(0, SIZE), tl.arange(0, SIZE)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for inner in range(k):
        a, b = tl.load(A + rows * k + inner), tl.load(B + inner * n + columns)
        total += a.to(tl.float32)[:, None] * b.to(tl.float32)[None, :]
    tl.store(C + rows[:, None] * n + columns[None, :], total.to(C.dtype.element_ty))


def multiplied(a, b):
    """A product without tl.dot, one outer product at a time."""
    c = a.new_empty(a.shape[0], b.shape[1])
    _multiply[(a.shape[0] // 64,)](a, b, c, a.shape[1], b.shape[1], 64)
    return c


@triton.jit
def _centre(X, Y, SIZE: tl.constexpr):
    here = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    x = tl.load(X + here)
    tl.store(Y + here, x - tl.max(x, 0))


def crowded(x):
    """Rows minus their maximum, a row kept by one warp."""
    y = x.new_empty(x.shape)
    _centre[(x.shape[0],)](x, y, x.shape[1], num_warps=1)
    return y


@triton.jit
def _sum(X, Y, stride, SIZE: tl.constexpr):
    here = tl.arange(0, SIZE)
    tl.store(Y + tl.program_id(0), tl.sum(tl.load(X + tl.program_id(0) * SIZE + here * stride), 0))


def sums(x, stride):
    """Sums of rows, whose elements lie a stride apart that only the launch knows."""
    y = x.new_empty(x.shape[0])
    _sum[(x.shape[0],)](x, y, stride, x.shape[1])
    return y


def same(x):
    """Four launches: two kernels, of which one is specialised in two ways."""
    y = x.new_empty(x.shape)
    for factor in (1.5, 2.5):
        _scale[(1,)](x, y, factor, 1024)
    _scale[(1,)](x, y, 0.5, 512)
    _sum[(1,)](x, y, 1, 512)
    return y
