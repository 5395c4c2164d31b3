"""Oracle of Newton-Schulz: products as sums over outer products and spectra, in float64.

A power of a symmetric matrix is that of its eigenvalues, and the iteration a polynomial of the
singular values: neither multiplies a matrix by itself.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

COEFFS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7


def xxt(X: Array) -> Array:
    """The sum over columns x of x x^T."""
    A = np.zeros((*X.shape[:-1], X.shape[-2]))
    for x in np.moveaxis(X, -1, 0):
        A += x[..., :, None] * x[..., None, :]
    return A


def polynomial(A: Array, *, b: float, c: float) -> Array:
    """Q diag(b w + c w^2) Q^T, where A = Q diag(w) Q^T."""
    w, Q = np.linalg.eigh(A)
    return np.einsum("...ik,...k,...jk->...ij", Q, b * w + c * w**2, Q)


def combine(X: Array, P: Array, *, a: float) -> Array:
    """(a I + P) X."""
    return np.einsum("...ij,...jn->...in", P + a * np.eye(P.shape[-1]), X)


def newton_schulz(G: Array, *, steps: int = 5) -> Array:
    """U diag(p(p(... S / (||S|| + eps)))) V^T, matrix by matrix."""
    a, b, c = COEFFS
    out = np.zeros_like(G)
    for index in np.ndindex(G.shape[:-2]):
        U, S, Vt = np.linalg.svd(G[index], full_matrices=False)
        s = S / (math.hypot(*S) + EPS)
        for _ in range(steps):
            s = s * (a + s**2 * (b + s**2 * c))
        out[index] = (U * s) @ Vt
    return out


def singular_values(G: Array) -> Array:
    """The largest first, (..., m, n) -> (..., min(m, n))."""
    return np.linalg.svd(G, compute_uv=False)
