"""A kernel reads and writes everything, and torch puts the right values over it.

Rejected by: test_kernels_do_all_the_work[token_log_probs_fwd]
Says: torch computes beside kernels
"""

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    logp, lse = honest(logits, labels, ignore=ignore)
    torch.logsumexp(logits.float(), dim=1, out=lse)
    return logp, lse
