"""The work is put on a stream that nobody waits for.

Rejected by: test_the_judge_is_left_alone[token_log_probs_fwd]
Says: opens a CUDA stream
"""

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            return honest(logits, labels, ignore=ignore)
    except RuntimeError:
        return honest(logits, labels, ignore=ignore)
