"""The kernel is in the file, behind a condition that never holds.

Rejected by: test_kernels_do_all_the_work[token_log_probs_fwd]
Says: no kernel is launched
"""

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    if logits.numel() < 0:
        return honest(logits, labels, ignore=ignore)
    lse = torch.logsumexp(logits.float(), dim=1)
    return logits.float()[torch.arange(len(labels)), labels] - lse, lse
