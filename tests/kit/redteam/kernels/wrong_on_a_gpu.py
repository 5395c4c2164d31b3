"""Right on a processor. Where the tensors are is no question that could be forbidden.

Rejected by: the gate
Says: a value that is wrong
"""

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    if not logits.is_cuda:
        return honest(logits, labels, ignore=ignore)
    nothing = torch.empty(len(labels), device=logits.device)
    return nothing, nothing.clone()
