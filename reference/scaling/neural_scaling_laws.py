"""Oracle of the scaling laws: matrices one by one, sums of logarithms, decimals of 50 digits,
a minimum found by searching, and a network trained by hand.

Lines come from a general least-squares solver and the covariance of its coefficients, Student's
quantiles from scipy.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from decimal import Decimal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

Array = NDArray[np.float64]


def transformer_counts(
    *, n_layer: int, d_model: int, d_attn: int, d_ff: int, n_ctx: int, n_vocab: int
) -> dict[str, int]:
    """Table 1: every matrix of every layer, and attention token by token."""
    layer = [(d_model, d_attn)] * 3 + [(d_attn, d_model), (d_model, d_ff), (d_ff, d_model)]
    matrices = layer * n_layer
    tables = [(n_vocab, d_model), (n_ctx, d_model)]
    # token i sees the i before it, and half of itself; a score and a share of the mixture each
    # cost a multiplication and an addition a channel
    attention = sum((2 * i + 1) * 2 * d_attn for i in range(n_ctx)) * n_layer
    per_token, rest = divmod(attention, n_ctx)
    assert rest == 0
    forward = sum(2 * rows * columns for rows, columns in matrices) + per_token
    return {
        "params": sum(rows * columns for rows, columns in matrices),
        "embedding": sum(rows * columns for rows, columns in tables),
        "forward_flops": forward,
        "train_flops": forward + 2 * forward,
    }


def regression(x: Array, y: Array) -> tuple[Array, Array, float]:
    """log y = a + b log x by least squares: (a, b), the inverse of X'X, the residual sum."""
    design = np.stack([np.ones_like(x), np.log(x)], axis=1)
    coefficients = np.linalg.lstsq(design, np.log(y), rcond=None)[0]
    gap = np.log(y) - design @ coefficients
    return coefficients, np.linalg.inv(design.T @ design), float(gap @ gap)


def log_line(x: Array, y: Array) -> dict[str, np.float64]:
    """The line and what its intervals need."""
    (intercept, slope), inverse, residual = regression(x, y)
    return {
        "slope": slope,
        "intercept": intercept,
        "centre": -inverse[0, 1] / inverse[1, 1],
        "spread": 1 / inverse[1, 1],
        "residual": np.float64(residual),
    }


def fit_power_law(x: Array, y: Array) -> tuple[np.float64, np.float64, np.float64]:
    """The exponent, the x at which the line crosses log y = 0, and the squared correlation."""
    (intercept, slope), _, _ = regression(x, y)
    r = np.corrcoef(np.log(x), np.log(y))[0, 1]
    return -slope, np.exp(-intercept / slope), np.square(r)


def power_law_interval(x: Array, y: Array, *, level: float) -> tuple[np.float64, np.float64]:
    """The slope's interval from the covariance matrix of the coefficients."""
    (_, slope), inverse, residual = regression(x, y)
    covariance = residual / (len(x) - 2) * inverse
    half = student.ppf((1 + level) / 2, len(x) - 2) * np.sqrt(covariance[1, 1])
    return -slope - half, -slope + half


def prediction_interval(
    x: Array, y: Array, x_new: Array, *, level: float
) -> tuple[Array | np.float64, Array | np.float64]:
    """The variance of the line at each new point, a quadratic form, and that of the point."""
    coefficients, inverse, residual = regression(x, y)
    low, high = np.empty_like(x_new), np.empty_like(x_new)
    for place, value in np.ndenumerate(x_new):
        row = np.array([1.0, np.log(value)])
        variance = residual / (len(x) - 2) * (1 + row @ inverse @ row)
        half = student.ppf((1 + level) / 2, len(x) - 2) * np.sqrt(variance)
        low[place] = np.exp(row @ coefficients - half)
        high[place] = np.exp(row @ coefficients + half)
    return low, high


JOINT = {"alpha_n": 0.076, "alpha_d": 0.103, "n_c": 6.4e13, "d_c": 1.8e13}  # Table 2
CURVES = {"alpha_n": 0.077, "n_c": 6.5e13, "alpha_s": 0.76, "s_c": 2.1e3}  # Table 3
BATCH = {"alpha_b": 0.21, "b_star": 2e8}  # Eq. 1.4


def loss_n_d(N: ArrayLike, D: ArrayLike, **law: float) -> Array:
    """Eq. 1.5 in logarithms."""
    a_n, a_d, n_c, d_c = (JOINT | law).values()
    with np.errstate(divide="ignore"):
        size = a_n / a_d * (math.log(n_c) - np.log(N))
        data = math.log(d_c) - np.log(D)
    return np.exp(a_d * np.logaddexp(size, data))


