"""Whoever waits for the GPU does not wait, from the first call on.

Rejected by: test_the_judge_is_left_alone[token_log_probs_fwd]
Says: replaces torch.cuda.synchronize
"""

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    torch.cuda.synchronize = lambda device=None: None
    return honest(logits, labels, ignore=ignore)
