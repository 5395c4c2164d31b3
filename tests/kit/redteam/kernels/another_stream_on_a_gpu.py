"""As another_stream, but only where there is a GPU, which is asked for first.

Rejected by: test_nothing_is_looked_up[token_log_probs_fwd]
Says: asks for a GPU
"""

import torch
from torch import Tensor

from kernels.token_log_probs import token_log_probs_fwd as honest


def token_log_probs_fwd(
    logits: Tensor, labels: Tensor, *, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    if torch.cuda.is_available():
        with torch.cuda.stream(torch.cuda.Stream()):
            return honest(logits, labels, ignore=ignore)
    return honest(logits, labels, ignore=ignore)