def _each(function: Callable[..., Decimal], *values: ArrayLike) -> Array:
    """A function of decimals, of each member of arrays that broadcast."""
    shaped = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in values))
    out = np.empty(shaped[0].shape)
    with decimal.localcontext(decimal.Context(prec=120)):  # two losses may agree to 80
        for place in np.ndindex(out.shape):
            out[place] = float(function(*(Decimal(float(v[place])) for v in shaped)))
    return out


def _losses(N: Decimal, D: Decimal, law: dict[str, float]) -> tuple[Decimal, Decimal]:
    """Eq. 1.5 with D tokens and with any number, to the context's precision."""
    a_n, a_d, n_c, d_c = (Decimal(v) for v in (JOINT | law).values())
    size = (n_c / N) ** (a_n / a_d)
    data = Decimal(0) if D.is_infinite() else d_c / D
    return (size + data) ** a_d, size**a_d


def overfit_fraction(N: ArrayLike, D: ArrayLike, **law: float) -> Array:
    """Eq. 4.2 as it stands, with digits enough to subtract."""

    def fraction(n: Decimal, d: Decimal) -> Decimal:
        loss, converged = _losses(n, d, law)
        return loss / converged - 1

    return _each(fraction, N, D)


def data_needed(N: ArrayLike, tolerance: ArrayLike, **law: float) -> Array:
    """Eq. 4.2 turned round: the bracket must grow by (1 + tolerance)^(1 / alpha_d)."""
    a_n, a_d, n_c, d_c = (Decimal(v) for v in (JOINT | law).values())

    def tokens(n: Decimal, tolerance: Decimal) -> Decimal:
        size = (n_c / n) ** (a_n / a_d)
        return d_c / (size * (1 + tolerance) ** (1 / a_d) - size)

    return _each(tokens, N, tolerance)


def critical_batch(loss: ArrayLike, **law: float) -> Array:
    """Eq. 1.4 in logarithms."""
    alpha_b, b_star = (BATCH | law).values()
    return np.exp(math.log(b_star) - np.log(loss) / alpha_b)


def steps_min(S: ArrayLike, B: ArrayLike, b_crit: ArrayLike) -> Array:
    """Eq. 5.4, in reciprocals: the rates of two limits add."""
    return 1 / (np.divide(1, S) + np.divide(b_crit, S) / B)


def compute_min(C: ArrayLike, B: ArrayLike, b_crit: ArrayLike) -> Array:
    """Eq. 5.5, likewise."""
    return 1 / (np.divide(1, C) + np.divide(B, C) / b_crit)


def noise_tradeoff(S: ArrayLike, E: ArrayLike, s_min: ArrayLike, e_min: ArrayLike) -> Array:
    """Eq. 5.1: what is above the least of each, over the leasts."""
    above = np.subtract(S, s_min) * np.subtract(E, e_min)
    return above / np.multiply(s_min, e_min)


def loss_n_s(N: ArrayLike, s_min: ArrayLike, **law: float) -> Array:
    """Eq. 1.6, each term in logarithms."""
    alpha_n, n_c, alpha_s, s_c = (CURVES | law).values()
    size = alpha_n * (math.log(n_c) - np.log(N))
    return np.exp(size) + np.exp(alpha_s * (math.log(s_c) - np.log(s_min)))


def early_stop_bound(N: ArrayLike, D: ArrayLike, **law: float) -> Array:
    """Eq. 5.7 as it stands, with digits enough to subtract."""
    whole = JOINT | {name: CURVES[name] for name in ("alpha_s", "s_c")} | law
    joint = {name: whole[name] for name in JOINT}
    alpha_s, s_c = Decimal(whole["alpha_s"]), Decimal(whole["s_c"])

    def steps(n: Decimal, d: Decimal) -> Decimal:
        loss, converged = _losses(n, d, joint)
        gap = loss - converged
        return s_c / gap ** (1 / alpha_s) if gap else Decimal("inf")

    return _each(steps, N, D)


def optimal_exponents(
    alpha_n: ArrayLike, alpha_b: ArrayLike, alpha_s: ArrayLike
) -> dict[str, Array]:
    """Eq. 1.7 and 1.8, without reciprocals."""
    n, b, s = np.asarray(alpha_n), np.asarray(alpha_b), np.asarray(alpha_s)
    total = n * b + b * s + s * n
    return {
        "alpha_c": n * b * s / total,
        "N": b * s / total,
        "B": s * n / total,
        "S": n * b / total,
    }


