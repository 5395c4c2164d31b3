"""Oracle of token log-probabilities: one row at a time, in float64, from its sorted logits.

The sum of exponentials is math.fsum's, exact but for one rounding. The gradient is a row of the
Jacobian of log_softmax.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def token_log_probs_fwd(
    logits: Array, labels: Labels, *, ignore: int = -100
) -> tuple[Array, Array]:
    """logp and lse of each row; 0 for what is ignored, NaN for what is no label."""
    logp, lse = np.zeros(len(labels)), np.zeros(len(labels))
    for i, label in enumerate(labels):
        if label == ignore:
            continue
        if not 0 <= label < logits.shape[1]:
            logp[i] = lse[i] = math.nan
            continue
        row = np.sort(logits[i])
        above = math.log(math.fsum(np.exp(row - row[-1])))
        logp[i] = logits[i, label] - row[-1] - above
        lse[i] = row[-1] + above
    return logp, lse


def token_log_probs_bwd(
    dlogp: Array, logits: Array, labels: Labels, lse: Array, *, ignore: int = -100
) -> Array:
    """d logp[i] / d logits[i, j] is [j = label] - exp(logits[i, j] - lse[i])."""
    dlogits = np.zeros(logits.shape)
    for i, label in enumerate(labels):
        if label != ignore:
            jacobian = -np.exp(logits[i] - lse[i])
            jacobian[label] += 1
            dlogits[i] = dlogp[i] * jacobian
    return dlogits
