"""Small kernels, right ones and wrong ones, on which the lanes' promises are tried."""

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.language.extra.libdevice import tanh

# one operation each


@triton.jit
def binary(X, Y, OUT, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x, y = tl.load(X + i), tl.load(Y + i)
    if OP == "add":
        z = x + y
    elif OP == "subtract":
        z = x - y
    elif OP == "multiply":
        z = x * y
    elif OP == "divide":
        z = x / y
    elif OP == "maximum":
        z = tl.maximum(x, y)
    elif OP == "minimum":
        z = tl.minimum(x, y)
    elif OP == "where":
        z = tl.where(x < y, x, y)
    elif OP == "clamp":
        z = tl.clamp(x, -tl.abs(y), tl.abs(y))
    elif OP == "negate":
        z = -x
    else:
        z = tl.fma(x, y, y)
    tl.store(OUT + i, z)


@triton.jit
def cast(X, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.load(X + i).to(OUT.dtype.element_ty))


@triton.jit
def cut(X, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.load(X + i).to(OUT.dtype.element_ty, fp_downcast_rounding="rtz"))


@triton.jit
def compared(X, Y, LESS, BOTH, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x, y = tl.load(X + i), tl.load(Y + i)
    tl.store(LESS + i, (x < y).to(tl.float32))
    tl.store(BOTH + i, ((x < y) + (x <= y)).to(tl.int32))


@triton.jit
def reduced(X, OUT, OP: tl.constexpr, BLOCK: tl.constexpr):
    x = tl.load(X + tl.arange(0, BLOCK))
    if OP == "sum":
        z = tl.sum(x, 0)
    elif OP == "max":
        z = tl.max(x, 0)
    elif OP == "min":
        z = tl.min(x, 0)
    elif OP == "argmax":
        z = tl.argmax(x, 0)
    elif OP == "argmin":
        z = tl.argmin(x, 0)
    else:
        z = tl.xor_sum(x, 0)
    tl.store(OUT, z)


@triton.jit
def reduced_axes(X, ROWS, COLUMNS, ALL, KEPT, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    x = tl.load(X + m[:, None] * N + n[None, :])
    tl.store(ROWS + m, tl.sum(x, 1))
    tl.store(COLUMNS + n, tl.sum(x, axis=-2))
    tl.store(ALL, tl.sum(x))
    tl.store(KEPT + m[:, None] * N + n[None, :], x - tl.max(x, 1, keep_dims=True))


@triton.jit
def _merge(m, s, other_m, other_s):
    now = tl.maximum(m, other_m)
    return now, s * tl.exp(m - now) + other_s * tl.exp(other_m - now)


@triton.jit
def log_sum_exp(X, OUT, BLOCK: tl.constexpr):
    x = tl.load(X + tl.arange(0, BLOCK))
    m, s = tl.reduce((x, tl.full((BLOCK,), 1.0, tl.float32)), 0, _merge)
    tl.store(OUT, m + tl.log(s))


@triton.jit
def _then(a, b, other_a, other_b):
    return a * other_a, b * other_a + other_b


@triton.jit
def recurrence(A, B, OUT, REVERSE: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    _, h = tl.associative_scan((tl.load(A + i), tl.load(B + i)), 1, _then, reverse=REVERSE)
    tl.store(OUT + i, h)


@triton.jit
def cumulated(X, SUMS, PRODUCTS, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(SUMS + i, tl.cumsum(tl.load(X + i), 0))
    tl.store(PRODUCTS + i, tl.cumprod(tl.load(X + i), 0, reverse=True))


@triton.jit
def sorted_and_counted(X, SORTED, COUNTS, BLOCK: tl.constexpr, BINS: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(X + i)
    tl.store(SORTED + i, tl.sort(x))
    tl.store(COUNTS + tl.arange(0, BINS), tl.histogram(x, BINS))


@triton.jit
def random(OUT, seed, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.rand(seed, i))


@triton.jit
def loaded(X, OUT, n, BLOCK: tl.constexpr):
    """Lanes beyond n are left as the load left them."""
    i = tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.load(X + i, mask=i < n))


@triton.jit
def loaded_scalar(X, OUT, there):
    tl.store(OUT, tl.load(X, mask=there > 0, other=0.0))
    tl.store(OUT + 1, tl.load(X, mask=there > 0, other=4.0))
    tl.store(OUT + 2, tl.load(X, mask=there > 0))


@triton.jit
def atomics(X, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(X + i)
    tl.atomic_add(OUT + i * 0, x)
    tl.atomic_add(OUT + 1 + i % 2, x, mask=i < 6)


@triton.jit
def extremes(X, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_max(OUT + i * 0, tl.load(X + i))
    tl.atomic_min(OUT + 1 + i * 0, tl.load(X + i))


@triton.jit
def external(X, OUT, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(X + i)
    if OP == "tanh imported":
        z = tanh(x)
    elif OP == "tanh":
        z = libdevice.tanh(x)
    elif OP == "rsqrt":
        z = libdevice.rsqrt(x)
    elif OP == "exp":
        z = libdevice.exp(x)
    elif OP == "log":
        z = libdevice.log(x)
    elif OP == "log1p":
        z = libdevice.log1p(x)
    elif OP == "erf":
        z = libdevice.erf(x)
    elif OP == "pow":
        z = libdevice.pow(x, x)
    elif OP == "isnan":
        z = libdevice.isnan(x).to(tl.float32)
    elif OP == "fast_expf":
        z = libdevice.fast_expf(x)
    elif OP == "fast_dividef":
        z = libdevice.fast_dividef(x, 3.0)
    elif OP == "div_rn":
        z = libdevice.div_rn(x, 3.0)
    elif OP == "round":
        z = libdevice.round(x)
    else:
        z = libdevice.rcp64h(x.to(tl.float64)).to(tl.float32)
    tl.store(OUT + i, z)


@triton.jit
def in_language(X, EXP, ERF, RSQRT, SIGMOID, SOFTMAX, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(X + i)
    tl.store(EXP + i, tl.exp2(x) + tl.log2(x) + tl.sin(x) + tl.floor(x))
    tl.store(ERF + i, tl.erf(x))
    tl.store(RSQRT + i, tl.rsqrt(x))
    tl.store(SIGMOID + i, tl.sigmoid(x))
    tl.store(SOFTMAX + i, tl.softmax(x))


@triton.jit
def assembly(X, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(X + i)
    y = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], tl.float32, True, 1)
    tl.store(OUT + i, y)


# programs, loops, arguments


@triton.jit
def identities(OUT):
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sizes = tl.num_programs(0) * 100 + tl.num_programs(1) * 10 + tl.num_programs(2)
    place = OUT + 4 * ((x * tl.num_programs(1) + y) * tl.num_programs(2) + z)
    tl.store(place, x)
    tl.store(place + 1, y)
    tl.store(place + 2, z)
    tl.store(place + 3, sizes)


@triton.jit
def turns(OUT, COUNT):
    tl.store(OUT + tl.program_id(0), tl.atomic_add(COUNT, 1))


@triton.jit
def loops(OUT, n, STEPS: tl.constexpr):
    a, b, c, d = 0, 0, 0, n
    for i in range(0, n, 2):
        a += i
    for i in tl.range(n):
        b += i
    for i in tl.static_range(STEPS):
        c += i
    while d > 3:
        d -= 2
    tl.store(OUT, a)
    tl.store(OUT + 1, b)
    tl.store(OUT + 2, c)
    tl.store(OUT + 3, d)


@triton.jit
def counters(OUT, n, far):
    for i in range(n):
        tl.store(OUT + 0, i.to(tl.int64) * 1073741824)
        tl.store(OUT + 1, tl.full((), i.dtype.primitive_bitwidth, tl.int64))
    for i in tl.range(far, far + 1):
        tl.store(OUT + 2, i)
        tl.store(OUT + 3, tl.full((), i.dtype.primitive_bitwidth, tl.int64))


@triton.jit
def given(OUT, number, flag, nothing, one):
    tl.store(OUT, number)
    tl.store(OUT + 3, flag.dtype.primitive_bitwidth)
    if flag:
        tl.store(OUT + 1, 7.0)
    if nothing is None:
        tl.store(OUT + 2, number * 2 + one)


@triton.jit
def given_pair(pair, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.load(pair[0] + i) * pair[1])


@triton.jit
def truth_of_a_block(X, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    inside = i < 10 and i > 2
    tl.store(OUT + i, tl.load(X + i), mask=inside)


@triton.jit
def _helper_todo(x):
    raise NotImplementedError("helper_todo")


@triton.jit
def todo(X):
    raise NotImplementedError("todo")


@triton.jit
def todo_inside(X):
    tl.store(X, _helper_todo(1.0))


@triton.jit
def misspelt(X):
    tl.store(X, unheard_of)  # noqa: F821


@triton.jit
def not_imported(X):
    tl.store(X, math.pi)  # noqa: F821


@triton.jit
def descriptor(X, OUT, m, n, M: tl.constexpr, N: tl.constexpr):
    x = tl.make_tensor_descriptor(X, [m, n], [n, 1], [M, N])
    out = tl.make_tensor_descriptor(OUT, [m, n], [n, 1], [M, N])
    row, column = tl.program_id(0) * M, tl.program_id(1) * N
    out.store([row, column], x.load([row, column]) * 2)


@triton.jit
def given_descriptor(x, OUT, M: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(OUT + i, x.load([0, 0]))


@triton.jit
def block_pointer(X, OUT, m, n, M: tl.constexpr, N: tl.constexpr):
    x = tl.make_block_ptr(X, (m, n), (n, 1), (0, 0), (M, N), (1, 0))
    out = tl.make_block_ptr(OUT, (m, n), (n, 1), (0, 0), (M, N), (1, 0))
    for _ in range(0, n, N):
        tl.store(out, tl.load(x, boundary_check=(0, 1)) * 2, boundary_check=(0, 1))
        x, out = tl.advance(x, (0, N)), tl.advance(out, (0, N))


_CONFIGS = [triton.Config({"BLOCK": 128}, num_warps=2), triton.Config({"BLOCK": 512})]


@triton.autotune(_CONFIGS, key=["n"])
@triton.jit
def tuned(X, OUT, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.load(X + i, mask=i < n), mask=i < n)
    tl.store(OUT + n, BLOCK, mask=tl.program_id(0) == 0)


@triton.autotune(
    _CONFIGS,
    key=["n"],
    prune_configs_by={"early_config_prune": lambda configs, *_, **__: configs[1:]},
)
@triton.jit
def pruned(X, OUT, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.load(X + i, mask=i < n), mask=i < n)
    tl.store(OUT + n, BLOCK, mask=tl.program_id(0) == 0)


@triton.autotune(_CONFIGS, key=["n"], reset_to_zero=["OUT"])
@triton.jit
def tuned_sum(X, OUT, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(OUT, tl.sum(tl.load(X + i, mask=i < n, other=0.0), 0))


@triton.autotune(_CONFIGS, key=["n"], restore_value=["X"])
@triton.jit
def tuned_in_place(X, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(X + i, tl.load(X + i, mask=i < n) * 2, mask=i < n)


@triton.heuristics({"BLOCK": lambda args: triton.next_power_of_2(args["n"])})
@triton.jit
def heuristic(X, OUT, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.load(X + i, mask=i < n), mask=i < n)
    tl.store(OUT + n, BLOCK)


# right


@triton.jit
def add(X, Y, OUT, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    tl.store(OUT + i, tl.load(X + i, mask=inside) + tl.load(Y + i, mask=inside), mask=inside)


@triton.jit
def softmax(X, OUT, n, x_stride, out_stride, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside = column < n
    x = tl.load(X + row * x_stride + column, mask=inside, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(OUT + row * out_stride + column, e / tl.sum(e, 0), mask=inside)


@triton.jit
def layer_norm(X, W, OUT, n, eps, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside = column < n
    x = tl.load(X + row * n + column, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x, 0) / n, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / n + eps)
    w = tl.load(W + column, mask=inside)
    tl.store(OUT + row * n + column, centred * scale * w, mask=inside)


@triton.jit
def matmul(X, Y, OUT, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, k, K):
        inner = start + tl.arange(0, K)
        x_inside = (row[:, None] < m) & (inner[None, :] < k)
        y_inside = (inner[:, None] < k) & (column[None, :] < n)
        x = tl.load(X + row[:, None] * k + inner[None, :], mask=x_inside, other=0.0)
        y = tl.load(Y + inner[:, None] * n + column[None, :], mask=y_inside, other=0.0)
        total = tl.dot(x, y, total)
    inside = (row[:, None] < m) & (column[None, :] < n)
    tl.store(OUT + row[:, None] * n + column[None, :], total, mask=inside)


@triton.jit
def scores(Q, K, S, n, scale, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    head = tl.program_id(2)
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    d = tl.arange(0, D)
    q = tl.load(Q + (head * n + row[:, None]) * D + d, mask=row[:, None] < n, other=0.0)
    k = tl.load(K + (head * n + column[:, None]) * D + d, mask=column[:, None] < n, other=0.0)
    inside = (row[:, None] < n) & (column[None, :] < n)
    place = S + (head * n + row[:, None]) * n + column[None, :]
    tl.store(place, tl.dot(q, tl.trans(k)) * scale, mask=inside)


@triton.jit
def weighted(P, V, OUT, n, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    head, d = tl.program_id(1), tl.arange(0, D)
    row = tl.program_id(0) * M + tl.arange(0, M)
    total = tl.zeros((M, D), tl.float32)
    for start in range(0, n, N):
        column = start + tl.arange(0, N)
        inside = (row[:, None] < n) & (column[None, :] < n)
        p = tl.load(P + (head * n + row[:, None]) * n + column[None, :], mask=inside, other=0.0)
        v = tl.load(V + (head * n + column[:, None]) * D + d, mask=column[:, None] < n, other=0.0)
        total = tl.dot(p.to(v.dtype), v, total)
    tl.store(OUT + (head * n + row[:, None]) * D + d, total, mask=row[:, None] < n)


@triton.jit
def flash(Q, K, V, OUT, n, scale, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    head, d = tl.program_id(1), tl.arange(0, D)
    row = tl.program_id(0) * M + tl.arange(0, M)
    q = tl.load(Q + (head * n + row[:, None]) * D + d, mask=row[:, None] < n, other=0.0)
    largest = tl.full((M,), -float("inf"), tl.float32)
    weight = tl.zeros((M,), tl.float32)
    total = tl.zeros((M, D), tl.float32)
    for start in range(0, n, N):
        column = start + tl.arange(0, N)
        here = column[:, None] < n
        k = tl.load(K + (head * n + column[:, None]) * D + d, mask=here, other=0.0)
        v = tl.load(V + (head * n + column[:, None]) * D + d, mask=here, other=0.0)
        s = tl.where(column[None, :] < n, tl.dot(q, tl.trans(k)) * scale, -float("inf"))
        now = tl.maximum(largest, tl.max(s, 1))
        shrink, p = tl.exp(largest - now), tl.exp(s - now[:, None])
        weight = weight * shrink + tl.sum(p, 1)
        total = tl.dot(p.to(v.dtype), v, total * shrink[:, None])
        largest = now
    place = OUT + (head * n + row[:, None]) * D + d
    tl.store(place, total / weight[:, None], mask=row[:, None] < n)


def naive_attention(q, k, v, block):
    """Three launches, and the scores in memory. Heads, positions and dimensions."""
    heads, n, d = q.shape
    s, p, out = torch.empty(heads, n, n), torch.empty(heads, n, n), torch.empty(heads, n, d)
    blocks = triton.cdiv(n, block)
    scores[(blocks, blocks, heads)](q, k, s, n, d**-0.5, d, block, block)
    softmax[(heads * n,)](s, p, n, n, n, triton.next_power_of_2(n))
    weighted[(blocks, heads)](p, v, out, n, d, block, block)
    return out


def flash_attention(q, k, v, block):
    """One launch."""
    heads, n, d = q.shape
    out = torch.empty(heads, n, d)
    flash[(triton.cdiv(n, block), heads)](q, k, v, out, n, d**-0.5, d, block, block)
    return out


@triton.jit
def histogram(X, COUNTS, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    tl.atomic_add(COUNTS + tl.load(X + i, mask=inside), 1, mask=inside)


@triton.jit
def double_in_place(X, OUT, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    tl.store(OUT + i, tl.load(X + i, mask=inside) * 2, mask=inside)


@triton.jit
def int4_product(X, PACKED, SCALE, OUT, n, k, N: tl.constexpr, K: tl.constexpr):
    """One row times a matrix of 4-bit numbers, eight to an int32, eight along k."""
    column = tl.program_id(0) * N + tl.arange(0, N)
    total = tl.zeros((N,), tl.float32)
    for start in range(0, k, K):
        inner = start + tl.arange(0, K)
        packed = tl.load(PACKED + (inner[:, None] // 8) * n + column[None, :])
        w = ((packed >> ((inner[:, None] % 8) * 4)) & 15) - 8
        total += tl.sum(tl.load(X + inner)[:, None] * w.to(tl.float32), 0)
    tl.store(OUT + column, total * tl.load(SCALE + column))


@triton.jit
def copy_block(X, OUT, x_row, x_column, out_row, out_column, M: tl.constexpr, N: tl.constexpr):
    row, column = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    x = tl.load(X + row * x_row + column * x_column)
    tl.store(OUT + row * out_row + column * out_column, x)


@triton.jit
def copy_words(X, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    word = tl.pointer_type(tl.int32)
    tl.store(OUT.to(word) + i, tl.load(X.to(word) + i))


@triton.jit
def through_a_lock(X, TOTAL, LOCK, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.sum(tl.load(X + i, mask=i < n, other=0.0), 0)
    while tl.atomic_cas(LOCK, 0, 1) == 1:
        pass
    tl.store(TOTAL, tl.load(TOTAL) + x)
    tl.atomic_xchg(LOCK, 0)


@triton.jit
def reversed_with_barrier(X, SCRATCH, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(SCRATCH + i, tl.load(X + i))
    tl.debug_barrier()
    tl.store(OUT + i, tl.load(SCRATCH + (BLOCK - 1 - i)))


# wrong


@triton.jit
def add_load_unmasked(X, Y, OUT, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.load(X + i) + tl.load(Y + i, mask=i < n), mask=i < n)


@triton.jit
def add_store_unmasked(X, Y, OUT, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.load(X + i, mask=i < n) + tl.load(Y + i, mask=i < n))


@triton.jit
def before_the_first(X, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.load(X + i - 1))


@triton.jit
def sum_unfilled(X, OUT, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT, tl.sum(tl.load(X + i, mask=i < n), 0))


@triton.jit
def max_unfilled(X, OUT, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT, tl.max(tl.load(X + i, mask=i < n), 0))


@triton.jit
def total_without_atomic(X, OUT, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(OUT, tl.load(OUT) + tl.sum(tl.load(X + i, mask=i < n, other=0.0), 0))


@triton.jit
def blocks_overlap(X, OUT, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * (BLOCK - 1) + tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.load(X + i, mask=i < n), mask=i < n)


@triton.jit
def scan_in_order(X, OUT, n, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    i = program * BLOCK + tl.arange(0, BLOCK)
    before = tl.load(OUT + program * BLOCK - 1, mask=program > 0, other=0.0)
    x = tl.load(X + i, mask=i < n, other=0.0)
    tl.store(OUT + i, tl.cumsum(x, 0) + before, mask=i < n)


@triton.jit
def shifted_in_place(X, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(X + i, tl.load(X + i + 1, mask=i + 1 < n, other=0.0), mask=i < n)


@triton.jit
def neighbours_in_place(X, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + i, mask=i < n) + tl.load(X + i + 1, mask=i + 1 < n, other=0.0)
    tl.store(X + i, x, mask=i < n)


@triton.jit
def looks_at_the_total(X, OUT, SEEN):
    program = tl.program_id(0)
    tl.atomic_add(OUT, tl.load(X + program))
    tl.store(SEEN + program, tl.load(OUT))


@triton.jit
def atomic_copies(X, FLAG, OUT):
    program = tl.program_id(0)
    tl.atomic_store(FLAG, 1)
    x = tl.load(X + program) * tl.atomic_load(FLAG)
    tl.store(OUT + program, x)


@triton.jit
def polls(FLAG):
    tl.atomic_poll(FLAG, 1)


@triton.jit
def zeroed_by_one(X, OUT, n, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    i = program * BLOCK + tl.arange(0, BLOCK)
    if program == 0:
        tl.store(OUT, 0.0)
    tl.atomic_add(OUT, tl.sum(tl.load(X + i, mask=i < n, other=0.0), 0))


@triton.jit
def reversed_without_barrier(X, SCRATCH, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(SCRATCH + i, tl.load(X + i))
    tl.store(OUT + i, tl.load(SCRATCH + (BLOCK - 1 - i)))


@triton.jit
def scatter(X, PLACE, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT + tl.load(PLACE + i), tl.load(X + i))


@triton.jit
def row_sums(X, OUT, columns, stride, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(X + row * stride + column, mask=column < columns, other=0.0)
    tl.store(OUT + row, tl.sum(x, 0))


@triton.jit
def wild(X, OUT, ADDRESS, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    pointer = tl.load(ADDRESS).to(tl.pointer_type(tl.float32))
    tl.store(OUT + i, tl.load(X + i) + tl.load(pointer + i))


@triton.jit
def askew(X, OUT):
    pointer = (X + 1).to(tl.pointer_type(tl.int32))
    tl.store(OUT, tl.load(pointer))


@triton.jit
def load_and_give_up(X, BLOCK: tl.constexpr):
    tl.load(X + tl.arange(0, BLOCK))
    raise NotImplementedError("the rest")


@triton.jit
def dot(X, Y, OUT, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    x, y = tl.load(X + m * K + k[None, :]), tl.load(Y + k[:, None] * N + n)
    tl.store(OUT + m * N + n, tl.dot(x, y, input_precision=PRECISION))