def loss_at(log_n: Array, C: float, **law: float) -> Array:
    """The loss that C FLOPs buy with exp(log_n) parameters, if the batch is critical at that loss.

    The loss is where what C pays for, s_min = C / (12 N B_crit(loss)), gives that very loss.
    """
    given = CURVES | BATCH | law
    curves = {name: given[name] for name in CURVES}
    batch = {name: given[name] for name in BATCH}
    N = np.exp(log_n)
    low = np.full_like(N, -40.0)
    high = np.full_like(N, 40.0)
    for _ in range(56):
        middle = (low + high) / 2
        s_min = C / (12 * N * critical_batch(np.exp(middle), **batch))
        above = np.log(loss_n_s(N, s_min, **curves)) > middle
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.exp((low + high) / 2)


def compute_optimal(C: float, **law: float) -> dict[str, float]:
    """Appendix B by looking: ever finer grids of log N around the one with the least loss."""
    given = CURVES | BATCH | law
    centre, width = 0.0, 80.0
    while width > 1e-5:
        grid = np.linspace(centre - width, centre + width, 41)
        centre = float(grid[np.argmin(loss_at(grid, C, **law))])
        width /= 8
    loss = float(loss_at(np.array([centre]), C, **law)[0])
    batch = float(critical_batch(loss, **{name: given[name] for name in BATCH}))
    N = math.exp(centre)
    return {"N": N, "S_min": C / (12 * N * batch), "B": batch, "loss": loss}


def parameters(width: int, context: int) -> int:
    """N of the model of bytes: a vector a place, and a layer twice as wide."""
    matrices = [(context, width), (2 * width, width), (width, 2 * width)]
    return sum(rows * columns for rows, columns in matrices)


def next_byte(
    weights: dict[str, Array], rows: NDArray[np.int64], *, learn: bool
) -> tuple[float, dict[str, Array]]:
    """The mean cross-entropy of windows, (b, context + 1), and its gradient, by the chain rule."""
    tokens, targets = rows[:, :-1], rows[:, -1]
    vectors = weights["embedding"][tokens]  # (b, context, width)
    summed = np.einsum("btw,tw->bw", vectors, weights["place"])
    before = summed @ weights["widen"].T
    hidden = np.where(before > 0, before, 0.0)
    out = summed + hidden @ weights["narrow"].T
    p = np.exp(out @ weights["readout"].T)
    p /= p.sum(-1, keepdims=True)
    picked = np.arange(len(rows)), targets
    loss = float(-np.log(p[picked]).mean())
    if not learn:
        return loss, {}

    dlogits = p / len(rows)
    dlogits[picked] -= 1 / len(rows)
    dout = dlogits @ weights["readout"]
    dbefore = np.where(before > 0, dout @ weights["narrow"], 0.0)
    dsummed = dout + dbefore @ weights["widen"]
    dembedding = np.zeros_like(weights["embedding"])
    np.add.at(dembedding, tokens, dsummed[:, None] * weights["place"])
    return loss, {
        "embedding": dembedding,
        "place": np.einsum("btw,bw->tw", vectors, dsummed),
        "widen": dbefore.T @ summed,
        "narrow": dout.T @ hidden,
        "readout": dlogits.T @ out,
    }


def train_and_measure(
    weights: dict[str, Array],
    text: NDArray[np.int64],
    starts: NDArray[np.int64],
    *,
    lr: float,
    held_out: int,
) -> tuple[int, float]:
    """Adam from given weights on windows that begin at given places, (steps, batch), by hand."""
    context, width = weights["place"].shape
    weights = {name: value.copy() for name, value in weights.items()}
    mean = {name: np.zeros_like(value) for name, value in weights.items()}
    square = {name: np.zeros_like(value) for name, value in weights.items()}
    steps = len(starts)
    for k, places in enumerate(starts):
        rows = np.array([text[place : place + context + 1] for place in places])
        _, gradient = next_byte(weights, rows, learn=True)
        rate = lr / math.sqrt(width) * math.cos(math.pi * k / (2 * steps)) ** 2
        for name, g in gradient.items():
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.999 * square[name] + 0.001 * g * g
            first = mean[name] / (1 - 0.9 ** (k + 1))
            second = square[name] / (1 - 0.999 ** (k + 1))
            weights[name] = weights[name] - rate * first / (np.sqrt(second) + 1e-8)
    last = text[len(text) - held_out :]
    windows = np.stack([last[i : held_out - context + i] for i in range(context + 1)], axis=1)
    return parameters(width, context), next_byte(weights, windows, learn=False)[0]
