"""Oracle of Muon: singular values one at a time, the optimiser a loop over weights, in float64.

newton_schulz never multiplies a matrix by itself: it takes the singular value decomposition and
puts each singular value through the polynomial. orthogonalize_svd, which may use that
decomposition, is checked by Jacobi's rotations instead. Operations are counted, not computed.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Coeffs = tuple[float, float, float]

COEFFS = (3.4445, -4.7750, 2.0315)
DEFAULTS = {
    "lr": 0.02,
    "momentum": 0.95,
    "nesterov": True,
    "ns_steps": 5,
    "weight_decay": 0.0,
    "scale": "original",
}


def ns_scalar(x: Array, *, steps: int, coeffs: Coeffs = COEFFS) -> Array:
    """The quintic, one value at a time: s (a + s^2 (b + s^2 c))."""
    a, b, c = coeffs
    out = np.array(x, dtype=np.float64)
    for _ in range(steps):
        for index in np.ndindex(out.shape):
            s = float(out[index])
            out[index] = s * (a + s * s * (b + s * s * c))
    return out


def newton_schulz(G: Array, *, steps: int = 5, coeffs: Coeffs = COEFFS, eps: float = 1e-7) -> Array:
    """U diag(p(p(... S / (||S|| + eps)))) V^T, matrix by matrix."""
    out = np.zeros_like(G)
    for index in np.ndindex(G.shape[:-2]):
        U, S, Vt = np.linalg.svd(G[index], full_matrices=False)
        norm = math.hypot(*S)
        out[index] = U @ np.diag(ns_scalar(S / (norm + eps), steps=steps, coeffs=coeffs)) @ Vt
    return out


def singular_values(G: Array) -> Array:
    """The largest first, (..., m, n) -> (..., min(m, n))."""
    return np.linalg.svd(G, compute_uv=False)


def orthogonalize_svd(G: Array, *, rtol: float | None = None) -> Array:
    """U V^T from one-sided Jacobi: turn pairs of columns until all are orthogonal."""
    out = np.zeros_like(G)
    if rtol is None:
        rtol = float(np.finfo(np.float64).eps) * max(G.shape[-2:])
    for index in np.ndindex(G.shape[:-2]):
        tall = G.shape[-2] >= G.shape[-1]
        columns, turns = jacobi(G[index] if tall else G[index].T)
        lengths = [math.hypot(*column) for column in columns.T]
        for column, turn, length in zip(columns.T, turns.T, lengths, strict=True):
            if length > rtol * max(lengths):
                matrix = np.outer(column / length, turn)
                out[index] += matrix if tall else matrix.T
    return out


def jacobi(G: Array) -> tuple[Array, Array]:
    """G V with orthogonal columns, and V, for m >= n."""
    W, V = np.array(G, dtype=np.float64), np.eye(G.shape[1])
    for _ in range(30):
        turned = False
        for i in range(G.shape[1]):
            for j in range(i):
                p, q, overlap = W[:, i] @ W[:, i], W[:, j] @ W[:, j], W[:, i] @ W[:, j]
                if abs(overlap) <= 1e-15 * math.sqrt(p * q) or overlap == 0:
                    continue
                angle = 0.5 * math.atan2(2 * overlap, p - q)
                turn = np.array(
                    [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
                )
                W[:, [i, j]], V[:, [i, j]] = W[:, [i, j]] @ turn, V[:, [i, j]] @ turn
                turned = True
        if not turned:
            break
    return W, V


def momentum_nesterov(
    buf: Array, grad: Array, *, beta: float = 0.95, nesterov: bool = True
) -> tuple[Array, Array]:
    """The buffer goes a part of its way to the gradient; so does the gradient to the new buffer."""
    new = np.array(buf, dtype=np.float64)
    update = np.array(buf, dtype=np.float64)
    for index in np.ndindex(new.shape):
        new[index] = buf[index] + (1 - beta) * (grad[index] - buf[index])
        ahead = grad[index] + beta * (new[index] - grad[index])
        update[index] = ahead if nesterov else new[index]
    return new, update


def shape_scale(shape: tuple[int, ...], *, mode: str = "original") -> float:
    """From the shape of an array that has been flattened."""
    rows, cols = np.zeros(shape).reshape(shape[0], -1).shape
    return {
        "original": (rows / cols) ** 0.5 if rows > cols else 1.0,
        "match_rms_adamw": (0.04 * max(rows, cols)) ** 0.5,
        "spectral": (rows / cols) ** 0.5,
    }[mode]


def train(
    values: list[Array],
    grads: list[list[Array | None]],
    groups: list[dict[str, Any]],
    *,
    rates: list[list[float]] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Muon, weight by weight.

    grads: of each step, a gradient or None for each weight.  groups: `params`, indices of weights,
    and whatever the group has of its own.  rates: of each step, the learning rate of each group.
    Returns the weights, and their buffers, None where there was never a gradient.
    """
    values = [np.array(value, dtype=np.float64) for value in values]
    buffers: list[Array | None] = [None] * len(values)
    for step, row in enumerate(grads):
        for number, group in enumerate(groups):
            own = DEFAULTS | settings | group
            lr = rates[step][number] if rates is not None else own["lr"]
            for i in own["params"]:
                grad, value, buf = row[i], values[i], buffers[i]
                if grad is None:
                    continue
                buffers[i], update = momentum_nesterov(
                    np.zeros_like(value) if buf is None else buf,
                    grad,
                    beta=own["momentum"],
                    nesterov=own["nesterov"],
                )
                matrix = newton_schulz(update.reshape(len(value), -1), steps=own["ns_steps"])
                size = shape_scale(value.shape, mode=own["scale"])
                kept = value - lr * own["weight_decay"] * value
                values[i] = kept - lr * size * matrix.reshape(value.shape)
    return {"values": values, "buffers": buffers}


def product_flops(p: int, q: int, s: int) -> int:
    """Multiplications and additions of (p, q) @ (q, s), one at a time."""
    count = 0
    for _ in range(p):
        for _ in range(s):
            for _ in range(q):
                count += 2
    return count


def newton_schulz_flops(m: int, n: int, *, steps: int = 5) -> int:
    """The three products of every step, counted."""
    r, k = sorted((m, n))
    count = 0
    for _ in range(steps):
        count += product_flops(r, k, r) + product_flops(r, r, r) + product_flops(r, r, k)
    return count


def overhead(model_dim: int, tokens_per_batch: int, *, steps: int = 5) -> float:
    """Of a square matrix, where the bound is met: three products a step, against 6 m n B."""
    extra = steps * 3 * 2 * model_dim**3
    return float(Fraction(extra, 6 * model_dim * model_dim * tokens_per_batch))
