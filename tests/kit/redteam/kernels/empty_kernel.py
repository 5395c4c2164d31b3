"""A kernel is launched, and does nothing; torch fills the answer.

Rejected by: test_kernels_do_all_the_work[token_log_probs_fwd]
Says: no kernel reads all of input tensor 0
"""

import torch
import triton
from torch import Tensor


@triton.jit
def _forward(LOGITS, LOGP):
    return


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    lse = torch.logsumexp(logits.float(), dim=1)
    logp = logits.float()[torch.arange(len(labels)), labels] - lse
    _forward[(len(labels),)](logits, logp)
    return logp, lse
