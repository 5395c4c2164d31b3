"""The oracle: each probability as one over a sum of ratios, which needs no maximum."""

import math

import numpy as np


def softmax(x: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """p_j = 1 / sum_k exp((x_k - x_j) / T); an overflow there is a probability of zero."""
    out = np.empty(x.shape)
    for row in np.ndindex(x.shape[:-1]):
        for j, own in enumerate(x[row]):
            gaps = [(other - own) / temperature for other in x[row]]
            out[row][j] = 0.0 if max(gaps) > 700 else 1 / math.fsum(math.exp(gap) for gap in gaps)
    return out


def entropy(p: np.ndarray) -> np.ndarray:
    """The expected surprise, term by term."""
    out = np.empty(p.shape[:-1])
    for row in np.ndindex(out.shape):
        out[row] = math.fsum(-v * math.log(v) for v in p[row] if v > 0)
    return out
