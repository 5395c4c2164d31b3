"""Oracle of LoRA: the dense weight that the factors stand for, made entry by entry, in float64.

Gradients go through the gradient of that dense weight. Subspaces are compared by their projection
matrices, found from eigenvectors, never from a singular value decomposition. An adapter is
(A, B, alpha).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Adapter = tuple[Array, Array, float]


def update(A: Array, B: Array, *, alpha: float) -> Array:
    """(alpha / r) B A, by three loops."""
    rank, columns = A.shape
    out = np.zeros((len(B), columns))
    for row in range(len(B)):
        for column in range(columns):
            for k in range(rank):
                out[row, column] += alpha * B[row, k] * A[k, column] / rank
    return out


def merge(W0: Array, A: Array, B: Array, *, alpha: float) -> Array:
    """Section 4.1: the weight that serves one task."""
    return W0 + update(A, B, alpha=alpha)


def unmerge(W: Array, A: Array, B: Array, *, alpha: float) -> Array:
    """Section 4.1: the weight that serves all."""
    return W - update(A, B, alpha=alpha)


def swap(W: Array, old: Adapter, new: Adapter) -> Array:
    """Section 4.1: from one task to another."""
    return W + (update(new[0], new[1], alpha=new[2]) - update(old[0], old[1], alpha=old[2]))


def linear(x: Array, W: Array) -> Array:
    """W x for every vector x, one scalar product at a time."""
    rows = [[math.fsum(row * vector) for row in W] for vector in x.reshape(-1, W.shape[1])]
    return np.array(rows, dtype=np.float64).reshape(*x.shape[:-1], len(W))


def lora_forward(
    x: Array,
    W0: Array,
    A: Array,
    B: Array,
    *,
    alpha: float,
    bias: Array | None = None,
    keep: Array | None = None,
) -> Array:
    """Eq. 3, with the update as one dense matrix."""
    dropped = x if keep is None else x * keep
    y = linear(x, W0) + linear(dropped, update(A, B, alpha=alpha))
    return y if bias is None else y + bias


def lora_backward(
    dy: Array,
    x: Array,
    W0: Array,
    A: Array,
    B: Array,
    *,
    alpha: float,
    keep: Array | None = None,
) -> tuple[Array, Array, Array]:
    """The chain rule through dense weights: what W0 and the update receive, then A and B."""
    dropped = x if keep is None else x * keep
    dW = np.zeros_like(W0)
    for given, vector in zip(dy.reshape(-1, len(W0)), dropped.reshape(-1, A.shape[1]), strict=True):
        dW += np.multiply.outer(given, vector)
    through = linear(dy, update(A, B, alpha=alpha).T)
    dx = linear(dy, W0.T) + (through if keep is None else through * keep)
    dA = np.zeros_like(A)
    dB = np.zeros_like(B)
    for row, column in np.ndindex(*W0.shape):
        for k in range(len(A)):
            dA[k, column] += alpha / len(A) * dW[row, column] * B[row, k]
            dB[row, k] += alpha / len(A) * dW[row, column] * A[k, column]
    return dx, dA, dB


def named(names: Iterable[str], targets: Sequence[str]) -> list[str]:
    """Section 4.2: the dotted names that end with a target, compared part by part."""
    found = []
    for name in names:
        parts = name.split(".")
        wanted = [target.split(".") for target in targets]
        if any(parts[-len(target) :] == target for target in wanted):
            found.append(name)
    return sorted(found)


def lora_param_count(shapes: Iterable[tuple[int, int]], r: int) -> int:
    """Section 5.1: r rows of A as long as the input, r columns of B as long as the output."""
    return sum(r * columns + rows * r for rows, columns in shapes)


def leading_projection(A: Array, k: int) -> Array:
    """The projection of R^n onto the k directions in which the rows of A, (r, n), are largest."""
    values, vectors = np.linalg.eigh(A.T @ A)
    chosen = vectors[:, np.argsort(values)[::-1][:k]]
    return chosen @ chosen.T


def subspace_similarity(A1: Array, A2: Array, i: int, j: int) -> float:
    """Eq. 4: the trace of the product of both projections, over the smaller dimension."""
    both = leading_projection(A1, i) @ leading_projection(A2, j)
    return float(np.trace(both)) / min(i, j)


def amplification(dW: Array, W: Array, r: int) -> tuple[float, float]:
    """Section 7.3: U^T W V and P_U W P_V have the same norm."""
    projected = leading_projection(dW.T, r) @ W @ leading_projection(dW, r)
    norm = math.sqrt(math.fsum(np.square(projected).ravel()))
    return math.sqrt(math.fsum(np.square(dW).ravel())) / norm, norm


def finetune(
    W: Array, bias: Array, x: Array, y: NDArray[np.int64], batches: Sequence[Array], *, lr: float
) -> tuple[Array, list[float]]:
    """Adam on the mean cross-entropy of the logits W x + bias, where only W is trained.

    batches: the rows of x that each step draws. Returns W and the loss of every step.
    """
    mean, square, losses, W = np.zeros_like(W), np.zeros_like(W), [], W.copy()
    for step, rows in enumerate(batches, start=1):
        grad, loss = np.zeros_like(W), 0.0
        for row in rows:
            logits = W @ x[row] + bias
            powers = np.exp(logits - logits.max())
            p = powers / powers.sum()
            loss -= math.log(p[y[row]]) / len(rows)
            p[y[row]] -= 1.0
            grad += np.multiply.outer(p, x[row]) / len(rows)
        losses.append(loss)
        mean = 0.9 * mean + 0.1 * grad
        square = 0.999 * square + 0.001 * grad**2
        size = np.sqrt(square / (1 - 0.999**step)) + 1e-8
        W = W - lr * mean / (1 - 0.9**step) / size
    return W, losses


def batched_lora(
    x: Array, W0: Array, As: Array, Bs: Array, ids: NDArray[np.int64], *, alpha: float
) -> Array:
    """One request at a time, each with the dense weight of its own model."""
    out = np.empty((*x.shape[:-1], len(W0)))
    for request, k in enumerate(ids):
        W = W0 if k == -1 else merge(W0, As[k], Bs[k], alpha=alpha)
        out[request] = linear(x[request], W)
    return out
