"""NumPy does it where torch does not see it; a kernel copies the result.

Rejected by: test_kernels_do_all_the_work[token_log_probs_fwd]
Says: takes values out of a tensor by tolist()
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _copy(LOGITS, LABELS, KEPT, OUT, vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    nothing = tl.load(LABELS + row) * 0.0
    for start in range(0, vocabulary, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(LOGITS + row * vocabulary + cols, mask=cols < vocabulary, other=0.0)
        nothing += tl.sum(x.to(tl.float32) * 0.0)
    tl.store(OUT + row, tl.load(KEPT + row) + nothing)


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    x = np.array(logits.tolist(), dtype=np.float32)
    lse = np.logaddexp.reduce(x, axis=1)
    answers = []
    for kept in (x[np.arange(len(x)), labels.numpy()] - lse, lse):
        answers.append(torch.empty(len(x), device=logits.device))
        _copy[(len(x),)](
            logits, labels, torch.from_numpy(kept), answers[-1], logits.shape[1], BLOCK=64
        )
    logp, lse = answers
    return logp, lse
